"""The transformer layers of Jukebox's priors and of their lyrics encoder (arXiv 2005.00341, section 4)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import QuickGELUActivation
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention_patterns import PATTERNS, AttentionPlan
from .cache_jukebox import JukeboxCacheLayer
from .configuration_jukebox import JukeboxLyricsEncoderConfig, JukeboxPriorConfig
from .linear_jukebox import JukeboxLinear

StackConfig = JukeboxPriorConfig | JukeboxLyricsEncoderConfig


def with_init_std(module: nn.Module, std: float) -> nn.Module:
    """Marks a matrix with the deviation it is initialised with; its bias becomes zero.

    transformers initialises out-of-tree models leaf by leaf, and a leaf does not know what it is part of.
    """
    module.init_std = std
    return module


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    is_causal: bool = False,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """Attention that also gives its weights, `(batch, heads, queries, keys)`."""
    # Scaled first: in half precision the products of long heads could overflow.
    scores = ((query * scaling) @ key.transpose(-1, -2)).float()
    if is_causal:
        attention_mask = scores.new_ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1)
    return (weights.to(value.dtype) @ value).transpose(1, 2), weights


class JukeboxLayerNorm(nn.LayerNorm):
    """A LayerNorm that computes in fp32 whatever the type of its input, and gives that type."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        normed = F.layer_norm(
            hidden_states.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps
        )
        return normed.to(hidden_states.dtype)


class JukeboxAttention(nn.Module):
    """Attention under any pattern: what a pattern is lies in the plan that comes with the states."""

    def __init__(self, config: StackConfig, letter: str):
        super().__init__()
        self.config = config
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        self.is_cross = PATTERNS[letter].keys == "lyrics"
        width = config.num_attention_heads * config.head_dim
        std = 0.02 * config.init_scale
        if self.is_cross:
            self.q_proj = with_init_std(JukeboxLinear(config.hidden_size, width), std)
            self.kv_proj = with_init_std(JukeboxLinear(config.hidden_size, 2 * width), std)
        else:
            self.qkv_proj = with_init_std(JukeboxLinear(config.hidden_size, 3 * width), std)
        # A new cross layer adds nothing.
        self.out_proj = with_init_std(JukeboxLinear(width, config.hidden_size), 0.0 if self.is_cross else std)

    def forward(
        self,
        hidden_states: Tensor,
        plan: AttentionPlan,
        lyric_states: Tensor | None,
        cache_layer: JukeboxCacheLayer | None,
        output_attentions: bool,
    ) -> tuple[Tensor, Tensor | None]:
        if self.is_cross:
            (query,) = self._split_heads(self.q_proj(hidden_states), 1)
            key, value = self._lyric_keys(lyric_states, cache_layer)
        else:
            query, key, value = self._split_heads(self.qkv_proj(hidden_states), 3)
            if cache_layer is not None:
                key, value = cache_layer.update(key, value, plan)
            else:
                key, value = key[:, :, plan.new], value[:, :, plan.new]
        attention: Callable = eager_attention_forward
        if not output_attentions:
            attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        attended, weights = attention(
            self,
            plan.group_queries(query),
            plan.group_keys(key),
            plan.group_keys(value),
            plan.mask,
            scaling=self.scaling,
            is_causal=plan.is_causal,
        )
        attended = plan.ungroup(attended, batch_size=len(hidden_states))
        return self.out_proj(attended.flatten(2)), weights

    def _lyric_keys(self, lyric_states: Tensor | None, cache_layer: JukeboxCacheLayer | None) -> tuple[Tensor, Tensor]:
        if cache_layer is not None and cache_layer.is_initialized:
            return cache_layer.keys, cache_layer.values
        key, value = self._split_heads(self.kv_proj(lyric_states.to(self.kv_proj.bias.dtype)), 2)
        if cache_layer is not None:
            cache_layer.store_lyrics(key, value)
        return key, value

    def _split_heads(self, states: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Cuts `(batch, positions, parts * heads * head_dim)` to `(batch, heads, positions, head_dim)` each."""
        return tuple(part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in states.chunk(parts, dim=-1))


class JukeboxMLP(nn.Module):
    """Linear, quick GELU, linear."""

    def __init__(self, config: StackConfig, letter: str):
        super().__init__()
        std = 0.02 * config.init_scale
        self.fc1 = with_init_std(JukeboxLinear(config.hidden_size, config.intermediate_size), std)
        self.activation = QuickGELUActivation()
        is_cross = PATTERNS[letter].keys == "lyrics"
        self.fc2 = with_init_std(JukeboxLinear(config.intermediate_size, config.hidden_size), 0.0 if is_cross else std)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(hidden_states)))


class JukeboxTransformerLayer(GradientCheckpointingLayer):
    """Attention and MLP; both add to the same residual stream, which no norm follows."""

    def __init__(self, config: StackConfig, letter: str):
        super().__init__()
        self.attention = JukeboxAttention(config, letter)
        self.mlp = JukeboxMLP(config, letter)
        self.attention_layer_norm = JukeboxLayerNorm(config.hidden_size)
        self.mlp_layer_norm = JukeboxLayerNorm(config.hidden_size)
        self.residual_scale = config.residual_scale

    def forward(
        self,
        hidden_states: Tensor,
        plan: AttentionPlan,
        lyric_states: Tensor | None = None,
        cache_layer: JukeboxCacheLayer | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        attended, weights = self.attention(
            self.attention_layer_norm(hidden_states), plan, lyric_states, cache_layer, output_attentions
        )
        update = attended + self.mlp(self.mlp_layer_norm(hidden_states + attended))
        if self.residual_scale != 1:
            update = update * self.residual_scale
        return hidden_states + update, weights
