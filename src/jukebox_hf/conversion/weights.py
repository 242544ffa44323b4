"""Reads and writes weights with one tensor in memory at a time; the library's own writer needs all of a file's."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_NAME

from ..v4_weights import map_tensors
from .checkpoints import in_memory

# What safetensors calls them.
DTYPE_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class Weight(NamedTuple):
    """A tensor of a checkpoint, mapped and in any layout, and the type to write it in."""

    tensor: torch.Tensor
    dtype: torch.dtype


def map_weights(folder: Path) -> dict[str, Weight]:
    """Maps the tensors of a repository folder; they take no memory until they are used.

    Raises:
        ValueError: there are none, or a file is damaged or asks for more than tensors.
    """
    for name in (SAFE_WEIGHTS_NAME, WEIGHTS_NAME):
        index = folder / f"{name}.index.json"
        if index.is_file():
            files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        elif (folder / name).is_file():
            files = [name]
        else:
            continue
        try:
            tensors = map_tensors(folder / file for file in files)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # a damaged file can raise anything
            raise ValueError(
                f"The weights in {folder} cannot be read: {', '.join(files)} is cut short, or its pickle asks for more "
                "than tensors, and loading that could run code. Fetch it again, from where you can trust it."
            ) from error
        return {name: Weight(tensor[...], tensor[...].dtype) for name, tensor in tensors.items()}
    raise ValueError(f"{folder} holds no weights: neither {SAFE_WEIGHTS_NAME} nor {WEIGHTS_NAME}, whole or in shards.")


def write_weights(folder: Path, weights: Mapping[str, Weight]):
    """Writes `model.safetensors`, or shards of up to 5 GB (the Hub's default) and their index, to `folder`."""
    planned = {
        name: torch.empty(weight.tensor.shape, dtype=weight.dtype, device="meta") for name, weight in weights.items()
    }
    split = split_torch_state_dict_into_shards(planned)
    for filename, names in split.filename_to_tensors.items():
        _write_file(folder / filename, {name: weights[name] for name in names})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        folder.joinpath(SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")


def _write_file(path: Path, weights: Mapping[str, Weight]):
    """Writes the length of the header in 8 bytes, the header in JSON, and the tensors' bytes in its order."""
    # The widest types first, as the library does it: so each tensor is aligned.
    names = sorted(weights, key=lambda name: (-weights[name].dtype.itemsize, name))
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name in names:
        tensor, dtype = weights[name]
        start, end = end, end + tensor.numel() * dtype.itemsize
        header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in names:
            tensor, dtype = weights[name]
            values = torch.empty(tensor.shape, dtype=dtype).copy_(in_memory(tensor))
            file.write(values.view(torch.uint8).numpy())
