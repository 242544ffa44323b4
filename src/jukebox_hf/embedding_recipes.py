"""What makes an embedding of a clip: which layers, which windows, which conditions, what becomes of time.

The presets are the recipes that the literature uses with OpenAI's 5B prior, as their authors' code has them.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .configuration_jukebox import JukeboxPriorConfig


class EmbeddingWindow(NamedTuple):
    """A stretch of a clip that goes through the prior at once, in samples; `start + length` may lie beyond the clip."""

    start: int
    length: int


@dataclass(frozen=True, kw_only=True)
class EmbeddingRecipe:
    """How a clip becomes an embedding; whatever is not given is a default of [`JukeboxEmbedder.from_pretrained`].

    Args:
        layers (`tuple[int, ...]`): whose outputs to take, counted from 1, as in `hidden_states`.
        normalize (`str`, *optional*): divide the whole `"clip"` or each `"window"` by its largest absolute sample.
        encode (`str`): the VQ-VAE hears the whole `"clip"`, whose codes are cut to windows, or each `"window"` alone.
        window_seconds (`float`, *optional*): length of a window; default one context of the prior.
        stride_seconds (`float`, *optional*): from one window's start to the next one's; default no overlap.
        tail (`str`): what follows the last whole window is a shorter one (`"keep"`), or is filled up with silence,
            whose frames are dropped again (`"pad"`), or is left out (`"drop"`).
        max_windows (`int`, *optional*): take the first ones only, and warn where a clip has more.
        total_length (`int` or `"clip"`, *optional*): samples of the song that the prior is told: a number, or each
            clip's own within the trained range; default the shortest trained song that holds the window.
        offset (`int` or `"window"`): samples before the window that the prior is told: a number, or the truth, as far
            as the told song is long enough.
        artist_id (`int`), genre_ids (`tuple[int, ...]`): labels that the prior is told; 0 is unknown.
        pooling (`str`): the `"mean"` over time, all `"frames"`, frames that are resampled to `frame_rate` as
            `scipy.signal.resample` does (`"resample"`), or means of `int(rate / frame_rate)` frames each, which leaves
            out an incomplete last one (`"average"`).
        frame_rate (`float`, *optional*): of these two, in Hz.
        join (`str`): of a clip's windows: one result for each (`"windows"`), their `"mean"`, or one sequence in which
            each frame is of the window that has heard most before it (`"stitch"`).

    Raises:
        ValueError: values that are unknown or exclude each other.
    """

    layers: tuple[int, ...]
    normalize: Literal["clip", "window"] | None = "clip"
    encode: Literal["clip", "window"] = "clip"
    window_seconds: float | None = None
    stride_seconds: float | None = None
    tail: Literal["keep", "pad", "drop"] = "keep"
    max_windows: int | None = None
    total_length: int | Literal["clip"] | None = "clip"
    offset: int | Literal["window"] = "window"
    artist_id: int = 0
    genre_ids: tuple[int, ...] = (0,)
    pooling: Literal["mean", "frames", "resample", "average"] = "mean"
    frame_rate: float | None = None
    join: Literal["windows", "mean", "stitch"] = "stitch"

    def __post_init__(self):
        for name in ("layers", "genre_ids"):
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, list | tuple) else (value,))
        if not self.layers or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in self.layers):
            raise ValueError(f"layers={list(self.layers)}: name layers by their numbers from 1 on, such as [36].")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(map(repr, allowed))}.")
        for name in ("window_seconds", "stride_seconds", "max_windows", "frame_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value}: give a positive number.")
        for name, word in (("total_length", "clip"), ("offset", "window")):
            value = getattr(self, name)
            if value is not None and value != word and (not isinstance(value, int) or value < 0):
                raise ValueError(f"{name}={value!r}: give samples as a whole number, or {word!r}.")
        if (self.frame_rate is not None) != (self.pooling in ("resample", "average")):
            raise ValueError(
                f"frame_rate={self.frame_rate} with pooling={self.pooling!r}: 'resample' and 'average' need a rate, "
                "the others have none."
            )
        if self.normalize == "window" and self.encode == "clip":
            raise ValueError("normalize='window' with encode='clip': the VQ-VAE hears the clip once; encode='window'.")
        if self.join == "mean" and self.pooling != "mean":
            raise ValueError(
                f"join='mean' with pooling={self.pooling!r}: frames of windows have no mean; use 'stitch'."
            )
        if self.join == "windows" and self.pooling != "mean" and self.tail != "drop":
            raise ValueError(
                f"join='windows' with pooling={self.pooling!r} and tail={self.tail!r}: a shorter last window would "
                "have fewer frames than the others; use tail='drop', or join='stitch'."
            )

    def check(self, config: JukeboxPriorConfig, num_layers: int):
        """Raises a ValueError if a prior of this configuration, of which `num_layers` are there, cannot follow it."""
        if config.conditioner_config is not None:
            raise ValueError(
                f"The prior of level {config.level} is an upsampler, which reads the codes above: use a top prior."
            )
        if max(self.layers) > num_layers:
            raise ValueError(
                f"layers={list(self.layers)}: there are {num_layers}. Load more, or the prior the recipe was made for."
            )
        if self.window(config) > config.sample_length:
            raise ValueError(
                f"window_seconds={self.window_seconds} is longer than this prior's context of "
                f"{config.sample_length / config.sampling_rate:.2f} s: use shorter windows."
            )
        for name in ("window", "stride"):
            if getattr(self, name)(config) < config.hop_length:
                raise ValueError(
                    f"{name}_seconds={getattr(self, f'{name}_seconds')} is less than one code of "
                    f"{config.hop_length / config.sampling_rate:.4f} s: give more."
                )
        if self.join == "stitch" and self.stride(config) > self.window(config):
            raise ValueError(
                f"stride_seconds={self.stride_seconds} leaves gaps between windows: use join='windows' or 'mean'."
            )
        if self.join == "stitch" and self.stride(config) % config.hop_length:
            raise ValueError(
                f"Windows that start every {self.stride(config)} samples cannot be stitched, as a frame is of "
                f"{config.hop_length}: use encode='clip', which rounds that, or another stride_seconds."
            )
        if self.frame_rate is not None and not self.frame_rate <= config.sampling_rate / config.hop_length:
            raise ValueError(
                f"frame_rate={self.frame_rate}: this prior has {config.sampling_rate / config.hop_length:.2f} frames a "
                "second; ask for fewer."
            )
        if config.num_time_bins and isinstance(self.total_length, int):
            shortest, longest = _trained_range(config)
            if not shortest <= self.total_length <= longest:
                raise ValueError(
                    f"total_length={self.total_length} samples is outside the {shortest} to {longest} that this prior "
                    "was trained for. Is it the one that the recipe was made for? Else give total_length."
                )

    def window(self, config: JukeboxPriorConfig) -> int:
        """Samples of a whole window."""
        if self.window_seconds is None:
            return config.sample_length
        return self._samples(self.window_seconds, config)

    def stride(self, config: JukeboxPriorConfig) -> int:
        """Samples from one window's start to the next one's."""
        if self.stride_seconds is None:
            return self.window(config)
        return self._samples(self.stride_seconds, config)

    def _samples(self, seconds: float, config: JukeboxPriorConfig) -> int:
        # 1e-6 for what seconds lose as a fraction: 8192 * 128 / 44100 * 44100 must not be one sample less.
        samples = int(seconds * config.sampling_rate + 1e-6)
        return samples if self.encode == "window" else samples // config.hop_length * config.hop_length

    def plan(self, samples: int, config: JukeboxPriorConfig) -> list[EmbeddingWindow]:
        """Cuts a clip of so many samples into windows, all of them, whatever `max_windows` says.

        Raises:
            ValueError: a clip too short for a window, with both lengths.
        """
        window, stride, rate = self.window(config), self.stride(config), config.sampling_rate
        starts = range(0, max(0, samples - window) + 1, stride) if samples >= window else range(0)
        windows = [EmbeddingWindow(start, window) for start in starts]
        end = windows[-1].start + window if windows else 0
        rest = (windows[-1].start + stride) if windows else 0
        # What is left counts in whole codes.
        if self.tail != "drop" and samples - max(end, rest) >= config.hop_length:
            windows.append(EmbeddingWindow(rest, window if self.tail == "pad" else samples - rest))
        if not windows:
            least = window if self.tail == "drop" else config.hop_length
            raise ValueError(
                f"The clip has {samples} samples ({samples / rate:.3f} s), but one window needs {least} "
                f"({least / rate:.3f} s): give a longer clip."
            )
        return windows

    def timing(self, samples: int, start: int, config: JukeboxPriorConfig) -> tuple[int | None, int]:
        """Gives the song's length and the window's offset that the prior is told, in samples."""
        total = self.total_length
        if not config.num_time_bins:
            return None, 0
        if total == "clip":
            shortest, longest = _trained_range(config)
            total = min(max(samples, shortest), longest) // config.hop_length * config.hop_length
        if self.offset != "window":
            return total, self.offset
        if total is None:
            return None, start
        # As SheetSage does: a window that goes beyond the told song is told to be its last one.
        return total, max(0, min(start, total - config.sample_length))

    def output_rate(self, config: JukeboxPriorConfig) -> float | None:
        """Frames a second of what comes out; none for means over time."""
        rate = config.sampling_rate / config.hop_length
        if self.pooling == "mean":
            return None
        if self.pooling == "average":
            return rate / int(rate / self.frame_rate)
        return self.frame_rate if self.pooling == "resample" else rate

    def pool(self, frames: Tensor, config: JukeboxPriorConfig) -> Tensor:
        """Takes frames `(frames, width)` to `(width,)`, or to frames at another rate.

        Raises:
            ValueError: too few frames for one of the new ones.
        """
        rate = config.sampling_rate / config.hop_length
        if self.pooling == "mean":
            return frames.mean(0)
        if self.pooling == "resample":
            return resample_frames(frames, math.ceil(len(frames) * self.frame_rate / rate))
        if self.pooling == "average":
            size = int(rate / self.frame_rate)
            if len(frames) < size:
                raise ValueError(
                    f"The clip has {len(frames)} frames, and one at {self.frame_rate:g} Hz is the mean of {size}: give "
                    "a longer clip."
                )
            return frames[: len(frames) // size * size].unflatten(0, (-1, size)).mean(1)
        return frames


CHOICES = {
    "normalize": (None, "clip", "window"),
    "encode": ("clip", "window"),
    "tail": ("keep", "pad", "drop"),
    "pooling": ("mean", "frames", "resample", "average"),
    "join": ("windows", "mean", "stitch"),
}


def resample_frames(frames: Tensor, count: int) -> Tensor:
    """Resamples `(frames, width)` to `count` frames, at most as many, as `scipy.signal.resample` does."""
    spectrum = torch.fft.rfft(frames, dim=0)[: count // 2 + 1]
    if count % 2 == 0 and count < len(frames):
        # Its highest frequency stands for the positive and the negative one of the longer signal.
        spectrum[-1] *= 2
    return torch.fft.irfft(spectrum, n=count, dim=0) * (count / len(frames))


def _trained_range(config: JukeboxPriorConfig) -> tuple[int, int]:
    """The shortest and the longest song that a prior was trained for, in whole codes."""
    hop, rate = config.hop_length, config.sampling_rate
    shortest = max(math.ceil(config.min_duration * rate / hop) * hop, config.sample_length)
    return shortest, int(config.max_duration * rate / hop) * hop


# 62 s, in whole codes: what JukeMIR's authors tell the prior of every clip.
JUKEMIR_TOTAL_LENGTH = 2734080

PRESETS = {
    # Castellon, Donahue, Liang 2021 (arXiv 2107.05677): github.com/p-lambda/jukemir, representations/jukebox/main.py.
    "jukemir": EmbeddingRecipe(layers=(36,), max_windows=1, total_length=JUKEMIR_TOTAL_LENGTH, offset=0),
    # Tseng, Castellon, Liu 2022 (arXiv 2211.10658): github.com/Stanford-TML/EDGE, data/slice.py and test.py.
    "edge": EmbeddingRecipe(
        layers=(66,), normalize="window", encode="window", window_seconds=5.0, stride_seconds=2.5, tail="drop",
        total_length=JUKEMIR_TOTAL_LENGTH, offset=0, pooling="resample", frame_rate=30.0, join="windows",
    ),
    # Donahue, Thickstun, Liang 2022 (arXiv 2212.01884): github.com/chrisdonahue/sheetsage, representations/jukebox.py.
    "sheetsage": EmbeddingRecipe(layers=(53,), encode="window", tail="pad", pooling="frames"),
    # Gardner et al. 2023 (arXiv 2310.07160): github.com/spotify-research/llark, jukebox/main.py.
    "llark": EmbeddingRecipe(
        layers=(36,), encode="window", tail="pad", max_windows=1, total_length=JUKEMIR_TOTAL_LENGTH, offset=0,
        pooling="average", frame_rate=10.0,
    ),
}  # fmt: skip


def preset(name: str, **changes: Any) -> EmbeddingRecipe:
    """Gives a preset, with some of its values changed.

    Raises:
        ValueError: an unknown name or value.
    """
    if name not in PRESETS:
        raise ValueError(f"preset={name!r}: there are {', '.join(PRESETS)}.")
    return changed(PRESETS[name], **changes)


def changed(recipe: EmbeddingRecipe, **changes: Any) -> EmbeddingRecipe:
    """Gives a recipe with some of its values changed.

    Raises:
        ValueError: an unknown name or value.
    """
    known = [field.name for field in fields(EmbeddingRecipe)]
    if unknown := [name for name in changes if name not in known]:
        raise ValueError(f"{unknown[0]}: a recipe has {', '.join(known)}.")
    return replace(recipe, **changes)


__all__ = ["EmbeddingRecipe"]
