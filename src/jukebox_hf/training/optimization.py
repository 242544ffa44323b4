"""The original's optimiser and learning rate (arXiv 2005.00341, appendix B; its code at 08efbbc)."""

from collections.abc import Callable, Iterable

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class JukeboxAdam(Optimizer):
    """Adam as the original has it: `eps` is added before the bias correction, and the decay is scaled by it, too.

    A step takes `a * (m / (sqrt(v) + eps) + weight_decay * p)` from each parameter p, with the running means m and v of
    the gradient and its square and `a = lr * sqrt(1 - beta2^t) / (1 - beta1^t)`. PyTorch's AdamW corrects v before it
    adds `eps`, and decays by `lr` alone.

    Args:
        params: as for any optimiser.
        lr (`float`): the learning rate.
        betas (`tuple[float, float]`): the decays of m and v; the released 5b prior had 0.9 and 0.925.
        eps (`float`): keeps the quotient finite.
        weight_decay (`float`): of every parameter, those of embeddings, biases and norms included.

    Raises:
        ValueError: a negative rate or decay, or betas outside [0, 1).
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if value < 0:
                raise ValueError(f"{name}={value}: give a number that is not negative.")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas={betas}: give two numbers from 0 to less than 1.")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Takes one step, after computing the loss again where a closure does that."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict):
        params = [param for param in group["params"] if param.grad is not None]
        if not params:
            return
        for param in params:
            if not self.state[param]:
                self.state[param]["step"] = 0
                self.state[param]["mean"] = torch.zeros_like(param)
                self.state[param]["square"] = torch.zeros_like(param)
            self.state[param]["step"] += 1
        beta1, beta2 = group["betas"]
        grads = [param.grad for param in params]
        means = [self.state[param]["mean"] for param in params]
        squares = [self.state[param]["square"] for param in params]
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        updates = torch._foreach_sqrt(squares)
        torch._foreach_add_(updates, group["eps"])
        torch._foreach_reciprocal_(updates)
        torch._foreach_mul_(updates, means)
        if group["weight_decay"]:
            torch._foreach_add_(updates, params, alpha=group["weight_decay"])
        # Parameters that were frozen for a while have taken fewer steps than the others.
        steps = [self.state[param]["step"] for param in params]
        sizes = [group["lr"] * (1 - beta2**step) ** 0.5 / (1 - beta1**step) for step in steps]
        torch._foreach_mul_(updates, sizes)
        torch._foreach_sub_(params, updates)


def jukebox_schedule(
    optimizer: Optimizer, warmup_steps: int = 100, anneal_start: int = 0, anneal_steps: int = 0
) -> LambdaLR:
    """Raises the rate over `warmup_steps` from 0 (the very first step's), and lowers it linearly later on.

    Args:
        optimizer (`Optimizer`): whose rate to set at every step.
        warmup_steps (`int`): steps until the full rate.
        anneal_start (`int`): the step from which on the rate falls.
        anneal_steps (`int`): how many steps later it is 0; 0 for a rate that stays.

    Raises:
        ValueError: a negative number of steps.
    """
    for name, value in (("warmup_steps", warmup_steps), ("anneal_start", anneal_start), ("anneal_steps", anneal_steps)):
        if value < 0:
            raise ValueError(f"{name}={value}: give a number of steps that is not negative.")

    def factor(step: int) -> float:
        rising = min(1.0, step / warmup_steps) if warmup_steps else 1.0
        falling = max(0.0, 1 - max(0, step - anneal_start) / anneal_steps) if anneal_steps else 1.0
        return rising * falling

    return LambdaLR(optimizer, factor)


__all__ = ["JukeboxAdam", "jukebox_schedule"]
