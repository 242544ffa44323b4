"""Finds the music of a folder and what its metadata file says about it."""

import csv
import json
import os
from pathlib import Path

from datasets import Dataset

METADATA_FILES = ("metadata.csv", "metadata.jsonl")
# What libsndfile reads.
AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff", ".aif")
LABEL_COLUMNS = ("artist", "genre", "lyrics")


def read_music(folder: str | os.PathLike) -> Dataset:
    """Lists a folder's audio files with their labels: a dataset with the columns `audio`, `artist`, `genre`, `lyrics`.

    The labels are those of `metadata.csv` or `metadata.jsonl`, which names a file of the folder in `file_name`, as for
    datasets' own audio folders; labels it lacks are None, and so are all without such a file, which makes every audio
    file below the folder a row. Paths stay paths: whatever reads the rows decides how to read the audio.

    Raises:
        ValueError: no such folder, no audio in it, a metadata file without `file_name`, or one that names a file that
            is not there.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give one with audio files and, for labels, a metadata.csv.")
    metadata = [folder / name for name in METADATA_FILES if (folder / name).exists()]
    if len(metadata) > 1:
        raise ValueError(f"{folder} has {' and '.join(METADATA_FILES)}: keep one of them.")
    if not metadata:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
        if not paths:
            raise ValueError(f"{folder} holds no audio file ({', '.join(AUDIO_SUFFIXES)}).")
        rows = [{}] * len(paths)
    else:
        rows = _read_rows(metadata[0])
        if not rows or not all(row.get("file_name") for row in rows):
            raise ValueError(f"{metadata[0]} has a row without file_name: it says which file a row is about.")
        paths = [folder / row["file_name"] for row in rows]
        if missing := [path for path in paths if not path.exists()]:
            raise ValueError(f"{metadata[0]} names {missing[0]}, which is not there ({len(missing)} such files).")
    columns = {"audio": [str(path) for path in paths]}
    for name in LABEL_COLUMNS:
        columns[name] = [_text(row.get(name)) for row in rows]
    return Dataset.from_dict(columns)


def split_music(music: Dataset, held_out: float = 0.1) -> tuple[Dataset, Dataset]:
    """Holds out every tenth song, or as many as `held_out` says, whole.

    Raises:
        ValueError: fewer than two songs, or a share that leaves none on one side.
    """
    step = round(1 / held_out) if 0 < held_out < 1 else 0
    test = list(range(0, len(music), step)) if step > 1 else []
    train = [index for index in range(len(music)) if index % step] if step > 1 else []
    if not test or not train:
        raise ValueError(f"held_out={held_out} of {len(music)} songs: give two songs or more, and a share up to 0.5.")
    return music.select(train), music.select(test)


def _read_rows(path: Path) -> list[dict]:
    # Not with datasets' readers: to them an artist "NA" is none, and "311" a number.
    with open(path, newline="", encoding="utf-8-sig") as file:
        if path.suffix == ".csv":
            return list(csv.DictReader(file))
        return [json.loads(line) for line in file if line.strip()]


def _text(value: object) -> str | None:
    return None if value in (None, "") else str(value)


__all__ = ["read_music", "split_music"]
