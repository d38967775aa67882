"""Maps as segmentations: pixels above a threshold against a mask, pooled over all images and for each alone."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import label
from sklearn.metrics import average_precision_score, roc_auc_score

from viscoin.testing.attribution.types import min_max

THRESHOLD = 0.5
THRESHOLDS = np.arange(100) / 100


@dataclass(frozen=True)
class Counts:
    """Pixels of each of N images that are in mask and segment, in one of them, and in none."""

    both: np.ndarray
    segment_alone: np.ndarray
    mask_alone: np.ndarray
    neither: np.ndarray

    def rows(self) -> np.ndarray:
        """(N, 4)."""
        return np.stack([self.both, self.segment_alone, self.mask_alone, self.neither], 1)


def segments(maps: np.ndarray, threshold: float = THRESHOLD, kept: np.ndarray | None = None) -> np.ndarray:
    """Pixels (N, H, W) bool of maps in [0, 1] after `min_max` that are above the threshold.

    Args:
        kept: (N,) bool; the segments of all others are empty, as where the class is not predicted.
    """
    found = min_max(maps) > threshold
    return found if kept is None else found & kept[:, None, None]


def count(found: np.ndarray, masks: np.ndarray) -> Counts:
    """Counts of segments (N, H, W) bool against masks (N, H, W) bool."""
    cases = (found & masks, found & ~masks, ~found & masks, ~found & ~masks)
    return Counts(*(case.sum((1, 2)) for case in cases))


def pooled(rows: np.ndarray) -> dict[str, float]:
    """Accuracy, precision, recall, Dice (F1) and IoU of the counts (N, 4) of all images together.

    A ratio of nothing to nothing, such as the IoU of empty segments and empty masks, is 1.
    """
    both, segment, mask, neither = (float(column) for column in rows.sum(0))
    ratios = {
        "accuracy": (both + neither, both + segment + mask + neither),
        "precision": (both, both + segment),
        "recall": (both, both + mask),
        "dice": (2 * both, 2 * both + segment + mask),
        "iou": (both, both + segment + mask),
    }
    return {name: above / below if below else 1.0 for name, (above, below) in ratios.items()}


def iou(counts: Counts) -> np.ndarray:
    """Intersection over union (N,); 1 where segment and mask are empty."""
    union = counts.both + counts.segment_alone + counts.mask_alone
    return np.divide(counts.both, union, out=np.ones(len(union)), where=union > 0)


def dice(counts: Counts) -> np.ndarray:
    """Dice coefficient, or F1, (N,); 1 where segment and mask are empty."""
    return 2 * iou(counts) / (1 + iou(counts))


def iou_curve(maps: np.ndarray, masks: np.ndarray, thresholds: np.ndarray = THRESHOLDS) -> np.ndarray:
    """IoU (N, T) at each threshold."""
    scaled = min_max(maps)
    return np.stack([iou(count(scaled > threshold, masks)) for threshold in thresholds], 1)


def average_precision(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Area under precision and recall of the pixels (N,); NaN where the mask is empty; chance is the mask's area."""
    return np.array([
        average_precision_score(mask.ravel(), values.ravel()) if mask.any() else np.nan
        for values, mask in zip(maps, masks)
    ])  # fmt: skip


def auroc(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of the pixels (N,); NaN where the mask is empty or full; chance is 0.5."""
    return np.array([
        roc_auc_score(mask.ravel(), values.ravel()) if mask.any() and not mask.all() else np.nan
        for values, mask in zip(maps, masks)
    ])  # fmt: skip


def centroid(found: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Whether the centroid of the largest component of segments (N, H, W) lies in the mask: (N,), 0 or 1.

    What DeepVisionXplain calls pointing. 0 for an empty segment, NaN for an empty mask.
    """
    scores = [_centroid(segment, mask) for segment, mask in zip(found, masks)]
    return np.array(scores, dtype=float)


def _centroid(segment: np.ndarray, mask: np.ndarray) -> float:
    if not mask.any() or not segment.any():
        return 0.0 if mask.any() else np.nan
    components, _ = label(segment, structure=np.ones((3, 3)))
    largest = components == np.bincount(components[components > 0]).argmax()
    y, x = (round(place.mean()) for place in np.nonzero(largest))
    return float(mask[y, x])
