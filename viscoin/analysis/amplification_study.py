"""One look at what concepts do: chosen concepts of some images amplified, beside random ones, with their curve."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from viscoin.analysis import amplification
from viscoin.analysis.amplification import AmplificationResult, amplify_images
from viscoin.analysis.amplification_curve import (
    LambdaCurve,
    Reference,
    curve_factors,
    kept_reconstructions,
    lambda_curve,
)
from viscoin.datasets import load_dataset
from viscoin.datasets.download import no_downloads
from viscoin.errors import Refused, reason_of
from viscoin.inference.loading import Pictures, Subject

logger = logging.getLogger(__name__)
SWEEP_ROWS = 6  # that a smooth sweep shows


@dataclass(frozen=True)
class Choice:
    """Which concepts to amplify: by one of these."""

    threshold: float | None = None
    top_k: int | None = None
    indices: Sequence[int] | None = None


@dataclass(frozen=True)
class AmplificationStudy:
    """What `study_amplification` finds.

    Attributes:
        subject: the ensemble.
        pictures: a row each; with `one_by_one`, one for each image and concept.
        selections: "chosen", and "random" with a control: concepts (B, K), bool.
        results, curves: by the same names; no curves unless asked for.
        seed: of the random concepts.
        followed: the curve of the chosen concepts, at the multipliers drawn at least; None where it is not known,
            because there are too few validation images, or no chosen concept.
    """

    subject: Subject
    pictures: Pictures
    selections: dict[str, Tensor]
    results: dict[str, AmplificationResult]
    curves: dict[str, LambdaCurve] = field(default_factory=dict)
    seed: int = 0
    followed: LambdaCurve | None = None

    @property
    def unreliable(self) -> list[float]:
        """The multipliers drawn that lie outside of the reliable range."""
        if self.followed is None:
            return []
        low, high = self.followed.reliable_range or (1.0, 1.0)
        return [factor for factor in self.results["chosen"].factors.tolist() if not low <= factor <= high]

    @property
    def warning(self) -> str | None:
        """What to know about the multipliers drawn, in a line."""
        if self.followed is None or not self.unreliable:
            return None
        span = self.followed.reliable_range
        known = "no other than 1 is reliable" if span is None else f"the reliable range is {span[0]:g} to {span[1]:g}"
        return f"drawn in grey: multipliers {', '.join(f'{factor:g}' for factor in self.unreliable)}; {known}"

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers; labels only where they are known."""
        names, labels = self.subject.model.class_names, self.pictures.labels
        factors = self.results["chosen"].factors.tolist()
        numbers: dict[str, Any] = {"seed": self.seed, "multipliers": factors, "images": self.pictures.names}
        if labels is not None:
            numbers["labels"] = [names[label] for label in labels]
        if self.followed is not None:
            numbers |= {"reliable_range": self.followed.reliable_range, "unreliable": self.unreliable}
        numbers |= {kind: result.to_dict(names) for kind, result in self.results.items()}
        if self.curves:
            numbers["curve"] = {kind: one.to_dict() for kind, one in self.curves.items()}
        return numbers

    def sweep(self, factors: Sequence[float]) -> AmplificationResult:
        """The first rows with many multipliers, for a moving picture."""
        rows, subject = slice(SWEEP_ROWS), self.subject
        selection = self.selections["chosen"][rows]
        return amplify_images(subject.model, self.pictures.images[rows], selection, factors, device=subject.device)


def study_amplification(
    subject: Subject,
    pictures: Pictures,
    choice: Choice,
    factors: Sequence[float] = amplification.FACTORS,
    *,
    one_by_one: bool = False,
    control: bool = True,
    curve: bool = False,
    batch_size: int = 64,
    seed: int = 0,
) -> AmplificationStudy:
    """Amplify the chosen concepts of some images.

    Args:
        subject: an ensemble.
        factors: multipliers, 0 or more.
        one_by_one: a row for each concept, instead of all of an image together.
        control: the same for as many random concepts.
        curve: follow the effect from 0 to the largest multiplier; needs the validation images of the dataset. Without
            it they say how far multipliers are reliable, if they are here.

    Raises:
        Refused: no concept is chosen with `one_by_one`.
        ValueError: as `select_concepts`.
    """
    model, device, images = subject.model, subject.device, pictures.images
    relevance = amplification.image_relevance(model, images, device)
    selection = amplification.select_concepts(relevance, choice.threshold, choice.top_k, choice.indices)
    if one_by_one:
        pictures, selection = _one_by_one(pictures, selection)
        images = pictures.images
    selections = {"chosen": selection}
    if control:
        phi = amplification.image_activations(model, images, device)
        selections["random"] = amplification.random_selection(phi, selection, seed)
    results = {
        kind: amplify_images(model, images, chosen, factors, device, batch_size) for kind, chosen in selections.items()
    }
    curves = _curves(subject, images, selections, factors, curve, batch_size, seed)
    followed = curves.get("chosen")
    return AmplificationStudy(subject, pictures, selections, results, curves if curve else {}, seed, followed)


def _one_by_one(pictures: Pictures, selection: Tensor) -> tuple[Pictures, Tensor]:
    rows, concepts = selection.nonzero(as_tuple=True)
    if not len(rows):
        raise Refused("one_by_one", None, "no concept is chosen in any image", "choose by a lower threshold")
    names = [f"{pictures.names[row]}-concept-{concept}" for row, concept in zip(rows.tolist(), concepts.tolist())]
    labels = None if pictures.labels is None else pictures.labels[rows.numpy()]
    images, selection = amplification.one_by_one(pictures.images, selection)
    return Pictures(images, names, labels), selection


def _curves(
    subject: Subject,
    images: Tensor,
    selections: dict[str, Tensor],
    factors: Sequence[float],
    whole: bool,
    batch_size: int,
    seed: int,
) -> dict[str, LambdaCurve]:
    """The lambda curve of each kind of selection that names a concept, or that of the chosen ones at these factors."""
    if not whole and not selections["chosen"].any():
        return {}
    reference = _reference(subject, batch_size, seed, needed=whole)
    if reference is None:
        return {}
    factors = [*factors, *curve_factors(max(factors))] if whole else factors
    return {
        kind: lambda_curve(subject.model, images, selection, reference, factors, subject.device, batch_size)
        for kind, selection in selections.items()
        if kind == "chosen" or (whole and selection.any())
    }


def _reference(subject: Subject, batch_size: int, seed: int, needed: bool) -> Reference | None:
    """What is usual among reconstructions of validation images; None, and a warning, where they are not here."""
    try:
        with nullcontext() if needed else no_downloads():
            validation = load_dataset(subject.config.name, "validation", subject.config)
        return kept_reconstructions(subject.model, validation, subject.device, batch_size, seed)
    except (ValueError, OSError) as error:
        if needed:
            raise
        logger.warning("how far multipliers are reliable is not known: %s", reason_of(error))
        return None
