"""The judge: a small network that reads attributes off images, trained on real ones alone and never used in a loss."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

GRID = 8  # side of the last feature map
WIDTHS = (32, 64, 128)  # of its stages, the last one of all that follow


class Judge(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] -> one logit for each attribute.

    It shares nothing with f, so that it can say what edited images show without having been pleased by them: stages of
    two 3x3 convolutions, the first of stride 2, down to 8 pixels; means and maxima over these.

    Args:
        attributes: names of the A attributes.
        resolution: side of the images, which decides the number of stages.
    """

    def __init__(self, attributes: Sequence[str], resolution: int) -> None:
        super().__init__()
        self.attributes, self.resolution = list(attributes), resolution
        self.architecture: dict[str, Any] = {"attributes": self.attributes, "resolution": resolution}
        stages = max(1, (resolution // GRID).bit_length() - 1)
        widths = [3, *(WIDTHS[min(stage, len(WIDTHS) - 1)] for stage in range(stages))]
        self.body = nn.Sequential(
            *(
                layer
                for before, width in pairwise(widths)
                for layer in (*_convolution(before, width, 2), *_convolution(width, width, 1))
            )
        )
        self.head = nn.Linear(2 * widths[-1], len(self.attributes))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> logits (B, A)."""
        maps = self.body(images)
        return self.head(torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1).float())


def _convolution(before: int, width: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
