"""jukebox-infer from PyPI, the port to compare with: an optional extra (`pip install 'jukebox-hf[peer]'`)."""

from pathlib import Path

import torch

from jukebox_hf import JukeboxVQVAEConfig


def load_peer_vqvae(config: JukeboxVQVAEConfig, checkpoint: Path, samples: int) -> torch.nn.Module | None:
    """jukebox-infer's VQ-VAE with the weights of a checkpoint of the original, or None where it is not installed."""
    try:
        from jukebox_infer.vqvae.vqvae import VQVAE
    except ImportError:
        return None
    peer = VQVAE(
        input_shape=(samples // config.hop_length * config.hop_length, 1),
        levels=config.num_levels,
        downs_t=tuple(config.num_downsamples),
        strides_t=tuple(config.strides),
        emb_width=config.codebook_dim,
        l_bins=config.codebook_size,
        mu=config.codebook_decay,
        commit=config.commitment_weight,
        spectral=config.spectral_weight,
        multispectral=config.multispectral_weight,
        multipliers=config.level_multipliers,
        width=config.hidden_size,
        depth=config.num_residual_layers,
        m_conv=config.residual_expansion,
        dilation_growth_rate=config.dilation_growth_rate,
        dilation_cycle=config.dilation_cycle,
        reverse_decoder_dilation=True,
    )
    missing, unexpected = peer.load_state_dict(torch.load(checkpoint, weights_only=True)["model"], strict=False)
    if missing or unexpected:
        raise ValueError(f"jukebox-infer does not take {checkpoint}: {missing[:3]} {unexpected[:3]}")
    return peer.eval()
