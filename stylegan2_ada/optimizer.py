"""Small things that optimisers need and PyTorch does not offer."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Take moments and step counts from a state dict, but keep the settings (rates, betas, ...) that were asked for.

    Raises:
        RuntimeError: the state is of other parameters, or of a method with other moments.
    """
    groups, saved_groups = optimizer.param_groups, state["param_groups"]
    if len(groups) != len(saved_groups) or any(
        len(own["params"]) != len(saved["params"]) or ("betas" in own) != ("betas" in saved)
        for own, saved in zip(groups, saved_groups, strict=True)
    ):
        raise RuntimeError(f"the state of the optimizer is not of {type(optimizer).__name__} on these parameters")
    merged = [
        saved | {key: value for key, value in own.items() if key != "params"}
        for saved, own in zip(saved_groups, groups, strict=True)
    ]
    optimizer.load_state_dict({"state": state["state"], "param_groups": merged})


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """One learning rate for all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


class Lookahead:
    """An optimiser whose weights are, after every k steps, drawn back towards slow ones (Zhang et al. 2019, Alg. 1).

    Slow weights start as the first ones. (Those of well-known code start at the first synchronisation, which therefore
    does nothing.)

    Args:
        optimizer: makes the k fast steps.
        k: steps between synchronisations.
        rate: how far the slow weights go towards the fast ones, which then continue from there.
    """

    def __init__(self, optimizer: Optimizer, k: int = 6, rate: float = 0.5) -> None:
        self.optimizer, self.k, self.rate, self.steps = optimizer, k, rate, 0
        self.fast = [weight for group in optimizer.param_groups for weight in group["params"]]
        self.slow = [weight.detach().clone() for weight in self.fast]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    @torch.no_grad()
    def step(self) -> None:
        self.optimizer.step()
        self.steps += 1
        if self.steps % self.k == 0:
            torch._foreach_lerp_(self.slow, self.fast, self.rate)
            torch._foreach_copy_(self.fast, self.slow)

    def state_dict(self) -> dict[str, Any]:
        slow = [weight.clone() for weight in self.slow]
        return {"optimizer": self.optimizer.state_dict(), "slow": slow, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        load_optimizer(self.optimizer, state["optimizer"])
        for own, saved in zip(self.slow, state["slow"], strict=True):
            own.copy_(saved)
        self.steps = int(state["steps"])
