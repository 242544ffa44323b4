"""Windows of codes that were computed once, with their labels, as the priors are trained on them."""

import os
from pathlib import Path

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from datasets.fingerprint import Hasher
from transformers.utils import logging

from ..audio_files import audio_file_length
from ..codes import JukeboxCodeExtractor
from ..configuration_jukebox import JukeboxPriorConfig, JukeboxVQVAEConfig
from ..lyric_windows import lyric_window_indices, take_lyric_windows
from ..tokenization_jukebox import JukeboxTokenizer
from .timeline import SeededDataset, Timeline

logger = logging.get_logger(__name__)


def encode_music(
    music: datasets.Dataset, vqvae: str | os.PathLike, levels: list[int], num_proc: int | None = None
) -> datasets.Dataset:
    """Adds to rows of [`read_music`] the codes of each level, `audio_codes_{level}`, and the song's `num_samples`.

    Each song is encoded once, whole: `datasets` keeps each level's codes in its cache, where later runs find them as
    long as the files and the VQ-VAE are the same. Songs that cannot be encoded are left out with a warning.

    Args:
        music: rows with a column `audio` of paths.
        vqvae: a repository or folder of the VQ-VAE.
        levels (`list[int]`): which codes to compute.
        num_proc (`int`, *optional*): processes, each with one thread.

    Raises:
        ValueError: no song that could be encoded.
    """
    rate = JukeboxVQVAEConfig.from_pretrained(vqvae).sampling_rate
    # Each level apart: the priors of two levels share the codes of the one between them.
    parts = [_encode_level(music, vqvae, level, num_proc) for level in levels]
    errors = [next(filter(None, row), None) for row in zip(*(part["error"] for part in parts))]
    for path, error in zip(music["audio"], errors):
        if error is not None:
            logger.warning(f"{path} is left out: {error}")
    good = [row for row, error in enumerate(errors) if error is None]
    if not good:
        raise ValueError(f"None of the {len(music)} songs could be encoded: the warnings before say why.")
    # Labels are not part of what is kept: they may change without a new encoding.
    encoded = datasets.concatenate_datasets([music, *(part.remove_columns("error") for part in parts)], axis=1)
    encoded = encoded.select(good) if len(good) < len(encoded) else encoded
    return encoded.add_column("num_samples", [audio_file_length(path, rate) for path in encoded["audio"]])


def _encode_level(
    music: datasets.Dataset, vqvae: str | os.PathLike, level: int, num_proc: int | None
) -> datasets.Dataset:
    extractor = JukeboxCodeExtractor.from_pretrained(vqvae, levels=[level])
    return music.select_columns(["audio"]).map(
        extractor,
        batched=True,
        batch_size=8,
        remove_columns=["audio"],
        num_proc=num_proc,
        cache_file_name=_codes_file(music["audio"], extractor),
        desc=f"Encoding level {level}",
    )


def _codes_file(paths: list[str], extractor: JukeboxCodeExtractor) -> str:
    """Where the codes of these files are kept; `datasets` names only results for datasets that lie on the disk."""
    files = []
    for path in paths:
        # A missing file is told of by the extractor.
        stat = os.stat(path) if os.path.exists(path) else None
        files.append((path, stat and (stat.st_size, stat.st_mtime_ns)))
    folder = Path(datasets.config.HF_DATASETS_CACHE, "jukebox_hf")
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder / f"codes-{Hasher.hash((files, extractor))}.arrow")


class CodeWindows(SeededDataset):
    """Windows of one context of songs' codes, in the form in which [`JukeboxPriorModel`] takes them.

    The original cuts audio anywhere and encodes each crop anew; here songs are encoded once and windows start at whole
    codes (for an upsampler, of the level above), the only difference. Songs are laid end to end and cut as
    [`Timeline`] says; what an item holds follows from the seed, the epoch and its index alone.

    Songs shorter than a context, or outside the durations that the model has bins for, are left out with a warning.

    Args:
        songs (`datasets.Dataset`): rows of [`encode_music`], with the columns `artist`, `genre` and `lyrics`.
        config ([`JukeboxPriorConfig`]): of the prior; its level says which codes are read.
        tokenizer ([`JukeboxTokenizer`], *optional*): of the prior; needed for one with labels.
        random_shift (`bool`): move each window by up to half a context.
        seed (`int`): of that.

    Raises:
        ValueError: columns that are missing, a vocabulary that does not fit the model, codes that the model has not, or
            no song that is long enough.
    """

    def __init__(
        self,
        songs: datasets.Dataset,
        config: JukeboxPriorConfig,
        tokenizer: JukeboxTokenizer | None = None,
        random_shift: bool = True,
        seed: int = 0,
    ):
        super().__init__(seed)
        self.config = config
        self.random_shift = random_shift
        conditioner = config.conditioner_config
        self._factor = 1 if conditioner is None else conditioner.upsampling_factor
        self._columns = [f"audio_codes_{level}" for level in range(config.level, config.level + 1 + (self._factor > 1))]
        needed = [*self._columns, "num_samples"]
        needed += ["artist", "genre"] if config.num_artists else []
        needed += ["lyrics"] if config.num_lyric_tokens else []
        if missing := [name for name in needed if name not in songs.column_names]:
            raise ValueError(
                f"The songs have no column {missing[0]}: read_music(folder) makes those of the labels, and "
                "encode_music(music, vqvae, levels) the others."
            )
        check_vocabulary(config, tokenizer)
        songs, lengths = self._usable(songs)
        self._codes = songs.select_columns(self._columns).with_format("numpy")
        self._total_lengths = songs["num_samples"]
        self._labels = _label_ids(songs, tokenizer) if config.num_artists else {}
        self._lyrics = _lyric_ids(songs, tokenizer) if config.num_lyric_tokens else None
        self.timeline = Timeline(lengths, config.context_length // self._factor)

    def __len__(self) -> int:
        return len(self.timeline)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rng = self.generator(index) if self.random_shift else None
        place = self.timeline.place(index, rng)
        return self.window(place.song, place.start * self._factor)

    def window(self, song: int, start: int) -> dict[str, torch.Tensor]:
        """Gives the window of a song, counted among those that are used, that starts at one of its codes."""
        config, columns = self.config, self._codes[song]
        codes = torch.from_numpy(columns[self._columns[0]][start : start + config.context_length].astype(np.int64))
        item = {"input_ids": codes, "labels": codes.clone()}
        if self._factor > 1:
            upper = columns[self._columns[1]][start // self._factor :][: config.num_upper_codes]
            item["upper_codes"] = torch.from_numpy(upper.astype(np.int64))
        total_length, offset = self._total_lengths[song], start * config.hop_length
        item |= {name: torch.tensor(ids[song]) for name, ids in self._labels.items()}
        if config.num_time_bins:
            item |= {"total_length": torch.tensor(total_length), "offset": torch.tensor(offset)}
        if self._lyrics is not None:
            lyrics = self._lyrics[song]
            indices = lyric_window_indices(
                len(lyrics), total_length, offset, config.sample_length, config.num_lyric_tokens, torch.float64
            )
            item["lyric_ids"] = take_lyric_windows([lyrics], indices)[0]
        return item

    def _usable(self, songs: datasets.Dataset) -> tuple[datasets.Dataset, list[int]]:
        """The songs of which windows can be taken, and how many steps of the level above, or codes, each has."""
        config = self.config
        counts = [self._count_codes(songs, name) for name in self._columns]
        steps = [min(row[0] // self._factor, row[-1]) for row in zip(*counts)]
        rate, least = config.sampling_rate, config.context_length // self._factor
        kept = []
        for row, (length, samples) in enumerate(zip(steps, songs["num_samples"])):
            if length < least:
                reason = f"shorter than a context, {config.sample_length / rate:.2f} s"
            # A length counts in fp32, as in the model.
            elif config.num_time_bins and not (
                config.min_duration * rate <= float(np.float32(samples)) < config.max_duration * rate
            ):
                reason = f"not within the model's {config.min_duration:g} to {config.max_duration:g} s"
            else:
                kept.append(row)
                continue
            logger.warning(f"Song {row} ({samples / rate:.2f} s) is left out, as it is {reason}.")
        if not kept:
            raise ValueError(
                f"None of the {len(steps)} songs can be used: the prior needs {config.sample_length / rate:.2f} s or "
                f"more" + (f", {config.min_duration:g} to {config.max_duration:g} s." if config.num_time_bins else ".")
            )
        return songs.select(kept), [steps[row] for row in kept]

    def _count_codes(self, songs: datasets.Dataset, column: str) -> list[int]:
        codes = songs.select_columns([column]).with_format("arrow")[:][column]
        last = pc.max(pc.list_flatten(codes)).as_py()
        if last is not None and last >= self.config.vocab_size:
            raise ValueError(
                f"{column} holds {last}, but the prior has codes up to {self.config.vocab_size - 1}: encode the music "
                "with the VQ-VAE that the prior belongs to."
            )
        return pc.list_value_length(codes).to_pylist()


def check_vocabulary(config: JukeboxPriorConfig, tokenizer: JukeboxTokenizer | None):
    """Refuses a tokenizer whose ids the model has no rows for.

    Raises:
        ValueError: it does not fit, or there is none for a model with labels.
    """
    if not config.num_artists:
        return
    if tokenizer is None:
        raise ValueError(f"This prior has labels (num_artists={config.num_artists}): give its tokenizer.")
    version = tokenizer.versions[-1]
    for kind, vocabulary, size in (
        ("artists", tokenizer.artists[version], config.num_artists),
        ("genres", tokenizer.genres[version], config.num_genres),
    ):
        last = max(vocabulary.values())
        if last >= size:
            raise ValueError(
                f"The vocabulary of {kind} has ids up to {last}, but the model has num_{kind}={size}: take the "
                f"model's own tokenizer, or train a new model with num_{kind}={last + 1}."
            )
    if tokenizer.max_genres > config.max_genres:
        raise ValueError(
            f"The tokenizer has max_genres={tokenizer.max_genres}, but the model {config.max_genres}: make them equal."
        )
    if config.num_lyric_tokens and tokenizer.vocab_size > config.lyric_vocab_size:
        raise ValueError(
            f"The vocabulary of lyrics has {tokenizer.vocab_size} ids, but the model lyric_vocab_size="
            f"{config.lyric_vocab_size}: take the model's own tokenizer."
        )


def _label_ids(songs: datasets.Dataset, tokenizer: JukeboxTokenizer) -> dict[str, list]:
    artists = {name: tokenizer.artist_id(name) for name in dict.fromkeys(songs["artist"])}
    genres = {name: tokenizer.genre_ids(name) for name in dict.fromkeys(songs["genre"])}
    return {
        "artist_ids": [artists[name] for name in songs["artist"]],
        "genre_ids": [genres[name] for name in songs["genre"]],
    }


def _lyric_ids(songs: datasets.Dataset, tokenizer: JukeboxTokenizer) -> list[list[int]]:
    return tokenizer([lyrics or "" for lyrics in songs["lyrics"]])["input_ids"]


__all__ = ["CodeWindows", "check_vocabulary", "encode_music"]
