"""Does a concept react to its attribute when that alone is changed, and to nothing else?

Concepts and attributes are matched on validation images by AUROC, which classes confound: a few classes give many
attributes the same pattern over images. An intervention changes one thing in a scene and leaves the rest, so the answer
is about causes (cf. Suter et al. 2019, "Robustly disentangled causal mechanisms").

A concept *responds* if it changes by more than a tenth (MARGIN) of its range, which is that of the middle 95 % of
validation images. It is expected to be *strong* in images with its attribute, or in those without it if it is weaker
where the attribute is (direction -1).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from viscoin.statistics.bootstrap import Estimate, bootstrap
from viscoin.testing.truth.attributes import RESAMPLES, AttributeScore, group_of
from viscoin.testing.truth.scenes import GROUPS, Interventions, Responses

MARGIN = 0.1
RANGE = (0.025, 0.975)


@dataclass(frozen=True)
class Cases:
    """How many cases there are of each image and attribute (N, A), and in how many of them it is as asked."""

    hits: np.ndarray
    cases: np.ndarray
    unit: str

    def share(self, attribute: int | None = None, seed: int = 0) -> Estimate | None:
        """Share of all cases, or of those of one attribute; the interval resamples images. None without cases."""
        columns = slice(None) if attribute is None else slice(attribute, attribute + 1)
        rows = np.stack([part[:, columns].sum(1) for part in (self.hits, self.cases)], 1)
        rows = rows[rows[:, 1] > 0]
        if not len(rows):
            return None
        value = rows[:, 0].sum() / rows[:, 1].sum()
        if value in (0, 1):  # nothing to resample: the exact interval for that number of images
            found = bootstrap(np.full(len(rows), bool(value)))
        else:
            found = bootstrap(rows, lambda drawn: drawn[:, 0].sum() / drawn[:, 1].sum(), seed=seed, resamples=RESAMPLES)
        return replace(found, n=int(rows[:, 1].sum()), unit=self.unit)


@dataclass(frozen=True)
class Causal:
    """What the concepts matched to A attributes do under interventions.

    Attributes:
        deletion: the attribute's part is deleted where the concept is expected to be strong: it falls.
        deletion_other: another part is deleted from the same image: it falls.
        deletion_first: no other part lowers it as much; a comparison without a margin.
        deletion_first_chance: one in the number of parts that are seen.
        swap: the attribute comes or goes by a swap of its group: the concept follows.
        swap_other: a group of another part is swapped in the same image: it changes in that direction.
        background: all objects behind the bird are deleted: it does not move.
        reaction: (N, A, G) size of its change, in ranges, when each group is swapped; NaN where nothing is seen of it.
    """

    deletion: Cases
    deletion_other: Cases
    deletion_first: Cases
    deletion_first_chance: Cases
    swap: Cases
    swap_other: Cases
    background: Cases
    reaction: np.ndarray

    @property
    def cases(self) -> dict[str, Cases]:
        return {name: part for name, part in vars(self).items() if isinstance(part, Cases)}


def activation_range(activations: np.ndarray) -> np.ndarray:
    """Range (K,) of the middle 95 % of activations (N, K)."""
    low, high = np.quantile(activations, RANGE, axis=0)
    return high - low


def causal_tests(
    interventions: Interventions, responses: Responses, ranges: np.ndarray, scores: Sequence[AttributeScore]
) -> Causal:
    """Follow the best concept of each attribute through all interventions.

    Args:
        ranges: (K,) from `activation_range` on validation images.
        scores: A attributes with their concepts.
    """
    world = interventions.world
    columns = [world.attributes.index(score.name) for score in scores]
    concepts = np.array([score.concept for score in scores])
    direction = np.array([score.direction for score in scores])
    group = np.array([world.groups.index(group_of(score.name)) for score in scores])
    part_of_group = np.array([world.parts.index(part) for part in world.group_part.values()])
    part = part_of_group[group]

    # Changes (N, A, ...) of each attribute's concept, in ranges; a concept that never changes has none.
    scale = np.where(ranges > 0, ranges, 1)[concepts]
    before = responses.before[:, concepts]
    deleted, swapped = (
        (after[:, :, concepts].swapaxes(1, 2) - before[..., None]) / scale[:, None]
        for after in (responses.deleted, responses.swapped)
    )
    plain = (responses.plain[:, concepts] - before) / scale

    shown, rows = interventions.shown[:, columns], np.arange(len(scores))
    strong = shown == (direction > 0)
    own_part = np.eye(len(world.parts), dtype=bool)[part]  # (A, P)
    seen = strong & interventions.visible[:, part]
    falls = deleted < -MARGIN
    own = deleted[:, rows, part]
    visible = interventions.visible[:, None]
    least = np.where(visible & ~own_part, deleted, 0).min(2)
    others = seen[..., None] & visible & ~own_part

    # +1 where the own group's swap makes the attribute true, -1 where it makes it false, 0 where neither.
    becomes = (interventions.swapped_to[:, group] == columns).astype(int) - shown
    becomes *= interventions.swap_visible[:, group]
    follows = swapped * (becomes * direction)[..., None] > MARGIN
    foreign = (becomes != 0)[..., None] & interventions.swap_visible[:, None] & (part_of_group != part[:, None])
    objects = np.broadcast_to(interventions.objects[:, None], plain.shape)
    return Causal(
        deletion=Cases(falls[:, rows, part] & seen, seen, "deletions"),
        deletion_other=Cases((falls & others).sum(2), others.sum(2), "deletions"),
        deletion_first=Cases((own < least) & seen, seen, "deletions"),
        deletion_first_chance=Cases(seen / np.maximum(visible.sum(2), 1), seen, "deletions"),
        swap=Cases(follows[:, rows, group] & (becomes != 0), becomes != 0, "swaps"),
        swap_other=Cases((follows & foreign).sum(2), foreign.sum(2), "swaps"),
        background=Cases((np.abs(plain) <= MARGIN) & objects, objects, "deletions"),
        reaction=np.where(interventions.swap_visible[:, None], np.abs(swapped), np.nan),
    )


def purity(
    reaction: np.ndarray,
    scores: Sequence[AttributeScore],
    column: int | None = None,
    seed: int = 0,
    groups: Sequence[str] = GROUPS,
) -> Estimate | None:
    """Share of its own group in all that a concept reacts to: 1 for one attribute group only, 1/G for all alike.

    The relative importance of Eastwood & Williams 2018 (DCI), its importances measured by interventions. Mean over
    attributes whose concept reacts at all, or that of one attribute; None where none does.

    Args:
        reaction: (N, A, G).
        groups: names of the G groups.
    """
    own_group = np.array([groups.index(group_of(score.name)) for score in scores])
    if column is not None:
        reaction, own_group = reaction[:, [column]], own_group[[column]]
    seen = ~np.isnan(reaction)
    rows = np.stack([np.where(seen, reaction, 0), seen], 1).astype(np.float32)

    def mean(drawn: np.ndarray) -> float:
        own = _shares(*drawn.sum(0))[np.arange(len(own_group)), own_group]
        return float(own[~np.isnan(own)].mean()) if not np.isnan(own).all() else float("nan")

    return None if np.isnan(mean(rows)) else bootstrap(rows, mean, seed=seed, resamples=RESAMPLES)


def reaction_shares(reaction: np.ndarray) -> np.ndarray:
    """Reaction (N, A, G) -> share (A, G) of each group in the mean reaction of each concept; NaN if it never reacts."""
    return _shares(np.nansum(reaction, 0), (~np.isnan(reaction)).sum(0))


def _shares(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    mean = total / np.maximum(count, 1)
    everything = mean.sum(1, keepdims=True)
    return np.divide(mean, everything, out=np.full(mean.shape, np.nan), where=everything > 0)
