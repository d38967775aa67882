"""Every measure of an ensemble, chosen by name, each with its interval."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from viscoin.datasets import ImageDataset
from viscoin.errors import Refused
from viscoin.inference.batches import TooFewImages
from viscoin.models.classifier import Classifier
from viscoin.models.ensemble import VisCoIN
from viscoin.models.judge import Judge
from viscoin.models.no_generator import REASON
from viscoin.models.perceptual import find_perceptual
from viscoin.statistics.bootstrap import Estimate
from viscoin.testing.baselines import Comparison, choose_rivals, compare
from viscoin.testing.consistency import CONCEPTS, IMAGES, Consistency, test_consistency
from viscoin.testing.drawing import DrawingResult, test_drawing
from viscoin.testing.drawing.result import EDITS
from viscoin.testing.drawing.result import IMAGES as DRAWN
from viscoin.testing.ensemble import EnsembleResult, Perceptual, test_ensemble
from viscoin.testing.image_features import FeatureNetwork, find_features
from viscoin.testing.surrogate import SurrogateResult, test_surrogates
from viscoin.testing.truth import TruthResult, test_truth
from viscoin.testing.truth.result import SCENES

logger = logging.getLogger(__name__)

# The measure that each section of the results belongs to; the Frechet distance is a measure of its own.
SECTIONS = {
    "classifier": "accuracy",
    "ensemble": "accuracy",
    "reconstruction": "reconstruction",
    "faithfulness": "faithfulness",
    "surrogate": "surrogate",
    "consistency": "consistency",
    "kept_concepts": "kept",
    "concepts": "concepts",
    "attributes": "truth",
    "dose_response": "drawing",
    "surgery": "drawing",
}
MEASURES = (
    "accuracy", "reconstruction", "fid", "faithfulness", "surrogate", "consistency", "kept", "concepts", "drawing",
    "truth",
)  # fmt: skip

OF_PICTURES = ("reconstruction", "fid", "faithfulness", "consistency", "drawing")  # that a generator draws
COMPARED = ("surrogate", "truth")  # the measures that need validation images, and that rivals are measured by

Result = TypeVar("Result")


@dataclass(frozen=True)
class Extent:
    """How much is measured: random samples of `limit` images (None: all) and, of these, of `scenes` to intervene on.

    Of these `drawn` are drawn with single concepts multiplied, and about `edits` times by the concept of an attribute.

    `consistency_concepts` and `consistency_images` are those of `test_consistency`.
    """

    limit: int | None = None
    consistency_concepts: int | None = CONCEPTS
    consistency_images: int = IMAGES
    scenes: int = SCENES
    drawn: int = DRAWN
    edits: int = EDITS


FULL, FAST = Extent(), Extent(limit=200, consistency_concepts=8, consistency_images=40, scenes=50, drawn=60, edits=70)


@dataclass(frozen=True)
class ViscoinMeasures:
    """The `wanted` measures that could be taken; `left_out` says why for each of the others."""

    ensemble: EnsembleResult
    surrogate: SurrogateResult | None
    consistency: Consistency | None
    truth: TruthResult | None
    drawing: DrawingResult | None
    wanted: tuple[str, ...]
    left_out: dict[str, str]

    def estimates(self) -> dict[str, Estimate]:
        """Every measure with its 95 % interval by dotted name. Takes seconds, as it resamples."""
        found = self.ensemble.estimates(fid="fid" in self.wanted)
        if self.surrogate is not None:
            found |= {f"surrogate.{key}": estimate for key, estimate in self.surrogate.estimates().items()}
        if self.consistency is not None:
            found |= {f"consistency.{key}": estimate for key, estimate in self.consistency.estimates().items()}
        if self.truth is not None:
            found |= {f"attributes.{key}": estimate for key, estimate in self.truth.estimates().items()}
        if self.drawing is not None:
            found |= self.drawing.estimates()
        return {key: estimate for key, estimate in found.items() if measure_of(key) in self.wanted}

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers in sections."""
        numbers = self.ensemble.to_dict()
        if self.surrogate is not None:
            numbers["surrogate"] = self.surrogate.to_dict()
        if self.consistency is not None:
            numbers["consistency"] = self.consistency.to_dict()
        if self.truth is not None:
            numbers["attributes"] = self.truth.to_dict()
        if self.drawing is not None:
            numbers |= self.drawing.to_dict()
        unwanted = {name for name, measure in SECTIONS.items() if measure not in self.wanted}
        if "fid" in self.wanted:
            unwanted.discard("reconstruction")
        kept = {name: section for name, section in numbers.items() if name not in unwanted}
        return {**kept, "left_out": self.left_out} if self.left_out else kept


def measure_of(key: str) -> str:
    """The measure that a value with this dotted name belongs to."""
    return "fid" if key == "reconstruction.fid" else SECTIONS[key.partition(".")[0]]


def with_seed(estimates: dict[str, Estimate], seed: int) -> dict[str, Any]:
    """Value, low, high, n, unit and seed of every estimate, for a file."""
    return {key: {**asdict(estimate), "seed": seed} for key, estimate in estimates.items()}


def find_comparisons(
    classifier: Classifier, features: str, inception_weights: Path | None, perceptual: str, device: torch.device | str
) -> tuple[FeatureNetwork, tuple[Perceptual, str] | None]:
    """The network of the FID, and the perceptual distance; None means that on the maps of f, which are there anyway.

    Args:
        features, perceptual: as `find_features` and `find_perceptual` take them.
    """
    network = find_features(features, classifier, inception_weights)
    found = find_perceptual(perceptual, classifier, device)
    if found is None or found[1] == "classifier":
        return network, None
    distance, name = found
    return network, (lambda rebuilt, images, *maps: distance(rebuilt, images), name)


def measure_viscoin(
    ensemble: VisCoIN,
    dataset: ImageDataset,
    validation: ImageDataset | None = None,
    measures: Sequence[str] | None = None,
    extent: Extent = FULL,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
    seed: int = 0,
    perceptual: tuple[Perceptual, str] | None = None,
    features: FeatureNetwork | None = None,
    rivals: Sequence[str] | None = None,
    judge: Judge | None = None,
) -> ViscoinMeasures:
    """Take all measures of an ensemble on a dataset, or those that are named.

    Args:
        validation: images to fit surrogates and rivals to, to choose the concept of each attribute on, and to learn
            from what is usual of concepts.
        measures: some of MEASURES; by default all that the dataset has truth and enough images for.
        perceptual, features: see `test_ensemble`.
        rivals: as `choose_rivals` takes them; `surrogate` and `truth` compare the concepts with these.
        judge: what sees attributes in images that are drawn.

    Raises:
        ValueError: unknown measure or rival, or a measure that was asked for and needs more images than there are.
    """
    chosen, wanted = choose_rivals(rivals), _wanted(measures, dataset, validation)
    left_out: dict[str, str] = {}
    if not ensemble.draws:
        left_out = _of_pictures(wanted, asked=measures is not None)
        wanted = tuple(name for name in wanted if name not in left_out)

    if not dataset.labelled and "kept" in wanted:
        reason = "images without classes have no accuracy to measure"
        if measures is not None:
            raise Refused("measures", "kept", reason, "leave it out")
        logger.warning("left out: kept: %s", reason)
        left_out["kept"] = reason

    def attempt(name: str, take: Callable[[], Result]) -> Result | None:
        if name not in wanted:
            return None
        try:
            return take()
        except TooFewImages as error:
            if measures is not None:
                raise Refused("measures", name, str(error)) from error
            logger.warning("left out: %s", error)
            left_out[name] = str(error)
            return None

    result = test_ensemble(
        ensemble, dataset, device, batch_size, seed, extent.limit, None if "faithfulness" in wanted else 0, perceptual,
        features,
    )  # fmt: skip
    attempt("fid", result.check_distance)

    @cache
    def compared() -> Comparison:
        return compare(ensemble, _given(validation), dataset, device, batch_size, seed, extent.limit, chosen)

    surrogate = attempt(
        "surrogate",
        lambda: test_surrogates(ensemble, _given(validation), dataset, compared(), device, batch_size, seed),
    )
    consistency = attempt(
        "consistency",
        lambda: test_consistency(
            ensemble, dataset, result.activations, result.indices, device, batch_size, seed,
            extent.consistency_concepts, extent.consistency_images,
        ),
    )  # fmt: skip
    truth = attempt(
        "truth",
        lambda: test_truth(
            ensemble, _given(validation), dataset, device, batch_size, seed, extent.limit, extent.scenes, compared()
        ),
    )
    drawing = attempt(
        "drawing",
        lambda: test_drawing(
            ensemble, validation or dataset, dataset, result.activations, result.indices, judge, device, batch_size,
            seed, extent.limit, extent.drawn, extent.edits,
        ),
    )  # fmt: skip
    for name, reason in drawing.left_out.items() if drawing is not None else ():
        logger.warning("left out: %s: %s", name, reason)
        left_out[name] = reason
    if not ensemble.draws and "truth" in wanted:
        logger.warning("left out: what edits change in images, of truth: %s", REASON)
    taken = tuple(name for name in wanted if name not in left_out)
    return ViscoinMeasures(result, surrogate, consistency, truth, drawing, taken, left_out)


def _wanted(measures: Sequence[str] | None, dataset: ImageDataset, validation: ImageDataset | None) -> tuple[str, ...]:
    if measures is None:
        possible = {"truth": dataset.has_truth, "surrogate": validation is not None}
        return tuple(name for name in MEASURES if possible.get(name, True))
    unknown = [name for name in measures if name not in MEASURES]
    if unknown:
        raise Refused("measures", unknown[0], "there is no such measure", f"choose some of {', '.join(MEASURES)}")
    if "truth" in measures and not dataset.has_truth:
        raise Refused("measures", "truth", f"dataset {dataset.name!r} has no ground truth")
    return tuple(name for name in MEASURES if name in measures)


def _of_pictures(wanted: Sequence[str], asked: bool) -> dict[str, str]:
    """The measures that need a generator, and why; Refused where one was asked for by name."""
    names = [name for name in wanted if name in OF_PICTURES]
    if names and asked:
        raise Refused("measures", names[0], REASON, f"choose others than {', '.join(OF_PICTURES)}")
    if names:
        logger.warning("left out: %s: %s", ", ".join(names), REASON)
    return dict.fromkeys(names, REASON)


def _given(validation: ImageDataset | None) -> ImageDataset:
    if validation is None:
        raise ValueError("surrogates and ground truth need validation images, to fit to and to choose concepts on")
    return validation
