"""Affine transforms of images without aliasing and without borders (ADA paper, arXiv 2006.06676, Appendix B)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan2_ada.ops import upfirdn2d

# Orthogonal lowpass filter of Daubechies' least asymmetric wavelet with six vanishing moments, sym6 (Ten Lectures on
# Wavelets, Sec. 6.4).
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
HALF = len(SYM6) // 2
BEFORE, AFTER = HALF // 2, HALF // 2 - 1  # pixels that the upsampling filter needs on either side


def affine_resample(images: Tensor, inverse: Tensor, taps: Tensor) -> Tensor:
    """Read each pixel q of the result at `inverse @ q` of the image, which is mirrored endlessly at its edges.

    Positions are (x, y, 1) in pixels from the image's centre, x to the right, y down. The image is upsampled twice with
    the sym6 filter, sampled bilinearly and downsampled with the matching filter, so that the identity is exact up to
    rounding.

    The paper pads by a margin that follows from the sampled transforms, a number that would have to be read back from
    the device in every step. A mirrored image is periodic, with 2 (W - 1) pixels along x, so here one period is
    upsampled and positions are taken modulo it: sizes depend on the shape alone, and no transform finds a border.

    Args:
        images: (B, C, H, W), floating point, H and W at least 2.
        inverse: (B, 3, 3), homogeneous, the inverse of the transform of the image.
        taps: `setup_filter(SYM6)`.

    Returns:
        (B, C, H, W). Differentiable in `images`, any number of times; not in the transform.
    """
    h, w = images.shape[2:]
    dense = not images.is_cuda  # CPUs multiply matrices many times faster than they filter single channels
    texture = upsample_mirrored(images, taps, dense)

    # The filter's centre of mass is its sixth tap, nearly: sample m of the upsampled image lies at m / 2 of the image.
    x, y = (torch.arange(1 - HALF, 2 * n + HALF - 1, dtype=images.dtype, device=images.device) for n in (w, h))
    x, y = x - (w - 1), (y - (h - 1))[:, None]
    grid = torch.stack([_read_from(inverse[:, 0], x, y, w - 1), _read_from(inverse[:, 1], x, y, h - 1)], 3)
    return downsample_cropped(sample(texture, grid), taps, dense)


def upsample_mirrored(images: Tensor, taps: Tensor, dense: bool) -> Tensor:
    """One period of the mirrored image, upsampled twice: (B, C, H, W) -> (B, C, 4 H - 3, 4 W - 3).

    It ends with its first sample again, which is there to interpolate with.

    Args:
        dense: multiply by a matrix along each axis instead of filtering.
    """
    h, w = images.shape[2:]
    if dense:
        return upsampling_matrix(h, taps).to(images) @ (images @ upsampling_matrix(w, taps).to(images).mT)
    mirrored = reflect_pad(images, BEFORE, w - 1 + AFTER, BEFORE, h - 1 + AFTER)
    return upfirdn2d(mirrored, taps, up=2, gain=4)


def downsample_cropped(images: Tensor, taps: Tensor, dense: bool) -> Tensor:
    """Adjoint filter, only where it finds all samples: (B, C, 2 H + 10, 2 W + 10) -> (B, C, H, W)."""
    h, w = images.shape[2:]
    if dense:
        return downsampling_matrix(h, taps).to(images) @ (images @ downsampling_matrix(w, taps).to(images).mT)
    return upfirdn2d(images, taps, down=2, flip_filter=True)


def upsampling_matrix(n: int, taps: Tensor) -> Tensor:
    """`upsample_mirrored` along one axis of n pixels. -> (4 n - 3, n)."""
    unit_images = torch.eye(n, dtype=taps.dtype, device=taps.device)[None, None]
    mirrored = reflect_pad(unit_images, 0, 0, BEFORE, n - 1 + AFTER)
    return upfirdn2d(mirrored, taps[:, None], up=[1, 2], gain=2)[0, 0]


def downsampling_matrix(n: int, taps: Tensor) -> Tensor:
    """`downsample_cropped` along one axis of n samples. -> ((n - 10) / 2, n)."""
    unit_images = torch.eye(n, dtype=taps.dtype, device=taps.device)[None, None]
    return upfirdn2d(unit_images, taps[:, None], down=[1, 2], flip_filter=True)[0, 0]


def _read_from(row: Tensor, x: Tensor, y: Tensor, centre: int) -> Tensor:
    """Where on one axis of the texture, from -1 to 1, a row of the matrix (B, 3) sends (x, y). -> (B, y, x)."""
    to_x, to_y, shift = row[:, :, None, None].unbind(1)
    return (to_x * x + to_y * y + 2 * shift + centre).remainder(4 * centre) / (2 * centre) - 1


def reflect_pad(x: Tensor, left: int, right: int, top: int, bottom: int) -> Tensor:
    """Mirror at the centres of the edge pixels, by any margin; F.pad stops at the size less one. (B, C, H, W)."""
    most_y, most_x = x.shape[2] - 1, x.shape[3] - 1
    while left or right or top or bottom:
        margins = min(left, most_x), min(right, most_x), min(top, most_y), min(bottom, most_y)
        x = F.pad(x, margins, mode="reflect")
        left, right, top, bottom = left - margins[0], right - margins[1], top - margins[2], bottom - margins[3]
    return x


@torch.library.custom_op("stylegan2_ada::sample", mutates_args=())
def sample(texture: Tensor, grid: Tensor) -> Tensor:
    """Bilinear F.grid_sample, aligned corners, that can be differentiated twice in the texture; PyTorch's cannot.

    Args:
        texture: (B, C, H, W).
        grid: (B, h, w, 2), (x, y) of each sample, from -1 at the first texel's centre to 1 at the last one's.

    Returns:
        (B, C, h, w).
    """
    return F.grid_sample(texture, grid, padding_mode="border", align_corners=True)


@torch.library.custom_op("stylegan2_ada::sample_adjoint", mutates_args=())
def sample_adjoint(samples: Tensor, grid: Tensor, height: int, width: int) -> Tensor:
    """Gradient of `sample` for the texture, which is linear in that of the samples. -> (B, C, height, width)."""
    texture = samples.new_zeros(1).expand(*samples.shape[:2], height, width)  # only its shape counts
    bilinear, border = 0, 1
    return torch.ops.aten.grid_sampler_2d_backward(samples, texture, grid, bilinear, border, True, [True, False])[0]


@sample.register_fake
def _(texture: Tensor, grid: Tensor) -> Tensor:
    return texture.new_empty(*texture.shape[:2], *grid.shape[1:3])


@sample_adjoint.register_fake
def _(samples: Tensor, grid: Tensor, height: int, width: int) -> Tensor:
    return samples.new_empty(*samples.shape[:2], height, width)


def _keep_sample(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    texture, grid = inputs
    ctx.size = texture.shape[2:]
    ctx.save_for_backward(grid)


def _keep_adjoint(ctx: Any, inputs: tuple[Tensor, Tensor, int, int], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _sample_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return sample_adjoint(grad, ctx.saved_tensors[0], *ctx.size), None


def _adjoint_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    return sample(grad, ctx.saved_tensors[0]), None, None, None


sample.register_autograd(_sample_backward, setup_context=_keep_sample)
sample_adjoint.register_autograd(_adjoint_backward, setup_context=_keep_adjoint)
