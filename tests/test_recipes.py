"""The commands and the loop of the documentation: they parse, their configurations build, and the loop trains."""

import json
import re
import shlex
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from transformers import HfArgumentParser

from jukebox_hf import JukeboxVQVAEConfig, JukeboxVQVAEModel
from jukebox_hf.training import JukeboxTrainingArguments

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "examples/recipes"
PAGES = ("README.md", "docs/training_recipes.md")
sys.path.insert(0, str(ROOT / "examples"))

import train_prior
import train_vqvae

# As many names as the original's example has, with the unknown one.
MUSIC = Dataset.from_dict(
    {
        "artist": [f"artist {i}" for i in range(99)],
        "genre": [f"genre {i % 9}" for i in range(99)],
        "lyrics": [None] * 99,
    }
)
# Recipe and the VQ-VAE it is trained on: samples of a context, parameters.
STATED = {
    ("small_prior", "small_vqvae"): (2_097_152, 160_814_080),
    ("small_upsampler", "small_vqvae"): (262_144, 218_015_232),
    ("small_prior", "jukebox-5b-vqvae"): (1_048_576, 161_862_656),
    ("small_labelled_prior", "jukebox-5b-vqvae"): (1_048_576, 162_170_880),
    ("small_single_enc_dec_prior", "jukebox-5b-vqvae"): (786_432, 160_547_840),
    ("small_sep_enc_dec_prior", "jukebox-5b-vqvae"): (786_432, 168_633_280),
}
SMALL_VQVAE_PARAMETERS = 586_050


def data_classes(script: str) -> list[type]:
    if script == "train_vqvae":
        return [train_vqvae.DataArguments]
    if script == "train_prior":
        return [train_prior.DataArguments]
    pytest.importorskip("peft")
    import finetune_lora

    return [finetune_lora.DataArguments, finetune_lora.AdapterArguments]


def commands(page: str) -> list[tuple[str, list[str]]]:
    """The scripts that a page runs, and their arguments."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for position, word in enumerate(words):
                if match := re.fullmatch(r"examples/(train_\w+|finetune_lora)\.py", word):
                    found.append((match[1], words[position + 1 :]))
    return found


COMMANDS = [(page, *command) for page in PAGES for command in commands(page)]
RECIPE_COMMANDS = [(script, words) for page, script, words in COMMANDS if page == PAGES[1]]


def parse(script: str, words: list[str]):
    """What the script makes of its arguments; not the training's own, which want the devices they name."""
    classes = data_classes(script)
    parsed = HfArgumentParser((*classes, JukeboxTrainingArguments)).parse_args(words)
    return classes[0](**{field.name: getattr(parsed, field.name) for field in fields(classes[0])}), parsed


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def vqvae_config(name: str) -> JukeboxVQVAEConfig:
    path = RECIPES / f"{name}.json"
    return JukeboxVQVAEConfig(**(json.loads(path.read_text()) if path.exists() else {}))


def table() -> dict[str, list[str]]:
    """The recipes' table: its rows by their first cell."""
    rows = [line.strip("|").split("|") for line in (ROOT / PAGES[1]).read_text().splitlines() if line.startswith("|")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows[2:]}


def test_every_script_is_shown():
    assert {script for _, script, _ in COMMANDS} == {"train_vqvae", "train_prior", "finetune_lora"}
    assert {page for page, *_ in COMMANDS} == set(PAGES)


@pytest.mark.parametrize(("page", "script", "words"), COMMANDS)
def test_commands_parse(page, script, words):
    data, parsed = parse(script, words)
    assert data.music == "music" and parsed.output_dir
    config = getattr(data, "config", None)
    assert config is None or (ROOT / config).is_file()


def test_every_configuration_has_a_command():
    used = {Path(data.config).name for data, _ in (parse(*command) for command in RECIPE_COMMANDS) if data.config}
    assert used == {path.name for path in RECIPES.glob("*.json")}


@pytest.mark.parametrize(("recipe", "vqvae"), STATED)
def test_priors_build_as_stated(recipe, vqvae):
    found = [
        data
        for script, words in RECIPE_COMMANDS
        if script == "train_prior"
        for data, _ in [parse(script, words)]
        if data.config and (Path(data.config).stem, data.vqvae) == (recipe, vqvae)
    ]
    sample_length, parameters = STATED[recipe, vqvae]
    for data in found:
        data.config = str(ROOT / data.config)
        with torch.device("meta"):
            model, processor = train_prior.new_prior(data, MUSIC, vqvae_config(vqvae))
        config = model.config
        assert config.sample_length == sample_length
        assert count(model) == parameters
        labelled = data.label_version != "none"
        assert (processor is not None) == labelled == bool(config.num_time_bins)
        assert (config.num_artists, config.num_genres) == ((100, 10) if labelled else (0, 0))
        assert bool(config.num_lyric_tokens) == ("enc_dec" in recipe)
        samples = f"{sample_length:,} samples".replace(",", " ")
        seconds = f"{sample_length / config.sampling_rate:.1f} s"
        cells = [str(config.level), f"{config.context_length} codes, {samples}", seconds, f"{parameters / 1e6:.1f} M"]
        assert cells in [row[:4] for name, row in table().items() if f"`{recipe}`" in name]
    assert found


def test_the_small_vqvae_builds_as_stated():
    data, parsed = parse(*RECIPE_COMMANDS[0])
    config = vqvae_config(Path(data.config).stem)
    with torch.device("meta"):
        model = JukeboxVQVAEModel(config)
    assert config.hop_lengths == [32, 256] and config.sampling_rate == 22050
    assert count(model) == SMALL_VQVAE_PARAMETERS
    assert table()["`small_vqvae`"][3] == f"{SMALL_VQVAE_PARAMETERS / 1e6:.1f} M"
    assert data.crop_length == 262_144 and data.crop_length % config.hop_length == 0
    assert parsed.per_device_train_batch_size == 4


def test_averages_are_the_originals():
    for script, words in RECIPE_COMMANDS:
        _, parsed = parse(script, words)
        if script != "finetune_lora":
            assert parsed.ema_decay == pytest.approx(1 - parsed.per_device_train_batch_size / 8000)
            assert parsed.weight_decay == (0.0 if script == "train_vqvae" else 0.01)


def test_the_loop_of_the_readme_trains(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "music").mkdir()
    for song in range(3):
        soundfile.write(tmp_path / f"music/{song}.flac", rng.normal(0, 0.1, 20000), 44100)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (code,) = (block for block in blocks if "Accelerator(" in block)
    tiny = dict(num_downsamples=[2, 1], strides=[2, 2], level_multipliers=None, hidden_size=4, num_residual_layers=1,
                codebook_size=16, codebook_dim=8)  # fmt: skip
    smaller = {
        '"music"': repr(str(tmp_path / "music")),
        'pretrained("vqvae")': f"pretrained({str(tmp_path / 'vqvae')!r})",
        "crop_length=65536": "crop_length=4096",
        "Config(**": f"Config(**{tiny!r}, **",
        "num_workers=2": "num_workers=0",
        "range(100)": "range(2)",
    }
    for ours, theirs in smaller.items():
        assert ours in code
        code = code.replace(ours, theirs)
    names = {}
    # With other first weights some ReLUs are dead and their convolutions stay as they are.
    torch.manual_seed(0)
    exec(code, names)
    saved = JukeboxVQVAEModel.from_pretrained(tmp_path / "vqvae")
    trained = dict(names["model"].named_parameters())
    averages = names["average"].state_dict()
    for name, parameter in saved.named_parameters():
        assert torch.equal(parameter, averages[name])
        assert not torch.equal(parameter, trained[name])
    # Three songs of 20 000 samples hold 14 crops: four batches, twice.
    assert names["schedule"].last_epoch == 8 and names["crops"].epoch == 1
