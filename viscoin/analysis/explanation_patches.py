"""The fewest patches of an image without which a classifier says something else."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from viscoin.analysis.explanation_places import probabilities
from viscoin.attribution.explained import blurred
from viscoin.attribution.targets import Target
from viscoin.datasets import to_pixels

GRID = 8  # patches on a side


@dataclass(frozen=True)
class HiddenPatches:
    """Patches that are blurred together.

    Attributes:
        hidden: (8, 8) bool.
        image: (H, W, 3) uint8 with these patches blurred.
        probabilities: (C,) of that image.
        predicted: class of the whole image, and `becomes` that of this one; the same where nothing changes it.
        tried: how many images f was asked about.
    """

    hidden: np.ndarray
    image: np.ndarray
    probabilities: np.ndarray
    predicted: int
    tried: int

    @property
    def becomes(self) -> int:
        return int(self.probabilities.argmax())

    @property
    def changes(self) -> bool:
        """Whether f says something else; if not, all patches are hidden."""
        return self.becomes != self.predicted

    @property
    def count(self) -> int:
        return int(self.hidden.sum())

    def to_dict(self, class_names: list[str]) -> dict[str, Any]:
        """Plain numbers; patches as (row, column), from 0."""
        return {
            "grid": GRID, "patches": np.argwhere(self.hidden).tolist(), "changes": self.changes,
            "becomes": class_names[self.becomes], "probability": float(self.probabilities[self.becomes]),
            "tried": self.tried,
        }  # fmt: skip


def fewest_patches(
    target: Target, image: Tensor, heat: np.ndarray, device: torch.device | str = "cpu", batch_size: int = 32
) -> HiddenPatches:
    """Blur patches until the prediction changes, then show again all that can be shown.

    Patches go by what each costs the prediction alone, and by the map; the smaller of both sets is taken. No patch of
    it can be shown again; that there is no smaller set is not proved, as 2^64 of them cannot be tried.

    Args:
        image: (3, H, W) in [-1, 1].
        heat: (H, W), a map of the predicted class.
    """
    hiding = _Hiding(target, image, device, batch_size)
    alone = hiding.margins(torch.eye(GRID * GRID, dtype=torch.bool))
    mass = torch.from_numpy(np.ascontiguousarray(heat)).float()[None, None]
    by_map = torch.nn.functional.adaptive_avg_pool2d(mass, GRID).flatten()
    found = [hiding.smallest(order) for order in (alone.argsort(), by_map.argsort(descending=True))]
    sets = [one for one in found if one is not None]
    hidden = min(sets, key=lambda one: int(one.sum())) if sets else torch.ones(GRID * GRID, dtype=torch.bool)
    shown = hiding.images(hidden[None])
    return HiddenPatches(
        hidden.reshape(GRID, GRID).numpy(), to_pixels(shown)[0], hiding.ask(hidden[None])[0], hiding.predicted,
        hiding.tried,
    )  # fmt: skip


class _Hiding:
    """f on one image with some patches blurred; patches (N, 64) bool, row by row."""

    def __init__(self, target: Target, image: Tensor, device: torch.device | str, batch_size: int) -> None:
        self.target, self.device, self.batch_size, self.tried = target, device, batch_size, 0
        self.image, self.hidden = image[None].cpu(), blurred(image[None].cpu())
        self.predicted = int(self.ask(torch.zeros(1, GRID * GRID, dtype=torch.bool))[0].argmax())

    def images(self, patches: Tensor) -> Tensor:
        """(N, 3, H, W)."""
        height, width = self.image.shape[-2:]
        rows, columns = (torch.arange(length) * GRID // length for length in (height, width))
        masks = patches[:, (rows[:, None] * GRID + columns)]
        return torch.where(masks[:, None], self.hidden, self.image)

    def ask(self, patches: Tensor) -> np.ndarray:
        """Probabilities (N, C)."""
        self.tried += len(patches)
        return probabilities(self.target, self.images(patches), self.device, self.batch_size)

    def margins(self, patches: Tensor) -> Tensor:
        """(N,) how far the predicted class is above the best other one; below 0 where f says something else."""
        found = torch.from_numpy(self.ask(patches)).clamp_min(1e-12).log()
        own = found[:, self.predicted].clone()
        found[:, self.predicted] = -torch.inf
        return own - found.amax(1)

    def smallest(self, order: Tensor) -> Tensor | None:
        """The shortest beginning of an order (64,) that changes the prediction, without what it can spare."""
        patches = torch.zeros(len(order), len(order), dtype=torch.bool)
        for count in range(len(order)):
            patches[count:, order[count]] = True
        for start in range(0, len(order), self.batch_size):
            part = patches[start : start + self.batch_size]
            changed = (self.margins(part) < 0).nonzero()
            if len(changed):
                return self._spared(part[int(changed[0, 0])].clone(), order)
        return None

    def _spared(self, hidden: Tensor, order: Tensor) -> Tensor:
        """The set without those that need not be hidden: the least important are tried first."""
        for patch in order.flip(0).tolist():
            if not hidden[patch] or hidden.sum() == 1:
                continue
            fewer = hidden.clone()
            fewer[patch] = False
            if self.margins(fewer[None])[0] < 0:
                hidden = fewer
        return hidden
