"""Reads the audio column of a dataset row by row, so that a bad row costs itself alone."""

import io
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .feature_extraction_jukebox import read_clip

if TYPE_CHECKING:
    import pyarrow as pa


class TypedList(list):
    """A list that keeps its Arrow type when all of its values are None.

    `datasets` settles the types of new columns by their first batch, and would take a column of no errors, or of
    nothing but bad rows, for one that never holds anything else.
    """

    def __init__(self, pa_type: "pa.DataType"):
        super().__init__()
        self.pa_type = pa_type

    def __arrow_array__(self, type: "pa.DataType | None" = None) -> "pa.Array":
        import pyarrow as pa

        return pa.array(list(self), type or self.pa_type)


def row_readers(batch: Mapping[str, list], column: str) -> list[Callable[[], Any]]:
    """Gives for each row of a batch a function that reads it.

    Raises:
        ValueError: the batch has no such column.
    """
    from datasets.formatting.formatting import LazyBatch

    if column not in batch:
        raise ValueError(f"audio_column={column!r}: the batch has the columns {', '.join(batch)}.")
    if isinstance(batch, LazyBatch):
        # batch[column] would decode all rows at once, and fail them all for one.
        table, formatter = batch.pa_table.select([column]), batch.formatter
        return [lambda row=row: formatter.format_column(table.slice(row, 1))[0] for row in range(table.num_rows)]
    return [lambda row=row: row for row in batch[column]]


def read_row(read: Callable[[], Any], sampling_rate: int) -> np.ndarray:
    """Reads a row, whatever it holds, as mono float32 `(samples,)` at `sampling_rate`.

    Raises:
        ValueError: whatever is wrong with it.
    """
    try:
        row = read()
        if row is None:
            raise ValueError("The row has no audio.")
        if isinstance(row, str | os.PathLike):
            return _read_file(row, None, sampling_rate)
        if isinstance(row, Mapping) and "array" not in row:
            return _read_file(row.get("path"), row.get("bytes"), sampling_rate)
        clip, own_rate = read_clip(row, "The clip")
    except OSError as error:
        raise ValueError(str(error)) from error
    except RuntimeError as error:
        # So torchcodec calls a bad file. Where it is itself broken, this import says so and stops the run.
        import torchcodec.decoders  # noqa: F401

        raise ValueError(str(error)) from error
    if own_rate is None:
        raise ValueError(f"The clip, {type(row).__name__}, has no sampling rate: give array and sampling_rate.")
    if own_rate < 1:
        raise ValueError(f"The clip's sampling_rate={own_rate}: give a positive number of samples a second.")
    if own_rate == sampling_rate:
        return clip
    import soxr

    from .audio_files import RESAMPLING_QUALITY

    return soxr.resample(clip, own_rate, sampling_rate, quality=RESAMPLING_QUALITY)


def _read_file(path: str | os.PathLike | None, content: bytes | None, sampling_rate: int) -> np.ndarray:
    from .audio_files import read_audio_blocks

    if content is not None:
        file = io.BytesIO(content)
        file.name = path or "The audio"
    elif path is None:
        raise ValueError("The row has no audio.")
    elif "://" in str(path):
        import fsspec

        # Read at once, since an error of the network within libsndfile would pass for the end of the file.
        with fsspec.open(str(path), "rb") as remote:
            file = io.BytesIO(remote.read())
        file.name = path
    else:
        file = path
    return np.concatenate(list(read_audio_blocks(file, sampling_rate)))


def prepare_worker():
    """Makes PyTorch safe in a worker of `num_proc`: after a fork OpenMP waits forever for its parent's threads."""
    import multiprocess
    import torch

    if multiprocess.parent_process() is not None:
        torch.set_num_threads(1)
