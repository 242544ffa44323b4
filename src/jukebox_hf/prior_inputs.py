"""Checks a prior's inputs and fills in what is not given; every refusal names the value and the way out."""

import math

import torch
from torch import Tensor

from .configuration_jukebox import JukeboxPriorConfig


def check_codes(config: JukeboxPriorConfig, codes: Tensor, name: str = "input_ids"):
    """Refuses what is not a window's codes `(batch, codes)`."""
    if not isinstance(codes, Tensor) or codes.ndim != 2 or codes.is_floating_point() or codes.dtype == torch.bool:
        given = f"{codes.dtype} {tuple(codes.shape)}" if isinstance(codes, Tensor) else type(codes).__name__
        raise ValueError(f"{name} is {given}: give codes as a tensor of integers (batch, codes).")
    if not codes.shape[0] or not codes.shape[1]:
        raise ValueError(f"{name} has the shape {tuple(codes.shape)}: give at least one code.")
    if codes.shape[1] > config.context_length:
        raise ValueError(
            f"{name} has {codes.shape[1]} codes, but this prior's context is {config.context_length}: cut it "
            "to windows."
        )
    _check_range(codes, config.vocab_size, name, "codes")


def check_upper_codes(config: JukeboxPriorConfig, batch_size: int, upper_codes: Tensor | None) -> Tensor | None:
    """Gives the codes of the level above `(batch, num_upper_codes)`, or none for a top prior."""
    if config.conditioner_config is None:
        if upper_codes is not None:
            raise ValueError(
                f"upper_codes was given, but this prior of level {config.level} is a top prior and reads none: drop "
                "it, or load the upsampler of a lower level."
            )
        return None
    count = config.num_upper_codes
    if upper_codes is None:
        raise ValueError(
            f"This prior of level {config.level} is an upsampler: give upper_codes, the {count} codes of level "
            f"{config.level + 1} in the same window."
        )
    check_codes(config, upper_codes, "upper_codes")
    if upper_codes.shape[1] != count:
        raise ValueError(
            f"upper_codes has {upper_codes.shape[1]} codes, but this upsampler reads the {count} of one whole context "
            f"({config.sample_length / config.sampling_rate:.2f} s): give just those of the window."
        )
    return _expand(upper_codes, batch_size, "upper_codes")


def check_labels(
    config: JukeboxPriorConfig,
    batch_size: int,
    artist_ids: Tensor | None,
    genre_ids: Tensor | None,
    total_length: Tensor | None,
    offset: Tensor | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gives artists `(batch,)`, genres `(batch, max_genres)`, song lengths and offsets `(batch,)`."""
    if not config.num_artists:
        for name, value in (("artist_ids", artist_ids), ("genre_ids", genre_ids)):
            if value is not None:
                raise ValueError(f"{name} was given, but this prior was trained without labels: drop it.")
        return None, None, None, None
    artist_ids = _one_each(artist_ids, batch_size, "artist_ids", default=0)
    _check_range(artist_ids, config.num_artists, "artist_ids", "artists")
    genre_ids = _genres(config, batch_size, genre_ids)
    if not config.num_time_bins:
        return artist_ids, genre_ids, None, None
    offset = _one_each(offset, batch_size, "offset", default=0)
    shortest = math.ceil(config.min_duration * config.sampling_rate)
    # A length counts in fp32, where the longest is the first that is too long.
    longest = math.ceil(config.max_duration * config.sampling_rate) - 2
    if total_length is None:
        total_length = (offset + config.sample_length).clamp(min=shortest, max=longest)
    total_length = _one_each(total_length, batch_size, "total_length")
    if not torch.compiler.is_compiling():
        _check_timing(config, total_length, offset)
    return artist_ids, genre_ids, total_length, offset


def check_lyrics(config: JukeboxPriorConfig, batch_size: int, lyric_ids: Tensor | None) -> Tensor | None:
    """Gives the lyrics' characters `(batch, num_lyric_tokens)`, or none for a model that reads none."""
    count = config.num_lyric_tokens
    if not count:
        if lyric_ids is not None:
            raise ValueError("lyric_ids was given, but this prior reads no lyrics: drop it, or load a lyrics model.")
        return None
    if lyric_ids is None:
        raise ValueError(
            f"This prior reads lyrics: give lyric_ids (batch, {count}), as JukeboxProcessor does, or zeros for an "
            "instrumental."
        )
    _check_ids(lyric_ids, "lyric_ids")
    if lyric_ids.ndim != 2 or lyric_ids.shape[1] != count:
        raise ValueError(
            f"lyric_ids has the shape {tuple(lyric_ids.shape)}: give the window's {count} characters (batch, {count})."
        )
    _check_range(lyric_ids, config.lyric_vocab_size, "lyric_ids", "characters")
    return _expand(lyric_ids.long(), batch_size, "lyric_ids")


def _genres(config: JukeboxPriorConfig, batch_size: int, genre_ids: Tensor | None) -> Tensor:
    if genre_ids is None:
        genre_ids = torch.zeros(batch_size, 1, dtype=torch.long)
    _check_ids(genre_ids, "genre_ids")
    if genre_ids.ndim == 1:
        genre_ids = genre_ids.unsqueeze(1)
    if genre_ids.ndim != 2 or genre_ids.shape[1] > config.max_genres:
        raise ValueError(
            f"genre_ids has the shape {tuple(genre_ids.shape)}: this prior takes (batch, up to {config.max_genres}) "
            "genres."
        )
    _check_range(genre_ids + 1, config.num_genres + 1, "genre_ids + 1", "genres + 1, with -1 for none")
    return _expand(genre_ids.long(), batch_size, "genre_ids")


def _check_timing(config: JukeboxPriorConfig, total_length: Tensor, offset: Tensor):
    rate, longest = config.sampling_rate, config.max_duration * config.sampling_rate
    for total, start in zip(total_length.tolist(), offset.tolist()):
        if not config.min_duration * rate <= torch.tensor(total, dtype=torch.float32).item() < longest:
            raise ValueError(
                f"total_length={total} samples ({total / rate:.2f} s) is outside the {config.min_duration:g} s to "
                f"less than {config.max_duration:g} s of the songs this prior was trained on: give the whole song's "
                "length, or the nearest in that range."
            )
        if not 0 <= start < total:
            raise ValueError(f"offset={start} samples does not lie in the song of {total}: give 0 to {total - 1}.")
        if start + config.sample_length > longest:
            raise ValueError(
                f"offset={start} samples ({start / rate:.2f} s) and the window's {config.sample_length / rate:.2f} s "
                f"end after the {config.max_duration:g} s this prior was trained for: start earlier."
            )


def _one_each(values: Tensor | None, batch_size: int, name: str, default: int | None = None) -> Tensor:
    if values is None:
        values = torch.full((batch_size,), default)
    if not isinstance(values, Tensor) or values.ndim != 1 or values.is_floating_point():
        given = f"{values.dtype} {tuple(values.shape)}" if isinstance(values, Tensor) else repr(values)
        raise ValueError(f"{name} is {given}: give a tensor of integers ({batch_size},), one a sample.")
    return _expand(values.long(), batch_size, name)


def _check_ids(ids: Tensor, name: str):
    if not isinstance(ids, Tensor) or ids.is_floating_point():
        given = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"{name} is {given}: give a tensor of integers, as JukeboxProcessor does.")


def _expand(values: Tensor, batch_size: int, name: str) -> Tensor:
    if len(values) not in (1, batch_size):
        raise ValueError(f"{name} is of {len(values)} samples, but the batch has {batch_size}: give one for each.")
    return values.expand(batch_size, *values.shape[1:])


def _check_range(ids: Tensor, count: int, name: str, what: str):
    # Reading a value would break the graph of torch.compile.
    if not torch.compiler.is_compiling():
        low, high = ids.long().min().item(), ids.long().max().item()
        if low < 0 or high >= count:
            raise ValueError(
                f"{name} holds {low if low < 0 else high}, but this prior has {count} {what}: give 0 to {count - 1}."
            )
