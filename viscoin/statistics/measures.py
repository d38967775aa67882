"""Measures on plain arrays. Each takes all values at once, so that none can average batches."""

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


def known_mean(values: np.ndarray) -> float:
    """Mean of all values that are not NaN; NaN where there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


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
