"""Embeddings of music: what the first layers of a top prior make of a clip's codes."""

import copy
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig
from transformers.utils import logging

from .audio_rows import TypedList, prepare_worker, read_row, row_readers
from .configuration_jukebox import JukeboxConfig, JukeboxPriorConfig, JukeboxVQVAEConfig
from .embedding_recipes import EmbeddingRecipe, EmbeddingWindow, changed, preset
from .feature_extraction_jukebox import list_clips
from .modeling_jukebox_prior import JukeboxPriorModel
from .modeling_jukebox_vqvae import JukeboxVQVAEModel
from .pinned_model import PinnedModel
from .placement import input_device

logger = logging.get_logger(__name__)

# What a clip is a dict of, and a batch of a dataset is not.
CLIP_KEYS = {"array", "bytes", "path"}


@dataclass
class JukeboxEmbedding:
    """The embedding of one clip.

    Args:
        layers (`dict[int, np.ndarray]`): for each asked layer `(hidden_size,)`, or `(frames, hidden_size)` without a
            mean over time; one more axis in front, that of the windows, for `join="windows"`.
        window_starts (`np.ndarray`): `(windows,)`, where each window starts in the clip, in seconds.
        frame_rate (`float`, *optional*): of the frames, in Hz.
    """

    layers: dict[int, np.ndarray]
    window_starts: np.ndarray
    frame_rate: float | None = None


class JukeboxEmbedder:
    """Embeds clips with the VQ-VAE's top level and the first layers of a top prior.

    `embedder(clip, sampling_rate=44100)` gives a [`JukeboxEmbedding`], and a list of clips a list of them; clips are
    arrays `(samples,)` or `(channels, samples)`, or what a `datasets.Audio` column holds, at any rate. Clips of a batch
    may have any lengths: each gets what it gets alone.

    It is also the function of `dataset.map(embedder, batched=True)`: a batch, a dict of lists, becomes for each layer a
    column `embedding_{layer}`, for windows of their own the column `window_starts`, and `error`, None or the reason why
    a row has no embedding. A bad row costs itself alone. Rows are as for [`JukeboxCodeExtractor`].

    The first call loads the model, in the process that needs it; until then an embedder is a few strings and numbers,
    the same in every process, and so a later run finds its results in the cache of `datasets`.
    """

    def __init__(
        self,
        prior: PinnedModel | None,
        vqvae: PinnedModel | None,
        recipe: EmbeddingRecipe,
        *,
        audio_column: str = "audio",
        batch_size: int = 4,
        column_dtype: str = "float32",
        device: str | torch.device | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: give a positive number of windows.")
        if column_dtype not in ("float32", "float16"):
            raise ValueError(f"column_dtype={column_dtype!r}: choose 'float32' or 'float16'.")
        self.prior, self.vqvae, self.recipe = prior, vqvae, recipe
        self.audio_column, self.batch_size, self.column_dtype = audio_column, batch_size, column_dtype
        self.device, self.model_kwargs = device, dict(model_kwargs or {})
        self._models: tuple[JukeboxVQVAEModel, JukeboxPriorModel] | None = None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        layers: Sequence[int] | int | None = None,
        *,
        recipe: EmbeddingRecipe | None = None,
        vqvae: str | os.PathLike | None = None,
        revision: str | None = None,
        audio_column: str = "audio",
        batch_size: int = 4,
        column_dtype: str = "float32",
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        model_kwargs: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> "JukeboxEmbedder":
        """Describes an embedder without loading its model; what is described now is what will be loaded.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): a whole model, or a top prior.
            layers (`list[int]`): whose outputs to take, counted from 1; only the layers up to the deepest are loaded.
            recipe ([`EmbeddingRecipe`], *optional*): everything else; default the mean over the whole clip, in windows
                of one context, told where they are in a song of the clip's length.
            vqvae (`str` or `os.PathLike`, *optional*): the VQ-VAE's repository, beside that of a prior alone.
            revision (`str`, *optional*): of the first repository.
            audio_column (`str`): of a dataset.
            batch_size (`int`): windows that go through the prior together.
            column_dtype (`str`): of a dataset's new columns, `"float32"` or `"float16"`.
            device (`str` or `torch.device`, *optional*): default the accelerator, if there is one.
            dtype (`str` or `torch.dtype`): of the prior's matrices.
            model_kwargs (`dict`, *optional*): more for `JukeboxPriorModel.from_pretrained`, such as
                `quantization_config` or `device_map`.
            **changes: values of [`EmbeddingRecipe`] to replace.

        Raises:
            ValueError: a recipe that this prior cannot follow, or no VQ-VAE.
        """
        if recipe is None and layers is None:
            raise ValueError("layers=None: name the layers whose outputs to take, such as [36].")
        layers = recipe.layers if layers is None else layers
        recipe = changed(recipe or EmbeddingRecipe(layers=layers), layers=layers, **changes)
        prior = PinnedModel.pin(pretrained_model_name_or_path, revision)
        config = AutoConfig.from_pretrained(prior.name, revision=prior.commit)
        if isinstance(config, JukeboxConfig):
            top = config.vqvae_config.num_levels - 1
            if top not in config.priors:
                raise ValueError(f"{prior.name} has no prior of its top level {top}: embeddings need that one.")
            vqvae_pin = prior if vqvae is None else PinnedModel.pin(vqvae)
            prior_config, vqvae_config = config.priors[top], config.vqvae_config
        elif isinstance(config, JukeboxPriorConfig):
            if vqvae is None:
                raise ValueError(f"{prior.name} is a prior alone: name its VQ-VAE, as in vqvae='org/jukebox-5b-vqvae'.")
            vqvae_pin, prior_config = PinnedModel.pin(vqvae), config
        else:
            raise ValueError(f"{prior.name} holds a {config.model_type}: give a whole Jukebox model or a top prior.")
        if vqvae is not None:
            vqvae_config = JukeboxVQVAEConfig.from_pretrained(vqvae_pin.name, revision=vqvae_pin.commit)
        # Its checks tell whether the two fit.
        JukeboxConfig.from_parts(vqvae_config, [prior_config])
        recipe.check(prior_config, prior_config.num_hidden_layers)
        return cls(
            prior,
            vqvae_pin,
            recipe,
            audio_column=audio_column,
            batch_size=batch_size,
            column_dtype=column_dtype,
            device=None if device is None else str(device),
            model_kwargs={"dtype": str(dtype).removeprefix("torch."), **(model_kwargs or {})},
        )

    @classmethod
    def from_preset(
        cls, name: str, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> "JukeboxEmbedder":
        """As `from_pretrained`, by a recipe of the literature: `jukemir`, `edge`, `sheetsage` or `llark`.

        Args:
            **kwargs: arguments of `from_pretrained`, and values of the recipe to replace.

        Raises:
            ValueError: an unknown preset, and whatever `from_pretrained` refuses.
        """
        return cls.from_pretrained(pretrained_model_name_or_path, recipe=preset(name), **kwargs)

    @classmethod
    def from_models(
        cls, vqvae: JukeboxVQVAEModel, prior: JukeboxPriorModel, recipe: EmbeddingRecipe, **kwargs: Any
    ) -> "JukeboxEmbedder":
        """Makes an embedder of models in memory, of which it runs no more layers than it needs.

        Args:
            **kwargs: `audio_column`, `batch_size` and `column_dtype`.
        """
        # Copies, as a composite settles the attention of the configurations that it takes.
        JukeboxConfig.from_parts(copy.deepcopy(vqvae.config), [copy.deepcopy(prior.config)])
        recipe.check(prior.config, len(prior.layers))
        embedder = cls(None, None, recipe, **kwargs)
        embedder._models = vqvae, first_layers(prior, max(recipe.layers))
        return embedder

    def __call__(
        self, clips: Any, sampling_rate: int | None = None
    ) -> "JukeboxEmbedding | list[JukeboxEmbedding] | dict[str, list]":
        if isinstance(clips, Mapping) and (self.audio_column in clips or not clips.keys() & CLIP_KEYS):
            return self._map(clips)
        rate, listed = self.load()[1].config.sampling_rate, list_clips(clips)
        read = [read_clip_at(clip, sampling_rate, rate) for clip in listed]
        embeddings = self.embed(read)
        for embedding in embeddings:
            if isinstance(embedding, ValueError):
                raise embedding
        return embeddings if listed is clips else embeddings[0]

    def __getstate__(self) -> dict[str, Any]:
        if self.prior is None:
            raise ValueError("An embedder of models in memory cannot go to another process: use from_pretrained().")
        return self.__dict__ | {"_models": None}

    def load(self) -> tuple[JukeboxVQVAEModel, JukeboxPriorModel]:
        """Loads the VQ-VAE and the prior's first layers, once."""
        if self._models is None:
            for pinned in {self.prior, self.vqvae}:
                pinned.check()
            prepare_worker()
            kwargs = {"num_hidden_layers": max(self.recipe.layers), **self.model_kwargs}
            prior = JukeboxPriorModel.from_pretrained(self.prior.name, revision=self.prior.commit, **kwargs)
            vqvae = JukeboxVQVAEModel.from_pretrained(self.vqvae.name, revision=self.vqvae.commit)
            device = self.device
            if device is None:
                device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
            if "device_map" not in kwargs:
                prior = prior.to(device)
            self._models = vqvae.to(device).eval(), prior.eval()
        return self._models

    @torch.no_grad()
    def embed(self, clips: Sequence[np.ndarray]) -> "list[JukeboxEmbedding | ValueError]":
        """Embeds mono clips `(samples,)` at the model's rate; one that cannot be embedded gives the reason instead.

        The windows of all clips share batches, and compute in the models' own types even under autocast.
        """
        vqvae, prior = self.load()
        # Under a trainer's autocast the VQ-VAE would find other codes, silently.
        devices = input_device(vqvae).type, input_device(prior).type
        with torch.autocast(devices[0], enabled=False), torch.autocast(devices[1], enabled=False):
            return self._embed(clips, vqvae, prior)

    def _embed(
        self, clips: Sequence[np.ndarray], vqvae: JukeboxVQVAEModel, prior: JukeboxPriorModel
    ) -> "list[JukeboxEmbedding | ValueError]":
        results: list = [None] * len(clips)
        windows: list[_CodeWindow] = []
        for row, clip in enumerate(clips):
            try:
                windows += self._encode(row, clip, vqvae, prior.config)
            except ValueError as error:
                results[row] = error
        # Padding costs least among windows of about one length.
        windows.sort(key=lambda window: -len(window.codes))
        for first in range(0, len(windows), self.batch_size):
            self._run(windows[first : first + self.batch_size], prior)
        for row in range(len(clips)):
            if results[row] is None:
                own = sorted((window for window in windows if window.row == row), key=lambda window: window.start)
                try:
                    results[row] = self._join(own, prior.config)
                except ValueError as error:
                    results[row] = error
        return results

    def _encode(
        self, row: int, clip: np.ndarray, vqvae: JukeboxVQVAEModel, config: JukeboxPriorConfig
    ) -> "list[_CodeWindow]":
        """Cuts a clip into windows of codes."""
        recipe, hop = self.recipe, config.hop_length
        planned = recipe.plan(len(clip), config)
        if recipe.max_windows is not None and len(planned) > recipe.max_windows:
            planned = planned[: recipe.max_windows]
            end = (planned[-1].start + planned[-1].length) / config.sampling_rate
            logger.warning_once(
                f"max_windows={recipe.max_windows}: of longer clips only the first {end:.2f} s are embedded. Set "
                "max_windows=None for all of a clip."
            )
        if recipe.normalize == "clip":
            clip = _normalize(clip)
        padded = np.pad(clip, (0, max(0, planned[-1].start + planned[-1].length - len(clip))))
        whole = _codes(vqvae, padded, config.level) if recipe.encode == "clip" else None
        windows = []
        for window in planned:
            start, frames = window.start, min(window.length, len(clip) - window.start) // hop
            if whole is not None:
                codes = whole[start // hop :]
            else:
                audio = padded[start : start + window.length]
                codes = _codes(vqvae, _normalize(audio) if recipe.normalize == "window" else audio, config.level)
            # Frames of padding may go before the prior runs, as no other frame sees them.
            windows.append(_CodeWindow(row, window, codes[:frames], recipe.timing(len(clip), start, config)))
        if recipe.join == "stitch":
            for before, window in pairwise(windows):
                window.heard = max(0, (before.start + before.window.length - window.start) // hop)
        return windows

    def _run(self, windows: "list[_CodeWindow]", prior: JukeboxPriorModel):
        """Runs windows through the prior together and keeps what each layer's frames are pooled to."""
        config, device = prior.config, input_device(prior)
        codes = torch.nn.utils.rnn.pad_sequence([window.codes for window in windows], batch_first=True)
        inputs: dict[str, Tensor] = {"input_ids": codes.to(device)}
        if config.num_artists:
            inputs["artist_ids"] = torch.tensor([self.recipe.artist_id])
            inputs["genre_ids"] = torch.tensor([self.recipe.genre_ids])
        if config.num_time_bins:
            totals, offsets = zip(*(window.timing for window in windows))
            inputs["offset"] = torch.tensor(offsets)
            if None not in totals:
                inputs["total_length"] = torch.tensor(totals)
        if config.num_lyric_tokens:
            inputs["lyric_ids"] = torch.zeros(len(windows), config.num_lyric_tokens, dtype=torch.long)

        def keep(layer: int, states: Tensor):
            for states_of_one, window in zip(states[:, config.lyric_offset :], windows):
                frames = states_of_one[window.heard : len(window.codes)].float()
                window.pooled[layer] = (frames.mean(0) if self.recipe.pooling == "mean" else frames).cpu()

        with watched(prior, self.recipe.layers, keep):
            prior(**inputs, logits_to_keep=1)

    def _join(self, windows: "list[_CodeWindow]", config: JukeboxPriorConfig) -> JukeboxEmbedding:
        recipe, layers = self.recipe, {}
        for layer in recipe.layers:
            parts = [window.pooled[layer] for window in windows]
            if recipe.join == "windows":
                joined = torch.stack(parts if recipe.pooling == "mean" else [recipe.pool(p, config) for p in parts])
            elif recipe.pooling == "mean":
                frames = torch.tensor([len(window.codes) - window.heard for window in windows], dtype=torch.float64)
                weights = torch.ones_like(frames) if recipe.join == "mean" else frames
                joined = torch.einsum("w,wd->d", weights / weights.sum(), torch.stack(parts).double()).float()
            else:
                joined = recipe.pool(torch.cat(parts), config)
            layers[layer] = joined.numpy()
        starts = np.array([window.start / config.sampling_rate for window in windows])
        return JukeboxEmbedding(layers, starts, recipe.output_rate(config))

    def _map(self, batch: Mapping[str, list]) -> dict[str, list]:
        import pyarrow as pa

        readers = row_readers(batch, self.audio_column)
        rate = self.load()[1].config.sampling_rate
        clips, embeddings = [], [None] * len(readers)
        for row, reader in enumerate(readers):
            try:
                clips.append((row, read_row(reader, rate)))
            except ValueError as error:
                embeddings[row] = error
        for (row, _), embedding in zip(clips, self.embed([clip for _, clip in clips])):
            embeddings[row] = embedding
        has_windows = self.recipe.join == "windows"
        values = pa.from_numpy_dtype(self.column_dtype)
        for _ in range(1 + has_windows + (self.recipe.pooling != "mean")):
            values = pa.list_(values)
        columns = {f"embedding_{layer}": TypedList(values) for layer in self.recipe.layers}
        if has_windows:
            columns["window_starts"] = TypedList(pa.list_(pa.float64()))
        columns["error"] = TypedList(pa.string())
        for embedding in embeddings:
            is_bad = isinstance(embedding, ValueError)
            columns["error"].append(str(embedding) if is_bad else None)
            for layer in self.recipe.layers:
                value = None if is_bad else embedding.layers[layer].astype(self.column_dtype)
                columns[f"embedding_{layer}"].append(value if is_bad or value.ndim == 1 else _nested(value))
            if has_windows:
                columns["window_starts"].append(None if is_bad else embedding.window_starts)
        return columns


@dataclass
class _CodeWindow:
    """A window of a clip on its way through the prior."""

    row: int
    window: EmbeddingWindow
    codes: Tensor
    timing: tuple[int | None, int]
    # Frames at its start that an earlier window gives.
    heard: int = 0

    def __post_init__(self):
        self.pooled: dict[int, Tensor] = {}

    @property
    def start(self) -> int:
        return self.window.start


@contextmanager
def watched(prior: JukeboxPriorModel, layers: Sequence[int], keep):
    """Calls `keep(layer, states)` with the output of each of these layers, so that no other's has to be held."""
    with ExitStack() as stack:
        for layer in layers:
            hook = prior.layers[layer - 1].register_forward_hook(
                lambda module, args, output, layer=layer: keep(layer, output[0])
            )
            stack.callback(hook.remove)
        yield


def first_layers(prior: JukeboxPriorModel, count: int) -> JukeboxPriorModel:
    """Gives a prior of the first `count` layers, which share all weights with the given one."""
    shallow = copy.copy(prior)
    shallow._modules = dict(prior._modules)
    shallow.layers = prior.layers[:count]
    shallow.config = copy.copy(prior.config)
    shallow.config.num_hidden_layers = count
    return shallow


def _codes(vqvae: JukeboxVQVAEModel, audio: np.ndarray, level: int) -> Tensor:
    values = torch.from_numpy(audio).to(input_device(vqvae))[None, None]
    return vqvae.encode(values, levels=[level]).audio_codes[0][0]


def _normalize(audio: np.ndarray) -> np.ndarray:
    peak = np.abs(audio).max()
    return audio / peak if peak else audio


def read_clip_at(clip: Any, sampling_rate: int | None, target: int) -> np.ndarray:
    """Reads a clip of any kind as mono float32 `(samples,)` at the rate `target`.

    Args:
        sampling_rate (`int`, *optional*): of an array; other clips know theirs.

    Raises:
        ValueError: a clip that cannot be read, or an array of unknown rate.
    """
    if not isinstance(clip, str | os.PathLike | Mapping) and not hasattr(clip, "get_all_samples"):
        if sampling_rate is None:
            raise ValueError("sampling_rate=None: say at which rate the clips are, as arrays do not know it.")
        clip = {"array": clip, "sampling_rate": sampling_rate}
    return read_row(lambda: clip, target)


def _nested(values: np.ndarray) -> list:
    # Arrow takes arrays of one axis only.
    return [_nested(value) if value.ndim > 1 else value for value in values]


__all__ = ["JukeboxEmbedder", "JukeboxEmbedding"]
