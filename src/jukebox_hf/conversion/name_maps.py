"""The names of tensors in the original's checkpoints and in our models: tables, and the function that applies one."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from ..v4_weights import NameMap, compile_names, find_place

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


def _matrix(original: str, ours: str) -> NameMap:
    """The rows of a matrix that the original stores as `w`, (in, out), with its bias."""
    return ((f"{original}.w", f"{ours}.weight.T"), (f"{original}.b", f"{ours}.bias"))


def _layer(original: str, ours: str) -> NameMap:
    return (
        *_matrix(f"{original}.attn.c_attn", f"{ours}.attention.qkv_proj"),
        # Cross attention takes only its queries from the music.
        *_matrix(f"{original}.attn.c_attn", f"{ours}.attention.q_proj"),
        *_matrix(f"{original}.attn.c_enc_kv", f"{ours}.attention.kv_proj"),
        *_matrix(f"{original}.attn.c_proj", f"{ours}.attention.out_proj"),
        *_matrix(f"{original}.mlp.c_fc", f"{ours}.mlp.fc1"),
        *_matrix(f"{original}.mlp.c_proj", f"{ours}.mlp.fc2"),
        (f"{original}.ln_0.{{kind}}", f"{ours}.attention_layer_norm.{{kind}}"),
        (f"{original}.ln_1.{{kind}}", f"{ours}.mlp_layer_norm.{{kind}}"),
    )


PRIOR_NAMES: NameMap = (
    ("prior.x_emb.{kind}", "embed_tokens.{kind}"),
    ("prior.pos_emb.pos_emb", "embed_positions.weight"),
    ("prior.start_token", "start_embedding.weight"),
    ("prior.x_out.{kind}", "lm_head.{kind}"),
    *_layer("prior.transformer._attn_mods.{i}", "layers.{i}"),
    ("y_emb.artist_emb.emb.{kind}", "label_embedding.artists.{kind}"),
    ("y_emb.bow_genre_emb.emb.{kind}", "label_embedding.genres.{kind}"),
    ("y_emb.total_length_emb.emb.{kind}", "timing_embedding.total_length.{kind}"),
    ("y_emb.absolute_pos_emb.emb.{kind}", "timing_embedding.absolute_position.{kind}"),
    ("y_emb.relative_pos_emb.emb.{kind}", "timing_embedding.relative_position.{kind}"),
    ("conditioner_blocks.0.x_emb.{kind}", "conditioner.embed_codes.{kind}"),
    ("conditioner_blocks.0.cond.model.0.{kind}", "conditioner.in_conv.{kind}"),
    # The original has `blocks` where it trained with checkpoints (`cond_c_res`), `model` elsewhere.
    *(
        (
            f"conditioner_blocks.0.cond.model.{{i}}.0.{blocks}.{{j}}.model.{original}.{{kind}}",
            f"conditioner.upsamples.{{i-1}}.residual_blocks.{{j}}.{ours}.{{kind}}",
        )
        for blocks in ("blocks", "model")
        for original, ours in ((1, "conv1"), (3, "conv2"))
    ),
    ("conditioner_blocks.0.cond.model.{i}.1.{kind}", "conditioner.upsamples.{i-1}.conv.{kind}"),
    ("conditioner_blocks.0.ln.{kind}", "conditioner.layer_norm.{kind}"),
    ("prime_prior.x_emb.{kind}", "lyrics_encoder.embed_tokens.{kind}"),
    ("prime_prior.pos_emb.pos_emb", "lyrics_encoder.embed_positions.weight"),
    ("prime_prior.start_token", "lyrics_encoder.start_embedding.weight"),
    *_layer("prime_prior.transformer._attn_mods.{i}", "lyrics_encoder.layers.{i}"),
    *_matrix("prime_state_proj", "lyrics_encoder.state_proj"),
    ("prime_state_ln.{kind}", "lyrics_encoder.layer_norm.{kind}"),
    ("prime_x_out.{kind}", "lyrics_encoder.lm_head.{kind}"),
)


def translate(
    state_dict: Mapping[str, Tensor],
    name_map: NameMap,
    expected: Mapping[str, Tensor],
    dtypes: Collection[torch.dtype] = (torch.float32,),
) -> dict[str, Tensor]:
    """Gives the tensors of a checkpoint our names, and proves that they fill a model exactly.

    Args:
        state_dict: its tensors; a `module.` that DistributedDataParallel put before a name is dropped.
        name_map: the table for this kind of model.
        expected: the model's own tensors that the checkpoint has to fill, on any device (meta will do).
        dtypes: that a checkpoint of this kind has. Transposed matrices may be in fp16, too, as the original stores
            those of its largest priors.

    Returns:
        The same tensors in the order of `expected`, views of them where they had to be transposed.

    Raises:
        ValueError: a tensor that has no place in the model, a place that no tensor fills, or a wrong shape or dtype;
            names the first few of each and their number.
    """
    rows = compile_names(name_map)
    translated, unexpected, misfits = {}, [], []
    for key, tensor in state_dict.items():
        name, is_transposed = find_place(key.removeprefix("module."), rows, expected)
        if name is None or name in translated:
            unexpected.append(key)
            continue
        if is_transposed and tensor.ndim == 2:
            tensor = tensor.T
        translated[name] = tensor
        is_known = tensor.dtype in dtypes or (is_transposed and tensor.dtype == torch.float16)
        if tensor.shape != expected[name].shape or not is_known:
            described = f"{_describe(tensor)}{' transposed' if is_transposed else ''}"
            misfits.append(f"{key} is {described} and not {_describe(expected[name])}")
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
            "with the hyper-parameters it was trained with."
        )
    return {name: translated[name] for name in expected}


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _first_few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
