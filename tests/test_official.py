"""Expected values of the released weights, for whoever has them; the source is named in `official_weights.json`."""

import json
import os
from pathlib import Path

import pytest
import torch
from conftest import GOLDENS
from transformers import AutoModel

OFFICIAL = os.environ.get("JUKEBOX_OFFICIAL")
pytestmark = [
    pytest.mark.official,
    pytest.mark.skipif(
        OFFICIAL is None,
        reason="needs the released weights: `jukebox-hf convert 5b-vqvae FOLDER/jukebox-5b-vqvae`, then set "
        "JUKEBOX_OFFICIAL=FOLDER",
    ),
]


@pytest.fixture(scope="module")
def vqvae():
    return AutoModel.from_pretrained(Path(OFFICIAL) / "jukebox-5b-vqvae")


@pytest.fixture(scope="module")
def expected():
    return json.loads((GOLDENS / "official_weights.json").read_text())["vqvae"]


def test_released_vqvae_gives_the_published_codes(vqvae, expected):
    torch.manual_seed(0)
    audio = torch.rand((1, 5120, 1)).transpose(1, 2)
    for level, codes in enumerate(vqvae.encode(audio).audio_codes):
        assert codes[0, :40].tolist() == expected["codes"][str(level)]


def test_released_vqvae_gives_the_published_audio(vqvae, expected):
    torch.manual_seed(0)
    codes = vqvae.encode(torch.rand((1, 5120, 1)).transpose(1, 2), levels=[2]).audio_codes[0]
    decoded = vqvae.decode(codes, level=2).audio_values[0, 0, :40]
    published = torch.tensor(expected["decoded_from_level_2_first_40"])
    torch.testing.assert_close(decoded, published, rtol=0, atol=expected["tolerance"])
