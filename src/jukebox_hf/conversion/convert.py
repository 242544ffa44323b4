"""Converts checkpoints of the original, and repositories of transformers 4, to repository folders."""

from collections.abc import Sequence
from pathlib import Path

import httpx2
import torch
from huggingface_hub import constants, create_repo, upload_folder
from huggingface_hub.utils import validate_repo_id

from ..configuration_jukebox import JukeboxConfig, JukeboxPriorConfig
from ..v4_layout import read_v4_config
from .checkpoints import Checkpoint, read_checkpoint
from .download import download, file_sha256
from .model_card import Source, fill_card
from .official import OFFICIAL_CHECKPOINTS, OFFICIAL_MODELS, OfficialCheckpoint
from .prior import is_prior, prior_repository
from .repository import Repository, check_output_dir, write_repository
from .v4 import OFFICIAL_REPOSITORIES, fetch_repository, v4_repository
from .vqvae import vqvae_repository
from .whole import join_processors, join_weights, whole_repository

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def convert_checkpoint(
    source: str | Path,
    output_dir: str | Path,
    push_to_hub: str | None = None,
    dtype: str | None = None,
    vocabulary: str | Path | None = None,
) -> Path:
    """Converts checkpoints of the original, or a model that transformers 4 stored, to a repository folder.

    `from_pretrained` loads it. Takes little more memory than the largest tensor.

    Args:
        source: the name of an official model or of one of its checkpoints (keys of `OFFICIAL_MODELS` and
            `OFFICIAL_CHECKPOINTS`), which are downloaded; the path of a `.pth.tar` file: an official one, known by its
            checksum, or one whose own `hps` describe it; or a repository of transformers 4, a folder or a name on the
            Hub such as `"openai/jukebox-1b-lyrics"`.
        output_dir: the folder to write; it appears only when it is whole.
        push_to_hub: also upload it to this repository on the Hub, created if need be, such as `"org/name"`.
        dtype: `"float32"`, `"float16"` or `"bfloat16"` for the matrices of priors' layers, by default the type that
            they are stored in. All else is written in float32.
        vocabulary: for a prior with labels, the folder of the original's lists `v2_artist_ids.txt` and
            `v2_genre_ids.txt`, or those of v3. The lists of official priors are downloaded by default; any other prior
            gets no tokenizer without its own.

    Returns:
        The folder.

    Raises:
        ValueError: an unknown source, a file that cannot be converted, or an output folder that is not empty.
        OSError: the download or the upload failed.
    """
    source, output_dir = str(source), Path(output_dir)
    check_output_dir(output_dir)
    if push_to_hub is not None:
        validate_repo_id(push_to_hub)
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: choose one of {', '.join(DTYPES)}.")
    if source in OFFICIAL_MODELS:
        repository, sources, is_official = _official_model(OFFICIAL_MODELS[source], dtype, vocabulary)
    elif source in OFFICIAL_CHECKPOINTS or Path(source).is_file():
        repository, sources, is_official = _checkpoint(source, dtype, vocabulary)
    else:
        if vocabulary is not None:
            raise ValueError(f"vocabulary={str(vocabulary)!r}: a repository has names of its own; leave it out.")
        repository = v4_repository(_v4_folder(source), DTYPES.get(dtype))
        name = Path(source).resolve().name if Path(source).is_dir() else source
        sources, is_official = [Source(name)], name in OFFICIAL_REPOSITORIES
    card = fill_card(
        repository.card,
        repository.facts,
        repository=push_to_hub or output_dir.name,
        sources=sources,
        is_official=is_official,
    )
    write_repository(output_dir, repository, card)
    if push_to_hub is not None:
        _upload(output_dir, push_to_hub)
    return output_dir


def _official_model(
    parts: Sequence[str], dtype: str | None, vocabulary: str | Path | None
) -> tuple[Repository, list[Source], bool]:
    vqvae, *priors = parts
    converted = [_checkpoint(vqvae, None, None), *(_checkpoint(prior, dtype, vocabulary) for prior in priors)]
    repositories, sources, _ = zip(*converted)
    config = JukeboxConfig.from_parts(repositories[0].model.config, [part.model.config for part in repositories[1:]])
    names = ["vqvae", *(f"prior_{part.model.config.level}" for part in repositories[1:])]
    weights = join_weights({name: part.weights for name, part in zip(names, repositories)})
    processor = join_processors(config, [part.preprocessor for part in repositories[1:]])
    return whole_repository(config, weights, processor), [source for part in sources for source in part], True


def _checkpoint(source: str, dtype: str | None, vocabulary: str | Path | None) -> tuple[Repository, list[Source], bool]:
    official = OFFICIAL_CHECKPOINTS.get(source)
    path = _download(source, official) if official else Path(source)
    sha256 = file_sha256(path)
    if official is None:
        official = next((known for known in OFFICIAL_CHECKPOINTS.values() if known.sha256 == sha256), None)
    repository = _repository(read_checkpoint(path), official, dtype, vocabulary)
    return repository, [Source(official.url if official else path.name, sha256)], official is not None


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


def _v4_folder(source: str) -> Path:
    is_folder = Path(source).is_dir()
    is_repository = source.count("/") == 1 and not source.endswith((".tar", ".pth"))
    if not (is_folder or is_repository) or read_v4_config(source) is None:
        raise ValueError(
            f"{source!r} is neither a file nor an official checkpoint, and no repository of transformers 4: give the "
            "path of a .pth.tar file, a repository in the layout of openai/jukebox-1b-lyrics (ours needs no "
            f"conversion), or one of {', '.join((*OFFICIAL_MODELS, *OFFICIAL_CHECKPOINTS))}."
        )
    return Path(source) if is_folder else fetch_repository(source)
