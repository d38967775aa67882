"""Measures on plain arrays. Each takes all values at once, so that none can average batches."""

from dataclasses import dataclass, field

import numpy as np
from scipy.stats import rankdata


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Share of equal entries of two (N,) arrays of class indices.

    Raises:
        ValueError: the arrays are not one-dimensional, of one length and non-empty; (N, 1) against (N,) would
            broadcast to (N, N).
    """
    if predicted.ndim != 1 or predicted.shape != labels.shape or not len(labels):
        raise ValueError(f"predicted classes {predicted.shape} and labels {labels.shape} must be (N,) with N >= 1")
    return float(np.mean(predicted == labels))


def confusion(predicted: np.ndarray, labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Counts (C, C): row = true class, column = predicted class."""
    counts = np.zeros((n_classes, n_classes), dtype=np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def auroc(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of every score for every truth (Mann-Whitney U; ties count one half).

    Args:
        scores: (N, K).
        truth: (N, A) bool.

    Returns:
        (A, K) in [0, 1]; NaN for a truth of which all values are the same.
    """
    if scores.ndim != 2 or truth.ndim != 2 or len(scores) != len(truth):
        raise ValueError(f"scores {scores.shape} and truth {truth.shape} must be (N, K) and (N, A) with the same N")
    positives = truth.sum(0).astype(np.float64)
    pairs = positives * (len(truth) - positives)
    wins = truth.astype(np.float64).T @ rankdata(scores, axis=0) - (positives * (positives + 1) / 2)[:, None]
    return np.divide(wins, pairs[:, None], out=np.full(wins.shape, np.nan), where=pairs[:, None] > 0)


@dataclass
class FeatureMoments:
    """Sums from which mean and covariance of (N, D) features follow; filled batch by batch, in float64."""

    n: int = 0
    total: np.ndarray = field(default_factory=lambda: np.zeros(0))
    products: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))

    def add(self, features: np.ndarray) -> None:
        """Take in a batch (B, D)."""
        features = features.astype(np.float64)
        self.total = features.sum(0) + (self.total if self.n else 0.0)
        self.products = features.T @ features + (self.products if self.n else 0.0)
        self.n += len(features)

    @property
    def mean(self) -> np.ndarray:
        return self.total / self.n

    @property
    def covariance(self) -> np.ndarray:
        if self.n < 2:
            raise ValueError(f"the Frechet distance needs at least 2 images of each kind, got {self.n}")
        return (self.products - self.n * np.outer(self.mean, self.mean)) / (self.n - 1)


def frechet_distance(a: FeatureMoments, b: FeatureMoments) -> float:
    """Squared Frechet distance of two Gaussians, |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)).

    Heusel et al. 2017, Eq. 6. The trace of the root is the sum of the singular values of S_a^(1/2) S_b^(1/2), which
    stays real and stable for singular covariances.
    """
    roots = [_square_root(moments.covariance) for moments in (a, b)]
    overlap = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap
    return float(max(((a.mean - b.mean) ** 2).sum() + spread, 0.0))


def _square_root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
