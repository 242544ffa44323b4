"""A prior as one would first write it, with weights as the original stores them.

A step has caches that grow by torch.cat, a whole window dense attention under masks, in training too.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jukebox_hf import JukeboxPriorModel
from jukebox_hf.attention_patterns import PATTERNS


class PlainStack:
    """The layers of a prior over `(batch, 1, hidden_size)`, one position a call, in eager mode."""

    def __init__(self, model: JukeboxPriorModel, start: int, batch_size: int = 1):
        config = model.config
        self.letters, self.heads, self.grid = config.layer_patterns, config.num_attention_heads, config.grid
        self.position = start
        self.layers = []
        for letter, layer in zip(self.letters, model.layers):
            past = torch.zeros(batch_size, self._past(letter), config.num_attention_heads * config.head_dim)
            self.layers.append((_matrices(layer), layer.attention_layer_norm, layer.mlp_layer_norm, [past, past]))

    def _past(self, letter: str) -> int:
        """Positions whose keys are kept."""
        length, t = self.grid.block_length, self.position
        kept = {"r": t % length, "p": length + t % length, "c": t, "D": t, "P": min(t, self.grid.num_prime)}
        return kept[letter]

    def step(self, states: Tensor) -> Tensor:
        length, t = self.grid.block_length, self.position
        for letter, (matrices, attention_norm, mlp_norm, caches) in zip(self.letters, self.layers):
            (qkv, qkv_bias), (out, out_bias), (fc1, fc1_bias), (fc2, fc2_bias) = matrices
            query, key, value = (attention_norm(states) @ qkv + qkv_bias).chunk(3, dim=-1)
            if letter == "r" and t % length == 0:
                caches[:] = [cache[:, :0] for cache in caches]
            if letter != "P" or t < self.grid.num_prime:
                caches[:] = torch.cat([caches[0], key], dim=1), torch.cat([caches[1], value], dim=1)
            if letter == "p" and caches[0].shape[1] > 2 * length:
                caches[:] = [cache[:, length:] for cache in caches]
            seen = {"c": slice(t % length, None, length), "p": slice(0, length)}.get(letter, slice(None))
            key, value = caches[0][:, seen], caches[1][:, seen]
            query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
            weights = (query @ key.transpose(-1, -2) / key.shape[-1] ** 0.5).softmax(-1)
            attended = (weights @ value).transpose(1, 2).flatten(2) @ out + out_bias
            hidden = mlp_norm(states + attended) @ fc1 + fc1_bias
            states = states + attended + (hidden * F.sigmoid(1.702 * hidden)) @ fc2 + fc2_bias
        self.position += 1
        return states


class PlainPrefill:
    """The first layers of a prior over all positions of a window: dense attention under each pattern's mask."""

    def __init__(self, model: JukeboxPriorModel, num_layers: int):
        config = model.config
        self.heads = config.num_attention_heads
        positions = torch.arange(config.sequence_length)
        self.hidden = {
            letter: ~PATTERNS[letter].sees(positions[:, None], positions, config.grid)
            for letter in set(config.layer_patterns[:num_layers])
        }
        self.layers = [
            (letter, _matrices(layer), layer.attention_layer_norm, layer.mlp_layer_norm)
            for letter, layer in zip(config.layer_patterns[:num_layers], model.layers)
        ]

    def __call__(self, states: Tensor) -> Tensor:
        for letter, ((qkv, qkv_bias), (out, out_bias), (fc1, fc1_bias), (fc2, fc2_bias)), norm, mlp_norm in self.layers:
            query, key, value = (norm(states) @ qkv + qkv_bias).chunk(3, dim=-1)
            query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
            scores = query @ key.transpose(-1, -2) / key.shape[-1] ** 0.5
            weights = scores.masked_fill(self.hidden[letter], torch.finfo(scores.dtype).min).softmax(-1)
            # What the first block of a previous layer sees is zeros.
            attended = (weights @ value) * ~self.hidden[letter].all(-1, keepdim=True)
            attended = attended.transpose(1, 2).flatten(2) @ out + out_bias
            hidden = mlp_norm(states + attended) @ fc1 + fc1_bias
            states = states + attended + (hidden * F.sigmoid(1.702 * hidden)) @ fc2 + fc2_bias
        return states


class PlainPrior:
    """A top prior without lyrics in training: layers as [`PlainPrefill`] has them, the rest the model's own."""

    def __init__(self, model: JukeboxPriorModel):
        self.model, self.prefill = model, PlainPrefill(model, model.config.num_hidden_layers)
        self.prefill.layers = [
            (letter, [(matrix.detach().requires_grad_(), bias) for matrix, bias in matrices], *norms)
            for letter, matrices, *norms in self.prefill.layers
        ]
        own = [matrix for _, matrices, *_ in self.prefill.layers for matrix, _ in matrices]
        replaced = {id(linear.weight) for linear in model.layers.modules() if isinstance(linear, nn.Linear)}
        self.parameters = own + [parameter for parameter in model.parameters() if id(parameter) not in replaced]

    def loss(self, codes: Tensor, **conditions: Tensor) -> Tensor:
        """Bits a code of windows `(batch, codes)`, each a whole context."""
        model = self.model
        conditioning = model.condition(batch_size=len(codes), **conditions)
        states = torch.cat([conditioning.start_embeds, model.embed_tokens(codes[:, :-1])], dim=1)
        states = states + model.embed_positions.weight + conditioning.position_embeds
        states = self.prefill(states).float()
        if model.config.add_conditioning_after_stack:
            states = states + conditioning.position_embeds
        return F.cross_entropy(model.lm_head(states).flatten(0, 1), codes.flatten()) / math.log(2)


def _matrices(layer: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """A layer's matrices [in, out], as in the original's checkpoints, and biases."""
    linears = (layer.attention.qkv_proj, layer.attention.out_proj, layer.mlp.fc1, layer.mlp.fc2)
    return [(linear.weight.T.contiguous(), linear.bias) for linear in linears]
