"""Reads and writes audio files of any length in blocks."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

# What transformers' load_audio resamples with. Its errors lie at -120 dB, below the noise of 16-bit audio; "VHQ" could
# only lower them further.
RESAMPLING_QUALITY = "HQ"
# A WAV header counts its bytes, two to a sample, in 32 bits; beyond that libsndfile writes a wrong count.
WAV_MAX_SAMPLES = 2**31 - 64


def read_audio_blocks(
    file: str | os.PathLike | BinaryIO, sampling_rate: int, block_seconds: float = 10.0
) -> Iterator[np.ndarray]:
    """Reads an audio file as mono float32 blocks `(samples,)` at `sampling_rate`, in memory for one block.

    Whatever libsndfile reads, at any rate and with any number of channels, which become their mean. The blocks joined
    are what resampling the whole file gives. As everywhere with libsndfile, a file that was cut off gives what it
    still holds, and an MP3 of variable bit rate that lacks its Xing header ends where its first frame suggests.

    Args:
        file (`str`, `os.PathLike` or binary file): a path, or a seekable file opened for reading.
        sampling_rate (`int`): of the result, in Hz.
        block_seconds (`float`): how much is read at a time.

    Raises:
        ValueError: a file that cannot be read, holds no audio or NaN or infinity, with its name and the reason.
    """
    if block_seconds <= 0:
        raise ValueError(f"block_seconds={block_seconds}: give a positive number.")
    samples = 0
    with _open_audio(file) as audio:
        resampler = None
        if audio.samplerate != sampling_rate:
            resampler = soxr.ResampleStream(audio.samplerate, sampling_rate, 1, quality=RESAMPLING_QUALITY)
        frames, is_last = max(1, int(block_seconds * audio.samplerate)), False
        while not is_last:
            block = audio.read(frames, dtype="float32", always_2d=True).mean(axis=1)
            is_last = not len(block)
            if not np.isfinite(block).all():
                raise ValueError(f"{_name(file)} holds NaN or infinity: repair or drop it.")
            if resampler:
                block = resampler.resample_chunk(block, last=is_last)
            if len(block):
                yield block
            samples += len(block)
    if not samples:
        raise ValueError(f"{_name(file)} holds no audio.")


def audio_file_length(file: str | os.PathLike | BinaryIO, sampling_rate: int) -> int:
    """Tells from the header how many samples `read_audio_blocks` will give, for progress bars.

    Raises:
        ValueError: a file that cannot be read, with its name and the reason.
    """
    with _open_audio(file) as audio:
        return (2 * audio.frames * sampling_rate + audio.samplerate) // (2 * audio.samplerate)


def write_audio(path: str | os.PathLike, blocks: Iterable[np.ndarray], sampling_rate: int):
    """Writes mono blocks `(samples,)` to a .wav or .flac file of 16 bits, clipped to -1 to 1, or leaves no file at all.

    The file appears under its name only when it is whole; until then an older one of that name stays.

    Raises:
        ValueError: another suffix, a missing folder, a block that is not 1-D or not finite, no samples, or more than
            a .wav file can hold.
        OSError: the file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".wav", ".flac"):
        raise ValueError(f"{path} ends in {suffix or 'no suffix'}: name a .wav or .flac file.")
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} is no folder: create it first.")
    samples = 0
    # A folder beside the target, since os.replace cannot move a file to another disk.
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        part = Path(folder) / path.name
        with _written(path), soundfile.SoundFile(part, "w", sampling_rate, channels=1, subtype="PCM_16") as audio:
            for block in blocks:
                if block.ndim != 1 or not np.isfinite(block).all():
                    raise ValueError(
                        f"A block {block.shape} for {path} is not 1-D or holds NaN or infinity: give blocks (samples,)."
                    )
                samples += len(block)
                if suffix == ".wav" and samples > WAV_MAX_SAMPLES:
                    raise ValueError(f"{path} cannot hold more than {WAV_MAX_SAMPLES} samples: write a .flac file.")
                audio.write(block)
        if not samples:
            raise ValueError(f"There are no samples for {path}: give at least one.")
        os.replace(part, path)


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """Names the file that libsndfile could not write."""
    try:
        yield
    except soundfile.SoundFileError as error:
        raise OSError(f"{path} could not be written ({error}). Free some space and run it again.") from error


class _ForwardFile(soundfile.SoundFile):
    """An audio file that is read from front to back.

    After each read of a seekable file soundfile seeks to where it is already, and in an MP3 that garbles what follows.
    """

    def seekable(self) -> bool:
        return False


@contextmanager
def _open_audio(file: str | os.PathLike | BinaryIO) -> Iterator[_ForwardFile]:
    with ExitStack() as stack:
        try:
            # Opened here because libsndfile calls a missing file a "System error".
            stream = stack.enter_context(open(file, "rb")) if isinstance(file, str | os.PathLike) else file
            yield stack.enter_context(_ForwardFile(stream))
        except soundfile.LibsndfileError as error:
            raise ValueError(f"{_name(file)} cannot be read: {error.error_string}") from error
        # A TypeError is soundfile's answer to a file that has no header and ends in .raw.
        except (OSError, TypeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"{_name(file)} cannot be read: {reason}") from error


def _name(file: str | os.PathLike | BinaryIO) -> str:
    return str(file if isinstance(file, str | os.PathLike) else getattr(file, "name", "The audio"))
