"""Upsample, pad, filter with a finite impulse response, downsample."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from .backend import use_kernels

SEPARABLE_FROM = 8  # taps; shorter filters become 2-D, as the published state dicts hold them


def setup_filter(
    f: torch.Tensor | Sequence[float] | None,
    device: torch.device | str = "cpu",
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1,
) -> torch.Tensor:
    """Prepare a filter for `upfirdn2d`.

    Args:
        f: taps, 1-D or 2-D; None is the identity. 1-D taps stand for the outer product with themselves; from 8 taps
            on they stay 1-D and are applied along x, then y.
        normalize: scale to unit sum.
        flip_filter: reverse all axes.
        gain: overall factor on the signal.

    Raises:
        ValueError: not 1-D or 2-D, or empty.
    """
    taps = torch.as_tensor([1.0] if f is None else f, dtype=torch.float32, device=device)
    if taps.ndim not in (1, 2) or taps.numel() == 0:
        raise ValueError(f"f has shape {tuple(taps.shape)}; a filter has one or two non-empty dimensions")
    if taps.ndim == 1 and taps.numel() < SEPARABLE_FROM:
        taps = taps.outer(taps)
    if normalize:
        taps = taps / taps.sum()
    if flip_filter:
        taps = taps.flip(list(range(taps.ndim)))
    return taps * gain ** (taps.ndim / 2)


def upfirdn2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "auto",
) -> torch.Tensor:
    """Insert zeros (up), pad or crop, filter, keep every down-th sample. In the dtype of x, even under autocast.

    Args:
        x: (B, C, H, W).
        f: from `setup_filter`: (fh, fw), or (taps,) applied along both axes, or None for the identity.
        up, down: a factor, or [x, y].
        padding: a number, [x, y] or [left, right, top, bottom], counted on the upsampled grid; negative crops.
        flip_filter: False convolves, True correlates.
        gain: factor on the result.
        impl: auto, reference or cuda, see `use_kernels`. A filter that needs a gradient itself takes the reference.

    Returns:
        (B, C, (H * up + top + bottom - fh) // down + 1, likewise for W).

    Raises:
        ValueError: wrong dimensions or factors, nothing would be left, or an unavailable `impl`.
    """
    if x.ndim != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}; (B, C, H, W) is needed")
    up_x, up_y = _pair(up, "up")
    down_x, down_y = _pair(down, "down")
    left, right, top, bottom = parse_padding(padding)
    f = torch.ones(1, 1, device=x.device) if f is None else f
    fw, fh = filter_size(f)
    out_h, out_w = x.shape[2] * up_y + top + bottom - fh + 1, x.shape[3] * up_x + left + right - fw + 1
    if out_h < 1 or out_w < 1:
        raise ValueError(
            f"padding {padding!r} leaves less of the {x.shape[2]}x{x.shape[3]} image than the filter needs"
        )

    function = upfirdn2d_reference
    if use_kernels(impl, x) and not f.requires_grad:
        f, function = f.float(), torch.ops.stylegan2_ada.upfirdn2d
    gain = float(gain ** (f.ndim / 2))
    if f.ndim == 2:
        return function(x, f, [up_x, up_y], [down_x, down_y], [left, right, top, bottom], flip_filter, gain)
    x = function(x, f[None, :], [up_x, 1], [down_x, 1], [left, right, 0, 0], flip_filter, gain)
    return function(x, f[:, None], [1, up_y], [1, down_y], [0, 0, top, bottom], flip_filter, gain)


def upfirdn2d_reference(
    x: torch.Tensor,
    f: torch.Tensor,
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
    flip_filter: bool,
    gain: float,
) -> torch.Tensor:
    """`upfirdn2d` for one filter (fh, fw), with factors [x, y] and all four paddings."""
    taps = (f * gain).to(x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        return _filter(x, taps.flip([0, 1]) if flip_filter else taps, up, down, padding)


def filter2d(
    x: torch.Tensor,
    f: torch.Tensor,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "auto",
) -> torch.Tensor:
    """Filter and keep the size; `padding` comes on top of what that takes."""
    fw, fh = filter_size(f)
    pad = _add(parse_padding(padding), (fw // 2, (fw - 1) // 2, fh // 2, (fh - 1) // 2))
    return upfirdn2d(x, f, padding=pad, flip_filter=flip_filter, gain=gain, impl=impl)


def upsample2d(
    x: torch.Tensor,
    f: torch.Tensor,
    up: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "auto",
) -> torch.Tensor:
    """Enlarge by `up`, keeping the brightness; `padding` comes on top of what that takes."""
    up_x, up_y = _pair(up, "up")
    pad = _add(parse_padding(padding), upsampling_padding(f, up_x, up_y))
    return upfirdn2d(x, f, up=up, padding=pad, flip_filter=flip_filter, gain=gain * up_x * up_y, impl=impl)


def downsample2d(
    x: torch.Tensor,
    f: torch.Tensor,
    down: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "auto",
) -> torch.Tensor:
    """Shrink by `down`; `padding` comes on top of what that takes."""
    down_x, down_y = _pair(down, "down")
    pad = _add(parse_padding(padding), downsampling_padding(f, down_x, down_y))
    return upfirdn2d(x, f, down=down, padding=pad, flip_filter=flip_filter, gain=gain, impl=impl)


def filter_size(f: torch.Tensor | None) -> tuple[int, int]:
    """(width, height) of a filter."""
    return (1, 1) if f is None else (f.shape[-1], f.shape[0])


def parse_padding(padding: int | Sequence[int]) -> tuple[int, int, int, int]:
    """A number, [x, y] or [left, right, top, bottom] as (left, right, top, bottom)."""
    p = [padding] * 4 if isinstance(padding, int) else [int(v) for v in padding]
    if len(p) == 2:
        p = [p[0], p[0], p[1], p[1]]
    if len(p) != 4:
        raise ValueError(f"padding is {padding!r}; give a number, [x, y] or [left, right, top, bottom]")
    return p[0], p[1], p[2], p[3]


def upsampling_padding(f: torch.Tensor | None, up_x: int, up_y: int) -> tuple[int, int, int, int]:
    """Padding with which upsampling gives exactly up times the size, centred."""
    fw, fh = filter_size(f)
    return (fw + up_x - 1) // 2, (fw - up_x) // 2, (fh + up_y - 1) // 2, (fh - up_y) // 2


def downsampling_padding(f: torch.Tensor | None, down_x: int, down_y: int) -> tuple[int, int, int, int]:
    """Padding with which downsampling gives exactly 1/down of the size, centred."""
    fw, fh = filter_size(f)
    return (fw - down_x + 1) // 2, (fw - down_x) // 2, (fh - down_y + 1) // 2, (fh - down_y) // 2


def _pair(factor: int | Sequence[int], name: str) -> tuple[int, int]:
    x, y = (factor, factor) if isinstance(factor, int) else (int(v) for v in factor)
    if x < 1 or y < 1:
        raise ValueError(f"{name} is {factor!r}; factors are 1 or more")
    return x, y


def _add(a: Sequence[int], b: Sequence[int]) -> list[int]:
    return [i + j for i, j in zip(a, b, strict=True)]


def _filter(
    x: torch.Tensor, taps: torch.Tensor, up: Sequence[int], down: Sequence[int], pad: Sequence[int]
) -> torch.Tensor:
    """Depthwise convolution with the taps (correlation with the flipped ones) at any rate; pairs are (x, y)."""
    c = x.shape[1]
    (fh, fw), (up_x, up_y), (down_x, down_y) = taps.shape, up, down
    if up_x == up_y == 1:
        weight = taps.flip([0, 1]).expand(c, 1, fh, fw)
        x, padding = pad_rest(x, pad)
        return _depthwise(x, weight, (down_y, down_x), padding)
    # A transposed convolution is the full one, less the inserted zeros after the last sample.
    pad = (pad[0] - (fw - 1), pad[1] - (fw - up_x), pad[2] - (fh - 1), pad[3] - (fh - up_y))
    crop = (max(min(-pad[2], -pad[3]), 0), max(min(-pad[0], -pad[1]), 0))
    weight = taps.expand(c, 1, fh, fw)
    x = _depthwise(x, weight, (up_y, up_x), crop, transposed=True)
    rest = [pad[0] + crop[1], pad[1] + crop[1], pad[2] + crop[0], pad[3] + crop[0]]
    x = F.pad(x, rest) if any(rest) else x
    return x if down_x == down_y == 1 else x[:, :, ::down_y, ::down_x]


def pad_rest(x: torch.Tensor, pad: Sequence[int]) -> tuple[torch.Tensor, tuple[int, int]]:
    """Leaves to the convolution, as (y, x), what it can pad by itself, and pads the rest."""
    left, right, top, bottom = pad
    own_x, own_y = max(min(left, right), 0), max(min(top, bottom), 0)
    rest = [left - own_x, right - own_x, top - own_y, bottom - own_y]
    return (F.pad(x, rest) if any(rest) else x), (own_y, own_x)


def _depthwise(
    x: torch.Tensor, weight: torch.Tensor, stride: Sequence[int], padding: Sequence[int], transposed: bool = False
) -> torch.Tensor:
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and x.requires_grad) or weight.requires_grad:
        return _convolution(x, weight, stride, padding, transposed)
    return _FixedConvolution.apply(x, weight, stride, padding, transposed)


class _FixedConvolution(torch.autograd.Function):
    """Depthwise convolution with a filter that has no gradient.

    The double backward pass of torch's own computes the filter's gradient nevertheless, one channel after the other,
    which takes a quarter or more of the time of a path-length or R1 step on CPUs.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, *arguments: Any) -> torch.Tensor:
        ctx.save_for_backward(weight)
        last = x.is_contiguous(memory_format=torch.channels_last)
        ctx.form = x.shape, torch.channels_last if last else torch.contiguous_format
        ctx.arguments = arguments
        return _convolution(x, weight, *arguments)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        return _FixedGradient.apply(grad, *ctx.saved_tensors, *ctx.form, *ctx.arguments), *[None] * 4


class _FixedGradient(torch.autograd.Function):
    """Gradient of `_FixedConvolution` with respect to its input, linear in `grad`."""

    @staticmethod
    def forward(
        ctx: Any,
        grad: torch.Tensor,
        weight: torch.Tensor,
        shape: torch.Size,
        layout: torch.memory_format,
        *arguments: Any,
    ) -> torch.Tensor:
        ctx.save_for_backward(weight)
        ctx.arguments = stride, padding, transposed = arguments
        rest = tuple(side - 1 - pad for side, pad in zip(weight.shape[2:], padding, strict=True))
        if max(stride) == 1 and min(rest) >= 0 and not transposed:
            # Then it is such a convolution itself, at twice the speed on CPUs.
            return _convolution(grad, weight.flip([2, 3]), stride, rest, False)
        x = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=layout)  # asked for its shape only
        mask = [True, False, False]
        return torch.ops.aten.convolution_backward(
            grad, x, weight, None, stride, padding, [1, 1], transposed, [0, 0], len(weight), mask
        )[0]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        return _FixedConvolution.apply(grad, *ctx.saved_tensors, *ctx.arguments), *[None] * 6


def _convolution(
    x: torch.Tensor, weight: torch.Tensor, stride: Sequence[int], padding: Sequence[int], transposed: bool
) -> torch.Tensor:
    return torch.convolution(x, weight, None, stride, padding, [1, 1], transposed, [0, 0], len(weight))
