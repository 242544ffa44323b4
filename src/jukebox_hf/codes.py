"""Turns the audio column of a dataset into columns of codes."""

import hashlib
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from transformers.utils import CONFIG_NAME

from .configuration_jukebox import JukeboxVQVAEConfig
from .feature_extraction_jukebox import JukeboxFeatureExtractor, read_clip
from .modeling_jukebox_vqvae import JukeboxVQVAEModel

if TYPE_CHECKING:
    import pyarrow as pa

# The files of a model's folder that decide about its codes.
DIGESTED_SUFFIXES = (".json", ".safetensors", ".bin")


class JukeboxCodeExtractor:
    """Encodes an audio column to codes: the function of `dataset.map(extractor, batched=True)`.

    A call takes a batch, a dict of lists, and returns for each level a list `audio_codes_{level}` of arrays
    `(frames,)`, int16 or, for a codebook beyond it, int32; and a list `error`, None or the reason why a row has no
    codes (None in their place). A bad row costs itself alone.

    Rows are what a `datasets.Audio` column holds, decoded (torchcodec's decoders, dicts of `array` and
    `sampling_rate`) or not (dicts of `bytes` and `path`, read by soundfile), or plain paths, at any sampling rate.
    Clips are encoded one by one, so memory depends on the longest clip and not on the size of the batch.

    Streaming datasets, and those with a format such as `with_format("torch")`, decode rows before any function sees
    them, and there one bad file stops the run. Give these undecoded rows:
    `dataset.cast_column("audio", Audio(decode=False))`.

    The first call loads the model, in the process that needs it; a worker of `num_proc` takes one thread. Until then an
    extractor is a few strings, the same ones in every process, and so a later run finds its results in the cache of
    `datasets`.
    """

    def __init__(
        self,
        pretrained_model_name_or_path: str,
        levels: list[int],
        audio_column: str = "audio",
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        *,
        commit: str | None = None,
        digest: str | None = None,
    ):
        self.pretrained_model_name_or_path = pretrained_model_name_or_path
        self.levels = levels
        self.audio_column = audio_column
        self.device = device
        self.dtype = dtype
        self.commit = commit
        self.digest = digest
        self._model = None
        self._feature_extractor = None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        levels: list[int] | None = None,
        audio_column: str = "audio",
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
    ) -> "JukeboxCodeExtractor":
        """Describes an extractor without loading its model; what is described now is what will be loaded.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): a repository on the Hub, of which the present commit
                is kept, or a folder, of which a digest of all contents is kept: unlike their times it survives a copy,
                and reading the few megabytes of a VQ-VAE takes no time.
            levels (`list[int]`, *optional*): the levels to compute; default all.
            audio_column (`str`): the column that holds the audio.
            device (`str` or `torch.device`, *optional*): where to encode; default the accelerator if there is one.
            dtype (`str` or `torch.dtype`, *optional*): of the model; default that of its weights.
            revision (`str`, *optional*): a branch, tag or commit of the repository.

        Raises:
            ValueError: levels that this model does not have.
        """
        name, commit, digest = str(pretrained_model_name_or_path), None, None
        if os.path.isdir(name):
            name = os.path.abspath(name)
            digest = _digest(Path(name))
        else:
            # The cache of the Hub keeps each commit in a folder of its own.
            commit = Path(hf_hub_download(name, CONFIG_NAME, revision=revision)).parent.name
        config = JukeboxVQVAEConfig.from_pretrained(name, revision=commit)
        levels = config.check_levels(levels)
        return cls(name, levels, audio_column, device, dtype, commit=commit, digest=digest)

    def __call__(self, batch: Mapping[str, list]) -> dict[str, list]:
        import pyarrow as pa

        if self.audio_column not in batch:
            raise ValueError(f"audio_column={self.audio_column!r}: the batch has the columns {', '.join(batch)}.")
        self._load()
        integers = np.int16 if self._model.config.codebook_size <= 2**15 else np.int32
        codes = [_TypedList(pa.list_(pa.from_numpy_dtype(integers))) for _ in self.levels]
        errors = _TypedList(pa.string())
        for read_row in _row_readers(batch, self.audio_column):
            try:
                row_codes, error = self._encode(self._read_clip(read_row)), None
            except ValueError as reason:
                row_codes, error = [None] * len(self.levels), str(reason)
            for column, values in zip(codes, row_codes):
                column.append(None if values is None else values.astype(integers))
            errors.append(error)
        return {f"audio_codes_{level}": column for level, column in zip(self.levels, codes)} | {"error": errors}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_model": None, "_feature_extractor": None}

    def _load(self):
        import multiprocess

        if self._model is not None:
            return
        name = self.pretrained_model_name_or_path
        if self.digest is not None and _digest(Path(name)) != self.digest:
            raise ValueError(f"{name} has changed since from_pretrained() looked at it: call it again.")
        device = self.device
        if device is None:
            device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        if multiprocess.parent_process() is not None:
            # A worker of num_proc: after a fork OpenMP waits forever for the threads that its parent had.
            torch.set_num_threads(1)
        self._feature_extractor = JukeboxFeatureExtractor.from_pretrained(name, revision=self.commit)
        self._model = JukeboxVQVAEModel.from_pretrained(name, revision=self.commit, dtype=self.dtype).to(device)

    def _read_clip(self, read_row: Callable[[], Any]) -> np.ndarray:
        """Reads a row as mono float32 `(samples,)` at the model's rate; ValueError if that cannot be."""
        import soxr

        from .audio_files import RESAMPLING_QUALITY

        target = self._feature_extractor.sampling_rate
        try:
            row = read_row()
            if row is None:
                raise ValueError("The row has no audio.")
            if isinstance(row, str | os.PathLike):
                return _read_file(row, None, target)
            if isinstance(row, Mapping) and "array" not in row:
                return _read_file(row.get("path"), row.get("bytes"), target)
            clip, sampling_rate = read_clip(row, "The clip")
        except OSError as error:
            raise ValueError(str(error)) from error
        except RuntimeError as error:
            # So torchcodec calls a bad file. Where it is itself broken, this import says so and stops the run.
            import torchcodec.decoders  # noqa: F401

            raise ValueError(str(error)) from error
        if sampling_rate is None:
            raise ValueError(f"The clip, {type(row).__name__}, has no sampling rate: give array and sampling_rate.")
        if sampling_rate != target:
            clip = soxr.resample(clip, sampling_rate, target, quality=RESAMPLING_QUALITY)
        return clip

    def _encode(self, clip: np.ndarray) -> list[np.ndarray]:
        sampling_rate = self._feature_extractor.sampling_rate
        inputs = self._feature_extractor(clip, sampling_rate=sampling_rate, return_tensors="pt")
        codes = self._model.encode(**inputs.to(self._model.device), levels=self.levels).audio_codes
        return [level[0].cpu().numpy() for level in codes]


class _TypedList(list):
    """A list that keeps its Arrow type when all of its values are None.

    `datasets` settles the types of new columns by their first batch, and would take a column of no errors, or of
    nothing but bad rows, for one that never holds anything else.
    """

    def __init__(self, pa_type: "pa.DataType"):
        super().__init__()
        self.pa_type = pa_type

    def __arrow_array__(self, type: "pa.DataType | None" = None) -> "pa.Array":
        import pyarrow as pa

        return pa.array(list(self), type or self.pa_type)


def _row_readers(batch: Mapping[str, list], column: str) -> list[Callable[[], Any]]:
    """Gives for each row a function that reads it."""
    from datasets.formatting.formatting import LazyBatch

    if isinstance(batch, LazyBatch):
        # batch[column] would decode all rows at once, and fail them all for one.
        table, formatter = batch.pa_table.select([column]), batch.formatter
        return [lambda row=row: formatter.format_column(table.slice(row, 1))[0] for row in range(table.num_rows)]
    return [lambda row=row: row for row in batch[column]]


def _read_file(path: str | os.PathLike | None, content: bytes | None, sampling_rate: int) -> np.ndarray:
    from .audio_files import read_audio_blocks

    if content is not None:
        file = io.BytesIO(content)
        file.name = path or "The audio"
    elif path is None:
        raise ValueError("The row has no audio.")
    elif "://" in str(path):
        import fsspec

        # Read at once, since an error of the network within libsndfile would pass for the end of the file.
        with fsspec.open(str(path), "rb") as remote:
            file = io.BytesIO(remote.read())
        file.name = path
    else:
        file = path
    return np.concatenate(list(read_audio_blocks(file, sampling_rate)))


def _digest(folder: Path) -> str:
    """Summarises the contents of the files that decide about a model's codes."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in DIGESTED_SUFFIXES):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


__all__ = ["JukeboxCodeExtractor"]
