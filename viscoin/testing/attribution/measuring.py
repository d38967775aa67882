"""Every score of one method, group by group: values by image, or why there are none."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from viscoin.attribution.explained import blurred
from viscoin.testing.attribution import faithfulness, places, robustness, segmentation
from viscoin.testing.attribution.maps import Maps, MethodMaps
from viscoin.testing.attribution.part_scores import (
    NAMES,
    PartScores,
    completeness,
    decisive_parts,
    headline,
    part_scores,
)
from viscoin.testing.attribution.parts import ABSENT, THRESHOLDS
from viscoin.testing.attribution.scenes import Sample
from viscoin.testing.attribution.scores import Values

SQUARES = 6  # on a side of the grid of squares that infidelity hides


class Left(ValueError):
    """A group of scores cannot be measured; the text says why."""


@dataclass(frozen=True)
class Context:
    """What methods are measured on.

    Attributes:
        test: the images.
        known: others, on which thresholds are chosen.
        costly: rows of `test` for scores that take long.
        batch_size: most images that f sees at once.
        steps: of deletion and insertion.
    """

    classifier: nn.Module
    test: Sample
    known: Sample
    costly: np.ndarray
    batch_size: int = 64
    steps: int = faithfulness.STEPS
    seed: int = 0

    @property
    def rows(self) -> np.ndarray:
        return np.arange(len(self.test))

    def logits(self, images: Tensor) -> Tensor:
        """f of any number of images."""
        return torch.cat([self.classifier(some) for some in images.split(self.batch_size)])

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Values of the costly rows as those of all, NaN elsewhere."""
        found = np.full((len(self.test), *values.shape[1:]), np.nan)
        found[self.costly] = values
        return found


@dataclass
class Measured:
    """Values by score, what was chosen on other images, and curves for figures."""

    values: dict[str, Values] = field(default_factory=dict)
    chosen: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)


def measure(group: str, maps: Maps, known: Maps, context: Context) -> Measured:
    """The scores of a group, of GROUPS in `scores.py`.

    Args:
        maps, known: of the method on `context.test` and `context.known`.

    Raises:
        Left: the images, or the method, have nothing that the group could be measured by.
        BadMaps: the method gives no maps.
    """
    return MEASURES[group](maps, known, context)


# --- where the truth is known ------------------------------------------------------------------------------------


def _parts(maps: Maps, known: Maps, context: Context) -> Measured:
    parts, before = context.test.parts, context.known.parts
    if parts is None or before is None:
        raise Left("nothing in these scenes can be deleted")
    if not parts.truth.right.any():
        raise Left("no image is predicted right, and CSDC needs one")
    found = Measured()
    repaired, as_published = part_scores(maps, parts), part_scores(maps, parts, published=True)
    threshold = part_scores(known, before).best_threshold()
    found.chosen["parts.threshold"] = float(THRESHOLDS[threshold])
    found.values |= _part_values("parts", repaired, threshold)
    threshold = as_published.best_threshold()
    found.chosen["published.threshold"] = float(THRESHOLDS[threshold])
    found.values |= _part_values("published", as_published, threshold)
    return found


def _part_values(prefix: str, scores: PartScores, threshold: int) -> dict[str, Values]:
    rows = scores.at(threshold)
    found = {f"{prefix}.{name}": Values(rows[:, column]) for column, name in enumerate(NAMES)}
    return found | {f"{prefix}.com": Values(rows, completeness), f"{prefix}.mean": Values(rows, headline)}


def _places(maps: Maps, known: Maps, context: Context) -> Measured:
    sample, found = context.test, Measured()
    if sample.object_masks is None:
        raise Left("these images have no masks")
    heat = maps.of(context.rows, sample.predicted)
    masks = {"object": sample.object_masks}
    if sample.parts is not None:
        decisive = decisive_parts(sample.parts)
        masks["decisive"] = sample.parts.of_part(decisive) & (decisive != ABSENT)[:, None, None]
    for where, mask in masks.items():
        chance = np.where(mask.any((1, 2)), places.area(mask), np.nan)
        for name in ("pointing", "mass", "rank"):
            found.values[f"{where}.{name}"] = Values(getattr(places, name)(heat, mask), chance=chance)
    return found


def _segments(maps: Maps, known: Maps, context: Context) -> Measured:
    sample, before = context.test, context.known
    if sample.object_masks is None or before.object_masks is None:
        raise Left("these images have no masks")
    heat, masks = maps.of(context.rows, sample.predicted), sample.object_masks
    right = sample.predicted == sample.labels
    segments = segmentation.segments(heat, kept=right)
    counts = segmentation.count(segments, masks)
    if not (shown := before.object_masks.any((1, 2))).any():
        raise Left("all masks of the images that thresholds are chosen on are empty")
    curve = segmentation.iou_curve(known.of(np.arange(len(before)), before.predicted), before.object_masks)
    best = int(curve[shown].mean(0).argmax())
    threshold = float(segmentation.THRESHOLDS[best])
    at_best = segmentation.count(segmentation.segments(heat, threshold), masks)
    area = places.area(masks)
    found = Measured(chosen={"segments.threshold": threshold})
    found.values |= {
        "segments.iou": Values(segmentation.iou(counts)),
        "segments.dice": Values(segmentation.dice(counts)),
        "segments.best_iou": Values(segmentation.iou(at_best)),
        "segments.ap": Values(segmentation.average_precision(heat, masks), chance=area),
        "segments.auroc": Values(segmentation.auroc(heat, masks)),
        "segments.centroid": Values(segmentation.centroid(segments, masks), chance=area),
    }
    rows = counts.rows().astype(float)
    found.values |= {f"pooled.{name}": Values(rows, _pooled(name)) for name in segmentation.pooled(rows)}
    return found


def _pooled(name: str) -> Callable[[np.ndarray], float]:
    return lambda rows: segmentation.pooled(rows)[name]


# --- faithfulness ------------------------------------------------------------------------------------------------


def baselines(sample: Sample) -> dict[str, Tensor]:
    """What pixels are replaced by (N, 3, H, W): grey, the blurred image, and the scene without the parts."""
    found = {"grey": torch.zeros_like(sample.images), "blur": blurred(sample.images)}
    return found if sample.parts is None else {**found, "render": sample.parts.hidden}


def _hiding(maps: Maps, known: Maps, context: Context) -> Measured:
    sample, found = context.test, Measured()
    ranks = faithfulness.importance_ranks(maps.of(context.rows, sample.predicted), context.seed)
    targets = torch.from_numpy(sample.predicted)
    for name, hidden in baselines(sample).items():
        most, least = (
            faithfulness.hiding_curve(context.logits, sample.images, hidden, targets, order, context.steps)
            for order in (ranks, ranks[0].size - 1 - ranks)
        )
        deletion, insertion = faithfulness.area(most), faithfulness.area(least)
        found.values[f"deletion.{name}"] = Values(deletion)
        found.values[f"insertion.{name}"] = Values(insertion)
        found.values[f"gap.{name}"] = Values(insertion - deletion)
        found.curves[f"deletion.{name}"] = most.mean(0).tolist()
        found.curves[f"insertion.{name}"] = least.mean(0)[::-1].tolist()
    return found


def _road(maps: Maps, known: Maps, context: Context) -> Measured:
    rows = context.costly
    images, predicted = context.test.images[rows], context.test.predicted[rows]
    ranks = faithfulness.importance_ranks(maps.of(rows, predicted), context.seed)
    targets = torch.from_numpy(predicted)
    most, least = (
        faithfulness.road_curve(context.logits, images, targets, order, seed=context.seed)
        for order in (ranks, ranks[0].size - 1 - ranks)
    )
    found = Measured(curves={"road.most": most.mean(0).tolist(), "road.least": least.mean(0).tolist()})
    found.values["road.deletion"] = Values(context.spread(most.mean(1)))
    found.values["road.gap"] = Values(context.spread(least.mean(1) - most.mean(1)))
    return found


def _infidelity(maps: Maps, known: Maps, context: Context) -> Measured:
    sample = context.test
    heat, blur = maps.of(context.rows, sample.predicted), blurred(sample.images)
    targets = torch.from_numpy(sample.predicted).to(sample.images.device)[:, None]
    expected, changes = [], []
    with torch.no_grad():
        before = context.logits(sample.images).gather(1, targets)
        for square in squares(*heat.shape[1:]):
            hidden = torch.where(torch.from_numpy(square).to(blur.device), blur, sample.images)
            changes.append((before - context.logits(hidden).gather(1, targets))[:, 0].cpu().double().numpy())
            expected.append((heat * square).sum((1, 2), dtype=np.float64))
    pairs = np.stack(expected, 1), np.stack(changes, 1)
    return Measured({
        "infidelity.scaled": Values(faithfulness.infidelity(*pairs)[1]),
        "infidelity.unexplained": Values(faithfulness.unexplained(*pairs)),
    })  # fmt: skip


def _completeness(maps: Maps, known: Maps, context: Context) -> Measured:
    rows, method = context.costly, _method(maps)
    gaps = getattr(method.explain, "gaps", None)
    indices = context.test.indices[rows].tolist()
    images, targets = context.test.images[rows], torch.from_numpy(context.test.predicted[rows])
    found = None if gaps is None else gaps(context.classifier, images, targets, indices)
    if found is None:
        raise Left("maps of these methods need not add up to anything")
    return Measured({"completeness.gap": Values(context.spread(found))})


def squares(height: int, width: int) -> np.ndarray:
    """The squares of a grid (K, H, W) bool."""
    y, x = (np.arange(length) * SQUARES // length for length in (height, width))
    cells = y[:, None] * SQUARES + x
    return np.asarray(cells == np.arange(SQUARES**2)[:, None, None])


# --- stability and complexity ------------------------------------------------------------------------------------


def _stability(maps: Maps, known: Maps, context: Context) -> Measured:
    rows = context.costly
    method, images, predicted = _method(maps), context.test.images[rows], context.test.predicted[rows]

    def mapper(changed: Tensor, targets: Tensor) -> np.ndarray:
        return method.again(context.classifier, changed, targets.numpy(), rows)

    noise = robustness.perturbations(images, seed=context.seed)
    found = robustness.max_sensitivity(mapper, images, torch.from_numpy(predicted), noise)
    return Measured({"stability.max_sensitivity": Values(context.spread(found))})


def _randomisation(maps: Maps, known: Maps, context: Context) -> Measured:
    rows = context.costly
    method, images, predicted = _method(maps), context.test.images[rows], context.test.predicted[rows]
    if getattr(method.explain, "of_one_classifier", False):
        raise Left("it was trained for one classifier")
    if not robustness.blocks(context.classifier):
        raise Left("f has no blocks of weights that could be redrawn")
    before = np.abs(maps.of(rows, predicted))
    ranks, structure = [], []
    for _, changed in robustness.randomised(context.classifier, context.seed):
        after = np.abs(method.again(changed, images, predicted, rows))
        ranks.append(robustness.spearman(before, after))
        structure.append(robustness.similarity(before, after))
    found = Measured()
    for name, curve in (("spearman", ranks), ("ssim", structure)):
        found.values[f"randomisation.{name}"] = Values(context.spread(curve[-1]))
        found.curves[f"randomisation.{name}"] = [float(values.mean()) for values in curve]
    return found


def _complexity(maps: Maps, known: Maps, context: Context) -> Measured:
    heat = maps.of(context.rows, context.test.predicted)
    return Measured({
        "complexity.gini": Values(robustness.gini(heat)), "complexity.entropy": Values(robustness.entropy(heat)),
    })  # fmt: skip


def _method(maps: Maps) -> MethodMaps:
    if not isinstance(maps, MethodMaps):
        raise Left("the oracle looks at scenes, not at images or classifiers")
    return maps


MEASURES: Mapping[str, Callable[[Maps, Maps, Context], Measured]] = {
    "parts": _parts,
    "places": _places,
    "segments": _segments,
    "hiding": _hiding,
    "road": _road,
    "infidelity": _infidelity,
    "completeness": _completeness,
    "stability": _stability,
    "randomisation": _randomisation,
    "complexity": _complexity,
}
