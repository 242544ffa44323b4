"""Converts a checkpoint of the original to a repository folder."""

import copy
from pathlib import Path

import httpx2
import torch
from huggingface_hub import constants, create_repo, upload_folder
from huggingface_hub.utils import validate_repo_id

from ..configuration_jukebox import JukeboxVQVAEConfig
from ..feature_extraction_jukebox import JukeboxFeatureExtractor
from ..modeling_jukebox_vqvae import JukeboxVQVAEModel
from .checkpoints import Checkpoint, read_checkpoint
from .download import download, file_sha256
from .hyperparameters import vqvae_config_from_hps
from .model_card import vqvae_card
from .name_maps import VQVAE_NAMES, translate
from .official import OFFICIAL_CHECKPOINTS, OfficialCheckpoint
from .repository import check_output_dir, write_repository


def convert_checkpoint(source: str | Path, output_dir: str | Path, push_to_hub: str | None = None) -> Path:
    """Converts a checkpoint of the original to a repository folder that `from_pretrained` loads.

    Args:
        source: the name of an official checkpoint (a key of `OFFICIAL_CHECKPOINTS`), which is downloaded, or the path
            of a `.pth.tar` file: an official one, known by its checksum, or one whose own `hps` describe it.
        output_dir: the folder to write; it appears only when it is whole.
        push_to_hub: also upload it to this repository on the Hub, created if need be, such as `"org/name"`.

    Returns:
        The folder.

    Raises:
        ValueError: an unknown source, a file that cannot be converted, or an output folder that is not empty.
        OSError: the download or the upload failed.
    """
    output_dir = Path(output_dir)
    check_output_dir(output_dir)
    if push_to_hub is not None:
        validate_repo_id(push_to_hub)
    official = OFFICIAL_CHECKPOINTS.get(str(source))
    path = _download(str(source), official) if official else _local_file(Path(source))
    sha256 = file_sha256(path)
    if official is None:
        official = next((known for known in OFFICIAL_CHECKPOINTS.values() if known.sha256 == sha256), None)

    model = load_vqvae(read_checkpoint(path), official)
    write_repository(
        output_dir,
        model,
        ["AutoModel", "AutoModelForAudioTokenization"],
        JukeboxFeatureExtractor(sampling_rate=model.config.sampling_rate, hop_length=model.config.hop_length),
        vqvae_card(
            model,
            repository=push_to_hub or output_dir.name,
            source=official.url if official else path.name,
            sha256=sha256,
            is_official=official is not None,
        ),
    )
    if push_to_hub is not None:
        _upload(output_dir, push_to_hub)
    return output_dir


def _upload(folder: Path, repository: str):
    try:
        create_repo(repository, exist_ok=True)
        upload_folder(repo_id=repository, folder_path=folder, commit_message="Convert with jukebox-hf")
    except (httpx2.HTTPError, OSError) as error:
        raise ConnectionError(
            f"{folder} is complete, but its upload to {repository} failed ({error}). Upload it with `hf upload "
            f"{repository} {folder}`, after `hf auth login` if need be."
        ) from error


def _download(name: str, official: OfficialCheckpoint) -> Path:
    path = Path(constants.HF_HOME, "jukebox-hf", f"{name}.pth.tar")
    return download(official.url, path, official.size, official.sha256)


def _local_file(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(
            f"{str(path)!r} is neither a file nor an official checkpoint: give the path of a .pth.tar file or one of "
            f"{', '.join(OFFICIAL_CHECKPOINTS)}."
        )
    return path


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
        _refuse_prior(checkpoint)
        config = vqvae_config_from_hps(checkpoint.hps)
        sample_length = _sample_length(checkpoint.hps, config)
    with torch.device("meta"):
        model = JukeboxVQVAEModel(config)
    statistics = {
        f"codebooks.{level}.{name}" for level in range(config.num_levels) for name in ("vector_sums", "counts")
    }
    expected = {name: tensor for name, tensor in model.state_dict().items() if name not in statistics}
    tensors = translate(checkpoint.state_dict, VQVAE_NAMES, expected)
    for level, hop in enumerate(config.hop_lengths):
        tensors |= _codebook_statistics(level, tensors[f"codebooks.{level}.vectors"], sample_length // hop)
    model.load_state_dict(tensors, assign=True)
    return model


def _codebook_statistics(level: int, vectors: torch.Tensor, codes_per_clip: int) -> dict[str, torch.Tensor]:
    """What no checkpoint holds, as the original sets it when it resumes: all codes are used equally often."""
    count = codes_per_clip / len(vectors)
    return {
        f"codebooks.{level}.vector_sums": vectors * count,
        f"codebooks.{level}.counts": torch.full((len(vectors),), count),
    }


def _refuse_prior(checkpoint: Checkpoint):
    keys = (key.removeprefix("module.") for key in checkpoint.state_dict)
    if checkpoint.hps.get("prior") or any(key.startswith("prior.") for key in keys):
        raise ValueError(
            "This is the checkpoint of a prior, and this version of jukebox-hf does not support priors: give the "
            "checkpoint of a VQ-VAE."
        )


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
