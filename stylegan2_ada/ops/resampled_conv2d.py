"""Ordinary convolution combined with up- or downsampling."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .upfirdn2d import downsampling_padding, filter_size, parse_padding, upfirdn2d, upsampling_padding


def resampled_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    f: torch.Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    flip_weight: bool = True,
    bias: torch.Tensor | None = None,
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
        bias: (Cout,), only without upsampling.

    Returns:
        (B, Cout, H', W'); with padding kh // 2 the size is exactly H * up / down.

    Raises:
        ValueError: shapes that do not fit, or up and down together.
    """
    if weight.ndim != 4 or x.ndim != 4 or weight.shape[1] != x.shape[1]:
        raise ValueError(f"x {tuple(x.shape)} and weight {tuple(weight.shape)} do not fit")
    if up > 1 and (down > 1 or bias is not None):
        raise ValueError("upsampling goes without downsampling and without bias")
    kh, kw = weight.shape[2:]
    pad = list(parse_padding(padding))
    if up > 1:
        pad = [p + q for p, q in zip(pad, upsampling_padding(f, up, up), strict=True)]
    if down > 1:
        pad = [p + q for p, q in zip(pad, downsampling_padding(f, down, down), strict=True)]

    if up > 1 and kh == kw == 1:
        return upfirdn2d(F.conv2d(x, weight), f, up=up, padding=pad, gain=up**2)
    if up > 1:
        w = weight.flip([2, 3]) if flip_weight else weight
        # The transposed convolution is the full one, less the zeros after the last sample.
        pad = [pad[0] - (kw - 1), pad[1] - (kw - up), pad[2] - (kh - 1), pad[3] - (kh - up)]
        return upfirdn2d(F.conv_transpose2d(x, w.transpose(0, 1), stride=up), f, padding=pad, gain=up**2)

    w = weight if flip_weight else weight.flip([2, 3])
    if down > 1 and kh == kw == 1:
        return F.conv2d(upfirdn2d(x, f, down=down, padding=pad), w, bias)
    if down > 1 and filter_size(f) != (1, 1):
        return F.conv2d(upfirdn2d(x, f, padding=pad), w, bias, stride=down)
    if pad[0] == pad[1] >= 0 and pad[2] == pad[3] >= 0:
        return F.conv2d(x, w, bias, stride=down, padding=(pad[2], pad[0]))
    return F.conv2d(F.pad(x, pad), w, bias, stride=down)
