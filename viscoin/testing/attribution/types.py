"""What scores are made from: maps are plain arrays, and whatever makes them is a function."""

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor, nn

# Images (B, 3, H, W) in [-1, 1] and classes (B,) -> maps (B, H, W), positive where something raises the class's logit.
Mapper = Callable[[Tensor, Tensor], np.ndarray]
# The same for any classifier, with the numbers of the images (B,), which random methods draw by.
Explain = Callable[[nn.Module, Tensor, Tensor, Sequence[int]], np.ndarray]
# Images (B, 3, H, W) -> logits (B, C).
Logits = Callable[[Tensor], Tensor]


class BadMaps(ValueError):
    """What a method gave is no maps; the text says why, without its name."""


def checked(maps: object, images: Tensor) -> np.ndarray:
    """Maps (B, H, W) as a finite array; BadMaps otherwise."""
    found = np.asarray(maps, dtype=np.float32)
    expected = (len(images), *images.shape[2:])
    if found.shape != expected:
        raise BadMaps(f"maps are {found.shape}, not {expected}")
    if not np.isfinite(found).all():
        broken = int((~np.isfinite(found)).any((1, 2)).sum())
        raise BadMaps(f"{broken} of {len(found)} maps have values that are no finite numbers")
    return found


def min_max(maps: np.ndarray) -> np.ndarray:
    """Each map (..., H, W) moved and scaled to [0, 1]; constant ones become 0."""
    low, high = maps.min((-2, -1), keepdims=True), maps.max((-2, -1), keepdims=True)
    return np.divide(maps - low, high - low, out=np.zeros(maps.shape), where=high > low)
