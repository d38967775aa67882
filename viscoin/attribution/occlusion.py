"""Attributions by hiding parts of the image."""

from itertools import product

import torch
from torch import Tensor

from viscoin.attribution.explained import Explained, blurred
from viscoin.attribution.question import Found, Question
from viscoin.errors import Refused

PATCHES = 8  # that cover a side; they move by half of their own
BATCH = 64


def occlusion(explained: Explained) -> Tensor:
    """Mean fall of the score over the patches that hide a pixel (Zeiler & Fergus 2014, arXiv 1311.2901, Sec. 4.2).

    Patches show the blurred image instead, and are averaged as in RISE (Petsiuk et al. 2018, arXiv 1806.07421, Eq. 6).
    It takes no gradients and measures how the model responds when pixels change, at hundreds of passes an image.
    """
    masks = _patches(*explained.size).to(explained.images.device)
    weights = mean_weights(masks)
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


def hidden_windows(question: Question) -> Found:
    """Mean fall of the score over the windows that hide a pixel, signed; they show the baseline."""
    height, width = question.size
    side = question.options["window"] or max(2, height // PATCHES)
    stride = question.options["stride"] or max(1, side // 2)
    if side > min(height, width):
        raise Refused("option", f"window={side}", f"larger than the image, {height} px", "give a smaller one")
    if stride > side:
        raise Refused(
            "option",
            f"stride={stride}",
            f"pixels between windows of {side} would never be hidden",
            "give a smaller one",
        )
    masks = windows(height, width, side, stride, question.options["overhang"]).to(question.images.device)
    weights, start, heats = mean_weights(masks), question.start(), []
    with torch.no_grad():
        before = question.score(question.images, question.every)
        for row, image in zip(question.every, question.images, strict=True):
            after = [
                question.score(torch.where(part[:, None], start[row], image), row.expand(len(part)))
                for part in masks.split(question.batch_size)
            ]
            heats.append(((before[row] - torch.cat(after)) @ weights).unflatten(0, question.size))
    return Found(torch.stack(heats))


def mean_weights(masks: Tensor) -> Tensor:
    """(P, H, W) bool -> (P, H W): what each mask counts in the mean over those that hide a pixel."""
    return masks.flatten(1) / masks.flatten(1).sum(0).clamp(min=1)


def _patches(height: int, width: int) -> Tensor:
    """(P, H, W) bool: squares that move by half their side, over the border by half of it too."""
    side = max(2, height // PATCHES)
    return windows(height, width, side, max(1, side // 2))


def windows(height: int, width: int, side: int, stride: int, overhang: bool = True) -> Tensor:
    """(P, H, W) bool: squares at regular distances.

    Args:
        overhang: let them begin before the border, so that all pixels are hidden equally often where the stride
            divides the side; otherwise the first lies in the corner, and only the last ones may be cut.
    """
    if overhang:
        rows, columns = (range(stride - side, length, stride) for length in (height, width))
    else:
        rows, columns = (range(0, length - side + stride, stride) for length in (height, width))
    places = list(product(rows, columns))
    masks = torch.zeros(len(places), height, width, dtype=torch.bool)
    for mask, (y, x) in zip(masks, places, strict=True):
        mask[max(y, 0) : y + side, max(x, 0) : x + side] = True
    return masks[masks.any(2).any(1)]
