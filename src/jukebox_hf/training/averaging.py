"""A running average of a model's weights, which is what gets evaluated and saved, as in the original."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class WeightAverage:
    """Keeps an exponential average, in fp32, of the weights that are trained.

    Args:
        model (`nn.Module`): the model being trained; its present weights are the average's first.
        decay (`float`): the share of the average that a step leaves.

    Raises:
        ValueError: a decay outside [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay={decay}: give a number from 0 to less than 1.")
        self.decay = decay
        self.weights = {name: param for name, param in model.named_parameters() if param.requires_grad}
        self.averages = {name: param.detach().float().clone() for name, param in self.weights.items()}
        self._applied = False

    @torch.no_grad()
    def update(self):
        """Moves the average towards the present weights."""
        current = [self.weights[name].detach().float() for name in self.averages]
        torch._foreach_lerp_(list(self.averages.values()), current, 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Puts the average in the place of the weights for a while."""
        if self._applied:
            yield
            return
        self._applied = True
        kept = {name: param.detach().clone() for name, param in self.weights.items()}
        self._put(self.averages)
        try:
            yield
        finally:
            self._put(kept)
            self._applied = False

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The average of each weight."""
        return dict(self.averages)

    @torch.no_grad()
    def load_state_dict(self, averages: dict[str, torch.Tensor]):
        """Takes over averages.

        Raises:
            ValueError: averages of other weights than those that are trained.
        """
        if other := averages.keys() ^ self.averages.keys():
            raise ValueError(f"The averages are of another model: {min(other)} is only on one side.")
        for name, average in averages.items():
            self.averages[name].copy_(average)

    @torch.no_grad()
    def _put(self, values: dict[str, torch.Tensor]):
        for name, value in values.items():
            self.weights[name].copy_(value)


__all__ = ["WeightAverage"]
