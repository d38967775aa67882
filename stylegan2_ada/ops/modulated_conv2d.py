"""Convolution whose input channels are scaled by a style, and what follows it in a synthesis layer."""

from collections.abc import Sequence
from typing import Any

import torch

from .backend import use_kernels
from .bias_act import LRELU_SLOPE, activate_, find_activation
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
    impl: str = "auto",
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
        impl: of the resampling, see `upfirdn2d`; the convolution is always torch's.

    Returns:
        (B, Cout, H', W') in the dtype of the convolution.

    Raises:
        ValueError: shapes that do not fit.
    """
    if styles.shape != (x.shape[0], x.shape[1]):
        raise ValueError(f"styles has shape {tuple(styles.shape)}; x {tuple(x.shape)} needs {tuple(x.shape[:2])}")
    if demodulate:
        weight, styles = bounded_factors(x, weight, styles)
    if weight.shape[2:] == (1, 1) and up == down == 1 and padding == 0:
        y = _pointwise(x, weight[:, :, 0, 0], styles)
    else:
        dtype = _compute_dtype(x)
        x = x.to(dtype) * styles.to(dtype)[:, :, None, None]
        y = resampled_conv2d(x, weight.to(dtype), resample_filter, up, down, padding, flip_weight, impl=impl)
    if demodulate:
        y = y * demodulation(weight, styles).to(y.dtype)[:, :, None, None]
    return y if noise is None else y + noise.to(y.dtype)


def demodulation(weight: torch.Tensor, styles: torch.Tensor) -> torch.Tensor:
    """1 / sqrt(sum_ik (s_i w_jik)^2 + eps), (B, Cout), in float32 (StyleGAN2 paper, Eq. 3)."""
    with torch.autocast(styles.device.type, enabled=False):
        power = weight.float().square().sum([2, 3])
        return (styles.float().square() @ power.t() + EPSILON).rsqrt()


def bounded_factors(x: torch.Tensor, weight: torch.Tensor, styles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and styles scaled so that a float16 convolution cannot overflow (ADA paper, Appendix C.1).

    Demodulation cancels any scale per sample and output channel. Other precisions get them back as they are.
    """
    if _compute_dtype(x) != torch.float16:
        return weight, styles
    size = weight.float().square().sum([1, 2, 3], keepdim=True).add(EPSILON).sqrt()
    return weight / size, styles / styles.abs().amax(1, keepdim=True).add(EPSILON)


def synthesis_tail(
    x: torch.Tensor,
    coefficients: torch.Tensor,
    noise: torch.Tensor | None,
    b: torch.Tensor,
    act: str = "lrelu",
    gain: float | None = None,
    clamp: float | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """clamp(gain * act(x * coefficients + noise + b)): all that follows the convolution of a synthesis layer.

    Args:
        x: (B, C, H, W).
        coefficients: (B, C), from `demodulation`.
        noise: (B, 1, H, W) or (H, W), already scaled; None for none.
        b: (C,).
        act, gain, clamp: as in `bias_act`.
        impl: auto, reference or cuda, see `use_kernels`.
    """
    gain = find_activation(act).gain if gain is None else gain
    if use_kernels(impl, x):
        return torch.ops.stylegan2_ada.synthesis_tail(x, coefficients, noise, b, act, LRELU_SLOPE, gain, clamp)
    return synthesis_tail_reference(x, coefficients, noise, b, act, LRELU_SLOPE, gain, clamp)


def synthesis_tail_reference(
    x: torch.Tensor,
    coefficients: torch.Tensor,
    noise: torch.Tensor | None,
    b: torch.Tensor,
    act: str,
    alpha: float,
    gain: float,
    clamp: float | None,
) -> torch.Tensor:
    """`synthesis_tail` in plain PyTorch."""
    activation = find_activation(act)
    early, late = (gain, 1.0) if activation.homogeneous and gain > 0 else (1.0, gain)
    x = x * (coefficients * early).to(x.dtype)[:, :, None, None]
    offset = (b * early)[:, None, None]
    if noise is not None and noise.ndim == 2:
        # One addition for both, without a dimension of its own: several times faster in bfloat16 on CPUs.
        offset, noise = (offset + noise * early)[None].contiguous(memory_format=torch.channels_last), None
    x = x.add_(offset.to(x.dtype))  # the product's backward pass does not need its result
    if noise is not None:
        x = x.add_((noise * early).to(x.dtype))
    return activate_(x, act, alpha, late, clamp)


def _pointwise(x: torch.Tensor, weight: torch.Tensor, styles: torch.Tensor) -> torch.Tensor:
    """A 1x1 kernel is a matrix per sample: no scaled copy of x is needed. The result is channels-last."""
    (b, c, h, w), dtype = x.shape, _compute_dtype(x)
    matrices = weight * styles[:, None, :]  # (B, Cout, Cin)
    pixels = x.permute(0, 2, 3, 1).reshape(b, h * w, c)
    pixels, matrices = pixels.to(dtype), matrices.to(dtype)
    # torch.jit, which exports go through, knows no autograd functions
    product = _PixelProduct.apply if matrices.requires_grad else _pixel_product
    return product(pixels, matrices).reshape(b, h, w, -1).permute(0, 3, 1, 2)


def _pixel_product(pixels: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    return torch.bmm(pixels, matrices.transpose(1, 2))


class _PixelProduct(torch.autograd.Function):
    """Pixels (B, N, Cin) times the transposed matrices (B, Cout, Cin) of their samples: (B, N, Cout).

    As torch.bmm, but the gradient of the matrices is a product with Cin columns, where torch takes the three of an RGB
    image; on CPUs that is five times slower.
    """

    @staticmethod
    def forward(ctx: Any, pixels: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(pixels, matrices)
        return _pixel_product(pixels, matrices)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        pixels, matrices = ctx.saved_tensors
        to_pixels, to_matrices = ctx.needs_input_grad
        return (
            torch.bmm(grad, matrices) if to_pixels else None,
            torch.bmm(grad.transpose(1, 2), pixels) if to_matrices else None,
        )


def _compute_dtype(x: torch.Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
