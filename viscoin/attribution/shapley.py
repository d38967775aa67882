"""Shapley values of square cells, by regression over random coalitions of them."""

import numpy as np
import torch
from torch import Tensor

from viscoin.attribution.question import Found, Question
from viscoin.errors import Refused


def kernel_shap(question: Question) -> Found:
    """Kernel SHAP (Lundberg & Lee 2017, arXiv 1705.07874, Sec. 4.1); cells that are left out show the baseline.

    The value of a cell is spread evenly over its pixels, so that the map adds up to the change of the score.
    """
    cells, n = question.options["cells"], question.options["samples"]
    if cells > min(question.size):
        raise Refused("option", f"cells={cells}", f"more than pixels on a side, {min(question.size)}", "give fewer")
    if n <= cells * cells:
        raise Refused("option", f"samples={n}", f"too few for {cells}x{cells} cells", f"give more than {cells * cells}")
    mask, start = cell_numbers(question.size, cells).to(question.images.device), question.start()
    areas, heats = torch.bincount(mask.flatten()), []
    with torch.no_grad():
        none = question.score(start, question.every)
        change = question.score(question.images, question.every) - none
        for row in question.every:
            shown = coalitions(question.generator(int(row), 0), cells * cells, n).to(mask.device)
            gains = _scores(question, row, start[row], shown[:, mask]) - none[row]
            values = regression(shown.double(), gains.double(), change[row].double()).float()
            heats.append((values / areas)[mask])
    heat = torch.stack(heats)
    return Found(heat, heat.sum((1, 2)) - change)


def cell_numbers(size: torch.Size, cells: int) -> Tensor:
    """(H, W) numbers of square cells, row by row."""
    rows, columns = (torch.arange(length) * cells // length for length in size)
    return rows[:, None] * cells + columns


def coalitions(generator: np.random.Generator, players: int, n: int) -> Tensor:
    """(n, players) bool: k are in with a chance of (K - 1) / (k (K - k)), and all sets of k are equally likely.

    So each coalition comes as often as the Shapley kernel weighs it.
    """
    sizes = np.arange(1, players)
    chances = 1 / (sizes * (players - sizes))
    made = torch.zeros(n, players, dtype=torch.bool)
    for one in made:
        count = generator.choice(sizes, p=chances / chances.sum())
        one[torch.from_numpy(generator.permutation(players)[:count])] = True
    return made


def regression(shown: Tensor, gains: Tensor, whole: Tensor) -> Tensor:
    """Values (K,) whose sums explain gains (n,) of coalitions (n, K) best, and which add up to that of all, `whole`."""
    last = shown[:, -1]
    found = torch.linalg.lstsq(shown[:, :-1] - last[:, None], (gains - last * whole)[:, None]).solution[:, 0]
    return torch.cat([found, (whole - found.sum())[None]])


def _scores(question: Question, row: Tensor, hidden: Tensor, shown: Tensor) -> Tensor:
    """Scores (n,) of the image where only the pixels `shown` (n, H, W) are; the others are hidden."""
    scores = [
        question.score(torch.where(part[:, None], question.images[row], hidden), row.expand(len(part)))
        for part in shown.split(question.batch_size)
    ]
    return torch.cat(scores)
