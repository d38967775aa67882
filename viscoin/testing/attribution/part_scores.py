"""All part scores of one method on a sample, at every threshold, and what they say together."""

from dataclasses import dataclass

import numpy as np

from viscoin.statistics.measures import known_mean
from viscoin.testing.attribution.maps import Maps
from viscoin.testing.attribution.parts import (
    ABSENT,
    THRESHOLDS,
    class_pairs,
    deletion,
    distractibility,
    irrelevant,
    marked,
    part_importance,
    preservation,
    single_deletion,
    sufficient_sets,
    sufficient_share,
    target_sensitivity,
)
from viscoin.testing.attribution.scenes import PartScenes

CSDC, PC, DC, D, SD, TS = range(6)
NAMES = ("csdc", "pc", "dc", "d", "sd", "ts")


@dataclass(frozen=True)
class PartScores:
    """Scores of N images, NaN where one is undefined.

    Attributes:
        by_threshold: (N, T, 4) CSDC, PC, DC and D.
        others: (N, 2) SD and TS.
    """

    by_threshold: np.ndarray
    others: np.ndarray

    def at(self, threshold: int) -> np.ndarray:
        """All six (N, 6) at one of the thresholds, by its place."""
        return np.concatenate([self.by_threshold[:, threshold], self.others], 1)

    def best_threshold(self) -> int:
        """Place of the threshold with the highest completeness."""
        found = [completeness(self.at(threshold)) for threshold in range(self.by_threshold.shape[1])]
        return int(np.nanargmax(found)) if not np.isnan(found).all() else 0


def completeness(rows: np.ndarray) -> float:
    """Com = ((CSDC + PC + DC) / 3 + D) / 2 of scores (N, 6)."""
    csdc, pc, dc, d = (known_mean(rows[:, column]) for column in (CSDC, PC, DC, D))
    return ((csdc + pc + dc) / 3 + d) / 2


def headline(rows: np.ndarray) -> float:
    """Mean of completeness, correctness (SD) and contrastivity (TS) of scores (N, 6)."""
    return (completeness(rows) + known_mean(rows[:, SD]) + known_mean(rows[:, TS])) / 3


def part_scores(maps: Maps, parts: PartScenes, published: bool = False) -> PartScores:
    """Part scores of a method; with `published` those of the published code (see `parts.py`)."""
    truth, rows = parts.truth, np.arange(len(parts.truth.labels))
    of_label, of_predicted = maps.of(rows, truth.labels), maps.of(rows, truth.predicted)
    masks, owners, count = parts.masks, parts.owners, truth.n_parts
    marks, named = _marks(of_label, parts, published), _marks(of_predicted, parts, published)
    classes, shared = class_pairs(truth, published)
    with_pair = np.flatnonzero(classes[:, 0] != ABSENT)
    pair = np.zeros((len(rows), 2, count))
    for side in range(2):
        seen = maps.of(with_pair, classes[with_pair, side])
        pair[with_pair, side] = part_importance(seen, masks[with_pair], owners)[:, :count]
    single = part_importance(of_label, masks, owners)[:, :count]
    by_threshold = [
        sufficient_share(truth, marks[..., :count], sufficient_sets(truth.class_parts, published)),
        preservation(truth, named[..., :count]),
        deletion(truth, named[..., :count]),
        distractibility(marks, irrelevant(truth, published)),
    ]
    if not published:
        sets = sufficient_sets(truth.class_parts)[truth.labels]
        by_threshold[CSDC][np.flatnonzero(~sets.any(1))] = np.nan
    others = [single_deletion(truth, single, published), target_sensitivity(pair, shared, published)]
    return PartScores(np.stack(by_threshold, 2), np.stack(others, 1))


def _marks(maps: np.ndarray, parts: PartScenes, published: bool) -> np.ndarray:
    """Marked parts and objects (N, T, P + O)."""
    seen = maps if published else np.maximum(maps, 0)
    total = seen.sum((1, 2), dtype=np.float64)
    return marked(part_importance(seen, parts.masks, parts.owners), total, THRESHOLDS)


def decisive_parts(parts: PartScenes) -> np.ndarray:
    """The part (N,) without which the label's logit falls most, of those that are seen; ABSENT where none lowers it."""
    before, after = parts.truth.of_label(centred=True)
    count = parts.truth.n_parts
    drops = np.where(parts.truth.visible[:, :count], before[:, None] - after[:, :count], -np.inf)
    return np.where(drops.max(1) > 0, drops.argmax(1), ABSENT)
