"""Do concepts know the attributes that the images were made from?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stylegan2_ada.together import collect
from viscoin.datasets import ImageDataset
from viscoin.inference.batches import TooFewImages, choose_images, evaluation, own_batches
from viscoin.models.ensemble import VisCoIN
from viscoin.statistics.bootstrap import Estimate, bootstrap
from viscoin.statistics.measures import auroc

RAREST = 0.05
RESAMPLES = 500


@dataclass(frozen=True)
class AttributeScore:
    """The concept that detects an attribute best on validation images, and its AUROC on test images.

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
        TooFewImages: no attribute is frequent enough.
    """
    frequent = _frequent(attributes_validation) & _frequent(attributes_test)
    if not frequent.any():
        raise TooFewImages(
            f"no attribute has at least {RAREST:.0%} of each value in {len(attributes_validation)} validation and "
            f"{len(attributes_test)} test images; take more images"
        )
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


def concept_activations(
    ensemble: VisCoIN, dataset: ImageDataset, indices: np.ndarray, device: torch.device | str, batch_size: int
) -> np.ndarray:
    """phi (N, K) of the chosen images."""
    with evaluation(ensemble, device):
        rows = collect(
            ensemble.activations(ensemble.encode(images).concept_maps).cpu().numpy()
            for images, _ in own_batches(dataset, indices, batch_size, device, "concept activations")
        )
    return np.concatenate(rows)


def group_of(attribute: str) -> str:
    """The group that an attribute belongs to: "beak" for "beak: hooked"."""
    return attribute.partition(":")[0]


class PairedAreas:
    """Areas under the ROC curves of scores (N, A), each for the truth (N, A) bool of its own column, to be resampled.

    As `measures.auroc`, but fast: ranks are taken once, and stay ranks when images are repeated or left out.
    """

    def __init__(self, scores: np.ndarray, truth: np.ndarray) -> None:
        self.ranks = np.stack([np.unique(column, return_inverse=True)[1] for column in scores.T], 1)
        self.truth = truth

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Areas (A,) over images (M,); NaN where all of them have the same truth."""
        ranks, truth = self.ranks[images], self.truth[images]
        width, columns = int(self.ranks.max()) + 1, ranks.shape[1]
        places = ranks + width * np.arange(columns)
        positive, negative = (
            np.bincount(places[chosen], minlength=width * columns).reshape(columns, width) for chosen in (truth, ~truth)
        )
        wins = (positive * (negative.cumsum(1) - negative / 2)).sum(1)
        pairs = positive.sum(1) * negative.sum(1)
        return np.divide(wins, pairs, out=np.full(columns, np.nan), where=pairs > 0)

    def estimate(self, statistic: Callable[[np.ndarray], float | np.floating], seed: int) -> Estimate:
        """A statistic of the areas, with its interval over images."""
        images = np.arange(len(self.ranks))
        return bootstrap(images, lambda drawn: float(statistic(self(drawn))), seed=seed, resamples=RESAMPLES)

    def column(self, index: int) -> "PairedAreas":
        return PairedAreas(self.ranks[:, [index]], self.truth[:, [index]])


def best_other(
    scores: Sequence[AttributeScore], activations: np.ndarray, attributes: np.ndarray, attribute_names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """The attribute of another group that each score's concept detects best: its column (S,), and its direction (S,).

    The column is -1 where no attribute of another group is there in some images and not in others.

    Args:
        activations, attributes: (N, K) and (N, A) of validation images.
    """
    areas = auroc(activations[:, [score.concept for score in scores]], attributes) - 0.5  # (A, S)
    groups = np.array([group_of(name) for name in attribute_names])
    own = np.array([group_of(score.name) for score in scores])
    strength = np.where(groups[:, None] == own, -1, np.nan_to_num(np.abs(areas), nan=-1))
    best = strength.argmax(0)
    direction = np.where(areas[best, np.arange(len(scores))] >= 0, 1, -1)
    return np.where(strength.max(0) >= 0, best, -1), direction


def _frequent(attributes: np.ndarray) -> np.ndarray:
    share = attributes.mean(0)
    return (share >= RAREST) & (share <= 1 - RAREST)
