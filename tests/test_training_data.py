"""Music with its labels, codes that are computed once, and windows of them."""

import json
import logging
import os
from unittest.mock import patch

import datasets
import numpy as np
import pytest
import soundfile
import torch
from training_parts import PRIOR, RATE, coded_songs, vqvae_with_codes, write_music

from jukebox_hf import (
    JukeboxFeatureExtractor,
    JukeboxPriorConfig,
    JukeboxProcessor,
    JukeboxTokenizer,
    JukeboxVQVAEModel,
)
from jukebox_hf.training import CodeWindows, encode_music, read_music, split_music

LYRICS = "When I have seen by Time's fell hand defaced the rich proud cost of outworn buried age"
UPSAMPLER = PRIOR | {
    "level": 0,
    "hop_length": 8,
    "conditioner_config": {"hidden_size": 8, "num_residual_layers": 1, "strides": [2]},
}


def _write(folder, name, text):
    (folder / name).write_text(text, encoding="utf-8")


def test_labels_come_from_csv(tmp_path):
    write_music(tmp_path, [1.0, 1.0])
    _write(
        tmp_path,
        "metadata.csv",
        'file_name,artist,genre,lyrics,year\nsong_1.wav,311,NA,"First line,\nsecond ""line""",1\nsong_0.wav,,Folk,,2\n',
    )
    assert read_music(tmp_path).to_list() == [
        {
            "audio": str(tmp_path / "song_1.wav"), "artist": "311", "genre": "NA",
            "lyrics": 'First line,\nsecond "line"',
        },
        {"audio": str(tmp_path / "song_0.wav"), "artist": None, "genre": "Folk", "lyrics": None},
    ]  # fmt: skip


def test_labels_come_from_jsonl(tmp_path):
    write_music(tmp_path / "deep", [1.0])
    _write(
        tmp_path, "metadata.jsonl", json.dumps({"file_name": "deep/song_0.wav", "artist": "Vela", "genre": 7}) + "\n"
    )
    (row,) = read_music(tmp_path)
    assert row == {"audio": str(tmp_path / "deep" / "song_0.wav"), "artist": "Vela", "genre": "7", "lyrics": None}


def test_music_needs_no_labels(tmp_path):
    paths = write_music(tmp_path / "deep", [1.0, 1.0])
    _write(tmp_path, "notes.txt", "no music")
    music = read_music(tmp_path)
    assert music["audio"][:] == paths and music["artist"][:] == [None, None]


def test_music_that_cannot_be_found_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nowhere is no folder"):
        read_music(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no audio file"):
        read_music(tmp_path)
    _write(tmp_path, "metadata.csv", "artist\nVela\n")
    with pytest.raises(ValueError, match="without file_name"):
        read_music(tmp_path)
    _write(tmp_path, "metadata.csv", "file_name\nlost.wav\n")
    with pytest.raises(ValueError, match=r"lost.wav, which is not there \(1 such"):
        read_music(tmp_path)
    _write(tmp_path, "metadata.jsonl", "")
    with pytest.raises(ValueError, match="keep one of them"):
        read_music(tmp_path)


def test_every_tenth_song_is_held_out():
    music = datasets.Dataset.from_dict({"audio": [str(index) for index in range(25)]})
    train, held_out = split_music(music)
    assert held_out["audio"][:] == ["0", "10", "20"] and len(train) == 22
    assert len(split_music(music, 0.5)[1]) == 13
    for songs, share in ((music.select([0]), 0.1), (music, 0.0), (music, 1.0)):
        with pytest.raises(ValueError, match=f"held_out={share} of {len(songs)} songs"):
            split_music(songs, share)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def vqvae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vqvae")
    vqvae_with_codes().save_pretrained(folder)
    JukeboxFeatureExtractor(sampling_rate=RATE, hop_length=16).save_pretrained(folder)
    return folder


def _count_encodings(*arguments):
    encode = JukeboxVQVAEModel.encode
    with patch.object(JukeboxVQVAEModel, "encode", autospec=True, side_effect=encode) as counted:
        return encode_music(*arguments), counted.call_count


def test_songs_are_encoded_once(tmp_path, cache, vqvae):
    write_music(tmp_path / "music", [1.0, 1.3])
    music = read_music(tmp_path / "music")
    # Two songs, each level apart: the prior of the next level finds the codes of the one between.
    assert _count_encodings(music, vqvae, [1])[1] == 2
    songs, count = _count_encodings(music, vqvae, [0, 1])
    assert count == 2
    again, count = _count_encodings(read_music(tmp_path / "music"), vqvae, [0, 1])
    assert count == 0 and again.to_list() == songs.to_list()
    model = JukeboxVQVAEModel.from_pretrained(vqvae)
    extractor = JukeboxFeatureExtractor.from_pretrained(vqvae)
    for row in songs:
        audio = soundfile.read(row["audio"], dtype="float32")[0]
        codes = model.encode(**extractor(audio, sampling_rate=RATE, return_tensors="pt")).audio_codes
        assert [row["audio_codes_0"], row["audio_codes_1"]] == [level[0].tolist() for level in codes]
        assert row["num_samples"] == len(audio)
    # Other labels cost nothing, other files do.
    _write(tmp_path / "music", "metadata.csv", "file_name,artist\nsong_0.wav,Vela\nsong_1.wav,\n")
    labelled, count = _count_encodings(read_music(tmp_path / "music"), vqvae, [0, 1])
    assert count == 0 and labelled["artist"][:] == ["Vela", None]
    os.utime(tmp_path / "music" / "song_1.wav", (0, 0))
    assert _count_encodings(read_music(tmp_path / "music"), vqvae, [0, 1])[1] == 4


def test_songs_that_cannot_be_encoded_are_left_out(tmp_path, cache, vqvae, caplog):
    write_music(tmp_path, [1.0])
    _write(tmp_path, "bad.wav", "no audio")
    with caplog.at_level(logging.WARNING):
        songs = encode_music(read_music(tmp_path), vqvae, [1])
    assert songs["audio"][:] == [str(tmp_path / "song_0.wav")] and "error" not in songs.column_names
    assert any("bad.wav is left out" in record.getMessage() for record in caplog.records)
    (tmp_path / "song_0.wav").unlink()
    with pytest.raises(ValueError, match="None of the 1 songs could be encoded"):
        encode_music(read_music(tmp_path), vqvae, [1])


def test_windows_are_slices_of_the_codes():
    songs = coded_songs((100, 70, 130))
    windows = CodeWindows(songs, JukeboxPriorConfig(**PRIOR), random_shift=False)
    assert len(windows) == 300 // 32
    codes = [np.array(row) for row in songs["audio_codes_1"]]
    for index in range(len(windows)):
        place = windows.timeline.place(index, None)
        window = windows[index]
        expected = codes[place.song][place.start : place.start + 32]
        assert window["input_ids"].tolist() == expected.tolist() == window["labels"].tolist()
        assert window["input_ids"].dtype == torch.long and set(window) == {"input_ids", "labels"}


def test_shifted_windows_follow_from_seed_epoch_and_index():
    def draw(epoch, seed=0):
        windows = CodeWindows(coded_songs(), JukeboxPriorConfig(**PRIOR), seed=seed)
        windows.set_epoch(epoch)
        return torch.stack([windows[index]["input_ids"] for index in range(len(windows))])

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2)) and not torch.equal(draw(1), draw(1, seed=1))


def test_upper_codes_lie_above_the_window():
    songs = coded_songs((101, 71, 130), levels=(0, 1))
    # Codes that tell their places: level 0 counts on, and each code of level 1 stands for two of them.
    songs = songs.map(
        lambda row: {
            "audio_codes_0": [index // 8 for index in range(len(row["audio_codes_0"]))],
            "audio_codes_1": [index // 4 for index in range(len(row["audio_codes_1"]))],
        }
    )
    config = JukeboxPriorConfig(**UPSAMPLER | {"vocab_size": 40})
    windows = CodeWindows(songs, config)
    starts = set()
    for index in range(len(windows)):
        window = windows[index]
        assert window["input_ids"].shape == (32,) and window["upper_codes"].shape == (16,)
        assert torch.equal(window["upper_codes"].repeat_interleave(2), window["input_ids"])
        starts.add(window["input_ids"][0].item())
    assert len(starts) > 3


def _labelled():
    tokenizer = JukeboxTokenizer.from_labels(
        ["Vela", "The Paper Lanterns"], ["Country", "Folk"], versions=["v3"], max_genres=1, num_lyric_tokens=16
    )
    names = {"num_artists": 3, "num_genres": 3, "max_genres": 1, "num_time_bins": 8}
    config = JukeboxPriorConfig(
        **PRIOR
        | names
        | {"num_lyric_tokens": 16, "lyric_vocab_size": tokenizer.vocab_size, "attention_pattern": "rcpP"}
    )
    return tokenizer, config


def _labelled_songs(codes=(100, 70, 130)):
    return coded_songs(
        codes, artist=["Vela", None, "Nobody"], genre=["Folk", "Country", None], lyrics=[LYRICS, None, "Oh"]
    )


def test_labels_and_lyrics_are_those_of_the_processor():
    tokenizer, config = _labelled()
    songs = _labelled_songs()
    windows = CodeWindows(songs, config, tokenizer)
    extractor = JukeboxFeatureExtractor(sampling_rate=RATE, hop_length=16)
    processor = JukeboxProcessor(extractor, tokenizer, config.sample_length)
    seen = set()
    for song, row in enumerate(songs):
        for start in range(0, len(row["audio_codes_1"]) - 31, 7):
            window = windows.window(song, start)
            expected = processor(
                row["lyrics"],
                artist=row["artist"],
                genre=row["genre"],
                total_seconds=row["num_samples"] / RATE,
                offset_seconds=start * 16 / RATE,
            )
            for name, values in expected.items():
                assert torch.equal(window[name], values[0]), name
            seen.add(tokenizer.decode(window["lyric_ids"][window["lyric_ids"] > 0]))
    assert len(seen) > 5


def test_songs_outside_the_models_range_are_left_out(caplog):
    tokenizer, config = _labelled()
    config.min_duration, config.max_duration = 0.3, 0.45
    with caplog.at_level(logging.WARNING):
        windows = CodeWindows(_labelled_songs((100, 70, 130)), config, tokenizer)
    assert [record.getMessage()[:6] for record in caplog.records] == ["Song 1", "Song 2"]
    assert windows._total_lengths[:] == [1603]
    with pytest.raises(ValueError, match="None of the 3 songs"):
        CodeWindows(coded_songs((30, 20, 10)), JukeboxPriorConfig(**PRIOR))


def test_a_length_that_fp32_rounds_up_to_the_longest_is_left_out():
    tokenizer, config = _labelled()
    songs = _labelled_songs().remove_columns("num_samples").add_column("num_samples", [2**25 - 1, 2**24, 2**24])
    config.max_duration = 2**25 / RATE
    windows = CodeWindows(songs, config, tokenizer)
    assert windows._total_lengths[:] == [2**24, 2**24]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_artists": 2}, "artists has ids up to 2, but the model has num_artists=2"),
        ({"num_genres": 2}, "genres has ids up to 2, but the model has num_genres=2"),
        ({"lyric_vocab_size": 20}, "lyric_vocab_size=20"),
        ({"vocab_size": 8}, "audio_codes_1 holds 15, but the prior has codes up to 7"),
        ({"level": 0}, "no column audio_codes_0"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(settings, message):
    tokenizer, config = _labelled()
    for name, value in settings.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=message):
        CodeWindows(_labelled_songs(), config, tokenizer)


def test_labels_that_are_missing_are_refused():
    tokenizer, config = _labelled()
    with pytest.raises(ValueError, match="no column artist"):
        CodeWindows(coded_songs(), config, tokenizer)
    with pytest.raises(ValueError, match="give its tokenizer"):
        CodeWindows(_labelled_songs(), config)
    two = JukeboxTokenizer.from_labels(["A"], ["B"], versions=["v2"], max_genres=2)
    with pytest.raises(ValueError, match="max_genres=2, but the model 1"):
        CodeWindows(_labelled_songs(), config, two)
