"""Faithfulness: does the prediction fall when the relevant concepts are removed from the generated image?

Images are drawn by Omega alone, as published, even where an ensemble has directions of its concepts: to remove many
concepts at once by their directions destroys the image whichever they are, so that the control would tell nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from viscoin.inference.batches import random_ranks
from viscoin.models.ensemble import VisCoIN
from viscoin.statistics.bootstrap import Estimate, bootstrap

THRESHOLDS = (0.1, 0.2, 0.4)


@dataclass(frozen=True)
class Faithfulness:
    """Falls of g's probability for the predicted class, one per image, at one threshold.

    `relevant` and `random` are g(x~)_c - g(x_rem)_c (N,) in [-1, 1] after removing the concepts with r_k > threshold,
    or the same number of random ones; `removed` (N,) is that number.
    """

    threshold: float
    relevant: np.ndarray
    random: np.ndarray
    removed: np.ndarray

    def estimates(self, seed: int) -> dict[str, Estimate]:
        """The same with intervals over images."""
        return {
            "relevant": bootstrap(self.relevant, np.median, seed=seed),
            "random": bootstrap(self.random, np.median, seed=seed),
            "removed": bootstrap(self.removed, seed=seed),
        }

    def to_dict(self) -> dict[str, Any]:
        """Medians over images, as FF in Parekh et al. 2025, Sec. 4."""
        return {
            "relevant": float(np.median(self.relevant)),
            "random": float(np.median(self.random)),
            "removed": float(self.removed.mean()),
            "n": len(self.removed),
        }


@dataclass(frozen=True)
class Generated:
    """g's probabilities (B, C) on generated images, and what they were generated from."""

    probabilities: Tensor
    concept_maps: Tensor
    support: Tensor


def probability_falls(
    ensemble: VisCoIN,
    generated: Generated,
    relevance: Tensor,
    classes: Tensor,
    indices: np.ndarray,
    seed: int,
    thresholds: Sequence[float] = THRESHOLDS,
) -> list[Faithfulness]:
    """Faithfulness of one batch, to be joined by `concatenate`.

    Only Phi changes; the support Phi' stays as it is. The control samples from all K concepts, as in the paper; its
    samples depend on (seed, dataset index) alone and are nested over the thresholds.

    Args:
        generated: the reconstructions x~ of the batch.
        relevance: (B, K) in [-1, 1], of the concepts in x for `classes` (B,).
        indices: (B,) positions of the images in their dataset.
    """
    relevant = [(relevance > threshold).cpu() for threshold in thresholds]
    order = torch.from_numpy(np.stack([random_ranks(seed, int(i), relevance.shape[1]) for i in indices]))
    control = [order < chosen.sum(1, keepdim=True) for chosen in relevant]
    falls = _falls(ensemble, generated, classes, torch.stack(relevant + control)).cpu().numpy()
    count = len(relevant)
    return [
        Faithfulness(threshold, falls[i], falls[count + i], relevant[i].sum(1).numpy())
        for i, threshold in enumerate(thresholds)
    ]


def concatenate(batches: Sequence[Sequence[Faithfulness]]) -> list[Faithfulness]:
    """Join the batches of `probability_falls`: one result for each threshold, over all images."""
    return [
        Faithfulness(
            parts[0].threshold,
            np.concatenate([part.relevant for part in parts]),
            np.concatenate([part.random for part in parts]),
            np.concatenate([part.removed for part in parts]),
        )
        for parts in zip(*batches, strict=True)
    ]


def _falls(ensemble: VisCoIN, generated: Generated, classes: Tensor, removed: Tensor) -> Tensor:
    """g(x~)_c - g(x_rem)_c (S, B) for S sets of concepts `removed` (S, B, K) bool.

    Removing a concept that is not active changes nothing, so every distinct image is generated only once.
    """
    device, size = generated.support.device, len(classes)
    effective = removed & (generated.concept_maps.amax((2, 3)) > 0).cpu()
    rows = torch.cat([torch.arange(size).expand(len(removed), size).unsqueeze(2), effective.long()], 2)
    distinct, position = torch.unique(rows.flatten(0, 1), dim=0, return_inverse=True)
    falls = torch.zeros(len(distinct), device=device)
    changed = distinct[:, 1:].any(1).nonzero().squeeze(1)
    for part in changed.split(size) if len(changed) else ():
        image, kept = distinct[part, 0].to(device), (distinct[part, 1:] == 0).to(device)
        concept_maps = generated.concept_maps[image] * kept[..., None, None]
        after = _g_probabilities(ensemble, concept_maps, generated.support[image])
        before = generated.probabilities[image]
        falls[part.to(device)] = (before - after).gather(1, classes[image, None]).squeeze(1)
    return falls[position.to(device)].unflatten(0, (len(removed), size))


def _g_probabilities(ensemble: VisCoIN, concept_maps: Tensor, support: Tensor) -> Tensor:
    """Generate images and classify them by g, through f, Psi and Theta again: (B, C)."""
    images = ensemble.decode(concept_maps, support).float().clamp(-1, 1)
    return ensemble.explain(ensemble.encode(images).concept_maps).softmax(1)
