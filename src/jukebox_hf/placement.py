"""Where a model's parts are while they work, and how much fits there."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import get_max_memory
from torch import Tensor, nn
from transformers import PreTrainedModel

from .cache_jukebox import JukeboxCache
from .modeling_jukebox_prior import JukeboxPriorModel

# Activations of a prefill, in widths of the residual stream a position, and the share of free memory to use.
PREFILL_WIDTHS = 8
USABLE_SHARE = 0.8


@contextmanager
def lent_to(module: nn.Module, device: torch.device | str | None) -> Iterator[nn.Module]:
    """Copies a module's weights to a device for a while; the host keeps its own, which nothing has to copy back.

    Raises:
        ValueError: weights that `device_map` left on disk.
    """
    if device is None:
        yield module
        return
    stores = [store for part in module.modules() for store in (part._parameters, part._buffers)]
    of_host = [(store, name, tensor) for store in stores for name, tensor in store.items() if tensor is not None]
    if any(tensor.is_meta for _, _, tensor in of_host):
        raise ValueError(f"device={device}: some weights are on disk; leave device out, or load without device_map.")
    lent = {}
    try:
        for store, name, tensor in of_host:
            # Tied weights stay one.
            if id(tensor) not in lent:
                lent[id(tensor)] = _copy_to(tensor, device)
            store[name] = lent[id(tensor)]
        yield module
    finally:
        for store, name, tensor in of_host:
            store[name] = tensor


def _copy_to(tensor: Tensor, device: torch.device | str) -> Tensor:
    copy = tensor.detach().to(device)
    return nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy


def input_device(model: PreTrainedModel) -> torch.device:
    """Where a model takes its inputs; one that is wholly on disk fetches them itself."""
    return torch.device("cpu") if model.device.type == "meta" else model.device


def song_bytes(prior: JukeboxPriorModel) -> int:
    """Estimates the memory that a song takes while its window is drawn: cache, conditioning, activations."""
    config, itemsize = prior.config, prior.dtype.itemsize
    slots = sum(layer.num_slots for layer in JukeboxCache(config).layers)
    cache = 2 * slots * config.num_attention_heads * config.head_dim * itemsize
    return cache + config.sequence_length * config.hidden_size * (4 + PREFILL_WIDTHS * itemsize)


def songs_that_fit(prior: JukeboxPriorModel, device: torch.device, num_songs: int) -> int:
    """Tells how many of so many songs the free memory of a device holds at a time; at least one is tried."""
    memory = get_max_memory()
    free = memory.get(device.index or 0) if device.type != "cpu" else None
    if free is None:
        # Where an accelerator shares the host's memory, only one of them is listed.
        free = memory.get("cpu", max(memory.values()))
    if prior.device.type not in (device.type, "meta"):
        # The weights come, too.
        free -= prior.get_memory_footprint()
    return max(1, min(num_songs, int(USABLE_SHARE * free / song_bytes(prior))))


def plan_batches(
    priors: Mapping[int, JukeboxPriorModel],
    levels: list[int],
    num_songs: int,
    batch_size: int | Sequence[int] | None,
    saved: dict[str, Any] | None,
    device: torch.device | str | None,
) -> dict[int, int]:
    """Decides how many songs each level draws at a time.

    Args:
        batch_size: a number, or one for each level; default as many as fit.
        saved: the settings of a run that goes on.
        device: where the levels are drawn, if not where they are.

    Raises:
        ValueError: a number that is not positive, or a list of another length.
    """
    if batch_size is None and saved is not None:
        # Memory may be scarcer now, but with other batches the draws would be others.
        return {int(level): size for level, size in saved["batch_sizes"].items()}
    if batch_size is None:
        devices = {level: torch.device(device or priors[level].device) for level in levels}
        return {level: songs_that_fit(priors[level], devices[level], num_songs) for level in levels}
    sizes = dict.fromkeys(levels, batch_size) if isinstance(batch_size, int) else dict(zip(priors, batch_size))
    if (not isinstance(batch_size, int) and len(batch_size) != len(priors)) or min(sizes.values()) < 1:
        raise ValueError(f"batch_size={batch_size}: give a positive number, or one for each of {len(priors)} levels.")
    return {level: sizes[level] for level in levels}
