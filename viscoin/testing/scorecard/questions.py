"""Questions to maps, whatever they explain: each has one score for a map in a scene, and one that chance would have.

A map explains a score of an image: a logit of the classifier f, or the activation of a concept. The *part in question*
is the part of the scene whose deletion lowers f's logit of the class that it predicts most: the classifier looks there,
by the only witness that cannot be wrong. A class map explains this logit. A concept's map explains the activation of
the concept that stands for what this part shows ("tail: forked"): it was matched to that attribute on validation
images. Both are asked about the same part of the same scene, and the explained score is fixed on the whole scene, so
it stays the same one when something is deleted.

| question | of a class map | of a concept's map |
|---|---|---|
| points | the highest place is in the part that f needs most | it is in the part that the concept is named after |
| mass | so much of the evidence lies there | so much of the concept lies there |
| falls | evidence leaves the place of the part when it is gone | the concept leaves that place when its part is gone |
| stays | objects behind the bird are no evidence: nothing moves | they are not the concept's part: nothing moves |
| stable | noise that nobody sees does not move it | the same |

No column is enough alone. A blob in the middle stays and is stable, the edges of an image fall with their part: the
controls are rows of the table.
"""

from dataclasses import dataclass

import numpy as np

from viscoin.testing.attribution import places
from viscoin.testing.attribution.robustness import spearman


@dataclass(frozen=True)
class Question:
    """What a column asks.

    Attributes:
        title: for the head of the column.
        definition: what the number is, in one sentence.
        chance: what chance is, in a few words.
        least: the lowest value that it can have.
    """

    title: str
    definition: str
    chance: str
    least: float = 0.0


QUESTIONS = {
    "points": Question(
        "points at the part", "share of scenes in which the highest place of the map lies in the part in question",
        "the area of the part",
    ),
    "mass": Question(
        "mass in the part", "share of the map's positive values that lies in the part in question",
        "the area of the part",
    ),
    "falls": Question(
        "falls with the part",
        "(s - s') / (s + s'): s is the share of the map in the place of the part, s' the same after its deletion",
        "0: a map that does not change", -1.0,
    ),
    "stays": Question(
        "stays without background",
        "rank correlation of the map's pixels with those of the map without the objects behind the bird",
        "the rank correlation with the map of another scene", -1.0,
    ),
    "stable": Question(
        "stable under noise",
        "lowest rank correlation of the map's pixels with those of the map under noise of 0.02 in [-1, 1]",
        "the rank correlation with the map of another scene", -1.0,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Maps:
    """Maps (N, H, W) of one kind in N scenes: of the whole scene, without the part in question, without the objects
    behind the bird, and (K, N, H, W) of the whole scene under K samples of noise."""

    whole: np.ndarray
    without: np.ndarray
    plain: np.ndarray
    noisy: np.ndarray


def ask(maps: Maps, masks: np.ndarray, objects: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each of `QUESTIONS` the scores (N,) and what chance would score (N,); NaN where it cannot be asked.

    Args:
        masks: (N, H, W) bool, the place of the part in question, grown.
        objects: (N,) bool: there are objects behind the bird to delete.
    """
    area = places.area(masks)
    other = spearman(maps.whole, np.roll(maps.whole, 1, 0)) if len(masks) > 1 else np.full(len(masks), np.nan)
    stays = np.where(objects, spearman(maps.whole, maps.plain), np.nan)
    stable = np.min([spearman(maps.whole, noisy) for noisy in maps.noisy], 0)
    return {
        "points": (places.pointing(maps.whole, masks), area),
        "mass": (places.mass(maps.whole, masks), area),
        "falls": (fall(maps.whole, maps.without, masks), np.zeros(len(masks))),
        "stays": (stays, np.where(objects, other, np.nan)),
        "stable": (stable, other),
    }


def fall(before: np.ndarray, after: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """(s - s') / (s + s') in [-1, 1] (N,): how far the share of the maps (N, H, W) in the masks falls.

    Shares of the positive values, so that maps of any scale can be compared; a map without any has a share of 0: what
    is gone altogether has left the place, too. 1: nothing is left there, 0: nothing has changed, or never was there.
    """
    s, left = share_inside(before, masks), share_inside(after, masks)
    return np.divide(s - left, s + left, out=np.zeros(len(s)), where=s + left > 0)


def share_inside(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Share (N,) of the positive values of maps (N, H, W) in the masks; 0 of maps that have none."""
    positive = np.maximum(maps, 0).astype(np.float64)
    total = positive.sum((1, 2))
    return np.divide((positive * masks).sum((1, 2)), total, out=np.zeros(len(total)), where=total > 0)
