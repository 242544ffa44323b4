"""Where a model's parts are while they work, and how much fits there."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import get_max_memory
from torch import nn

from .cache_jukebox import JukeboxCache
from .modeling_jukebox_prior import JukeboxPriorModel

# Activations of a prefill, in widths of the residual stream a position, and the share of free memory to use.
PREFILL_WIDTHS = 8
USABLE_SHARE = 0.8


@contextmanager
def lent_to(module: nn.Module, device: torch.device | str | None) -> Iterator[nn.Module]:
    """Copies a module's weights to a device for a while; the host keeps its own, which nothing has to copy back."""
    if device is None:
        yield module
        return
    tensors = [*module.parameters(), *module.buffers()]
    of_host = [tensor.data for tensor in tensors]
    try:
        yield module.to(device)
    finally:
        for tensor, data in zip(tensors, of_host):
            tensor.data = data


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
    free = memory["cpu"] if free is None else free
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
