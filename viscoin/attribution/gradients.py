"""Attributions by gradients with respect to the image itself."""

import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from viscoin.attribution.explained import SMOOTHING, Explained, blurred

STEPS = 16  # of the path integral


def integrated_gradients(explained: Explained) -> Tensor:
    """Integral of gradients from the blurred image x' to x (Sundararajan et al. 2017, arXiv 1703.01365, Eq. 1).

    Summed over colours and smoothed over pixels, as gradients of single pixels are noisy (Smilkov et al. 2017, arXiv
    1706.03825); what raises the score stays.
    """
    heat = path_integral(explained).cpu().numpy()
    sigma = SMOOTHING * explained.size[0]
    smooth = gaussian_filter(heat, (0, 0, sigma, sigma), mode="nearest")
    return torch.from_numpy(smooth).clamp(min=0).to(explained.images.device)


def path_integral(explained: Explained, steps: int = STEPS) -> Tensor:
    """Signed attributions (B, M, H, W), by the midpoint rule; their sum approaches score(x) - score(x')."""
    start = blurred(explained.images)
    way = explained.images - start
    total = torch.zeros(*explained.chosen.shape, *explained.size, device=way.device)
    for step in range(steps):
        images = (start + (step + 0.5) / steps * way).requires_grad_()
        chosen = explained.scores(images).gather(1, explained.chosen)
        for m, column in enumerate(chosen.unbind(1)):
            total[:, m] += (torch.autograd.grad(column.sum(), images, retain_graph=True)[0] * way).sum(1)
    return total / steps
