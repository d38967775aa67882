"""Amplification: multiply the activation of chosen concepts and look at the new image (Parekh et al. 2025, Sec. 4)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from viscoin.datasets import to_pixels
from viscoin.errors import Refused
from viscoin.inference.batches import evaluation, random_ranks
from viscoin.models.ensemble import Encoding, VisCoIN, amplify

FACTORS = (0.0, 0.5, 1.0, 1.5, 2.0)
TOP_CLASSES = 3


@dataclass(frozen=True)
class AmplificationResult:
    """B rows of one image each, generated with F factors on the selected concepts.

    Attributes:
        factors: (F,) multipliers; 1 is the reconstruction.
        originals: (B, H, W, 3) uint8.
        images: (B, F, H, W, 3) uint8.
        changes: (B, F, H, W) in [0, 1], mean absolute difference to the reconstruction over the colours; 1 is black
            against white.
        selection: (B, K) bool, the concepts that were amplified.
        relevance: (B, K) in [-1, 1], of each concept for `predicted`.
        f_classes, g_classes: (B, 1 + F, C) probabilities of the classes, of the original and then of the generated
            images, which pass through the whole ensemble.
    """

    factors: np.ndarray
    originals: np.ndarray
    images: np.ndarray
    changes: np.ndarray
    selection: np.ndarray
    relevance: np.ndarray
    f_classes: np.ndarray
    g_classes: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """(B,) class that g predicts for the original."""
        return self.g_classes[:, 0].argmax(1)

    @property
    def f_predicted(self) -> np.ndarray:
        """(B,) class that f predicts for the original."""
        return self.f_classes[:, 0].argmax(1)

    @property
    def f_original(self) -> np.ndarray:
        """(B,) probability of `predicted` by f for the original."""
        return self._of_predicted(self.f_classes)[:, 0]

    @property
    def g_original(self) -> np.ndarray:
        """(B,) probability of `predicted` by g for the original."""
        return self._of_predicted(self.g_classes)[:, 0]

    @property
    def f_probability(self) -> np.ndarray:
        """(B, F) probability of `predicted` by f for the generated images."""
        return self._of_predicted(self.f_classes)[:, 1:]

    @property
    def g_probability(self) -> np.ndarray:
        """(B, F) probability of `predicted` by g for the generated images."""
        return self._of_predicted(self.g_classes)[:, 1:]

    def _of_predicted(self, classes: np.ndarray) -> np.ndarray:
        return np.take_along_axis(classes, self.predicted[:, None, None], 2)[:, :, 0]

    @property
    def strongest(self) -> int:
        """Position of the factor farthest from 1."""
        return int(np.abs(self.factors - 1).argmax())

    def concepts(self, row: int) -> np.ndarray:
        """Amplified concepts of a row, the most relevant first."""
        chosen = np.flatnonzero(self.selection[row])
        return chosen[np.argsort(-self.relevance[row, chosen], kind="stable")]

    def top_classes(self, row: int, count: int = TOP_CLASSES) -> np.ndarray:
        """`predicted`, then the classes that f or g find most probable in the original or any generated image."""
        largest = np.maximum(self.f_classes[row], self.g_classes[row]).max(0)
        largest[self.predicted[row]] = np.inf
        return np.argsort(-largest, kind="stable")[:count]

    def to_dict(self, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """For each row: concepts and their relevance, mean change by factor, top classes' probabilities by factor."""
        return [self._row(row, class_names) for row in range(len(self.images))]

    def _row(self, row: int, class_names: Sequence[str]) -> dict[str, Any]:
        concepts = self.concepts(row)
        names = ["original", *(f"{factor:g}" for factor in self.factors)]
        return {
            "predicted": class_names[self.predicted[row]],
            "f_predicted": class_names[self.f_predicted[row]],
            "concepts": concepts.tolist(),
            "relevance": self.relevance[row, concepts].tolist(),
            "change": dict(zip(names[1:], self.changes[row].mean((1, 2)).tolist(), strict=True)),
            "classes": {
                class_names[c]: {
                    "f": dict(zip(names, self.f_classes[row, :, c].tolist(), strict=True)),
                    "g": dict(zip(names, self.g_classes[row, :, c].tolist(), strict=True)),
                }
                for c in self.top_classes(row)
            },
        }


def select_concepts(
    relevance: Tensor,
    threshold: float | None = None,
    top_k: int | None = None,
    indices: Sequence[int] | None = None,
) -> Tensor:
    """Choose concepts of each image: exactly one of the three ways.

    Args:
        relevance: (B, K) in [-1, 1].
        threshold: concepts with a relevance above it, in [0, 1).
        top_k: number of concepts of the highest relevance, 1 to K.
        indices: these concepts for every image, 0 to K - 1.

    Returns:
        (B, K) bool.

    Raises:
        ValueError: none or several ways given, or a value out of range.
    """
    given = {"`threshold`": threshold, "`top_k`": top_k, "`indices`": indices}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise Refused(None, None, f"give exactly one of {', '.join(given)}; got {' and '.join(named) or 'none'}")
    n_concepts = relevance.shape[1]
    if threshold is not None:
        if not 0 <= threshold < 1:
            raise Refused("threshold", threshold, "out of range", "relevance goes from 0 to below 1")
        return relevance > threshold
    if top_k is not None:
        if not 1 <= top_k <= n_concepts:
            raise Refused("top_k", top_k, "out of range", f"the ensemble has {n_concepts} concepts")
        best = relevance.argsort(dim=1, descending=True, stable=True)[:, :top_k]
        return torch.zeros_like(relevance, dtype=torch.bool).scatter_(1, best, True)
    wrong = [index for index in indices or () if not 0 <= index < n_concepts]
    if wrong or not indices:
        reason = "out of range" if wrong else "no concepts are given"
        known = f"the ensemble has {n_concepts} concepts, counted from 0"
        raise Refused("indices", ", ".join(map(str, wrong)) or None, reason, known)
    selection = torch.zeros_like(relevance, dtype=torch.bool)
    selection[:, list(indices)] = True
    return selection


def image_relevance(ensemble: VisCoIN, images: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Relevance (B, K) of the concepts of images (B, 3, H, W) for the classes that g predicts, on the CPU."""
    with evaluation(ensemble, device):
        concept_maps = ensemble.encode(images.to(device)).concept_maps
        classes = ensemble.explain(concept_maps).argmax(1)
        return ensemble.relevance(ensemble.activations(concept_maps), classes).float().cpu().clone()


def image_activations(ensemble: VisCoIN, images: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Concept activations phi (B, K) of images (B, 3, H, W), on the CPU."""
    with evaluation(ensemble, device):
        return ensemble.activations(ensemble.encode(images.to(device)).concept_maps).float().cpu().clone()


def random_selection(activations: Tensor, selection: Tensor, seed: int = 0) -> Tensor:
    """The same number of random concepts of each image as were chosen, none of them chosen: the control.

    They are sampled from the active ones, since the others cannot be amplified; all of them where there are too few.

    Args:
        activations: phi (B, K) >= 0.
        selection: (B, K) bool, the chosen concepts.

    Returns:
        (B, K) bool; row i depends on the seed and on i, not on the other rows.
    """
    drawn = torch.zeros_like(selection)
    for row, (phi, chosen) in enumerate(zip(activations, selection, strict=True)):
        order = torch.from_numpy(random_ranks(seed, row, len(chosen)))
        candidates = order[((phi > 0) & ~chosen)[order]]
        drawn[row, candidates[: int(chosen.sum())]] = True
    return drawn


def one_by_one(images: Tensor, selection: Tensor) -> tuple[Tensor, Tensor]:
    """A row for each image and selected concept: images (R, 3, H, W) and selections (R, K) of one concept each."""
    rows, concepts = selection.nonzero(as_tuple=True)
    single = torch.zeros(len(rows), selection.shape[1], dtype=torch.bool)
    single[torch.arange(len(rows)), concepts] = True
    return images[rows], single


def amplify_images(
    ensemble: VisCoIN,
    images: Tensor,
    selection: Tensor,
    factors: Sequence[float] = FACTORS,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
) -> AmplificationResult:
    """Generate every image with each factor on its selected concepts; the support Phi' stays as it is.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        selection: (B, K) bool, from `select_concepts`.
        factors: multipliers, none below 0.

    Raises:
        ValueError: no images, a factor that is negative or infinite, or a selection of another shape.
    """
    check_factors(factors)
    if not len(images) or len(images) != len(selection):
        raise ValueError(
            f"{len(selection)} selections for {len(images)} images; give at least one image, and a selection for each"
        )
    parts = [
        _amplify_batch(ensemble, images[i : i + batch_size], selection[i : i + batch_size], factors, device)
        for i in range(0, len(images), batch_size)
    ]
    return AmplificationResult(
        factors=np.array(factors, dtype=float),
        selection=selection.cpu().numpy(),
        originals=to_pixels(images),
        **{key: np.concatenate([part[key] for part in parts]) for key in parts[0]},
    )


def check_factors(factors: Sequence[float]) -> None:
    """Raise ValueError unless there are multipliers, all of them finite and none below 0."""
    if not factors or not all(0 <= factor < math.inf for factor in factors):
        raise ValueError(f"multipliers must be 0 or more, got {', '.join(map(str, factors)) or 'none'}")


def generate(ensemble: VisCoIN, code: Encoding, selection: Tensor, factor: float) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] with the selected concepts (B, K) multiplied."""
    return ensemble.edit(code, amplify(code.concept_maps, selection, factor)).float().clamp(-1, 1)


def _amplify_batch(
    ensemble: VisCoIN, images: Tensor, selection: Tensor, factors: Sequence[float], device: torch.device | str
) -> dict[str, np.ndarray]:
    with evaluation(ensemble, device):
        code = ensemble.encode(images.to(device, memory_format=torch.channels_last))
        logits = ensemble.explain(code.concept_maps)
        selection = selection.to(logits.device)
        rebuilt = generate(ensemble, code, selection, 1.0)
        generated = [rebuilt if factor == 1 else generate(ensemble, code, selection, factor) for factor in factors]
        codes = [ensemble.encode(result) for result in generated]
        f_logits = [code.logits, *(new.logits for new in codes)]
        g_logits = [logits, *(ensemble.explain(new.concept_maps) for new in codes)]
        values = {
            "changes": torch.stack([(result - rebuilt).abs().mean(1) / 2 for result in generated], 1),
            "relevance": ensemble.relevance(ensemble.activations(code.concept_maps), logits.argmax(1)),
            "f_classes": torch.stack(f_logits, 1).float().softmax(2),
            "g_classes": torch.stack(g_logits, 1).float().softmax(2),
        }
        arrays = {key: value.cpu().numpy() for key, value in values.items()}
        return arrays | {"images": np.stack([to_pixels(result) for result in generated], 1)}
