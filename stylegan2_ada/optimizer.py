"""Small things that optimisers need and PyTorch does not offer."""

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Take moments and step counts from a state dict, but keep the settings (rates, betas, ...) that were asked for."""
    groups = [
        saved | {key: value for key, value in own.items() if key != "params"}
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """One learning rate for all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate
