"""`generate` for whole songs: the one loop that knows windows, levels and models (arXiv 2005.00341, section 4.4)."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, StoppingCriteria, StoppingCriteriaList
from transformers.utils import ModelOutput

from .alignment_jukebox import LyricAlignment, align_lyrics, check_alignment
from .cache_jukebox import JukeboxCache
from .placement import input_device, lent_to, plan_batches
from .song_plan import (
    LevelPlan,
    SongConditions,
    check_levels_to_draw,
    collect_prompts,
    count_songs,
    level_settings,
    plan_conditions,
    plan_lengths,
    plan_levels,
    repeat_rows,
)
from .song_state import SongState, checksum, fingerprint, random_states, read_settings, restore_random_states
from .windows import Window

# A code that is not drawn yet.
MISSING = -1


@dataclass
class JukeboxGenerationOutput(ModelOutput):
    """Songs, all of one length.

    Args:
        audio (`torch.FloatTensor`): `(songs, 1, samples)`, decoded from `audio_level`.
        audio_codes (`tuple[torch.LongTensor]`): for each level `(songs, codes)`, from level 0 up; None for a level that
            was neither drawn nor given.
        audio_level (`int`): the lowest level that was drawn.
        is_complete (`bool`): False when the callback stopped the run; codes and audio then end where all songs have
            some.
        alignment (`list[LyricAlignment]`, *optional*): which characters each song sings when.
    """

    audio: torch.FloatTensor | None = None
    audio_codes: tuple[torch.LongTensor | None, ...] | None = None
    audio_level: int | None = None
    is_complete: bool | None = None
    alignment: list[LyricAlignment] | None = None


@dataclass(frozen=True)
class JukeboxProgress:
    """How far a run is.

    Args:
        level: that is drawn.
        window, num_windows: of this level; windows count from 0.
        songs: the first of those that are drawn together, and the one after the last.
        position, total: codes of this level that these songs have, and will have.
        audio: at the end of a window, what it adds to the level's audio, `(songs, 1, samples)`; else None. A code's
            neighbours change its sound, so audio comes a little after its codes, and all of it with the last window.
    """

    level: int
    window: int
    num_windows: int
    songs: tuple[int, int]
    position: int
    total: int
    audio: Tensor | None = None


class JukeboxGenerationMixin(GenerationMixin):
    """Draws songs level by level, from the top down, each in overlapping windows."""

    @torch.no_grad()
    def generate(
        self,
        seconds: float | None = None,
        audio_codes: Sequence[Tensor | None] | None = None,
        input_values: Tensor | None = None,
        padding_mask: Tensor | None = None,
        artist_ids: Tensor | None = None,
        genre_ids: Tensor | None = None,
        total_length: Tensor | None = None,
        offset: Tensor | None = None,
        lyric_ids: Tensor | None = None,
        levels: Sequence[int] | None = None,
        generation_config: GenerationConfig | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        batch_size: int | Sequence[int] | None = None,
        extend_short: bool = False,
        device: torch.device | str | None = None,
        state_dir: str | os.PathLike | None = None,
        callback: Callable[[JukeboxProgress], bool | None] | None = None,
        return_alignment: bool = False,
        **kwargs: Any,
    ) -> JukeboxGenerationOutput:
        """Draws songs: new ones, from a beginning on, or from the codes of a higher level.

        Takes what [`JukeboxProcessor`] returns. Writes nothing but to `state_dir`.

        Args:
            seconds (`float`, *optional*): length of what is made, the beginning included; or `max_length` or
                `max_new_tokens` in codes of the top level. Default `generation_config.max_length`.
            audio_codes (`Sequence[torch.LongTensor | None]`, *optional*): for each level, from 0 up, the codes `(songs,
                codes)` that it starts with. All codes of the level above those in `levels` make it an upsampling.
            input_values, padding_mask (*optional*): instead, audio `(songs, 1, samples)` to start with, of one length;
                it is cut to whole codes of the top level.
            artist_ids, genre_ids, total_length, offset, lyric_ids (*optional*): from the processor, a row a song.
            levels (`Sequence[int]`, *optional*): the levels to draw; `[1, 2]` stops above level 0. Default all.
            generation_config ([`GenerationConfig`], *optional*): default the model's. `kwargs` change it:
                `temperature`, `top_k`, `top_p`, ... take a number, or a list with one for each level, from 0 up;
                `hop_fractions` is such a list. `num_return_sequences` makes several songs of each row.
            generator (`torch.Generator` or a list, *optional*): draws for all songs, by default PyTorch's own as the
                original does; or one for each song, which then gets what it gets alone.
            batch_size (`int` or `Sequence[int]`, *optional*): songs that are drawn at a time, a number or one for each
                level; default as many as the free memory holds. Without a list of generators a song depends on it.
            extend_short (`bool`): make a song that is shorter than an upsampler's context as long as that.
            device (`torch.device`, *optional*): where to draw, if not where the model is: each level's weights are
                there while it is drawn, and the host keeps its own.
            state_dir (path, *optional*): saves codes, random state and settings after each window, and each level's
                audio as it grows. The same call goes on from there, to the same bits.
            callback (*optional*): called after each code and each window; returning True stops the run, which gives up
                what the current window has drawn.
            return_alignment (`bool`): also align lyrics and music; one more pass over the top level.
            return_dict_in_generate (`bool`): gives the audio alone; pipelines set it, and split what they get by songs.

        Raises:
            ValueError: lengths, prompts, labels or settings that do not fit, all checked before anything is drawn; a
                `state_dir` of another song.
            OSError: the state cannot be written; the last one stands.
        """
        config = self.config
        levels = check_levels_to_draw(config, levels)
        conditions = dict(
            artist_ids=artist_ids, genre_ids=genre_ids, total_length=total_length, offset=offset, lyric_ids=lyric_ids
        )
        generation_config = self.generation_config if generation_config is None else generation_config
        repeats = kwargs.pop("num_return_sequences", generation_config.num_return_sequences) or 1
        if repeats < 1:
            raise ValueError(f"num_return_sequences={repeats}: give a positive number of songs for each row.")
        lengths = {name: kwargs.pop(name, None) for name in ("max_length", "max_new_tokens")}
        is_whole = levels[-1] + 1 == config.vqvae_config.num_levels
        if is_whole and seconds is None and all(length is None for length in lengths.values()):
            name = "max_length" if generation_config.max_new_tokens is None else "max_new_tokens"
            lengths[name] = getattr(generation_config, name)
        if getattr(generation_config, "hop_fractions", None) is None:
            kwargs.setdefault("hop_fractions", getattr(self.generation_config, "hop_fractions", None))
        kwargs.pop("pad_token_id", None)  # the pipeline's; codes are never padded
        is_for_pipeline = kwargs.pop("return_dict_in_generate", False)
        settings = level_settings(config, levels, generation_config, kwargs)

        prompts = collect_prompts(self.vqvae, levels, audio_codes, input_values, padding_mask)
        num_songs = count_songs([*prompts.values(), *conditions.values()])
        conditions = {name: repeat_rows(value, num_songs, repeats) for name, value in conditions.items()}
        prompts = {level: repeat_rows(codes, num_songs, repeats) for level, codes in prompts.items()}
        num_songs *= repeats
        totals = plan_lengths(config, levels, prompts, seconds, **lengths, extend_short=extend_short)
        plans = plan_levels(config, totals, prompts, settings)
        starts = {level: [window.start for window in plan.windows] for level, plan in plans.items()}
        samples = totals[levels[-1]] * config.vqvae_config.hop_lengths[levels[-1]]
        planned = plan_conditions(config, levels, num_songs, samples, starts, conditions)
        if return_alignment:
            check_alignment(config.priors[levels[-1]], planned.lyric_ids)
        if isinstance(generator, list) and len(generator) != num_songs:
            raise ValueError(f"{len(generator)} generators for {num_songs} songs: give one, or one for each.")
        if generator is not None and not any(plan.settings.do_sample for plan in plans.values()):
            raise ValueError("generator was given, but nothing is drawn: set do_sample=True, or leave it out.")

        codes = {level: torch.full((num_songs, total), MISSING) for level, total in totals.items()}
        for level, given in prompts.items():
            if level in codes:
                codes[level][:, : given.shape[1]] = given
        saved = read_settings(state_dir) if state_dir is not None else None
        run = _Run(
            self, plans, planned, codes, generator, callback, device,
            plan_batches(self.priors, levels, num_songs, batch_size, saved, device),
        )  # fmt: skip
        if state_dir is not None:
            # Audio as it is given: on another day its codes may differ by a tie.
            run.keep_state(state_dir, checksum(codes.values() if input_values is None else [input_values]))
        audio_level, audio = run.draw()
        if is_for_pipeline:
            return JukeboxGenerationOutput(audio=audio)
        alignment = None
        if return_alignment and run.is_complete:
            top = levels[-1]
            with lent_to(self.priors[top], device) as prior:
                alignment = align_lyrics(prior, codes[top], planned, plans[top].hop, config)
        return JukeboxGenerationOutput(
            audio=audio,
            audio_codes=tuple(_drawn(codes.get(level)) for level in range(config.vqvae_config.num_levels)),
            audio_level=audio_level,
            is_complete=run.is_complete,
            alignment=alignment,
        )


class _Run:
    """One run of `generate`, from its plan to its codes."""

    def __init__(
        self,
        model: JukeboxGenerationMixin,
        plans: dict[int, LevelPlan],
        conditions: SongConditions,
        codes: dict[int, Tensor],
        generator: torch.Generator | list[torch.Generator] | None,
        callback: Callable[[JukeboxProgress], bool | None] | None,
        device: torch.device | str | None,
        batch_sizes: dict[int, int],
    ):
        self.model, self.plans, self.conditions, self.codes = model, plans, conditions, codes
        self.generator, self.callback, self.device, self.batch_sizes = generator, callback, device, batch_sizes
        self.state: SongState | None = None
        self.cache: JukeboxCache | None = None
        self.is_stopped = False

    @property
    def is_complete(self) -> bool:
        return not any((codes == MISSING).any() for codes in self.codes.values())

    def keep_state(self, folder: str | os.PathLike, prompt: str):
        """Saves the state to a folder from now on, and goes on from one that is there.

        Args:
            prompt: a checksum of what the songs start with.
        """
        conditions, priors = self.conditions, self.model.priors
        settings = {
            "weights": {str(level): fingerprint(priors[level]) for level in self.plans}
            | {"vqvae": fingerprint(self.model.vqvae)},
            "devices": [device.type for device in self._devices()],
            "dtypes": {str(level): str(priors[level].dtype) for level in self.plans},
            "attention": {str(level): priors[level].config._attn_implementation for level in self.plans},
            "num_songs": len(conditions.offset),
            "codes": {str(level): codes.shape[1] for level, codes in self.codes.items()},
            "windows": {str(level): plan.windows for level, plan in self.plans.items()},
            "settings": {
                str(level): json.loads(plan.settings.to_json_string()) | {"transformers_version": None}
                for level, plan in self.plans.items()
            },
            "batch_sizes": {str(level): size for level, size in self.batch_sizes.items()},
            "total_length": conditions.total_length.tolist(),
            "offset": conditions.offset.tolist(),
            "labels": checksum([conditions.artist_ids, conditions.genre_ids]),
            "lyrics": checksum([conditions.lyric_ids]),
            "prompt": prompt,
            "seeds": "PyTorch's" if self.generator is None else [one.initial_seed() for one in self._generators()],
        }
        self.state = SongState(folder, settings)
        if self.state.codes:
            for level, codes in self.state.codes.items():
                self.codes[level].copy_(codes)
            restore_random_states(self.generator, self._devices(), self.state.random_states)
        else:
            self._save()

    def draw(self) -> tuple[int | None, Tensor | None]:
        """Draws all levels and gives the number and audio of the lowest one that has some."""
        result = None, None
        for level in sorted(self.plans, reverse=True):
            with lent_to(self.model.priors[level], self.device):
                audio = self._draw_level(level)
            self.cache = None
            if audio is not None:
                result = level, audio
            if self.is_stopped:
                break
        return result

    def _draw_level(self, level: int) -> Tensor | None:
        plan, codes = self.plans[level], self.codes[level]
        size = self.batch_sizes[level]
        batches = [slice(first, min(first + size, len(codes))) for first in range(0, len(codes), size)]
        tracks = [_Track(self.model.vqvae, level, plan.total) for _ in batches]
        for index, window in enumerate(plan.windows):
            for rows, track in zip(batches, tracks):
                progress = JukeboxProgress(
                    level,
                    index,
                    len(plan.windows),
                    (rows.start, rows.stop),
                    window.start + window.num_given,
                    plan.total,
                )
                if (codes[rows, window.stop - 1] == MISSING).any():
                    self._draw_window(level, window, rows, progress)
                if not self.is_stopped:
                    self._hear(track, rows, codes[rows, : window.stop], progress)
                if self.is_stopped:
                    return _join(tracks)
        for rows, track in zip(batches, tracks):
            if not track.pieces:
                # The beginning that was given is all of it.
                self._hear(track, rows, codes[rows], None)
        return _join(tracks)

    def _draw_window(self, level: int, window: Window, rows: slice, progress: JukeboxProgress):
        """Draws a window and saves the state, unless the callback stops it."""
        prior, codes = self.model.priors[level], self.codes
        inputs = self.conditions.window(self.model.config, level, window.start, rows)
        if prior.config.conditioner_config is not None:
            factor = prior.config.conditioner_config.upsampling_factor
            first = window.start // factor
            inputs["upper_codes"] = codes[level + 1][rows, first : first + prior.config.num_upper_codes]
        settings = self.plans[level].settings
        generator = self.generator if settings.do_sample else None
        if isinstance(generator, list):
            generator = generator[rows]
        ticker = None
        if self.callback is not None:
            ticker = _Ticker(self.callback, progress)
            inputs["stopping_criteria"] = StoppingCriteriaList([ticker])
        given = codes[level][rows, window.start : window.start + window.num_given]
        drawn = prior.generate(
            given,
            generation_config=settings,
            max_new_tokens=window.stop - window.start - window.num_given,
            generator=generator,
            past_key_values=self._empty_cache(level, len(given)) if settings.use_cache else None,
            **inputs,
        )
        if ticker is not None and ticker.stopped:
            self.is_stopped = True
            return
        codes[level][rows, window.start : window.stop] = drawn.cpu()
        self._save()

    def _empty_cache(self, level: int, num_songs: int) -> JukeboxCache:
        """Gives a cache with the last window's memory. Its contents are of no use: positions are part of them."""
        if self.cache is None or self.cache_songs != num_songs:
            plan, config = self.plans[level], self.model.config.priors[level]
            length = config.lyric_offset + max(window.stop - window.start for window in plan.windows)
            self.cache, self.cache_songs = JukeboxCache(config, length), num_songs
        else:
            self.cache.reset()
        return self.cache

    def _hear(self, track: "_Track", rows: slice, codes: Tensor, progress: JukeboxProgress | None):
        audio = track.extend(codes)
        if self.state is not None:
            self.state.append_audio(track.level, rows.start, audio, self.model.config.sampling_rate)
        if self.callback is not None and progress is not None:
            self.is_stopped = bool(self.callback(replace(progress, position=codes.shape[1], audio=audio)))

    def _save(self):
        if self.state is not None:
            self.state.save(self.codes, random_states(self.generator, self._devices()))

    def _devices(self) -> list[torch.device]:
        """Where the levels are drawn."""
        return [torch.device(self.device or input_device(self.model.priors[level])) for level in self.plans]

    def _generators(self) -> list[torch.Generator]:
        return self.generator if isinstance(self.generator, list) else [self.generator]


class _Ticker(StoppingCriteria):
    """Tells the callback of each code, and stops the window when it says so."""

    def __init__(self, callback: Callable[[JukeboxProgress], bool | None], progress: JukeboxProgress):
        self.callback, self.progress, self.stopped = callback, progress, False

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        self.progress = replace(self.progress, position=self.progress.position + 1)
        self.stopped = bool(self.callback(self.progress))
        return torch.full((len(input_ids),), self.stopped, device=input_ids.device)


class _Track:
    """The audio of one level of some songs, decoded as their codes come."""

    def __init__(self, vqvae, level: int, total: int):
        self.level, self.total, self.position = level, total, 0
        self.stream, self.device = vqvae.decoding_stream(level), input_device(vqvae)
        self.pieces: list[Tensor] = []

    def extend(self, codes: Tensor) -> Tensor:
        """Takes all codes so far and gives the audio that the new ones add."""
        audio = self.stream(codes[:, self.position :].to(self.device), codes.shape[1] == self.total).cpu()
        self.position = codes.shape[1]
        self.pieces.append(audio)
        return audio


def _join(tracks: list[_Track]) -> Tensor | None:
    """All songs' audio, as far as all have some."""
    if not all(track.pieces for track in tracks):
        return None
    songs = [torch.cat(track.pieces, dim=2) for track in tracks]
    samples = min(song.shape[2] for song in songs)
    return torch.cat([song[..., :samples] for song in songs])


def _drawn(codes: Tensor | None) -> Tensor | None:
    """What all songs have of a level, if anything."""
    if codes is None:
        return None
    missing = (codes == MISSING).any(dim=0)
    length = int(missing.int().argmax()) if missing.any() else codes.shape[1]
    return codes[:, :length] if length else None


__all__ = ["JukeboxGenerationOutput", "JukeboxProgress"]
