"""Converts a checkpoint of the original to a repository folder."""

from pathlib import Path

import httpx2
import torch
from huggingface_hub import constants, create_repo, upload_folder
from huggingface_hub.utils import validate_repo_id

from ..configuration_jukebox import JukeboxPriorConfig
from .checkpoints import Checkpoint, read_checkpoint
from .download import download, file_sha256
from .model_card import fill_card
from .official import OFFICIAL_CHECKPOINTS, OfficialCheckpoint
from .prior import is_prior, prior_repository
from .repository import Repository, check_output_dir, write_repository
from .vqvae import vqvae_repository

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def convert_checkpoint(
    source: str | Path,
    output_dir: str | Path,
    push_to_hub: str | None = None,
    dtype: str | None = None,
    vocabulary: str | Path | None = None,
) -> Path:
    """Converts a checkpoint of the original to a repository folder that `from_pretrained` loads.

    Takes little more memory than its largest tensor.

    Args:
        source: the name of an official checkpoint (a key of `OFFICIAL_CHECKPOINTS`), which is downloaded, or the path
            of a `.pth.tar` file: an official one, known by its checksum, or one whose own `hps` describe it.
        output_dir: the folder to write; it appears only when it is whole.
        push_to_hub: also upload it to this repository on the Hub, created if need be, such as `"org/name"`.
        dtype: `"float32"`, `"float16"` or `"bfloat16"` for the matrices of a prior's layers, by default the type that
            the checkpoint stores them in. All else stays in float32.
        vocabulary: for a prior with labels, the folder of the original's lists `v2_artist_ids.txt` and
            `v2_genre_ids.txt`, or those of v3. The lists of official priors are downloaded by default; any other prior
            gets no tokenizer without its own.

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
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: choose one of {', '.join(DTYPES)}.")
    official = OFFICIAL_CHECKPOINTS.get(str(source))
    path = _download(str(source), official) if official else _local_file(Path(source))
    sha256 = file_sha256(path)
    if official is None:
        official = next((known for known in OFFICIAL_CHECKPOINTS.values() if known.sha256 == sha256), None)

    repository = _repository(read_checkpoint(path), official, dtype, vocabulary)
    card = fill_card(
        repository.card,
        repository.facts,
        repository=push_to_hub or output_dir.name,
        source=official.url if official else path.name,
        sha256=sha256,
        is_official=official is not None,
    )
    write_repository(output_dir, repository, card)
    if push_to_hub is not None:
        _upload(output_dir, push_to_hub)
    return output_dir


def _repository(
    checkpoint: Checkpoint,
    official: OfficialCheckpoint | None,
    dtype: str | None,
    vocabulary: str | Path | None,
) -> Repository:
    if isinstance(official.config, JukeboxPriorConfig) if official else is_prior(checkpoint):
        return prior_repository(checkpoint, official, DTYPES.get(dtype), vocabulary)
    for name, value in (("dtype", dtype), ("vocabulary", vocabulary)):
        if value is not None:
            raise ValueError(
                f"{name}={str(value)!r}: this is the checkpoint of a VQ-VAE, not of a prior; leave it out."
            )
    return vqvae_repository(checkpoint, official)


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
