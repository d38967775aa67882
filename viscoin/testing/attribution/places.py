"""Do maps point into a mask? Scores by image; chance of each is the share of the image that the mask covers.

Equal values share what they would get in all orders, so that a map without any difference is at chance. An empty mask
has no place that could be right: NaN.
"""

import numpy as np

from viscoin.testing.truth.localisation import pointing_game


def pointing(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Pointing game (N,): does the highest point of maps (N, H, W) lie in the masks (N, H, W)? (Zhang 2016, 1608.00507)

    Values below 0 count as 0.
    """
    return _defined(pointing_game(np.maximum(maps, 0), masks), masks)


def mass(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Share (N,) of the positive values of maps that lies in the masks."""
    positive = np.maximum(maps, 0).astype(np.float64)
    total = positive.sum((1, 2))
    found = (positive * masks).sum((1, 2))
    return _defined(np.divide(found, total, out=area(masks), where=total > 0), masks)


def rank(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Share (N,) of the mask among as many of the highest pixels as the mask has (Arras 2022, 2003.07258, Eq. 7)."""
    found = [_rank(values, mask) for values, mask in zip(maps.reshape(len(maps), -1), masks.reshape(len(masks), -1))]
    return np.array(found, dtype=float)


def _rank(values: np.ndarray, mask: np.ndarray) -> float:
    count = int(mask.sum())
    if not count:
        return np.nan
    least = np.partition(values, len(values) - count)[len(values) - count]
    above, equal = values > least, values == least
    room = (count - above.sum()) / equal.sum()
    return float((mask & above).sum() + room * (mask & equal).sum()) / count


def area(masks: np.ndarray) -> np.ndarray:
    """Share (N,) of the image that each mask covers: what chance gives."""
    return np.asarray(masks.mean((1, 2), dtype=np.float64))


def _defined(scores: np.ndarray, masks: np.ndarray) -> np.ndarray:
    return np.where(masks.any((1, 2)), scores, np.nan)
