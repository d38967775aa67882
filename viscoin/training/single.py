"""What tasks that train one model share: the state to go on from, and the usual course of the learning rate."""

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from pydantic import BaseModel
from torch import nn

from stylegan2_ada.optimizer import load_optimizer
from viscoin.training.runtime import load_scaler, scaler_state

Section = TypeVar("Section", bound=BaseModel)


class SingleModel:
    """State of `model`, `optimizer` and the scaler of `fabric`, and new values in `config` and `optimizer`."""

    config: Any
    model: nn.Module
    optimizer: torch.optim.Optimizer
    fabric: Fabric

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler_state(self.fabric),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        load_optimizer(self.optimizer, state["optimizer"])
        load_scaler(self.fabric, state.get("scaler", {}))

    def apply(self, values: Mapping[str, Any]) -> None:
        """Train by these values from now on; learning rates are those of the next step."""
        self.config = changed(self.config, values)
        for group in self.optimizer.param_groups:
            group.update({key: values[key] for key in ("momentum", "weight_decay") if key in values})


def changed(config: Section, values: Mapping[str, Any]) -> Section:
    """The section of a recipe with new values, which are checked already."""
    return config.model_copy(update=dict(values))


def warm_cosine(step: int, steps: int, warm: int) -> float:
    """Factor on the learning rate at a step: linear up for `warm` steps, then a cosine down to 0."""
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
