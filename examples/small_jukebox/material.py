"""The music that a small Jukebox is measured on: its codes at all levels, and excerpts of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch

from jukebox_hf import JukeboxModel, JukeboxProcessor
from jukebox_hf.audio_files import read_audio_blocks
from jukebox_hf.training import encode_music, read_music


@dataclass
class Material:
    """A model, and the songs that it was and was not trained on: rows of `encode_music`, of all levels."""

    model: JukeboxModel
    processor: JukeboxProcessor
    train: datasets.Dataset
    test: datasets.Dataset

    @property
    def top(self) -> int:
        return self.model.config.vqvae_config.num_levels - 1

    @property
    def hop_lengths(self) -> list[int]:
        return self.model.config.vqvae_config.hop_lengths

    @property
    def sampling_rate(self) -> int:
        return self.model.config.sampling_rate


@dataclass
class Excerpts:
    """Stretches of songs, all of one length.

    Args:
        codes: `(excerpts, codes)` of one level.
        songs: `(excerpts,)`, the row of each one's song.
        starts: `(excerpts,)`, in codes.
        artists, genres: names.
    """

    codes: torch.Tensor
    songs: np.ndarray
    starts: np.ndarray
    artists: list[str]
    genres: list[str]

    def __len__(self) -> int:
        return len(self.songs)


def load_material(
    model: Path, music: Path, training_songs: int, encoding_processes: int | None, vqvae: Path | None
) -> Material:
    """Loads a model and encodes so many of the training songs, evenly spaced, and all that are held out."""
    levels = list(range(JukeboxModel.config_class.from_pretrained(model).vqvae_config.num_levels))
    train, test = read_music(music / "train"), read_music(music / "test")
    train = train.select(spread(len(train), training_songs))
    return Material(
        JukeboxModel.from_pretrained(model, dtype="float32").eval(),
        JukeboxProcessor.from_pretrained(model),
        *(encode_music(songs, vqvae or model, levels, encoding_processes) for songs in (train, test)),
    )


def spread(count: int, wanted: int) -> list[int]:
    """Gives so many of the numbers below `count`, or all, evenly spaced."""
    return np.linspace(0, count - 1, min(wanted, count)).round().astype(int).tolist()


def song_codes(songs: datasets.Dataset, level: int) -> list[np.ndarray]:
    """The codes `(codes,)` of each song."""
    return list(songs.with_format("numpy")[f"audio_codes_{level}"])


def cut_excerpts(songs: datasets.Dataset, level: int, length: int, wanted: int) -> Excerpts:
    """Cuts songs to excerpts of so many codes, side by side from each one's start, and keeps so many, evenly spaced.

    Raises:
        ValueError: no song is long enough.
    """
    codes = song_codes(songs, level)
    places = [(song, start) for song, row in enumerate(codes) for start in range(0, len(row) - length + 1, length)]
    if not places:
        raise ValueError(f"None of the {len(songs)} songs has {length} codes of level {level}: give longer songs.")
    places = [places[index] for index in spread(len(places), wanted)]
    rows, starts = map(np.array, zip(*places))
    cut = np.stack([codes[song][start : start + length] for song, start in places])
    artists, genres = songs["artist"], songs["genre"]
    return Excerpts(
        torch.from_numpy(cut.astype(np.int64)),
        rows,
        starts,
        [artists[song] for song in rows],
        [genres[song] for song in rows],
    )


def original_audio(songs: datasets.Dataset, excerpts: Excerpts, hop_length: int, sampling_rate: int) -> np.ndarray:
    """The sound `(excerpts, samples)` that excerpts were encoded from."""
    length = excerpts.codes.shape[1] * hop_length
    audio = np.zeros((len(excerpts), length), np.float32)
    paths = songs["audio"]
    for song in np.unique(excerpts.songs):
        whole = np.concatenate(list(read_audio_blocks(paths[song], sampling_rate)))
        for index in np.flatnonzero(excerpts.songs == song):
            start = excerpts.starts[index] * hop_length
            audio[index] = whole[start : start + length]
    return audio


def batches(count: int, size: int) -> Sequence[slice]:
    """Slices of so many rows that cover all."""
    return [slice(first, first + size) for first in range(0, count, size)]
