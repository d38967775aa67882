"""Ordinary convolution combined with up- or downsampling."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .upfirdn2d import downsampling_padding, pad_rest, parse_padding, upfirdn2d, upsampling_padding


def resampled_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    f: torch.Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    flip_weight: bool = True,
    bias: torch.Tensor | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """Upsample with f, convolve, downsample with f (StyleGAN2 paper, Sec. 2 and Appendix B).

    The filter and the convolution commute, so each runs where it is cheapest: upsampling convolves before the filter
    (transposed convolution), downsampling convolves after it (strided convolution), 1x1 kernels see the smaller image.

    Args:
        x: (B, Cin, H, W).
        weight: (Cout, Cin, kh, kw).
        f: resampling filter from `setup_filter`.
        up, down: integer factors, at most one of them above 1.
        padding: as in `upfirdn2d`, counted on the upsampled grid.
        flip_weight: True uses the weight as torch's conv2d does (correlation), False spatially flipped.
        bias: (Cout,), added to the result.
        impl: of the resampling, see `upfirdn2d`.

    Returns:
        (B, Cout, H', W'); with padding kh // 2 the size is exactly H * up / down.

    Raises:
        ValueError: shapes that do not fit, or up and down together.
    """
    if weight.ndim != 4 or x.ndim != 4 or weight.shape[1] != x.shape[1]:
        raise ValueError(f"x {tuple(x.shape)} and weight {tuple(weight.shape)} do not fit")
    if up > 1 and down > 1:
        raise ValueError(f"up is {up} and down is {down}; one of them must be 1")
    kh, kw = weight.shape[2:]
    pad = list(parse_padding(padding))
    if up > 1:
        pad = [p + q for p, q in zip(pad, upsampling_padding(f, up, up), strict=True)]
    if down > 1:
        pad = [p + q for p, q in zip(pad, downsampling_padding(f, down, down), strict=True)]

    if up > 1:
        x = _upsampling_conv2d(x, weight.flip([2, 3]) if flip_weight else weight, f, up, pad, impl)
        return x if bias is None else x + bias.to(x.dtype)[:, None, None]
    weight = weight if flip_weight else weight.flip([2, 3])
    if down == 1 or f is None:
        x, padding = pad_rest(x, pad)
        return F.conv2d(x, weight, bias, stride=down, padding=padding)
    if kh == kw == 1 and not _strided_filter_is_slow(x):
        return F.conv2d(upfirdn2d(x, f, down=down, padding=pad, impl=impl), weight, bias)
    return F.conv2d(upfirdn2d(x, f, padding=pad, impl=impl), weight, bias, stride=down)


def _upsampling_conv2d(
    x: torch.Tensor, weight: torch.Tensor, f: torch.Tensor | None, up: int, pad: list[int], impl: str
) -> torch.Tensor:
    """Upsampling with a true convolution, the weight not flipped."""
    kh, kw = weight.shape[2:]
    if kh == kw == 1:
        return upfirdn2d(F.conv2d(x, weight), f, up=up, padding=pad, gain=up**2, impl=impl)
    # The transposed convolution is the full one, less the inserted zeros after the last sample.
    pad = [pad[0] - (kw - 1), pad[1] - (kw - up), pad[2] - (kh - 1), pad[3] - (kh - up)]
    x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=up)
    return upfirdn2d(x, f, padding=pad, gain=up**2, impl=impl)


def _strided_filter_is_slow(x: torch.Tensor) -> bool:
    """On CPUs the backward pass of a strided depthwise convolution takes 10 to 30 times longer in bfloat16."""
    return x.device.type == "cpu" and x.dtype == torch.bfloat16
