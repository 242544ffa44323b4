"""The names of tensors in the original's checkpoints and in our models: tables, and the function that applies one."""

import re
from collections.abc import Mapping

from torch import Tensor

# Rows of (original template, our template). A placeholder stands for an index, and `{kind}` for weight or bias; `{i-1}`
# in ours is the index before `{i}`.
NameMap = tuple[tuple[str, str], ...]

VQVAE_NAMES: NameMap = (
    (
        "encoders.{level}.level_blocks.{block}.model.{i}.0.{kind}",
        "encoders.{level}.blocks.{block}.downsamples.{i}.conv.{kind}",
    ),
    (
        "encoders.{level}.level_blocks.{block}.model.{i}.1.model.{j}.model.1.{kind}",
        "encoders.{level}.blocks.{block}.downsamples.{i}.residual_blocks.{j}.conv1.{kind}",
    ),
    (
        "encoders.{level}.level_blocks.{block}.model.{i}.1.model.{j}.model.3.{kind}",
        "encoders.{level}.blocks.{block}.downsamples.{i}.residual_blocks.{j}.conv2.{kind}",
    ),
    (
        "encoders.{level}.level_blocks.{block}.model.{last}.{kind}",
        "encoders.{level}.blocks.{block}.out_conv.{kind}",
    ),
    (
        "decoders.{level}.level_blocks.{block}.model.0.{kind}",
        "decoders.{level}.blocks.{block}.in_conv.{kind}",
    ),
    (
        "decoders.{level}.level_blocks.{block}.model.{i}.0.model.{j}.model.1.{kind}",
        "decoders.{level}.blocks.{block}.upsamples.{i-1}.residual_blocks.{j}.conv1.{kind}",
    ),
    (
        "decoders.{level}.level_blocks.{block}.model.{i}.0.model.{j}.model.3.{kind}",
        "decoders.{level}.blocks.{block}.upsamples.{i-1}.residual_blocks.{j}.conv2.{kind}",
    ),
    (
        "decoders.{level}.level_blocks.{block}.model.{i}.1.{kind}",
        "decoders.{level}.blocks.{block}.upsamples.{i-1}.conv.{kind}",
    ),
    ("decoders.{level}.out.{kind}", "decoders.{level}.out_conv.{kind}"),
    ("bottleneck.level_blocks.{level}.k", "codebooks.{level}.vectors"),
)

_LAYER_NAMES = (
    ("attn.c_attn.{kind}", "attention.qkv_proj.{kind}"),
    ("attn.c_enc_kv.{kind}", "attention.kv_proj.{kind}"),
    ("attn.c_proj.{kind}", "attention.out_proj.{kind}"),
    ("mlp.c_fc.{kind}", "mlp.fc1.{kind}"),
    ("mlp.c_proj.{kind}", "mlp.fc2.{kind}"),
    ("ln_0.{kind}", "attention_layer_norm.{kind}"),
    ("ln_1.{kind}", "mlp_layer_norm.{kind}"),
)

PRIOR_NAMES: NameMap = (
    ("prior.x_emb.{kind}", "embed_tokens.{kind}"),
    ("prior.pos_emb.pos_emb", "embed_positions.weight"),
    ("prior.start_token", "start_embedding.weight"),
    ("prior.x_out.{kind}", "lm_head.{kind}"),
    *((f"prior.transformer._attn_mods.{{i}}.{a}", f"layers.{{i}}.{b}") for a, b in _LAYER_NAMES),
    ("y_emb.artist_emb.emb.{kind}", "label_embedding.artists.{kind}"),
    ("y_emb.bow_genre_emb.emb.{kind}", "label_embedding.genres.{kind}"),
    ("y_emb.total_length_emb.emb.{kind}", "timing_embedding.total_length.{kind}"),
    ("y_emb.absolute_pos_emb.emb.{kind}", "timing_embedding.absolute_position.{kind}"),
    ("y_emb.relative_pos_emb.emb.{kind}", "timing_embedding.relative_position.{kind}"),
    ("conditioner_blocks.0.x_emb.{kind}", "conditioner.embed_codes.{kind}"),
    ("conditioner_blocks.0.cond.model.0.{kind}", "conditioner.in_conv.{kind}"),
    (
        "conditioner_blocks.0.cond.model.{i}.0.{blocks}.{j}.model.1.{kind}",
        "conditioner.upsamples.{i-1}.residual_blocks.{j}.conv1.{kind}",
    ),
    (
        "conditioner_blocks.0.cond.model.{i}.0.{blocks}.{j}.model.3.{kind}",
        "conditioner.upsamples.{i-1}.residual_blocks.{j}.conv2.{kind}",
    ),
    ("conditioner_blocks.0.cond.model.{i}.1.{kind}", "conditioner.upsamples.{i-1}.conv.{kind}"),
    ("conditioner_blocks.0.ln.{kind}", "conditioner.layer_norm.{kind}"),
    ("prime_prior.x_emb.{kind}", "lyrics_encoder.embed_tokens.{kind}"),
    ("prime_prior.pos_emb.pos_emb", "lyrics_encoder.embed_positions.weight"),
    ("prime_prior.start_token", "lyrics_encoder.start_embedding.weight"),
    *((f"prime_prior.transformer._attn_mods.{{i}}.{a}", f"lyrics_encoder.layers.{{i}}.{b}") for a, b in _LAYER_NAMES),
    ("prime_state_proj.{kind}", "lyrics_encoder.state_proj.{kind}"),
    ("prime_state_ln.{kind}", "lyrics_encoder.layer_norm.{kind}"),
    ("prime_x_out.{kind}", "lyrics_encoder.lm_head.{kind}"),
)


def translate(state_dict: Mapping[str, Tensor], name_map: NameMap, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gives the tensors of an original checkpoint our names, and proves that they fill a model exactly.

    Args:
        state_dict: the original's tensors; a `module.` that DistributedDataParallel put before a name is dropped.
        name_map: the table for this kind of model.
        expected: the model's own tensors that the checkpoint has to fill, on any device (meta will do).

    Raises:
        ValueError: a tensor that has no place in the model, a place that no tensor fills, or a wrong shape or dtype;
            names the first few of each and their number.
    """
    rows = [(_pattern(original), ours) for original, ours in name_map]
    translated, unexpected, misfits = {}, [], []
    for key, tensor in state_dict.items():
        name = _our_name(key.removeprefix("module."), rows)
        if name not in expected or name in translated:
            unexpected.append(key)
            continue
        translated[name] = tensor
        if (tensor.shape, tensor.dtype) != (expected[name].shape, expected[name].dtype):
            misfits.append(f"{key} is {_describe(tensor)} and not {_describe(expected[name])}")
    missing = [name for name in expected if name not in translated]
    problems = {
        "without a place in the model": unexpected,
        "missing": missing,
        "of a wrong shape or dtype": misfits,
    }
    if any(problems.values()):
        found = [f"{len(names)} {problem} ({_first_few(names)})" for problem, names in problems.items() if names]
        raise ValueError(
            f"The checkpoint does not fit its configuration; tensors {', '.join(found)}. Convert a whole checkpoint, "
            "with the hps it was trained with."
        )
    return translated


def _pattern(original: str) -> re.Pattern:
    def group(placeholder: re.Match) -> str:
        return f"(?P<{placeholder[1]}>{'weight|bias' if placeholder[1] == 'kind' else '[0-9]+'})"

    return re.compile(re.sub(r"\\\{(\w+)\\\}", group, re.escape(original)))


def _our_name(key: str, rows: list[tuple[re.Pattern, str]]) -> str | None:
    for pattern, ours in rows:
        if found := pattern.fullmatch(key):
            values = found.groupdict()
            values |= {f"{name}-1": int(index) - 1 for name, index in values.items() if name != "kind"}
            return ours.format_map(values)
    return None


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _first_few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
