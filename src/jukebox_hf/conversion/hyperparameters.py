"""From the hyper-parameters that the original stores in a checkpoint (`hps`) to our configurations."""

import logging
import math
from itertools import accumulate
from operator import mul

import numpy as np
from huggingface_hub.errors import StrictDataclassError

from ..configuration_jukebox import JukeboxPriorConfig, JukeboxVQVAEConfig
from ..v4_layout import ATTENTION_PATTERNS

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


# The original's numbers of attention patterns (`attn_order`); 3, 4 and 5 have patterns that no known model uses.
ATTENTION_ORDERS = {
    0: "D",
    1: "rc",
    2: "rcp",
    6: "rcpx",
    7: 5 * "rcp" + "x",
    8: "rcprcprcpx",
    9: "rcpD",
    10: ATTENTION_PATTERNS["large_separated_enc_dec_w_lyrics"],
    11: ATTENTION_PATTERNS["enc_dec_with_lyrics"].replace("P", "x"),
    12: ATTENTION_PATTERNS["enc_dec_with_lyrics"],
}
# Names in `hps` and in JukeboxPriorConfig.
PRIOR_FIELDS = {
    "level": "level",
    "l_bins": "vocab_size",
    "n_ctx": "context_length",
    "sr": "sampling_rate",
    "prime_loss_fraction": "lyrics_loss_weight",
    "alignment_layer": "alignment_layer",
    "alignment_head": "alignment_head",
}
CONDITIONER_FIELDS = {
    "cond_width": "hidden_size",
    "cond_depth": "num_residual_layers",
    "cond_m_conv": "residual_expansion",
    "cond_dilation_growth_rate": "dilation_growth_rate",
    "cond_dilation_cycle": "dilation_cycle",
}
STACK_ENTRIES = ("heads", "attn_order", "blocks", "m_attn", "m_mlp", "res_scale", "init_scale")
# Switches that every prior we know of has off; our model has no other form.
PRIOR_SWITCHES = ("pos_init", "prime_pos_init", "y_cond_as_bias", "copy_input")
PRIOR_ENTRIES = (
    "levels", "downs_t", "strides_t", "prior_width", "prior_depth", "merged_decoder", *PRIOR_FIELDS, *STACK_ENTRIES,
    "labels", "labels_v3", "y_bins", "t_bins", "max_bow_genre_size", "min_duration", "max_duration",
    "use_tokens", "n_tokens", "n_vocab", "single_enc_dec", "prime_width", "prime_depth",
    *(f"prime_{name}" for name in STACK_ENTRIES), *CONDITIONER_FIELDS, "cond_res_scale", *PRIOR_SWITCHES,
)  # fmt: skip


def vqvae_config_from_hps(hps: dict) -> JukeboxVQVAEConfig:
    """Makes the configuration of a VQ-VAE from its run's `hps`, whose numbers may be numpy scalars.

    Raises:
        ValueError: `hps` lacks an entry, or describes a network that [`JukeboxVQVAEModel`] cannot be.
    """
    hps = _without_numpy(hps)
    _check_complete(hps, ("levels", *VQVAE_FIELDS, *VQVAE_SWITCHES), "a VQ-VAE")
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


def prior_config_from_hps(hps: dict) -> JukeboxPriorConfig:
    """Makes the configuration of a prior from its run's `hps`, whose numbers may be numpy scalars.

    Raises:
        ValueError: `hps` lacks an entry, or describes a network that [`JukeboxPriorModel`] cannot be.
    """
    hps = _without_numpy(hps)
    _check_complete(hps, PRIOR_ENTRIES, "a prior")
    for switch in PRIOR_SWITCHES:
        if hps[switch]:
            raise ValueError(f"hps[{switch!r}] is {hps[switch]!r}: only priors trained with it off can be converted.")
    try:
        if not 0 <= hps["level"] < hps["levels"]:
            raise ValueError(f"hps['level'] is {hps['level']}, but there are {hps['levels']} levels, counted from 0.")
        is_top = hps["level"] == hps["levels"] - 1
        fields = {ours: hps[name] for name, ours in PRIOR_FIELDS.items()}
        fields |= _stack_fields(hps, hps["prior_width"], hps["prior_depth"], prefix="")
        fields["hop_length"] = hop_lengths_from_hps(hps)[hps["level"]]
        fields["tie_word_embeddings"] = fields["add_conditioning_after_stack"] = not hps["merged_decoder"]
        fields |= _label_fields(hps, is_top)
        if hps["use_tokens"]:
            fields |= {"num_lyric_tokens": hps["n_tokens"], "lyric_vocab_size": hps["n_vocab"]}
            if not hps["single_enc_dec"]:
                fields["lyrics_encoder_config"] = _stack_fields(hps, hps["prime_width"], hps["prime_depth"], "prime_")
        if not is_top:
            upper = hps["level"] + 1
            fields["conditioner_config"] = {ours: hps[name] for name, ours in CONDITIONER_FIELDS.items()} | {
                "strides": [hps["strides_t"][upper]] * hps["downs_t"][upper],
                "residual_scale": 1 / math.sqrt(hps["cond_depth"]) if hps["cond_res_scale"] else 1.0,
            }
        return JukeboxPriorConfig(**fields)
    except (StrictDataclassError, TypeError, IndexError) as error:
        raise ValueError(f"The checkpoint's hps does not describe a prior. {error}") from error


def hop_lengths_from_hps(hps: dict) -> list[int]:
    """Gives the samples of audio that a code of each level of the run stands for, from level 0 up."""
    hops = (hps["strides_t"][level] ** hps["downs_t"][level] for level in range(hps["levels"]))
    return list(accumulate(hops, mul))


def _stack_fields(hps: dict, width: int, depth: int, prefix: str) -> dict:
    heads, order, blocks, m_attn, m_mlp, res_scale, init_scale = (hps[prefix + name] for name in STACK_ENTRIES)
    if order not in ATTENTION_ORDERS:
        raise ValueError(
            f"hps['{prefix}attn_order'] is {order!r}: only priors with one of the attention orders "
            f"{', '.join(map(str, ATTENTION_ORDERS))} can be converted."
        )
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "head_dim": int(m_attn * width) // heads,
        "intermediate_size": int(m_mlp * width),
        # Dense attention knows no blocks.
        "num_blocks": blocks or 1,
        "attention_pattern": ATTENTION_ORDERS[order],
        "residual_scale": 1 / depth if res_scale else 1.0,
        "init_scale": init_scale,
    }


def _label_fields(hps: dict, is_top: bool) -> dict:
    if not hps["labels"]:
        return {"num_genres": 0, "num_artists": 0, "max_genres": 1, "num_time_bins": 0, "min_duration": 0.0}
    num_genres, num_artists = hps["y_bins"]
    # Only the timing of a top prior depends on the durations.
    durations = {name: hps[name] for name in ("min_duration", "max_duration") if is_top or hps[name] is not None}
    return durations | {
        "num_genres": num_genres,
        "num_artists": num_artists,
        "max_genres": hps["max_bow_genre_size"],
        "num_time_bins": hps["t_bins"] if is_top else 0,
    }


def _check_complete(hps: dict, names: tuple[str, ...], what: str):
    if missing := [name for name in names if name not in hps]:
        raise ValueError(
            f"The checkpoint's hps does not describe {what}: it lacks {', '.join(missing)}. Add them to the dictionary "
            "'hps' of the file, as the training run had them."
        )


def _without_numpy(value):
    if isinstance(value, dict):
        return {key: _without_numpy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_numpy(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
