"""The truth about an ensemble and about the baselines beside it, as one table."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
import torch

from stylegan2_ada.together import collect, own
from viscoin.datasets import ImageDataset
from viscoin.datasets.birds.dataset import BirdsDataset
from viscoin.inference.batches import choose_images
from viscoin.models.ensemble import VisCoIN
from viscoin.statistics.bootstrap import Estimate
from viscoin.statistics.measures import known_mean
from viscoin.testing.baselines import CONCEPTS, Comparison, compare
from viscoin.testing.truth.attributes import AttributeResult, PairedAreas, attribute_scores, best_other
from viscoin.testing.truth.causal import Causal, activation_range, causal_tests, purity, reaction_shares
from viscoin.testing.truth.examples import Example, choose_examples
from viscoin.testing.truth.localisation import Localisation, localise
from viscoin.testing.truth.scenes import Interventions, Responses, Scenes, World, intervene, world_of

FOUND = 0.9  # AUROC above which an attribute counts as found
SCENES = 500  # test images that are intervened on

Row = dict[str, Estimate]


@dataclass(frozen=True)
class FunctionTruth:
    """A concept function with K activations: its score for each attribute, all measures, and those of each attribute.

    Measures: `auroc` (mean, of the best concept), `found` (share of attributes with AUROC above 0.9), `auroc_other` (of
    the same concept for the attribute of another group that it predicts best), those of `Causal`, `purity`, and
    those of `Localisation`. A measure without a case, or that a baseline cannot have, is not there.

    `by_attribute` has the measures of each attribute, for concepts alone.
    `reaction` (A, G): share of each attribute group in what changes each attribute's concept, or None.
    """

    k: int
    attributes: AttributeResult
    summary: Row
    by_attribute: list[Row]
    reaction: np.ndarray | None = None


@dataclass(frozen=True)
class TruthResult:
    """Concepts and baselines by name (`concepts` first); `intervened` is 0 for data that cannot be intervened on."""

    functions: dict[str, FunctionTruth]
    examples: list[Example]
    n: int
    intervened: int
    seed: int

    @property
    def concepts(self) -> FunctionTruth:
        return self.functions[CONCEPTS]

    def estimates(self) -> dict[str, Estimate]:
        """Every measure by "function.measure"."""
        return {f"{name}.{key}": value for name, part in self.functions.items() for key, value in part.summary.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers: `AttributeResult.to_dict()` of the concepts, then all functions and all attributes."""
        numbers = self.concepts.attributes.to_dict()
        if "untrained" in self.functions:
            numbers["mean_auroc_untrained"] = self.functions["untrained"].attributes.mean_auroc
        functions = {
            name: {"k": part.k} | {key: asdict(value) for key, value in part.summary.items()}
            for name, part in self.functions.items()
        }
        by_attribute = [
            {"name": score.name, "concept": score.concept, "direction": score.direction}
            | {key: asdict(value) for key, value in row.items()}
            for score, row in zip(self.concepts.attributes.scores, self.concepts.by_attribute, strict=True)
        ]
        return numbers | {
            "n": self.n,
            "intervened": self.intervened,
            "seed": self.seed,
            "left_out": self.concepts.attributes.left_out,
            "functions": functions,
            "by_attribute": by_attribute,
        }


def test_truth(
    ensemble: VisCoIN,
    validation: ImageDataset,
    test: ImageDataset,
    device: torch.device | str = "cpu",
    batch_size: int = 128,
    seed: int = 0,
    limit: int | None = None,
    scenes: int = SCENES,
    comparison: Comparison | None = None,
) -> TruthResult:
    """All comparisons of an ensemble's concepts with the truth, and of rivals with as many activations.

    Concepts are matched to attributes on validation images and measured on test images. Any dataset with attributes
    gets the AUROC; the birds also interventions, and the ensemble the places of its concepts. Of FunnyBirds, parts are
    deleted alone.

    Args:
        limit: size of a random sample of validation and of test images, instead of all.
        scenes: size of a random sample of these test images to intervene on.
        comparison: of the same images; by default with all rivals.

    Raises:
        TooFewImages: no attribute has enough images of each value.
        ValueError: a dataset has no attributes.
    """
    compared = comparison or compare(ensemble, validation, test, device, batch_size, seed, limit)
    functions, chosen = compared.functions, compared.chosen
    known = Observed(compared.known, validation.attributes[compared.learned])
    new = Observed(compared.new, test.attributes[chosen])
    changed = chosen[choose_images(len(chosen), scenes, seed)]
    interventions: Interventions | None = None
    responses: dict[str, Responses] = {}
    if world_of(test) is not None:
        interventions, responses = intervene(functions, cast(Scenes, test), changed, batch_size, seed)
    names = list(known.activations)
    truths = dict(zip(names, collect(
        function_truth(
            name, known, new, test.attribute_names, interventions, responses.get(name), seed, each=name == CONCEPTS
        )
        for name in own(names)
    )))  # fmt: skip
    if interventions is None:
        return TruthResult(truths, [], len(chosen), 0, seed)
    scores, before = truths[CONCEPTS].attributes.scores, responses[CONCEPTS].before
    places = localise(ensemble, test, interventions, before, scores, device, seed=seed)
    truths[CONCEPTS] = with_places(truths[CONCEPTS], places, seed)
    examples: list[Example] = []
    if isinstance(test, BirdsDataset):
        ranges = activation_range(known.activations[CONCEPTS])
        examples = choose_examples(functions, ensemble, test, interventions, before, ranges, scores, device)
    return TruthResult(truths, examples, len(chosen), len(changed), seed)


@dataclass(frozen=True)
class Observed:
    """Activations (N, K) of each function on N images, and their attributes (N, A) bool."""

    activations: dict[str, np.ndarray]
    attributes: np.ndarray


def function_truth(
    name: str,
    validation: Observed,
    test: Observed,
    attribute_names: Sequence[str],
    interventions: Interventions | None = None,
    responses: Responses | None = None,
    seed: int = 0,
    each: bool = False,
) -> FunctionTruth:
    """Scores of one function, and what interventions show of it, if there are any.

    Args:
        name: of the function.
        each: also measure, with intervals, the concept of every single attribute.
    """
    learned, measured = validation.activations[name], test.activations[name]
    attributes = attribute_scores(learned, validation.attributes, measured, test.attributes, attribute_names)
    scores = attributes.scores
    concepts, direction = np.array([(score.concept, score.direction) for score in scores]).T
    own = [list(attribute_names).index(score.name) for score in scores]
    other, sign = best_other(scores, learned, validation.attributes, attribute_names)
    areas = PairedAreas(measured[:, concepts] * direction, test.attributes[:, own])
    summary = {
        "auroc": areas.estimate(known_mean, seed),
        "found": areas.estimate(lambda found: np.mean(found > FOUND), seed),
    }
    rows: list[Row] = [{} for _ in scores] if each else []
    for column, row in enumerate(rows):
        row["auroc"] = areas.column(column).estimate(known_mean, seed)
    compared = np.flatnonzero(other >= 0)
    if len(compared):
        areas_other = PairedAreas((measured[:, concepts] * sign)[:, compared], test.attributes[:, other[compared]])
        summary["auroc_other"] = areas_other.estimate(known_mean, seed)
        for column, attribute in enumerate(compared if each else ()):
            rows[attribute]["auroc_other"] = areas_other.column(column).estimate(known_mean, seed)
    if interventions is None or responses is None:
        return FunctionTruth(learned.shape[1], attributes, summary, rows)
    causal, world = causal_tests(interventions, responses, activation_range(learned), scores), interventions.world
    summary |= _causal_estimates(causal, attributes, world, None, seed)
    for column, row in enumerate(rows):
        row |= _causal_estimates(causal, attributes, world, column, seed)
    reaction = reaction_shares(causal.reaction) if world.swaps else None
    return FunctionTruth(learned.shape[1], attributes, summary, rows, reaction)


def with_places(truth: FunctionTruth, places: Localisation, seed: int) -> FunctionTruth:
    """The same with where its concepts are."""

    def means(column: int | None) -> Row:
        found = {name: places.mean(name, column, seed) for name in vars(places)}
        return {name: estimate for name, estimate in found.items() if estimate is not None}

    rows = [row | means(column) for column, row in enumerate(truth.by_attribute)]
    return replace(truth, summary=truth.summary | means(None), by_attribute=rows)


def _causal_estimates(causal: Causal, attributes: AttributeResult, world: World, column: int | None, seed: int) -> Row:
    found = {name: cases.share(column, seed) for name, cases in causal.cases.items()}
    found["purity"] = purity(causal.reaction, attributes.scores, column, seed, world.groups)
    return {name: estimate for name, estimate in found.items() if estimate is not None}
