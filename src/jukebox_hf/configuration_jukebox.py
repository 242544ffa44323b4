"""Configurations of the Jukebox models."""

import math
from itertools import accumulate
from operator import mul

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

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

    def validate_sizes(self):
        for name in ("hidden_size", "num_residual_layers", "dilation_growth_rate", "dilation_cycle", "codebook_size",
                     "codebook_dim", "sampling_rate", "linf_k"):  # fmt: skip
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"{name}={size}: give a positive number.")

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


__all__ = ["JukeboxVQVAEConfig"]
