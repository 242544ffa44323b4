"""Remembers which weights were meant, so that what is described now is what another process loads later."""

import hashlib
import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download
from transformers.utils import CONFIG_NAME

# The files of a model's folder that decide about what it computes.
DIGESTED_SUFFIXES = (".json", ".safetensors", ".bin")
# Bytes of each tensor that stand for all of it: training changes every one, and a prior has ten gigabytes.
DIGESTED_BYTES = 4096


@dataclass(frozen=True)
class PinnedModel:
    """A repository at a commit, or a folder with a digest of its contents: a few strings, equal in every process."""

    name: str
    commit: str | None = None
    digest: str | None = None

    @classmethod
    def pin(cls, name: str | os.PathLike, revision: str | None = None) -> "PinnedModel":
        """Looks at a repository's present commit, or at a folder."""
        if os.path.isdir(name):
            return cls(os.path.abspath(name), digest=_digest(Path(name)))
        # The cache of the Hub keeps each commit in a folder of its own.
        config = hf_hub_download(str(name), CONFIG_NAME, revision=revision)
        return cls(str(name), commit=Path(config).parent.name)

    def check(self):
        """Raises a ValueError if a folder's contents are no longer those that were pinned."""
        if self.digest is not None and _digest(Path(self.name)) != self.digest:
            raise ValueError(f"{self.name} has changed since from_pretrained() looked at it: call it again.")


def _digest(folder: Path) -> str:
    """Summarises the files that decide about what a model computes: unlike their times it survives a copy."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in DIGESTED_SUFFIXES):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            if path.suffix != ".safetensors":
                digest.update(hashlib.file_digest(file, "sha256").digest())
                continue
            (length,) = struct.unpack("<Q", file.read(8))
            header = file.read(length)
            digest.update(header)
            tensors = json.loads(header)
            tensors.pop("__metadata__", None)
            for name in sorted(tensors):
                first, last = tensors[name]["data_offsets"]
                file.seek(8 + length + first)
                digest.update(file.read(min(last - first, DIGESTED_BYTES)))
    return digest.hexdigest()
