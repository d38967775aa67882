"""The comparison of Vision DiffMask (Nalmpantis et al. 2023, 2304.06391), as their code makes it, and by patches.

The first 50 test images, one at a time. Pixels are ranked by the map and replaced, 1/28 of them at a time, by those of
one image of uniform noise in [-1, 1]; the curves are p(predicted), which they call accuracy, and -log p(predicted),
which they call KL. Areas are by trapezoids with step 1, divided by 28.

Masks of patches have the same value on all pixels of a patch, so that with pixels the order of equal values decides
what is hidden first. By patches, whole patches go, by the mean of the map on each.

A second comparison blends the embeddings of the patches with what replaces them, as far as the map says.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from viscoin.statistics.bootstrap import Estimate
from viscoin.testing.attribution.faithfulness import area, hiding_curve, importance_ranks
from viscoin.testing.attribution.scores import Values
from viscoin.testing.attribution.types import Logits

IMAGES, STEPS, SEED, PATCH = 50, 28, 123, 16
ORDERS = ("most", "least")

# Images (B, 3, H, W) and shares (B, patches) of each embedding that is kept -> logits (B, C).
Blend = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Curves:
    """Probabilities (N, 29) of the predicted class while pixels are replaced, by order: "most" and "least" first."""

    probability: dict[str, np.ndarray]

    @property
    def minus_log(self) -> dict[str, np.ndarray]:
        """(N, 29), nats."""
        return {order: -np.log(np.maximum(curve, 1e-12)) for order, curve in self.probability.items()}

    def estimates(self, seed: int = 0) -> dict[str, Estimate]:
        """Areas under both curves in both orders."""
        both = {"probability": self.probability, "minus_log": self.minus_log}
        found = {
            f"{name}.{order}": Values(area(curve)).estimate(seed)
            for name, curves in both.items()
            for order, curve in curves.items()
        }
        return {key: estimate for key, estimate in found.items() if estimate is not None}

    def to_dict(self, seed: int = 0) -> dict[str, Any]:
        """Areas, and the mean curves."""
        curves = {order: curve.mean(0).tolist() for order, curve in self.probability.items()}
        return {key: asdict(estimate) for key, estimate in self.estimates(seed).items()} | {"curves": curves}


def noise_image(size: tuple[int, int], seed: int = SEED) -> Tensor:
    """Uniform noise (1, 3, H, W) in [-1, 1]."""
    return 2 * torch.rand((1, 3, *size), generator=torch.Generator().manual_seed(seed)) - 1


def replacement_curves(
    f: Logits, images: Tensor, predicted: Tensor, maps: np.ndarray, noise: Tensor, patch: int | None = None
) -> Curves:
    """Curves of maps (N, H, W) on images (N, 3, H, W).

    Args:
        patch: side of the patches that go as a whole; None: pixels by themselves, as published.
    """
    ranks = importance_ranks(maps, SEED) if patch is None else patch_ranks(maps, patch)
    hidden = noise.to(images).expand_as(images)
    last = ranks[0].size - 1
    orders = {"most": ranks, "least": last - ranks}
    return Curves({
        name: hiding_curve(f, images, hidden, predicted, order, STEPS) for name, order in orders.items()
    })  # fmt: skip


def patch_ranks(maps: np.ndarray, patch: int) -> np.ndarray:
    """Ranks (N, H, W) of pixels by the mean of the map on their patch, those of a patch side by side."""
    height, width = maps.shape[1:]
    rows, columns = height // patch, width // patch
    means = maps[:, : rows * patch, : columns * patch].reshape(len(maps), rows, patch, columns, patch).mean((2, 4))
    order = importance_ranks(means, SEED)
    y = np.minimum(np.arange(height) // patch, rows - 1)
    x = np.minimum(np.arange(width) // patch, columns - 1)
    spread = order[:, y[:, None], x]
    inside = np.arange(height * width).reshape(height, width)
    return np.stack([importance_ranks(-(one * inside.size + inside)[None].astype(float))[0] for one in spread])


def blended(f: Logits, blend: Blend, images: Tensor, labels: np.ndarray, kept: Tensor) -> dict[str, Values]:
    """What f says where embeddings are kept as far as maps say.

    Args:
        kept: (N, patches) in [0, 1].

    Returns:
        KL(f(x) || f(blended)) in nats, whether the label is predicted, and the share that is replaced, by image.
    """
    with torch.no_grad():
        whole, after = (logits.double().log_softmax(1) for logits in (f(images), blend(images, kept)))
    divergence = (whole.exp() * (whole - after)).sum(1)
    right = after.argmax(1).cpu().numpy() == labels
    return {
        "kl": Values(divergence.cpu().numpy()),
        "accuracy": Values(right.astype(float)),
        "masked": Values(1 - kept.mean(1).cpu().double().numpy()),
    }
