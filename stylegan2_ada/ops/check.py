"""Compares both implementations of the operations, in numbers and in speed."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .backend import DTYPES, obstacle
from .bias_act import LRELU_SLOPE, bias_act
from .modulated_conv2d import synthesis_tail
from .upfirdn2d import downsample2d, filter2d, setup_filter, upsample2d

GPU_SHAPE, CPU_SHAPE = (16, 64, 256, 256), (2, 8, 32, 32)
TOLERANCE = 16  # in units of the type's precision at the largest value
RUNS = 7  # of which the median is the time


@dataclass
class Comparison:
    operation: str
    dtype: torch.dtype
    channels_last: bool
    backward: bool
    error: float
    """Largest absolute difference between the implementations; of the gradients, if `backward`."""
    agrees: bool
    reference_ms: float
    kernel_ms: float | None
    """None where there are no CUDA kernels: then the operators' CPU kernels were compared."""


def compare_operations(device: torch.device, shape: tuple[int, int, int, int] | None = None) -> Iterator[Comparison]:
    """Every operation, type and layout, forward and backward.

    On a device without CUDA kernels the registered operators, whose derivatives are those of the kernels, run on the
    CPU instead of the kernels.

    Args:
        shape: (B, C, H, W) of the input; None for one that keeps the device busy.
    """
    fast = not obstacle(device.type, device.index)
    shape = shape or (GPU_SHAPE if fast else CPU_SHAPE)
    for name, function in (KERNELS if fast else OPERATORS).items():
        for dtype in DTYPES:
            for channels_last in (False, True):
                inputs = make_inputs(shape, dtype, channels_last, device if fast else torch.device("cpu"))
                yield from _compare(name, REFERENCES[name], function, inputs, channels_last, fast)


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, device: torch.device) -> list[Tensor]:
    """Image, coefficients, noise and bias such that no activation is at its kink, where rounding decides the slope."""
    generator = torch.Generator().manual_seed(0)
    b, c, h, w = shape
    x, coefficients, noise, bias = (
        torch.randn(size, generator=generator) for size in (shape, (b, c), (b, 1, h, w), (c,))
    )
    x = (x + x.sign()).to(dtype)  # 1 or more in size
    x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    small = [coefficients.sigmoid() + 0.5, noise.tanh() * 0.2, bias.tanh() * 0.2]
    return [value.to(device).requires_grad_() for value in (x, *small)]


def _with(impl: str) -> dict[str, Callable[..., Tensor]]:
    """The operations as functions of image, coefficients, noise and bias."""

    def blur(x: Tensor) -> Tensor:
        return setup_filter([1, 3, 3, 1], device=x.device)

    return {
        "bias_act lrelu": lambda x, s, n, b: bias_act(x, b, act="lrelu", clamp=256, impl=impl),
        "bias_act swish": lambda x, s, n, b: bias_act(x, b, act="swish", impl=impl),
        "synthesis_tail": lambda x, s, n, b: synthesis_tail(x, s, n, b, clamp=256, impl=impl),
        "filter2d": lambda x, s, n, b: filter2d(x, blur(x), impl=impl),
        "upsample2d": lambda x, s, n, b: upsample2d(x, blur(x), impl=impl),
        "downsample2d": lambda x, s, n, b: downsample2d(x, blur(x), impl=impl),
    }


ops = torch.ops.stylegan2_ada
REFERENCES, KERNELS = _with("reference"), _with("cuda")
OPERATORS: dict[str, Callable[..., Tensor]] = {
    "bias_act lrelu": lambda x, s, n, b: ops.bias_act(x, b.to(x.dtype), 1, "lrelu", LRELU_SLOPE, 2**0.5, 256.0),
    "bias_act swish": lambda x, s, n, b: ops.bias_act(x, b.to(x.dtype), 1, "swish", LRELU_SLOPE, 2**0.5, None),
    "synthesis_tail": lambda x, s, n, b: ops.synthesis_tail(x, s, n, b, "lrelu", LRELU_SLOPE, 2**0.5, 256.0),
    "filter2d": lambda x, s, n, b: _filtered(x, 1, 1, [2, 1, 2, 1]),
    "upsample2d": lambda x, s, n, b: _filtered(x, 2, 1, [2, 1, 2, 1], 4.0),
    "downsample2d": lambda x, s, n, b: _filtered(x, 1, 2, [1, 1, 1, 1]),
}


def _filtered(x: Tensor, up: int, down: int, padding: list[int], gain: float = 1.0) -> Tensor:
    return ops.upfirdn2d(x, setup_filter([1, 3, 3, 1]), [up, up], [down, down], padding, False, gain)


def _compare(
    name: str,
    reference: Callable[..., Tensor],
    function: Callable[..., Tensor],
    inputs: list[Tensor],
    channels_last: bool,
    fast: bool,
) -> Iterator[Comparison]:
    dtype, device = inputs[0].dtype, inputs[0].device
    tolerance = TOLERANCE * torch.finfo(dtype).eps
    expected, actual = reference(*inputs), function(*inputs)
    factor = torch.ones_like(expected) + expected.detach().tanh()

    def backward(y: Tensor) -> list[Tensor]:
        gradients = torch.autograd.grad(y, inputs, factor, retain_graph=True, allow_unused=True)
        return [gradient for gradient in gradients if gradient is not None]

    def comparison(backward: bool, expected: list[Tensor], actual: list[Tensor], *calls: Callable) -> Comparison:
        pairs = [(e.detach(), a.detach()) for e, a in zip(expected, actual, strict=True)]
        errors = [float((e - a).abs().max()) for e, a in pairs]
        agrees = all(error <= tolerance * float(e.abs().max()) for error, (e, _) in zip(errors, pairs, strict=True))
        times = _milliseconds(calls[0], device), _milliseconds(calls[1], device) if fast else None
        return Comparison(name, dtype, channels_last, backward, max(errors), agrees, *times)

    yield comparison(False, [expected], [actual], lambda: reference(*inputs), lambda: function(*inputs))
    yield comparison(True, backward(expected), backward(actual), lambda: backward(expected), lambda: backward(actual))


def _milliseconds(call: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000
