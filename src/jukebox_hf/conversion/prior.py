"""From the checkpoint of a prior to its repository."""

import copy
import logging
from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path

import torch
from transformers import FeatureExtractionMixin, GenerationConfig, PreTrainedModel, ProcessorMixin

from ..configuration_jukebox import JukeboxPriorConfig, JukeboxVQVAEConfig
from ..feature_extraction_jukebox import JukeboxFeatureExtractor
from ..modeling_jukebox_prior import SAMPLING, JukeboxPriorModel
from ..processing_jukebox import JukeboxProcessor
from ..tokenization_jukebox import LABEL_VERSIONS, JukeboxTokenizer
from .checkpoints import Checkpoint, in_memory
from .hyperparameters import hop_lengths_from_hps, prior_config_from_hps
from .model_card import prior_facts
from .name_maps import PRIOR_NAMES, translate
from .official import OfficialCheckpoint
from .repository import Repository
from .vocabularies import official_tokenizer, read_id_list
from .weights import Weight

logger = logging.getLogger(__name__)


def is_prior(checkpoint: Checkpoint) -> bool:
    """Tells the checkpoint of a prior from that of a VQ-VAE."""
    return any(key.removeprefix("module.").startswith("prior.") for key in checkpoint.state_dict)


def prior_repository(
    checkpoint: Checkpoint,
    official: OfficialCheckpoint | None,
    dtype: torch.dtype | None = None,
    vocabulary: Path | None = None,
) -> Repository:
    """Makes the repository of a prior.

    Args:
        official: what is known about the file; without it the checkpoint's `hps` must describe the model.
        dtype: of the layers' matrices; by default as the checkpoint stores them. All else stays in fp32.
        vocabulary: a folder with the original's lists of artists and genres; those of official priors are downloaded
            by default, other priors have no tokenizer without it.

    Raises:
        ValueError: the checkpoint is not that of a prior, does not fit its description, or the vocabulary does not.
        OSError: the download of a vocabulary failed.
    """
    if official is not None:
        config, version = copy.deepcopy(official.config), official.label_version
        longest_hop = JukeboxVQVAEConfig().hop_length
    else:
        config = prior_config_from_hps(checkpoint.hps)
        version = ("v3" if checkpoint.hps["labels_v3"] else "v2") if config.num_artists else None
        longest_hop = int(hop_lengths_from_hps(checkpoint.hps)[-1])
    with torch.device("meta"):
        model = JukeboxPriorModel(config)
    model.generation_config = GenerationConfig(**SAMPLING)
    weights = prior_weights(model, checkpoint.state_dict, dtype)
    extractor = JukeboxFeatureExtractor(sampling_rate=config.sampling_rate, hop_length=longest_hop)
    preprocessor = _preprocessor(config, version, extractor, official is not None, vocabulary)
    matrices = layer_matrices(model, weights)
    return Repository(
        model=model,
        auto_classes=["AutoModel"],
        weights=weights,
        dtype=widest_dtype(matrices),
        preprocessor=preprocessor,
        card="prior.md",
        facts=prior_facts(
            model,
            version,
            has_tokenizer=isinstance(preprocessor, ProcessorMixin),
            num_layer_values=sum(matrix.tensor.numel() for matrix in matrices),
            dtype=widest_dtype(matrices),
        ),
    )


def prior_weights(
    model: JukeboxPriorModel, state_dict: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None
) -> dict[str, Weight]:
    """Finds every tensor of the model in a checkpoint, and the type to write it in.

    Args:
        model: on any device; the meta device will do.
        dtype: of the layers' matrices; by default as they are.

    Raises:
        ValueError: the checkpoint does not fit the model.
    """
    tensors = translate(state_dict, PRIOR_NAMES, model.state_dict())
    for name, source in model.all_tied_weights_keys.items():
        if not torch.equal(in_memory(tensors.pop(name)), in_memory(tensors[source])):
            raise ValueError(
                "The checkpoint's prior.x_out.weight differs from its prior.x_emb.weight, but hps['merged_decoder'] is "
                "off, where both are one matrix: set it on if the run had it on."
            )
    return {
        name: Weight(tensor, torch.float32 if is_kept_in_fp32(model, name) else dtype or tensor.dtype)
        for name, tensor in tensors.items()
    }


def is_kept_in_fp32(model: PreTrainedModel, name: str) -> bool:
    """Whether a tensor is never written in less than fp32: all but the matrices of priors' layers."""
    is_bias = name.endswith(".bias")
    return is_bias or any(module in name for module in model._keep_in_fp32_modules_strict)


def layer_matrices(model: PreTrainedModel, weights: Mapping[str, Weight]) -> list[Weight]:
    """Gives what may be written in half precision."""
    return [weight for name, weight in weights.items() if not is_kept_in_fp32(model, name)]


def widest_dtype(weights: Iterable[Weight]) -> torch.dtype:
    """Gives the type that holds all weights exactly."""
    return reduce(torch.promote_types, (weight.dtype for weight in weights))


def _preprocessor(
    config: JukeboxPriorConfig,
    version: str | None,
    extractor: JukeboxFeatureExtractor,
    is_official: bool,
    vocabulary: Path | None,
) -> FeatureExtractionMixin | ProcessorMixin:
    if version is None:
        if vocabulary is not None:
            raise ValueError(f"vocabulary={str(vocabulary)!r}: this prior was trained without labels; leave it out.")
        return extractor
    if is_official:
        tokenizer = official_tokenizer([version], config.max_genres, config.num_lyric_tokens, vocabulary)
    elif vocabulary is not None:
        tokenizer = _tokenizer_from_lists(config, version, vocabulary)
    else:
        logger.warning(
            "The repository gets no tokenizer: this prior was trained with artists and genres, but no checkpoint holds "
            "their names. Give the folder of the run's %s and %s as the vocabulary; without them the model takes ids.",
            *_list_names(version),
        )
        return extractor
    return JukeboxProcessor(extractor, tokenizer, config.sample_length)


def _list_names(version: str) -> list[str]:
    return [f"{version}_{kind}_ids.txt" for kind in ("artist", "genre")]


def _tokenizer_from_lists(config: JukeboxPriorConfig, version: str, folder: Path) -> JukeboxTokenizer:
    vocabularies = []
    for name, size in zip(_list_names(version), (config.num_artists, config.num_genres)):
        path = Path(folder, name)
        if not path.is_file():
            raise ValueError(f"There is no {name} in {folder}: it should hold the run's lists, {_list_names(version)}.")
        ids = read_id_list(path)
        if max(ids.values(), default=0) >= size:
            raise ValueError(
                f"{path} has the id {max(ids.values())}, but hps['y_bins'] leaves room for 0 to {size - 1}: give the "
                "list that the run was trained with."
            )
        vocabularies.append({version: ids})
    tokenizer = JukeboxTokenizer(
        *vocabularies,
        {version: LABEL_VERSIONS[version].lyric_characters},
        versions=[version],
        max_genres=config.max_genres,
        num_lyric_tokens=config.num_lyric_tokens,
    )
    if config.num_lyric_tokens and tokenizer.vocab_size != config.lyric_vocab_size:
        raise ValueError(
            f"hps['n_vocab'] is {config.lyric_vocab_size}, but the lyrics of {version} have {tokenizer.vocab_size} "
            "ids: convert without a vocabulary, and give JukeboxTokenizer the run's own characters."
        )
    return tokenizer
