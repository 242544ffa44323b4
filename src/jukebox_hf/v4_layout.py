"""Reads the configurations and vocabularies of transformers 4, as in `openai/jukebox-1b-lyrics`; weights: `v4_weights`.

Its prior `i` is that of level `2 - i`; whatever is listed by prior, from the top down there, is from level 0 up here.
What it is known to state wrongly is put right.
"""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from operator import mul
from pathlib import Path

from transformers.utils import CONFIG_NAME, cached_file

# Those of `from_pretrained` that say where a repository is.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")
NUM_PRIORS = 3

# Configurations

# Names there and in JukeboxVQVAEConfig, whose defaults are the same.
VQVAE_FIELDS = {
    "res_downs_t": "num_downsamples",
    "res_strides_t": "strides",
    "res_conv_width": "hidden_size",
    "res_conv_depth": "num_residual_layers",
    "multipliers": "level_multipliers",
    "res_convolution_multiplier": "residual_expansion",
    "res_dilation_growth_rate": "dilation_growth_rate",
    "res_dilation_cycle": "dilation_cycle",
    "nb_discrete_codes": "codebook_size",
    "embed_dim": "codebook_dim",
    "lmu": "codebook_decay",
    "commit": "commitment_weight",
}
# What the class there takes for a field that a file leaves out.
PRIOR_DEFAULTS = {
    "alignment_head": 2, "alignment_layer": 68, "attention_multiplier": 0.25,
    "attention_pattern": "enc_dec_with_lyrics", "attn_res_scale": False, "blocks": 64, "conv_res_scale": None,
    "encoder_config": None, "encoder_loss_fraction": 0.4, "hidden_size": 2048, "init_scale": 0.2,
    "is_encoder_decoder": True, "lyric_vocab_size": 80, "max_duration": 600, "max_nb_genres": 1, "merged_decoder": True,
    "metadata_conditioning": True, "metadata_dims": (604, 7898), "min_duration": 0, "mlp_multiplier": 1.0,
    "music_vocab_size": 2048, "n_ctx": 6144, "n_heads": 2, "nb_relevant_lyric_tokens": 384, "num_layers": 72,
    "res_conv_depth": 3, "res_conv_width": 128, "res_convolution_multiplier": 1, "res_dilation_cycle": None,
    "res_dilation_growth_rate": 1, "sampling_rate": 44100, "timing_dims": 64,
}  # fmt: skip
# The whole model's win over those of its priors.
LABEL_FIELDS = (
    "sampling_rate", "timing_dims", "min_duration", "max_duration", "max_nb_genres", "metadata_conditioning",
)  # fmt: skip
ATTENTION_PATTERNS = {
    "full_dense_attention": "D",
    "raw_column_previous_row_attention": "rcp",
    "large_separated_enc_dec_w_lyrics": "rcprcprcp" + 7 * "rcprcprcpx",
    # Row, column and previous in turn, but for each 16th layer.
    "enc_dec_with_lyrics": 5 * "rcp" + "P" + 5 * "cpr" + "P" + 5 * "prc" + "D",
}
# Before November 2022.
ATTENTION_PATTERNS |= {
    "FullDenseAttention": ATTENTION_PATTERNS["full_dense_attention"],
    "RawColumnPreviousRowAttention": ATTENTION_PATTERNS["raw_column_previous_row_attention"],
    "single_enc_dec_w_lyrics": ATTENTION_PATTERNS["enc_dec_with_lyrics"],
}
# The original's: genre words of v2, the label version of all released priors but that of 1b_lyrics.
MAX_GENRES_V2 = 5


def is_v4_config(config: Mapping) -> bool:
    """Whether what a `config.json` holds is that of a whole Jukebox of transformers 4."""
    is_jukebox = config.get("model_type") == "jukebox"
    return is_jukebox and not config.keys().isdisjoint(("nb_priors", "prior_config_list", "hop_fraction"))


def translate_v4_config(config: Mapping) -> dict:
    """Gives the fields of a [`JukeboxConfig`] for those of a whole Jukebox of transformers 4.

    Raises:
        ValueError: another number of priors than three, or a prior as `translate_v4_prior` refuses it.
    """
    priors = config.get("prior_config_list") or [config.get(f"prior_{index}") for index in range(NUM_PRIORS)]
    if len(priors) != NUM_PRIORS or None in priors:
        raise ValueError(
            f"The configuration has {len(priors) - priors.count(None)} priors: transformers 4 stored {NUM_PRIORS}, "
            "so fetch config.json again."
        )
    labels = {name: config[name] for name in LABEL_FIELDS if name in config}
    vqvae = translate_v4_vqvae(config.get("vqvae_config") or {})
    vqvae["sampling_rate"] = labels.get("sampling_rate", PRIOR_DEFAULTS["sampling_rate"])
    dtype = config.get("dtype") or config.get("torch_dtype")
    translated = {"vqvae_config": vqvae, "dtype": dtype}
    for index, prior in enumerate(priors):
        level = NUM_PRIORS - 1 - index
        translated[f"prior_{level}"] = translate_v4_prior(prior | labels, level, vqvae) | {"dtype": dtype}
    return translated


def is_v4_vqvae(config: Mapping) -> bool:
    """Whether these are the fields of a VQ-VAE of transformers 4."""
    return not config.keys().isdisjoint(VQVAE_FIELDS)


def is_v4_prior(config: Mapping) -> bool:
    """Whether these are the fields of one prior of transformers 4."""
    return config.get("model_type") == "jukebox_prior" and not config.keys().isdisjoint(("n_ctx", "music_vocab_size"))


def translate_v4_vqvae(config: Mapping) -> dict:
    """Gives the fields of a [`JukeboxVQVAEConfig`] for those of a VQ-VAE of transformers 4."""
    translated = {ours: config[name] for name, ours in VQVAE_FIELDS.items() if name in config}
    translated.setdefault("num_downsamples", [3, 2, 2])
    translated.setdefault("strides", [2, 2, 2])
    return translated


def translate_v4_prior(prior: Mapping, level: int, vqvae: Mapping) -> dict:
    """Gives the fields of a [`JukeboxPriorConfig`] for those of a prior of transformers 4.

    Args:
        level: where it stands among the priors; what the fields say is another number.
        vqvae: what `translate_v4_vqvae` gives.

    Raises:
        ValueError: an attention pattern that no released prior has, or lyrics without what reads them.
    """
    prior = PRIOR_DEFAULTS | prior
    is_top = level == NUM_PRIORS - 1
    downsamples, strides = vqvae["num_downsamples"], vqvae["strides"]
    hops = list(accumulate((stride**number for stride, number in zip(strides, downsamples)), mul))
    fields = _stack_fields(prior) | {
        "level": level,
        "vocab_size": prior["music_vocab_size"],
        "context_length": prior["n_ctx"],
        "hop_length": hops[level],
        "sampling_rate": prior["sampling_rate"],
        "tie_word_embeddings": not prior["merged_decoder"],
        "add_conditioning_after_stack": not prior["merged_decoder"],
        "lyrics_loss_weight": prior["encoder_loss_fraction"],
        "min_duration": prior["min_duration"],
        "max_duration": prior["max_duration"],
        "num_artists": 0,
        "num_genres": 0,
        "num_time_bins": 0,
    }
    # The files on the Hub give all priors the blocks of 1b_lyrics.
    if (prior["n_ctx"], prior["blocks"]) == (8192, 64) and prior["hidden_size"] in (1920, 4800):
        fields["num_blocks"] = 128
    if prior["metadata_conditioning"]:
        fields["num_genres"], fields["num_artists"] = prior["metadata_dims"]
        # There is one number for all, the top prior's, but the released upsamplers know only v2.
        fields["max_genres"] = prior["max_nb_genres"] if is_top else MAX_GENRES_V2
        fields["num_time_bins"] = prior["timing_dims"] if is_top else 0
    if prior["nb_relevant_lyric_tokens"]:
        fields |= _lyric_fields(prior)
    if not is_top:
        depth = prior["res_conv_depth"]
        fields["conditioner_config"] = {
            # There, an entry too far down; in the released model they are equal.
            "strides": [strides[level + 1]] * downsamples[level + 1],
            "hidden_size": prior["res_conv_width"],
            "num_residual_layers": depth,
            "residual_expansion": prior["res_convolution_multiplier"],
            "dilation_growth_rate": prior["res_dilation_growth_rate"],
            "dilation_cycle": prior["res_dilation_cycle"],
            "residual_scale": 1 / math.sqrt(depth) if prior["conv_res_scale"] else 1.0,
        }
    return fields


def _stack_fields(stack: Mapping) -> dict:
    name, width = stack["attention_pattern"], stack["hidden_size"]
    if name not in ATTENTION_PATTERNS:
        raise ValueError(f"attention_pattern={name!r}: the known ones are {', '.join(ATTENTION_PATTERNS)}.")
    return {
        "hidden_size": width,
        "num_hidden_layers": stack["num_layers"],
        "num_attention_heads": stack["n_heads"],
        "head_dim": int(stack["attention_multiplier"] * width) // stack["n_heads"],
        "intermediate_size": int(stack["mlp_multiplier"] * width),
        # Dense attention knows no blocks.
        "num_blocks": stack["blocks"] or 1,
        "attention_pattern": ATTENTION_PATTERNS[name],
        "residual_scale": 1 / stack["num_layers"] if stack["attn_res_scale"] else 1.0,
        "init_scale": stack["init_scale"],
    }


def _lyric_fields(prior: Mapping) -> dict:
    alignment = prior["alignment_layer"], prior["alignment_head"]
    if prior["is_encoder_decoder"] and alignment == (68, 2):
        # The files on the Hub give 1b_lyrics those of 5b_lyrics.
        alignment = 63, 0
    fields = {
        "num_lyric_tokens": prior["nb_relevant_lyric_tokens"],
        "lyric_vocab_size": prior["lyric_vocab_size"],
        "alignment_layer": alignment[0],
        "alignment_head": alignment[1],
    }
    if not prior["is_encoder_decoder"]:
        if prior["encoder_config"] is None:
            raise ValueError("encoder_config=None: a prior that reads lyrics apart has the fields of what reads them.")
        fields["lyrics_encoder_config"] = _stack_fields(PRIOR_DEFAULTS | prior["encoder_config"])
    return fields


def v4_hop_fractions(config: Mapping) -> list[float]:
    """Gives how far apart the windows of each level start, as shares of the context, from level 0 up."""
    return list(reversed(config.get("hop_fraction") or (0.125, 0.5, 0.5)))


def read_v4_config(repository: str | Path | None, **kwargs) -> dict | None:
    """Reads the `config.json` of a repository of transformers 4 as it is; gives None for any other repository.

    Args:
        kwargs: of `from_pretrained`; those that say where the repository is are used.
    """
    if repository is None:
        return None
    hub = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
    path = cached_file(repository, CONFIG_NAME, _raise_exceptions_for_missing_entries=False, **hub)
    config = json.loads(Path(path).read_text(encoding="utf-8")) if path is not None else {}
    return config if is_v4_config(config) else None


# Vocabularies


def translate_v4_tokenizer(kwargs: Mapping) -> dict:
    """Gives the arguments of a [`JukeboxTokenizer`] for those of transformers 4; any others stay as they are."""
    theirs = {"version": ("v3", "v2", "v2"), "n_genres": 5, "max_n_lyric_tokens": 512}
    if theirs.keys().isdisjoint(kwargs):
        return dict(kwargs)
    stated = theirs | kwargs
    # Its unknown token, which is no character, was written as one.
    dropped = (*theirs, "unk_token", "added_tokens_decoder")
    versions = list(reversed(stated["version"]))
    return {
        "versions": versions,
        # There, the top prior's.
        "max_genres": MAX_GENRES_V2 if "v2" in versions else stated["n_genres"],
        "num_lyric_tokens": stated["max_n_lyric_tokens"],
    } | {name: value for name, value in kwargs.items() if name not in dropped}


def split_v4_vocabulary(kind: str, vocabulary: Mapping) -> dict[str, Mapping | Sequence]:
    """Gives the vocabularies of v2 and v3 that transformers 4 stored as one; any others stay as they are.

    Args:
        kind: `"artists"`, `"genres"`, or `"lyrics"`, whose characters v2 has one more of.
        vocabulary: what the file holds.
    """
    if not vocabulary or not all(isinstance(index, int) for index in vocabulary.values()):
        return vocabulary
    if kind == "lyrics":
        # Once used, the tokenizer there holds and writes the characters of v2.
        v3 = [character for character in sorted(vocabulary, key=vocabulary.get) if vocabulary[character] > 0]
        v3 = [character for character in v3 if character != "+"]
        place = v3.index("-") + 1
        return {"v2": [*v3[:place], "+", *v3[place:]], "v3": v3}
    v2 = {name.removesuffix(".v2"): index for name, index in vocabulary.items() if name.endswith(".v2")}
    return {"v2": v2, "v3": {name: index for name, index in vocabulary.items() if not name.endswith(".v2")}}


__all__ = [
    "is_v4_config",
    "is_v4_prior",
    "is_v4_vqvae",
    "read_v4_config",
    "split_v4_vocabulary",
    "translate_v4_config",
    "translate_v4_prior",
    "translate_v4_tokenizer",
    "translate_v4_vqvae",
    "v4_hop_fractions",
]
