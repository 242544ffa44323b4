"""Puts a VQ-VAE and priors together to one repository."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, FeatureExtractionMixin, PreTrainedConfig, ProcessorMixin
from transformers.utils import PROCESSOR_NAME

from ..configuration_jukebox import JukeboxConfig, JukeboxPriorConfig, JukeboxVQVAEConfig
from ..feature_extraction_jukebox import JukeboxFeatureExtractor
from ..modeling_jukebox import JukeboxModel
from ..processing_jukebox import JukeboxProcessor
from .model_card import LICENSE_NAME, Source, fill_card, whole_facts
from .prior import layer_matrices, widest_dtype
from .repository import Repository, check_output_dir, write_repository
from .weights import Weight, map_weights

logger = logging.getLogger(__name__)

# Facts about a part's own repository.
REPOSITORY_FIELDS = ("_name_or_path", "architectures", "auto_map", "dtype", "model_type", "transformers_version")


def compose_repository(part_folders: Sequence[str | Path], output_dir: str | Path) -> Path:
    """Puts the repositories of a VQ-VAE and of its priors together to the repository of one model.

    Copies tensor by tensor, in the types they have, and takes little more memory than the largest. Where every prior
    has a processor, so has the model.

    Args:
        part_folders: those of one VQ-VAE and of priors, in any order.
        output_dir: the folder to write; it appears only when it is whole.

    Returns:
        The folder.

    Raises:
        ValueError: not one VQ-VAE and priors, parts that do not fit together, tensors that are missing or too many, or
            an output folder that is not empty.
        OSError: a folder without a repository.
    """
    output_dir = Path(output_dir)
    check_output_dir(output_dir)
    folders = [Path(folder) for folder in part_folders]
    configs = {folder: _without_repository(AutoConfig.from_pretrained(folder)) for folder in folders}
    vqvaes = [folder for folder in folders if isinstance(configs[folder], JukeboxVQVAEConfig)]
    priors = [folder for folder in folders if isinstance(configs[folder], JukeboxPriorConfig)]
    if len(vqvaes) != 1 or not priors or len(vqvaes) + len(priors) != len(configs):
        raise ValueError(
            f"{', '.join(map(str, folders))}: these are {len(vqvaes)} VQ-VAEs and {len(priors)} priors. Give the "
            "folders of one VQ-VAE and of at least one prior, each once."
        )
    priors = sorted(priors, key=lambda folder: configs[folder].level)
    config = JukeboxConfig.from_parts(configs[vqvaes[0]], [configs[folder] for folder in priors])
    weights = {"vqvae": map_weights(vqvaes[0])} | {
        f"prior_{configs[folder].level}": map_weights(folder) for folder in priors
    }
    has_processor = [(folder / PROCESSOR_NAME).is_file() for folder in priors]
    processors = [JukeboxProcessor.from_pretrained(folder) for folder in priors] if all(has_processor) else []
    if any(has_processor) and not processors:
        logger.warning("The model gets no processor: some of its priors have none.")
    repository = whole_repository(config, join_weights(weights), join_processors(config, processors))
    cards = [folder / "README.md" for folder in folders]
    card = fill_card(
        repository.card,
        repository.facts,
        repository=output_dir.name,
        sources=[Source(folder.resolve().name) for folder in folders],
        is_official=any(LICENSE_NAME in card.read_text(encoding="utf-8") for card in cards if card.is_file()),
    )
    write_repository(output_dir, repository, card)
    return output_dir


def whole_repository(
    config: JukeboxConfig,
    weights: Mapping[str, Weight],
    preprocessor: FeatureExtractionMixin | ProcessorMixin,
    hop_fractions: Sequence[float] | None = None,
) -> Repository:
    """Makes the repository of a whole model.

    Args:
        weights: by their names in a [`JukeboxModel`].
        hop_fractions: of its generation config, from level 0 up; default the original's.

    Raises:
        ValueError: the weights are not those of such a model.
    """
    with torch.device("meta"):
        model = JukeboxModel(config)
    if hop_fractions is not None:
        model.generation_config.hop_fractions = list(hop_fractions)
    expected = {
        name: tensor.shape for name, tensor in model.state_dict().items() if name not in model.all_tied_weights_keys
    }
    given = {name: weight.tensor.shape for name, weight in weights.items()}
    if wrong := sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name)):
        raise ValueError(
            f"{len(wrong)} tensors are missing, too many or of a wrong shape ({', '.join(wrong[:3])}, ...): the "
            "weights do not fit their configuration. Convert the parts again."
        )
    matrices = layer_matrices(model, weights)
    for level, prior in model.priors.items():
        own = {name: weight for name, weight in weights.items() if name.startswith(f"prior_{level}.")}
        # What loading this part alone takes.
        prior.config.dtype = widest_dtype(layer_matrices(prior, own))
    facts = whole_facts(
        model,
        preprocessor.tokenizer.versions if isinstance(preprocessor, ProcessorMixin) else None,
        num_layer_values=sum(matrix.tensor.numel() for matrix in matrices),
        dtypes={matrix.dtype for matrix in matrices},
    )
    return Repository(
        model=model,
        auto_classes=["AutoModel", "AutoModelForTextToWaveform"],
        weights=weights,
        dtype=widest_dtype(matrices),
        preprocessor=preprocessor,
        card="jukebox.md",
        facts=facts,
    )


def join_weights(parts: Mapping[str, Mapping[str, Weight]]) -> dict[str, Weight]:
    """Gives the weights of all parts the names that they have in the whole."""
    return {f"{part}.{name}": weight for part, weights in parts.items() for name, weight in weights.items()}


def join_processors(
    config: JukeboxConfig, processors: Sequence[JukeboxProcessor]
) -> JukeboxProcessor | JukeboxFeatureExtractor:
    """Makes the whole's processor of those of its priors, from level 0 up; without any, its feature extractor."""
    if processors:
        return JukeboxProcessor.from_parts(processors)
    return JukeboxFeatureExtractor(sampling_rate=config.sampling_rate, hop_length=config.vqvae_config.hop_length)


def _without_repository(config: PreTrainedConfig) -> PreTrainedConfig:
    fields = {name: value for name, value in config.to_dict().items() if name not in REPOSITORY_FIELDS}
    return type(config)(**fields)
