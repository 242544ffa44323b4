"""The released vocabularies: read from the original's id lists, which are downloaded and never kept here."""

import hashlib
import os

import pytest
from huggingface_hub import constants
from test_download import Server
from test_processing import label_row, read_row
from test_tokenization import LABEL_ROWS, LYRICS

from jukebox_hf import JukeboxFeatureExtractor
from jukebox_hf.conversion import vocabularies
from jukebox_hf.conversion.vocabularies import ID_LISTS, IDS_URL, official_tokenizer, official_vocabulary, read_id_list
from jukebox_hf.processing_jukebox import JukeboxProcessor

LABEL_IDS = os.environ.get("JUKEBOX_LABEL_IDS")
needs_the_lists = [
    pytest.mark.official,
    pytest.mark.skipif(
        LABEL_IDS is None,
        reason=f"needs the released vocabularies: fetch {', '.join(ID_LISTS)} from {IDS_URL}, then set "
        "JUKEBOX_LABEL_IDS to their folder",
    ),
]

CONTENTS = {
    "v2_artist_ids.txt": "unknown;0\nvarious;0\n;0\nvela;1\nsaltmarsh;2\n",
    "v2_genre_ids.txt": "unknown;0\nfolk;1\n",
    "v3_artist_ids.txt": "Márta Körös;1\nvela;2\nVela;3\nhalf; half;4\nnext\x85line ;5\nunknown;0\n",
    "v3_genre_ids.txt": "chamber folk;1\nunknown;0\n",
}


@pytest.fixture
def lists(tmp_path, monkeypatch):
    """A folder of small lists that pass for the official ones."""
    folder = tmp_path / "lists"
    folder.mkdir()
    for name, content in CONTENTS.items():
        (folder / name).write_text(content, encoding="utf-8")
        monkeypatch.setitem(ID_LISTS, name, hashlib.sha256(content.encode()).hexdigest())
    return folder


def test_vocabularies_are_read_from_a_folder(lists):
    assert official_vocabulary("v2", lists) == (
        {"unknown": 0, "various": 0, "": 0, "vela": 1, "saltmarsh": 2},
        {"unknown": 0, "folk": 1},
    )
    assert official_vocabulary("v3", str(lists)) == (
        {"márta körös": 1, "vela": 3, "half; half": 4, "next\x85line ": 5, "unknown": 0},
        {"chamber folk": 1, "unknown": 0},
    )


def test_the_tokenizer_holds_what_its_priors_use(lists):
    tokenizer = official_tokenizer(["v2", "v2", "v3"], max_genres=4, num_lyric_tokens=384, folder=lists)
    assert (tokenizer.versions, tokenizer.max_genres, tokenizer.num_lyric_tokens) == (["v2", "v2", "v3"], 4, 384)
    for version in ("v2", "v3"):
        assert (tokenizer.artists[version], tokenizer.genres[version]) == official_vocabulary(version, lists)
    assert tokenizer.lyrics == LYRICS
    assert list(official_tokenizer(["v3"], folder=lists).artists) == ["v3"]


def test_lists_are_downloaded_once_into_the_cache(monkeypatch, tmp_path):
    content = b"unknown;0\nfolk;1\n"
    server = Server(content)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(vocabularies, "IDS_URL", server.url)
    for name in ("v2_artist_ids.txt", "v2_genre_ids.txt"):
        monkeypatch.setitem(ID_LISTS, name, hashlib.sha256(content).hexdigest())
    try:
        for _ in range(2):
            assert official_vocabulary("v2") == ({"unknown": 0, "folk": 1},) * 2
        assert server.served == 2 * len(content)
        assert (tmp_path / "jukebox-hf" / "v2_genre_ids.txt").read_bytes() == content
        # Another file than the official one.
        with pytest.raises(ValueError, match="has the sha256"):
            official_vocabulary("v3")
    finally:
        server.close()


def test_a_list_that_is_not_the_official_one_is_refused(lists):
    with (lists / "v2_genre_ids.txt").open("a") as file:
        file.write("bebop;2\n")
    with pytest.raises(ValueError, match=r"v2_genre_ids.txt has the sha256 \w+ and not \w+: fetch it again"):
        official_vocabulary("v2", lists)


def test_a_missing_list_is_refused_with_its_url(lists):
    (lists / "v3_artist_ids.txt").unlink()
    with pytest.raises(ValueError, match=f"no v3_artist_ids.txt in .*: fetch it from {IDS_URL}/v3_artist_ids.txt"):
        official_vocabulary("v3", lists)


@pytest.mark.parametrize("version", ["v4", "v2_artist"])
def test_an_unknown_version_is_refused(version):
    with pytest.raises(ValueError, match=f"version='{version}'.*v2 and v3"):
        official_vocabulary(version)


@pytest.mark.parametrize("line", ["pop", "pop;", "pop;x", "pop;-1", "pop 14"])
def test_a_line_without_an_id_is_refused(tmp_path, line):
    path = tmp_path / "ids.txt"
    path.write_text(f"rock;8\n{line}\n")
    with pytest.raises(ValueError, match=f"Line 2 of .*ids.txt is '{line}'"):
        read_id_list(path)


class TestReleasedVocabularies:
    pytestmark = needs_the_lists

    @pytest.mark.parametrize("row", LABEL_ROWS)
    def test_label_rows_equal_the_originals(self, row):
        tokenizer = official_tokenizer([row["version"]], row["genre_slots"], row["n_tokens"], LABEL_IDS)
        processor = JukeboxProcessor(JukeboxFeatureExtractor(), tokenizer, row["sample_length"])
        inputs = read_row(processor, row)
        assert label_row(inputs, row["sample_length"]).tolist() == [row["y"]]
        labels = (inputs["artist_ids"], inputs["genre_ids"], inputs.get("lyric_ids"))
        assert tokenizer.describe(*labels) == [row["described"]]

    @pytest.mark.parametrize(("version", "artists", "genres"), [("v2", 4109, 120), ("v3", 7898, 604)])
    def test_ids_fit_the_priors_tables(self, version, artists, genres):
        # v2's table has 4111 rows, one for each line of its list, but three names share id 0.
        for vocabulary, size in zip(official_vocabulary(version, LABEL_IDS), (artists, genres)):
            assert min(vocabulary.values()) == 0 and max(vocabulary.values()) == size - 1
