"""The adapter for MARBLE gives the prior's own hidden states in MARBLE's shape."""

import sys
from pathlib import Path

import pytest
import torch
from conftest import assert_matches
from song_models import song_model

from jukebox_hf import EmbeddingRecipe, JukeboxEmbedder

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from marble_encoder import JukeboxMarbleEncoder

RATE, HOP = 44100, 128


@pytest.fixture(scope="module")
def model(converted):
    return song_model("song-5b-style", converted)


def encoder(model, **settings) -> JukeboxMarbleEncoder:
    settings = {"pooling": "frames", "normalize": None, "total_length": 3 * RATE, "offset": 0} | settings
    recipe = EmbeddingRecipe(layers=[2, 5, 6], **settings)
    return JukeboxMarbleEncoder(JukeboxEmbedder.from_models(model.vqvae, model.prior_2, recipe))


def test_all_layers_in_marbles_shape(model):
    torch.manual_seed(0)
    audio = torch.rand(2, 100 * HOP + 30) - 0.5
    marble = encoder(model)
    features = marble.stacked(audio)
    codes = model.vqvae.encode(audio[:, None], levels=[2]).audio_codes[0]
    total = torch.tensor([3 * RATE])
    with torch.no_grad():
        windows = [
            model.prior_2(part, total_length=total, output_hidden_states=True).hidden_states
            for part in codes.split(64, dim=1)
        ]
    expected = torch.stack([torch.cat([window[k] for window in windows], dim=1) for k in (2, 5, 6)], dim=1)
    assert features.shape == (2, 3, 100, 32)
    assert_matches(features, expected)
    # What MARBLE's own LayerSelector takes: something to index by layer.
    assert [layer.shape for layer in marble(audio)] == [(2, 100, 32)] * 3


def test_what_marble_asks_of_an_encoder(model):
    marble = encoder(model, pooling="average", frame_rate=10.0)
    assert (marble.NAME, marble.SAMPLING_RATE, marble.NUM_FEATURES, marble.N_TRANSFORMER_LAYERS) == (
        "jukebox", RATE, 32, 3,
    )  # fmt: skip
    assert pytest.approx(RATE / HOP / 34) == marble.TOKEN_RATE
    assert marble.stacked(torch.rand(1, 100 * HOP)).shape == (1, 3, 100 // 34, 32)


def test_means_are_refused(model):
    with pytest.raises(ValueError, match=r"pooling='mean', join='stitch': MARBLE wants frames"):
        encoder(model, pooling="mean")
