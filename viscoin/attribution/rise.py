"""RISE: the mean of random masks, each weighed by what the model sees through it."""

import numpy as np
import torch
from torch import Tensor

from viscoin.attribution.question import Found, Question
from viscoin.attribution.targets import ConceptActivation
from viscoin.inference.batches import progress

LONG = 2000  # passes; what takes more shows a progress bar


def rise(question: Question) -> Found:
    """sum_i f(x M_i) M_i / (N p), f a probability (Petsiuk et al. 2018, arXiv 1806.07421, Eq. 6).

    With a class `against`, the probability is that of the one among the two; of a concept it is the activation.
    """
    n, p, cells = (question.options[name] for name in ("samples", "p", "cells"))
    heat = torch.zeros(len(question.images), *question.size, device=question.images.device)
    with torch.no_grad(), progress(n * len(heat), "RISE", "pass") as bar:
        bar.disable = bar.disable or bar.total < LONG
        for row in question.every:
            generator = question.generator(int(row), 0)
            for first in range(0, n, question.batch_size):
                count = min(question.batch_size, n - first)
                masks = random_masks(generator, count, cells, p, question.size).to(heat.device)
                seen = _probability(question, question.images[row] * masks[:, None], row)
                heat[row] += weighed_masks(seen, masks, p) * count / n
                bar.update(count)
    return Found(heat)


def weighed_masks(scores: Tensor, masks: Tensor, p: float) -> Tensor:
    """sum_i s_i M_i / (N p), (H, W), of scores (N,) and masks (N, H, W)."""
    return torch.einsum("n,nhw->hw", scores, masks) / (len(masks) * p)


def random_masks(generator: np.random.Generator, n: int, cells: int, p: float, size: torch.Size) -> Tensor:
    """(n, H, W) in [0, 1]: grids of cells x cells, each cell 1 with probability p, enlarged bilinearly and shifted."""
    height, width = size
    cell = [-(-length // cells) for length in size]
    made = []
    for _ in range(n):  # one by one, so that masks do not depend on how many are made together
        grid = torch.from_numpy((generator.random((cells, cells)) < p).astype(np.float32))
        shape = [(cells + 1) * side for side in cell]
        large = torch.nn.functional.interpolate(grid[None, None], shape, mode="bilinear", align_corners=False)[0, 0]
        y, x = (int(generator.integers(side)) for side in cell)
        made.append(large[y : y + height, x : x + width])
    return torch.stack(made)


def _probability(question: Question, images: Tensor, row: Tensor) -> Tensor:
    if isinstance(question.target, ConceptActivation):
        return question.score(images, row.expand(len(images)))
    if question.against is not None:
        return question.score(images, row.expand(len(images))).sigmoid()
    question.passes.forwards += len(images)
    return question.target.scores(images).softmax(1)[:, question.targets[row]]
