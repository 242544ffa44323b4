"""Writes the folder that is a repository on the Hub: configuration, weights, preprocessor, shim and model card."""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import FeatureExtractionMixin, PreTrainedModel, ProcessorMixin

from .weights import Weight, write_weights

# `auto_map` and this module let `trust_remote_code=True` find the classes of the installed package in a process that
# has not imported it.
SHIM = "jukebox_hf_shim"


@dataclass
class Repository:
    """What a repository is made of.

    Args:
        model: on any device (meta will do): its classes and configurations are written, and not its tensors.
        auto_classes: the Auto classes that find the model, such as `AutoModel`.
        weights: every tensor that `from_pretrained` needs.
        dtype: what `from_pretrained` loads the model in unless told otherwise.
        preprocessor: a feature extractor, or a processor.
        card: the template of its README.md, in `model_cards/`.
        facts: what fills the template, beside the facts about the source.
    """

    model: PreTrainedModel
    auto_classes: list[str]
    weights: Mapping[str, Weight]
    dtype: torch.dtype
    preprocessor: FeatureExtractionMixin | ProcessorMixin
    card: str
    facts: Mapping[str, str]


def check_output_dir(output_dir: Path):
    """Raises a ValueError when a repository cannot be written to `output_dir` because something is there."""
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ValueError(f"{output_dir} exists and is not an empty folder: choose another output folder, or remove it.")


def write_repository(output_dir: Path, repository: Repository, model_card: str):
    """Writes a repository folder that `from_pretrained` loads; it appears only when it is whole.

    Args:
        model_card: the text of its README.md.

    Raises:
        ValueError: `output_dir` is a file or a folder that is not empty.
    """
    check_output_dir(output_dir)
    model, config = repository.model, repository.model.config
    config.architectures = [type(model).__name__]
    config.dtype = repository.dtype
    config.auto_map = {name: _in_shim(model) for name in repository.auto_classes} | {"AutoConfig": _in_shim(config)}
    parts = _map_preprocessor(repository.preprocessor)
    classes = sorted(type(part).__name__ for part in (model, config, *parts))
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output_dir.name}-", dir=output_dir.parent) as scratch:
        # A folder inside: the temporary one itself is closed to other users.
        folder = Path(scratch, output_dir.name)
        config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
        write_weights(folder, repository.weights)
        repository.preprocessor.save_pretrained(folder)
        folder.joinpath(f"{SHIM}.py").write_text(f"from jukebox_hf import {', '.join(classes)}  # noqa: F401\n")
        folder.joinpath("README.md").write_text(model_card, encoding="utf-8")
        if output_dir.exists():
            output_dir.rmdir()
        os.replace(folder, output_dir)


def _map_preprocessor(preprocessor: FeatureExtractionMixin | ProcessorMixin) -> list:
    """Names the class of each part in its own file, and gives the parts."""
    if not isinstance(preprocessor, ProcessorMixin):
        preprocessor.auto_map = {"AutoFeatureExtractor": _in_shim(preprocessor)}
        return [preprocessor]
    extractor, tokenizer = preprocessor.feature_extractor, preprocessor.tokenizer
    extractor.auto_map = {"AutoFeatureExtractor": _in_shim(extractor)}
    # The first is the class in Python, the second one in Rust.
    tokenizer.init_kwargs["auto_map"] = {"AutoTokenizer": [_in_shim(tokenizer), None]}
    preprocessor.auto_map = {"AutoProcessor": _in_shim(preprocessor)}
    return [preprocessor, extractor, tokenizer]


def _in_shim(instance: object) -> str:
    return f"{SHIM}.{type(instance).__name__}"
