"""Turns artists, genres and lyrics into the ids that Jukebox's priors read, and back."""

import difflib
import json
import os
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizer
from transformers.utils import logging

from .transliteration import transliterate
from .v4_layout import split_v4_vocabulary, translate_v4_tokenizer

logger = logging.get_logger(__name__)

UNKNOWN_ID = 0
EMPTY_SLOT = -1


@dataclass(frozen=True)
class LabelVersion:
    """How a version of the original's labels reads names, and which characters its lyrics have.

    Args:
        normalize: brings a name to the spelling of the vocabulary.
        genre_is_bag: a genre is a bag of words, each with an id of its own; otherwise it is one name.
        lyric_characters: their ids count from 1.
    """

    normalize: Callable[[str], str]
    genre_is_bag: bool
    lyric_characters: str

    def split_genre(self, genre: str) -> list[str]:
        genre = self.normalize(genre)
        return genre.split("_") if self.genre_is_bag else [genre]


def _underscored(name: str) -> str:
    return re.sub("[^a-z0-9]+", "_", name.lower()).strip("_")


_ALPHANUMERICS = string.ascii_uppercase + string.ascii_lowercase + string.digits

LABEL_VERSIONS = {
    "v2": LabelVersion(_underscored, True, _ALPHANUMERICS + ".,:;!?-+'\"()[] \t\n"),
    "v3": LabelVersion(str.lower, False, _ALPHANUMERICS + ".,:;!?-'\"()[] \t\n"),
}


class JukeboxTokenizer(PreTrainedTokenizer):
    r"""Turns lyrics into one id a character, and names of artists and genres into their ids.

    Calling it tokenizes whole lyrics: they are transliterated to ASCII, a backslash becomes a newline, and characters
    that are not in the vocabulary disappear. Id 0 is padding and unknown.

    Args:
        artists_file (`str` or mapping): a JSON file, or what it holds: for each label version, `"v2"` or `"v3"`, a
            mapping from names to ids. Several names may share an id.
        genres_file (`str` or mapping): the same for genres.
        lyrics_file (`str` or mapping): the same for the characters of lyrics: for each version a string or list of
            characters, whose ids count from 1.
        versions (`Sequence[str]`): the label version of each prior, from level 0 upwards; the last one's is that of
            the lyrics. It sets the rules. v2: names in lower case with `_` for all but letters and digits, and genres
            of several words. v3: names in lower case.
        max_genres (`int`): the number of genre slots; empty ones hold -1.
        num_lyric_tokens (`int`): how many characters the top prior reads at a time; 0 for a prior without lyrics.

    Raises:
        ValueError: a version that has no rules or no vocabulary, an odd number of lyric tokens, no genre slots, or
            lyric characters that are not distinct characters.
    """

    vocab_files_names = {"artists_file": "artists.json", "genres_file": "genres.json", "lyrics_file": "lyrics.json"}
    padding_side = "left"

    def __init__(
        self,
        artists_file: str | os.PathLike | Mapping[str, Mapping[str, int]],
        genres_file: str | os.PathLike | Mapping[str, Mapping[str, int]],
        lyrics_file: str | os.PathLike | Mapping[str, Sequence[str]],
        versions: Sequence[str] = ("v2",),
        max_genres: int = 5,
        num_lyric_tokens: int = 0,
        unk_token: str = "<unk>",
        **kwargs,
    ):
        self.versions = list(versions)
        _rules(self.versions)
        if max_genres < 1:
            raise ValueError(f"max_genres={max_genres}: a prior has at least one genre slot.")
        if num_lyric_tokens < 0 or num_lyric_tokens % 2:
            raise ValueError(
                f"num_lyric_tokens={num_lyric_tokens}: the window lies around a middle, so give an even number, or 0 "
                "for a prior without lyrics."
            )
        self.max_genres = max_genres
        self.num_lyric_tokens = num_lyric_tokens
        self.artists = self._read_vocabulary("artists", artists_file)
        self.genres = self._read_vocabulary("genres", genres_file)
        self.lyrics = self._read_vocabulary("lyrics", lyrics_file)
        for version, characters in self.lyrics.items():
            if len(set(characters)) != len(characters) or any(len(character) != 1 for character in characters):
                raise ValueError(f"The lyric characters of {version}, {characters!r}, are not distinct characters.")
        tokens = [str(unk_token), *self.lyrics[self.versions[-1]]]
        self._token_ids = {token: index for index, token in enumerate(tokens)}
        self._tokens = tokens
        super().__init__(
            versions=self.versions,
            max_genres=max_genres,
            num_lyric_tokens=num_lyric_tokens,
            unk_token=unk_token,
            # One id is both, and lyrics may well hold the characters of its name.
            **kwargs | {"pad_token": unk_token, "split_special_tokens": True},
        )

    @classmethod
    def convert_to_native_format(cls, **kwargs) -> dict:
        """Gives the arguments of the constructor for what a repository holds; transformers 4 had others."""
        return translate_v4_tokenizer(kwargs)

    @classmethod
    def from_labels(
        cls,
        artists: Iterable[str],
        genres: Iterable[str],
        lyrics: Sequence[str] | None = None,
        versions: Sequence[str] = ("v2",),
        **kwargs,
    ) -> "JukeboxTokenizer":
        """Makes a tokenizer of one's own names; ids count from 1 in the order given, and 0 is unknown.

        Args:
            artists: names, in any spelling; those that the version's rules make equal share an id.
            genres: names; under v2 each of their words gets an id.
            lyrics: characters, in place of the version's own.
            versions, kwargs: as in [`JukeboxTokenizer`]. Each version gets all names.

        Raises:
            ValueError: a name of which the version's rules leave nothing, or what [`JukeboxTokenizer`] refuses.
        """
        artists, genres = list(artists), list(genres)
        rules = _rules(versions)
        return cls(
            {
                version: _number({artist: [rule.normalize(artist)] for artist in artists}, version)
                for version, rule in rules.items()
            },
            {
                version: _number({genre: rule.split_genre(genre) for genre in genres}, version)
                for version, rule in rules.items()
            },
            {version: rule.lyric_characters if lyrics is None else lyrics for version, rule in rules.items()},
            versions=versions,
            **kwargs,
        )

    def artist_id(self, artist: str | None, version: str | None = None) -> int:
        """Finds the id of an artist under the rules of `version`, by default the top prior's; `None` is unknown.

        A name that is not in the vocabulary is unknown, too, with a warning that names the nearest ones.
        """
        version = self._version(version)
        if not artist:
            return UNKNOWN_ID
        return self._find("artist", artist, LABEL_VERSIONS[version].normalize(artist), self.artists[version], version)

    def genre_ids(self, genre: str | None, version: str | None = None) -> list[int]:
        """Finds the `max_genres` ids of a genre under the rules of `version`, by default the top prior's.

        Empty slots are -1. `None` is unknown, and so are, with a warning, names that are not in the vocabulary.

        Raises:
            ValueError: more words than slots, under v2.
        """
        version = self._version(version)
        names = LABEL_VERSIONS[version].split_genre(genre) if genre else []
        if len(names) > self.max_genres:
            raise ValueError(
                f"genre={genre!r} has {len(names)} words, but there are {self.max_genres} slots: leave out "
                f"{len(names) - self.max_genres}."
            )
        ids = [self._find("genre", genre, name, self.genres[version], version) for name in names] or [UNKNOWN_ID]
        return ids + [EMPTY_SLOT] * (self.max_genres - len(ids))

    def describe(
        self,
        artist_ids: torch.Tensor | Sequence[int],
        genre_ids: torch.Tensor | Sequence[Sequence[int]],
        lyric_ids: torch.Tensor | Sequence[Sequence[int]] | None = None,
        version: str | None = None,
    ) -> list[dict[str, str]]:
        """Names what ids stand for.

        Args:
            artist_ids: `(batch,)`. Of a batch for several levels, give one level's: `artist_ids[:, level]`.
            genre_ids: `(batch, slots)`.
            lyric_ids: `(batch, num_lyric_tokens)`, if there are any.
            version: the version of the ids, by default the top prior's.

        Returns:
            For each sample its `artist`, `genre` and `lyrics`. Names that share an id, and the words of a v2 genre,
            are joined by `_`.

        Raises:
            ValueError: an id without a name, or ids of several levels.
        """
        version = self._version(version)
        artist_ids, genre_ids = torch.as_tensor(artist_ids), torch.as_tensor(genre_ids)
        if artist_ids.ndim != 1 or genre_ids.ndim != 2:
            raise ValueError(
                f"artist_ids has the shape {tuple(artist_ids.shape)} and genre_ids {tuple(genre_ids.shape)}: give "
                "(batch,) and (batch, slots), one level's."
            )
        artists, genres = _names_by_id(self.artists[version]), _names_by_id(self.genres[version])
        lyrics = [""] * len(artist_ids) if lyric_ids is None else self.decode(lyric_ids, skip_special_tokens=True)
        return [
            {
                "artist": _name("artist", artist, artists, version),
                "genre": "_".join(_name("genre", genre, genres, version) for genre in slots if genre != EMPTY_SLOT),
                "lyrics": text,
            }
            for artist, slots, text in zip(artist_ids.tolist(), genre_ids.tolist(), lyrics)
        ]

    @property
    def vocab_size(self) -> int:
        """The number of lyric ids, 0 included."""
        return len(self._tokens)

    def get_vocab(self) -> dict[str, int]:
        """The ids of the lyric characters."""
        return dict(self._token_ids)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Writes `artists.json`, `genres.json` and `lyrics.json`, and returns their paths."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        paths = []
        for vocabulary, name in zip((self.artists, self.genres, self.lyrics), self.vocab_files_names.values()):
            path = Path(save_directory, prefix + name)
            path.write_text(json.dumps(vocabulary, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
            paths.append(str(path))
        return tuple(paths)

    def _read_vocabulary(self, kind: str, source: str | os.PathLike | Mapping | None) -> dict:
        if source is None:
            raise ValueError(f"There is no {kind}.json: a Jukebox tokenizer has one in its folder or repository.")
        if not isinstance(source, Mapping):
            source = split_v4_vocabulary(kind, json.loads(Path(source).read_text(encoding="utf-8")))
        missing = [version for version in self.versions if version not in source]
        if missing:
            raise ValueError(
                f"The vocabulary of {kind} has no {', '.join(missing)}, only {', '.join(source) or 'nothing'}: add it, "
                f"or change versions={self.versions}."
            )
        return {version: source[version] for version in dict.fromkeys(self.versions)}

    def _version(self, version: str | None) -> str:
        if version is None:
            return self.versions[-1]
        if version not in self.versions:
            raise ValueError(f"version={version!r}: this tokenizer has {', '.join(dict.fromkeys(self.versions))}.")
        return version

    def _find(self, kind: str, given: str, name: str, vocabulary: Mapping[str, int], version: str) -> int:
        if name in vocabulary:
            return vocabulary[name]
        # The released lists hold a few names that the rules never arrive at.
        normalize = LABEL_VERSIONS[version].normalize
        known = [candidate for candidate in vocabulary if candidate and normalize(candidate) == candidate]
        nearest = ", ".join(map(repr, difflib.get_close_matches(name, known)))
        reading = "" if name == given else f", read as {name!r},"
        logger.warning(
            f"The {kind} {given!r}{reading} is not in the vocabulary {version} and becomes unknown."
            + (f" The nearest names: {nearest}." if nearest else "")
        )
        return UNKNOWN_ID

    def _tokenize(self, text: str, **kwargs) -> list[str]:
        written = (character if character in self._token_ids else transliterate(character) for character in text)
        return [character for character in "".join(written).replace("\\", "\n") if character in self._token_ids]

    def _convert_token_to_id(self, token: str) -> int:
        return self._token_ids.get(token, UNKNOWN_ID)

    def _convert_id_to_token(self, index: int) -> str:
        return self._tokens[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Joins characters."""
        return "".join(tokens)


def _rules(versions: Sequence[str]) -> dict[str, LabelVersion]:
    if not versions or any(version not in LABEL_VERSIONS for version in versions):
        raise ValueError(
            f"versions={versions!r}: give a list with {' or '.join(LABEL_VERSIONS)} for each prior, from level 0 up."
        )
    return {version: LABEL_VERSIONS[version] for version in versions}


def _number(spellings: Mapping[str, Sequence[str]], version: str) -> dict[str, int]:
    for given, names in spellings.items():
        if "" in names:
            raise ValueError(f"The rules of {version} leave nothing of the name {given!r}: leave it out or rename it.")
    names = dict.fromkeys(["unknown", *(name for names in spellings.values() for name in names)])
    return {name: index for index, name in enumerate(names)}


def _names_by_id(vocabulary: Mapping[str, int]) -> dict[int, str]:
    names = {}
    for name, index in vocabulary.items():
        names.setdefault(index, []).append(name)
    return {index: "_".join(sorted(shared)) for index, shared in names.items()}


def _name(kind: str, index: int, names: Mapping[int, str], version: str) -> str:
    if index not in names:
        raise ValueError(f"No {kind} of the vocabulary {version} has the id {index}: its ids are 0 to {max(names)}.")
    return names[index]


__all__ = ["JukeboxTokenizer"]
