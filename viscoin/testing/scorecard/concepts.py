"""Concept functions as targets of attribution, and the concept of each that stands for an attribute."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from viscoin.attribution.targets import ConceptActivation, Observed, Target
from viscoin.datasets import ImageDataset
from viscoin.inference.batches import evaluation, image_batches
from viscoin.models.classifier import Classifier
from viscoin.models.ensemble import VisCoIN
from viscoin.statistics.measures import auroc
from viscoin.testing.baselines import CONCEPTS, UNTRAINED, fit_rivals, untrained
from viscoin.testing.rivals import FITS, Rival
from viscoin.testing.scorecard.scenes import Cases
from viscoin.testing.truth.attributes import RAREST


@dataclass(frozen=True)
class ConceptFunction:
    """K concepts: a target whose scores (B, K) are their activations, and their own maps.

    Attributes:
        own: images (B, 3, H, W) -> (B, K, h, w): what the function itself has at each place, of which the activation is
            the mean or the maximum.
        differentiable: whether gradients of the activations with respect to the image exist.
        signed: whether its own maps may be below zero.
    """

    target: Target
    own: Callable[[Tensor], Tensor]
    differentiable: bool = True
    signed: bool = False


class RivalActivation:
    """Activations of a rival that reads the last map of f; of a signed one, first K concepts, then their opposites."""

    noun, nouns = "concept", "concepts"

    def __init__(self, classifier: Classifier, rival: Rival) -> None:
        self.classifier, self.rival = classifier, rival

    @property
    def model(self) -> nn.Module:
        return self.classifier

    @property
    def n_scores(self) -> int:
        channels, height, width = self.classifier.feature_shapes[-1]
        return self.places_of(torch.zeros(1, channels, height, width)).shape[1]

    def of(self, model: Any) -> "RivalActivation":
        return RivalActivation(model, self.rival)

    def observe(self, images: Tensor) -> Observed:
        maps = self.classifier.features(images).maps
        return Observed(self.rival.pool(self.places_of(maps[-1])), dict(enumerate(maps)))

    def scores(self, images: Tensor) -> Tensor:
        return self.observe(images).scores

    def own(self, images: Tensor) -> Tensor:
        return self.places_of(self.classifier.features(images).maps[-1])

    def places_of(self, maps: Tensor) -> Tensor:
        found = self.rival.places(maps)
        return torch.cat([found, -found], 1) if self.rival.signed else found


def concept_functions(
    ensemble: VisCoIN,
    validation: ImageDataset,
    names: Sequence[str],
    device: torch.device | str = "cpu",
    batch_size: int = 128,
    seed: int = 0,
) -> dict[str, ConceptFunction]:
    """The concepts of an ensemble, and the rivals that are named, fitted to f on validation images, by name."""
    found = {CONCEPTS: _of_ensemble(ensemble)}
    wanted, indices = [name for name in FITS if name in names], np.arange(len(validation))
    for name, rival in fit_rivals(ensemble, validation, indices, device, batch_size, seed, wanted).items():
        target = RivalActivation(ensemble.classifier, rival)
        found[name] = ConceptFunction(target, target.own, rival.differentiable, rival.signed)
    if UNTRAINED in names:
        found[UNTRAINED] = _of_ensemble(untrained(ensemble, seed))
    return found


def _of_ensemble(ensemble: VisCoIN) -> ConceptFunction:
    return ConceptFunction(ConceptActivation(ensemble), lambda images: ensemble.concept_maps(images)[1])


def standing(activations: np.ndarray, attributes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The concept that is strongest where an attribute is, as against where it is not: its index (A,) and AUROC (A,).

    The highest AUROC, not that furthest from 0.5: a concept that is weak where the attribute is has no place there.

    Args:
        activations, attributes: (N, K) and (N, A) of validation images.

    Returns:
        -1 and NaN for attributes that less than 5 % of the images have, or lack.
    """
    share = attributes.mean(0)
    frequent = (share >= RAREST) & (share <= 1 - RAREST)
    concepts, areas = np.full(len(share), -1), np.full(len(share), np.nan)
    found = auroc(activations, attributes[:, frequent])
    concepts[frequent], areas[frequent] = found.argmax(1), found.max(1)
    return concepts, areas


def activations_of(
    function: ConceptFunction, dataset: ImageDataset, device: torch.device | str, batch_size: int, title: str
) -> np.ndarray:
    """Activations (N, K) on all images of a dataset."""
    with evaluation(function.target.model, device):
        return np.concatenate([
            function.target.scores(images).float().cpu().numpy()
            for images, _ in image_batches(dataset, np.arange(len(dataset)), batch_size, device, title)
        ])  # fmt: skip


def concepts_in_question(cases: Cases, concepts: np.ndarray, areas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each scene the attribute (N,) that its part in question shows and whose concept is surest, and this (N,).

    -1 where none stands for it.

    Args:
        concepts, areas: (A,) of `standing`.
    """
    names = cases.world.attributes
    of_part = np.array([[cases.world.part_of(name) == part for name in names] for part in cases.parts])
    sure = np.where(of_part & cases.shown & (concepts >= 0), areas, -np.inf)
    attributes = np.where(np.isfinite(sure.max(1)), sure.argmax(1), -1)
    return attributes, np.where(attributes >= 0, concepts[attributes], -1)
