"""Convolution whose input channels are scaled by a style."""

from collections.abc import Sequence

import torch

from .resampled_conv2d import resampled_conv2d

EPSILON = 1e-8


def modulated_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    styles: torch.Tensor,
    noise: torch.Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    resample_filter: torch.Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
) -> torch.Tensor:
    """Modulated and demodulated convolution (StyleGAN2 paper, Sec. 2.2, Eq. 1-3).

    Scaling the weights per sample equals scaling the input channels by the styles and the output channels by the
    demodulation coefficients; so all samples share one large convolution. The coefficients are computed in float32.

    Args:
        x: (B, Cin, H, W).
        weight: (Cout, Cin, kh, kw).
        styles: (B, Cin), s_i of Eq. 1.
        noise: added to the result, any shape that broadcasts to it; None for none.
        up, down, padding, resample_filter, flip_weight: as in `resampled_conv2d`.
        demodulate: divide each output channel by its expected standard deviation (Eq. 3).

    Returns:
        (B, Cout, H', W') in the dtype of the convolution.

    Raises:
        ValueError: shapes that do not fit.
    """
    if styles.shape != (x.shape[0], x.shape[1]):
        raise ValueError(f"styles has shape {tuple(styles.shape)}; x {tuple(x.shape)} needs {tuple(x.shape[:2])}")
    dtype = _compute_dtype(x)
    weight, styles = weight.float(), styles.float()
    if demodulate and dtype == torch.float16:  # any scale cancels in Eq. 3, so choose one that cannot overflow
        weight = weight / weight.square().mean([1, 2, 3], keepdim=True).add(EPSILON).sqrt() / weight[0].numel() ** 0.5
        styles = styles / styles.abs().amax(1, keepdim=True).add(EPSILON)
    x = x.to(dtype) * styles.to(dtype)[:, :, None, None]
    x = resampled_conv2d(x, weight.to(dtype), resample_filter, up, down, padding, flip_weight)
    if demodulate:
        x = x * demodulation(weight, styles).to(x.dtype)[:, :, None, None]
    return x if noise is None else x + noise.to(x.dtype)


def demodulation(weight: torch.Tensor, styles: torch.Tensor) -> torch.Tensor:
    """1 / sqrt(sum_ik (s_i w_jik)^2 + eps), (B, Cout), in float32 (Eq. 3)."""
    with torch.autocast(styles.device.type, enabled=False):
        power = weight.float().square().sum([2, 3])
        return (styles.float().square() @ power.t() + EPSILON).rsqrt()


def _compute_dtype(x: torch.Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
