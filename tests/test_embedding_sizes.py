"""What an embedder of the released 5b prior has to load."""

import pytest
import torch

from jukebox_hf import JukeboxPriorConfig, JukeboxPriorModel
from jukebox_hf.conversion.official import OFFICIAL_CHECKPOINTS

# Layers: parameters in them, GiB of them in fp16, and GiB of the whole model, whose embeddings stay in fp32.
SIZES_OF_5B = {36: (2.49e9, 4.6, 4.9), 72: (4.98e9, 9.3, 9.6)}


@pytest.mark.parametrize("num_layers", SIZES_OF_5B)
def test_half_of_5bs_layers_need_half_of_the_memory(num_layers):
    changes = {"num_hidden_layers": num_layers}
    config = JukeboxPriorConfig(**OFFICIAL_CHECKPOINTS["5b-prior-level-2"].config.to_diff_dict() | changes)
    with torch.device("meta"):
        prior = JukeboxPriorModel(config)
    in_layers = sum(parameter.numel() for parameter in prior.layers.parameters())
    around = sum(parameter.numel() for parameter in prior.parameters()) - in_layers
    expected, layers_gib, model_gib = SIZES_OF_5B[num_layers]
    assert in_layers == pytest.approx(expected, rel=1e-3)
    assert round(2 * in_layers / 2**30, 1) == layers_gib
    assert round((2 * in_layers + 4 * around) / 2**30, 1) == model_gib
