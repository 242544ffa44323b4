"""The original's reference values, and models converted from its checkpoints by the shipped converter."""

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from jukebox_hf import JukeboxVQVAEConfig, JukeboxVQVAEModel
from jukebox_hf.conversion import convert_checkpoint
from jukebox_hf.convolution_jukebox import SignalStream

GOLDENS = Path(__file__).parent / "goldens"
VQVAE_CASES = ("vqvae-two-level", "vqvae-three-level", "vqvae-5b-size")
PRIOR_CASES = (
    "prior-unlabelled-style", "prior-5b-style", "prior-5b-lyrics-style", "prior-separate-encoder-style",
    "prior-1b-lyrics-style", "upsampler-level-1-style", "upsampler-level-0-style",
)  # fmt: skip


def assert_matches(actual: torch.Tensor, expected: torch.Tensor, name: str = ""):
    """Holds a value to the project's promise: within 1e-5 times max(1, the largest reference value)."""
    assert actual.shape == expected.shape, f"{name}: {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    difference = (actual.double() - expected.double()).abs().max().item()
    allowed = 1e-5 * max(1.0, expected.double().abs().max().item())
    assert difference <= allowed, f"{name}: off by {difference:.3g}, allowed {allowed:.3g}"


@cache
def golden(case: str) -> SimpleNamespace:
    folder = GOLDENS / case
    return SimpleNamespace(
        checkpoint=folder / "checkpoint.pth.tar",
        settings=json.loads((folder / "case.json").read_text()),
        tensors=load_file(folder / "tensors.safetensors"),
    )


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """Folders of the golden checkpoints in our layout, converted once in a test run."""
    root = tmp_path_factory.mktemp("converted")

    @cache
    def convert(case: str) -> Path:
        return convert_checkpoint(golden(case).checkpoint, root / case)

    return convert


@pytest.fixture
def small_model() -> JukeboxVQVAEModel:
    """Three random levels with the released strides; codes differ from frame to frame."""
    torch.manual_seed(0)
    config = JukeboxVQVAEConfig(
        hidden_size=4, num_residual_layers=2, codebook_size=32, codebook_dim=8, linf_k=64, bandwidth_l2=0.03
    )
    model = JukeboxVQVAEModel(config).eval()
    audio = torch.randn(4, 1, 4096) * 0.3
    for encoder, codebook in zip(model.encoders, model.codebooks):
        with torch.no_grad():
            latents = encoder(audio.transpose(1, 2), SignalStream()).flatten(0, 1)
        codebook.vectors.copy_(latents[torch.randperm(len(latents))[:32]])
        codebook.vector_sums.copy_(codebook.vectors)
        codebook.counts.fill_(1.0)
    return model
