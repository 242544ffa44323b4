"""Songs laid end to end and cut to crops that never leave their song, as the original does it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass
class Place:
    """Where a crop lies: in which song, and from which of its positions on."""

    song: int
    start: int


class Timeline:
    """Songs laid end to end, of which item i is the crop `[i * length, (i + 1) * length)`, shifted at random if asked.

    The crop belongs to the song that holds its middle; where it would leave that song it moves half its length. Lengths
    are in samples or in codes, as the caller likes.

    Args:
        lengths (`Sequence[int]`): of the songs, each at least one crop.
        crop_length (`int`): of a crop.
    """

    def __init__(self, lengths: Sequence[int], crop_length: int):
        self.ends = np.cumsum(np.asarray(lengths, dtype=np.int64))
        self.starts = self.ends - lengths
        self.crop_length = crop_length

    def __len__(self) -> int:
        return int(self.ends[-1]) // self.crop_length

    def place(self, index: int, rng: np.random.Generator | None) -> Place:
        """Finds an item, moved by up to half a crop where there is a generator to draw from."""
        length, half = self.crop_length, self.crop_length // 2
        start = index * length
        if rng is not None:
            start += int(rng.integers(-half, half)) if half else 0
        middle = min(max(start + half, 0), int(self.ends[-1]) - 1)
        song = int(np.searchsorted(self.ends, middle, side="right"))
        first, last = int(self.starts[song]), int(self.ends[song]) - length
        if start > last:
            start = max(first, start - half)
        elif start < first:
            start = min(last, start + half)
        # Half of an odd length may leave one position over.
        return Place(song, min(max(start, first), last) - first)


def crop_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Gives each crop of each epoch its own random numbers, whichever process draws it and in whatever order."""
    return np.random.default_rng([seed, epoch, index])


__all__ = ["Place", "Timeline", "crop_generator"]
