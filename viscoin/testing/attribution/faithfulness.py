"""Does f change when the pixels that a map marks are hidden, and does it stay when the others are?

Deletion and insertion follow RISE (Petsiuk 2018, 1806.07421, Sec. 4.1), imputation ROAD (Rong 2022, 2202.00449),
infidelity Yeh 2019 (1901.09392).
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import spsolve
from torch import Tensor

from viscoin.testing.attribution.types import Logits

STEPS = 16
SHARES = tuple(share / 10 for share in range(1, 10))  # of the pixels that ROAD hides
NOISE = 0.01  # standard deviation of what ROAD adds to imputed pixels
BESIDE, CORNER = 1 / 6, 1 / 12  # weights of a pixel's neighbours


def importance_ranks(maps: np.ndarray, seed: int = 0) -> np.ndarray:
    """Place (N, H, W) of each pixel from the highest value (0) down; equal values are in random order."""
    random = np.random.default_rng(seed)
    flat = maps.reshape(len(maps), -1)
    ranks = np.empty(flat.shape, np.int64)
    for row, values in enumerate(flat):
        ranks[row, np.lexsort((random.permutation(len(values)), -values))] = np.arange(len(values))
    return ranks.reshape(maps.shape)


def hiding_curve(
    logits: Logits, images: Tensor, hidden: Tensor, targets: Tensor, ranks: np.ndarray, steps: int = STEPS
) -> np.ndarray:
    """Probabilities (N, steps + 1) of the targets while pixels are replaced by those of `hidden`, lowest rank first.

    With ranks of importance, this is deletion. With the order turned round (`H W - 1 - ranks`), read backwards, it is
    insertion of the most important pixels into `hidden`, as both show the same images.

    Args:
        images, hidden: (N, 3, H, W).
        ranks: (N, H, W), 0 to H W - 1.
    """
    order = torch.from_numpy(ranks).to(images.device)
    pixels = order[0].numel()
    curve = []
    with torch.no_grad():
        for step in range(steps + 1):
            gone = (order < round(step * pixels / steps))[:, None]
            curve.append(_probability(logits, torch.where(gone, hidden, images), targets))
    return np.stack(curve, 1)


def _probability(logits: Logits, images: Tensor, targets: Tensor) -> np.ndarray:
    found = logits(images).float().softmax(1).gather(1, targets[:, None].to(images.device))
    return found[:, 0].cpu().double().numpy()


def area(curve: np.ndarray) -> np.ndarray:
    """Area (N,) under curves (N, S + 1) by trapezoids, over a width of 1."""
    return np.asarray(np.trapezoid(curve, axis=1) / (curve.shape[1] - 1))


# --- ROAD ----------------------------------------------------------------------------------------------------------


def impute(image: np.ndarray, gone: np.ndarray, noise: float = NOISE, seed: int = 0) -> np.ndarray:
    """Hidden pixels as the weighted mean of their eight neighbours, all solved together, with a little noise.

    1/6 for the four beside and 1/12 for the corners, divided by their sum at the border. What is imputed shows less of
    the outline of what is hidden than one colour would.

    Args:
        image: (3, H, W).
        gone: (H, W) bool.
    """
    found = np.array(image, dtype=np.float64)
    if gone.any():
        random = np.random.default_rng(seed)
        matrix, known = _neighbours(found, gone)
        solved = spsolve(matrix, known)
        found[:, gone] = solved.T + noise * random.standard_normal((len(image), int(gone.sum())))
    return found.astype(np.float32)


def _neighbours(image: np.ndarray, gone: np.ndarray) -> tuple[csr_matrix, np.ndarray]:
    """Equations (M, M) of M hidden pixels, and what their known neighbours give (M, 3)."""
    number = np.full(gone.shape, -1)
    number[gone] = np.arange(gone.sum())
    rows, columns = np.nonzero(gone)
    weights = np.zeros(len(rows))
    known = np.zeros((len(rows), len(image)))
    entries = []
    for dy, dx in ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)):
        weight = CORNER if dy and dx else BESIDE
        y, x = rows + dy, columns + dx
        inside = np.flatnonzero((y >= 0) & (y < gone.shape[0]) & (x >= 0) & (x < gone.shape[1]))
        weights[inside] += weight
        other = number[y[inside], x[inside]]
        seen = inside[other < 0]
        known[seen] += weight * image[:, y[seen], x[seen]].T
        entries.append(np.stack([inside[other >= 0], other[other >= 0], np.full((other >= 0).sum(), -weight)]))
    diagonal = np.arange(len(rows))
    i, j, values = np.concatenate([*entries, [diagonal, diagonal, weights]], 1)
    return csr_matrix((values, (i.astype(int), j.astype(int))), shape=(len(rows), len(rows))), known


def road_curve(
    logits: Logits,
    images: Tensor,
    targets: Tensor,
    ranks: np.ndarray,
    shares: Sequence[float] = SHARES,
    noise: float = NOISE,
    seed: int = 0,
) -> np.ndarray:
    """Probabilities (N, S) of the targets with shares of the pixels, lowest rank first, imputed."""
    pixels = ranks[0].size
    curve = []
    with torch.no_grad():
        for share in shares:
            gone = ranks < int(share * pixels)
            filled = [
                impute(image, hide, noise, seed + row)
                for row, (image, hide) in enumerate(zip(images.cpu().numpy(), gone))
            ]
            curve.append(_probability(logits, torch.from_numpy(np.stack(filled)).to(images.device), targets))
    return np.stack(curve, 1)


# --- sums of the map against changes of the score --------------------------------------------------------------------


def infidelity(expected: np.ndarray, changes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean square (N,) of what a map expects of perturbations minus their changes: as it is, and with the best scale.

    The best factor of the map is E[a b] / E[a^2] (Yeh 2019, Sec. 3), as maps have no unit in common with logits.

    Args:
        expected: a (N, K), the map summed over each of K perturbations: sum I * map.
        changes: b (N, K), f(x) - f(x - I).
    """
    plain = ((expected - changes) ** 2).mean(1)
    below = (expected**2).mean(1)
    scale = np.divide((expected * changes).mean(1), below, out=np.zeros(len(below)), where=below > 0)
    return plain, ((scale[:, None] * expected - changes) ** 2).mean(1)


def unexplained(expected: np.ndarray, changes: np.ndarray) -> np.ndarray:
    """Infidelity with the best scale as a share (N,) of the mean squared change: 0 for a linear f and its gradient, 1
    for a map that tells nothing. NaN where no perturbation changes f."""
    size = (changes**2).mean(1)
    scaled = infidelity(expected, changes)[1]
    return np.divide(scaled, size, out=np.full(len(size), np.nan), where=size > 0)


def completeness_gap(sums: np.ndarray, changes: np.ndarray) -> np.ndarray:
    """|sum of the map - (f(x) - f(x'))| (N,), over max(1, |f(x) - f(x')|)."""
    return np.asarray(np.abs(sums - changes) / np.maximum(1, np.abs(changes)))
