"""What scores are made from: maps are plain arrays, and whatever makes them is a function."""

from collections.abc import Callable

import numpy as np
from torch import Tensor

# Images (B, 3, H, W) in [-1, 1] and classes (B,) -> maps (B, H, W), positive where something raises the class's logit.
Mapper = Callable[[Tensor, Tensor], np.ndarray]
# Images (B, 3, H, W) -> logits (B, C).
Logits = Callable[[Tensor], Tensor]


def min_max(maps: np.ndarray) -> np.ndarray:
    """Each map (..., H, W) moved and scaled to [0, 1]; constant ones become 0."""
    low, high = maps.min((-2, -1), keepdims=True), maps.max((-2, -1), keepdims=True)
    return np.divide(maps - low, high - low, out=np.zeros(maps.shape), where=high > low)
