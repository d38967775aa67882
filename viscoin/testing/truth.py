"""Do concepts know the attributes that the images were made from?"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from viscoin.datasets import ImageDataset
from viscoin.models.ensemble import VisCoIN
from viscoin.testing.inference import choose_images, evaluation, image_batches
from viscoin.testing.measures import auroc

RAREST = 0.05


@dataclass(frozen=True)
class AttributeScore:
    """The concept that tells an attribute best on validation images, and its AUROC on test images.

    `direction` is +1 if the concept is stronger where the attribute is present, -1 if it is weaker.
    """

    name: str
    concept: int
    direction: int
    auroc: float
    auroc_validation: float


@dataclass(frozen=True)
class AttributeResult:
    """One score for each attribute with enough examples of both values."""

    scores: list[AttributeScore]
    left_out: list[str]

    @property
    def mean_auroc(self) -> float:
        return float(np.mean([score.auroc for score in self.scores]))

    def to_dict(self) -> dict[str, Any]:
        return {
            "mean_auroc": self.mean_auroc,
            "share_above_0.9": float(np.mean([score.auroc > 0.9 for score in self.scores])),
            "n_attributes": len(self.scores),
            "table": [vars(score) for score in self.scores],
        }


def attribute_scores(
    activations_validation: np.ndarray,
    attributes_validation: np.ndarray,
    activations_test: np.ndarray,
    attributes_test: np.ndarray,
    attribute_names: Sequence[str],
) -> AttributeResult:
    """Best single concept of each attribute; concept and direction are chosen on validation, measured on test.

    Args:
        activations_*: (N, K).
        attributes_*: (N, A) bool.
        attribute_names: A names. Attributes with less than 5 % of either value, in either split, are left out.

    Raises:
        ValueError: no attribute is frequent enough.
    """
    frequent = _frequent(attributes_validation) & _frequent(attributes_test)
    if not frequent.any():
        raise ValueError(f"no attribute has at least {RAREST:.0%} of each value in validation and test images")
    validation = auroc(activations_validation, attributes_validation[:, frequent])
    test = auroc(activations_test, attributes_test[:, frequent])
    best = np.abs(validation - 0.5).argmax(1)
    scores = []
    for row, (attribute, concept) in enumerate(zip(np.flatnonzero(frequent), best, strict=True)):
        direction = 1 if validation[row, concept] >= 0.5 else -1
        values = [0.5 + direction * (table[row, concept] - 0.5) for table in (test, validation)]
        name = attribute_names[int(attribute)]
        scores.append(AttributeScore(name, int(concept), direction, float(values[0]), float(values[1])))
    return AttributeResult(scores, [name for name, kept in zip(attribute_names, frequent, strict=True) if not kept])


def test_attributes(
    ensemble: VisCoIN,
    validation: ImageDataset,
    test: ImageDataset,
    device: torch.device | str = "cpu",
    batch_size: int = 128,
    seed: int = 0,
    limit: int | None = None,
) -> AttributeResult:
    """`attribute_scores` of an ensemble on datasets with ground truth."""
    chosen = [(dataset, choose_images(len(dataset), limit, seed)) for dataset in (validation, test)]
    activations = [concept_activations(ensemble, *images, device, batch_size) for images in chosen]
    attributes = [dataset.attributes[indices] for dataset, indices in chosen]
    return attribute_scores(activations[0], attributes[0], activations[1], attributes[1], test.attribute_names)


def untrained(ensemble: VisCoIN, seed: int = 0) -> VisCoIN:
    """A copy of the ensemble with a freshly initialised Psi: the baseline for what the architecture gives for free."""
    copy = deepcopy(ensemble)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in copy.concept_extractor.modules():
            getattr(module, "reset_parameters", lambda: None)()
    return copy


def concept_activations(
    ensemble: VisCoIN, dataset: ImageDataset, indices: np.ndarray, device: torch.device | str, batch_size: int
) -> np.ndarray:
    """phi (N, K) of the chosen images."""
    with evaluation(ensemble, device):
        rows = [
            ensemble.activations(ensemble.encode(images).concept_maps).cpu().numpy()
            for images, _ in image_batches(dataset, indices, batch_size, device, "concept activations")
        ]
    return np.concatenate(rows)


def _frequent(attributes: np.ndarray) -> np.ndarray:
    share = attributes.mean(0)
    return (share >= RAREST) & (share <= 1 - RAREST)
