"""Songs laid end to end and cut to crops that never leave their song, as the original does it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset


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


class SeededDataset(Dataset):
    """Items whose random numbers follow from the seed, the epoch and their index, whichever process draws them.

    Args:
        seed (`int`): of the random numbers.
    """

    def __init__(self, seed: int):
        self.seed = seed
        # Shared, so that workers that outlive an epoch see the next one, too.
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()

    @property
    def epoch(self) -> int:
        """Whose random numbers are drawn."""
        return self._epoch.item()

    def set_epoch(self, epoch: int):
        """Says which epoch's random numbers come next."""
        self._epoch.fill_(epoch)

    def generator(self, index: int) -> np.random.Generator:
        """The random numbers of an item in this epoch."""
        return np.random.default_rng([self.seed, self.epoch, index])


__all__ = ["Place", "SeededDataset", "Timeline"]
