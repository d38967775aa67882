"""Attributions by hiding parts of the image."""

from itertools import product

import torch
from torch import Tensor

from viscoin.attribution.explained import Explained, blurred

PATCHES = 8  # that cover a side; they move by half of their own
BATCH = 64


def occlusion(explained: Explained) -> Tensor:
    """Mean fall of the score over the patches that hide a pixel (Zeiler & Fergus 2014, arXiv 1311.2901, Sec. 4.2).

    Patches show the blurred image instead, and are averaged as in RISE (Petsiuk et al. 2018, arXiv 1806.07421, Eq. 6).
    It takes no gradients and measures how the model responds when pixels change, at hundreds of passes an image.
    """
    masks = _patches(*explained.size).to(explained.images.device)
    weights = masks.flatten(1) / masks.flatten(1).sum(0)
    heats = []
    with torch.no_grad():
        whole = explained.scores(explained.images)
        for image, hidden, before, chosen in zip(
            explained.images, blurred(explained.images), whole, explained.chosen, strict=True
        ):
            after = [explained.scores(torch.where(part[:, None], hidden, image)) for part in masks.split(BATCH)]
            fall = (before - torch.cat(after))[:, chosen].clamp(min=0)
            heats.append((fall.T @ weights).unflatten(1, explained.size))
    return torch.stack(heats)


def _patches(height: int, width: int) -> Tensor:
    """(P, H, W) bool: squares that move by half their side, over the border by half of it too."""
    side = max(2, height // PATCHES)
    rows, columns = (range(-(side // 2), length, max(1, side // 2)) for length in (height, width))
    places = list(product(rows, columns))
    masks = torch.zeros(len(places), height, width, dtype=torch.bool)
    for mask, (y, x) in zip(masks, places, strict=True):
        mask[max(y, 0) : y + side, max(x, 0) : x + side] = True
    return masks[masks.any(2).any(1)]
