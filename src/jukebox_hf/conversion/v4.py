"""From a repository of transformers 4 to ours."""

from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import list_repo_files, snapshot_download

from ..configuration_jukebox import JukeboxConfig
from ..modeling_jukebox import JukeboxModel
from ..processing_jukebox import JukeboxProcessor
from ..v4_layout import read_v4_config, v4_hop_fractions
from ..v4_weights import CLIP_LENGTH, codebook_statistics, compile_names, find_place, v4_names
from .checkpoints import in_memory
from .name_maps import translate
from .prior import is_kept_in_fp32
from .repository import Repository
from .weights import Weight, map_weights
from .whole import join_processors, whole_repository

OFFICIAL_REPOSITORIES = ("openai/jukebox-1b-lyrics", "openai/jukebox-5b-lyrics")
FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def fetch_repository(name: str) -> Path:
    """Downloads what a conversion needs of a repository on the Hub to the cache of Hugging Face, and gives its folder.

    Raises:
        OSError: there is no such repository, or the download failed.
    """
    is_safe = any(file.endswith(".safetensors") for file in list_repo_files(name))
    return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors" if is_safe else "*.bin"]))


def v4_repository(folder: Path, dtype: torch.dtype | None = None) -> Repository:
    """Makes the repository of a model that transformers 4 stored.

    Args:
        folder: with the `config.json` of such a model.
        dtype: of the matrices of the priors' layers; by default as they are stored. All else is written in fp32.

    Raises:
        ValueError: the folder holds no weights, or weights that do not fit its configuration.
    """
    fields = read_v4_config(folder)
    config = JukeboxConfig.from_dict(fields)
    with torch.device("meta"):
        model = JukeboxModel(config)
    tensors = _our_tensors(model, {name: weight.tensor for name, weight in map_weights(folder).items()})
    weights = {
        name: Weight(tensor, torch.float32 if is_kept_in_fp32(model, name) else dtype or tensor.dtype)
        for name, tensor in tensors.items()
    }
    has_names = (folder / "artists.json").is_file()
    preprocessor = JukeboxProcessor.from_pretrained(folder) if has_names else join_processors(config, [])
    return whole_repository(config, weights, preprocessor, v4_hop_fractions(fields))


def _our_tensors(model: JukeboxModel, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Finds every tensor of the model; those that are one, and may be there twice or once under either name, once."""
    rows, expected = compile_names(v4_names(model)), model.state_dict()
    found = {find_place(key, rows, expected)[0] for key in tensors}
    absent = {name for name in expected if name.endswith((".vector_sums", ".counts"))}
    for twins in model.all_tied_weights_keys.items():
        if any(name in found for name in twins):
            absent.update(name for name in twins if name not in found)
    places = {name: tensor for name, tensor in expected.items() if name not in absent}
    translated = translate(tensors, v4_names(model), places, FLOAT_DTYPES)
    for target, source in model.all_tied_weights_keys.items():
        twins = [translated.pop(name) for name in (target, source) if name in translated]
        if not torch.equal(in_memory(twins[0]), in_memory(twins[-1])):
            raise ValueError(
                f"The repository holds different tensors for {target} and {source}, but merged_decoder is false, where "
                "both are one: fetch it again."
            )
        translated[source] = twins[-1]
    for level, hop in enumerate(model.config.vqvae_config.hop_lengths):
        vectors = in_memory(translated[f"vqvae.codebooks.{level}.vectors"])
        for kind, tensor in codebook_statistics(vectors, CLIP_LENGTH // hop).items():
            translated[f"vqvae.codebooks.{level}.{kind}"] = tensor
    return translated
