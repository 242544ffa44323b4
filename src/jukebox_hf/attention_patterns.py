"""Jukebox's attention patterns as data (arXiv 2005.00341, section 4; Child et al. 2019, arXiv 1904.10509).

A sequence is read as a grid: each row is a block of consecutive positions, each column one offset into the blocks.

    row       sees its own block, up to itself           . . . .
    column    sees its own offset in earlier blocks      . c . .
    previous  sees the whole block before its own        p c p p     (what the position marked * sees:
    dense     sees everything up to itself               r * . .      r row, c column, p previous)
    prime     sees what comes first: the lyrics and a little more, up to itself
    cross     sees another sequence, the encoded lyrics

Whatever a pattern does with its keys follows from the few numbers that describe it: who sees whom, the layout in which
a run of positions is one dense attention for each group, what a cache keeps, and which slots of it one step reads.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Grid(NamedTuple):
    """How a sequence is cut into blocks of consecutive positions; prime layers see the first `num_prime` of all."""

    num_blocks: int
    block_length: int
    num_prime: int

    @property
    def length(self) -> int:
        return self.num_blocks * self.block_length


class AttentionPlan(NamedTuple):
    """What the layers of one pattern do with a run of positions; states are `(batch, heads, positions, head_dim)`.

    Args:
        reads: the cache's slots to read, as runs of `run_length` slots each; none for no slots when many positions come
            at once, and for all of them in a step.
        writes: the slots that keep the new states.
        kept: which of the new states these are; in a step a tensor, whether it is kept at all.
        new: which of the new states are keys.
        query_padding, key_padding: positions before and after, so that the grid's blocks are whole.
        groups: rows of the grid attend among themselves (`"block"`), columns do (`"offset"`), or all positions do.
        block_length: of the grid.
        mask: who sees whom in each group; none for all, or for what `is_causal` says.
    """

    reads: Tensor | None = None
    run_length: int = 1
    writes: Tensor | None = None
    kept: slice | Tensor | None = None
    new: slice = slice(None)
    query_padding: tuple[int, int] = (0, 0)
    key_padding: tuple[int, int] = (0, 0)
    groups: str | None = None
    block_length: int = 1
    mask: Tensor | None = None
    is_causal: bool = False
    is_step: bool = False

    def group_queries(self, states: Tensor) -> Tensor:
        """Gives `(batch * groups, heads, queries of a group, head_dim)`."""
        return self._group(states, self.query_padding)

    def group_keys(self, states: Tensor) -> Tensor:
        """Gives `(batch * groups, heads, keys of a group, head_dim)`."""
        return self._group(states, self.key_padding)

    def ungroup(self, states: Tensor, batch_size: int) -> Tensor:
        """Takes an attention's result `(batch * groups, queries of a group, ...)` to `(batch, positions, ...)`."""
        before, after = self.query_padding
        states = states.unflatten(0, (batch_size, -1))
        if self.groups == "offset":
            states = states.transpose(1, 2)
        states = states.flatten(1, 2)
        return states[:, before : states.shape[1] - after]

    def _group(self, states: Tensor, padding: tuple[int, int]) -> Tensor:
        if any(padding):
            states = F.pad(states, (0, 0, *padding))
        if self.groups is None:
            return states
        grid = states.unflatten(2, (-1, self.block_length))
        grid = grid.permute(0, 2, 1, 3, 4) if self.groups == "block" else grid.permute(0, 3, 1, 2, 4)
        return grid.flatten(0, 1)


@dataclass(frozen=True)
class AttentionPattern:
    """Which keys a position sees, and how they are laid out for it.

    Args:
        keys: where they lie: in a `"block"`, at the position's `"offset"` in all blocks, anywhere in the `"sequence"`,
            or in the `"lyrics"`.
        blocks_back: how many blocks before the position's own that block is.
        is_prime: whether only the first `num_prime` positions are keys.
    """

    name: str
    keys: Literal["block", "offset", "sequence", "lyrics"]
    blocks_back: int = 0
    is_prime: bool = False

    def sees(self, query: Tensor, key: Tensor, grid: Grid) -> Tensor:
        """Whether the positions `query` see the positions `key`, by broadcasting; this defines the pattern.

        The block before the first one counts as positions below 0, whose keys and values are zero.
        """
        length = grid.block_length
        if self.keys == "block":
            return (key // length == query // length - self.blocks_back) & (key <= query)
        if self.keys == "offset":
            return (key % length == query % length) & (key <= query)
        return (key < self._limit(grid)) & (key <= query)

    def num_slots(self, grid: Grid) -> int:
        """How many positions a cache keeps."""
        return (1 + self.blocks_back) * grid.block_length if self.keys == "block" else self._limit(grid)

    def slot(self, position: Tensor, grid: Grid) -> Tensor:
        """Where a cache keeps a position; the keys of one step lie in one contiguous run."""
        if self.keys == "block":
            return position % self.num_slots(grid)
        if self.keys == "offset":
            return position % grid.block_length * grid.num_blocks + position // grid.block_length
        return position

    def plan_step(self, position: Tensor, grid: Grid) -> AttentionPlan:
        """Plans one position, a tensor that the host never reads; shapes do not depend on it."""
        if self.keys == "lyrics":
            return AttentionPlan()
        length = grid.block_length
        count = {"block": length, "offset": grid.num_blocks, "sequence": self._limit(grid)}[self.keys]
        run = torch.arange(count, device=position.device)
        reads, kept, mask = None, None, None
        if self.keys == "block":
            keys = (position // length - self.blocks_back) * length + run
        elif self.keys == "offset":
            keys = run * length + position % length
        else:
            keys = run
        if count < self.num_slots(grid):
            # One number for all keys, so that a compiled step copies nothing and reads memory as it lies.
            reads = self.slot(keys[:1], grid) // count
        if not self.blocks_back:
            mask = self.sees(position, keys, grid).view(1, 1, 1, count)
        if self.is_prime:
            kept = position < count
        writes = self.slot(position, grid).clamp(max=self.num_slots(grid) - 1).view(1)
        return AttentionPlan(reads, count, writes, kept, mask=mask, is_step=True)

    def plan(self, start: int, stop: int, grid: Grid, device: torch.device) -> AttentionPlan:
        """Plans the run of positions from `start` to `stop`; a cache has those before."""
        if self.keys == "lyrics":
            return AttentionPlan()

        def positions(first: int, last: int) -> Tensor:
            return torch.arange(first, max(first, last), device=device)

        length = grid.block_length
        first_query, last_query = start, stop
        first_key, last_key = 0, min(stop, self._limit(grid))
        if self.keys != "sequence":
            first_query, last_query = start // length * length, -(-stop // length) * length
            last_key = last_query - self.blocks_back * length
        if self.keys == "block":
            first_key = first_query - self.blocks_back * length

        past = positions(max(first_key, 0), min(start, last_key))
        first_new, last_new = max(first_key, start), min(last_key, stop)
        first_kept, last_kept = start, min(stop, self._limit(grid))
        if self.keys == "block":
            first_kept = max(start, stop - self.num_slots(grid))
        is_square = (first_query, last_query) == (first_key, last_key)
        mask = None
        if not is_square and not self.blocks_back:
            # The same for every group, as groups differ by a shift only: that of the first one.
            stride = length if self.keys == "offset" else 1
            queries, keys = positions(first_query, last_query)[::stride], positions(first_key, last_key)[::stride]
            mask = self.sees(queries[:, None], keys, grid)[None, None]
        return AttentionPlan(
            reads=self.slot(past, grid) if len(past) else None,
            writes=self.slot(positions(first_kept, last_kept), grid),
            kept=slice(first_kept - start, max(first_kept, last_kept) - start),
            new=slice(first_new - start, max(first_new, last_new) - start),
            query_padding=(start - first_query, last_query - stop),
            key_padding=(max(0, -first_key), max(0, last_key - max(stop, first_key))),
            groups=self.keys if self.keys != "sequence" else None,
            block_length=length,
            mask=mask,
            is_causal=is_square,
        )

    def _limit(self, grid: Grid) -> int:
        return grid.num_prime if self.is_prime else grid.length


PATTERNS = {
    "r": AttentionPattern("row", "block"),
    "c": AttentionPattern("column", "offset"),
    "p": AttentionPattern("previous", "block", blocks_back=1),
    "D": AttentionPattern("dense", "sequence"),
    "P": AttentionPattern("prime", "sequence", is_prime=True),
    "x": AttentionPattern("cross", "lyrics"),
}
