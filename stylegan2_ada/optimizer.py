"""Small things that optimisers need and PyTorch does not offer."""

from collections.abc import Mapping
from typing import Any

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
