"""What a song is made of before anything is drawn: its length at each level, its windows, its labels and lyrics."""

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from .configuration_jukebox import JukeboxConfig, JukeboxPriorConfig
from .lyric_windows import lyric_window_indices, take_lyric_windows
from .modeling_jukebox_vqvae import JukeboxVQVAEModel
from .placement import input_device
from .prior_inputs import check_labels, check_lyrics
from .windows import Window, plan_windows

# Settings that a list gives for each level, from 0 up.
LEVEL_SETTINGS = ("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")


@dataclass(frozen=True)
class SongConditions:
    """What songs are conditioned on at all levels, one row a song.

    Args:
        artist_ids: `(songs, priors)`, from the lowest level's prior up, or None.
        genre_ids: `(songs, priors, slots)`, or None.
        total_length, offset: `(songs,)`: samples of the whole songs, and where the part that is made starts in them.
        lyric_ids: `(songs, longest)`, whole lyrics, -1 after their end, or None.
    """

    artist_ids: Tensor | None
    genre_ids: Tensor | None
    total_length: Tensor
    offset: Tensor
    lyric_ids: Tensor | None

    def window(self, config: JukeboxConfig, level: int, start: int, rows: slice = slice(None)) -> dict[str, Tensor]:
        """Gives what the prior of a level is conditioned on in the window that starts at its code `start`.

        All but the codes of the level above: labels as they are, the offset and the lyric window moved.
        """
        prior, inputs = config.priors[level], {}
        column = list(config.priors).index(level)
        if prior.num_artists and self.artist_ids is not None:
            inputs["artist_ids"] = self.artist_ids[rows, column]
        if prior.num_artists and self.genre_ids is not None:
            inputs["genre_ids"] = self.genre_ids[rows, column, : prior.max_genres]
        offset = self.offset[rows] + start * prior.hop_length
        if prior.num_time_bins:
            inputs |= {"total_length": self.total_length[rows], "offset": offset}
        if prior.num_lyric_tokens and self.lyric_ids is not None:
            indices = self.lyric_indices(prior, start, rows)
            inputs["lyric_ids"] = take_lyric_windows(self.lyrics(rows), indices)
        return inputs

    def lyric_indices(self, prior: JukeboxPriorConfig, start: int, rows: slice = slice(None)) -> Tensor:
        """Tells which characters of the lyrics a window shows, `(songs, num_lyric_tokens)`, -1 for padding."""
        return lyric_window_indices(
            torch.tensor([len(lyrics) for lyrics in self.lyrics(rows)]),
            self.total_length[rows],
            self.offset[rows] + start * prior.hop_length,
            prior.sample_length,
            prior.num_lyric_tokens,
        )

    def lyrics(self, rows: slice = slice(None)) -> list[Tensor]:
        """Gives each song's lyrics without padding: -1, or the 0 of a pipeline that joins songs to a batch."""
        songs = []
        for ids in self.lyric_ids[rows]:
            characters = (ids > 0).nonzero()[:, 0]
            songs.append(ids[characters[0] : characters[-1] + 1] if len(characters) else ids[:0])
        return songs


@dataclass(frozen=True)
class LevelPlan:
    """How the codes of a level are drawn: `total` of them, in `windows` `hop` codes apart, with `settings`."""

    total: int
    hop: int
    windows: list[Window]
    settings: GenerationConfig


def check_levels_to_draw(config: JukeboxConfig, levels: Sequence[int] | None) -> list[int]:
    """Gives the levels to draw, from the lowest up; default all.

    Raises:
        ValueError: levels with a gap, or without a prior.
    """
    levels = sorted(config.vqvae_config.check_levels(levels))
    if levels != list(range(levels[0], levels[-1] + 1)):
        raise ValueError(f"levels={levels}: a level is drawn from the one above, so leave no gap.")
    if missing := [level for level in levels if level not in config.priors]:
        raise ValueError(
            f"levels={levels}: this model has no prior of level {missing[0]}, only of {list(config.priors)}. Ask for "
            "those, or load the missing one."
        )
    return levels


def collect_prompts(
    vqvae: JukeboxVQVAEModel,
    levels: list[int],
    audio_codes: Sequence[Tensor | None] | None,
    input_values: Tensor | None,
    padding_mask: Tensor | None,
) -> dict[int, Tensor]:
    """Gives the codes that each level starts with, and those of the level above the highest that is drawn.

    Raises:
        ValueError: codes and audio, codes that are none, audio of several lengths or for an upsampling.
    """
    config = vqvae.config
    read = range(levels[0], min(levels[-1] + 2, config.num_levels))
    if input_values is not None:
        if audio_codes is not None:
            raise ValueError("Give what the song starts with as audio_codes or as input_values, not as both.")
        if levels[-1] + 1 < config.num_levels:
            raise ValueError(
                f"input_values with levels={levels}: audio is a beginning to go on from at every level. To draw lower "
                "levels anew, encode it and give the upper codes as audio_codes."
            )
        if padding_mask is not None and not padding_mask.all():
            raise ValueError("padding_mask marks shorter clips: give the songs of a batch beginnings of one length.")
        length = input_values.shape[-1] // config.hop_length * config.hop_length
        if not length:
            raise ValueError(
                f"input_values has {input_values.shape[-1]} samples, and a code of the top level stands for "
                f"{config.hop_length}: give a longer beginning."
            )
        clips = input_values[..., :length].to(input_device(vqvae))
        encoded = vqvae.encode(clips, levels=list(read)).audio_codes
        return {level: codes.cpu() for level, codes in zip(read, encoded)}
    if audio_codes is None:
        return {}
    if len(audio_codes) != config.num_levels:
        raise ValueError(
            f"audio_codes has {len(audio_codes)} items: give one for each of {config.num_levels} levels, from 0 up, "
            "None for a level that starts with nothing."
        )
    given = {level: audio_codes[level] for level in read if audio_codes[level] is not None}
    return {level: vqvae.check_codes(codes).long().cpu() for level, codes in given.items()}


def count_songs(values: Sequence[Tensor | None]) -> int:
    """Gives the number of rows that inputs have; those of one row are for all songs.

    Raises:
        ValueError: different numbers, or an empty batch.
    """
    sizes = {len(value) for value in values if value is not None} or {1}
    if 0 in sizes or len(sizes - {1}) > 1:
        raise ValueError(f"The inputs are of {sorted(sizes)} songs: give one row of each, or one a song.")
    return max(sizes)


def repeat_rows(value: Tensor | None, num_songs: int, repeats: int) -> Tensor | None:
    """Gives each song its row, and each row several times."""
    return None if value is None else value.expand(num_songs, *value.shape[1:]).repeat_interleave(repeats, dim=0)


def plan_lengths(
    config: JukeboxConfig,
    levels: list[int],
    prompts: dict[int, Tensor],
    seconds: float | None,
    max_length: int | None,
    max_new_tokens: int | None,
    extend_short: bool,
) -> dict[int, int]:
    """Decides how many codes the song has at each level that is drawn, and at the one that is read above them.

    Raises:
        ValueError: several lengths, none that is positive, an upsampler's context that the song does not fill, or
            levels without the codes above them.
    """
    vqvae, given = config.vqvae_config, {"seconds": seconds, "max_length": max_length, "max_new_tokens": max_new_tokens}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) > 1:
        raise ValueError(f"The song has one length, not {given}: give one of them.")
    top, rate = levels[-1], vqvae.sampling_rate
    hops = vqvae.hop_lengths
    if top + 1 < vqvae.num_levels:
        if top + 1 not in prompts:
            raise ValueError(
                f"levels={levels} are drawn from level {top + 1}: give its codes in audio_codes, or draw it, too."
            )
        if given or extend_short:
            raise ValueError(f"{given or 'extend_short'}: a song is as long as the codes of level {top + 1} given.")
        samples = prompts[top + 1].shape[1] * hops[top + 1]
        levels = [*levels, top + 1]
    else:
        prompt = prompts[top].shape[1] if top in prompts else 0
        if seconds is not None:
            total = round(seconds * rate) // hops[top] if math.isfinite(seconds) else 0
        elif max_new_tokens is not None:
            total = prompt + max_new_tokens
        else:
            total = config.priors[top].context_length if max_length is None else max_length
        if total < 1 or (max_new_tokens is not None and max_new_tokens < 1):
            raise ValueError(f"{given}: give a positive length, {hops[top] / rate:.3g} s or more.")
        samples = total * hops[top]
    for level in range(levels[0], top + 1):
        prior = config.priors[level]
        if prior.num_time_bins and samples > prior.max_duration * rate:
            raise ValueError(
                f"A song of {samples / rate:.2f} s is longer than the {prior.max_duration:g} s that the prior of level "
                f"{level} was trained for: ask for less."
            )
    samples = _fill_contexts(config, levels, samples, extend_short, levels[-1] > top)
    return {level: samples // hops[level] for level in levels}


def _fill_contexts(config: JukeboxConfig, levels: list[int], samples: int, extend_short: bool, is_given: bool) -> int:
    """Refuses, or lengthens, a song that is shorter than an upsampler's context.

    Args:
        is_given: the last of `levels` is not drawn, and the song is as long as its codes.
    """
    rate, hop = config.sampling_rate, config.vqvae_config.hop_lengths[levels[-1]]
    drawn = [config.priors[level] for level in (levels[:-1] if is_given else levels)]
    upsamplers = [prior for prior in drawn if prior.conditioner_config is not None]
    # The longest context first: a song that fills it fills the others.
    for prior in sorted(upsamplers, key=lambda prior: prior.sample_length, reverse=True):
        if samples >= prior.sample_length:
            continue
        level = prior.level
        least = -(-prior.sample_length // hop)
        if not extend_short:
            seconds = math.ceil(100 * least * hop / rate) / 100
            ways = (
                f"give {least} codes of level {levels[-1]} or more"
                if is_given
                else f"ask for seconds={seconds:.2f} or more, stop above it with "
                f"levels={list(range(level + 1, config.vqvae_config.num_levels))}, or set extend_short=True"
            )
            raise ValueError(
                f"A song of {samples / rate:.2f} s is too short for the upsampler of level {level}, which works on "
                f"{prior.sample_length / rate:.2f} s at a time: {ways}."
            )
        samples = least * hop
    return samples


def plan_conditions(
    config: JukeboxConfig,
    levels: list[int],
    num_songs: int,
    samples: int,
    starts: dict[int, list[int]],
    conditions: dict[str, Tensor | None],
) -> SongConditions:
    """Checks the songs' labels and lyrics in all their windows, and fills in what is not given.

    Args:
        samples: of the part that is made.
        starts: for each level to draw, the codes at which its windows start.
        conditions: by name, as [`JukeboxProcessor`] gives them.

    Raises:
        ValueError: labels or lyrics that no prior reads, wrong shapes, ids out of range, and a song that is longer than
            it says or than the priors know.
    """
    drawn = {level: config.priors[level] for level in levels}
    for name, reads in (("artist_ids", "num_artists"), ("genre_ids", "num_artists"), ("lyric_ids", "num_lyric_tokens")):
        if conditions[name] is not None and not any(getattr(prior, reads) for prior in config.priors.values()):
            what = "lyrics" if name == "lyric_ids" else "labels"
            raise ValueError(f"{name} was given, but this model was trained without {what}: drop it.")
    shapes = {"artist_ids": 2, "genre_ids": 3, "total_length": 1, "offset": 1, "lyric_ids": 2}
    for name, value in conditions.items():
        if value is None:
            continue
        if name in ("artist_ids", "genre_ids") and len(config.priors) == 1 and value.ndim == shapes[name] - 1:
            value = value.unsqueeze(1)
        if name in ("artist_ids", "genre_ids") and value.shape[1:2] == (config.vqvae_config.num_levels,):
            # Of all levels, for a model that has a prior for some.
            value = value[:, list(config.priors)]
        columns = len(config.priors) if name in ("artist_ids", "genre_ids") else None
        if value.ndim != shapes[name] or (columns and value.shape[1] != columns):
            raise ValueError(
                f"{name} has the shape {tuple(value.shape)}: give what JukeboxProcessor makes"
                + (f", (songs, {columns} priors{', slots' if name == 'genre_ids' else ''})." if columns else ".")
            )
        conditions = conditions | {name: value.cpu().expand(num_songs, *value.shape[1:])}
    offset = conditions["offset"]
    offset = torch.zeros(num_songs, dtype=torch.long) if offset is None else offset.long()
    total_length = conditions["total_length"]
    rate = config.sampling_rate
    if total_length is None:
        timed = [prior for prior in drawn.values() if prior.num_time_bins]
        shortest = max((math.ceil(prior.min_duration * rate) for prior in timed), default=1)
        total_length = (offset + samples).clamp(min=shortest)
    total_length = total_length.long()
    for row, (start, total) in enumerate(zip(offset.tolist(), total_length.tolist())):
        if start + samples > total:
            raise ValueError(
                f"Song {row} is {total / rate:.2f} s long and the part from {start / rate:.2f} s on has "
                f"{samples / rate:.2f} s: give a larger total_seconds (total_length), or a shorter part."
            )
    planned = SongConditions(
        conditions["artist_ids"], conditions["genre_ids"], total_length, offset, conditions["lyric_ids"]
    )
    for level in levels:
        _check_ids_that_windows_cut(config, level, planned)
    for level, prior in drawn.items():
        # Offsets grow with the windows, so the first and the last are the extremes.
        for start in {starts[level][0], starts[level][-1]} if starts[level] else ():
            inputs = planned.window(config, level, start)
            check_lyrics(prior, num_songs, inputs.pop("lyric_ids", None))
            names = ("artist_ids", "genre_ids", "total_length", "offset")
            check_labels(prior, num_songs, *(inputs.get(name) for name in names))
    return planned


def _check_ids_that_windows_cut(config: JukeboxConfig, level: int, conditions: SongConditions):
    """Refuses genres that a prior has no slots for, and characters that only a window in the middle would show."""
    prior = config.priors[level]
    if prior.num_artists and conditions.genre_ids is not None:
        cut = conditions.genre_ids[:, list(config.priors).index(level), prior.max_genres :]
        if (cut >= 0).any():
            raise ValueError(
                f"genre_ids holds {int(cut.max())} after the {prior.max_genres} slots that the prior of level {level} "
                "has: leave out some genres."
            )
    if prior.num_lyric_tokens and conditions.lyric_ids is not None:
        for ids in conditions.lyrics():
            wrong = ids[(ids < 0) | (ids >= prior.lyric_vocab_size)]
            if len(wrong):
                raise ValueError(
                    f"lyric_ids holds {int(wrong[0])} among its characters, but the prior of level {level} has "
                    f"{prior.lyric_vocab_size}: give 0 to {prior.lyric_vocab_size - 1}, and -1 only after the end."
                )


def plan_levels(
    config: JukeboxConfig, lengths: dict[int, int], prompts: dict[int, Tensor], settings: dict[int, GenerationConfig]
) -> dict[int, LevelPlan]:
    """Plans the windows of every level to draw.

    Raises:
        ValueError: a prompt longer than the song, or hop fractions that are not shares of a context.
    """
    plans, rate = {}, config.sampling_rate
    for level, level_settings in settings.items():
        prior, total = config.priors[level], lengths[level]
        prompt = prompts[level].shape[1] if level in prompts else 0
        if prompt > total:
            raise ValueError(
                f"The prompt has {prompt} codes of level {level} ({prompt * prior.hop_length / rate:.2f} s) and the "
                f"song {total} ({total * prior.hop_length / rate:.2f} s), prompt included: ask for more seconds, or "
                "cut the prompt."
            )
        fraction = level_settings.hop_fraction
        if not 0 < fraction <= 1:
            raise ValueError(f"hop_fractions has {fraction} for level {level}: give shares of a context, above 0 to 1.")
        # A window starts with a code of the level above.
        factor = 1 if prior.conditioner_config is None else prior.conditioner_config.upsampling_factor
        hop = max(1, int(fraction * prior.context_length) // factor) * factor
        plans[level] = LevelPlan(total, hop, plan_windows(total, prior.context_length, hop, prompt), level_settings)
    return plans


def level_settings(
    config: JukeboxConfig, levels: list[int], generation_config: GenerationConfig, changes: dict[str, Any]
) -> dict[int, GenerationConfig]:
    """Gives each level its own settings; those of `changes` that are lists hold one value for each level, from 0 up.

    Raises:
        ValueError: a list of another length, a setting that does not exist, or hop fractions that are missing.
    """
    num_levels, settings = config.vqvae_config.num_levels, {}
    fractions = changes.pop("hop_fractions", getattr(generation_config, "hop_fractions", None))
    if not isinstance(fractions, list | tuple) or len(fractions) != num_levels:
        raise ValueError(f"hop_fractions={fractions}: give one number for each of the {num_levels} levels, from 0 up.")
    for name in ("eos_token_id", "stop_strings", "max_time"):
        if changes.get(name, getattr(generation_config, name)) is not None:
            raise ValueError(f"{name} would end a window early: leave it out, and ask for fewer seconds.")
    for name in LEVEL_SETTINGS:
        if isinstance(changes.get(name), list | tuple) and len(changes[name]) != num_levels:
            raise ValueError(f"{name}={changes[name]}: give one value, or one for each of the {num_levels} levels.")
    for level in levels:
        own = deepcopy(generation_config)
        own_changes = {
            name: value[level] if name in LEVEL_SETTINGS and isinstance(value, list | tuple) else value
            for name, value in changes.items()
        }
        if not own_changes.get("do_sample", own.do_sample):
            # They are not used, and transformers warns of anything but its own defaults.
            own_changes |= {"temperature": 1.0, "top_k": 50, "top_p": 1.0}
        # On a GPU transformers would compile each prior by itself, and not see where the whole model's parts are.
        own_changes.setdefault("disable_compile", True)
        if unused := own.update(**own_changes):
            raise ValueError(f"generate() does not know {', '.join(unused)}: check the spelling.")
        _check_sampling(own)
        own.update(return_dict_in_generate=False, num_return_sequences=1, max_length=None, max_new_tokens=None)
        own.hop_fraction = fractions[level]
        settings[level] = own
    return settings


def _check_sampling(settings: GenerationConfig):
    """Refuses what transformers would refuse only in the middle of a song, or not at all."""
    limits = {
        "temperature": (lambda value: value > 0, "a number above 0; do_sample=False takes the likeliest codes"),
        "top_k": (lambda value: value >= 0, "a number of codes, or 0 for all"),
        "top_p": (lambda value: 0 < value <= 1, "a probability above 0, or 1 for all codes"),
    }
    for name, (is_fine, way) in limits.items():
        value = getattr(settings, name)
        if value is not None and not is_fine(value):
            raise ValueError(f"{name}={value}: give {way}.")
