"""Concepts that f already has: directions on which its classes, or its images, fall into two groups.

The last layer of a classifier holds a point for every class. Attributes that classes share (a colour, a shape) are
directions on which these points take two values, and a random direction is nearly Gaussian; so a search for the least
Gaussian directions (projection pursuit, Friedman and Tukey 1974) finds them without any label of an attribute. It needs
many more classes than attributes; of fewer it takes images as points, and what it finds is then less well determined
(Leemann et al. 2023, arXiv 2206.13872, on when concepts can be identified at all).
"""

import logging
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from viscoin.errors import Refused

STARTS, STEPS, RATE = 1500, 200, 0.1
RIDGE = 1e-4  # of the mean variance of a channel
SKEW = 0.85  # below 1, so that a third of the points is a better group than a single point
SAME = 0.95  # correlation from which two directions count as one
CLASSES_PER_DIMENSION = 8  # points that the pursuit needs; fewer classes than that make false optima
LARGEST, SMALLEST, MORE = 64, 4, 2  # dimensions to choose from, and how many more to try at a time
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pursuit:
    """Directions in the space of f's pooled features.

    Attributes:
        basis: (D, d); (features - mean) @ basis are d scores of unit variance, by which logits move most.
        mean: (D,) of the features.
        directions: (d, k) in these scores, the most two-valued first, each of length 1.
        values: (k,) kurtosis - 0.85 skewness^2 along each: 1.15 for two equal groups, 3 for a Gaussian.
        over: "classes" or "images", whichever were the points.
    """

    basis: np.ndarray
    mean: np.ndarray
    directions: np.ndarray
    values: np.ndarray
    over: str


def relevant_basis(weight: np.ndarray, features: np.ndarray, d: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The directions of feature space that move the logits most over these images.

    Args:
        weight: (C, D) of f's last layer. What all classes share is taken off first: the softmax does not see it.
        features: (N, D), what that layer reads.
        d: how many; None for the rule of `dimensions`.

    Returns:
        Class coordinates (C, d), orthonormal columns, and the basis (D, d): scores of unit variance.
    """
    covariance = np.cov(features.T)
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    centred = weight - weight.mean(0)
    u, s, _ = np.linalg.svd(centred @ root, full_matrices=False)
    d = dimensions(s) if d is None else d
    return u[:, :d], centred.T @ u[:, :d] / s[:d]


def dimensions(spectrum: np.ndarray) -> int:
    """How many leading singular values stand out: up to the largest relative drop of a smoothed spectrum.

    Args:
        spectrum: singular values, decreasing.
    """
    last = min(LARGEST, len(spectrum) - 1, int((spectrum > 1e-6 * spectrum[0]).sum()) - 1)
    if last <= SMALLEST:
        return max(1, last)
    drops = np.log(spectrum[SMALLEST - 1 : last] / spectrum[SMALLEST : last + 1])
    return SMALLEST + int(drops.argmax())


@torch.enable_grad()
def two_valued(points: np.ndarray, starts: int = STARTS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Distinct local optima of kurtosis - 0.85 skewness^2 over directions, from random starts.

    Args:
        points: (P, d), whitened: covariance 1.

    Returns:
        Directions (d, k) of length 1 and their values (k,), the most two-valued first. A direction and its opposite
        are one.
    """
    fixed = torch.from_numpy(np.ascontiguousarray(points)).float()
    drawn = torch.randn(points.shape[1], starts, generator=torch.Generator().manual_seed(seed))
    v = (drawn / drawn.norm(dim=0)).requires_grad_()
    optimiser = torch.optim.Adam([v], RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for _ in range(STEPS):
        optimiser.zero_grad()
        _bimodality(fixed @ (v / v.norm(dim=0))).sum().backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        unit = v / v.norm(dim=0)
        values = _bimodality(fixed @ unit)
    directions, found = unit.numpy(), values.numpy()
    kept = distinct(points @ directions, found)
    return directions[:, kept], found[kept]


def _bimodality(projections: Tensor) -> Tensor:
    """(P, n) -> (n,)."""
    standardised = (projections - projections.mean(0)) / projections.std(0, unbiased=False)
    return standardised.pow(4).mean(0) - SKEW * standardised.pow(3).mean(0).square()


def distinct(projections: np.ndarray, values: np.ndarray) -> list[int]:
    """Columns of (P, n) by value (n,), lowest first, without those that correlate above 0.95 with a better one."""
    unit = projections - projections.mean(0)
    unit /= np.linalg.norm(unit, axis=0) + 1e-12
    kept: list[int] = []
    for i in np.argsort(values, kind="stable"):
        if not kept or np.abs(unit[:, i] @ unit[:, kept]).max() < SAME:
            kept.append(int(i))
    return kept


def pursue(weight: np.ndarray, features: np.ndarray, count: int, d: int | None = None, seed: int = 0) -> Pursuit:
    """Concepts of a classifier with a linear last layer.

    Args:
        weight: (C, D) of that layer.
        features: (N, D) that it reads, of training images.
        count: directions that are wanted.
        d: dimensions of the search; by default where the singular values drop most, and then as many more as it takes
            to find that many directions.
        seed: of the starts.

    Raises:
        Refused: classes that are all alike, or fewer optima than directions are wanted.
    """
    spread = np.abs(weight - weight.mean(0)).max()
    if len(weight) < 2 or not spread > 1e-6 * max(np.abs(weight).max(), 1e-12):
        raise Refused(None, None, "the classifier's last layer treats all classes alike", "train the classifier first")
    found = _search(weight, features, d, seed)
    most = min(LARGEST, *weight.shape, len(weight) - 1)
    while d is None and len(found.values) < count and found.basis.shape[1] + MORE <= most:
        found = _search(weight, features, found.basis.shape[1] + MORE, seed)
    if len(found.values) < count:
        raise Refused(
            "viscoin.n_concepts", None, f"the pursuit finds {len(found.values)} directions, two concepts each",
            f"choose at most {2 * len(found.values)}",
        )  # fmt: skip
    if found.over == "images":
        logger.warning(
            "pursuit: %d classes are too few for %d dimensions; searched over %d images instead, which determines "
            "concepts less well", len(weight), found.basis.shape[1], len(features),
        )  # fmt: skip
    return replace(found, directions=found.directions[:, :count], values=found.values[:count])


def _search(weight: np.ndarray, features: np.ndarray, d: int | None, seed: int) -> Pursuit:
    classes, basis = relevant_basis(weight, features, d)
    mean, over = features.mean(0), "classes"
    points = classes * np.sqrt(len(classes))
    if len(points) < CLASSES_PER_DIMENSION * basis.shape[1]:
        over, points = "images", (features - mean) @ basis
    directions, values = two_valued(points, seed=seed)
    return Pursuit(basis, mean, directions, values, over)


@dataclass(frozen=True)
class Stability:
    """How well other searches find the same directions: |correlation| over images with the nearest one, mean of all.

    Attributes:
        seed: of a search with another seed.
        halves: of searches with one half of the classes each; None for fewer than 8 classes.
    """

    seed: float
    halves: float | None


def stability(weight: np.ndarray, features: np.ndarray, found: Pursuit, seed: int = 0) -> Stability:
    """Search again with another seed, and in each half of the classes.

    Args:
        weight, features, seed: as they were for `pursue`.
    """
    d = found.basis.shape[1]
    again = _nearest(found, _search(weight, features, d, seed + 1), features)
    if len(weight) < 8:
        return Stability(again, None)
    order = np.random.default_rng(seed).permutation(len(weight))
    halves = [order[: len(order) // 2], order[len(order) // 2 :]]
    others = [_search(weight[half], features, min(d, len(half) - 1), seed) for half in halves]
    return Stability(again, float(np.mean([_nearest(found, other, features) for other in others])))


def _nearest(found: Pursuit, other: Pursuit, features: np.ndarray) -> float:
    scores = [(features - part.mean) @ part.basis @ part.directions for part in (found, other)]
    one, two = ((part - part.mean(0)) / (part.std(0) * np.sqrt(len(part)) + 1e-12) for part in scores)
    return float(np.abs(one.T @ two).max(1).mean())


def of_map(found: Pursuit, features: np.ndarray, pooled: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The scores as a linear function of the means of the coarsest map: basis (C, d), offset (d,), and R^2.

    Where the last layer reads these means themselves, as in a ResNet, it is that function; elsewhere the nearest.

    Args:
        features: (N, D) that the last layer reads; pooled: (N, C), means of the coarsest map of the same images.
    """
    scores = (features - found.mean) @ found.basis
    mean = pooled.mean(0)
    if pooled.shape == features.shape and np.allclose(pooled, features, atol=1e-3):
        basis = found.basis
    else:
        centred = (pooled - mean).astype(np.float64)
        square = centred.T @ centred / len(centred)
        square += RIDGE * np.trace(square) / len(square) * np.eye(len(square))
        basis = np.linalg.solve(square, centred.T @ scores / len(centred))
    missed = scores - (pooled - mean) @ basis
    share = 1 - np.square(missed).sum() / np.square(scores - scores.mean(0)).sum()
    return basis, -mean @ basis, float(share)
