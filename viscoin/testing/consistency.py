"""Consistency: does a concept change every image in the same, recognisable way (Parekh et al. 2025, Sec. 4)?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from stylegan2_ada.together import collect, own
from viscoin.datasets import ImageDataset
from viscoin.inference.batches import TooFewImages, evaluation, progress
from viscoin.models.ensemble import VisCoIN, amplify
from viscoin.statistics.bootstrap import Estimate, bootstrap

FACTORS = (2.0, 3.0)  # lambda, in units of the largest activation of the concept in the data
IMAGES, FEWEST_IMAGES = 100, 20  # most activating images of a concept: as in the paper; the fewest allowed
CONCEPTS = 64
FOLDS = 5
COSTS = (0.001, 0.01, 0.1, 1.0, 10.0)  # C of the support vector machine
SMALLEST = 1e-12  # a concept that is barely active may be zero in a batch of another size
FEATURES = "mean over positions of the first of the three maps of f (second stage of a ResNet)"


@dataclass(frozen=True)
class ConceptConsistency:
    """Shares of right answers for one concept, one for each factor, on the `test` images of the `images` it has."""

    concept: int
    accuracy: tuple[float, ...]
    images: int
    test: int


@dataclass(frozen=True)
class Consistency:
    """Consistency CC of the tested concepts; chance is 0.5.

    `dead` counts concepts that no image activates, `rare` those that fewer than FEWEST_IMAGES do; both are left out.
    `untested` counts the others that were not in the sample.
    """

    factors: tuple[float, ...]
    concepts: list[ConceptConsistency]
    dead: int
    rare: int
    untested: int
    seed: int

    @property
    def accuracy(self) -> np.ndarray:
        """(tested concepts, factors)."""
        return np.array([item.accuracy for item in self.concepts])

    def estimates(self) -> dict[str, Estimate]:
        """Mean over concepts for each factor, with its interval over concepts."""
        return {
            f"{factor:g}": bootstrap(column, seed=self.seed, unit="concepts")
            for factor, column in zip(self.factors, self.accuracy.T, strict=True)
        }

    def to_dict(self) -> dict[str, Any]:
        """Mean and sd over concepts by factor, what was left out, and every concept."""
        by_factor = {
            f"{factor:g}": {"mean": float(column.mean()), "sd": float(column.std()), "n": len(column)}
            for factor, column in zip(self.factors, self.accuracy.T, strict=True)
        }
        left_out = {"dead": self.dead, "rare": self.rare, "untested": self.untested}
        protocol = {"features": FEATURES, "fewest_images": FEWEST_IMAGES, "chance": 0.5, "seed": self.seed}
        return {**by_factor, **left_out, **protocol, "by_concept": [vars(item) for item in self.concepts]}


def test_consistency(
    ensemble: VisCoIN,
    dataset: ImageDataset,
    activations: np.ndarray,
    indices: np.ndarray,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
    seed: int = 0,
    concepts: int | None = CONCEPTS,
    images: int = IMAGES,
    factors: Sequence[float] = FACTORS,
) -> Consistency:
    """CC of Parekh et al. 2025: can a linear SVM separate images with a strong concept k from the same without?

    For each concept, its most activating images are generated with phi_k = lambda max phi_k (the concept map keeps its
    shape and is scaled) and with phi_k = 0, by its direction too where the ensemble has directions. Features are those of f's second stage, averaged over positions. Random
    halves of the images train and test the SVM, with both versions of an image in the same half; C is chosen by
    cross-validation on the training half, its folds divided by images as well.

    Args:
        activations: phi (N, K) >= 0 of the images with these `indices` (N,) in the dataset.
        concepts: size of a random sample of the concepts; None or more than there are: all, as published. The mean
            over a random sample estimates that over all without bias; that over the most important ones would not.
        images: most activating images of each concept; fewer where fewer activate it.

    Raises:
        TooFewImages: no concept is activated by FEWEST_IMAGES of them.
        ValueError: `images` is below FEWEST_IMAGES.
    """
    if images < FEWEST_IMAGES:
        raise ValueError(f"consistency needs at least {FEWEST_IMAGES} images of a concept, not {images}")
    active = (activations > 0).sum(0)
    testable = np.flatnonzero(active >= FEWEST_IMAGES)
    if not len(testable):
        raise TooFewImages(
            f"consistency needs {FEWEST_IMAGES} images that activate one concept; of the {len(activations)} images "
            f"at most {active.max()} do"
        )
    chosen = np.sort(np.random.default_rng(seed).permutation(testable)[:concepts])

    def tested(concept: int) -> ConceptConsistency:
        strongest = np.argsort(-activations[:, concept], kind="stable")[: min(images, active[concept])]
        targets = [*(factor * float(activations[:, concept].max()) for factor in factors), 0.0]
        *strong, without = _generated_features(
            ensemble, dataset, indices[strongest], concept, targets, device, batch_size
        )
        train, test = _halves(len(strongest), seed, concept)
        accuracy = tuple(separability(features, without, train, test) for features in strong)
        bar.update()
        return ConceptConsistency(concept, accuracy, len(strongest), len(test))

    mine = own(chosen.tolist())
    with evaluation(ensemble, device), progress(len(mine), "consistency", "concept") as bar:
        found = collect(tested(concept) for concept in mine)
    dead = int((active == 0).sum())
    rare = len(active) - dead - len(testable)
    return Consistency(tuple(factors), found, dead, rare, len(testable) - len(chosen), seed)


def separability(strong: np.ndarray, without: np.ndarray, train: np.ndarray, test: np.ndarray) -> float:
    """Share of test features that a linear SVM assigns to the right one of two kinds.

    Args:
        strong, without: features (n, D) of two versions of the same n images.
        train, test: indices of images.
    """
    model = make_pipeline(StandardScaler(), SVC(kernel="linear"))
    search = GridSearchCV(model, {"svc__C": COSTS}, cv=GroupKFold(min(FOLDS, len(train))))
    search.fit(*_both(strong[train], without[train]), groups=np.tile(np.arange(len(train)), 2))
    return float(search.score(*_both(strong[test], without[test])))


def _both(strong: np.ndarray, without: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features (2n, D) and kinds (2n,)."""
    return np.concatenate([strong, without]), np.repeat([1, 0], [len(strong), len(without)])


def _halves(n: int, seed: int, concept: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng([seed, concept]).permutation(n)
    return order[: n // 2], order[n // 2 :]


def _generated_features(
    ensemble: VisCoIN,
    dataset: ImageDataset,
    indices: np.ndarray,
    concept: int,
    targets: Sequence[float],
    device: torch.device | str,
    batch_size: int,
) -> list[np.ndarray]:
    """For each target value of phi_k, the pooled features (n, D) of the images generated with it."""
    found: list[list[np.ndarray]] = [[] for _ in targets]
    only = torch.zeros(ensemble.n_concepts, dtype=torch.bool, device=device)
    only[concept] = True
    for images, _ in dataset.batches(batch_size, indices):
        code = ensemble.encode(images.to(device, memory_format=torch.channels_last))
        phi = ensemble.activations(code.concept_maps)[:, concept, None, None, None].clamp_min(SMALLEST)
        for features, target in zip(found, targets, strict=True):
            generated = ensemble.edit(code, amplify(code.concept_maps, only, target / phi))
            features.append(ensemble.classifier.pooled(generated.float().clamp(-1, 1), 0).cpu().numpy())
    return [np.concatenate(features) for features in found]
