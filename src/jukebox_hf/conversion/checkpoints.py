"""Reads the original's `.pth.tar` files without running any code that they may carry."""

import re
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

# `hps` may hold numpy scalars: a scalar is pickled as its dtype and its bytes. numpy 2 renamed the function's module.
NUMERIC_DTYPES = {type(np.dtype(code)) for code in "?" + np.typecodes["AllInteger"] + np.typecodes["Float"]}
SAFE_GLOBALS = [
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    np.dtype,
    *NUMERIC_DTYPES,
]


class Checkpoint(NamedTuple):
    """What a conversion needs of a checkpoint: the tensors by the original's names, and the run's hyper-parameters."""

    state_dict: dict[str, torch.Tensor]
    hps: dict


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint, of the legacy or the zip format, onto the CPU.

    Zip files are mapped, not read: their tensors take no memory until they are used. The optimiser's state is dropped.

    Raises:
        ValueError: the file is no checkpoint, is cut short, holds no `model`, or its pickle asks for a class or
            function other than tensors, plain containers and numpy scalars.
    """
    try:
        with torch.serialization.safe_globals(SAFE_GLOBALS):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
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
