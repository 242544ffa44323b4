"""Embeddings as an encoder of MARBLE, the benchmark of music representations (Yuan et al. 2023, arXiv 2306.10548).

In MARBLE v2 (github.com/a43992899/MARBLE) an encoder gives a tensor `(batch, time, hidden)` for each layer, which its
LayerSelector stacks to `(batch, layers, time, hidden)`; MARBLE v1 stores such stacks for each clip. The layers are
those of the recipe, in its order: LayerSelector's 0 is the first of them. Make the encoder in Python; nothing of MARBLE
is needed.
"""

import torch
from torch import Tensor, nn

from jukebox_hf import JukeboxEmbedder


class JukeboxMarbleEncoder(nn.Module):
    """Gives all frames of all layers of an embedder, whose recipe says everything else.

    Args:
        embedder ([`JukeboxEmbedder`]): with `pooling="frames"` (or frames at another rate) and `join="stitch"`.

    Raises:
        ValueError: an embedder of means, or of windows of their own.
    """

    NAME = "jukebox"

    def __init__(self, embedder: JukeboxEmbedder):
        super().__init__()
        recipe = embedder.recipe
        if recipe.pooling == "mean" or recipe.join != "stitch":
            raise ValueError(
                f"pooling={recipe.pooling!r}, join={recipe.join!r}: MARBLE wants frames; make the embedder with "
                "pooling='frames' and join='stitch'."
            )
        config = embedder.load()[1].config
        self.embedder = embedder
        self.SAMPLING_RATE = config.sampling_rate
        self.TOKEN_RATE = recipe.output_rate(config)
        self.NUM_FEATURES = config.hidden_size
        self.N_TRANSFORMER_LAYERS = len(recipe.layers)

    @torch.no_grad()
    def forward(self, audio: Tensor) -> tuple[Tensor, ...]:
        """Takes clips `(batch, samples)` at `SAMPLING_RATE` to a tensor `(batch, time, hidden)` for each layer.

        Raises:
            ValueError: clips that cannot be embedded.
        """
        embeddings = self.embedder(list(audio), sampling_rate=self.SAMPLING_RATE)
        layers = self.embedder.recipe.layers
        stacks = [torch.stack([torch.from_numpy(one.layers[layer]) for one in embeddings]) for layer in layers]
        return tuple(stack.to(audio.device) for stack in stacks)

    def stacked(self, audio: Tensor) -> Tensor:
        """As `forward`, in MARBLE's shape `(batch, layers, time, hidden)`."""
        return torch.stack(self(audio), dim=1)
