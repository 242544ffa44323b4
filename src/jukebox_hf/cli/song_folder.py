"""What `jukebox-hf generate`, `continue` and `upsample` keep in a folder: what was asked for, and the codes."""

import json
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..song_state import STATE_FILE

SONG_FILE = "song.json"
# What may change when the same song is asked for again.
OF_THE_RUN = ("format", "picture", "page", "device", "low_memory")
# What a song made from another one has in common with it.
OF_THE_SOURCE = (
    "model", "dtype", "artist", "genre", "lyrics", "total_seconds", "offset_seconds", "temperature", "top_k", "top_p",
)  # fmt: skip


@dataclass(frozen=True)
class Song:
    """What a command was asked for, as `song.json` has it; None is for what it decides itself.

    Args:
        model: a repository, or a folder's whole path.
        seed: of the first of `count` songs.
        prompt: the whole path of the audio that they start with.
        source: the whole path of the song folder or codes that they go on from, or are drawn from if `is_upsampling`.
    """

    model: str
    dtype: str | None = None
    artist: str | None = None
    genre: str | None = None
    lyrics: str | None = None
    total_seconds: float | None = None
    offset_seconds: float = 0.0
    seconds: float | None = None
    seed: int | None = None
    count: int = 1
    level: int = 0
    prompt: str | None = None
    prompt_seconds: float | None = None
    source: str | None = None
    is_upsampling: bool = False
    temperature: list[float] | None = None
    top_k: int | None = None
    top_p: float | None = None
    batch_size: int | None = None
    extend_short: bool = False
    format: str = "wav"
    picture: bool = False
    page: bool = False
    device: str | None = None
    low_memory: bool = False


def read_song(folder: Path) -> Song | None:
    """Reads what the song in a folder was asked to be, or None when there is none.

    Raises:
        ValueError: a `song.json` that is none of ours.
    """
    path = folder / SONG_FILE
    if not path.is_file():
        return None
    try:
        return Song(**json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} does not say what the song is ({error}): use another folder.") from error


def same_song(song: Song, folder: Path) -> Song:
    """Gives the song with the seed of the same one that the folder holds already.

    Raises:
        ValueError: the folder holds another song, or one that no command has begun.
    """
    saved = read_song(folder)
    if saved is None:
        if (folder / STATE_FILE).exists():
            raise ValueError(f"{folder} holds a song that has no {SONG_FILE}: choose another --output.")
        return song
    if song.seed is None:
        song = replace(song, seed=saved.seed)
    for field in fields(Song):
        old, new = getattr(saved, field.name), getattr(song, field.name)
        if old != new and field.name not in OF_THE_RUN:
            raise ValueError(
                f"{folder} holds a song with {field.name}={_short(old)}, not {_short(new)}: choose another --output, "
                f"or go on with that song by `{resume_command(folder)}`."
            )
    return song


@contextmanager
def kept_song(folder: Path, song: Song, has_begun: Callable[[], bool]) -> Iterator[None]:
    """Writes `song.json` for what follows; if that refuses the song before it `has_begun`, the folder is as before."""
    path = folder / SONG_FILE
    before = path.read_bytes() if path.exists() else None
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(asdict(song), indent=2, ensure_ascii=False).encode())
    try:
        yield
    except ValueError:
        if before is not None:
            write_whole(path, before)
        elif not has_begun():
            # The state goes first, lest it stays without its song.
            (folder / STATE_FILE).unlink(missing_ok=True)
            path.unlink()
        raise


def resume_command(folder: Path) -> str:
    """Gives the command that goes on with the song in a folder."""
    return f"jukebox-hf generate --resume {shlex.quote(str(folder))}"


def read_source(path: Path) -> tuple[dict[int, torch.Tensor], dict[str, Any]]:
    """Reads the codes of a finished song folder, or of one file, and what a song made of them takes over.

    Returns:
        For each level the codes `(songs, frames)`; values of [`Song`] by name, none for a file outside a song folder.

    Raises:
        ValueError: no such path, a folder without a finished song, or a file without codes.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist: give a song folder, or a file of codes.")
    files = [path]
    if path.is_dir():
        files = list(takewhile(Path.exists, (path / f"song-{number}.safetensors" for number in count())))
        song = read_song(path)
        if not files or (song is not None and len(files) < song.count):
            raise ValueError(
                f"{path} holds no finished song: finish it with `{resume_command(path)}`, or give a file of codes."
            )
    songs = [read_codes(file) for file in files]
    if any(codes.ndim != 2 or len(codes) != 1 for song in songs for codes in song.values()):
        raise ValueError(f"{path} holds codes that are not (1, frames): give a file of encode, or a song folder.")
    song = read_song(path if path.is_dir() else path.parent)
    inherited = {} if song is None else {name: getattr(song, name) for name in OF_THE_SOURCE}
    return {level: torch.cat([codes[level] for codes in songs]) for level in songs[0]}, inherited


def read_codes(path: Path) -> dict[int, torch.Tensor]:
    """Reads the codes of each level that a file has.

    Raises:
        ValueError: no safetensors file, or one without codes.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error
    names = [name for name in tensors if name.startswith("codes.")]
    if not names:
        raise ValueError(
            f"{path} holds no tensor named codes.LEVEL: give a file of jukebox-hf encode, or a song folder."
        )
    return {int(name.removeprefix("codes.")): tensors[name].long() for name in names}


def write_codes(path: Path, codes: dict[int, torch.Tensor], metadata: dict[str, str], dtype: torch.dtype):
    """Writes one song's codes `(1, frames)` of some levels, as `jukebox-hf encode` does."""
    write_whole(path, save({f"codes.{level}": values.to(dtype) for level, values in codes.items()}, metadata))


def write_whole(path: Path, content: bytes):
    """Writes a file that appears under its name only when it is whole and on the disk."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
