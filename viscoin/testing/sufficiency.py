"""Sufficiency: is g still right when only the top N concepts of each image are kept?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.integrate import trapezoid
from torch import Tensor

from viscoin.inference.batches import random_ranks
from viscoin.models.ensemble import VisCoIN
from viscoin.statistics.bootstrap import Estimate, bootstrap

RANKINGS = ("relevance", "activation", "random")


@dataclass(frozen=True)
class Sufficiency:
    """Whether g was right, hits (N, L) bool, when only the `kept` (L,) top concepts of a ranking were kept."""

    ranking: str
    kept: tuple[int, ...]
    hits: np.ndarray

    @property
    def area(self) -> np.ndarray:
        """(N,) area under each image's curve of hits over log2 N / log2 K, in [0, 1] (`area_log2`).

        Its mean is the area under the accuracy curve. For K = 1 it is the accuracy.
        """
        if len(self.kept) == 1:
            return self.hits[:, 0].astype(float)
        places = np.log2(self.kept)
        return trapezoid(self.hits.astype(float), places / places[-1], axis=1)

    def estimates(self, seed: int) -> dict[str, Estimate]:
        """`area_log2`, and the accuracy by number of concepts."""
        found = {"area_log2": bootstrap(self.area, seed=seed)}
        return found | {f"{n}": bootstrap(hits, seed=seed) for n, hits in zip(self.kept, self.hits.T, strict=True)}

    def to_dict(self) -> dict[str, Any]:
        accuracy = {f"{n}": float(hits.mean()) for n, hits in zip(self.kept, self.hits.T, strict=True)}
        return {"area_log2": float(self.area.mean()), **accuracy}


def kept_counts(n_concepts: int) -> tuple[int, ...]:
    """1, 2, 4, ... and K."""
    return (*(2**i for i in range((n_concepts - 1).bit_length())), n_concepts)


def kept_hits(
    ensemble: VisCoIN, phi: Tensor, relevance: Tensor, labels: Tensor, indices: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """Hits (B, L) of g by ranking; concepts that are not kept count as not active.

    Three rankings of an image's concepts: by relevance r_k for the class that g predicts (what an explanation shows),
    by activation phi_k (which knows no class), and at random.

    Args:
        phi, relevance: (B, K).
        labels: (B,) true classes.
        indices: (B,) positions of the images in their dataset; the random ranking depends on these and the seed alone.
    """
    n_concepts = phi.shape[1]
    random = np.stack([random_ranks(seed, int(i), n_concepts) for i in indices])
    ranks = dict(zip(RANKINGS, (_ranks(relevance), _ranks(phi), torch.from_numpy(random).to(phi.device))))
    return {name: _hits(ensemble, phi, rank, labels, kept_counts(n_concepts)) for name, rank in ranks.items()}


def _hits(ensemble: VisCoIN, phi: Tensor, ranks: Tensor, labels: Tensor, kept: Sequence[int]) -> np.ndarray:
    found = [ensemble.explain((phi * (ranks < n))[..., None, None]).argmax(1) == labels for n in kept]
    return torch.stack(found, 1).cpu().numpy()


def _ranks(values: Tensor) -> Tensor:
    """(B, K): 0 for the largest value of a row, ties in the order of the columns."""
    return values.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
