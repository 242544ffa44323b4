"""Crops of audio files, as the VQ-VAE is trained on them."""

import math
import os
from collections.abc import Sequence

import numpy as np
import soundfile
import soxr
import torch
from transformers.utils import logging

from ..audio_files import RESAMPLING_QUALITY
from ..losses_jukebox import SPECTRAL_STFT, spectrogram
from .timeline import SeededDataset, Timeline

logger = logging.get_logger(__name__)

# Samples read on both sides of a crop of another rate, so that resampling knows what lies around it.
RESAMPLING_MARGIN = 1024
# A crop that is no louder than this says nothing about music.
SILENCE = 1e-4
# How many other crops are tried for one that is silent.
SILENT_TRIES = 8
# The original's: what of the data it looks at, in seconds of one channel, and at least how far apart its clips lie.
BANDWIDTH_SECONDS = 600
BANDWIDTH_STEP = 16


class AudioCrops(SeededDataset):
    """Crops of audio files, mono, in batches of which [`JukeboxVQVAEModel`] learns: items `{"input_values": (1, n)}`.

    Files are laid end to end and cut as [`Timeline`] says. What an item holds follows from the seed, the epoch and its
    index alone, so two processes together see what one sees, and a resumed run what it would have seen; with workers
    or without. The epoch is what `set_epoch` says: the project's trainers call it; in a loop of one's own call it
    before each epoch, since accelerate's loader does so in a single process only.

    Files that cannot be read, or are shorter than a crop, are left out with a warning. With `random_shift` a silent
    crop is replaced by another one of its song, as long as one is found.

    Args:
        paths (`Sequence[str]`): of audio files, whatever libsndfile reads, at any rate, mono or stereo.
        crop_length (`int`): samples of a crop.
        sampling_rate (`int`): of the crops, in Hz.
        random_shift (`bool`): move each crop by up to half its length.
        random_blend (`bool`): mix left and right by a random share instead of one half each.
        seed (`int`): of both.

    Raises:
        ValueError: no file that holds a crop.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike],
        crop_length: int,
        sampling_rate: int,
        random_shift: bool = True,
        random_blend: bool = True,
        seed: int = 0,
    ):
        if crop_length < 1:
            raise ValueError(f"crop_length={crop_length}: give a positive number of samples.")
        super().__init__(seed)
        self.crop_length = crop_length
        self.sampling_rate = sampling_rate
        self.random_shift = random_shift
        self.random_blend = random_blend
        self.paths, lengths = [], []
        for path in map(str, paths):
            length = self._length(path)
            if length is not None and length >= crop_length:
                self.paths.append(path)
                lengths.append(length)
        if not self.paths:
            raise ValueError(
                f"None of the {len(paths)} files holds a crop of {crop_length} samples "
                f"({crop_length / sampling_rate:.2f} s): give longer files or a smaller crop_length."
            )
        self.timeline = Timeline(lengths, crop_length)

    def __len__(self) -> int:
        return len(self.timeline)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rng = self.generator(index)
        place = self.timeline.place(index, rng if self.random_shift else None)
        crop = self._read(place.song, place.start, rng)
        if self.random_shift:
            length = int(self.timeline.ends[place.song] - self.timeline.starts[place.song])
            for _ in range(SILENT_TRIES):
                if np.abs(crop).max() > SILENCE:
                    break
                crop = self._read(place.song, int(rng.integers(length - self.crop_length + 1)), rng)
        return {"input_values": torch.from_numpy(crop)[None]}

    def _length(self, path: str) -> int | None:
        try:
            info = soundfile.info(path)
        # A TypeError is soundfile's answer to a file that has no header and ends in .raw.
        except (soundfile.LibsndfileError, OSError, TypeError) as error:
            logger.warning(f"{path} is left out, as it cannot be read: {error}")
            return None
        length = info.frames * self.sampling_rate // info.samplerate
        if length < self.crop_length:
            logger.warning(
                f"{path} is left out, as its {length / self.sampling_rate:.2f} s are shorter than a crop of "
                f"{self.crop_length / self.sampling_rate:.2f} s."
            )
        return length

    def _read(self, song: int, start: int, rng: np.random.Generator) -> np.ndarray:
        path = self.paths[song]
        try:
            with soundfile.SoundFile(path) as file:
                samples = self._read_samples(file, start)
        except soundfile.LibsndfileError as error:
            raise ValueError(f"{path} cannot be read from sample {start} on: {error}. Drop the file.") from error
        share = rng.random() if self.random_blend else 0.5
        mono = samples.mean(axis=1) if samples.shape[1] != 2 else samples @ np.array([share, 1 - share], np.float32)
        mono = np.pad(mono[: self.crop_length], (0, max(0, self.crop_length - len(mono))))
        if not np.isfinite(mono).all():
            raise ValueError(f"{path} holds NaN or infinity: drop the file.")
        return np.ascontiguousarray(mono, dtype=np.float32)

    def _read_samples(self, file: soundfile.SoundFile, start: int) -> np.ndarray:
        """Reads the crop `(samples, channels)` from `start`, counted at the crops' rate."""
        own, wanted = file.samplerate, self.sampling_rate
        if own == wanted:
            file.seek(start)
            return file.read(self.crop_length, dtype="float32", always_2d=True)
        first = max(0, start * own // wanted - RESAMPLING_MARGIN)
        # The rates' common grid: from here on a whole number of samples of both rates goes by.
        step = own // math.gcd(own, wanted)
        first -= first % step
        file.seek(first)
        count = math.ceil(self.crop_length * own / wanted) + 2 * RESAMPLING_MARGIN + step
        samples = file.read(count, dtype="float32", always_2d=True)
        resampled = soxr.resample(samples, own, wanted, quality=RESAMPLING_QUALITY)
        return resampled[start - first * wanted // own :]


def measure_bandwidth(crops: AudioCrops) -> dict[str, float]:
    """Measures what the losses are divided by, over crops spread over the data, as the original does before training.

    Returns:
        Values for [`JukeboxVQVAEConfig`]: `bandwidth_l1` (mean absolute value), `bandwidth_l2` (variance) and
        `bandwidth_spectral` (mean norm of a crop's spectrogram).

    Raises:
        ValueError: silence only.
    """
    values, norms = [], []
    wanted = BANDWIDTH_SECONDS * crops.sampling_rate // crops.crop_length
    for index in range(0, len(crops), min(BANDWIDTH_STEP, max(1, len(crops) // max(1, wanted)))):
        audio = crops[index]["input_values"]
        values.append(audio)
        norms.append(spectrogram(audio, *SPECTRAL_STFT).square().sum().sqrt())
        if len(values) >= wanted:
            break
    samples = torch.cat(values, dim=1)
    if not samples.abs().max() > SILENCE:
        raise ValueError(f"The {len(values)} crops that were looked at are silent: give files with music in them.")
    return {
        "bandwidth_l1": samples.abs().mean().item(),
        "bandwidth_l2": samples.var(correction=0).item(),
        "bandwidth_spectral": torch.stack(norms).mean().item(),
    }


__all__ = ["AudioCrops", "measure_bandwidth"]
