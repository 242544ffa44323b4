"""Turns the audio column of a dataset into columns of codes."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from .audio_rows import TypedList, prepare_worker, read_row, row_readers
from .configuration_jukebox import JukeboxVQVAEConfig
from .feature_extraction_jukebox import JukeboxFeatureExtractor
from .modeling_jukebox_vqvae import JukeboxVQVAEModel
from .pinned_model import PinnedModel


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
        model: PinnedModel,
        levels: list[int],
        audio_column: str = "audio",
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ):
        self.model = model
        self.levels = levels
        self.audio_column = audio_column
        self.device = device
        self.dtype = dtype
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
                is kept, or a folder, of which a digest is kept.
            levels (`list[int]`, *optional*): the levels to compute; default all.
            audio_column (`str`): the column that holds the audio.
            device (`str` or `torch.device`, *optional*): where to encode; default the accelerator if there is one.
            dtype (`str` or `torch.dtype`, *optional*): of the model; default that of its weights.
            revision (`str`, *optional*): a branch, tag or commit of the repository.

        Raises:
            ValueError: levels that this model does not have.
        """
        model = PinnedModel.pin(pretrained_model_name_or_path, revision)
        config = JukeboxVQVAEConfig.from_pretrained(model.name, revision=model.commit)
        levels = config.check_levels(levels)
        return cls(model, levels, audio_column, device, dtype)

    def __call__(self, batch: Mapping[str, list]) -> dict[str, list]:
        import pyarrow as pa

        readers = row_readers(batch, self.audio_column)
        self._load()
        integers = np.int16 if self._model.config.codebook_size <= 2**15 else np.int32
        codes = [TypedList(pa.list_(pa.from_numpy_dtype(integers))) for _ in self.levels]
        errors = TypedList(pa.string())
        for reader in readers:
            try:
                row_codes, error = self._encode(read_row(reader, self._feature_extractor.sampling_rate)), None
            except ValueError as reason:
                row_codes, error = [None] * len(self.levels), str(reason)
            for column, values in zip(codes, row_codes):
                column.append(None if values is None else values.astype(integers))
            errors.append(error)
        return {f"audio_codes_{level}": column for level, column in zip(self.levels, codes)} | {"error": errors}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_model": None, "_feature_extractor": None}

    def _load(self):
        if self._model is not None:
            return
        self.model.check()
        device = self.device
        if device is None:
            device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        prepare_worker()
        self._feature_extractor = JukeboxFeatureExtractor.from_pretrained(self.model.name, revision=self.model.commit)
        self._model = JukeboxVQVAEModel.from_pretrained(
            self.model.name, revision=self.model.commit, dtype=self.dtype
        ).to(device)

    def _encode(self, clip: np.ndarray) -> list[np.ndarray]:
        sampling_rate = self._feature_extractor.sampling_rate
        inputs = self._feature_extractor(clip, sampling_rate=sampling_rate, return_tensors="pt")
        codes = self._model.encode(**inputs.to(self._model.device), levels=self.levels).audio_codes
        return [level[0].cpu().numpy() for level in codes]


__all__ = ["JukeboxCodeExtractor"]
