"""Reads the original's `.pth.tar` files without running any code that they may carry."""

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch._weights_only_unpickler import Unpickler
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION
from torch.storage import TypedStorage

# `hps` may hold numpy scalars: a scalar is pickled as its dtype and its bytes. numpy 2 renamed the function's module.
NUMERIC_DTYPES = {type(np.dtype(code)) for code in "?" + np.typecodes["AllInteger"] + np.typecodes["Float"]}
SAFE_GLOBALS = [
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    np.dtype,
    *NUMERIC_DTYPES,
]


class Checkpoint(NamedTuple):
    """What a conversion needs of a checkpoint: the tensors by the original's names, and the run's hyper-parameters.

    The tensors of a file are mapped and not aligned: take one `in_memory` before computing with it.
    """

    state_dict: dict[str, torch.Tensor]
    hps: dict


def read_checkpoint(path: Path) -> Checkpoint:
    """Maps a checkpoint, of the legacy or the zip format.

    Its tensors take no memory until they are used. The optimiser's state is dropped.

    Raises:
        ValueError: the file is no checkpoint, is cut short, holds no `model`, or its pickle asks for a class or
            function other than tensors, plain containers and numpy scalars.
    """
    try:
        with torch.serialization.safe_globals(SAFE_GLOBALS), path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            else:
                content = _map_legacy(path, file)
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        if wanted := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path} is refused: its pickle asks for {wanted[1]}, and loading that could run code. A checkpoint of "
                "Jukebox holds only tensors, numbers and strings; save it again with nothing else, or get it from "
                "where you can trust it."
            ) from error
        raise ValueError(
            f"{path} is no checkpoint of PyTorch: it is another kind of file, or cut short. Fetch it again."
        ) from error
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in model.items()
    ):
        held = ", ".join(map(str, list(content)[:5])) if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{path} holds no dictionary of tensors named 'model' (it holds: {held}). Give a checkpoint that the "
            "original's training saved."
        )
    hps = content.get("hps")
    return Checkpoint(model, hps if isinstance(hps, dict) else {})


def in_memory(tensor: torch.Tensor) -> torch.Tensor:
    """Copies a tensor of a mapped file, or a view of one, to memory of its own."""
    storage = tensor.untyped_storage().clone()
    return torch.empty(0, dtype=tensor.dtype).set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


def _map_legacy(path: Path, file: BinaryIO) -> object:
    """Unpickles a file of the legacy format, which `torch.load` would read whole.

    Such a file is a row of pickles (a magic number, a version, facts about the machine, the content, the keys of the
    storages in the content), then for each key the number of elements in 8 bytes, and the elements.
    """
    file.seek(0)
    if [_unpickle(file), _unpickle(file)] != [MAGIC_NUMBER, PROTOCOL_VERSION]:
        raise ValueError("not the legacy format")
    _unpickle(file)
    start = file.tell()
    dtypes_and_sizes = {}

    def note(identifier: tuple) -> TypedStorage:
        _, storage_type, key, _, size, view = identifier
        if view is not None:
            raise ValueError("views of storages are older than Jukebox")
        dtypes_and_sizes[key] = storage_type.dtype, size
        return _typed(torch.UntypedStorage(size * storage_type.dtype.itemsize, device="meta"), storage_type.dtype)

    _unpickle(file, note)
    keys = _unpickle(file)
    position, end = file.tell(), path.stat().st_size
    mapped = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=end)
    storages = {}
    for key in keys:
        dtype, size = dtypes_and_sizes[key]
        file.seek(position)
        first, position = position + 8, position + 8 + size * dtype.itemsize
        if struct.unpack("<q", file.read(8)) != (size,) or position > end:
            raise ValueError(f"storage {key} is cut short")
        storages[key] = _typed(mapped[first:position], dtype)
    file.seek(start)
    return _unpickle(file, lambda identifier: storages[identifier[2]])


def _unpickle(file: BinaryIO, find_storage: Callable[[tuple], TypedStorage] | None = None) -> object:
    """Reads one pickle with PyTorch's own unpickler of `weights_only=True`."""
    unpickler = Unpickler(file, encoding="utf-8")
    unpickler.persistent_load = find_storage
    return unpickler.load()


def _typed(storage: torch.UntypedStorage, dtype: torch.dtype) -> TypedStorage:
    return TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)
