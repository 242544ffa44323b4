"""Jukebox as a whole: a VQ-VAE and a prior for each of its levels (arXiv 2005.00341)."""

from collections.abc import Iterable

import torch
from transformers import GenerationConfig, PreTrainedModel

from .configuration_jukebox import JukeboxConfig
from .generation_jukebox import JukeboxGenerationMixin
from .modeling_jukebox_prior import SAMPLING, JukeboxPriorModel
from .modeling_jukebox_vqvae import JukeboxVQVAEModel
from .v4_layout import read_v4_config, v4_hop_fractions
from .v4_weights import V4LoadingMixin

# The original's: how far apart windows start, as a share of the context.
TOP_HOP_FRACTION = 0.125
UPSAMPLER_HOP_FRACTION = 0.5


class JukeboxModel(V4LoadingMixin, JukeboxGenerationMixin, PreTrainedModel):
    """A VQ-VAE and the priors of its levels, which draw songs level by level from the top down.

    `vqvae` and `prior_0` to `prior_2` are whole models of their own. Their classes load them alone from a repository of
    this model, too: `JukeboxVQVAEModel.from_pretrained(repository)`, `JukeboxPriorModel.from_pretrained(repository,
    level=1)`.
    """

    config: JukeboxConfig
    base_model_prefix = "jukebox"
    main_input_name = "input_values"
    input_modalities = ("text", "audio")
    output_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    # As in the original, which runs it in single precision always.
    _keep_in_fp32_modules_strict = ["vqvae"]

    def __init__(self, config: JukeboxConfig):
        super().__init__(config)
        self.vqvae = JukeboxVQVAEModel(config.vqvae_config)
        for level, prior in config.priors.items():
            part = JukeboxPriorModel(prior)
            # A part that is used alone draws as the whole does; transformers' own default is greedy.
            part.generation_config = GenerationConfig(**SAMPLING)
            setattr(self, f"prior_{level}", part)
        self.post_init()
        # What a part alone does not expect.
        self._keys_to_ignore_on_load_unexpected = set()
        self.generation_config = default_generation_config(config)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """As for any model; one of transformers 4, which stored no settings of sampling, gets the original's."""
        v4_config = read_v4_config(pretrained_model_name_or_path, **kwargs)
        if v4_config is not None and kwargs.get("generation_config") is None:
            kwargs["generation_config"] = default_generation_config(JukeboxConfig.from_dict(v4_config))
            kwargs["generation_config"].hop_fractions = v4_hop_fractions(v4_config)
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the priors' matrices; the VQ-VAE stays in fp32."""
        return next((prior.dtype for prior in self.priors.values()), self.vqvae.dtype)

    @property
    def priors(self) -> dict[int, JukeboxPriorModel]:
        """The prior of each level, from level 0 up, of those that there are."""
        return {level: getattr(self, f"prior_{level}") for level in self.config.priors}

    @classmethod
    def from_parts(cls, vqvae: JukeboxVQVAEModel, priors: Iterable[JukeboxPriorModel]) -> "JukeboxModel":
        """Makes one model of separately converted or trained parts, which it holds and does not copy.

        Args:
            vqvae ([`JukeboxVQVAEModel`]): of the codes.
            priors (models, in any order): of all levels, or of those that you want to draw.

        Raises:
            ValueError: parts that do not fit together.
        """
        priors = sorted(priors, key=lambda prior: prior.config.level)
        config = JukeboxConfig.from_parts(vqvae.config, [prior.config for prior in priors])
        with torch.device("meta"):
            model = cls(config)
        model.vqvae = vqvae
        for prior in priors:
            setattr(model, f"prior_{prior.config.level}", prior)
        return model.eval()


def default_generation_config(config: JukeboxConfig) -> GenerationConfig:
    """Makes the original's sampling settings: temperature 0.99, no top-k, and the hops between windows.

    `hop_fractions` are shares of the context, from level 0 up, and `max_length` is one context of the top level.
    """
    top = config.vqvae_config.num_levels - 1
    hop_fractions = [UPSAMPLER_HOP_FRACTION] * top + [TOP_HOP_FRACTION]
    length = {"max_length": config.priors[top].context_length} if top in config.priors else {}
    return GenerationConfig(**SAMPLING, hop_fractions=hop_fractions, **length)


__all__ = ["JukeboxModel"]
