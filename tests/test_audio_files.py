"""Audio files in blocks: the blocks are the file, whatever it is, and what is written is whole or not there."""

import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from jukebox_hf import audio_files
from jukebox_hf.audio_files import audio_file_length, read_audio_blocks, write_audio

RATE = 44100


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.9, 0.9, shape).astype(np.float32)


class CountingFile(io.BytesIO):
    """Counts the bytes that are read from it."""

    count = 0

    def readinto(self, buffer) -> int:
        read = super().readinto(buffer)
        self.count += read
        return read


@pytest.mark.parametrize("block_seconds", [0.001, 0.1, 10.0])
@pytest.mark.parametrize(
    ("suffix", "rate", "channels"),
    [(".wav", 44100, 1), (".wav", 96000, 2), (".flac", 22050, 6), (".ogg", 48000, 2), (".mp3", 32000, 1)],
)
def test_blocks_joined_are_the_resampled_mean_of_the_channels(tmp_path, suffix, rate, channels, block_seconds):
    path = tmp_path / f"clip{suffix}"
    soundfile.write(path, noise(12345, channels), rate)
    mono = soundfile.read(path, dtype="float32", always_2d=True)[0].mean(axis=1)
    expected = mono if rate == RATE else soxr.resample(mono, rate, RATE)
    blocks = list(read_audio_blocks(path, RATE, block_seconds))
    assert all(block.dtype == np.float32 and block.ndim == 1 and len(block) for block in blocks)
    np.testing.assert_array_equal(np.concatenate(blocks), expected)
    assert audio_file_length(path, RATE) == len(expected)


@pytest.mark.parametrize("rate", [8000, 11025, 37800, 44099, 48000, 192000])
@pytest.mark.parametrize("frames", [7, 1000, 12321])
def test_the_length_is_known_before_reading(tmp_path, rate, frames):
    path = tmp_path / "clip.wav"
    soundfile.write(path, noise(frames), rate)
    assert audio_file_length(path, RATE) == sum(map(len, read_audio_blocks(path, RATE, 0.01)))


def test_open_files_are_read_and_stay_open():
    file = io.BytesIO()
    soundfile.write(file, noise(1000), RATE, format="WAV", subtype="FLOAT")
    file.seek(0)
    assert audio_file_length(file, RATE) == 1000
    file.seek(0)
    np.testing.assert_array_equal(np.concatenate(list(read_audio_blocks(file, RATE))), noise(1000))
    assert not file.closed


def test_only_what_a_block_needs_is_read():
    file = CountingFile()
    soundfile.write(file, noise(60 * RATE), RATE, format="WAV")
    file.seek(0)
    file.count = 0
    block = next(read_audio_blocks(file, RATE, block_seconds=1.0))
    assert len(block) == RATE
    assert 2 * RATE <= file.count < 3 * RATE


def unreadable(folder: Path, fault: str) -> Path:
    path = folder / ("clip.raw" if fault == "headerless" else "clip.flac" if fault == "cut off" else "clip.wav")
    if fault == "folder":
        path.mkdir()
    elif fault in ("garbage", "headerless"):
        path.write_bytes(b"no audio at all" * 100)
    elif fault == "nothing":
        path.touch()
    elif fault == "no samples":
        soundfile.write(path, noise(0), RATE)
    elif fault == "NaN":
        soundfile.write(path, np.append(noise(1000), np.float32(np.nan)), 22050, subtype="FLOAT")
    elif fault == "cut off":
        soundfile.write(path, noise(50000), RATE)
        os.truncate(path, path.stat().st_size // 2)
    return path


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("missing", "cannot be read: No such file"),
        ("folder", "cannot be read: Is a directory"),
        ("garbage", "cannot be read: Format not recognised"),
        ("nothing", "cannot be read: Format not recognised"),
        ("headerless", "cannot be read: samplerate must be specified"),
        ("cut off", "cannot be read: .*flac decoder"),
        ("no samples", "holds no audio"),
        ("NaN", "holds NaN or infinity"),
    ],
)
def test_a_bad_file_is_named_with_the_reason(tmp_path, fault, reason):
    path = unreadable(tmp_path, fault)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} {reason}"):
        list(read_audio_blocks(path, RATE, block_seconds=0.01))


def test_a_bad_header_is_told_before_reading(tmp_path):
    with pytest.raises(ValueError, match="cannot be read: Format not recognised"):
        audio_file_length(unreadable(tmp_path, "garbage"), RATE)


def test_a_block_length_that_is_not_positive_is_refused(tmp_path):
    with pytest.raises(ValueError, match="block_seconds=0"):
        next(read_audio_blocks(tmp_path / "clip.wav", RATE, block_seconds=0))


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".WAV"])
def test_written_audio_is_16_bit_and_clipped(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    samples = np.array([0.0, 0.5, -0.5, 1.0, -1.0, 1.5, -7.0], np.float32)
    write_audio(path, (samples[start : start + 2] for start in range(0, 7, 2)), 22050)
    assert soundfile.info(path).subtype == "PCM_16"
    written, rate = soundfile.read(path, dtype="int16")
    assert rate == 22050
    assert written.tolist() == [0, 16384, -16384, 32767, -32768, 32767, -32768]
    assert os.listdir(tmp_path) == [path.name]
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def failing():
    yield noise(1000)
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("blocks", "error", "message"),
    [
        (failing(), KeyboardInterrupt, None),
        ([noise(10), np.array([np.nan], np.float32)], ValueError, "NaN or infinity"),
        ([noise(1, 10)], ValueError, r"A block \(1, 10\)"),
        ([], ValueError, "no samples"),
    ],
)
def test_a_failure_leaves_the_older_file_and_nothing_else(tmp_path, blocks, error, message):
    path = tmp_path / "clip.wav"
    path.write_bytes(b"older")
    with pytest.raises(error, match=message):
        write_audio(path, blocks, RATE)
    assert os.listdir(tmp_path) == ["clip.wav"] and path.read_bytes() == b"older"


def test_the_file_is_not_there_before_it_is_whole(tmp_path):
    path = tmp_path / "clip.wav"

    def blocks():
        yield noise(1000)
        assert not path.exists()

    write_audio(path, blocks(), RATE)
    assert path.exists()


@pytest.mark.parametrize("name", ["clip.mp3", "clip", "missing/clip.wav"])
def test_a_name_that_cannot_be_written_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"name a \.wav or \.flac file|is no folder"):
        write_audio(tmp_path / name, [noise(10)], RATE)
    assert not os.listdir(tmp_path)


def test_a_wav_file_beyond_its_header_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(audio_files, "WAV_MAX_SAMPLES", 1500)
    with pytest.raises(ValueError, match=r"more than 1500 samples: write a \.flac file"):
        write_audio(tmp_path / "clip.wav", [noise(1000)] * 2, RATE)
    assert not os.listdir(tmp_path)
    write_audio(tmp_path / "clip.flac", [noise(1000)] * 2, RATE)


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise soundfile.LibsndfileError(2)

    monkeypatch.setattr(soundfile.SoundFile, "write", refuse)
    with pytest.raises(OSError, match=r"song\.wav could not be written .*Free some space"):
        write_audio(tmp_path / "song.wav", [np.zeros(4, np.float32)], 44100)
    assert not list(tmp_path.iterdir())
