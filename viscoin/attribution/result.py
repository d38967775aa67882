"""What `attribute` gives."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from viscoin.attribution import explained


@dataclass(frozen=True)
class AttributionResult:
    """Maps of one score of each of B images; all tensors are on the CPU.

    Attributes:
        maps: (B, H, W) float32, not normalised: positive where the image raises the score.
        native: (B, h, w), the same before they were enlarged.
        signed: whether places that lower the score are below zero; otherwise maps are >= 0.
        targets: (B,) the explained class or concept.
        logits: (B, S) all scores of the images.
        method: its name in `METHODS`.
        options: those of the method as they were used, and, where it has them, `layer`, `baseline`, `seed`, `steps`;
            `against` where the score was a difference.
        gap: (B,) sum of a map minus (score of the image minus score of the baseline), for methods in which that should
            be 0; None for all others.
        forwards, backwards: passes of the method for one image, on average; the one that gives `logits` is not counted.
        seconds: of the whole call.
    """

    maps: Tensor
    native: Tensor
    signed: bool
    targets: Tensor
    logits: Tensor
    method: str
    options: Mapping[str, Any]
    gap: Tensor | None
    forwards: float
    backwards: float
    seconds: float

    @property
    def unit(self) -> Tensor:
        """Maps (B, H, W), each divided by its largest absolute value; maps of zeros stay zero."""
        return explained.unit(self.maps)

    @property
    def min_max(self) -> Tensor:
        """Maps (B, H, W), each brought to [0, 1]; a constant one becomes zeros."""
        return explained.min_max(self.maps)
