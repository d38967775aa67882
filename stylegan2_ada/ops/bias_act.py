"""Bias, activation, gain and clamp in one call."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F


class Activation(NamedTuple):
    function: Callable[[torch.Tensor, float], torch.Tensor]
    gain: float
    """Keeps the variance of unit Gaussian input roughly at one (He et al., arXiv 1502.01852)."""


ACTIVATIONS: dict[str, Activation] = {
    "linear": Activation(lambda x, alpha: x, 1.0),
    "relu": Activation(lambda x, alpha: F.relu(x), math.sqrt(2)),
    "lrelu": Activation(F.leaky_relu, math.sqrt(2)),
    "tanh": Activation(lambda x, alpha: torch.tanh(x), 1.0),
    "sigmoid": Activation(lambda x, alpha: torch.sigmoid(x), 1.0),
    "elu": Activation(lambda x, alpha: F.elu(x), 1.0),
    "selu": Activation(lambda x, alpha: F.selu(x), 1.0),
    "softplus": Activation(lambda x, alpha: F.softplus(x), 1.0),
    "swish": Activation(lambda x, alpha: F.silu(x), math.sqrt(2)),
}
LRELU_SLOPE = 0.2


def activation_gain(act: str) -> float:
    """Default gain of an activation. Raises ValueError for an unknown name."""
    if act not in ACTIVATIONS:
        raise ValueError(f"act is {act!r}; choose one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[act].gain


def bias_act(
    x: torch.Tensor,
    b: torch.Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> torch.Tensor:
    """clamp(gain * act(x + b)), in the dtype of x.

    Args:
        x: any shape.
        b: (x.shape[dim],), added along `dim`; None adds nothing.
        act: one of ACTIVATIONS.
        alpha: slope of lrelu below zero; None means 0.2.
        gain: None means the default of the activation (sqrt(2) for relu, lrelu and swish, otherwise 1).
        clamp: the result is limited to [-clamp, clamp], after the gain; None for no limit.

    Raises:
        ValueError: unknown activation, or a bias whose shape does not fit.
    """
    gain = activation_gain(act) if gain is None else gain
    if b is not None:
        if b.ndim != 1 or b.shape[0] != x.shape[dim]:
            raise ValueError(f"b has shape {tuple(b.shape)}; dimension {dim} of x needs ({x.shape[dim]},)")
        x = x + b.to(x.dtype).reshape([-1 if i == dim % x.ndim else 1 for i in range(x.ndim)])
    x = ACTIVATIONS[act].function(x, LRELU_SLOPE if alpha is None else alpha)
    if gain != 1:
        x = x * gain
    return x if clamp is None else x.clamp(-clamp, clamp)
