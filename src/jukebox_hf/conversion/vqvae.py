"""From the checkpoint of a VQ-VAE to its repository."""

import copy

import torch

from ..configuration_jukebox import JukeboxVQVAEConfig
from ..feature_extraction_jukebox import JukeboxFeatureExtractor
from ..modeling_jukebox_vqvae import JukeboxVQVAEModel
from ..v4_weights import codebook_statistics
from .checkpoints import Checkpoint, in_memory
from .hyperparameters import vqvae_config_from_hps
from .model_card import vqvae_facts
from .name_maps import VQVAE_NAMES, translate
from .official import OfficialCheckpoint
from .repository import Repository
from .weights import Weight


def vqvae_repository(checkpoint: Checkpoint, official: OfficialCheckpoint | None) -> Repository:
    """Makes the repository of a VQ-VAE.

    Raises:
        ValueError: as `load_vqvae`.
    """
    tensors = {name: in_memory(tensor) for name, tensor in checkpoint.state_dict.items()}
    model = load_vqvae(Checkpoint(tensors, checkpoint.hps), official)
    config = model.config
    return Repository(
        model=model,
        auto_classes=["AutoModel", "AutoModelForAudioTokenization"],
        weights={name: Weight(tensor, torch.float32) for name, tensor in model.state_dict().items()},
        dtype=torch.float32,
        preprocessor=JukeboxFeatureExtractor(sampling_rate=config.sampling_rate, hop_length=config.hop_length),
        card="vqvae.md",
        facts=vqvae_facts(model),
    )


def load_vqvae(checkpoint: Checkpoint, official: OfficialCheckpoint | None = None) -> JukeboxVQVAEModel:
    """Makes the model of a checkpoint, around the checkpoint's own tensors.

    Args:
        official: what is known about the file; without it the checkpoint's `hps` must describe the model.

    Raises:
        ValueError: the checkpoint is not that of a VQ-VAE, or does not fit its description.
    """
    if official is not None:
        config, sample_length = copy.deepcopy(official.config), official.sample_length
    else:
        config = vqvae_config_from_hps(checkpoint.hps)
        sample_length = _sample_length(checkpoint.hps, config)
    with torch.device("meta"):
        model = JukeboxVQVAEModel(config)
    derived = {f"codebooks.{level}.{name}" for level in range(config.num_levels) for name in ("vector_sums", "counts")}
    expected = {name: tensor for name, tensor in model.state_dict().items() if name not in derived}
    tensors = translate(checkpoint.state_dict, VQVAE_NAMES, expected)
    for level, hop in enumerate(config.hop_lengths):
        statistics = codebook_statistics(tensors[f"codebooks.{level}.vectors"], sample_length // hop)
        tensors |= {f"codebooks.{level}.{name}": tensor for name, tensor in statistics.items()}
    model.load_state_dict(tensors, assign=True)
    return model


def _sample_length(hps: dict, config: JukeboxVQVAEConfig) -> int:
    """The clip length of the run; one code of the top level at least, as counts of zero would mean untrained codes."""
    sample_length = int(hps.get("sample_length") or 0)
    if sample_length < config.hop_length:
        raise ValueError(
            f"hps['sample_length'] is {hps.get('sample_length')}, but the codebooks' statistics follow from the "
            f"clip length of the training run, at least {config.hop_length} samples: set it in the dictionary 'hps' of "
            "the file."
        )
    return sample_length
