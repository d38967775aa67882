"""Are maps stable where nothing changes, do they change where the model does, and how concentrated are they?"""

import copy
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import torch
from scipy.ndimage import uniform_filter
from scipy.stats import rankdata
from torch import Tensor, nn

from viscoin.testing.attribution.types import Mapper, min_max

ModuleT = TypeVar("ModuleT", bound=nn.Module)

RADIUS = 0.02  # largest change of a pixel, in [-1, 1]
DRAWS = 4
WINDOW = 7  # pixels


def perturbations(images: Tensor, draws: int = DRAWS, radius: float = RADIUS, seed: int = 0) -> Tensor:
    """Uniform noise (B, draws, 3, H, W) in [-radius, radius]."""
    random = torch.Generator().manual_seed(seed)
    shape = (len(images), draws, *images.shape[1:])
    return (2 * torch.rand(shape, generator=random) - 1).mul(radius).to(images.device)


def max_sensitivity(mapper: Mapper, images: Tensor, targets: Tensor, noise: Tensor) -> np.ndarray:
    """Largest relative change (B,) of the map over perturbations (B, K, 3, H, W): max |map(x + r) - map(x)| / |map(x)|.

    0 for a linear f and its gradient (Yeh 2019, 1901.09392, Eq. 2). NaN where the map is 0 everywhere.
    """
    before = mapper(images, targets)
    size = np.sqrt((before.astype(np.float64) ** 2).sum((1, 2)))
    largest = np.zeros(len(images))
    for draw in noise.unbind(1):
        change = mapper(images + draw, targets).astype(np.float64) - before
        largest = np.maximum(largest, np.sqrt((change**2).sum((1, 2))))
    return np.divide(largest, size, out=np.full(len(size), np.nan), where=size > 0)


# --- model randomisation (Adebayo et al. 2018, 1810.03292) ----------------------------------------------------------


def randomised(model: ModuleT, seed: int = 0) -> Iterator[tuple[str, ModuleT]]:
    """The model with its blocks redrawn from the last one down, one more each time; the same copy, changed in place.

    A block is a layer of the network with weights, or a member of a sequence of such. Each weight is replaced by a
    normal sample of the same mean and standard deviation, so that magnitudes stay what the layers after it expect.
    """
    changed = copy.deepcopy(model)
    random = torch.Generator().manual_seed(seed)
    for name, block in reversed(blocks(changed)):
        with torch.no_grad():
            for weight in block.parameters():
                noise = torch.randn(weight.shape, generator=random).to(weight.device)
                weight.copy_(weight.mean() + noise * weight.std(correction=0))
        yield name, changed


def blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Parts of the network with weights, from input to output, by name."""
    network = getattr(model, "model", model)
    found: list[tuple[str, nn.Module]] = []
    for name, child in network.named_children():
        inside = child.named_children() if isinstance(child, nn.Sequential | nn.ModuleList) else ()
        members = [(f"{name}.{key}", member) for key, member in inside] or [(name, child)]
        found += [(key, member) for key, member in members if any(True for _ in member.parameters())]
    return found


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rank correlation (N,) of the pixels of maps (N, H, W); 0 where one of them is constant."""
    ranks = [rankdata(maps.reshape(len(maps), -1), axis=1) for maps in (a, b)]
    x, y = (values - values.mean(1, keepdims=True) for values in ranks)
    size = np.sqrt((x**2).sum(1) * (y**2).sum(1))
    return np.divide((x * y).sum(1), size, out=np.zeros(len(size)), where=size > 0)


def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity (N,) of maps (N, H, W), each moved and scaled to [0, 1] (Wang 2004, Eq. 13).

    Uniform windows of 7 x 7 that lie inside the image, as scikit-image has by default.
    """
    x, y = min_max(a).astype(np.float64), min_max(b).astype(np.float64)
    mean_x, mean_y = _local_mean(x), _local_mean(y)
    unbiased = WINDOW**2 / (WINDOW**2 - 1)
    variances = unbiased * (_local_mean(x * x) - mean_x**2 + _local_mean(y * y) - mean_y**2)
    covariance = unbiased * (_local_mean(x * y) - mean_x * mean_y)
    c1, c2 = 0.01**2, 0.03**2
    found = (2 * mean_x * mean_y + c1) * (2 * covariance + c2) / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))
    inner = slice(WINDOW // 2, -(WINDOW // 2))
    return np.asarray(found[:, inner, inner].mean((1, 2)))


def _local_mean(maps: np.ndarray) -> np.ndarray:
    return np.asarray(uniform_filter(maps, (0, WINDOW, WINDOW)))


# --- complexity -----------------------------------------------------------------------------------------------------


def gini(maps: np.ndarray) -> np.ndarray:
    """Gini index (N,) of |maps| (N, H, W): 0 if all are alike, 1 - 1/n for one of n (Chalasani 2020, 1810.06583)."""
    values = np.sort(np.abs(maps.reshape(len(maps), -1)).astype(np.float64), axis=1)
    n = values.shape[1]
    weights = (n - np.arange(1, n + 1) + 0.5) / n
    total = values.sum(1)
    shares = np.divide((values * weights).sum(1), total, out=np.full(len(total), 0.5), where=total > 0)
    return np.asarray(1 - 2 * shares)


def entropy(maps: np.ndarray) -> np.ndarray:
    """Entropy (N,) of |maps| as shares of their sum, nats: 0 for one pixel, log n if all are alike (2005.00631)."""
    values = np.abs(maps.reshape(len(maps), -1)).astype(np.float64)
    total = values.sum(1, keepdims=True)
    shares = np.divide(values, total, out=np.full(values.shape, 1 / values.shape[1]), where=total > 0)
    return -(shares * np.log(np.where(shares > 0, shares, 1))).sum(1)
