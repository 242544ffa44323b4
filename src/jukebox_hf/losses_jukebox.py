"""The reconstruction and spectral losses of the VQ-VAE (arXiv 2005.00341, section 3); audio is `(batch, samples)`."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from .configuration_jukebox import JukeboxVQVAEConfig

# The single-scale spectrogram of the original: n_fft, hop length and window length in samples.
SPECTRAL_STFT = (2048, 256, 1536)
# Spectral convergence is not defined for a target quieter than this.
SILENCE_NORM = 2e-3


def reconstruction_loss(
    kind: str, audio: torch.Tensor, target: torch.Tensor, config: JukeboxVQVAEConfig
) -> torch.Tensor:
    """The `kind` of reconstruction loss (`"l1"`, `"l2"`, `"linf"`, `"lmix"`) in units of the data's bandwidth."""
    if kind == "l1":
        return F.l1_loss(audio, target) / config.bandwidth_l1
    if kind == "l2":
        return F.mse_loss(audio, target) / config.bandwidth_l2
    if kind == "linf":
        errors = (audio - target).square()
        if config.linf_k > errors.shape[1]:
            raise ValueError(
                f"linf_k={config.linf_k} exceeds the {errors.shape[1]} samples of a clip: use longer clips or set a "
                "smaller linf_k in the configuration."
            )
        return errors.topk(config.linf_k, dim=1).values.mean() / config.bandwidth_l2
    weights = {"l1": config.lmix_l1, "l2": config.lmix_l2, "linf": config.lmix_linf}
    terms = [weight * reconstruction_loss(kind, audio, target, config) for kind, weight in weights.items() if weight]
    return torch.stack(terms).sum() if terms else audio.new_zeros(())


def spectrogram(audio: torch.Tensor, n_fft: int, hop_length: int, window_length: int) -> torch.Tensor:
    """Magnitudes `(batch, frequencies, frames)` of a centred STFT with a periodic Hann window, computed in fp32."""
    if audio.shape[-1] <= n_fft // 2:
        raise ValueError(
            f"A clip of {audio.shape[-1]} samples is too short for a spectrogram with n_fft={n_fft}: the losses need "
            f"more than {n_fft // 2} samples."
        )
    window = torch.hann_window(window_length, device=audio.device)
    return torch.stft(
        audio.float(), n_fft, hop_length, window_length, window, center=True, pad_mode="reflect", return_complex=True
    ).abs()


def _norm(spectra: torch.Tensor) -> torch.Tensor:
    return spectra.flatten(1).square().sum(dim=1).sqrt()


def spectral_loss(
    audio: torch.Tensor,
    target_spectra: Callable[[int, int, int], torch.Tensor],
    stfts: list[tuple[int, int, int]],
    config: JukeboxVQVAEConfig,
) -> torch.Tensor:
    """Mean distance of a batch's spectrograms from a target's over STFTs, in units of the data's spectral bandwidth.

    `target_spectra` gives the target's [`spectrogram`] for an STFT; who compares several batches to it keeps them.
    """
    distances = [_norm(spectrogram(audio, *stft) - target_spectra(*stft)) for stft in stfts]
    return torch.stack(distances).mean() / config.bandwidth_spectral


def spectral_convergence(audio: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean distance of spectrograms over the target's norm; a silent target counts 0."""
    return relative_distance(spectrogram(audio, *SPECTRAL_STFT), spectrogram(target, *SPECTRAL_STFT))


def relative_distance(spectra: torch.Tensor, target_spectra: torch.Tensor) -> torch.Tensor:
    """[`spectral_convergence`] of spectrograms `(batch, frequencies, frames)` that are known already."""
    distance, norm = _norm(spectra - target_spectra), _norm(target_spectra)
    return torch.where(norm > SILENCE_NORM, distance / norm.clamp(min=SILENCE_NORM), 0.0).mean()
