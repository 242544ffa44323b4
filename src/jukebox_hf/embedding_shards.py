"""Shards of a dataset of embeddings: Parquet files that keep the embeddings of some clips, and why others have none."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .embedding_plan import SHARD_FOLDER, EmbeddingPlan
from .embedding_recipes import EmbeddingRecipe
from .embeddings import JukeboxEmbedding
from .whole_files import whole_file

FAILURES_FILE = "failures.csv"
FAILURES_KEY = b"jukebox_hf.failures"
# Values that wait in memory for their row group, and what Arrow's lists can count in one.
VALUES_PER_GROUP = 2**24
MAX_VALUES = 2**31 - 1
# The name of a clip, why it has no embedding, and the file of its shard.
Failure = tuple[str, str, str]


class ShardWriter:
    """Takes the clips of a shard one after another; [`open_shard`] makes it.

    Args:
        writer: of a file of `shard_schema`.
    """

    def __init__(self, writer: pq.ParquetWriter, recipe: EmbeddingRecipe, column_dtype: str):
        self.recipe, self.column_dtype = recipe, column_dtype
        self._writer = writer
        self._failures: list[tuple[str, str]] = []
        self._rows: list[tuple[str, int, float, np.ndarray]] = []
        self._num_values = 0

    def add(self, path: str, result: JukeboxEmbedding | ValueError) -> ValueError | None:
        """Adds a clip's embedding, or keeps why there is none; gives the reason."""
        try:
            if isinstance(result, ValueError):
                raise result
            rows = self._cast(_text(path), result)
        except ValueError as error:
            self._failures.append((_text(path), _text(" ".join(str(error).split()))))
            return error
        for row in rows:
            if self._num_values + row[3].size > VALUES_PER_GROUP:
                self._write_group()
            self._rows.append(row)
            self._num_values += row[3].size
        return None

    def finish(self):
        """Writes what waits in memory."""
        self._write_group()
        self._writer.add_key_value_metadata({FAILURES_KEY: json.dumps(self._failures)})

    def _cast(self, path: str, embedding: JukeboxEmbedding) -> list[tuple[str, int, float, np.ndarray]]:
        rows = []
        for layer, vectors in embedding.layers.items():
            if not np.isfinite(vectors).all():
                raise ValueError(f"Layer {layer} gives NaN or infinity: compute in float32 or bfloat16.")
            with np.errstate(over="ignore"):
                vectors = vectors.astype(self.column_dtype)
            if not np.isfinite(vectors).all():
                raise ValueError(f"Layer {layer} gives values beyond {self.column_dtype}: use columns of float32.")
            if self.recipe.join != "windows":
                vectors = vectors[None]
            for start, vector in zip(embedding.window_starts, vectors):
                if vector.size > MAX_VALUES:
                    raise ValueError(
                        f"{vector.size} values do not fit into a row: ask for fewer frames a second or shorter clips."
                    )
                rows.append((path, layer, start, vector))
        return rows

    def _write_group(self):
        if not self._rows:
            return
        paths, layers, starts, vectors = zip(*self._rows)
        schema = self._writer.schema
        columns = [pa.array(values, field.type) for values, field in zip((paths, layers, starts), schema)]
        self._writer.write_table(pa.Table.from_arrays([*columns, _lists(vectors)], schema=schema))
        self._rows, self._num_values = [], 0


@contextmanager
def open_shard(path: Path, recipe: EmbeddingRecipe, column_dtype: str) -> Iterator[ShardWriter]:
    """Writes a shard, which has its name once all of it is on the disk, and leaves nothing if that fails.

    It has a row for each clip, layer and window: `path`, `layer`, `window_start` in seconds, 0 unless windows have
    results of their own, and `vector` `(hidden_size,)`, or `(frames, hidden_size)` without a mean over time. Clips that
    failed have no row; their reasons are in the file's metadata.

    Raises:
        OSError: the file cannot be written.
    """
    vector = pa.list_(pa.from_numpy_dtype(column_dtype))
    if recipe.pooling != "mean":
        vector = pa.list_(vector)
    columns = {"path": pa.string(), "layer": pa.int32(), "window_start": pa.float64(), "vector": vector}
    # Floating point values repeat too seldom for a dictionary.
    with whole_file(path) as file, pq.ParquetWriter(file, pa.schema(columns), use_dictionary=["path"]) as writer:
        shard = ShardWriter(writer, recipe, column_dtype)
        yield shard
        shard.finish()


def read_vectors(path: Path) -> Iterator[tuple[str, int, np.ndarray]]:
    """Reads a shard's rows: name, layer and vector `(frames, hidden_size)`, of one frame for a mean over time."""
    with pq.ParquetFile(path) as shard:
        for batch in shard.iter_batches(batch_size=16, columns=["path", "layer", "vector"]):
            for name, layer, vector in zip(*(batch.column(column) for column in ("path", "layer", "vector"))):
                values = vector.values
                frames = len(values) if pa.types.is_list(values.type) else 1
                values = values.flatten() if pa.types.is_list(values.type) else values
                yield name.as_py(), layer.as_py(), values.to_numpy(zero_copy_only=False).reshape(frames, -1)


def write_failures(folder: Path, plan: EmbeddingPlan) -> tuple[list[int], list[Failure]]:
    """Lists the failures of all shards that are there in `failures.csv`; gives these shards and failures.

    Raises:
        ValueError: a shard that cannot be read.
        OSError: the file cannot be written.
    """
    while True:
        done = plan.done(folder)
        failures = _read_failures(folder, plan, done)
        with whole_file(folder / FAILURES_FILE) as file:
            table = io.StringIO()
            csv.writer(table).writerows([("path", "error", "shard"), *failures])
            file.write(table.getvalue().encode())
        # Processes do not wait for each other: whoever writes last must have seen all shards.
        if plan.done(folder) == done:
            return done, failures


def _read_failures(folder: Path, plan: EmbeddingPlan, shards: Sequence[int]) -> list[Failure]:
    failures = []
    for shard in shards:
        path = plan.path(folder, shard)
        try:
            kept = json.loads(pq.read_metadata(path).metadata[FAILURES_KEY])
        except (pa.ArrowException, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no shard ({error}): remove it and run the same command again.") from error
        failures += [(name, reason, path.name) for name, reason in kept]
    order = {_text(clip.path): number for number, clip in enumerate(plan.clips)}
    return sorted(failures, key=lambda failure: order.get(failure[0], len(order)))


def remove_partials(folder: Path):
    """Removes what killed processes left of files; call it when all shards are there."""
    for place in (folder, folder / SHARD_FOLDER):
        for partial in place.glob(".*.partial"):
            partial.unlink(missing_ok=True)


def _lists(vectors: Sequence[np.ndarray]) -> pa.ListArray:
    """Makes a list of each array of one or two axes."""
    values = pa.array(np.concatenate([vector.reshape(-1) for vector in vectors]))
    inner = pa.ListArray.from_arrays(np.arange(0, len(values) + 1, vectors[0].shape[-1], dtype=np.int32), values)
    if vectors[0].ndim == 1:
        return inner
    return pa.ListArray.from_arrays(np.cumsum([0, *map(len, vectors)], dtype=np.int32), inner)


def _text(text: str) -> str:
    """Gives what may hold a file's name as Unicode, which such a name need not be."""
    return text.encode("utf-8", "backslashreplace").decode()
