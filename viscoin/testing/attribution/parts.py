"""Do maps find the parts that the classifier decides by? The part scores of FunnyBirds (Hesse et al. 2023, 2308.06248).

Every part can be deleted from the scene, so that what f needs is known. Sets of parts are numbers: bit p is part p.
Each score has the published definition and, where that is wrong, a repaired one, which is what is reported:

- the last class has no sufficient set in the published code, so that its images have CSDC 0;
- 5 % of a logit changes when a constant is added to all logits: repaired, logits count from their mean;
- a map whose sum is negative marks every part: repaired, only its positive values mark;
- a map without differences between parts, or between classes, is left out of SD or loses TS: repaired, it has 0.5;
- TS compares classes whose shared parts overlap where no others are there: repaired, only disjoint ones;
- parts and objects that are hidden by others count as irrelevant, though no map could mark them: repaired, left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.ndimage import maximum_filter
from scipy.stats import rankdata

THRESHOLDS = np.linspace(0.01, 0.5, 80)
GROWTH = 5  # side of the maximum filter that masks are grown by, pixels
TOLERANCE = 0.05  # of the logit: what changes it less is irrelevant
SHARED = 2  # parts that the other classes of TS have in common with the label
ABSENT = -1


@dataclass(frozen=True)
class PartTruth:
    """What f says of N scenes with P parts, without any of them, and without each of up to O background objects.

    Attributes:
        labels: (N,).
        logits: (N, 2**P, C); index s without the parts whose bits are set in s, so that index 0 is the whole scene.
        without_object: (N, O, C), NaN where a scene has fewer objects.
        class_parts: (C, P) which variant of each part a class has, ABSENT where it has none to be seen.
        visible: (N, P + O) bool, parts and objects of which a pixel is seen.
    """

    labels: np.ndarray
    logits: np.ndarray
    without_object: np.ndarray
    class_parts: np.ndarray
    visible: np.ndarray

    @property
    def n_parts(self) -> int:
        return int(self.class_parts.shape[1])

    @property
    def bits(self) -> np.ndarray:
        """(P,) the number of the set of each part alone."""
        return 1 << np.arange(self.n_parts)

    @property
    def predicted(self) -> np.ndarray:
        """(N,) class that f gives to the whole scene."""
        return np.asarray(self.logits[:, 0].argmax(1))

    @property
    def right(self) -> np.ndarray:
        """(N,) bool."""
        return np.asarray(self.predicted == self.labels)

    def of_label(self, centred: bool) -> tuple[np.ndarray, np.ndarray]:
        """Logit of the label of whole scenes (N,), and without each part and each object (N, P + O).

        Args:
            centred: minus the mean of all logits of the same image.
        """
        rows = np.arange(len(self.labels))
        single = np.concatenate([self.logits[:, :1], self.logits[:, self.bits], self.without_object], 1)
        if centred:
            single = single - single.mean(2, keepdims=True)
        values = single[rows, :, self.labels]
        return values[:, 0], values[:, 1:]


# --- what a map says of parts --------------------------------------------------------------------------------------


def part_importance(maps: np.ndarray, masks: np.ndarray, owners: Sequence[int], growth: int = GROWTH) -> np.ndarray:
    """Sums (N, P) of maps (N, H, W) over masks (N, M, H, W) bool, each grown by a square maximum filter.

    Args:
        owners: (M,) the part that each mask belongs to; a part's masks, such as two wings, are added, and where they
            overlap, count twice.
        growth: side of the filter, pixels.
    """
    found = np.zeros((len(maps), max(owners, default=-1) + 1))
    for column, owner in enumerate(owners):
        grown = maximum_filter(masks[:, column], size=(1, growth, growth), mode="constant")
        found[:, owner] += (maps * grown).sum((1, 2), dtype=np.float64)
    return found


def marked(importance: np.ndarray, total: np.ndarray, thresholds: np.ndarray = THRESHOLDS) -> np.ndarray:
    """Which parts are important (N, T, P) bool: their importance (N, P) is above t times the sum of the map (N,)."""
    return np.asarray(importance[:, None] > thresholds[:, None] * total[:, None, None])


# --- what classes need -------------------------------------------------------------------------------------------


def sufficient_sets(class_parts: np.ndarray, published: bool = False) -> np.ndarray:
    """Minimal sets of parts by which each class differs from all others: (C, 2**P) bool.

    A set is sufficient if no other class has the same variants of its parts, and minimal if no smaller set within it
    is. Sets with a part that the class lacks are none, as there is nothing to be marked.
    """
    classes, parts = class_parts.shape
    found = np.zeros((classes, 2**parts), bool)
    for number in range(1, 2**parts):
        chosen = class_parts[:, _members(number, parts)]
        _, group, counts = np.unique(chosen, axis=0, return_inverse=True, return_counts=True)
        within = [smaller for smaller in range(1, number) if smaller & number == smaller]
        unique = (counts[group.ravel()] == 1) & (chosen != ABSENT).all(1)
        found[:, number] = unique & ~found[:, within].any(1)
    if published:
        found[-1] = False
    return found


def _members(number: int, parts: int) -> list[int]:
    return [part for part in range(parts) if number >> part & 1]


def class_pairs(truth: PartTruth, published: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Two classes (N, 2) to compare the maps of, and the parts that each shares with the label, (N, 2, P) bool.

    Each shares two parts, A and B, with the label. The first pair of classes whose A and B are disjoint is taken, if
    f loses more of the logit of a without A than without B, and of b without B than without A. Classes are ABSENT
    where there is no such pair.
    """
    classes = np.full((len(truth.labels), 2), ABSENT)
    shared = np.zeros((len(truth.labels), 2, truth.n_parts), bool)
    for row, label in enumerate(truth.labels):
        pair = _pair(truth.class_parts, int(label), published)
        if pair is None:
            continue
        common = truth.class_parts[list(pair)] == truth.class_parts[label]
        if _prefers(truth.logits[row], pair, common @ truth.bits):
            classes[row], shared[row] = pair, common
    return classes, shared


def _pair(class_parts: np.ndarray, label: int, published: bool) -> tuple[int, int] | None:
    common = class_parts == class_parts[label]
    if not published:
        common = common & (class_parts[label] != ABSENT)
    others = np.flatnonzero((class_parts == class_parts[label]).sum(1) == SHARED)
    others = others[common[others].sum(1) == SHARED]
    last = None
    for a, b in combinations(others, 2):
        last = int(a), int(b)
        if not (common[a] & common[b]).any():
            return last
    return last if published else None


def _prefers(logits: np.ndarray, pair: tuple[int, int], sets: np.ndarray) -> bool:
    """Whether each class loses more without the parts that are its own; logits (2**P, C), sets (2,)."""
    own, other = logits[sets, pair], logits[sets[::-1], pair]
    return bool((own < other).all())


# --- scores by image, NaN where one is undefined -----------------------------------------------------------------


def sufficient_share(truth: PartTruth, important: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """CSDC (N, T): largest share of a minimal sufficient set that is marked; NaN for wrong predictions.

    Args:
        important: (N, T, P) bool.
        sets: (C, 2**P) bool of `sufficient_sets`; a class without any has 0 as published, where `sets` are those.
    """
    members = (np.arange(sets.shape[1])[:, None] >> np.arange(truth.n_parts)) & 1
    found = np.full(important.shape[:2], np.nan)
    for row in np.flatnonzero(truth.right):
        chosen = members[sets[truth.labels[row]]]
        shares = important[row] @ chosen.T / np.maximum(chosen.sum(1), 1)
        found[row] = shares.max(1, initial=0)
    return found


def preservation(truth: PartTruth, important: np.ndarray) -> np.ndarray:
    """PC (N, T): 1 where the prediction stays with only the marked parts (N, T, P)."""
    return _stays(truth, ~important)


def deletion(truth: PartTruth, important: np.ndarray) -> np.ndarray:
    """DC (N, T): 1 where the prediction changes without the marked parts (N, T, P)."""
    return 1 - _stays(truth, important)


def _stays(truth: PartTruth, removed: np.ndarray) -> np.ndarray:
    rows = np.arange(len(removed))[:, None]
    after = truth.logits.argmax(2)[rows, removed @ truth.bits]
    return np.asarray(after == truth.predicted[:, None], dtype=float)


def irrelevant(truth: PartTruth, published: bool = False) -> np.ndarray:
    """Parts and objects (N, P + O) bool whose deletion lowers the label's logit by less than 5 % of it, or raises it.

    Repaired, logits count from their mean, and parts and objects of which nothing is seen are left out.
    """
    before, after = truth.of_label(centred=not published)
    small = before[:, None] - after < TOLERANCE * np.abs(before)[:, None]  # False for NaN
    if not published:
        small &= truth.visible
    return np.asarray(small)


def distractibility(important: np.ndarray, unneeded: np.ndarray) -> np.ndarray:
    """D (N, T): 1 - share of the irrelevant parts and objects (N, P + O) that are marked (N, T, P + O)."""
    count = unneeded.sum(1)[:, None]
    hits = (important & unneeded[:, None]).sum(2)
    return 1 - np.divide(hits, count, out=np.full(hits.shape, np.nan), where=count > 0)


def single_deletion(truth: PartTruth, importance: np.ndarray, published: bool = False) -> np.ndarray:
    """SD (N,): (1 + rank correlation of importances (N, P) with what the logit loses without each part) / 2.

    NaN where f loses the same without any part. A map that has all parts equal is NaN as published, repaired 0.5.
    """
    before, after = truth.of_label(centred=False)
    drops = rankdata(before[:, None] - after[:, : truth.n_parts], axis=1)
    ranks = rankdata(importance, axis=1)
    drops, ranks = (values - values.mean(1, keepdims=True) for values in (drops, ranks))
    size = np.sqrt((drops**2).sum(1) * (ranks**2).sum(1))
    none = np.where((ranks == 0).all(1) & (drops != 0).any(1) & (not published), 0.0, np.nan)
    return (1 + np.divide((drops * ranks).sum(1), size, out=none, where=size > 0)) / 2


def target_sensitivity(importance: np.ndarray, shared: np.ndarray, published: bool = False) -> np.ndarray:
    """TS (N,): do the maps of two classes see more of the parts that are the class's own? NaN without a pair.

    Mean of two comparisons: parts A have more importance in the map of class a than in that of b, and parts B in that
    of b. Equal ones count nothing as published, repaired one half.

    Args:
        importance: (N, 2, P) in the maps of the two classes.
        shared: (N, 2, P) bool, A and B.
    """
    sums = np.einsum("ncp,nsp->ncs", importance, shared)
    own, other = sums[:, [0, 1], [0, 1]], sums[:, [1, 0], [0, 1]]
    hits = (own > other) + (0.0 if published else 0.5) * (own == other)
    return np.where(shared.any((1, 2)), hits.mean(1), np.nan)


def background_independence(truth: PartTruth, published: bool = False) -> np.ndarray:
    """BI (N, O) of f alone: 1 for background objects whose deletion is irrelevant; NaN where there is none.

    Repaired, objects of which nothing is seen are left out.
    """
    small = irrelevant(truth, published)[:, truth.n_parts :]
    given = ~np.isnan(truth.without_object).all(2)
    return np.where(given if published else given & truth.visible[:, truth.n_parts :], small, np.nan)
