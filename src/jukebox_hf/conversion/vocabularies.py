"""The artists and genres that OpenAI's priors were trained with; the lists belong to the weights and are not ours."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants

from ..tokenization_jukebox import LABEL_VERSIONS, JukeboxTokenizer
from .download import download, file_sha256

IDS_URL = "https://raw.githubusercontent.com/openai/jukebox/08efbbc1d4ed1a3cef96e08a931944c8b4d63bb3/jukebox/data/ids"
ID_LISTS = {
    "v2_artist_ids.txt": "fce2ecc0c7b00838cf8cc90273609c5460fa1ec8d3211ce9f6546ed792feb001",
    "v2_genre_ids.txt": "04d7c5e5f0002c74789ee2a72a1e33f11057eb6c183ed0cf8f4b140164197e48",
    "v3_artist_ids.txt": "85ab98ca035945a917ec3d3e1f06bcd938767196281cfb8caecf058872a9e9ed",
    "v3_genre_ids.txt": "f85f72dca1e6052da129041bb927e29eb143e5f1450951006565f4a8af6f31cb",
}


def official_tokenizer(
    versions: Sequence[str], max_genres: int = 5, num_lyric_tokens: int = 0, folder: str | Path | None = None
) -> JukeboxTokenizer:
    """Makes the tokenizer of released priors.

    Args:
        versions, max_genres, num_lyric_tokens: as in [`JukeboxTokenizer`].
        folder: as in [`official_vocabulary`].
    """
    vocabularies = {version: official_vocabulary(version, folder) for version in dict.fromkeys(versions)}
    return JukeboxTokenizer(
        {version: artists for version, (artists, _) in vocabularies.items()},
        {version: genres for version, (_, genres) in vocabularies.items()},
        {version: LABEL_VERSIONS[version].lyric_characters for version in vocabularies},
        versions=versions,
        max_genres=max_genres,
        num_lyric_tokens=num_lyric_tokens,
    )


def official_vocabulary(version: str, folder: str | Path | None = None) -> tuple[dict[str, int], dict[str, int]]:
    """Reads the ids of the artists and genres of a label version.

    Args:
        version: `"v2"`, of both upsamplers, 5b and 5b_lyrics, or `"v3"`, of 1b_lyrics.
        folder: where the original's id lists lie; without it they are downloaded once, to the cache of Hugging Face.

    Returns:
        From names to ids, of artists and of genres.

    Raises:
        ValueError: an unknown version, or a file in `folder` that is missing or not the official one.
        ConnectionError: the download failed.
    """
    if version not in LABEL_VERSIONS:
        raise ValueError(f"version={version!r}: the official label versions are {' and '.join(LABEL_VERSIONS)}.")
    artists, genres = (_id_list(f"{version}_{kind}_ids.txt", folder) for kind in ("artist", "genre"))
    return read_id_list(artists), read_id_list(genres)


def read_id_list(path: Path) -> dict[str, int]:
    """Reads a list of the original: a line `name;id` for each name. Of a name's several ids the last one counts.

    Raises:
        ValueError: a line that is not of this form.
    """
    ids = {}
    # Names may hold what splitlines() takes for the end of a line.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        name, separator, index = line.rpartition(";")
        if separator and index.isdecimal():
            ids[name.lower()] = int(index)
        elif line:
            raise ValueError(f"Line {number} of {path} is {line!r}: it should be a name and its id, as in 'pop;14'.")
    return ids


def _id_list(name: str, folder: str | Path | None) -> Path:
    if folder is None:
        return download(f"{IDS_URL}/{name}", Path(constants.HF_HOME, "jukebox-hf", name), sha256=ID_LISTS[name])
    path = Path(folder, name)
    if not path.is_file():
        raise ValueError(f"There is no {name} in {folder}: fetch it from {IDS_URL}/{name}.")
    if (sha256 := file_sha256(path)) != ID_LISTS[name]:
        raise ValueError(
            f"{path} has the sha256 {sha256} and not {ID_LISTS[name]}: fetch it again from {IDS_URL}/{name}."
        )
    return path
