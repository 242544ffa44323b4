"""The keys and values that a Jukebox transformer keeps while it decodes, each layer's as few as its pattern needs."""

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from .attention_patterns import PATTERNS, AttentionPattern, AttentionPlan, Grid
from .configuration_jukebox import JukeboxPriorConfig


class JukeboxCacheLayer(CacheLayerMixin):
    """Keys and values of one layer, `(batch, heads, slots, head_dim)` each, allocated at once when the first come.

    A row layer keeps one block, a previous layer two, a column layer all positions, each column in one contiguous run,
    a prime layer the positions it sees, a dense layer all, and a cross layer those of the lyrics.
    """

    is_compileable = True

    def __init__(self, pattern: AttentionPattern, grid: Grid, num_lyric_tokens: int):
        super().__init__()
        self.pattern = pattern
        self.grid = grid
        self.num_slots = num_lyric_tokens if pattern.keys == "lyrics" else pattern.num_slots(grid)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor):
        # Zeros and not empty memory: the first block's previous layers read the block before it, which is zero.
        batch_size, num_heads, _, head_dim = key_states.shape
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.new_zeros(batch_size, num_heads, self.num_slots, head_dim)
        self.values = torch.zeros_like(self.keys)
        if not torch.compiler.is_compiling():
            torch._dynamo.mark_static_address(self.keys)
            torch._dynamo.mark_static_address(self.values)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, plan: AttentionPlan) -> tuple[Tensor, Tensor]:
        """Keeps new keys and values and gives those that the new positions see, `(batch, heads, keys, head_dim)`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if len(key_states) != len(self.keys):
            raise ValueError(
                f"This cache holds {len(self.keys)} samples and the batch has {len(key_states)}: make a new cache."
            )
        update = self._update_step if plan.is_step else self._update_run
        return update(self.keys, key_states, plan), update(self.values, value_states, plan)

    def store_lyrics(self, key_states: Tensor, value_states: Tensor):
        """Keeps a cross layer's keys and values, which every step reads as they are."""
        self.lazy_initialization(key_states, value_states)
        self.keys.copy_(key_states)
        self.values.copy_(value_states)

    @staticmethod
    def _update_step(slots: Tensor, states: Tensor, plan: AttentionPlan) -> Tensor:
        if plan.kept is not None:
            states = torch.where(plan.kept, states, slots.index_select(2, plan.writes))
        slots.index_copy_(2, plan.writes, states)
        return slots if plan.reads is None else JukeboxCacheLayer._read(slots, plan)

    @staticmethod
    def _update_run(slots: Tensor, states: Tensor, plan: AttentionPlan) -> Tensor:
        new = states[:, :, plan.new]
        # Read first: a run longer than what is kept overwrites it.
        keys = new if plan.reads is None else torch.cat([JukeboxCacheLayer._read(slots, plan), new], dim=2)
        slots.index_copy_(2, plan.writes, states[:, :, plan.kept])
        return keys

    @staticmethod
    def _read(slots: Tensor, plan: AttentionPlan) -> Tensor:
        return slots.unflatten(2, (-1, plan.run_length)).index_select(2, plan.reads).flatten(2, 3)

    def batch_repeat_interleave(self, repeats: int):
        """Repeats each sample of the batch."""
        if self.is_initialized:
            self.keys = self.keys.repeat_interleave(repeats, dim=0)
            self.values = self.values.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: Tensor):
        """Keeps these samples of the batch, in this order."""
        if self.is_initialized:
            self.keys = self.keys[indices.to(self.keys.device)]
            self.values = self.values[indices.to(self.values.device)]

    def reorder_cache(self, beam_idx: Tensor):
        self.batch_select_indices(beam_idx)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.num_slots, 0

    def get_seq_length(self) -> int:
        raise NotImplementedError("A layer keeps what its pattern needs and does not count: ask the JukeboxCache.")

    def get_max_length(self) -> int:
        return self.grid.length


class JukeboxCache(Cache):
    """What a [`JukeboxPriorModel`] keeps of the positions it has seen, preallocated.

    A decoding step never grows it, never waits for the host and has the same shapes at every position, so it can be
    compiled once. In 5b its column layers are nearly all of it: 0.94 GB a sample in half precision.

    Args:
        config ([`JukeboxPriorConfig`]): of the model.
        max_length (`int`, *optional*): positions that it must hold (start, lyrics and codes); default a whole window.
    """

    def __init__(self, config: JukeboxPriorConfig, max_length: int | None = None):
        max_length = config.sequence_length if max_length is None else max_length
        if not 1 <= max_length <= config.sequence_length:
            raise ValueError(f"max_length={max_length}: this model has 1 to {config.sequence_length} positions.")
        block_length = config.grid.block_length
        grid = config.grid._replace(num_blocks=-(-max_length // block_length))
        patterns = [PATTERNS[letter] for letter in config.layer_patterns]
        super().__init__(layers=[JukeboxCacheLayer(pattern, grid, config.num_lyric_tokens) for pattern in patterns])
        self.grid = grid
        # A tensor that steps add to in place: a number of the host's would make each step a new graph.
        self.position = torch.tensor(0)
        torch._dynamo.mark_static_address(self.position)
        self._furthest = 0

    def to_device(self, device: torch.device):
        """Moves the position counter to where the model's input is; the layers follow their own states."""
        if self.position.device != device:
            self.position = self.position.to(device)
            torch._dynamo.mark_static_address(self.position)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions seen so far; reading it waits for the device."""
        return int(self.position)

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return self.grid.length

    def reset(self):
        """Empties the cache and keeps its memory."""
        super().reset()
        self.position.zero_()
        self._furthest = 0
        for layer in self.layers:
            if layer.pattern.keys == "lyrics":
                layer.is_initialized = False

    def crop(self, tokens_to_remove: int):
        """Forgets the last `-tokens_to_remove` positions.

        Raises:
            ValueError: a positive number, or more positions than the last block has, as row layers keep no other.
        """
        length = self.get_seq_length()
        if tokens_to_remove > 0 or -tokens_to_remove > length:
            raise ValueError(f"tokens_to_remove={tokens_to_remove}: give a number from {-length} to 0.")
        if length + tokens_to_remove == 0 and tokens_to_remove:
            return self.reset()
        # What was cropped before has overwritten what its block's place held.
        self._furthest = max(self._furthest, length)
        removable = length - (self._furthest - 1) // self.grid.block_length * self.grid.block_length
        if -tokens_to_remove > max(0, removable):
            raise ValueError(
                f"tokens_to_remove={tokens_to_remove}: only the last block's {max(0, removable)} positions can be "
                "removed, as row layers keep no other. Decode again from the start of the block you want."
            )
        self.position.add_(tokens_to_remove)


__all__ = ["JukeboxCache"]
