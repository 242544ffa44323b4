"""The algebra of the patterns: however a sequence is grouped, chunked or decoded, it is attention under one mask."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from jukebox_hf.attention_patterns import PATTERNS, Grid
from jukebox_hf.cache_jukebox import JukeboxCacheLayer
from jukebox_hf.transformer_jukebox import eager_attention_forward

SELF_PATTERNS = [letter for letter, pattern in PATTERNS.items() if pattern.keys != "lyrics"]
BATCH, HEADS, HEAD_DIM = 2, 2, 4


@st.composite
def grids(draw):
    grid = Grid(draw(st.integers(1, 6)), draw(st.integers(1, 6)), num_prime=draw(st.integers(1, 36)))
    return grid._replace(num_prime=min(grid.num_prime, grid.length))


@st.composite
def runs(draw):
    """A grid, and a sequence of any length in it cut anywhere into chunks."""
    grid = draw(grids())
    length = draw(st.integers(1, grid.length))
    cuts = draw(st.sets(st.integers(1, length - 1)) if length > 1 else st.just(set()))
    return grid, [0, *sorted(cuts), length]


def states(length: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(seed)
    return tuple(torch.randn(3, BATCH, HEADS, length, HEAD_DIM, dtype=torch.float64))


def defined_mask(letter: str, grid: Grid, length: int) -> torch.Tensor:
    """The patterns in the words of the paper, position by position, and by nothing of the module under test."""
    mask = torch.zeros(length, length, dtype=torch.bool)
    for query in range(length):
        for key in range(length):
            block, offset = divmod(query, grid.block_length)
            key_block, key_offset = divmod(key, grid.block_length)
            mask[query, key] = {
                "r": key_block == block and key <= query,
                "c": key_offset == offset and key <= query,
                "p": key_block == block - 1,
                "D": key <= query,
                "P": key <= query and key < grid.num_prime,
            }[letter]
    return mask


def dense_attention(letter: str, grid: Grid, query, key, value) -> torch.Tensor:
    """Attention over the whole matrix; what sees nothing gets zero."""
    mask = defined_mask(letter, grid, query.shape[2])
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return attended.masked_fill(~mask.any(1)[:, None], 0.0).transpose(1, 2)


def attend(plan, query, key, value) -> torch.Tensor:
    grouped = plan.group_queries(query), plan.group_keys(key), plan.group_keys(value)
    attended, _ = eager_attention_forward(None, *grouped, plan.mask, scaling=HEAD_DIM**-0.5, is_causal=plan.is_causal)
    return plan.ungroup(attended, BATCH)


def assert_same(actual: torch.Tensor, expected: torch.Tensor):
    # eager_attention_forward has its softmax in fp32.
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("letter", SELF_PATTERNS)
@settings(deadline=None)
@given(grid=grids())
def test_sees_is_the_definition(letter, grid):
    positions = torch.arange(grid.length)
    mask = PATTERNS[letter].sees(positions[:, None], positions, grid)
    assert torch.equal(mask, defined_mask(letter, grid, grid.length))


@pytest.mark.parametrize("letter", SELF_PATTERNS)
@settings(deadline=None)
@given(run=runs())
def test_grouped_attention_is_dense_attention_under_the_mask(letter, run):
    grid, (*_, length) = run
    query, key, value = states(length)
    plan = PATTERNS[letter].plan(0, length, grid, torch.device("cpu"))
    attended = attend(plan, query, key[:, :, plan.new], value[:, :, plan.new])
    assert_same(attended, dense_attention(letter, grid, query, key, value))


@pytest.mark.parametrize("letter", SELF_PATTERNS)
@settings(deadline=None)
@given(run=runs())
def test_chunks_and_steps_are_the_whole(letter, run):
    """Any split into chunks; a chunk of one position is a decoding step."""
    grid, cuts = run
    pattern = PATTERNS[letter]
    query, key, value = states(cuts[-1])
    layer = JukeboxCacheLayer(pattern, grid, num_lyric_tokens=0)
    attended = []
    for start, stop in pairwise(cuts):
        if stop - start == 1:
            plan = pattern.plan_step(torch.tensor(start), grid)
        else:
            plan = pattern.plan(start, stop, grid, torch.device("cpu"))
        keys, values = layer.update(key[:, :, start:stop], value[:, :, start:stop], plan)
        attended.append(attend(plan, query[:, :, start:stop], keys, values))
    assert_same(torch.cat(attended, dim=1), dense_attention(letter, grid, query, key, value))


@pytest.mark.parametrize("letter", SELF_PATTERNS)
def test_every_step_equals_prefill(letter):
    grid = Grid(5, 3, num_prime=7)
    query, key, value = states(grid.length)
    layer = JukeboxCacheLayer(PATTERNS[letter], grid, num_lyric_tokens=0)
    steps = []
    for t in range(grid.length):
        plan = PATTERNS[letter].plan_step(torch.tensor(t), grid)
        steps.append(attend(plan, query[:, :, t : t + 1], *layer.update(key[:, :, [t]], value[:, :, [t]], plan)))
    assert_same(torch.cat(steps, dim=1), dense_attention(letter, grid, query, key, value))


@pytest.mark.parametrize(
    "letter, slots", [("r", 4), ("p", 8), ("c", 24), ("D", 24), ("P", 5)], ids=lambda value: str(value)
)
def test_a_cache_is_as_long_as_its_pattern_needs(letter, slots):
    grid = Grid(num_blocks=6, block_length=4, num_prime=5)
    layer = JukeboxCacheLayer(PATTERNS[letter], grid, num_lyric_tokens=0)
    key, value, _ = states(1)
    layer.update(key, value, PATTERNS[letter].plan_step(torch.tensor(0), grid))
    assert layer.keys.shape == layer.values.shape == (BATCH, HEADS, slots, HEAD_DIM)


@pytest.mark.parametrize("letter", "rpcDP")
@settings(deadline=None)
@given(grid=grids(), data=st.data())
def test_what_a_step_reads_is_one_run_of_slots(letter, grid, data):
    pattern = PATTERNS[letter]
    position = torch.tensor(data.draw(st.integers(0, grid.length - 1)))
    plan = pattern.plan_step(position, grid)
    num_slots = pattern.num_slots(grid)
    if plan.reads is None:
        first, stop = 0, num_slots
    else:
        assert len(plan.reads) == 1 and num_slots % plan.run_length == 0
        first = int(plan.reads) * plan.run_length
        stop = first + plan.run_length
    positions = torch.arange(grid.length)
    seen = pattern.slot(positions[pattern.sees(position, positions, grid)], grid)
    assert ((seen >= first) & (seen < stop)).all()
    assert (seen.diff() == 1).all()
