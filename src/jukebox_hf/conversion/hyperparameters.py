"""From the hyper-parameters that the original stores in a checkpoint (`hps`) to our configurations."""

import logging

import numpy as np
from huggingface_hub.errors import StrictDataclassError

from ..configuration_jukebox import JukeboxVQVAEConfig

logger = logging.getLogger(__name__)

# Names in `hps` and in JukeboxVQVAEConfig.
VQVAE_FIELDS = {
    "downs_t": "num_downsamples",
    "strides_t": "strides",
    "width": "hidden_size",
    "depth": "num_residual_layers",
    "hvqvae_multipliers": "level_multipliers",
    "m_conv": "residual_expansion",
    "dilation_growth_rate": "dilation_growth_rate",
    "dilation_cycle": "dilation_cycle",
    "l_bins": "codebook_size",
    "emb_width": "codebook_dim",
    "l_mu": "codebook_decay",
    "revival_threshold": "codebook_revival_threshold",
    "sr": "sampling_rate",
    "loss_fn": "reconstruction_loss",
    "linf_k": "linf_k",
    "lmix_l1": "lmix_l1",
    "lmix_l2": "lmix_l2",
    "lmix_linf": "lmix_linf",
    "spectral": "spectral_weight",
    "multispectral": "multispectral_weight",
    "commit": "commitment_weight",
    "multispec_loss_n_fft": "multispectral_n_fft",
    "multispec_loss_hop_length": "multispectral_hop_length",
    "multispec_loss_window_size": "multispectral_window_length",
}
# Switches of the original that every VQ-VAE we know of has on; our model has no other form.
VQVAE_SWITCHES = ("use_bottleneck", "vqvae_reverse_decoder_dilation")
BANDWIDTH_FIELDS = {"l1": "bandwidth_l1", "l2": "bandwidth_l2", "spec": "bandwidth_spectral"}


def vqvae_config_from_hps(hps: dict) -> JukeboxVQVAEConfig:
    """Makes the configuration of a VQ-VAE from its run's `hps`, whose numbers may be numpy scalars.

    Raises:
        ValueError: `hps` lacks an entry, or describes a network that [`JukeboxVQVAEModel`] cannot be.
    """
    hps = _without_numpy(hps)
    missing = [name for name in ("levels", *VQVAE_FIELDS, *VQVAE_SWITCHES) if name not in hps]
    if missing:
        raise ValueError(
            f"The checkpoint's hps does not describe a VQ-VAE: it lacks {', '.join(missing)}. Add them to the "
            "dictionary 'hps' of the file, as the training run had them."
        )
    for switch in VQVAE_SWITCHES:
        if not hps[switch]:
            raise ValueError(f"hps[{switch!r}] is {hps[switch]!r}: only VQ-VAEs trained with it on can be converted.")
    if not hps.get("use_nonrelative_specloss", True):
        logger.warning(
            "hps['use_nonrelative_specloss'] is off: this run's loss had the spectral convergence in place of the "
            "spectral distance. The converted model computes the same codes and audio, but trains with the distance."
        )
    fields = {ours: hps[name] for name, ours in VQVAE_FIELDS.items()}
    bandwidth = hps.get("bandwidth") or {}
    fields |= {ours: bandwidth[name] for name, ours in BANDWIDTH_FIELDS.items() if name in bandwidth}
    try:
        # The original reads no further than `levels`.
        fields |= {ours: fields[ours][: hps["levels"]] for ours in ("num_downsamples", "strides")}
        config = JukeboxVQVAEConfig(**fields)
    except (StrictDataclassError, TypeError) as error:
        raise ValueError(f"The checkpoint's hps does not describe a VQ-VAE. {error}") from error
    if config.num_levels != hps["levels"]:
        raise ValueError(
            f"hps['levels'] is {hps['levels']}, but hps['downs_t'] is {hps['downs_t']}: give one per level."
        )
    return config


def _without_numpy(value):
    if isinstance(value, dict):
        return {key: _without_numpy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_numpy(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
