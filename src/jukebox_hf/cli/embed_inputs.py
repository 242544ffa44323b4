"""The clips that `jukebox-hf embed` is given: files, folders, lists of files, or a dataset."""

import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..audio_files import audio_file_length
from ..audio_rows import read_row
from .codes import AUDIO_SUFFIXES, find_files

if TYPE_CHECKING:
    from datasets import Dataset

LIST_SUFFIX = ".txt"
# Headers are small, and what takes time is the way to a file server.
HEADER_THREADS = 16


class Clips(Protocol):
    """Clips by their numbers."""

    paths: list[str]

    def row(self, number: int) -> str | dict:
        """Gives what `read_row` reads."""


class FileClips:
    """Audio files by their paths."""

    def __init__(self, paths: list[str]):
        self.paths = paths

    def row(self, number: int) -> str:
        return self.paths[number]


class DatasetClips:
    """The rows of a dataset, by their files' paths where each has one of its own, else by their numbers."""

    def __init__(self, dataset: "Dataset", column: str):
        from datasets import Audio

        if column not in dataset.column_names:
            raise ValueError(f"--audio-column {column}: the dataset has {', '.join(dataset.column_names)}.")
        if isinstance(dataset.features[column], Audio):
            # Undecoded, so that a bad row costs itself alone.
            dataset = dataset.cast_column(column, Audio(decode=False))
        self.column, self.dataset = column, dataset.select_columns([column])
        self.paths = list(self._paths())
        if None in self.paths or len(set(self.paths)) < len(self.paths):
            self.paths = [str(number) for number in range(len(dataset))]
        self._lock = threading.Lock()

    def row(self, number: int) -> str | dict:
        # Tables are read by one thread at a time, audio by several.
        with self._lock:
            return self.dataset[number][self.column]

    def _paths(self) -> Iterator[str | None]:
        import pyarrow as pa

        for batch in self.dataset.with_format("arrow").iter(100):
            for chunk in batch.column(self.column).chunks:
                if pa.types.is_struct(chunk.type) and chunk.type.get_field_index("path") >= 0:
                    # Of the column's other part, the audio itself, nothing is touched.
                    chunk = chunk.field("path")
                is_text = pa.types.is_string(chunk.type) or pa.types.is_large_string(chunk.type)
                yield from chunk.to_pylist() if is_text else [None] * len(chunk)


def file_clips(inputs: list[Path]) -> FileClips:
    """Finds the audio files of files, folders and lists, each file once.

    A list is a text file with a path or URL a line, relative to the list's own folder; what it names need not exist, as
    a file that cannot be read costs only itself.

    Raises:
        ValueError: no input, or one that does not exist or holds nothing.
    """
    if not inputs:
        raise ValueError("There are no inputs: give audio files, folders, .txt files with a path a line, or --dataset.")
    paths: list[str] = []
    for given in inputs:
        if given.suffix.lower() == LIST_SUFFIX and given.is_file():
            paths += _listed(given)
        else:
            paths += map(str, find_files(given, AUDIO_SUFFIXES))
    return FileClips(list(dict.fromkeys(paths)))


def _listed(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8 text: {error}") from error
    if not any(lines):
        raise ValueError(f"{file} holds no paths: write one a line.")
    return [line if "://" in line else str(file.parent / line) for line in lines if line]


def dataset_clips(name: str, config_name: str | None, split: str, column: str) -> DatasetClips:
    """Loads a dataset from the Hub, from a folder of files, or from one of `save_to_disk`.

    Raises:
        ValueError: a dataset that cannot be loaded, or has no such split, no such column or no rows.
    """
    import datasets

    folder = Path(name)
    try:
        if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(name)
            if isinstance(loaded, datasets.DatasetDict):
                if split not in loaded:
                    raise ValueError(f"there are the splits {', '.join(loaded)}")
                loaded = loaded[split]
        else:
            loaded = datasets.load_dataset(name, config_name, split=split)
    except (ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"--dataset {name} --split {split} cannot be loaded: {error}") from error
    except IndexError as error:
        # So datasets takes a saved one without rows.
        raise ValueError(f"--dataset {name} has no rows: choose another.") from error
    return DatasetClips(loaded, column)


def read_clip(clips: Clips, number: int, sampling_rate: int) -> np.ndarray:
    """Reads a clip as mono float32 `(samples,)`.

    Raises:
        ValueError: whatever is wrong with it.
    """
    return read_row(lambda: clips.row(number), sampling_rate)


def clip_seconds(clips: Clips) -> list[float | None]:
    """Tells from headers how many seconds clips have: 0 of a bad file, None where reading would take long."""

    def seconds(number: int) -> float | None:
        row = clips.row(number)
        if isinstance(row, dict):
            content = row.get("bytes")
            row = io.BytesIO(content) if content is not None else row.get("path")
        # A remote file would have to be fetched.
        if row is None or not isinstance(row, str | io.BytesIO) or "://" in str(row):
            return None
        try:
            return audio_file_length(row, 1000) / 1000
        except ValueError:
            return 0.0

    with ThreadPoolExecutor(HEADER_THREADS) as pool:
        return list(pool.map(seconds, range(len(clips.paths))))
