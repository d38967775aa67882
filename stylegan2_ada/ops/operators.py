"""The operators behind the CUDA kernels, registered with torch.library (namespace stylegan2_ada).

Each has a schema, a CPU kernel (the reference; the public functions take the reference directly), a fake kernel and
its derivatives, which are made of differentiable operators again, as R1 and path length need it. The CUDA kernels, in
cuda/, come with the compiled library.
"""

from collections.abc import Callable
from typing import Any

import torch

from .bias_act import ACTIVATIONS, along, bias_act_reference
from .modulated_conv2d import modulated_conv2d, synthesis_tail_reference
from .upfirdn2d import filter_size, upfirdn2d_reference

Tensor = torch.Tensor
Derivative = Callable[[Tensor, float], Tensor]

ops = torch.ops.stylegan2_ada
torch.library.define(
    "stylegan2_ada::bias_act",
    "(Tensor x, Tensor? b, int dim, str act, float alpha, float gain, float? clamp) -> Tensor",
)
torch.library.define(
    "stylegan2_ada::bias_act_grad",
    "(Tensor grad, Tensor reference, Tensor? b, int dim, str act, float alpha, float gain, float? clamp, "
    "bool from_output, int order) -> Tensor",
)
torch.library.define(
    "stylegan2_ada::upfirdn2d",
    "(Tensor x, Tensor f, int[2] up, int[2] down, SymInt[4] padding, bool flip_filter, float gain) -> Tensor",
)
torch.library.define(
    "stylegan2_ada::synthesis_tail",
    "(Tensor x, Tensor coefficients, Tensor? noise, Tensor b, str act, float alpha, float gain, float? clamp)"
    " -> Tensor",
)
torch.library.define(
    "stylegan2_ada::modulated_conv2d",
    "(Tensor x, Tensor weight, Tensor styles, Tensor? noise=None, int up=1, int down=1, int[4] padding=0, "
    'Tensor? resample_filter=None, bool demodulate=True, bool flip_weight=True, str impl="auto") -> Tensor',
)
torch.library.impl("stylegan2_ada::modulated_conv2d", "CompositeImplicitAutograd", modulated_conv2d)


# --- bias_act
#
# Its gradient of order n is g * gain * act^(n)(x + b) inside the clamp. That is linear in g; its own gradient is of
# order n with respect to g, and of order n + 1 with respect to x. There are two orders.

DERIVATIVES: dict[str, tuple[Derivative, Derivative]] = {
    "linear": (lambda t, alpha: torch.ones_like(t), lambda t, alpha: torch.zeros_like(t)),
    "relu": (lambda t, alpha: (t > 0).to(t.dtype), lambda t, alpha: torch.zeros_like(t)),
    "lrelu": (lambda t, alpha: torch.where(t > 0, 1.0, alpha).to(t.dtype), lambda t, alpha: torch.zeros_like(t)),
    "tanh": (lambda t, alpha: 1 - t.tanh() ** 2, lambda t, alpha: -2 * t.tanh() * (1 - t.tanh() ** 2)),
    "sigmoid": (lambda t, alpha: _bell(t), lambda t, alpha: _bell(t) * (1 - 2 * t.sigmoid())),
    "elu": (lambda t, alpha: t.clamp(max=0).exp(), lambda t, alpha: (t <= 0) * t.clamp(max=0).exp()),
    "selu": (lambda t, alpha: _selu_slope(t), lambda t, alpha: (t <= 0) * _selu_slope(t)),
    "softplus": (lambda t, alpha: t.sigmoid(), lambda t, alpha: _bell(t)),
    "swish": (
        lambda t, alpha: t.sigmoid() + t * _bell(t),
        lambda t, alpha: _bell(t) * (2 + t * (1 - 2 * t.sigmoid())),
    ),
}


def _bell(t: Tensor) -> Tensor:
    return t.sigmoid() * (1 - t.sigmoid())


def _selu_slope(t: Tensor) -> Tensor:
    scale, alpha = 1.0507009873554805, 1.6732632423543772  # Klambauer et al., arXiv 1706.02515
    return torch.where(t > 0, scale, scale * alpha * t.exp())


def known_by_output(act: str, alpha: float, gain: float) -> bool:
    """Whether the output determines the derivative; then the input need not be saved for it."""
    return ACTIVATIONS[act].homogeneous and gain > 0 and alpha >= 0


@torch.library.register_fake("stylegan2_ada::bias_act_grad")
@torch.library.register_fake("stylegan2_ada::bias_act")
def _fake_elementwise(x: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(x)


@torch.library.impl("stylegan2_ada::bias_act", "cpu")
def _cpu_bias_act(x: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(x).copy_(bias_act_reference(x, *arguments))


@torch.library.impl("stylegan2_ada::bias_act_grad", "cpu")
def _cpu_bias_act_grad(
    grad: Tensor,
    reference: Tensor,
    b: Tensor | None,
    dim: int,
    act: str,
    alpha: float,
    gain: float,
    clamp: float | None,
    from_output: bool,
    order: int,
) -> Tensor:
    if order not in (1, 2):
        raise NotImplementedError(f"bias_act has two derivatives, not {order}")
    t = reference if b is None or from_output else reference + along(b, dim, reference.ndim)
    result = grad * DERIVATIVES[act][order - 1](t, alpha) * gain
    if clamp is not None:
        value = reference if from_output else ACTIVATIONS[act].function(t.clone(), alpha) * gain
        result = torch.where(value.abs() < clamp, result, 0)
    return torch.empty_like(grad).copy_(result)


def _save_bias_act(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, b, *ctx.arguments = inputs
    _, act, alpha, gain, _ = ctx.arguments
    ctx.from_output = known_by_output(act, alpha, gain)
    ctx.save_for_backward(*((output, None) if ctx.from_output else (x, b)))


def _backward_bias_act(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    reference, b = ctx.saved_tensors
    grad = ops.bias_act_grad(grad, reference, b, *ctx.arguments, ctx.from_output, 1)
    return grad, _bias_gradient(grad, ctx.arguments[0]) if ctx.needs_input_grad[1] else None, *[None] * 5


def _save_bias_act_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, reference, b, *ctx.arguments = inputs
    ctx.save_for_backward(grad, reference, b)


def _backward_bias_act_grad(ctx: Any, grad_grad: Tensor) -> tuple[Tensor | None, ...]:
    grad, reference, b = ctx.saved_tensors
    *arguments, from_output, order = ctx.arguments
    to_grad = ops.bias_act_grad(grad_grad, reference, b, *arguments, from_output, order)
    if from_output:  # then the activation is linear in pieces, and it does not matter where in a piece
        return to_grad, *[None] * 9
    to_x = ops.bias_act_grad(grad_grad * grad, reference, b, *arguments, from_output, order + 1)
    return to_grad, to_x, _bias_gradient(to_x, arguments[0]) if ctx.needs_input_grad[2] else None, *[None] * 7


def _bias_gradient(grad: Tensor, dim: int) -> Tensor:
    return grad.sum([i for i in range(grad.ndim) if i != dim % grad.ndim])


torch.library.register_autograd("stylegan2_ada::bias_act", _backward_bias_act, setup_context=_save_bias_act)
torch.library.register_autograd(
    "stylegan2_ada::bias_act_grad", _backward_bias_act_grad, setup_context=_save_bias_act_grad
)


# --- upfirdn2d
#
# It is linear; its transpose is the same operation with up and down exchanged and the filter flipped.


@torch.library.register_fake("stylegan2_ada::upfirdn2d")
def _fake_upfirdn2d(x: Tensor, f: Tensor, up: Any, down: Any, padding: Any, flip_filter: bool, gain: float) -> Tensor:
    (b, c, h, w), (fw, fh), (left, right, top, bottom) = x.shape, filter_size(f), padding
    height, width = h * up[1] + top + bottom - fh, w * up[0] + left + right - fw
    shape = (b, c, height // down[1] + 1, width // down[0] + 1)
    return x.new_empty(shape).contiguous(memory_format=_layout(x))


@torch.library.impl("stylegan2_ada::upfirdn2d", "cpu")
def _cpu_upfirdn2d(x: Tensor, *arguments: Any) -> Tensor:
    y = upfirdn2d_reference(x, *arguments)
    return torch.empty_like(y, memory_format=_layout(x)).copy_(y)


def _layout(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _save_upfirdn2d(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, f, *ctx.arguments = inputs
    ctx.height, ctx.width = x.shape[2:]
    ctx.save_for_backward(f)


def _backward_upfirdn2d(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (f,) = ctx.saved_tensors
    (up_x, up_y), (down_x, down_y), (left, _, top, _), flip_filter, gain = ctx.arguments
    fw, fh = filter_size(f)
    padding = [
        fw - 1 - left,
        (ctx.width - 1) * up_x + 1 + left - grad.shape[3] * down_x,
        fh - 1 - top,
        (ctx.height - 1) * up_y + 1 + top - grad.shape[2] * down_y,
    ]
    grad = ops.upfirdn2d(grad, f, [down_x, down_y], [up_x, up_y], padding, not flip_filter, gain)
    return grad, *[None] * 6


torch.library.register_autograd("stylegan2_ada::upfirdn2d", _backward_upfirdn2d, setup_context=_save_upfirdn2d)


# --- synthesis_tail


@torch.library.register_fake("stylegan2_ada::synthesis_tail")
def _fake_synthesis_tail(x: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(x, memory_format=_layout(x))


@torch.library.impl("stylegan2_ada::synthesis_tail", "cpu")
def _cpu_synthesis_tail(x: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(x, memory_format=_layout(x)).copy_(synthesis_tail_reference(x, *arguments))


def _save_synthesis_tail(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, coefficients, noise, b, *ctx.arguments = inputs
    act, alpha, gain, _ = ctx.arguments
    ctx.from_output = known_by_output(act, alpha, gain)
    ctx.save_for_backward(x, coefficients, noise, b, output if ctx.from_output else None)


def _backward_synthesis_tail(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, coefficients, noise, b, reference = ctx.saved_tensors
    scale = coefficients.to(x.dtype)[:, :, None, None]
    if reference is None:
        reference = x * scale + b.to(x.dtype)[:, None, None]
        reference = reference if noise is None else reference + noise.to(x.dtype)
    grad = ops.bias_act_grad(grad, reference, None, 1, *ctx.arguments, ctx.from_output, 1)
    to_x, to_coefficients, to_noise, to_b, *_ = ctx.needs_input_grad
    return (
        grad * scale if to_x else None,
        (grad * x).sum([2, 3]).to(coefficients.dtype) if to_coefficients else None,
        grad.sum_to_size(noise.shape).to(noise.dtype) if to_noise else None,
        grad.sum([0, 2, 3]).to(b.dtype) if to_b else None,
        *[None] * 4,
    )


torch.library.register_autograd(
    "stylegan2_ada::synthesis_tail", _backward_synthesis_tail, setup_context=_save_synthesis_tail
)
