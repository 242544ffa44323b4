"""Writes the folder that is a repository on the Hub: configuration, weights, preprocessor, shim and model card."""

import os
import shutil
import tempfile
from pathlib import Path

from transformers import FeatureExtractionMixin, PreTrainedModel

# `auto_map` and this module let `trust_remote_code=True` find the classes of the installed package in a process that
# has not imported it.
SHIM = "jukebox_hf_shim"


def check_output_dir(output_dir: Path):
    """Raises a ValueError when a repository cannot be written to `output_dir` because something is there."""
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ValueError(f"{output_dir} exists and is not an empty folder: choose another output folder, or remove it.")


def write_repository(
    output_dir: Path,
    model: PreTrainedModel,
    model_auto_classes: list[str],
    feature_extractor: FeatureExtractionMixin,
    model_card: str,
):
    """Writes a repository folder that `from_pretrained` loads; it appears only when it is whole.

    Args:
        model_auto_classes: the Auto classes that find the model, such as `AutoModel`.
        model_card: the text of its README.md.

    Raises:
        ValueError: `output_dir` is a file or a folder that is not empty.
    """
    check_output_dir(output_dir)
    config, extractor = model.config, feature_extractor
    config.auto_map = {name: _in_shim(model) for name in model_auto_classes} | {"AutoConfig": _in_shim(config)}
    extractor.auto_map = {"AutoFeatureExtractor": _in_shim(extractor)}
    classes = sorted(type(part).__name__ for part in (model, config, extractor))
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output_dir.name}-", dir=output_dir.parent) as scratch:
        # A folder inside: the temporary one itself is closed to other users.
        folder = Path(scratch, output_dir.name)
        model.save_pretrained(folder)
        extractor.save_pretrained(folder)
        for weights in folder.glob("*.safetensors"):
            # safetensors writes files that only their owner may read.
            shutil.copymode(folder / "config.json", weights)
        folder.joinpath(f"{SHIM}.py").write_text(f"from jukebox_hf import {', '.join(classes)}  # noqa: F401\n")
        folder.joinpath("README.md").write_text(model_card, encoding="utf-8")
        if output_dir.exists():
            output_dir.rmdir()
        os.replace(folder, output_dir)


def _in_shim(instance: object) -> str:
    return f"{SHIM}.{type(instance).__name__}"
