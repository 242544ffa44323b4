"""How clips are divided, what a shard holds, and what remains of one that could not be written."""

import json
import threading
import time
from contextlib import closing

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jukebox_hf import EmbeddingRecipe, JukeboxEmbedding, embedding_shards, read_ahead
from jukebox_hf.embedding_pictures import clip_means, cosine_similarities, principal_components
from jukebox_hf.embedding_plan import EmbeddingPlan, PlannedClip, balance, make_plan
from jukebox_hf.embedding_shards import open_shard, read_vectors, write_failures
from jukebox_hf.read_ahead import ReadAhead

WINDOWS = EmbeddingRecipe(layers=(1, 4), join="windows")
FRAMES = EmbeddingRecipe(layers=(1,), pooling="frames")


def embedding(*layers: np.ndarray, starts=(0.0,)) -> JukeboxEmbedding:
    return JukeboxEmbedding(dict(zip((1, 4), map(np.float32, layers))), np.array(starts))


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=60), st.integers(1, 9))
def test_the_heaviest_bin_is_at_most_a_third_over_the_best(weights, count):
    totals = np.zeros(count)
    np.add.at(totals, balance(weights, count), weights)
    # Graham's bound, against what no division can be better than.
    ordered = sorted(weights, reverse=True)
    least = max(sum(weights) / count, ordered[0], sum(ordered[count - 1 : count + 1]) if len(weights) > count else 0)
    assert totals.max() <= (4 / 3 - 1 / (3 * count)) * least * (1 + 1e-9)


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=60), st.integers(1, 9))
def test_bins_hold_what_they_can_and_none_is_empty(weights, capacity):
    count = -(-len(weights) // capacity)
    sizes = np.bincount(balance(weights, count, capacity), minlength=count)
    assert len(sizes) == count and sizes.max() <= capacity and sizes.min() >= 1


def test_shards_and_processes_get_equal_lengths(tmp_path):
    lengths = [600.0, 1.0, 2.0, 3.0, 300.0, 299.0, None, 0.0, 2.0]
    plan = make_plan(tmp_path, {"x": 1}, {}, list("abcdefghi"), lambda: lengths, 3)
    assert plan.num_shards == 3
    # The unknown one counts as the mean of the others, 150.9.
    assert [[plan.clips[number].path for number in shard] for shard in plan.shards()] == [
        ["a", "b", "h"], ["c", "d", "e"], ["f", "g", "i"]
    ]  # fmt: skip
    assert plan.assign([0, 1, 2], 2) == [[0], [1, 2]]
    assert plan.assign([1, 2], 3) == [[2], [1], []]
    # Not asked again, as the plan keeps them.
    assert make_plan(tmp_path, {"x": 1}, {}, list("abcdefghi"), None, 3) == plan


def test_a_shard_holds_a_row_for_each_clip_layer_and_window(tmp_path, monkeypatch):
    # Each row a group of its own.
    monkeypatch.setattr(embedding_shards, "VALUES_PER_GROUP", 3)
    path = tmp_path / "shard.parquet"
    first, second = np.arange(6).reshape(2, 3), np.arange(6, 12).reshape(2, 3)
    with open_shard(path, WINDOWS, "float16") as shard:
        assert shard.add("a", embedding(first, second, starts=(0.0, 1.5))) is None
        assert str(shard.add("b", ValueError("too\nbad"))) == "too\nbad"
        assert not path.exists()
    table = pq.read_table(path)
    assert pq.ParquetFile(path).num_row_groups == 4
    assert table.select(["path", "layer", "window_start"]).to_pylist() == [
        {"path": "a", "layer": layer, "window_start": start} for layer in (1, 4) for start in (0.0, 1.5)
    ]
    assert np.array_equal(np.array(table["vector"].to_pylist()), [*first, *second])
    assert json.loads(pq.read_metadata(path).metadata[b"jukebox_hf.failures"]) == [["b", "too bad"]]
    assert [(name, layer, vector.tolist()) for name, layer, vector in read_vectors(path)] == [
        ("a", layer, [row.tolist()]) for layer, rows in ((1, first), (4, second)) for row in rows
    ]


def test_frames_are_lists_of_lists(tmp_path):
    path = tmp_path / "shard.parquet"
    frames = [np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32) for count in (4, 2)]
    with open_shard(path, FRAMES, "float32") as shard:
        for name, values in zip("ab", frames):
            # Where windows were joined, the row starts where the clip does.
            shard.add(name, embedding(values, starts=(0.0, 1.0, 2.0)))
    assert pq.read_table(path)["window_start"].to_pylist() == [0.0, 0.0]
    for (_, _, vector), expected in zip(read_vectors(path), frames):
        assert np.array_equal(vector, expected)


@pytest.mark.parametrize(
    ("values", "dtype", "reason"),
    [
        (np.nan, "float32", "Layer 4 gives NaN or infinity: compute in float32 or bfloat16."),
        (np.inf, "float16", "Layer 4 gives NaN or infinity"),
        (1e5, "float16", "Layer 4 gives values beyond float16: use columns of float32."),
        (0.0, "float32", "6 values do not fit into a row: ask for fewer frames a second"),
    ],
)
def test_what_no_row_can_hold_is_a_failure(tmp_path, monkeypatch, values, dtype, reason):
    recipe = EmbeddingRecipe(layers=(1, 4), pooling="frames")
    plan = EmbeddingPlan({}, {}, {}, [PlannedClip(name, 1.0, 0) for name in "ab"])
    path = plan.path(tmp_path, 0)
    path.parent.mkdir()
    if not values:
        monkeypatch.setattr(embedding_shards, "MAX_VALUES", 5)
    with open_shard(path, recipe, dtype) as shard:
        assert reason in str(shard.add("a", embedding(np.zeros((1, 3)), np.full((2, 3), values))))
        assert shard.add("b", embedding(np.zeros((1, 3)), np.zeros((1, 3)))) is None
    # Of a clip that fails there are not some rows.
    assert pq.read_table(path)["path"].to_pylist() == ["b", "b"]
    ((name, error, file),) = write_failures(tmp_path, plan)[1]
    assert (name, file) == ("a", path.name) and reason in error


def test_a_shard_that_fails_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "shard.parquet"
    with pytest.raises(KeyboardInterrupt), open_shard(path, WINDOWS, "float32") as shard:
        shard.add("a", embedding(np.zeros((1, 3)), np.zeros((1, 3))))
        assert len(list(tmp_path.iterdir())) == 1
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    path.write_bytes(b"older")
    with pytest.raises(OSError, match="No space left"), open_shard(path, WINDOWS, "float32"):
        pass
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"older"]


def test_the_list_of_failures_has_what_others_finished_meanwhile(tmp_path, monkeypatch):
    plan = EmbeddingPlan({}, {}, {}, [PlannedClip(name, 1.0, number) for number, name in enumerate("ba")])

    def write(shard: int):
        with open_shard(plan.path(tmp_path, shard), WINDOWS, "float32") as file:
            file.add(plan.clips[shard].path, ValueError("bad"))

    plan.path(tmp_path, 0).parent.mkdir()
    write(0)
    read = embedding_shards._read_failures

    def slow_read(folder, plan, shards):
        failures = read(folder, plan, shards)
        if shards == [0]:
            write(1)
        return failures

    monkeypatch.setattr(embedding_shards, "_read_failures", slow_read)
    done, failures = write_failures(tmp_path, plan)
    assert done == [0, 1] and [name for name, *_ in failures] == ["b", "a"]
    assert (tmp_path / "failures.csv").read_text().count("bad") == 2


def test_clips_stand_for_themselves_by_their_means(tmp_path):
    settings = {"recipe": {"layers": [1, 4]}}
    plan = EmbeddingPlan(settings, {}, {}, [PlannedClip(name, 1.0, number) for number, name in enumerate("ab")])
    plan.path(tmp_path, 0).parent.mkdir()
    windows = np.random.default_rng(0).normal(size=(3, 2, 4))
    with open_shard(plan.path(tmp_path, 0), WINDOWS, "float32") as shard:
        shard.add("a", embedding(windows[:, 0], windows[:, 1], starts=(0.0, 1.0, 2.0)))
    with open_shard(plan.path(tmp_path, 1), WINDOWS, "float32") as shard:
        shard.add("b", ValueError("bad"))
    means = clip_means(tmp_path, plan)
    assert list(means) == [1, 4] and list(means[1]) == ["a"]
    np.testing.assert_allclose(means[4]["a"], windows[:, 1].mean(0), atol=1e-6)

    # All frames of a clip, whatever rows they are in.
    frames = np.random.default_rng(1).normal(size=(5, 4))
    with open_shard(plan.path(tmp_path, 0), FRAMES, "float32") as shard:
        shard.add("a", embedding(frames))
    means = clip_means(tmp_path, plan)
    assert list(means) == [1]
    np.testing.assert_allclose(means[1]["a"], frames.mean(0), atol=1e-6)


def test_similarities_and_components():
    vectors = np.array([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0], [0.0, 0.0]])
    half = 0.5**0.5
    expected = [[1, 0, half, 0], [0, 1, half, 0], [half, half, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(cosine_similarities(vectors), expected, atol=1e-12)

    line = np.outer(np.arange(5.0), [1.0, 2.0, 2.0])
    components, shares = principal_components(line + 7)
    np.testing.assert_allclose(np.abs(components), np.abs(np.outer((np.arange(5) - 2) * 3, [1, 0])), atol=1e-9)
    np.testing.assert_allclose(shares, [1, 0], atol=1e-9)
    components, shares = principal_components(np.ones((1, 3)))
    assert components.tolist() == [[0, 0]] and shares.tolist() == [0, 0]


def test_clips_are_read_while_others_are_worked_on():
    started, release = [], threading.Event()

    def read(number: int) -> np.ndarray:
        started.append(number)
        if number == 2:
            raise ValueError("bad")
        if number > 2:
            release.wait(10)
        return np.full(1, number)

    ahead = ReadAhead(range(10), read, [1.0] * 10, 4)
    stream = iter(ahead)
    assert next(stream)[1].item() == 0
    assert next(stream)[1].item() == 1
    number, error = next(stream)
    assert number == 2 and str(error) == "bad"
    for _ in range(100):
        time.sleep(0.01)
    # Those of the last request: four from number 2 on.
    assert sorted(started) == [0, 1, 2, 3, 4, 5]
    waited = ahead.waited
    threading.Timer(0.2, release.set).start()
    assert next(stream)[1].item() == 3
    assert 0.15 < ahead.waited - waited < 2
    assert [number for number, _ in stream] == [4, 5, 6, 7, 8, 9]


def test_long_clips_are_read_one_at_a_time(monkeypatch):
    monkeypatch.setattr(read_ahead, "SECONDS_AHEAD", 10.0)
    started = []

    def read(number: int) -> np.ndarray:
        started.append(number)
        return np.zeros(1)

    lengths = [100.0, 4.0, 4.0, 4.0, 100.0]
    with closing(iter(ReadAhead([4, 0, 1, 2, 3], read, lengths, 9))) as stream:
        seen = []
        for number, _ in stream:
            time.sleep(0.05)
            seen.append((number, sorted(started)))
    assert seen[0] == (4, [4]) and seen[1] == (0, [0, 4])
    assert seen[2] == (1, [0, 1, 2, 4]) and seen[3] == (2, [0, 1, 2, 3, 4])


def test_what_is_not_asked_for_any_more_is_not_read():
    started = []

    def read(number: int) -> np.ndarray:
        started.append(number)
        time.sleep(0.05)
        return np.zeros(1)

    with closing(iter(ReadAhead(range(100), read, [1.0] * 100, 50))) as stream:
        next(stream)
    assert len(started) < 20
