"""Configurations of the Jukebox models."""

import math
from collections.abc import Iterable
from itertools import accumulate, cycle, islice
from operator import mul

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .attention_patterns import PATTERNS, Grid
from .v4_layout import is_v4_config, is_v4_prior, is_v4_vqvae, translate_v4_config, translate_v4_vqvae

RECONSTRUCTION_LOSSES = ("l1", "l2", "linf", "lmix")


@strict
class JukeboxVQVAEConfig(PreTrainedConfig):
    r"""Configuration of a [`JukeboxVQVAEModel`]; the defaults are the released model's (arXiv 2005.00341).

    Lists over levels run from level 0, the finest. Each level has an encoder, a decoder and a codebook of its own.

    Args:
        num_downsamples (`list[int]`): how many strided convolutions each level adds to those of the level below it.
        strides (`list[int]`): the stride of each of these convolutions, an even number.
        hidden_size (`int`): channels of the residual stacks.
        num_residual_layers (`int`): residual blocks after each strided (before each transposed) convolution.
        level_multipliers (`list[int]`, *optional*): factors on `hidden_size` and `num_residual_layers` for each level.
        residual_expansion (`float`): inner channels of a residual block over `hidden_size`.
        dilation_growth_rate (`int`): residual block `i` has dilation `dilation_growth_rate ** i`.
        dilation_cycle (`int`, *optional*): restart the dilations after so many blocks.
        codebook_size (`int`): codes in each codebook.
        codebook_dim (`int`): size of a code vector.
        codebook_decay (`float`): decay of the running codebook statistics in training (section 3, and van den Oord
            et al. 2017, arXiv 1711.00937).
        codebook_revival_threshold (`float`): a code whose running count falls below it restarts from a random latent.
        sampling_rate (`int`): in Hz.
        reconstruction_loss (`str`): `"l1"`, `"l2"`, `"linf"` (mean of the largest squared errors) or `"lmix"`.
        linf_k (`int`): how many of the largest squared errors of a clip `"linf"` averages.
        lmix_l1, lmix_l2, lmix_linf (`float`): weights of the three in `"lmix"`.
        spectral_weight, multispectral_weight, commitment_weight (`float`): weights of these losses in the total.
        multispectral_n_fft, multispectral_hop_length, multispectral_window_length (`list[int]`): the STFTs whose
            distances `multispectral_loss` averages, in samples (section 3).
        bandwidth_l1, bandwidth_l2, bandwidth_spectral (`float`): mean absolute value, variance and mean spectrogram
            norm of the training data; the losses are divided by them.
    """

    model_type = "jukebox_vqvae"
    base_config_key = "vqvae_config"

    num_downsamples: list[int] | tuple[int, ...] = (3, 2, 2)
    strides: list[int] | tuple[int, ...] = (2, 2, 2)
    hidden_size: int = 32
    num_residual_layers: int = 4
    level_multipliers: list[int] | tuple[int, ...] | None = (2, 1, 1)
    residual_expansion: float | int = 1.0
    dilation_growth_rate: int = 3
    dilation_cycle: int | None = None
    codebook_size: int = 2048
    codebook_dim: int = 64
    codebook_decay: float | int = 0.99
    codebook_revival_threshold: float | int = 1.0
    sampling_rate: int = 44100
    reconstruction_loss: str = "lmix"
    linf_k: int = 2048
    lmix_l1: float | int = 0.0
    lmix_l2: float | int = 1.0
    lmix_linf: float | int = 0.02
    spectral_weight: float | int = 0.0
    multispectral_weight: float | int = 1.0
    commitment_weight: float | int = 0.02
    multispectral_n_fft: list[int] | tuple[int, ...] = (2048, 1024, 512)
    multispectral_hop_length: list[int] | tuple[int, ...] = (240, 120, 50)
    multispectral_window_length: list[int] | tuple[int, ...] = (1200, 600, 240)
    bandwidth_l1: float | int = 1.0
    bandwidth_l2: float | int = 1.0
    bandwidth_spectral: float | int = 1.0

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs) -> "JukeboxVQVAEConfig":
        """As for any configuration; one of transformers 4 is translated."""
        config_dict = translate_v4_vqvae(config_dict) if is_v4_vqvae(config_dict) else config_dict
        return super().from_dict(config_dict, **kwargs)

    def validate_sizes(self):
        names = ("hidden_size", "num_residual_layers", "dilation_growth_rate", "dilation_cycle", "codebook_size",
                 "codebook_dim", "sampling_rate", "linf_k")  # fmt: skip
        _check_positive(self, names)

    def validate_levels(self):
        levels = len(self.num_downsamples)
        if levels == 0 or min(self.num_downsamples) < 1:
            raise ValueError(f"num_downsamples={self.num_downsamples}: give one positive number for each level.")
        if len(self.strides) != levels:
            raise ValueError(f"strides={self.strides}: give {levels} numbers, one for each level of num_downsamples.")
        if any(stride < 2 or stride % 2 for stride in self.strides):
            raise ValueError(f"strides={self.strides}: strides are even numbers.")
        if self.level_multipliers is not None and len(self.level_multipliers) != levels:
            raise ValueError(f"level_multipliers={self.level_multipliers}: give {levels} numbers, one for each level.")

    def validate_losses(self):
        if self.reconstruction_loss not in RECONSTRUCTION_LOSSES:
            raise ValueError(
                f"reconstruction_loss={self.reconstruction_loss!r}: choose one of {', '.join(RECONSTRUCTION_LOSSES)}."
            )
        stfts = (self.multispectral_n_fft, self.multispectral_hop_length, self.multispectral_window_length)
        if len({len(sizes) for sizes in stfts}) != 1:
            raise ValueError(
                "multispectral_n_fft, multispectral_hop_length and multispectral_window_length describe the same "
                f"STFTs and must be equally long, not {stfts}."
            )

    @property
    def multispectral_stfts(self) -> list[tuple[int, int, int]]:
        """n_fft, hop length and window length of each STFT."""
        return list(zip(self.multispectral_n_fft, self.multispectral_hop_length, self.multispectral_window_length))

    @property
    def num_levels(self) -> int:
        return len(self.num_downsamples)

    @property
    def hop_lengths(self) -> list[int]:
        """Samples of audio a code of each level stands for, from level 0 up: 8, 32, 128 for the released model."""
        return list(accumulate((stride**n for stride, n in zip(self.strides, self.num_downsamples)), mul))

    @property
    def hop_length(self) -> int:
        """Samples a code of the top level stands for: the longest hop."""
        return math.prod(stride**n for stride, n in zip(self.strides, self.num_downsamples))

    def check_levels(self, levels: list[int] | None) -> list[int]:
        """Gives the asked levels, or all of them for None.

        Raises:
            ValueError: none, or levels that this model does not have.
        """
        known = range(self.num_levels)
        levels = list(known) if levels is None else levels
        if (
            not isinstance(levels, list | tuple)
            or not levels
            or not all(isinstance(level, int) and level in known for level in levels)
        ):
            raise ValueError(f"levels={levels}: this model has the levels {', '.join(map(str, known))}.")
        return list(levels)


@strict
class JukeboxLyricsEncoderConfig(PreTrainedConfig):
    r"""The stack of layers that reads the lyrics of a [`JukeboxPriorModel`]; the defaults are those of 5b_lyrics.

    Its vocabulary and length are the prior's `lyric_vocab_size` and `num_lyric_tokens`.

    Args:
        hidden_size (`int`): width of the residual stream.
        num_hidden_layers (`int`): transformer layers.
        num_attention_heads (`int`): heads of each attention.
        head_dim (`int`): size of a head's queries, keys and values.
        intermediate_size (`int`): inner width of the MLPs.
        num_blocks (`int`): blocks the sequence is cut into for the attention patterns.
        attention_pattern (`str`): the layers' attention patterns, as in [`JukeboxPriorConfig`].
        residual_scale (`float`): factor on what each layer adds to the residual stream.
        init_scale (`float`): factor on the deviations of the initial weights.
    """

    model_type = "jukebox_lyrics_encoder"
    base_config_key = "lyrics_encoder_config"

    hidden_size: int = 1280
    num_hidden_layers: int = 18
    num_attention_heads: int = 4
    head_dim: int = 80
    intermediate_size: int = 1280
    num_blocks: int = 32
    attention_pattern: str = "rcp"
    residual_scale: float | int = 1.0
    init_scale: float | int = 0.7

    def validate_sizes(self):
        _check_positive(self, STACK_SIZES)

    def validate_patterns(self):
        _check_pattern(self, allowed="rcpD")


@strict
class JukeboxConditionerConfig(PreTrainedConfig):
    r"""The network that brings the codes of the level above to an upsampler's rate; the defaults are the released ones.

    Args:
        strides (`list[int]`): of the transposed convolutions, one stack of residual blocks before each; their product
            is the number of codes that one code of the level above stands for.
        hidden_size (`int`): channels of the residual stacks.
        num_residual_layers (`int`): residual blocks in each stack.
        residual_expansion (`float`): inner channels of a residual block over `hidden_size`.
        dilation_growth_rate (`int`): residual block `i` has dilation `dilation_growth_rate ** (i % dilation_cycle)`.
        dilation_cycle (`int`, *optional*): restart the dilations after so many blocks.
        residual_scale (`float`): factor on what each block adds; 1 at level 0, 0.25 at level 1.
    """

    model_type = "jukebox_conditioner"
    base_config_key = "conditioner_config"

    strides: list[int] | tuple[int, ...] = (2, 2)
    hidden_size: int = 1024
    num_residual_layers: int = 16
    residual_expansion: float | int = 1.0
    dilation_growth_rate: int = 3
    dilation_cycle: int | None = 8
    residual_scale: float | int = 1.0

    def validate_sizes(self):
        _check_positive(self, ("hidden_size", "num_residual_layers", "dilation_growth_rate", "dilation_cycle"))
        if not self.strides or any(stride < 2 or stride % 2 for stride in self.strides):
            raise ValueError(f"strides={self.strides}: give even numbers, one for each transposed convolution.")

    @property
    def upsampling_factor(self) -> int:
        return math.prod(self.strides)


@strict
class JukeboxPriorConfig(PreTrainedConfig):
    r"""Configuration of a [`JukeboxPriorModel`]; the defaults are those of the released 5b prior.

    Args:
        level (`int`): the level of the VQ-VAE whose codes this prior models, 0 for the finest.
        vocab_size (`int`): codes in that level's codebook.
        context_length (`int`): codes in one window, the context.
        hop_length (`int`): samples of audio that a code stands for.
        sampling_rate (`int`): in Hz.
        hidden_size (`int`): width of the residual stream.
        num_hidden_layers (`int`): transformer layers. A smaller number, given to `from_pretrained`, loads the first
            layers only.
        num_attention_heads (`int`): heads of each attention.
        head_dim (`int`): size of a head's queries, keys and values.
        intermediate_size (`int`): inner width of the MLPs.
        num_blocks (`int`): blocks the sequence is cut into for the attention patterns.
        attention_pattern (`str`): a letter for each layer, repeated as often as there are layers: `r` row, `c` column,
            `p` previous, `D` dense, `P` prime, `x` cross (see `attention_patterns.py`).
        residual_scale (`float`): factor on what each layer adds to the residual stream.
        init_scale (`float`): factor on the deviations of the initial weights.
        tie_word_embeddings (`bool`): whether the output matrix is the token embedding.
        add_conditioning_after_stack (`bool`): add the timing or the upsampled codes again before the output matrix.
        num_artists, num_genres (`int`): sizes of the label vocabularies; 0 for a model without labels.
        max_genres (`int`): genre words a sample may have.
        num_time_bins (`int`): bins of each of the three timing embeddings; 0 for a model without timing.
        min_duration, max_duration (`float`): of a whole song, in seconds, as in training.
        num_lyric_tokens (`int`): characters of lyrics that a window sees; 0 for a model without lyrics.
        lyric_vocab_size (`int`): characters in the lyrics' vocabulary, with 0 for none.
        lyrics_encoder_config (`JukeboxLyricsEncoderConfig`, *optional*): the lyrics' own stack. A model with lyrics
            and no such stack reads them in front of the codes, in one sequence and one vocabulary.
        lyrics_loss_weight (`float`): factor on the lyrics' part of the loss.
        alignment_layer, alignment_head (`int`, *optional*): the attention that aligns lyrics and music best.
        conditioner_config (`JukeboxConditionerConfig`, *optional*): of an upsampler; none for a top prior.
    """

    model_type = "jukebox_prior"
    base_config_key = "prior_config"
    sub_configs = {
        "lyrics_encoder_config": JukeboxLyricsEncoderConfig,
        "conditioner_config": JukeboxConditionerConfig,
    }

    level: int = 2
    vocab_size: int = 2048
    context_length: int = 8192
    hop_length: int = 128
    sampling_rate: int = 44100
    hidden_size: int = 4800
    num_hidden_layers: int = 72
    num_attention_heads: int = 8
    head_dim: int = 150
    intermediate_size: int = 4800
    num_blocks: int = 128
    attention_pattern: str = "rcp"
    residual_scale: float | int = 1.0
    init_scale: float | int = 0.1
    tie_word_embeddings: bool = False
    add_conditioning_after_stack: bool = False
    num_artists: int = 4111
    num_genres: int = 120
    max_genres: int = 5
    num_time_bins: int = 128
    min_duration: float | int = 60.0
    max_duration: float | int = 600.0
    num_lyric_tokens: int = 0
    lyric_vocab_size: int = 0
    lyrics_encoder_config: dict | PreTrainedConfig | None = None
    lyrics_loss_weight: float | int = 0.4
    alignment_layer: int | None = None
    alignment_head: int | None = None
    conditioner_config: dict | PreTrainedConfig | None = None

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs) -> "JukeboxPriorConfig":
        """As for any configuration.

        Raises:
            ValueError: one of transformers 4, which does not say what else the model needs to know.
        """
        if is_v4_prior(config_dict):
            raise ValueError(
                "This is one prior as transformers 4 stored it, which does not know its place among the others: load "
                "it from a whole repository, as in JukeboxPriorModel.from_pretrained(repository, level=2)."
            )
        return super().from_dict(config_dict, **kwargs)

    def __post_init__(self, **kwargs):
        for name, config_class in self.sub_configs.items():
            if isinstance(getattr(self, name), dict):
                setattr(self, name, config_class(**getattr(self, name)))
        super().__post_init__(**kwargs)

    def validate_sizes(self):
        names = ("vocab_size", "context_length", "hop_length", "sampling_rate", "max_genres")
        _check_positive(self, STACK_SIZES + names)
        for name in ("level", "num_artists", "num_genres", "num_time_bins", "num_lyric_tokens", "lyric_vocab_size"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: give 0 for none, or a positive number.")
        if self.sequence_length % self.num_blocks:
            raise ValueError(
                f"num_blocks={self.num_blocks} does not divide the sequence of {self.sequence_length} positions: give "
                "a number that does."
            )

    def validate_labels(self):
        if bool(self.num_artists) != bool(self.num_genres):
            raise ValueError(
                f"num_artists={self.num_artists}, num_genres={self.num_genres}: a model with labels has both."
            )
        if self.num_time_bins and not self.num_artists:
            raise ValueError(f"num_time_bins={self.num_time_bins}: timing is part of the labels; give both or neither.")
        if not 0 <= self.min_duration < self.max_duration:
            raise ValueError(
                f"min_duration={self.min_duration}, max_duration={self.max_duration}: give a range of seconds."
            )

    def validate_lyrics(self):
        if bool(self.num_lyric_tokens) != bool(self.lyric_vocab_size):
            raise ValueError(
                f"num_lyric_tokens={self.num_lyric_tokens}, lyric_vocab_size={self.lyric_vocab_size}: a model with "
                "lyrics has both."
            )
        if self.num_lyric_tokens % 2:
            raise ValueError(
                f"num_lyric_tokens={self.num_lyric_tokens}: give an even number; a window of characters has two halves."
            )
        encoder = self.lyrics_encoder_config
        if encoder is not None and (not self.num_lyric_tokens or self.num_lyric_tokens % encoder.num_blocks):
            raise ValueError(
                f"num_lyric_tokens={self.num_lyric_tokens}: a lyrics encoder of {encoder.num_blocks} blocks needs a "
                "positive multiple of that."
            )
        _check_pattern(self, "rcpD" + "x" * (encoder is not None) + "P" * self.shares_stack)

    def validate_conditioner(self):
        conditioner = self.conditioner_config
        if conditioner is not None and self.context_length % conditioner.upsampling_factor:
            raise ValueError(
                f"context_length={self.context_length}: one code of the level above stands for "
                f"{conditioner.upsampling_factor} codes; give a multiple of that."
            )

    @property
    def shares_stack(self) -> bool:
        """Whether the lyrics stand in front of the codes in one sequence, as in 1b_lyrics."""
        return self.num_lyric_tokens > 0 and self.lyrics_encoder_config is None

    @property
    def lyric_offset(self) -> int:
        """Positions before the first code."""
        return self.num_lyric_tokens if self.shares_stack else 0

    @property
    def code_offset(self) -> int:
        """What a code is shifted by in the stack's vocabulary."""
        return self.lyric_vocab_size if self.shares_stack else 0

    @property
    def sequence_length(self) -> int:
        """Positions in the stack: the context, and the lyrics where they share it."""
        return self.lyric_offset + self.context_length

    @property
    def grid(self) -> Grid:
        """How the attention patterns cut the sequence."""
        num_prime = (self.num_lyric_tokens // self.num_blocks + 1) * self.num_blocks
        return Grid(self.num_blocks, self.sequence_length // self.num_blocks, num_prime)

    @property
    def layer_patterns(self) -> str:
        """A letter for each layer, the attention pattern that it has."""
        return repeat_pattern(self)

    @property
    def start_token_id(self) -> int:
        """What stands for "nothing yet" in the stack's input: the id after the last of the vocabulary."""
        return self.code_offset + self.vocab_size

    @property
    def sample_length(self) -> int:
        """Samples of audio that a window stands for."""
        return self.context_length * self.hop_length

    @property
    def num_upper_codes(self) -> int:
        """Codes of the level above that a window reads; 0 for a top prior."""
        if self.conditioner_config is None:
            return 0
        return self.context_length // self.conditioner_config.upsampling_factor


@strict
class JukeboxConfig(PreTrainedConfig):
    r"""Configuration of a [`JukeboxModel`]: a VQ-VAE and the priors of its levels.

    Args:
        vqvae_config (`JukeboxVQVAEConfig`): of the VQ-VAE; default the released one.
        prior_0, prior_1, prior_2 (`JukeboxPriorConfig`, *optional*): of each level's prior, 0 for the finest. The top
            level's is a top prior, the others are upsamplers. A level without one cannot be drawn.
    """

    model_type = "jukebox"
    sub_configs = {"vqvae_config": JukeboxVQVAEConfig} | {f"prior_{level}": JukeboxPriorConfig for level in range(3)}

    vqvae_config: dict | PreTrainedConfig | None = None
    prior_0: dict | PreTrainedConfig | None = None
    prior_1: dict | PreTrainedConfig | None = None
    prior_2: dict | PreTrainedConfig | None = None

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs) -> "JukeboxConfig":
        """As for any configuration; that of a repository of transformers 4 is translated."""
        config_dict = translate_v4_config(config_dict) if is_v4_config(config_dict) else config_dict
        return super().from_dict(config_dict, **kwargs)

    def __post_init__(self, **kwargs):
        if self.vqvae_config is None:
            self.vqvae_config = JukeboxVQVAEConfig()
        for name, config_class in self.sub_configs.items():
            if isinstance(getattr(self, name), dict):
                setattr(self, name, config_class(**getattr(self, name)))
        super().__post_init__(**kwargs)

    @classmethod
    def from_parts(
        cls, vqvae_config: JukeboxVQVAEConfig, prior_configs: Iterable[JukeboxPriorConfig]
    ) -> "JukeboxConfig":
        """Puts the priors' configurations at the levels that they name.

        Raises:
            ValueError: two priors of one level, a level that the VQ-VAE does not have, or parts that do not fit.
        """
        priors = {}
        for config in prior_configs:
            if config.level in priors:
                raise ValueError(f"Two of the priors are of level {config.level}: give one for each level.")
            priors[config.level] = config
        if unknown := [level for level in priors if f"prior_{level}" not in cls.sub_configs]:
            raise ValueError(f"A prior is of level {unknown[0]}: a JukeboxModel has the levels 0 to 2.")
        return cls(vqvae_config=vqvae_config, **{f"prior_{level}": config for level, config in priors.items()})

    def validate_parts(self):
        vqvae = self.vqvae_config
        for level, prior in self.priors.items():
            if level >= vqvae.num_levels:
                raise ValueError(f"prior_{level} is given, but the VQ-VAE has the levels 0 to {vqvae.num_levels - 1}.")
            facts = {
                "level": level,
                "vocab_size": vqvae.codebook_size,
                "hop_length": vqvae.hop_lengths[level],
                "sampling_rate": vqvae.sampling_rate,
            }
            for name, value in facts.items():
                if getattr(prior, name) != value:
                    raise ValueError(
                        f"prior_{level} has {name}={getattr(prior, name)}, but the VQ-VAE's level {level} has {value}: "
                        "put together parts that were trained together."
                    )
            conditioner = prior.conditioner_config
            if (conditioner is None) != (level == vqvae.num_levels - 1):
                kind = "a top prior" if conditioner is None else "an upsampler"
                raise ValueError(f"prior_{level} is {kind}, but level {level} of {vqvae.num_levels} is not its place.")
            if conditioner is not None:
                factor = vqvae.hop_lengths[level + 1] // vqvae.hop_lengths[level]
                if conditioner.upsampling_factor != factor:
                    raise ValueError(
                        f"prior_{level} brings level {level + 1} up by {conditioner.upsampling_factor}, but the VQ-VAE "
                        f"has {factor} codes of level {level} for one above: set conditioner_config.strides."
                    )

    @property
    def priors(self) -> dict[int, JukeboxPriorConfig]:
        """The configuration of each level's prior, from level 0 up, of those that there are."""
        named = {level: getattr(self, f"prior_{level}") for level in range(len(self.sub_configs) - 1)}
        return {level: config for level, config in named.items() if config is not None}

    @property
    def sampling_rate(self) -> int:
        """In Hz."""
        return self.vqvae_config.sampling_rate


def repeat_pattern(config: JukeboxPriorConfig | JukeboxLyricsEncoderConfig) -> str:
    """Gives a letter of `attention_pattern` for each layer."""
    return "".join(islice(cycle(config.attention_pattern), config.num_hidden_layers))


STACK_SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "intermediate_size", "num_blocks",
)  # fmt: skip


def _check_positive(config: PreTrainedConfig, names: tuple[str, ...]):
    for name in names:
        size = getattr(config, name)
        if size is not None and size < 1:
            raise ValueError(f"{name}={size}: give a positive number.")


def _check_pattern(config: PreTrainedConfig, allowed: str):
    pattern = config.attention_pattern
    if not pattern or set(pattern) - set(allowed):
        raise ValueError(
            f"attention_pattern={pattern!r}: this model's layers can be "
            f"{', '.join(f'{letter} ({PATTERNS[letter].name})' for letter in allowed)}."
        )


__all__ = [
    "JukeboxConditionerConfig",
    "JukeboxConfig",
    "JukeboxLyricsEncoderConfig",
    "JukeboxPriorConfig",
    "JukeboxVQVAEConfig",
]
