"""The feature extractor: what it takes, what it refuses, and that padding never reaches a code."""

import logging

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoFeatureExtractor

from jukebox_hf import JukeboxFeatureExtractor

RATE = 44100


@pytest.fixture
def extractor() -> JukeboxFeatureExtractor:
    return JukeboxFeatureExtractor()


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.9, 0.9, shape).astype(np.float32)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: x.tolist(),
        lambda x: [x],
        lambda x: (x,),
        lambda x: [x.tolist()],
        lambda x: x.astype(np.float64),
        lambda x: torch.from_numpy(x),
        lambda x: [torch.from_numpy(x)],
        lambda x: x[np.newaxis],
        lambda x: {"array": x, "sampling_rate": RATE},
        lambda x: [{"array": x.tolist(), "sampling_rate": np.int64(RATE)}],
    ],
)
def test_every_form_of_a_mono_clip_gives_the_same_batch(extractor, wrap):
    clip = noise(1000)
    inputs = extractor(wrap(clip), sampling_rate=RATE, return_tensors="np")
    assert inputs["input_values"].shape == (1, 1, 1024) and inputs["input_values"].dtype == np.float32
    np.testing.assert_array_equal(inputs["input_values"][0, 0], np.pad(clip, (0, 24)))
    np.testing.assert_array_equal(inputs["padding_mask"], [[1] * 1000 + [0] * 24])


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [x], torch.from_numpy, lambda x: [x.tolist()]])
def test_stereo_becomes_the_mean_of_its_channels(extractor, wrap):
    stereo = noise(2, 256)
    inputs = extractor(wrap(stereo), sampling_rate=RATE, return_tensors="np")
    np.testing.assert_array_equal(inputs["input_values"], (0.5 * (stereo[0] + stereo[1]))[np.newaxis, np.newaxis])


def test_a_list_of_lists_is_a_batch_and_no_stereo_clip(extractor):
    inputs = extractor([[0.5, 0.25], [1.0]], sampling_rate=RATE, return_tensors="np")
    np.testing.assert_array_equal(inputs["input_values"][:, 0, :3], [[0.5, 0.25, 0.0], [1.0, 0.0, 0.0]])
    assert inputs["padding_mask"].sum(1).tolist() == [2, 1]


def test_half_precision_tensors_are_read(extractor):
    clip = torch.from_numpy(noise(128)).to(torch.bfloat16)
    inputs = extractor(clip, sampling_rate=RATE, return_tensors="pt")
    assert torch.equal(inputs["input_values"][0, 0], clip.float())


def test_normalize_divides_by_the_peak_and_leaves_silence():
    extractor = JukeboxFeatureExtractor(normalize=True)
    clip = noise(128) * 0.1
    loud, silent = extractor([clip, np.zeros(128)], sampling_rate=RATE, return_tensors="np")["input_values"][:, 0]
    np.testing.assert_array_equal(loud, clip / np.abs(clip).max())
    assert not silent.any()


def test_padding_and_truncation_follow_dac(extractor):
    clips = [noise(1000), noise(500)]

    def lengths(**options) -> tuple[list[int], list[int] | None]:
        inputs = extractor(clips, sampling_rate=RATE, **options)
        mask = inputs.get("padding_mask")
        return [clip.shape for clip in inputs["input_values"]], None if mask is None else mask.sum(1).tolist()

    assert lengths() == lengths(padding="longest") == ([(1, 1024)] * 2, [1000, 500])
    assert lengths(padding="max_length", max_length=1100) == ([(1, 1152)] * 2, [1000, 500])
    assert lengths(truncation=True, max_length=600) == ([(1, 640)] * 2, [640, 500])
    assert lengths(padding=False) == ([(1, 1000), (1, 500)], None)
    with pytest.raises(ValueError, match="Both padding and truncation"):
        extractor(clips, sampling_rate=RATE, padding=True, truncation=True, max_length=600)


@pytest.mark.parametrize("fault", ["NaN", "infinity"])
def test_values_that_are_not_finite_are_refused_with_their_place(extractor, fault):
    clip = noise(300)
    clip[7] = np.nan if fault == "NaN" else -np.inf
    with pytest.raises(ValueError, match="Clip 1 holds NaN or infinity at sample 7"):
        extractor([noise(10), clip], sampling_rate=RATE)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (np.zeros(0), "Clip 1 is empty"),
        ([], "Clip 1 is empty"),
        (np.zeros((2, 0)), "Clip 1 is empty"),
        (np.zeros((3, 100)), r"Clip 1 has the shape \(3, 100\).*list of clips"),
        (np.zeros((100, 2)), r"Clip 1 has the shape \(100, 2\).*Transpose"),
        (np.zeros((1, 1, 100)), r"Clip 1 has the shape \(1, 1, 100\)"),
        (torch.tensor(0.5), r"Clip 1 has the shape \(\)"),
        (np.zeros(100, np.int16), "Clip 1 holds int16.*audio / 32768"),
        (torch.zeros(100, dtype=torch.int32), "Clip 1 holds int32"),
        (np.zeros(100, np.complex64), "Clip 1 holds complex64"),
        ([[0.1, 0.2], [0.3]], "Clip 1 is no array"),
        (None, "Clip 1 holds object"),
        ("song.wav", "Clip 1 holds <U8"),
        (
            {"bytes": b"RIFF", "path": "song.wav"},
            "Clip 1 has no array, only bytes, path: decode the column.*cast_column",
        ),
    ],
)
def test_bad_clips_are_refused_by_their_index(extractor, clip, message):
    with pytest.raises(ValueError, match=message):
        extractor([noise(100), clip], sampling_rate=RATE)


@pytest.mark.parametrize("clip", [noise(3, 100), noise(100).astype(np.int16), "song.wav", None])
def test_a_bad_clip_alone_is_refused_too(extractor, clip):
    with pytest.raises(ValueError, match="Clip 0"):
        extractor(clip, sampling_rate=RATE)


def test_an_empty_batch_is_refused(extractor):
    with pytest.raises(ValueError, match="no clips"):
        extractor([], sampling_rate=RATE)


def test_more_than_one_feature_is_refused():
    with pytest.raises(ValueError, match="feature_size=2"):
        JukeboxFeatureExtractor(feature_size=2)


def test_a_wrong_rate_is_refused_with_the_way_to_resample(extractor):
    with pytest.raises(
        ValueError, match=r"22050 Hz.*soxr.resample\(audio, 22050, 44100\).*Audio\(sampling_rate=44100\)"
    ):
        extractor(noise(100), sampling_rate=22050)
    with pytest.raises(ValueError, match="Clip 1 is sampled at 48000 Hz"):
        extractor([{"array": noise(100), "sampling_rate": rate} for rate in (RATE, 48000)])


def test_only_a_missing_rate_is_warned_about(extractor, caplog):
    with caplog.at_level(logging.WARNING):
        extractor({"array": noise(100), "sampling_rate": RATE})
        extractor(noise(100), sampling_rate=RATE)
        assert not caplog.records
        extractor([noise(100), noise(100)])
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "44100 Hz" in caplog.text


def test_the_configuration_survives_saving(tmp_path):
    extractor = JukeboxFeatureExtractor(sampling_rate=22050, padding_value=0.5, hop_length=32, normalize=True)
    extractor.save_pretrained(tmp_path)
    loaded = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(loaded) is JukeboxFeatureExtractor
    assert loaded.to_dict() == extractor.to_dict()
    assert (loaded.sampling_rate, loaded.hop_length, loaded.normalize) == (22050, 32, True)


def test_an_audio_column_is_read_with_its_own_rate(extractor, tmp_path, caplog):
    clips = [noise(2, 1000, seed=seed) for seed in range(2)]
    paths = [str(tmp_path / f"{index}.wav") for index in range(2)]
    for path, clip in zip(paths, clips):
        soundfile.write(path, clip.T, RATE, subtype="FLOAT")
    dataset = Dataset.from_dict({"audio": paths}).cast_column("audio", Audio())
    expected = extractor(clips, sampling_rate=RATE, return_tensors="np")["input_values"]
    with caplog.at_level(logging.WARNING):
        for column in (dataset["audio"], dataset[:]["audio"], [row["audio"] for row in dataset]):
            inputs = extractor(column, return_tensors="np")
            np.testing.assert_allclose(inputs["input_values"], expected, atol=1e-7)
        assert extractor(dataset[0]["audio"], return_tensors="np")["input_values"].shape == (1, 1, 1024)
    assert not caplog.records
    with pytest.raises(ValueError, match="Clip 0 is sampled at 22050 Hz"):
        extractor(dataset.cast_column("audio", Audio(sampling_rate=22050))["audio"])


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(128, 1500), min_size=2, max_size=4))
def test_a_clip_in_a_batch_gets_the_codes_it_gets_alone(extractor, small_model, lengths):
    clips = [noise(length, seed=seed) for seed, length in enumerate(lengths)]
    batch = small_model.encode(**extractor(clips, sampling_rate=RATE, return_tensors="pt"))
    for row, clip in enumerate(clips):
        alone = small_model.encode(torch.from_numpy(clip)[None, None]).audio_codes
        for codes, mask, expected in zip(batch.audio_codes, batch.audio_codes_mask, alone):
            assert torch.equal(codes[row][mask[row]], expected[0])
