"""Labelled audio files for a probe: from a folder, from a table, or chords made here; and their splits."""

import csv
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jukemir_probe import MODES, TONICS
from sklearn.model_selection import train_test_split

from jukebox_hf.audio_files import write_audio

SAMPLING_RATE = 44100
SPLITS = ("train", "valid", "test")
SUFFIXES = (".aif", ".aiff", ".au", ".flac", ".mp3", ".ogg", ".opus", ".wav")


class Clip(NamedTuple):
    path: Path
    # From the folder of the data on, as --embeddings knows it.
    name: str
    label: str
    split: str = ""


def synthesize(rng: np.random.Generator, tonic: int, mode: str, brightness: float) -> np.ndarray:
    """A cadence of four chords, two seconds; brighter tones have stronger overtones, from 0 to 1."""
    time = np.arange(SAMPLING_RATE // 2) / SAMPLING_RATE
    third = 4 if mode == "major" else 3
    chords = []
    for root in (0, 5, 7, 0):
        # The dominant is a major chord in either mode.
        pitches = 262 * 2 ** ((tonic + root + np.array([0, 4 if root == 7 else third, 7, 12])) / 12)
        partials = [brightness**k * np.sin(2 * np.pi * (k + 1) * pitches[:, None] * time) for k in range(12)]
        chords.append(sum(partials).sum(0) * np.exp(-2 * time))
    clip = np.concatenate(chords) + rng.normal(0, 0.05, 4 * len(time))
    return (rng.uniform(0.3, 0.9) * clip / np.abs(clip).max()).astype(np.float32)


def synthetic_clips(folder: Path, task: str) -> list[Clip]:
    """Writes chords whose label is their tone, their key or, as a number, how bright they are."""
    rng, clips = np.random.default_rng(0), []
    for index in range(240 if task == "key" else 90):
        tonic, mode, brightness = rng.integers(12), rng.choice(MODES), rng.uniform(0.2, 0.8)
        label = f"{brightness:.4f}"
        if task == "key":
            tonic, mode = index // 2 % 12, MODES[index % 2]
            label = f"{TONICS[tonic]} {mode}"
        elif task == "classification":
            label, brightness = (("dull", 0.2), ("warm", 0.5), ("bright", 0.8))[index % 3]
        path = folder / f"{index:03}.wav"
        write_audio(path, [synthesize(rng, tonic, mode, brightness)], SAMPLING_RATE)
        clips.append(Clip(path, path.name, label))
    return clips


def read_folder(folder: Path) -> list[Clip]:
    """Lists the audio files of a folder that has one folder for each label.

    Raises:
        ValueError: there are none.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give one that has a folder of audio files for each label.")
    paths = sorted(path for path in folder.glob("*/**/*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"{folder} has no folder of audio files for each label: make them, or give --metadata.")
    names = [path.relative_to(folder).as_posix() for path in paths]
    return [Clip(path, name, name.split("/")[0]) for path, name in zip(paths, names)]


def read_table(metadata: Path, folder: Path) -> list[Clip]:
    """Reads the table of the clips, whose paths start from a folder.

    Raises:
        ValueError: columns or values that are missing or wrong.
    """
    with metadata.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not {"path", "label"} <= set(reader.fieldnames or ()):
            raise ValueError(f"{metadata} has the columns {reader.fieldnames}: it needs path and label, maybe split.")
        clips = [Clip(folder / row["path"], row["path"], row["label"], row.get("split") or "") for row in reader]
    if wrong := {clip.split for clip in clips} - {"", *SPLITS}:
        raise ValueError(f"{metadata} has the split {min(wrong)!r}: name {', '.join(SPLITS)}.")
    return clips


def split_clips(clips: list[Clip], task: str) -> list[Clip]:
    """Keeps the splits that are given, or draws 60, 20 and 20 % of the files, for classes of each.

    Raises:
        ValueError: too few files, or some with and some without a split.
    """
    given = Counter(clip.split for clip in clips)
    if not given[""]:
        if missing := [split for split in SPLITS if given[split] < 2]:
            raise ValueError(f"The split {missing[0]!r} has {given[missing[0]]} files: give at least 2 to each.")
        return clips
    if len(given) > 1:
        raise ValueError(f"{given['']} of {len(clips)} files have no split: give one to all of them or to none.")
    labels = np.array([clip.label for clip in clips] if task == "classification" else [""] * len(clips))
    label, count = min(Counter(labels).items(), key=lambda item: item[1])
    if count < 10:
        which = f"The label {label!r} has" if label else "There are"
        raise ValueError(f"{which} {count} files: give at least 10, or a column split in --metadata.")
    rest, test = train_test_split(np.arange(len(clips)), test_size=0.2, random_state=0, stratify=labels)
    train, valid = train_test_split(rest, test_size=0.25, random_state=0, stratify=labels[rest])
    names = {row: split for split, rows in zip(SPLITS, (train, valid, test)) for row in rows}
    return [clip._replace(split=names[row]) for row, clip in enumerate(clips)]
