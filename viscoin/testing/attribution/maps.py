"""The maps of one method on a sample, each computed once, and those of the oracle."""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from viscoin.errors import reason_of
from viscoin.testing.attribution.scenes import Sample
from viscoin.testing.attribution.types import BadMaps, Explain, checked


class Maps(Protocol):
    """Maps of a sample's images."""

    sample: Sample

    def of(self, rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Maps (n, H, W) of images of the sample by row, each for a class."""


class MethodMaps:
    """Maps of a method; what was asked for once is remembered."""

    def __init__(self, explain: Explain, classifier: nn.Module, sample: Sample, batch_size: int = 32) -> None:
        self.explain, self.classifier, self.sample, self.batch_size = explain, classifier, sample, batch_size
        self._known: dict[tuple[int, int], np.ndarray] = {}

    def of(self, rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
        wanted = list(zip(rows.tolist(), targets.tolist(), strict=True))
        missing = [key for key in dict.fromkeys(wanted) if key not in self._known]
        for start in range(0, len(missing), self.batch_size):
            some = missing[start : start + self.batch_size]
            chosen, classes = np.array(some).T
            maps = self.again(self.classifier, self.sample.images[chosen], classes, chosen)
            self._known.update(zip(some, maps))
        return _stacked([self._known[key] for key in wanted], self.sample.images)

    def again(self, classifier: nn.Module, images: Tensor, targets: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Maps (n, H, W) of changed images or of another classifier, which are not remembered."""
        indices = [int(index) for index in self.sample.indices[rows]]
        try:
            maps = self.explain(classifier, images, torch.from_numpy(targets), indices)
        except Exception as error:  # whatever a method of others raises
            reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {reason_of(error)}"
            raise BadMaps(reason) from error
        return checked(maps, images)


class OracleMaps:
    """What each part and object really does: the class's logit that goes with it, spread over its mask."""

    def __init__(self, sample: Sample) -> None:
        self.sample = sample

    def of(self, rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return _stacked([self._painted(row, target) for row, target in zip(rows, targets)], self.sample.images)

    def _painted(self, row: int, target: int) -> np.ndarray:
        parts = self.sample.parts
        if parts is None:
            raise ValueError("an oracle needs scenes of which parts can be deleted")
        truth, masks = parts.truth, parts.masks[row]
        without = np.concatenate([truth.logits[row, truth.bits], truth.without_object[row]])
        before, after = (logits[..., target] - logits.mean(-1) for logits in (truth.logits[row, 0], without))
        drops = np.nan_to_num(before - after)
        painted = np.zeros(masks.shape[1:], np.float32)
        for owner, drop in enumerate(drops):
            mask = masks[np.array(parts.owners) == owner].any(0)
            painted += mask * np.float32(drop / max(mask.sum(), 1))
        return painted


def _stacked(maps: list[np.ndarray], images: Tensor) -> np.ndarray:
    return np.stack(maps) if maps else np.zeros((0, *images.shape[2:]), np.float32)
