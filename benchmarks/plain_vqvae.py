"""The VQ-VAE as its definition reads: one pass of ordinary padded `conv1d` over the whole signal."""

from functools import partial

import torch
import torch.nn.functional as F

from jukebox_hf import JukeboxVQVAEModel
from jukebox_hf.losses_jukebox import SPECTRAL_STFT, reconstruction_loss, spectral_loss, spectrogram


def encode_latents(model: JukeboxVQVAEModel, level: int, audio: torch.Tensor) -> torch.Tensor:
    """Audio `(batch, 1, samples)` to latents `(batch, frames, codebook_dim)`."""
    hidden = audio
    for block in model.encoders[level].blocks:
        for downsample in block.downsamples:
            hidden = _residuals(downsample.residual_blocks, _conv1d(downsample.conv, hidden))
        hidden = _conv1d(block.out_conv, hidden)
    return hidden.transpose(1, 2)


def encode(model: JukeboxVQVAEModel, level: int, audio: torch.Tensor) -> torch.Tensor:
    """Audio `(batch, 1, samples)` to codes `(batch, frames)`."""
    latents, vectors = encode_latents(model, level, audio), model.codebooks[level].vectors
    rows = latents.flatten(0, 1)
    distances = rows.square().sum(1, keepdim=True) - 2 * rows @ vectors.t() + vectors.square().sum(1)
    return distances.argmin(1).view(latents.shape[:2])


def decode_vectors(model: JukeboxVQVAEModel, level: int, vectors: torch.Tensor) -> torch.Tensor:
    """Code vectors `(batch, frames, codebook_dim)` to audio `(batch, 1, samples)`."""
    hidden = vectors.transpose(1, 2)
    for block in reversed(model.decoders[level].blocks):
        hidden = _conv1d(block.in_conv, hidden)
        for upsample in block.upsamples:
            hidden, conv = _residuals(upsample.residual_blocks, hidden), upsample.conv
            hidden = F.conv_transpose1d(hidden, conv.weight, conv.bias, conv.stride, conv.padding)
    return _conv1d(model.decoders[level].out_conv, hidden)


def decode(model: JukeboxVQVAEModel, level: int, codes: torch.Tensor) -> torch.Tensor:
    """Codes `(batch, frames)` to audio `(batch, 1, samples)`."""
    return decode_vectors(model, level, model.codebooks[level].vectors[codes])


def training_loss(model: JukeboxVQVAEModel, audio: torch.Tensor) -> torch.Tensor:
    """The loss of audio `(batch, 1, samples)`, level after level, each with spectrograms of its own."""
    config, target, losses = model.config, audio[:, 0], []
    weights = ((config.spectral_weight, [SPECTRAL_STFT]), (config.multispectral_weight, config.multispectral_stfts))
    for level, codebook in enumerate(model.codebooks):
        _, vectors, commitment, _ = codebook.quantize(encode_latents(model, level, audio))
        reconstruction = decode_vectors(model, level, vectors)[:, 0].float()
        losses.append(reconstruction_loss(config.reconstruction_loss, reconstruction, target, config))
        losses.append(config.commitment_weight * commitment)
        for weight, stfts in weights:
            losses.append(weight * spectral_loss(reconstruction, partial(spectrogram, target), stfts, config))
    return torch.stack(losses).sum()


def _residuals(blocks, hidden):
    for block in blocks:
        hidden = hidden + _conv1d(block.conv2, _conv1d(block.conv1, hidden.relu()).relu())
    return hidden


def _conv1d(conv, hidden):
    return F.conv1d(hidden, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation)
