"""Where crops lie, and what is in them."""

import logging

import numpy as np
import pytest
import soundfile
import soxr
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from training_parts import CROP, RATE, crops_of, melody, write_music

from jukebox_hf.training import AudioCrops, measure_bandwidth
from jukebox_hf.training.timeline import Timeline


class _Shift:
    """Stands for a generator, of which one number is drawn."""

    def __init__(self, shift):
        self.shift = shift

    def integers(self, low, high):
        assert low <= self.shift < high
        return self.shift


def _original_place(lengths, size, index, shift):
    """The original's rule, as the facts about it tell it: song and offset in the song."""
    offset, half = index * size + shift, size // 2
    start = 0
    for song, length in enumerate(lengths):
        end = start + length
        if start <= offset + half < end:
            if offset + size > end:
                offset = max(start, offset - half)
            elif offset < start:
                offset = min(end - size, offset + half)
            return song, offset - start
        start = end
    raise AssertionError("the middle of every crop lies in a song")


@given(st.integers(1, 40), st.data())
def test_crops_lie_where_the_originals_do(half, data):
    size = 2 * half
    lengths = data.draw(st.lists(st.integers(size, 5 * size), min_size=1, max_size=5))
    timeline = Timeline(lengths, size)
    assert len(timeline) == sum(lengths) // size
    index = data.draw(st.integers(0, len(timeline) - 1))
    shift = data.draw(st.integers(-half, half - 1))
    place = timeline.place(index, _Shift(shift))
    assert (place.song, place.start) == _original_place(lengths, size, index, shift)
    unmoved = timeline.place(index, None)
    assert (unmoved.song, unmoved.start) == _original_place(lengths, size, index, 0)


@given(st.integers(1, 21), st.data())
def test_crops_never_leave_their_song(size, data):
    lengths = data.draw(st.lists(st.integers(size, 4 * size), min_size=1, max_size=5))
    timeline = Timeline(lengths, size)
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    for index in range(len(timeline)):
        for place in (timeline.place(index, None), timeline.place(index, rng)):
            assert 0 <= place.start <= lengths[place.song] - size


def _items(crops):
    return torch.stack([crops[index]["input_values"] for index in range(len(crops))])


def test_a_crop_follows_from_seed_epoch_and_index(tmp_path):
    crops, again = crops_of(tmp_path, seed=1), crops_of(tmp_path, seed=1)
    first = _items(crops)
    assert first.shape == (len(crops), 1, CROP) and first.dtype == torch.float32
    assert torch.equal(again[3]["input_values"], first[3])
    again.set_epoch(1)
    assert not torch.equal(_items(again), first)
    again.set_epoch(0)
    assert torch.equal(_items(again), first)
    assert not torch.equal(_items(crops_of(tmp_path, seed=2)), first)


def test_workers_that_stay_draw_what_one_process_draws(tmp_path):
    crops = crops_of(tmp_path)
    loader = DataLoader(crops, batch_size=2, num_workers=2, persistent_workers=True)
    for epoch in range(2):
        crops.set_epoch(epoch)
        got = torch.cat([batch["input_values"] for batch in loader])
        assert torch.equal(got, _items(crops))


def test_crops_without_shift_are_the_files_samples(tmp_path):
    crops = crops_of(tmp_path, random_shift=False, random_blend=False)
    whole = [soundfile.read(path, dtype="float32")[0] for path in crops.paths]
    for index, item in enumerate(_items(crops)):
        song, start = _original_place([len(song) for song in whole], CROP, index, 0)
        np.testing.assert_array_equal(item[0].numpy(), whole[song][start : start + CROP])


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 3000])
def test_resampled_crops_are_cut_from_the_resampled_file(tmp_path, rate):
    paths = write_music(tmp_path, [3.0], rate)
    crops = AudioCrops(paths, CROP, RATE, random_shift=False, random_blend=False)
    whole = soxr.resample(soundfile.read(paths[0], dtype="float32")[0], rate, RATE, quality="HQ")
    assert len(crops) == 5
    for start in (0, 1, 777, 2500, len(whole) - CROP):
        crop = crops._read(0, start, np.random.default_rng(0))
        np.testing.assert_allclose(crop, whole[start : start + CROP], atol=2e-6)


def test_channels_are_blended(tmp_path):
    paths = write_music(tmp_path, [3.0], channels=2)
    left, right = soundfile.read(paths[0], dtype="float32")[0].T
    crop = AudioCrops(paths, CROP, RATE, random_shift=False, random_blend=False)[1]["input_values"][0].numpy()
    np.testing.assert_allclose(crop, (left + right)[CROP : 2 * CROP] / 2, atol=1e-7)
    crops = AudioCrops(paths, CROP, RATE, random_shift=False)
    shares = []
    for epoch in range(40):
        crops.set_epoch(epoch)
        difference = crops[1]["input_values"][0].numpy() - right[CROP : 2 * CROP]
        direction = (left - right)[CROP : 2 * CROP]
        shares.append(difference @ direction / (direction @ direction))
        np.testing.assert_allclose(difference, shares[-1] * direction, atol=1e-6)
    assert 0 <= min(shares) < 0.2 and 0.8 < max(shares) <= 1
    three = write_music(tmp_path / "three", [1.0], channels=3)
    crop = AudioCrops(three, CROP, RATE, random_shift=False)[0]["input_values"][0].numpy()
    np.testing.assert_allclose(crop, soundfile.read(three[0], dtype="float32")[0].mean(1)[:CROP], atol=1e-7)


def test_silent_crops_are_replaced_by_others_of_their_song(tmp_path):
    audio = np.concatenate([np.zeros((4 * CROP, 1), np.float32), melody(4 * CROP)])
    soundfile.write(tmp_path / "half.wav", audio, RATE, subtype="FLOAT")
    crops = AudioCrops([tmp_path / "half.wav"], CROP, RATE)
    assert all(item.abs().max() > 1e-4 for item in _items(crops))
    # Held-out crops are what they are.
    assert not AudioCrops([tmp_path / "half.wav"], CROP, RATE, random_shift=False)[0]["input_values"].any()


def test_a_silent_song_gives_silence(tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(3 * CROP), RATE)
    crops = AudioCrops([tmp_path / "silence.wav"], CROP, RATE)
    assert not crops[0]["input_values"].any()
    with pytest.raises(ValueError, match=r"3 crops .* silent"):
        measure_bandwidth(crops)


def test_files_of_no_use_are_left_out_with_a_warning(tmp_path, caplog):
    good = write_music(tmp_path, [2.0])
    soundfile.write(tmp_path / "short.wav", melody(CROP - 1), RATE)
    (tmp_path / "text.wav").write_text("no audio")
    (tmp_path / "headless.raw").write_bytes(b"\0" * 8000)
    bad = [tmp_path / name for name in ("short.wav", "text.wav", "headless.raw", "missing.wav")]
    with caplog.at_level(logging.WARNING):
        crops = AudioCrops([*bad, *good], CROP, RATE)
    assert crops.paths == good
    messages = [record.getMessage() for record in caplog.records]
    assert all(any(str(path) in message and "left out" in message for message in messages) for path in bad)
    with pytest.raises(ValueError, match=r"None of the 4 files holds a crop of 2048 samples \(0.51 s\)"):
        AudioCrops(bad, CROP, RATE)
    with pytest.raises(ValueError, match="crop_length=0"):
        AudioCrops(good, 0, RATE)


def test_a_file_that_turns_out_bad_is_named(tmp_path):
    paths = write_music(tmp_path, [2.0])
    crops = AudioCrops(paths, CROP, RATE)
    audio = melody(8000)
    audio[:] = np.nan
    soundfile.write(paths[0], audio, RATE, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"song_0.wav holds NaN"):
        crops[0]
    (tmp_path / "song_0.wav").write_text("no audio")
    with pytest.raises(ValueError, match=r"song_0.wav cannot be read"):
        crops[0]


def test_bandwidth_is_what_numpy_computes(tmp_path):
    crops = crops_of(tmp_path, random_shift=False, random_blend=False)
    audio = _items(crops)[:, 0].numpy().astype(np.float64)
    window = np.hanning(1537)[:-1]
    norms = []
    for crop in audio:
        padded = np.pad(crop, 1024, mode="reflect")
        frames = [np.pad(padded[i : i + 2048][256:-256] * window, 256) for i in range(0, len(padded) - 2047, 256)]
        norms.append(np.linalg.norm(np.abs(np.fft.rfft(frames))))
    # The whole of so little music is looked at.
    measured = measure_bandwidth(crops)
    assert measured["bandwidth_l1"] == pytest.approx(np.abs(audio).mean(), rel=1e-5)
    assert measured["bandwidth_l2"] == pytest.approx(audio.var(), rel=1e-5)
    assert measured["bandwidth_spectral"] == pytest.approx(np.mean(norms), rel=1e-5)
