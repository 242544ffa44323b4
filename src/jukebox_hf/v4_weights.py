"""Loads the weights that transformers 4 stored: its names are tables, here, and matrices are transposed on the way."""

import re
from collections.abc import Container, Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_utils import load_state_dict

from .v4_layout import NUM_PRIORS

# Samples in a clip of the released VQ-VAE's training, as public recipes for this architecture give it; not verified
# against the paper. Only the codebooks' statistics follow from it.
CLIP_LENGTH = 393216

# Rows of (template there, our template). A placeholder stands for an index, and `{kind}` for weight or bias; `{i-1}`
# and `{i//2}` in ours follow from `{i}`. `.T` in ours: the matrix there is ours transposed. Where several rows fit a
# name, the one counts whose place the model has.
NameMap = tuple[tuple[str, str], ...]

VQVAE_NAMES: NameMap = (
    (
        "encoders.{level}.level_blocks.{block}.downsample_block.{i}.{kind}",
        "encoders.{level}.blocks.{block}.downsamples.{i//2}.conv.{kind}",
    ),
    (
        "encoders.{level}.level_blocks.{block}.downsample_block.{i}.resnet_block.{j}.conv1d_{n}.{kind}",
        "encoders.{level}.blocks.{block}.downsamples.{i//2}.residual_blocks.{j}.conv{n}.{kind}",
    ),
    ("encoders.{level}.level_blocks.{block}.proj_out.{kind}", "encoders.{level}.blocks.{block}.out_conv.{kind}"),
    ("decoders.{level}.level_blocks.{block}.proj_in.{kind}", "decoders.{level}.blocks.{block}.in_conv.{kind}"),
    (
        "decoders.{level}.level_blocks.{block}.upsample_block.{i}.resnet_block.{j}.conv1d_{n}.{kind}",
        "decoders.{level}.blocks.{block}.upsamples.{i//2}.residual_blocks.{j}.conv{n}.{kind}",
    ),
    (
        "decoders.{level}.level_blocks.{block}.upsample_block.{i}.{kind}",
        "decoders.{level}.blocks.{block}.upsamples.{i//2}.conv.{kind}",
    ),
    ("decoders.{level}.out.{kind}", "decoders.{level}.out_conv.{kind}"),
    ("bottleneck.level_blocks.{level}.codebook", "codebooks.{level}.vectors"),
)


def _matrix(theirs: str, ours: str) -> NameMap:
    """The rows of a matrix that is stored as (in, out), with its bias."""
    return ((f"{theirs}.weight", f"{ours}.weight.T"), (f"{theirs}.bias", f"{ours}.bias"))


def _layer(theirs: str, ours: str) -> NameMap:
    return (
        *_matrix(f"{theirs}.attn.c_attn", f"{ours}.attention.qkv_proj"),
        # Cross attention takes only its queries from the music.
        *_matrix(f"{theirs}.attn.c_attn", f"{ours}.attention.q_proj"),
        *_matrix(f"{theirs}.attn.c_enc_kv", f"{ours}.attention.kv_proj"),
        *_matrix(f"{theirs}.attn.c_proj", f"{ours}.attention.out_proj"),
        *_matrix(f"{theirs}.mlp.c_fc", f"{ours}.mlp.fc1"),
        *_matrix(f"{theirs}.mlp.c_proj", f"{ours}.mlp.fc2"),
        (f"{theirs}.layer_norm_0.{{kind}}", f"{ours}.attention_layer_norm.{{kind}}"),
        (f"{theirs}.layer_norm_1.{{kind}}", f"{ours}.mlp_layer_norm.{{kind}}"),
    )


PRIOR_NAMES: NameMap = (
    ("prior.embed_tokens.{kind}", "embed_tokens.{kind}"),
    ("prior.pos_emb.pos_emb", "embed_positions.weight"),
    ("prior.start_token", "start_embedding.weight"),
    ("prior.fc_proj_out.{kind}", "lm_head.{kind}"),
    *_layer("prior.transformer._attn_mods.{i}", "layers.{i}"),
    ("metadata_embedding.artist_emb.{kind}", "label_embedding.artists.{kind}"),
    ("metadata_embedding.bow_genre_emb.{kind}", "label_embedding.genres.{kind}"),
    ("metadata_embedding.total_length_emb.emb.{kind}", "timing_embedding.total_length.{kind}"),
    ("metadata_embedding.absolute_pos_emb.emb.{kind}", "timing_embedding.absolute_position.{kind}"),
    ("metadata_embedding.relative_pos_emb.emb.{kind}", "timing_embedding.relative_position.{kind}"),
    ("conditioner_blocks.embed_tokens.{kind}", "conditioner.embed_codes.{kind}"),
    ("conditioner_blocks.upsampler.proj_in.{kind}", "conditioner.in_conv.{kind}"),
    (
        "conditioner_blocks.upsampler.upsample_block.{i}.resnet_block.{j}.conv1d_{n}.{kind}",
        "conditioner.upsamples.{i//2}.residual_blocks.{j}.conv{n}.{kind}",
    ),
    ("conditioner_blocks.upsampler.upsample_block.{i}.{kind}", "conditioner.upsamples.{i//2}.conv.{kind}"),
    ("conditioner_blocks.layer_norm.{kind}", "conditioner.layer_norm.{kind}"),
    ("encoder.embed_tokens.{kind}", "lyrics_encoder.embed_tokens.{kind}"),
    ("encoder.pos_emb.pos_emb", "lyrics_encoder.embed_positions.weight"),
    ("encoder.start_token", "lyrics_encoder.start_embedding.weight"),
    *_layer("encoder.transformer._attn_mods.{i}", "lyrics_encoder.layers.{i}"),
    *_matrix("encoder.proj_in", "lyrics_encoder.state_proj"),
    ("encoder.final_layer_norm.{kind}", "lyrics_encoder.layer_norm.{kind}"),
    ("encoder.lm_head.{kind}", "lyrics_encoder.lm_head.{kind}"),
)


def v4_names(model: PreTrainedModel) -> NameMap:
    """Gives the names of a whole repository's tensors that a model has: all, its VQ-VAE's, or one prior's."""
    priors = {f"priors.{NUM_PRIORS - 1 - level}.": level for level in range(NUM_PRIORS)}
    if model.config.model_type == "jukebox_vqvae":
        # transformers 4 could store it alone, too.
        tables = {"vqvae.": ("", VQVAE_NAMES), "": ("", VQVAE_NAMES)}
    elif model.config.model_type == "jukebox_prior":
        tables = {theirs: ("", PRIOR_NAMES) for theirs, level in priors.items() if level == model.config.level}
    else:
        tables = {theirs: (f"prior_{level}.", PRIOR_NAMES) for theirs, level in priors.items()}
        tables["vqvae."] = ("vqvae.", VQVAE_NAMES)
    return tuple(
        (theirs + template, ours + our_template)
        for theirs, (ours, names) in tables.items()
        for template, our_template in names
    )


def compile_names(names: NameMap) -> list[tuple[re.Pattern, str]]:
    """Prepares a table for `find_place`."""

    def group(placeholder: re.Match) -> str:
        return f"(?P<{placeholder[1]}>{'weight|bias' if placeholder[1] == 'kind' else '[0-9]+'})"

    return [(re.compile(re.sub(r"\\\{(\w+)\\\}", group, re.escape(theirs))), ours) for theirs, ours in names]


def find_place(key: str, rows: list[tuple[re.Pattern, str]], expected: Container[str]) -> tuple[str | None, bool]:
    """Finds the model's tensor that `key` fills, and whether it has to be transposed for that.

    Args:
        rows: of `compile_names`.
        expected: the names of the model's tensors.
    """
    for pattern, ours in rows:
        if found := pattern.fullmatch(key):
            values = found.groupdict()
            for name, index in found.groupdict().items():
                if index.isdecimal():
                    values |= {f"{name}-1": int(index) - 1, f"{name}//2": int(index) // 2}
            name = ours.format_map(values)
            if name.removesuffix(".T") in expected:
                return name.removesuffix(".T"), name.endswith(".T")
    return None, False


class TransposedSlice:
    """A matrix of a file that is read, turned and perhaps cast when it is sliced, with no copy in between."""

    def __init__(self, source, dtype: torch.dtype | None):
        self.source, self.dtype = source, dtype

    def __getitem__(self, index) -> torch.Tensor:
        matrix = self.source[...].T
        return torch.empty(matrix.shape, dtype=self.dtype or matrix.dtype).copy_(matrix)[index]


def map_tensors(files: Iterable[str | Path]) -> dict:
    """Gives what reads each tensor of safetensors files or of PyTorch's when it is sliced, as in `tensor[...]`."""
    tensors = {}
    for file in map(str, files):
        if file.endswith(".safetensors"):
            opened = safe_open(file, "pt")
            tensors |= {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        else:
            tensors |= load_state_dict(file)
    return tensors


def codebook_statistics(vectors: torch.Tensor, codes_per_clip: int) -> dict[str, torch.Tensor]:
    """Gives what no checkpoint holds, as the original sets it when it resumes: all codes are used equally often."""
    count = codes_per_clip / len(vectors)
    return {"vector_sums": vectors.float() * count, "counts": torch.full((len(vectors),), count)}


class V4LoadingMixin:
    """Lets `from_pretrained` read the weights of transformers 4, too."""

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, load_config, *args, **kwargs):
        # transformers' registry of conversions would not do: it sees one name at a time, and one name there is two here
        # (`c_attn`, of cross attention or not). And what it has converted, `save_pretrained` writes back as it was.
        if checkpoint_files is not None and (tensors := _v4_state_dict(model, checkpoint_files, load_config)):
            if is_deepspeed_zero3_enabled():
                raise ValueError(
                    f"{load_config.pretrained_model_name_or_path} is in the layout of transformers 4, which DeepSpeed "
                    "ZeRO-3 cannot read: convert it first, with `jukebox-hf convert`."
                )
            state_dict, checkpoint_files = tensors, None
        return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, load_config, *args, **kwargs)


def _v4_state_dict(model: PreTrainedModel, files: list[str], load_config) -> dict | None:
    """What reads the model's tensors in files of transformers 4; None for other files."""

    def dtype_of(name: str) -> torch.dtype | None:
        is_kept = any(module in name for module in load_config.dtype_plan or ())
        return None if is_kept or load_config.is_quantized else expected[name].dtype

    rows, expected = compile_names(v4_names(model)), model.state_dict()
    tensors = map_tensors(files)
    places = {key: find_place(key, rows, expected) for key in tensors}
    if not any(name for name, _ in places.values()):
        return None
    vqvae = getattr(model.config, "vqvae_config", model.config)
    state_dict = {}
    for key, (name, is_transposed) in places.items():
        state_dict[name or key] = TransposedSlice(tensors[key], dtype_of(name)) if is_transposed else tensors[key]
        if name is not None and name.endswith(".vectors"):
            codebook = name.removesuffix(".vectors")
            codes_per_clip = CLIP_LENGTH // vqvae.hop_lengths[int(codebook.rpartition(".")[2])]
            statistics = codebook_statistics(tensors[key][...], codes_per_clip)
            state_dict |= {f"{codebook}.{kind}": tensor for kind, tensor in statistics.items()}
    return state_dict


__all__ = ["V4LoadingMixin", "codebook_statistics", "compile_names", "find_place", "map_tensors", "v4_names"]
