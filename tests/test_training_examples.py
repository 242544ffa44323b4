"""The example scripts, as a user runs them, with tiny models."""

import csv
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from training_parts import PRIOR, VQVAE, write_music

from jukebox_hf import JukeboxPriorModel, JukeboxProcessor, JukeboxVQVAEModel

EXAMPLES = Path(__file__).parent.parent / "examples"
COMMON = [
    "--use_cpu", "--max_steps", "3", "--per_device_train_batch_size", "2", "--logging_steps", "1", "--eval_strategy",
    "steps", "--eval_steps", "2", "--save_steps", "2", "--ema_decay", "0.8", "--report_to", "tensorboard",
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with music, labels and settings, and what the first two scripts made of them."""
    home = tmp_path_factory.mktemp("examples")
    paths = write_music(home / "music", (2.0, 1.5, 2.5, 1.2))
    with open(home / "music" / "metadata.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file_name", "artist", "genre", "lyrics"])
        for index, path in enumerate(paths):
            rows.writerow([Path(path).name, f"Artist {index % 2}", "Folk", "la la " * index])
    (home / "vqvae.json").write_text(json.dumps(VQVAE))
    prior = {name: value for name, value in PRIOR.items() if name not in ("level", "num_artists", "num_genres")}
    prior |= {"num_time_bins": 8, "num_lyric_tokens": 16, "attention_pattern": "rcpP"}
    (home / "prior.json").write_text(json.dumps(prior))
    music = ["--music", str(home / "music")]
    _run(home, "train_vqvae.py", *music, "--config", str(home / "vqvae.json"), "--crop_length", "2048")
    _run(home, "train_prior.py", *music, "--config", str(home / "prior.json"), *_vqvae(home))
    return home


def _vqvae(home: Path) -> list[str]:
    return ["--vqvae", str(home / "train_vqvae"), "--level", "1"]


def _run(home: Path, script: str, *options: str):
    cache = {"HF_DATASETS_CACHE": str(home / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / script), "--output_dir", str(home / Path(script).stem), *COMMON, *options]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | cache)
    assert done.returncode == 0, done.stderr[-4000:]


def _run_here(monkeypatch, script: str, *options: str):
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    monkeypatch.setattr(sys, "argv", [script, *options])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")


@pytest.mark.parametrize("script", ["train_vqvae.py", "train_prior.py", "finetune_lora.py"])
def test_help(script, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        _run_here(monkeypatch, script, "--help")
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "--music" in printed and "--ema_decay" in printed


def test_the_vqvae_is_whole(home):
    model = JukeboxVQVAEModel.from_pretrained(home / "train_vqvae")
    # The losses are in units of this music.
    assert 0 < model.config.bandwidth_l2 != JukeboxVQVAEModel.config_class().bandwidth_l2
    assert model.codebooks[1].counts.any()
    metrics = json.loads((home / "train_vqvae" / "eval_results.json").read_text())
    assert "eval_spectral_convergence_db_level_1" in metrics
    assert list((home / "train_vqvae").rglob("events.*"))


def test_the_prior_generates(home):
    model = JukeboxPriorModel.from_pretrained(home / "train_prior")
    processor = JukeboxProcessor.from_pretrained(home / "train_prior")
    assert set(processor.tokenizer.artists["v3"]) >= {"artist 0", "artist 1"}
    inputs = processor("la la", artist="Artist 1", genre="Folk", total_seconds=2.0)
    codes = model.generate(**inputs, max_new_tokens=32, generator=torch.Generator().manual_seed(0))
    assert codes.shape == (1, 32) and len(codes.unique()) > 1
    metrics = json.loads((home / "train_prior" / "eval_results.json").read_text())
    assert metrics["eval_bits_per_code"] > 0 and metrics["eval_bits_per_character"] > 0


def test_a_trained_prior_learns_new_names(home, monkeypatch):
    paths = write_music(home / "others", (2.0, 1.5))
    rows = [f"{Path(path).name},Crux,Waltz\n" for path in paths]
    (home / "others" / "metadata.csv").write_text("file_name,artist,genre\n" + "".join(rows))
    options = ["--model", str(home / "train_prior"), "--music", str(home / "others"), *_vqvae(home)]
    options += ["--output_dir", str(home / "extended"), *COMMON]
    _run_here(monkeypatch, "train_prior.py", *options, "--add_names", "--held_out_music", str(home / "others"))
    prior = JukeboxPriorModel.from_pretrained(home / "extended")
    tokenizer = JukeboxProcessor.from_pretrained(home / "extended").tokenizer
    before = JukeboxPriorModel.from_pretrained(home / "train_prior")
    assert (tokenizer.artist_id("Artist 1"), tokenizer.artist_id("Crux")) == (2, 3)
    assert prior.config.num_artists == before.config.num_artists + 1 == 4
    artists = prior.label_embedding.artists.weight
    assert torch.equal(artists[:3], before.label_embedding.artists.weight) and not torch.equal(artists[3], artists[0])
    with pytest.raises(SystemExit, match="--add_names: an adapter"):
        _run_here(monkeypatch, "finetune_lora.py", *options, "--add_names")


def test_a_crop_length_that_does_not_fit_is_refused(home, monkeypatch):
    options = ["--music", str(home / "music"), "--config", str(home / "vqvae.json"), "--output_dir", str(home / "no")]
    with pytest.raises(SystemExit, match="crop_length 2049: give a multiple of the longest hop, 16"):
        _run_here(monkeypatch, "train_vqvae.py", *options, "--crop_length", "2049")


def _lora_options(home: Path, output: str) -> list[str]:
    options = ["--model", str(home / "train_prior"), "--music", str(home / "music"), *_vqvae(home)]
    return [*options, "--output_dir", str(home / output), *COMMON, "--rank", "2", "--learning_rate", "0.01"]


def test_an_adapter_is_trained_saved_resumed_and_merged(home, monkeypatch):
    _run(home, "finetune_lora.py", *_lora_options(home, "finetune_lora"))
    saved = home / "finetune_lora"
    assert not (saved / "model.safetensors").exists()
    adapter = load_file(saved / "adapter_model.safetensors")
    assert adapter and all("lora_" in name for name in adapter)
    assert any(tensor.any() for name, tensor in adapter.items() if "lora_B" in name), "nothing was trained"

    before = load_file(saved / "checkpoint-2" / "adapter_model.safetensors")
    last = load_file(saved / "checkpoint-3" / "adapter_model.safetensors")
    assert any(not torch.equal(before[name], last[name]) for name in last)
    resume = str(saved / "checkpoint-2")
    _run_here(monkeypatch, "finetune_lora.py", *_lora_options(home, "resumed"), "--resume_from_checkpoint", resume)
    resumed = load_file(home / "resumed" / "adapter_model.safetensors")
    assert all(torch.equal(resumed[name], adapter[name]) for name in adapter)

    prior = JukeboxPriorModel.from_pretrained(home / "train_prior")
    inputs = {
        "input_ids": torch.arange(32)[None] % 16, "lyric_ids": torch.zeros(1, 16, dtype=torch.long),
        "artist_ids": torch.tensor([1]), "genre_ids": torch.tensor([[1]]),
    }  # fmt: skip
    with torch.no_grad():
        plain = prior.eval()(**inputs).logits
        adapted = peft.PeftModel.from_pretrained(prior, saved).eval()
        logits = adapted(**inputs).logits
        merged = adapted.merge_and_unload()
        assert isinstance(merged, JukeboxPriorModel)
        torch.testing.assert_close(merged(**inputs).logits, logits, rtol=1e-4, atol=1e-5)
    assert (logits - plain).abs().max() > 1e-3
    weights = JukeboxPriorModel.from_pretrained(home / "train_prior").state_dict()
    changed = {name for name, tensor in merged.state_dict().items() if not torch.equal(tensor, weights[name])}
    assert changed and all((name.endswith(".weight") and "proj" in name) or "mlp.fc" in name for name in changed)


def test_an_adapter_needs_a_prior(home, monkeypatch):
    options = ["--music", str(home / "music"), *_vqvae(home), "--output_dir", str(home / "no")]
    with pytest.raises(SystemExit, match="--model: name the repository"):
        _run_here(monkeypatch, "finetune_lora.py", *options)
