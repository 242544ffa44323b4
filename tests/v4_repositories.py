"""Small repositories as transformers 4 wrote them, for tests."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from conftest import GOLDENS
from safetensors.torch import load_file, save_file

STYLES = ("1b", "5b")
# The golden cases that they hold, from level 0 up.
PARTS = {
    style: ("upsampler-level-0-style", "upsampler-level-1-style", f"prior-{style}-lyrics-style") for style in STYLES
}
CONFIGS = {"flat": "config.json", "list": "config.prior_config_list.json"}
WEIGHTS = {"bin": "pytorch_model*.bin*", "safetensors": "*.safetensors"}
TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "artists.json", "genres.json", "lyrics.json")


def v4_folder(style: str) -> Path:
    return GOLDENS / f"v4-hub-{style}-lyrics-style"


def v4_fields(style: str, config: str = "flat") -> dict:
    return json.loads((v4_folder(style) / CONFIGS[config]).read_text())


def v4_repositories(root: Path) -> Callable[..., Path]:
    """Gives a function that makes a repository of each kind, in `root`."""

    def make(style: str, config: str = "flat", weights: str = "bin") -> Path:
        source, folder = v4_folder(style), root / f"{style}-{config}-{weights}"
        if not folder.exists():
            folder.mkdir()
            for path in (*source.glob(WEIGHTS[weights]), *(source / name for name in TOKENIZER_FILES)):
                shutil.copy(path, folder)
            shutil.copy(source / CONFIGS[config], folder / "config.json")
        return folder

    return make


def save_large_v4_repository(folder: Path, weights: str, width: int = 512) -> int:
    """Saves the 1b model with a wider top prior, of random weights, and gives their bytes."""
    sizes = {32: width, 24: 3 * width // 4, 8: width // 4}
    config = v4_fields("1b")
    config["prior_0"]["hidden_size"] = width
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {}
    for name, tensor in load_file(v4_folder("1b") / "model.safetensors").items():
        is_top = name.startswith("priors.0.")
        tensors[name] = torch.randn([sizes.get(size, size) if is_top else size for size in tensor.shape])
    if weights == "bin":
        twins = {f"priors.{i}.prior.fc_proj_out.weight": f"priors.{i}.prior.embed_tokens.weight" for i in range(3)}
        torch.save(tensors | {name: tensors[twin] for name, twin in twins.items()}, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return sum(4 * tensor.numel() for tensor in tensors.values())
