"""Bias, activation, gain and clamp in one call."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .backend import use_kernels


class Activation(NamedTuple):
    function: Callable[[torch.Tensor, float], torch.Tensor]
    """May overwrite its input."""
    gain: float
    """Keeps the variance of unit Gaussian input roughly at one (He et al., arXiv 1502.01852)."""
    homogeneous: bool = False
    """act(gain * x) = gain * act(x) for gain > 0, so that the gain can be folded into whatever comes before."""


ACTIVATIONS: dict[str, Activation] = {
    "linear": Activation(lambda x, alpha: x, 1.0, homogeneous=True),
    "relu": Activation(lambda x, alpha: F.relu_(x), math.sqrt(2), homogeneous=True),
    "lrelu": Activation(lambda x, alpha: F.leaky_relu_(x, alpha), math.sqrt(2), homogeneous=True),
    "tanh": Activation(lambda x, alpha: torch.tanh(x), 1.0),
    "sigmoid": Activation(lambda x, alpha: torch.sigmoid(x), 1.0),
    "elu": Activation(lambda x, alpha: F.elu(x), 1.0),
    "selu": Activation(lambda x, alpha: F.selu(x), 1.0),
    "softplus": Activation(lambda x, alpha: F.softplus(x), 1.0),
    "swish": Activation(lambda x, alpha: F.silu(x), math.sqrt(2)),
}
LRELU_SLOPE = 0.2


def find_activation(act: str) -> Activation:
    """The activation of that name. Raises ValueError for an unknown one."""
    if act not in ACTIVATIONS:
        raise ValueError(f"act is {act!r}; choose one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[act]


def bias_act(
    x: torch.Tensor,
    b: torch.Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """clamp(gain * act(x + b)), in the dtype of x.

    Args:
        x: any shape.
        b: (x.shape[dim],), added along `dim`; None adds nothing.
        act: one of ACTIVATIONS.
        alpha: slope of lrelu below zero; None means 0.2.
        gain: None means the default of the activation (sqrt(2) for relu, lrelu and swish, otherwise 1).
        clamp: the result is limited to [-clamp, clamp], after the gain; None for no limit.
        impl: auto, reference or cuda, see `use_kernels`.

    Raises:
        ValueError: unknown activation, a bias whose shape does not fit, or an unavailable `impl`.
    """
    gain = find_activation(act).gain if gain is None else gain
    if b is not None and (b.ndim != 1 or b.shape[0] != x.shape[dim]):
        raise ValueError(f"b has shape {tuple(b.shape)}; dimension {dim} of x needs ({x.shape[dim]},)")
    if use_kernels(impl, x):
        alpha = LRELU_SLOPE if alpha is None else alpha
        b = None if b is None else b.to(x.dtype)
        return torch.ops.stylegan2_ada.bias_act(x, b, dim, act, alpha, gain, clamp)
    return bias_act_reference(x, b, dim, act, alpha, gain, clamp)


def bias_act_reference(
    x: torch.Tensor,
    b: torch.Tensor | None,
    dim: int,
    act: str,
    alpha: float | None,
    gain: float,
    clamp: float | None,
) -> torch.Tensor:
    """`bias_act` in plain PyTorch."""
    activation = find_activation(act)
    early, late = (gain, 1.0) if activation.homogeneous and gain > 0 else (1.0, gain)
    if b is None:
        x = x * early
    else:
        x = torch.add(along((b * early).to(x.dtype), dim, x.ndim), x, alpha=early)
    return activate_(x, act, alpha, late, clamp)


def activate_(
    x: torch.Tensor, act: str, alpha: float | None = None, gain: float = 1, clamp: float | None = None
) -> torch.Tensor:
    """clamp(gain * act(x)); may overwrite x, which must not be needed by anyone's backward pass."""
    x = find_activation(act).function(x, LRELU_SLOPE if alpha is None else alpha)
    x = x if gain == 1 else x * gain
    return x if clamp is None else x.clamp(-clamp, clamp)


def along(b: torch.Tensor, dim: int, ndim: int) -> torch.Tensor:
    """b as a tensor of that many dimensions, so that it broadcasts along `dim`."""
    return b.reshape([-1 if i == dim % ndim else 1 for i in range(ndim)])
