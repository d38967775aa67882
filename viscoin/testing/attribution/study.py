"""All scores of all methods on one classifier and dataset, with what they have to be read against."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from viscoin.datasets.base import ImageDataset
from viscoin.errors import Refused
from viscoin.inference.batches import choose_images, evaluation, progress
from viscoin.printing import said_once
from viscoin.statistics.bootstrap import Estimate, bootstrap
from viscoin.testing.attribution.maps import Maps, MethodMaps, OracleMaps
from viscoin.testing.attribution.measuring import Context, Left, Measured, measure
from viscoin.testing.attribution.parts import background_independence
from viscoin.testing.attribution.scenes import Sample, sample, versions_of
from viscoin.testing.attribution.scores import GROUPS, SCORES, Values, difference
from viscoin.testing.attribution.types import BadMaps, Explain

CONTROLS = ("random", "centre", "edges")
ORACLE, EDGES = "oracle", "edges"


@dataclass(frozen=True)
class Extent:
    """How much is measured.

    Attributes:
        images: a random sample of test images; None: all.
        known: a random sample of images that thresholds are chosen on.
        costly: of the test images for ROAD, max-sensitivity and randomisation.
        steps: of deletion and insertion.
    """

    images: int | None = 200
    known: int = 100
    costly: int = 40
    steps: int = 16


FULL, FAST = Extent(), Extent(images=40, known=20, costly=8)


@dataclass
class Row:
    """One method: its scores by name, each with interval, and why it has no others.

    Attributes:
        estimates: by the names of SCORES.
        above_edges: how much higher than `edges` on the same images, of the scores that have a better direction.
        chance: of each score that has a known one.
        chosen: thresholds that were chosen on other images.
        curves: means over images: deletion and insertion, ROAD, similarity after each redrawn block.
        left_out: reason by group of scores.
    """

    name: str
    estimates: dict[str, Estimate] = field(default_factory=dict)
    above_edges: dict[str, Estimate] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)
    chosen: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def beats_edges(self, score: str) -> bool | None:
        """Whether it is better than `edges` by more than the interval of the difference; None where not compared."""
        found = self.above_edges.get(score)
        if found is None:
            return None
        return found.low > 0 if SCORES[score].better > 0 else found.high < 0

    def not_above_edges(self) -> list[str]:
        """Scores in which it does not beat `edges`."""
        return [score for score in self.above_edges if not self.beats_edges(score)]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        numbers = vars(self) | {key: _plain(getattr(self, key)) for key in ("estimates", "above_edges")}
        return {**numbers, "not_above_edges": self.not_above_edges()}


@dataclass(frozen=True)
class AttributionScores:
    """Rows by method, controls and oracle among them, and what holds for all.

    Attributes:
        n: test images; `n_known` those that thresholds were chosen on.
        classifier: accuracy and background independence of f on them.
        failed: methods that have no row, and why.
        notes: sentences on what was left out for all methods.
    """

    rows: dict[str, Row]
    n: int
    n_known: int
    seed: int
    classifier: dict[str, Estimate]
    failed: dict[str, str]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "n": self.n, "n_known": self.n_known, "seed": self.seed, "classifier": _plain(self.classifier),
            "methods": {name: row.to_dict() for name, row in self.rows.items()}, "failed": self.failed,
            "notes": self.notes,
        }  # fmt: skip


def test_attribution(
    classifier: nn.Module,
    test: ImageDataset,
    known: ImageDataset,
    methods: Mapping[str, Explain],
    groups: Sequence[str] | None = None,
    extent: Extent = FULL,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 32,
    seed: int = 0,
) -> AttributionScores:
    """Measure methods on test images; what cannot be measured is left out with a reason.

    Args:
        classifier: images (B, 3, H, W) in [-1, 1] -> logits (B, C); its predicted class is what maps explain.
        known: validation images, for thresholds. If their scenes cannot be changed while those of `test` can, a part of
            the test images takes their place and is not measured.
        methods: by name; `random`, `centre` and `edges` among them are what the others are read against.
        groups: some of GROUPS; default: all that can be measured.

    Raises:
        Refused: an unknown group, one that was asked for and cannot be measured, or masks that do not fit.
    """
    wanted = _groups(groups)
    with evaluation(classifier, device, gradients=True), said_once("viscoin.attribution.activation"):
        found, before, notes = _samples(classifier, test, known, extent, device, seed)
        costly = choose_images(len(found), extent.costly, seed)
        context = Context(classifier, found, before, costly, batch_size, extent.steps, seed)
        measured, failed = _measure_all(methods, context, wanted, groups is not None)
    rows = {name: _row(name, of_method, seed) for name, of_method in measured.items()}
    _compare(rows, measured, seed)
    return AttributionScores(
        rows, len(found), len(before), seed, _of_classifier(found, test.labelled, seed), failed, notes
    )


def _groups(groups: Sequence[str] | None) -> list[str]:
    for name in groups or ():
        if name not in GROUPS:
            raise Refused("scores", name, "unknown scores", f"choose some of: {', '.join(GROUPS)}")
    return list(GROUPS if groups is None else groups)


def _samples(
    classifier: nn.Module,
    test: ImageDataset,
    known: ImageDataset,
    extent: Extent,
    device: torch.device | str,
    seed: int,
) -> tuple[Sample, Sample, list[str]]:
    """Test images, those that thresholds are chosen on, and what is to be said of them."""
    notes = []
    if versions_of(test) is not None and versions_of(known) is None:
        total = None if extent.images is None else extent.images + extent.known
        chosen = np.random.default_rng(seed).permutation(choose_images(len(test), total, seed))
        held = max(1, min(extent.known, len(chosen) // 3))
        indices, others, known = np.sort(chosen[held:]), np.sort(chosen[:held]), test
        notes.append(
            f"validation images of {test.name} have no scenes without parts: thresholds are chosen on {held} test "
            "images, which are not measured"
        )
    else:
        indices, others = choose_images(len(test), extent.images, seed), choose_images(len(known), extent.known, seed)
    found, before = sample(classifier, test, indices, device), sample(classifier, known, others, device)
    if found.object_masks is None:
        notes.append(f"{test.name} has no masks: nothing is measured of places, segments and parts")
    elif found.parts is None:
        notes.append(f"scenes of {test.name} cannot be changed: nothing is measured of parts")
    return found, before, notes


def _measure_all(
    methods: Mapping[str, Explain], context: Context, groups: Sequence[str], strict: bool
) -> tuple[dict[str, dict[str, Measured | str]], dict[str, str]]:
    """For each method and group what was measured, or why not; and why methods failed."""
    found: dict[str, dict[str, Measured | str]] = {}
    failed: dict[str, str] = {}
    with progress(len(methods) * len(groups), "attribution", "score") as bar:
        for name, explain in methods.items():
            own, before = (
                MethodMaps(explain, context.classifier, part, context.batch_size)
                for part in (context.test, context.known)
            )
            try:
                found[name] = _measure_one(own, before, context, groups, bar.update)
            except BadMaps as error:
                failed[name] = str(error)
    if context.test.parts is not None:
        painted = OracleMaps(context.test), OracleMaps(context.known)
        found[ORACLE] = _measure_one(*painted, context, groups, lambda: None)
    _check_measured(found, groups, strict)
    return found, failed


def _measure_one(
    maps: Maps, known: Maps, context: Context, groups: Sequence[str], step: Any
) -> dict[str, Measured | str]:
    found: dict[str, Measured | str] = {}
    for group in groups:
        try:
            found[group] = measure(group, maps, known, context)
        except Left as error:
            found[group] = str(error)
        step()
    return found


def _check_measured(found: Mapping[str, Mapping[str, Measured | str]], groups: Sequence[str], strict: bool) -> None:
    """Refused where a group was asked for that no method could be measured by."""
    for group in groups if strict and found else ():
        reasons = [of_method[group] for of_method in found.values()]
        if all(isinstance(reason, str) for reason in reasons):
            raise Refused("scores", group, str(reasons[0]), "choose others, or another dataset")


def _row(name: str, measured: Mapping[str, Measured | str], seed: int) -> Row:
    row = Row(name)
    for group, found in measured.items():
        if isinstance(found, str):
            row.left_out[group] = found
            continue
        row.chosen |= found.chosen
        row.curves |= found.curves
        for key, values in found.values.items():
            estimate = values.estimate(seed)
            if estimate is None:
                row.left_out[key] = "undefined for every image"
                continue
            row.estimates[key] = estimate
            chance = SCORES[key].chance if values.chance is None else values.expected()
            if chance is not None:
                row.chance[key] = chance
    return row


def _compare(rows: Mapping[str, Row], measured: Mapping[str, Mapping[str, Measured | str]], seed: int) -> None:
    """Note how much higher than `edges` each method is."""
    if EDGES not in measured:
        return
    reference = _values(measured[EDGES])
    for name, row in rows.items():
        if name in CONTROLS:
            continue
        for key, values in _values(measured[name]).items():
            if key not in reference or not SCORES[key].better or key not in row.estimates:
                continue
            found = difference(values, reference[key], seed)
            if found is not None:
                row.above_edges[key] = found


def _values(measured: Mapping[str, Measured | str]) -> dict[str, Values]:
    return {
        key: values
        for found in measured.values()
        if isinstance(found, Measured)
        for key, values in found.values.items()
    }


def _of_classifier(found: Sample, labelled: bool, seed: int) -> dict[str, Estimate]:
    estimates = {"accuracy": bootstrap(found.predicted == found.labels, seed=seed)} if labelled else {}
    if found.parts is not None:
        independence = Values(background_independence(found.parts.truth)).estimate(seed)
        if independence is not None:
            estimates["background_independence"] = independence
    return estimates


def _plain(estimates: Mapping[str, Estimate]) -> dict[str, dict[str, Any]]:
    return {key: asdict(estimate) for key, estimate in estimates.items()}
