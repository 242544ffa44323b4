"""The tokenizer: the original's labels, row by row, and what becomes of names, lyrics and one's own vocabularies."""

import copy
import json
import logging
import pickle
import string

import numpy as np
import pytest
import torch
from conftest import GOLDENS, golden
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from jukebox_hf.lyric_windows import lyric_window_indices
from jukebox_hf.tokenization_jukebox import LABEL_VERSIONS, JukeboxTokenizer
from jukebox_hf.transliteration import transliterate

LABEL_ROWS = json.loads((GOLDENS / "labels.json").read_text())
LYRIC_CASES = ("prior-5b-lyrics-style", "prior-1b-lyrics-style", "prior-separate-encoder-style")

# What the golden rows say about the released vocabularies.
ARTISTS = {
    "v2": {"unknown": 0, "various": 0, "": 0, "alan_jackson": 145, "joe_bonamassa": 454, "c_line_dion": 557}
    | {"frank_sinatra": 121},
    "v3": {"unknown": 0, "alan jackson": 6785, "joe bonamassa": 6332, "céline dion": 5220, "frank sinatra": 3085},
}
GENRES = {
    "v2": {"unknown": 0, "classical": 1, "blues": 2, "rock": 8, "jazz": 9, "country": 11, "pop": 14},
    "v3": {"unknown": 0, "country": 507, "blues rock": 282, "pop": 497},
}
LYRICS = {version: rules.lyric_characters for version, rules in LABEL_VERSIONS.items()}


def make_tokenizer(*versions: str, **options) -> JukeboxTokenizer:
    return JukeboxTokenizer(ARTISTS, GENRES, LYRICS, versions=versions, **options)


@pytest.fixture
def tokenizer() -> JukeboxTokenizer:
    return make_tokenizer("v2")


@pytest.mark.parametrize("row", LABEL_ROWS)
def test_names_and_lyrics_get_the_originals_ids_and_back(row):
    tokenizer = make_tokenizer(row["version"], max_genres=row["genre_slots"], num_lyric_tokens=row["n_tokens"])
    artist, *genres = row["y"][3 : 4 + row["genre_slots"]]
    lyric_window = row["y"][4 + row["genre_slots"] :]
    assert tokenizer.artist_id(row["artist"]) == artist
    assert tokenizer.genre_ids(row["genre"]) == genres
    ids = tokenizer(row["lyrics"])["input_ids"]
    assert ids == row["full_tokens"]
    assert tokenizer.decode(ids) == row["clean_lyrics"]
    assert tokenizer.describe([artist], [genres], [lyric_window]) == [row["described"]]


# From tests/goldens/V4_HUB.md; 1b: the top and another level, 5b: the top.
@pytest.mark.parametrize(
    ("artist", "genre", "lyrics", "v3", "v2", "v3_lyrics", "v2_lyrics"),
    [
        ("Vela", "Country", "Hey now, (go)!", (8, [2]), (7, [3]), "8 31 51 76 40 41 49 64 76 72 33 41 73 67", None),
        ("The Paper Lanterns", "Blues Rock", "two\\lines", (1, [1]), (1, [1, 2]), "46 49 41 78 38 35 40 31 45", None),
        ("North.By.Noon", "Bebop", "a+b", (6, [5]), (5, [0]), "27 28", "27 70 28"),
        (
            "Márta Körös",
            "Folk",
            "café — it’s “ok”",
            (3, [0]),
            (0, [6]),
            "29 27 32 31 76 69 69 76 35 46 70 45 76 71 41 37 71",
            "29 27 32 31 77 69 69 77 35 46 71 45 77 72 41 37 72",
        ),
    ],
)
def test_more_names_and_lyrics(artist, genre, lyrics, v3, v2, v3_lyrics, v2_lyrics):
    def read(kind):
        names = json.loads((GOLDENS / "v4-hub-1b-lyrics-style" / f"{kind}.json").read_text())
        return {
            "v2": {name.removesuffix(".v2"): index for name, index in names.items() if name.endswith(".v2")},
            "v3": {name: index for name, index in names.items() if not name.endswith(".v2")},
        }

    tokenizer = JukeboxTokenizer(read("artists"), read("genres"), LYRICS, versions=["v2", "v3"])
    for version, (artist_id, genre_ids) in {"v2": v2, "v3": v3}.items():
        assert tokenizer.artist_id(artist, version) == artist_id
        assert tokenizer.genre_ids(genre, version) == genre_ids + [-1] * (5 - len(genre_ids))
    assert tokenizer(lyrics)["input_ids"] == [int(index) for index in v3_lyrics.split()]
    if v2_lyrics is not None:
        ids = JukeboxTokenizer(read("artists"), read("genres"), LYRICS, versions=["v2"])(lyrics)["input_ids"]
        assert ids == [int(index) for index in v2_lyrics.split()]


@pytest.mark.parametrize("case", LYRIC_CASES)
def test_moved_windows_show_the_originals_characters(case):
    tensors, settings = golden(case).tensors, golden(case).settings
    full, raw, moved = (tensors[f"labels.{name}"] for name in ("full_lyric_tokens", "raw", "y"))
    num_tokens = settings["hps"]["n_tokens"]
    offset = raw[:, 1] + settings["labels_start"] * settings["raw_to_tokens"]
    sample_length = settings["n_ctx"] * settings["raw_to_tokens"]
    indices = lyric_window_indices(full.shape[1], raw[:, 0], offset, sample_length, num_tokens)
    assert torch.equal(indices, tensors["labels.lyric_indices"])
    assert torch.equal(full.gather(1, indices), moved[:, -num_tokens:])


# Lyric windows


@pytest.mark.parametrize(
    ("num_characters", "total_length", "offset", "moved", "built"),
    # The last two show the order of the operations: any other gives the other character in fp32.
    [(3701, 8953441, 5990604, 2437, 2436), (2218, 23995908, 3857291, 149, 148), (3069, 12357493, 8825369, 2066, 2065)],
)
def test_a_window_is_computed_in_the_precision_asked_for(num_characters, total_length, offset, moved, built):
    window = (num_characters, total_length, offset, 1048576, 512)
    assert lyric_window_indices(*window)[0, 0] == moved
    assert lyric_window_indices(*window, torch.float64)[0, 0] == built


@settings(max_examples=300, deadline=None)
@given(
    num_characters=st.integers(0, 5000),
    total_length=st.integers(1, 600 * 44100),
    place=st.floats(0, 1, exclude_max=True),
    num_tokens=st.integers(1, 300).map(lambda half: 2 * half),
    precision=st.sampled_from([(np.float32, torch.float32), (np.float64, torch.float64)]),
)
def test_a_window_lies_around_its_middle_and_inside_the_lyrics(
    num_characters, total_length, place, num_tokens, precision
):
    offset, sample_length = int(place * total_length), 786432
    number, dtype = precision
    window = (num_characters, total_length, offset, sample_length, num_tokens)
    (indices,) = lyric_window_indices(*window, dtype).tolist()
    if num_characters < num_tokens:
        assert indices == [-1] * (num_tokens - num_characters) + list(range(num_characters))
        return
    middle = number(num_characters) * (number(offset) + number(sample_length / 2)) / number(total_length)
    half = num_tokens // 2
    middle = min(max(int(middle), half), num_characters - half)
    assert indices == list(range(middle - half, middle + half))


# Lyrics


@given(st.text(string.printable))
def test_lyrics_of_known_characters_survive(text):
    tokenizer = make_tokenizer("v2")
    known = "".join(character for character in text.replace("\\", "\n") if character in LYRICS["v2"])
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == known


@pytest.mark.parametrize("lyrics", ["", "%^&", "日本", "<unk>", "a<unk>b", "  two  spaces . \r\n", "don 't , no !"])
def test_nothing_is_special_and_nothing_is_tidied(tokenizer, lyrics):
    text = tokenizer.decode(tokenizer(lyrics)["input_ids"])
    expected = {"%^&": "", "日本": "Ri Ben ", "<unk>": "unk", "a<unk>b": "aunkb"}
    assert text == expected.get(lyrics, lyrics.replace("\r", ""))


def test_a_batch_of_lyrics_is_padded_on_the_left_with_0(tokenizer):
    batch = tokenizer(["ab", "", "abcd"], padding=True, return_tensors="pt")
    assert batch["input_ids"].tolist() == [[0, 0, 27, 28], [0, 0, 0, 0], [27, 28, 29, 30]]
    assert batch["attention_mask"].tolist() == [[0, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]]
    assert sorted(batch) == ["attention_mask", "input_ids"]
    assert tokenizer.decode(batch["input_ids"], skip_special_tokens=True) == ["ab", "", "abcd"]


@pytest.mark.parametrize(("version", "size"), [("v2", 80), ("v3", 79)])
def test_the_lyric_vocabulary_has_the_priors_size(version, size):
    tokenizer = make_tokenizer(version)
    assert len(tokenizer) == tokenizer.vocab_size == len(tokenizer.get_vocab()) == size
    assert tokenizer.pad_token_id == tokenizer.unk_token_id == 0
    assert tokenizer.convert_ids_to_tokens(range(1, size)) == list(LYRICS[version])


# What Unidecode 1.1.1 makes of them.
@pytest.mark.parametrize(
    ("text", "ascii"),
    [
        ("ÀÉîöÿ ÆŒß Łódź Þórr ﬁn", "AEioy AEOEss Lodz Thorr fin"),
        ("‘a’ “b” „c‟ «d» – — … ¿ ¡", '\'a\' "b" ,,c" <<d>> - -- ... ? !'),
        ("5 € £ ½ © ® ™ № −1", "5 EUR PS  1/2  (c) (r) (tm) No.  -1"),
        ("Съешь ещё этих Щук Єва", "S'esh' eshchio etikh Shchuk Ieva"),
        ("Καλημέρα", "Kalemera"),
        ("שלום חבר", "SHlvm KHbr"),
        ("你好，世界", "Ni Hao ,Shi Jie "),
        ("さくら ちょっと つき シーソー", "sakura chiyotsuto tsuki shiso"),
        ("사랑", "sarang"),
        ("𝓵𝓸𝓿𝓮 𝟙", "love 1"),
        ("⭐♥🎵\u2060", ""),
        ("e\u0301\u00a0x\u3000y\u2028z", "e x y\nz"),
        ("❤️", "[?]"),
    ],
)
def test_transliteration_equals_unidecode(text, ascii):
    assert transliterate(text) == ascii


@given(st.text())
def test_transliteration_gives_ascii_character_by_character(text):
    assert transliterate(text).isascii()
    assert transliterate(text) == "".join(map(transliterate, text))


# Names


def test_names_are_read_as_each_version_spells_them():
    tokenizer = make_tokenizer("v2", "v2", "v3")
    for spelling in ("Alan Jackson", "alan_jackson", "  ALAN...JACKSON!"):
        assert tokenizer.artist_id(spelling, "v2") == 145
    assert tokenizer.artist_id("ALAN JACKSON") == tokenizer.artist_id("alan jackson", "v3") == 6785
    assert tokenizer.genre_ids("Pop/Rock, Blues", "v2") == [14, 8, 2, -1, -1]
    assert tokenizer.genre_ids("Blues Rock") == [282, -1, -1, -1, -1]


@pytest.mark.parametrize("name", [None, ""])
def test_no_name_is_unknown_without_a_warning(tokenizer, caplog, name):
    with caplog.at_level(logging.WARNING):
        assert (tokenizer.artist_id(name), tokenizer.genre_ids(name)) == (0, [0, -1, -1, -1, -1])
    assert not caplog.records


def test_unknown_names_are_warned_about_with_the_nearest_ones(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        assert tokenizer.artist_id("Alan Jacksen") == 0
        assert tokenizer.genre_ids("Pop Rok") == [14, 0, -1, -1, -1]
        assert tokenizer.artist_id("qqq") == 0
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
    artist, genre, far = (record.getMessage() for record in caplog.records)
    assert "artist 'Alan Jacksen', read as 'alan_jacksen'," in artist and "v2" in artist
    assert artist.endswith("nearest names: 'alan_jackson'.")
    assert "genre 'Pop Rok', read as 'rok'," in genre and genre.endswith("nearest names: 'rock'.")
    assert far == "The artist 'qqq' is not in the vocabulary v2 and becomes unknown."


def test_only_names_that_can_be_typed_are_suggested(caplog):
    tokenizer = JukeboxTokenizer({"v2": {"unknown": 0, "boney_m_": 1, "boney": 2}}, GENRES, LYRICS)
    assert tokenizer.artist_id("Boney M.") == 0
    assert "'boney'." in caplog.text and "boney_m_" not in caplog.text


def test_too_many_words_are_refused(tokenizer):
    with pytest.raises(ValueError, match=r"'Pop Rock Jazz Blues Pop Rock' has 6 words, but there are 5.*leave out 1"):
        tokenizer.genre_ids("Pop Rock Jazz Blues Pop Rock")


def test_describe_takes_a_batch_of_one_level():
    tokenizer = make_tokenizer("v2", "v3")
    artist_ids, genre_ids = (
        torch.tensor([[0, 6785], [121, 0]]),
        torch.tensor([[[2, 8], [282, -1]], [[14, -1], [0, -1]]]),
    )
    assert tokenizer.describe(artist_ids[:, 1], genre_ids[:, 1]) == [
        {"artist": "alan jackson", "genre": "blues rock", "lyrics": ""},
        {"artist": "unknown", "genre": "unknown", "lyrics": ""},
    ]
    below = tokenizer.describe(artist_ids[:, 0], genre_ids[:, 0], version="v2")
    assert [song["artist"] for song in below] == ["_unknown_various", "frank_sinatra"]
    assert [song["genre"] for song in below] == ["blues_rock", "pop"]
    with pytest.raises(ValueError, match=r"artist_ids has the shape \(2, 2\).*one level's"):
        tokenizer.describe(artist_ids, genre_ids)


@pytest.mark.parametrize(("artist", "genre", "message"), [(7, 0, "No artist .* id 7.* 0 to 557"), (0, 3, "No genre")])
def test_ids_without_a_name_are_refused(tokenizer, artist, genre, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.describe([artist], [[genre]])


# Making, saving and loading


def same(tokenizer: JukeboxTokenizer, other: JukeboxTokenizer) -> bool:
    names = ("artists", "genres", "lyrics", "versions", "max_genres", "num_lyric_tokens")
    return all(getattr(tokenizer, name) == getattr(other, name) for name in names) and len(tokenizer) == len(other)


@pytest.mark.parametrize("versions", [("v2",), ("v3",), ("v2", "v2", "v3")])
def test_saving_and_loading(tmp_path, versions):
    tokenizer = make_tokenizer(*versions, max_genres=4, num_lyric_tokens=6)
    tokenizer.save_pretrained(tmp_path)
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), JukeboxTokenizer.from_pretrained(tmp_path)):
        assert type(loaded) is JukeboxTokenizer and same(tokenizer, loaded)
        assert loaded("a+b <unk>")["input_ids"] == tokenizer("a+b <unk>")["input_ids"]
        loaded.save_pretrained(tmp_path / "again")
    for name in JukeboxTokenizer.vocab_files_names.values():
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    # Only what the priors use is kept.
    assert list(json.loads((tmp_path / "artists.json").read_text())) == list(dict.fromkeys(versions))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda tokenizer: pickle.loads(pickle.dumps(tokenizer))])
def test_copies(duplicate):
    tokenizer = make_tokenizer("v2", "v3", num_lyric_tokens=6)
    other = duplicate(tokenizer)
    assert same(tokenizer, other) and other("a b")["input_ids"] == tokenizer("a b")["input_ids"]


def test_ones_own_labels(tmp_path, caplog):
    tokenizer = JukeboxTokenizer.from_labels(
        ["Björk", "Sigur Rós", "BJÖRK"], ["Post Rock", "Art Pop"], versions=["v2", "v3"], max_genres=2
    )
    assert tokenizer.artists == {
        "v2": {"unknown": 0, "bj_rk": 1, "sigur_r_s": 2},
        "v3": {"unknown": 0, "björk": 1, "sigur rós": 2},
    }
    assert tokenizer.genres == {
        "v2": {"unknown": 0, "post": 1, "rock": 2, "art": 3, "pop": 4},
        "v3": {"unknown": 0, "post rock": 1, "art pop": 2},
    }
    assert tokenizer.lyrics == LYRICS
    assert tokenizer.genre_ids("art rock", "v2") == [3, 2]
    tokenizer.save_pretrained(tmp_path)
    assert same(AutoTokenizer.from_pretrained(tmp_path), tokenizer) and not caplog.records


@pytest.mark.parametrize("characters", ["aäя ", ["a", "ä", "я", " "]])
def test_ones_own_characters_are_not_transliterated(tmp_path, characters):
    tokenizer = JukeboxTokenizer.from_labels(["me"], ["mine"], lyrics=characters)
    assert tokenizer("aá äя яb")["input_ids"] == [1, 1, 4, 2, 3, 4, 3]
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert len(loaded) == 5 and loaded.decode(loaded("я ä")["input_ids"]) == "я ä"


def test_a_v3_genre_is_one_name():
    tokenizer = JukeboxTokenizer.from_labels(["me"], ["drum_n_bass"], versions=["v3"], max_genres=1)
    assert tokenizer.genres == {"v3": {"unknown": 0, "drum_n_bass": 1}} and tokenizer.genre_ids("Drum_N_Bass") == [1]


def test_names_of_which_v2_leaves_nothing_are_refused():
    with pytest.raises(ValueError, match="The rules of v2 leave nothing of the name '王力宏'"):
        JukeboxTokenizer.from_labels(["Vela", "王力宏"], ["pop"])
    assert JukeboxTokenizer.from_labels(["王力宏"], ["pop"], versions=["v3"]).artist_id("王力宏") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_lyric_tokens=5), "num_lyric_tokens=5.*even"),
        (dict(num_lyric_tokens=-2), "num_lyric_tokens=-2"),
        (dict(max_genres=0), "max_genres=0"),
        (dict(versions=["v2", "v4"]), r"versions=\['v2', 'v4'\].*v2 or v3"),
        (dict(versions=[]), r"versions=\[\]"),
        (dict(versions=["v2", "v3"]), r"vocabulary of artists has no v3, only v2.*versions=\['v2', 'v3'\]"),
        (dict(lyrics_file={"v2": "aba"}), "lyric characters of v2, 'aba', are not distinct"),
        (dict(lyrics_file={"v2": ["a", "bc"]}), "not distinct characters"),
    ],
)
def test_bad_settings_are_refused(options, message):
    settings = dict(artists_file={"v2": {}}, genres_file={"v2": {}}, lyrics_file={"v2": "ab"}) | options
    with pytest.raises(ValueError, match=message):
        JukeboxTokenizer(**settings)


def test_labels_for_an_unknown_version_are_refused(tokenizer):
    with pytest.raises(ValueError, match=r"versions=\['v4'\]"):
        JukeboxTokenizer.from_labels(["me"], ["mine"], versions=["v4"])
    for ask in (tokenizer.artist_id, tokenizer.genre_ids):
        with pytest.raises(ValueError, match="version='v3': this tokenizer has v2"):
            ask("pop", "v3")


def test_a_folder_without_a_vocabulary_is_refused(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "genres.json").unlink()
    with pytest.raises(ValueError, match=r"There is no genres\.json"):
        JukeboxTokenizer.from_pretrained(tmp_path)
