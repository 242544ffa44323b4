"""Whole models converted: of transformers 4, of the official checkpoints, and put together from converted parts."""

import copy
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from conftest import golden
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file, save_file
from test_download import Server
from test_prior_goldens import conditions
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForTextToWaveform, AutoProcessor
from typer.testing import CliRunner
from v4_repositories import PARTS, STYLES, WEIGHTS, save_large_v4_repository, v4_folder, v4_repositories

from benchmarks.conversion_1b import run_measured
from jukebox_hf import (
    JukeboxConfig,
    JukeboxFeatureExtractor,
    JukeboxModel,
    JukeboxPriorModel,
    JukeboxProcessor,
    JukeboxVQVAEModel,
)
from jukebox_hf.cli.compose import compose as compose_command
from jukebox_hf.cli.convert import convert as convert_command
from jukebox_hf.conversion import compose_repository, convert_checkpoint, v4, vocabularies
from jukebox_hf.conversion import convert as convert_module
from jukebox_hf.conversion.hyperparameters import prior_config_from_hps, vqvae_config_from_hps
from jukebox_hf.conversion.name_maps import PRIOR_NAMES, VQVAE_NAMES, translate
from jukebox_hf.conversion.official import OFFICIAL_CHECKPOINTS, OFFICIAL_MODELS, OfficialCheckpoint
from jukebox_hf.conversion.weights import Weight
from jukebox_hf.conversion.whole import join_weights, whole_repository

WHOLE_FILES = {
    "config.json", "generation_config.json", "model.safetensors", "README.md", "jukebox_hf_shim.py",
    "processor_config.json", "tokenizer_config.json", "artists.json", "genres.json", "lyrics.json",
}  # fmt: skip
SHAPES = json.loads((Path(__file__).parent / "data" / "official_checkpoint_shapes.json").read_text())
ARTISTS = "unknown;0\nvela;1\nsaltmarsh;2\n"
GENRES = "unknown;0\nfolk;1\n"


@pytest.fixture(scope="module")
def v4_repository(tmp_path_factory):
    return v4_repositories(tmp_path_factory.mktemp("v4"))


@pytest.fixture(scope="module")
def lists(tmp_path_factory) -> Path:
    """The lists of artists and genres of a run."""
    folder = tmp_path_factory.mktemp("lists")
    for version in ("v2", "v3"):
        (folder / f"{version}_artist_ids.txt").write_text(ARTISTS)
        (folder / f"{version}_genre_ids.txt").write_text(GENRES)
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory, lists) -> list[Path]:
    """The converted VQ-VAE and priors of 5b_lyrics, whose top prior is stored in fp16, with their processors."""
    root = tmp_path_factory.mktemp("parts")
    vqvae = convert_checkpoint(golden("vqvae-three-level").checkpoint, root / "vqvae")
    priors = [
        convert_checkpoint(golden(case).checkpoint, root / f"prior-{level}", vocabulary=lists)
        for level, case in enumerate(PARTS["5b"])
    ]
    return [vqvae, *priors]


def assert_same_weights(model: torch.nn.Module, expected: torch.nn.Module):
    assert model.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name]), name


# Of transformers 4


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("style", STYLES)
def test_v4_repositories(style, weights, v4_repository, tmp_path):
    source = v4_repository(style, weights=weights)
    folder = convert_checkpoint(source, tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == WHOLE_FILES
    model, info = AutoModelForTextToWaveform.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model, JukeboxModel) and not any(info.values())
    expected = AutoModel.from_pretrained(source)
    assert_same_weights(model, expected)
    assert model.generation_config.to_diff_dict() == expected.generation_config.to_diff_dict()
    assert AutoConfig.from_pretrained(folder).priors[0].to_dict() == expected.config.prior_0.to_dict()
    ours, theirs = AutoProcessor.from_pretrained(folder), AutoProcessor.from_pretrained(source)
    song = dict(text="Hey now", artist="Vela", genre="Blues Rock", total_seconds=20)
    assert all(torch.equal(value, theirs(**song)[name]) for name, value in ours(**song).items())
    with pytest.raises(ValueError, match="ours needs no conversion"):
        convert_checkpoint(folder, tmp_path / "again")


def test_v4_repositories_without_names(v4_repository, tmp_path):
    shutil.copytree(v4_repository("1b"), tmp_path / "source")
    (tmp_path / "source" / "artists.json").unlink()
    folder = convert_checkpoint(tmp_path / "source", tmp_path / "out")
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    assert isinstance(extractor, JukeboxFeatureExtractor) and extractor.hop_length == 128
    assert not (folder / "tokenizer_config.json").exists()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_only_the_layers_matrices_change_their_type(dtype, v4_repository, tmp_path):
    folder = convert_checkpoint(v4_repository("5b"), tmp_path / "out", dtype=dtype)
    for name, tensor in load_file(folder / "model.safetensors").items():
        is_matrix = ".layers." in name and name.endswith("weight") and "norm" not in name
        assert tensor.dtype == (getattr(torch, dtype) if is_matrix else torch.float32), name
    model, prior = AutoModel.from_pretrained(folder), JukeboxPriorModel.from_pretrained(folder, level=1)
    assert model.prior_2.dtype == prior.dtype == getattr(torch, dtype)
    assert model.vqvae.dtype == torch.float32


def change_v4_tensors(source: Path, folder: Path, change) -> Path:
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


EMBEDDING, OUTPUT = "priors.1.prior.embed_tokens.weight", "priors.1.prior.fc_proj_out.weight"


def test_tied_matrices_under_the_other_name(v4_repository, tmp_path):
    def rename(tensors):
        tensors[OUTPUT] = tensors.pop(EMBEDDING)

    source = v4_repository("1b", weights="safetensors")
    folder = convert_checkpoint(change_v4_tensors(source, tmp_path / "source", rename), tmp_path / "out")
    assert_same_weights(AutoModel.from_pretrained(folder), AutoModel.from_pretrained(source))


def test_repositories_in_half_precision(v4_repository, tmp_path):
    def halve(tensors):
        tensors |= {name: tensor.half() for name, tensor in tensors.items()}

    source = change_v4_tensors(v4_repository("5b", weights="safetensors"), tmp_path / "source", halve)
    folder = convert_checkpoint(source, tmp_path / "out")
    model, expected = (AutoModel.from_pretrained(each, dtype=torch.float32) for each in (folder, source))
    assert_same_weights(model, expected)
    codebook = model.vqvae.codebooks[0]
    assert torch.equal(codebook.vector_sums, codebook.vectors * codebook.counts[0])
    assert load_file(folder / "model.safetensors")["prior_2.layers.0.mlp.fc1.weight"].dtype == torch.float16


def _change_output(tensors):
    tensors[OUTPUT] = tensors[EMBEDDING] + 1


def _drop_both(tensors):
    del tensors[EMBEDDING]


def _add(tensors):
    tensors["priors.0.prior.transformer._attn_mods.99.attn.c_attn.weight"] = torch.zeros(32, 24)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_change_output, "different tensors for prior_1.lm_head.weight and prior_1.embed_tokens.weight"),
        (_drop_both, r"2 missing \(prior_1.embed_tokens.weight, prior_1.lm_head.weight\)"),
        (_add, r"1 without a place in the model \(priors.0.prior.transformer._attn_mods.99.attn.c_attn.weight\)"),
    ],
)
def test_weights_that_do_not_fit(change, message, v4_repository, tmp_path):
    source = change_v4_tensors(v4_repository("1b", weights="safetensors"), tmp_path / "source", change)
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_v4_repositories_that_are_none(v4_repository, tmp_path):
    with pytest.raises(ValueError, match="neither a file nor an official checkpoint, and no repository"):
        convert_checkpoint(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="vocabulary='lists': a repository has names of its own"):
        convert_checkpoint(v4_repository("1b"), tmp_path / "out", vocabulary="lists")
    shutil.copytree(v4_repository("1b"), tmp_path / "bare", ignore=shutil.ignore_patterns("*.bin*"))
    with pytest.raises(ValueError, match="bare holds no weights: neither"):
        convert_checkpoint(tmp_path / "bare", tmp_path / "out")


@pytest.mark.parametrize("damage", ["cut", "code"])
def test_weights_that_cannot_be_read(damage, v4_repository, tmp_path):
    weights, name = ("safetensors", "model.safetensors") if damage == "cut" else ("bin", "pytorch_model.bin")
    source = Path(shutil.copytree(v4_repository("5b", weights=weights), tmp_path / "source"))
    if damage == "cut":
        (source / name).write_bytes((source / name).read_bytes()[:-1])
    else:
        torch.save({"vqvae.decoders.0.out.bias": Path("a class")}, source / name)
    with pytest.raises(ValueError, match=f"The weights in {source} cannot be read: {name}"):
        convert_checkpoint(source, tmp_path / "out")


@pytest.mark.parametrize("files", [["pytorch_model.bin"], ["pytorch_model.bin", "model.safetensors"]])
def test_a_repository_on_the_hub(files, v4_repository, monkeypatch, tmp_path):
    name, asked = "openai/jukebox-1b-lyrics", []
    folder = v4_repository("1b")

    def download(repository, allow_patterns):
        asked.append((repository, allow_patterns))
        return str(folder)

    monkeypatch.setattr(v4, "list_repo_files", lambda _: files)
    monkeypatch.setattr(v4, "snapshot_download", download)
    known = convert_module.read_v4_config
    monkeypatch.setattr(convert_module, "read_v4_config", lambda source: known(folder if source == name else source))
    out = convert_checkpoint(name, tmp_path / "out")
    assert asked == [(name, ["*.json", "*.bin" if len(files) == 1 else "*.safetensors"])]
    card = ModelCard((out / "README.md").read_text())
    assert card.data.license_name == "openai-jukebox-noncommercial" and f"- `{name}`" in card.text


@pytest.mark.parametrize("weights", WEIGHTS)
def test_converting_takes_the_memory_of_a_few_tensors(weights, tmp_path):
    (tmp_path / "source").mkdir()
    assert save_large_v4_repository(tmp_path / "source", weights) > 150e6
    imports = "from jukebox_hf.conversion import convert_checkpoint"
    convert = "convert_checkpoint({!r}, {!r})"
    small = run_measured(f"{imports}; {convert.format(str(v4_folder('1b')), str(tmp_path / 'small'))}")
    large = run_measured(f"{imports}; {convert.format(str(tmp_path / 'source'), str(tmp_path / 'large'))}")
    assert large.anonymous - small.anonymous < 15e6


@pytest.mark.parametrize("has_names", [True, False])
@pytest.mark.parametrize("style", STYLES)
def test_the_cards_example_runs(style, has_names, v4_repository, tmp_path, monkeypatch):
    shutil.copytree(v4_repository(style), tmp_path / "source")
    if not has_names:
        (tmp_path / "source" / "artists.json").unlink()
    convert_checkpoint(tmp_path / "source", tmp_path / "whole")
    monkeypatch.chdir(tmp_path)
    card = ModelCard(Path("whole", "README.md").read_text())
    assert card.data.pipeline_tag == "text-to-audio" and "$" not in card.content
    for fact in ("# whole", "no licence for its weights", "token for token", "0.2 s, one context of the top level"):
        assert fact in card.text
    (example,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert ("AutoProcessor" in example) == has_names
    names = {}
    exec(example, names)
    assert names["audio"].shape == (1, 1, 64 * 128)


# Of the official checkpoints


@pytest.mark.parametrize("name", OFFICIAL_MODELS)
def test_official_models_fit_their_parts(name):
    vqvae, *priors = (copy.deepcopy(OFFICIAL_CHECKPOINTS[part].config) for part in OFFICIAL_MODELS[name])
    recorded = {shapes["file"]: shapes["tensors"] for shapes in SHAPES.values()}
    weights = {}
    with torch.device("meta"):
        models = [JukeboxVQVAEModel(vqvae), *map(JukeboxPriorModel, priors)]
        for part, model, table in zip(OFFICIAL_MODELS[name], models, (VQVAE_NAMES, *3 * [PRIOR_NAMES])):
            shapes = recorded[OFFICIAL_CHECKPOINTS[part].url.partition("/models/")[2]]
            places = {key: tensor for key, tensor in model.state_dict().items() if not key.endswith(("sums", "counts"))}
            tensors = translate({key: torch.empty(shape) for key, shape in shapes.items()}, table, places)
            tensors = model.state_dict() | tensors
            for twin in model.all_tied_weights_keys:
                del tensors[twin]
            part = "vqvae" if table is VQVAE_NAMES else f"prior_{model.config.level}"
            weights[part] = {key: Weight(tensor, torch.float16) for key, tensor in tensors.items()}
    config = JukeboxConfig.from_parts(vqvae, priors)
    repository = whole_repository(config, join_weights(weights), JukeboxFeatureExtractor())
    settings = repository.model.generation_config
    assert settings.hop_fractions == [0.5, 0.5, 0.125] and settings.max_length == priors[2].context_length
    parameters = sum(model.num_parameters() for model in models)
    assert repository.facts["parameters"] == f"{parameters:,}"


@pytest.fixture
def server():
    servers = []

    def serve(content: bytes) -> Server:
        servers.append(Server(content))
        return servers[-1]

    yield serve
    for each in servers:
        each.close()


def test_an_official_model_is_downloaded(server, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    cases = ("vqvae-three-level", *PARTS["1b"])
    for name, case in zip(OFFICIAL_MODELS["1b-lyrics"], cases):
        hps, known = golden(case).settings["hps"], OFFICIAL_CHECKPOINTS[name]
        config = vqvae_config_from_hps(hps) if name == "5b-vqvae" else prior_config_from_hps(hps)
        url = server(golden(case).checkpoint.read_bytes()).url
        official = OfficialCheckpoint(url, config, known.sample_length, label_version=known.label_version)
        monkeypatch.setitem(OFFICIAL_CHECKPOINTS, name, official)
    monkeypatch.setattr(vocabularies, "IDS_URL", server(ARTISTS.encode()).url.rpartition("/")[0])
    for name in vocabularies.ID_LISTS:
        monkeypatch.setitem(vocabularies.ID_LISTS, name, hashlib.sha256(ARTISTS.encode()).hexdigest())
    app = typer.Typer()
    app.command()(convert_command)
    result = CliRunner().invoke(app, ["1b-lyrics", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    folder = tmp_path / "out"
    assert {path.name for path in folder.iterdir()} == WHOLE_FILES
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model, JukeboxModel) and not any(info.values())
    assert_same_weights(model, AutoModel.from_pretrained(v4_folder("1b")))
    assert model.generation_config.hop_fractions == [0.5, 0.5, 0.125]
    processor = AutoProcessor.from_pretrained(folder)
    assert processor.sample_length is None and processor.tokenizer.versions == ["v2", "v2", "v3"]
    assert processor("text", artist="Vela", total_seconds=20)["artist_ids"].tolist() == [[1, 1, 1]]
    card = ModelCard((folder / "README.md").read_text())
    assert card.data.license_name == "openai-jukebox-noncommercial"
    for name, case in zip(OFFICIAL_MODELS["1b-lyrics"], cases):
        assert OFFICIAL_CHECKPOINTS[name].url in card.text
        assert hashlib.sha256(golden(case).checkpoint.read_bytes()).hexdigest() in card.text


# Of converted parts


def test_parts_put_together(parts, tmp_path):
    folder = compose_repository(parts[::-1], tmp_path / "whole")
    assert {path.name for path in folder.iterdir()} == WHOLE_FILES
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model, JukeboxModel) and not any(info.values())
    loaded = [AutoModel.from_pretrained(part, dtype=torch.float32) for part in parts]
    assert_same_weights(model, JukeboxModel.from_parts(loaded[0], loaded[1:]))
    whole, (_, *priors) = AutoConfig.from_pretrained(folder), map(AutoConfig.from_pretrained, parts)
    for prior in priors:
        ours = whole.priors[prior.level].to_dict()
        assert {name: value for name, value in prior.to_dict().items() if ours.get(name) != value}.keys() <= {
            "_name_or_path", "architectures", "auto_map",
        }  # fmt: skip
    stored = load_file(folder / "model.safetensors")
    for level, part in enumerate(parts[1:]):
        for name, tensor in load_file(part / "model.safetensors").items():
            assert stored[f"prior_{level}.{name}"].dtype == tensor.dtype, name
    assert stored["prior_2.layers.0.mlp.fc1.weight"].dtype == torch.float16
    assert stored["prior_0.layers.0.mlp.fc1.weight"].dtype == torch.float32
    assert JukeboxPriorModel.from_pretrained(folder, level=2).dtype == torch.float16
    tensors = golden("prior-5b-lyrics-style").tensors
    with torch.no_grad():
        logits = model.prior_2(tensors["codes"], **conditions(model.prior_2, tensors)).logits
    torch.testing.assert_close(logits, tensors["logits"], rtol=0, atol=1e-5 * max(1.0, tensors["logits"].abs().max()))
    processor = AutoProcessor.from_pretrained(folder)
    assert isinstance(processor, JukeboxProcessor) and processor.tokenizer.versions == ["v2", "v2", "v2"]
    assert processor.sample_length is None


def test_parts_without_processors(parts, tmp_path, caplog):
    bare = [convert_checkpoint(golden(case).checkpoint, tmp_path / case) for case in PARTS["5b"]]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        folder = compose_repository([parts[0], *bare], tmp_path / "whole")
        assert not caplog.text
        compose_repository([parts[0], parts[1], *bare[1:]], tmp_path / "mixed")
        assert "some of its priors have none" in caplog.text
    assert isinstance(AutoFeatureExtractor.from_pretrained(folder), JukeboxFeatureExtractor)
    assert not (folder / "tokenizer_config.json").exists()


def test_trained_parts(parts, tmp_path):
    """As `save_pretrained` leaves them, with no files but the model's."""
    saved = []
    for part in parts:
        model = AutoModel.from_pretrained(part, dtype=torch.float32)
        model.save_pretrained(tmp_path / part.name)
        saved.append(tmp_path / part.name)
    whole = AutoModel.from_pretrained(compose_repository(saved, tmp_path / "whole"))
    expected = AutoModel.from_pretrained(compose_repository(parts, tmp_path / "expected"))
    assert_same_weights(whole, expected)


def test_a_level_may_be_left_out(parts, tmp_path):
    folder = compose_repository([parts[0], parts[3]], tmp_path / "top")
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert list(model.priors) == [2] and not any(info.values())


def test_the_licence_is_that_of_the_parts(parts, tmp_path):
    for official in (False, True):
        sources = [Path(shutil.copytree(part, tmp_path / f"{official}-{part.name}")) for part in parts]
        if official:
            card = (sources[2] / "README.md").read_text()
            (sources[2] / "README.md").write_text(f"{card}\nlicense_name: openai-jukebox-noncommercial")
        (sources[1] / "README.md").unlink()
        card = ModelCard((compose_repository(sources, tmp_path / f"{official}") / "README.md").read_text())
        assert card.data.get("license_name") == ("openai-jukebox-noncommercial" if official else None)
        assert f"- `{official}-prior-2`" in card.text


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ([1, 2, 3], "these are 0 VQ-VAEs and 3 priors"),
        ([0], "these are 1 VQ-VAEs and 0 priors"),
        ([0, 1, 1], "each once"),
    ],
)
def test_other_than_one_vqvae_and_priors(chosen, message, parts, tmp_path):
    with pytest.raises(ValueError, match=message):
        compose_repository([parts[index] for index in chosen], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parts_that_do_not_fit(parts, lists, tmp_path):
    twin = Path(shutil.copytree(parts[1], tmp_path / "twin"))
    with pytest.raises(ValueError, match="Two of the priors are of level 0"):
        compose_repository([*parts, twin], tmp_path / "out")
    whole = compose_repository(parts, tmp_path / "whole")
    with pytest.raises(ValueError, match="these are 1 VQ-VAEs and 1 priors"):
        compose_repository([parts[0], parts[1], whole], tmp_path / "out")
    with pytest.raises(ValueError, match="whole exists and is not an empty folder"):
        compose_repository(parts, whole)
    tensors = load_file(twin / "model.safetensors")
    tensors["embed_tokens.weight"] = tensors["embed_tokens.weight"][:3]
    save_file(tensors, twin / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 tensors are missing, .* \(prior_0.embed_tokens.weight"):
        compose_repository([parts[0], twin, *parts[2:]], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_composing_takes_the_memory_of_a_few_tensors(parts, tmp_path):
    save_large_v4_repository(tmp_path, "safetensors")
    model = AutoModel.from_pretrained(tmp_path)
    model.vqvae.save_pretrained(tmp_path / "vqvae")
    model.prior_2.save_pretrained(tmp_path / "prior")
    code = "from jukebox_hf.conversion import compose_repository; compose_repository({!r}, {!r})"
    small = run_measured(code.format([str(parts[0]), str(parts[3])], str(tmp_path / "small")))
    large = run_measured(
        code.format([str(tmp_path / "vqvae"), str(tmp_path / "prior")], str(tmp_path / "large"))
    )  # fmt: skip
    assert large.anonymous - small.anonymous < 15e6


def test_compose_command(parts, tmp_path):
    app = typer.Typer()
    app.command()(compose_command)
    result = CliRunner().invoke(app, [*map(str, parts), "--output", str(tmp_path / "whole")])
    assert result.exit_code == 0, result.output
    assert isinstance(AutoModel.from_pretrained(tmp_path / "whole"), JukeboxModel)
    help_text = CliRunner().invoke(app, ["--help"]).output
    assert "jukebox-hf compose vqvae/ prior-0/ prior-1/ prior-2/ --output whole/" in help_text


def test_help_names_all_official_models():
    app = typer.Typer()
    app.command()(convert_command)
    text = CliRunner().invoke(app, ["--help"]).output
    assert all(name in text for name in OFFICIAL_MODELS) and "openai/jukebox-1b-lyrics" in text


def test_trust_remote_code_needs_no_import(parts, tmp_path):
    folder = compose_repository(parts, tmp_path / "whole")
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    assert auto_map.keys() == {"AutoConfig", "AutoModel", "AutoModelForTextToWaveform"}
    script = f"""
import os
from transformers import AutoModel, AutoModelForTextToWaveform
for auto in (AutoModel, AutoModelForTextToWaveform):
    if os.fork() == 0:
        print(type(auto.from_pretrained({str(folder)!r}, trust_remote_code=True)).__module__, flush=True)
        os._exit(0)
    os.wait()
"""
    environment = os.environ | {"HF_HOME": str(tmp_path / "home")}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert result.stdout.splitlines() == 2 * ["jukebox_hf.modeling_jukebox"], result.stderr
