"""The processor: the original's label rows from what a user types, and lyric windows that move with the music."""

import copy
import logging
import pickle

import numpy as np
import pytest
import torch
from conftest import golden
from test_tokenization import LABEL_ROWS, LYRIC_CASES, make_tokenizer
from transformers import AutoProcessor

from jukebox_hf import JukeboxFeatureExtractor
from jukebox_hf.processing_jukebox import JukeboxProcessor
from jukebox_hf.tokenization_jukebox import JukeboxTokenizer

RATE = 44100
LABELLED_CASES = (*LYRIC_CASES, "prior-5b-style", "upsampler-level-0-style", "upsampler-level-1-style")


def make_processor(*versions: str, sample_length: int = 1048576, **options) -> JukeboxProcessor:
    return JukeboxProcessor(JukeboxFeatureExtractor(), make_tokenizer(*versions, **options), sample_length)


def label_row(inputs, sample_length: int) -> torch.Tensor:
    """In the original's order, `(batch, columns)`."""
    sample_lengths = torch.full_like(inputs["offset"], sample_length)
    columns = [inputs["total_length"], inputs["offset"], sample_lengths, inputs["artist_ids"]]
    row = [torch.stack(columns, dim=1), inputs["genre_ids"]]
    return torch.cat([*row, inputs["lyric_ids"]] if "lyric_ids" in inputs else row, dim=1)


def as_lists(inputs) -> dict:
    return {name: tensor.tolist() for name, tensor in inputs.items()}


def read_row(processor: JukeboxProcessor, row: dict):
    seconds = dict(total_seconds=row["total_length"] / RATE, offset_seconds=row["offset"] / RATE)
    lyrics = row["lyrics"] if row["n_tokens"] else None
    return processor(lyrics, artist=row["artist"], genre=row["genre"], **seconds)


@pytest.mark.parametrize("row", LABEL_ROWS)
def test_label_rows_equal_the_originals(row):
    processor = make_processor(
        row["version"],
        max_genres=row["genre_slots"],
        num_lyric_tokens=row["n_tokens"],
        sample_length=row["sample_length"],
    )
    inputs = read_row(processor, row)
    assert all(tensor.dtype == torch.long for tensor in inputs.values())
    assert label_row(inputs, row["sample_length"]).tolist() == [row["y"]]


@pytest.mark.parametrize("case", LABELLED_CASES)
def test_labels_of_the_golden_priors_are_built_and_moved_as_in_the_original(case):
    tensors, settings = golden(case).tensors, golden(case).settings
    raw, moved, hps = tensors["labels.raw"], tensors["labels.y"], settings["hps"]
    num_tokens = hps["n_tokens"] if case in LYRIC_CASES else 0
    version = "v3" if hps["max_bow_genre_size"] == 1 else "v2"
    numbers = range(1, 100)
    tokenizer = JukeboxTokenizer.from_labels(
        [f"artist{number}" for number in numbers],
        [f"genre{number}" for number in numbers],
        versions=[version],
        max_genres=hps["max_bow_genre_size"],
        num_lyric_tokens=num_tokens,
    )
    sample_length = settings["n_ctx"] * settings["raw_to_tokens"]
    processor = JukeboxProcessor(JukeboxFeatureExtractor(), tokenizer, sample_length)

    full = tensors["labels.full_lyric_tokens"] if num_tokens else [[], []]
    slots = raw[:, 4 : raw.shape[1] - num_tokens]
    inputs = processor(
        tokenizer.decode(full),
        artist=[f"artist{artist}" for artist in raw[:, 3]],
        genre=[" ".join(f"genre{genre}" if genre else "unknown" for genre in genres if genre >= 0) for genres in slots],
        total_seconds=(raw[:, 0].double() / RATE).tolist(),
        offset_seconds=(raw[:, 1].double() / RATE).tolist(),
    )
    # The goldens' labels start with the first characters, wherever their music does.
    without_lyrics = slice(None), slice(raw.shape[1] - num_tokens)
    assert torch.equal(label_row(inputs, sample_length)[without_lyrics], raw[without_lyrics])

    inputs["offset"] = inputs["offset"] + settings["labels_start"] * settings["raw_to_tokens"]
    if num_tokens:
        window = processor.lyric_window(full, inputs["total_length"], inputs["offset"])
        inputs["lyric_ids"], indices = window
        assert torch.equal(indices, tensors["labels.lyric_indices"])
    assert torch.equal(label_row(inputs, sample_length), moved)


# Lyric windows


def test_each_song_of_a_batch_has_its_own_window():
    processor = make_processor("v3", num_lyric_tokens=4, sample_length=2 * RATE)
    lyrics = ["abcdefghij", "xy", ""]
    ids = processor.tokenizer(lyrics)["input_ids"]
    total, offset = torch.tensor([10, 10, 5]) * RATE, torch.tensor([4, 4, 4]) * RATE
    windows, indices = processor.lyric_window(ids, total, offset)
    assert indices.tolist() == [[3, 4, 5, 6], [-1, -1, 0, 1], [-1] * 4]
    assert processor.tokenizer.decode(windows, skip_special_tokens=True) == ["defg", "xy", ""]
    built = processor(lyrics, total_seconds=[10, 10, 5], offset_seconds=4)["lyric_ids"]
    assert torch.equal(built, windows)
    for song in range(3):
        alone, _ = processor.lyric_window(ids[song : song + 1], total[song : song + 1], offset[song : song + 1])
        assert torch.equal(alone[0], windows[song])
    tensors = [torch.tensor(song, dtype=torch.long) for song in ids]
    assert torch.equal(processor.lyric_window(tensors, total.tolist(), offset.tolist())[0], windows)


def test_building_is_done_in_fp64_and_moving_in_fp32():
    processor = make_processor("v2", num_lyric_tokens=512)
    lyrics = "".join(np.random.default_rng(0).choice(list("abcdefgh"), 3701))
    ids = processor.tokenizer(lyrics)["input_ids"]
    built = processor(lyrics, total_seconds=8953441 / RATE, offset_seconds=5990604 / RATE)["lyric_ids"]
    moved, indices = processor.lyric_window([ids], [8953441], [5990604])
    assert (built[0].tolist(), moved[0].tolist()) == (ids[2436 : 2436 + 512], ids[2437 : 2437 + 512])
    assert indices[0, 0] == 2437


def test_lyrics_longer_than_the_window_need_the_songs_length():
    processor = make_processor("v2", num_lyric_tokens=4)
    assert processor("abcd")["lyric_ids"].tolist() == [[27, 28, 29, 30]]
    with pytest.raises(ValueError, match=r"lyrics have 5 characters, and the prior reads 4.*give total_seconds"):
        processor(["abcd", "abcde"])


def test_a_prior_without_lyrics_takes_none():
    processor = make_processor("v2")
    assert "lyric_ids" not in processor("", total_seconds=60)
    with pytest.raises(ValueError, match="text='some lyrics': this model reads no lyrics"):
        processor(["", "some lyrics"], total_seconds=60)
    with pytest.raises(ValueError, match="not the processor of a prior with lyrics"):
        processor.lyric_window([[1]], [100], [0])


@pytest.mark.parametrize(("total", "offset"), [(100, 100), (100, -1), (100, 2**40)])
def test_a_window_outside_its_song_is_refused(total, offset):
    processor = make_processor("v2", num_lyric_tokens=4)
    with pytest.raises(ValueError, match=f"offset of {offset} samples .* outside the song.* 100 samples"):
        processor.lyric_window([[1], [1]], [total, total], [0, offset])


# What is given, and what is not


def test_nothing_given_is_one_song_of_unknowns(caplog):
    with caplog.at_level(logging.WARNING):
        inputs = make_processor("v2", num_lyric_tokens=4)()
    assert as_lists(inputs) == {
        "artist_ids": [0],
        "genre_ids": [[0, -1, -1, -1, -1]],
        "offset": [0],
        "lyric_ids": [[0, 0, 0, 0]],
    }
    assert not caplog.records


def test_a_value_holds_for_every_song_and_a_list_has_one_each(caplog):
    inputs = make_processor("v2")(
        artist=["Frank Sinatra", None, "Nobody", "Nobody"], genre="Jazz", total_seconds=[60, 61.5, 62, 63]
    )
    assert inputs["artist_ids"].tolist() == [121, 0, 0, 0]
    assert inputs["genre_ids"].tolist() == [[9, -1, -1, -1, -1]] * 4
    assert inputs["total_length"].tolist() == [60 * RATE, 61.5 * RATE, 62 * RATE, 63 * RATE]
    assert inputs["offset"].tolist() == [0] * 4
    assert len(caplog.records) == 1, "a name is warned about once a call"


def test_several_priors_get_their_own_ids():
    processor = make_processor("v2", "v2", "v3", num_lyric_tokens=4)
    inputs = processor(["", ""], artist="Alan Jackson", genre=["Blues Rock", "Country"], total_seconds=60)
    assert inputs["artist_ids"].tolist() == [[145, 145, 6785]] * 2
    blues_rock, country = [2, 8, -1, -1, -1], [11, -1, -1, -1, -1]
    assert inputs["genre_ids"].tolist() == [
        [blues_rock, blues_rock, [282, -1, -1, -1, -1]],
        [country, country, [507, -1, -1, -1, -1]],
    ]
    assert inputs["total_length"].tolist() == [60 * RATE] * 2 and inputs["lyric_ids"].shape == (2, 4)


@pytest.mark.parametrize(
    ("seconds", "samples"), [(17.84, 786744), (23.8, 1049580), (15 / RATE, 15), (1.13, 49833), (1 / 3, 14700)]
)
def test_seconds_become_the_nearest_sample(seconds, samples):
    inputs = make_processor("v2")(total_seconds=2 * seconds, offset_seconds=np.float64(seconds))
    assert inputs["total_length"].tolist() == [2 * samples] and inputs["offset"].tolist() == [samples]


def test_return_types():
    processor = make_processor("v2", num_lyric_tokens=2)
    expected = {"artist_ids": [0], "genre_ids": [[0, -1, -1, -1, -1]], "offset": [0], "lyric_ids": [[0, 27]]}
    assert dict(processor("a", return_tensors=None)) == expected
    arrays = processor("a", return_tensors="np")
    assert all(array.dtype == np.int64 for array in arrays.values())
    assert as_lists(arrays) == expected


def test_audio_comes_with_its_labels():
    processor = make_processor("v2")
    clips = [np.linspace(-1, 1, length, dtype=np.float32) for length in (1000, 500)]
    inputs = processor(artist="Frank Sinatra", audio=clips, sampling_rate=RATE)
    expected = processor.feature_extractor(clips, sampling_rate=RATE, return_tensors="pt")
    for name, tensor in expected.items():
        assert torch.equal(inputs[name], tensor)
    assert inputs["artist_ids"].tolist() == [121, 121] and inputs["offset"].tolist() == [0, 0]
    assert set(inputs) < set(processor.model_input_names)
    with pytest.raises(ValueError, match="22050 Hz"):
        processor(audio=clips, sampling_rate=22050)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(text=["a", "b"], artist=["x"] * 3), "no one size: 2 of text, 3 of artist"),
        (dict(artist=["x"], genre=["x", "y"]), "1 of artist, 2 of genre"),
        (dict(text=[]), "0 of text"),
        (dict(total_seconds=[1.0, 2.0], audio=np.zeros(10)), "2 of total_seconds, 1 of audio"),
        (dict(total_seconds=0), "total_seconds=0: "),
        (dict(total_seconds=[60, -1.5]), "total_seconds=-1.5"),
        (dict(total_seconds=float("nan")), "total_seconds=nan"),
        (dict(offset_seconds=float("inf")), "offset_seconds=inf"),
        (dict(offset_seconds=-1), r"offset of -44100 samples \(-1.00 s\) lies outside"),
        (dict(total_seconds=60, offset_seconds=60), r"outside the song.* 2646000 samples \(60.00 s\)"),
        (dict(total_seconds=60, offset_seconds=[0, 61]), "offset of 2690100"),
        (dict(genre="a b c d e f"), "has 6 words"),
    ],
)
def test_bad_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_processor("v2")(sampling_rate=RATE, **options)


# Saving and loading


def test_saving_and_loading(tmp_path):
    processor = make_processor("v2", "v3", num_lyric_tokens=6, sample_length=786432)
    processor.feature_extractor.hop_length = 32
    processor.save_pretrained(tmp_path)
    for loaded in (AutoProcessor.from_pretrained(tmp_path), JukeboxProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is JukeboxProcessor
        assert loaded.sample_length == 786432 and loaded.feature_extractor.hop_length == 32
        assert as_lists(read_row(loaded, LABEL_ROWS[0])) == as_lists(read_row(processor, LABEL_ROWS[0]))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda processor: pickle.loads(pickle.dumps(processor))])
def test_copies(duplicate):
    processor = make_processor("v2", num_lyric_tokens=6, sample_length=786432)
    assert as_lists(read_row(duplicate(processor), LABEL_ROWS[2])) == as_lists(read_row(processor, LABEL_ROWS[2]))


def test_it_is_called_as_the_text_to_audio_pipeline_does():
    processor = make_processor("v2", num_lyric_tokens=4)
    inputs = processor(["hey"], artist="Frank Sinatra", total_seconds=60, return_tensors="pt").to(dtype=torch.float16)
    assert inputs["lyric_ids"].tolist() == [[0, 34, 31, 51]] and inputs["total_length"].tolist() == [60 * RATE]
