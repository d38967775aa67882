"""What every method is given, and small steps that several of them share."""

from dataclasses import dataclass

import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from viscoin.attribution.targets import Observed, Target

SMOOTHING = 1 / 32  # standard deviation of the Gaussian over maps of single pixels, of the image's side
BLUR = 1 / 10  # standard deviation of the Gaussian that takes the details out of an image, of its side


@dataclass(frozen=True)
class Explained:
    """Images (B, 3, H, W), the M scores of each, (B, M) indices, that maps explain, and what the model sees there."""

    target: Target
    images: Tensor
    chosen: Tensor
    observed: Observed

    @property
    def size(self) -> torch.Size:
        return self.images.shape[-2:]

    def scores(self, images: Tensor) -> Tensor:
        """All scores (B, S) of other images."""
        return self.target.scores(images)


def unit(heat: Tensor) -> Tensor:
    """Divide each map (..., H, W) by its largest absolute value; maps of zeros stay zero."""
    peak = heat.abs().amax((-2, -1), keepdim=True)
    return heat / torch.where(peak > 0, peak, torch.ones_like(peak))


def min_max(heat: Tensor) -> Tensor:
    """Bring each map (..., H, W) to [0, 1]; a constant one becomes zeros."""
    low, high = heat.amin((-2, -1), keepdim=True), heat.amax((-2, -1), keepdim=True)
    return (heat - low) / torch.where(high > low, high - low, torch.ones_like(high))


def enlarged(heat: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Maps (..., h, w) as (..., H, W): bilinear, corners not aligned."""
    if heat.shape[-2:] == size:
        return heat
    flat = heat.reshape(-1, 1, *heat.shape[-2:])
    return F.interpolate(flat, size, mode="bilinear", align_corners=False).reshape(*heat.shape[:-2], *size)


def blurred(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) without details, of the same colours."""
    sigma = BLUR * images.shape[-1]
    smooth = gaussian_filter(images.detach().cpu().numpy(), (0, 0, sigma, sigma), mode="nearest")
    return torch.from_numpy(smooth).to(images.device)
