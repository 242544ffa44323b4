"""The task `jukebox-embedding` of transformers' pipelines."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import AutoConfig, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_jukebox import JukeboxConfig
from .embedding_recipes import PRESETS
from .embedding_recipes import preset as preset_recipe
from .embeddings import JukeboxEmbedder, read_clip_at
from .modeling_jukebox import JukeboxModel
from .modeling_jukebox_prior import JukeboxPriorModel
from .modeling_jukebox_vqvae import JukeboxVQVAEModel

TASK = "jukebox-embedding"
DEFAULT_PRESET = "jukemir"


class JukeboxEmbeddingLoader:
    """Loads what embeddings need of a whole model's repository: the VQ-VAE and the first layers of the top prior."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, num_hidden_layers: int | None = None, dtype: Any = "auto", **kwargs
    ) -> JukeboxModel:
        """Gives a [`JukeboxModel`] without its other parts.

        Args:
            num_hidden_layers (`int`, *optional*): layers to load; default the 36 of the default preset, or all if that
                is fewer.
            dtype: of the prior's matrices; `"auto"` is fp32, in which the recipes compute, whatever the files hold.

        Raises:
            ValueError: a repository that is no whole model's, or has no prior of its top level.
        """
        kwargs.pop("config", None)
        config = AutoConfig.from_pretrained(pretrained_model_name_or_path, **kwargs)
        top = config.vqvae_config.num_levels - 1 if isinstance(config, JukeboxConfig) else None
        if top is None or top not in config.priors:
            raise ValueError(
                f"{pretrained_model_name_or_path} is no whole Jukebox model with a prior of its top level: embed with "
                "JukeboxEmbedder.from_pretrained(prior, vqvae=...)."
            )
        if num_hidden_layers is None:
            num_hidden_layers = min(max(PRESETS[DEFAULT_PRESET].layers), config.priors[top].num_hidden_layers)
        prior = JukeboxPriorModel.from_pretrained(
            pretrained_model_name_or_path,
            num_hidden_layers=num_hidden_layers,
            dtype="float32" if dtype == "auto" else dtype,
            **kwargs,
        )
        vqvae = JukeboxVQVAEModel.from_pretrained(pretrained_model_name_or_path, **kwargs)
        model = JukeboxModel.from_parts(vqvae, [prior])
        if hasattr(prior, "hf_device_map"):
            model.hf_device_map = prior.hf_device_map
        return model


class JukeboxEmbeddingPipeline(Pipeline):
    """Embeds audio: `pipeline("jukebox-embedding", model=...)(audio)`.

    Audio is a path, an array (with `sampling_rate`), a dict of `array` and `sampling_rate`, or a list or dataset of
    these; each gives a dict of `embeddings`, arrays by layer, `window_starts` in seconds and `frame_rate`, as in
    [`JukeboxEmbedding`].

    Args:
        preset (`str`): a recipe of the literature, default `"jukemir"`; values of [`EmbeddingRecipe`] change it. Layers
            beyond the first 36 are loaded with `model_kwargs={"num_hidden_layers": ...}`.
        sampling_rate (`int`, *optional*): of arrays.

    Raises:
        ValueError: an unknown preset or value, a layer that was not loaded, or audio that cannot be embedded.
    """

    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_tokenizer = False

    def _sanitize_parameters(self, sampling_rate: int | None = None, **changes: Any):
        preprocess = {} if sampling_rate is None else {"sampling_rate": sampling_rate}
        return preprocess, changes, {}

    def preprocess(self, audio: Any, sampling_rate: int | None = None) -> dict[str, np.ndarray]:
        return {"clip": read_clip_at(audio, sampling_rate, self.model.config.sampling_rate)}

    def _forward(self, inputs: dict[str, Any], preset: str = DEFAULT_PRESET, **changes: Any) -> dict[str, list]:
        recipe = preset_recipe(preset, **changes)
        (prior,) = self.model.priors.values()
        embedder = JukeboxEmbedder.from_models(self.model.vqvae, prior, recipe)
        # A list where the pipeline has made a batch.
        clips = inputs["clip"] if isinstance(inputs["clip"], list) else [inputs["clip"]]
        return {"embedding": embedder(clips, sampling_rate=prior.config.sampling_rate)}

    def postprocess(self, outputs: dict[str, Any]) -> dict[str, Any]:
        embedding = outputs["embedding"]
        if isinstance(embedding, Sequence):
            (embedding,) = embedding
        return {
            "embeddings": embedding.layers,
            "window_starts": embedding.window_starts,
            "frame_rate": embedding.frame_rate,
        }


def register_pipeline():
    """Registers the task; doing it again changes nothing."""
    if TASK not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(
            TASK, pipeline_class=JukeboxEmbeddingPipeline, pt_model=JukeboxEmbeddingLoader, type="audio"
        )


__all__ = ["JukeboxEmbeddingPipeline"]
