"""The script that puts the small model together that ships."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from song_models import song_processor
from test_composite_model import random_song_model

from jukebox_hf import JukeboxModel, JukeboxProcessor

sys.path.insert(0, str(Path(__file__).parents[1] / "examples/small_jukebox"))

from assemble import assemble, halve_priors


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folders of a VQ-VAE and of three priors, as the training scripts write them, and the model that they are."""
    root, model = tmp_path_factory.mktemp("parts"), random_song_model()
    model.vqvae.save_pretrained(root / "vqvae")
    for level, prior in model.priors.items():
        prior.save_pretrained(root / f"prior-{level}")
        processor = song_processor(JukeboxModel.from_parts(model.vqvae, [prior]))
        JukeboxProcessor(processor.feature_extractor, processor.tokenizer, prior.config.sample_length).save_pretrained(
            root / f"prior-{level}"
        )
    return root, model


def test_the_whole_is_its_parts_in_half_precision(parts, tmp_path):
    root, expected = parts
    tmp_path.joinpath("README.md").write_text("The card.")
    priors = [root / f"prior-{level}" for level in (2, 0, 1)]
    assemble(root / "vqvae", priors, tmp_path, temperature=0.9, top_k=40)
    model = JukeboxModel.from_pretrained(tmp_path)
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    weights = model.state_dict()
    for name, weight in expected.state_dict().items():
        is_prior = name.startswith("prior_")
        assert torch.equal(weights[name], weight.half().float() if is_prior else weight), name
    stored = load_file(tmp_path / "model.safetensors")
    assert {name.startswith("prior_") for name, value in stored.items() if value.dtype == torch.float16} == {True}
    settings = model.generation_config
    assert (settings.do_sample, settings.temperature, settings.top_k) == (True, 0.9, 40)
    assert len(JukeboxProcessor.from_pretrained(tmp_path).tokenizer.versions) == 3
    assert tmp_path.joinpath("README.md").read_text() == "The card."
    assert not any("/" in path.read_text() for path in tmp_path.glob("*.json"))


def test_weights_that_half_precision_does_not_hold_are_refused(tmp_path):
    for value in (1e5, float("nan")):
        save_file({"prior_0.weight": torch.tensor([value])}, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=r"prior_0.weight reaches"):
            halve_priors(tmp_path / "model.safetensors")


def test_a_missing_level_ends_the_command(parts, tmp_path):
    root, _ = parts
    script = Path(__file__).parents[1] / "examples/small_jukebox/assemble.py"
    command = [sys.executable, str(script), "--vqvae", str(root / "vqvae"), "--output", str(tmp_path / "whole")]
    done = subprocess.run([*command, "--priors", str(root / "prior-2")], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("Error: ")
    assert "are of levels [2]: give one of each level" in done.stderr
    assert not (tmp_path / "whole").exists()
