"""Can one value of an attribute be swapped for another one, as an independent judge sees it?"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from stylegan2_ada.together import collect, own
from viscoin.datasets import ImageDataset
from viscoin.inference.batches import evaluation, progress
from viscoin.models.directions import ConceptDirections
from viscoin.models.editing import drawn_images, length_by_readback, switched_off, switched_on
from viscoin.models.ensemble import VisCoIN
from viscoin.models.judge import Judge
from viscoin.statistics.bootstrap import Estimate
from viscoin.testing.truth.attributes import AttributeScore, group_of
from viscoin.testing.truth.causal import Cases

MOST_OF_EACH = 12  # images for each swap


@dataclass(frozen=True)
class Surgery:
    """What the judge sees of swaps in N images, by G groups of attributes.

    Attributes:
        groups: their names.
        seen: the new value is the most probable one of its group.
        before: it was so before the swap, in the image drawn without one.
        off_target: mean absolute change of the probabilities of attributes of other groups; a sum over the cases.
        length: share of the swap that is drawn, chosen by read-back; a sum over the cases.
    """

    groups: tuple[str, ...]
    seen: Cases
    before: Cases
    off_target: Cases
    length: Cases

    def estimates(self, seed: int = 0) -> dict[str, Estimate]:
        """All measures, and the share of swaps seen in each group, with intervals over images."""
        names = ("seen", "before", "off_target", "length")
        found = {name: getattr(self, name).share(seed=seed) for name in names}
        found |= {f"group.{group}": self.seen.share(column, seed) for column, group in enumerate(self.groups)}
        return {key: estimate for key, estimate in found.items() if estimate is not None}


@dataclass(frozen=True)
class Swap:
    """One value of a group for another one, by the concepts that were matched to both."""

    group: str
    old: AttributeScore
    new: AttributeScore


def possible_swaps(scores: Sequence[AttributeScore]) -> list[Swap]:
    """Every ordered pair of values of one group that both have a concept."""
    groups = dict.fromkeys(group_of(score.name) for score in scores)
    members = {group: [score for score in scores if group_of(score.name) == group] for group in groups}
    return [Swap(group, *pair) for group, values in members.items() for pair in permutations(values, 2)]


def operate(
    ensemble: VisCoIN,
    judge: Judge,
    dataset: ImageDataset,
    indices: np.ndarray,
    swaps: Sequence[Swap],
    usual: ConceptDirections,
    device: torch.device | str = "cpu",
    cases: int = 400,
    seed: int = 0,
) -> Surgery:
    """Swap values in random images that show the old one, by a length that f and Psi choose without the judge.

    Args:
        indices: (N,) of the images in the dataset.
        swaps: from `possible_swaps`; of more than `cases` a random sample.
        cases: about so many, at most 12 images for each swap.
    """
    names = list(dataset.attribute_names)
    groups = np.array([group_of(name) for name in names])
    shown, usual = dataset.attributes[indices], usual.to(device)
    some = np.sort(np.random.default_rng(seed).permutation(len(swaps))[:cases])
    swaps = [swaps[i] for i in some]
    each = min(MOST_OF_EACH, max(1, cases // max(1, len(swaps))))

    def operated(swap: Swap) -> tuple[np.ndarray, np.ndarray]:
        """Rows of images, and (4, rows): seen, before, off-target, length."""
        bar.update()
        old, new = names.index(swap.old.name), names.index(swap.new.name)
        rows = np.flatnonzero(shown[:, old] & ~shown[:, new])
        rows = np.random.default_rng([seed, old, new]).permutation(rows)[:each]
        if not len(rows):
            return rows, np.zeros((4, 0))
        code = ensemble.encode(dataset.batch(indices[rows])[0].to(device, memory_format=torch.channels_last))
        maps = _switched(ensemble, code.concept_maps, swap.old, False, usual)
        drawn = length_by_readback(ensemble, code, _switched(ensemble, maps, swap.new, True, usual), usual=usual)
        after, before = (
            judge(images).sigmoid().cpu().numpy()
            for images in (drawn.images, drawn_images(ensemble, code, code.concept_maps))
        )
        values, others = np.flatnonzero(groups == swap.group), groups != swap.group
        seen, seen_before = (values[p[:, values].argmax(1)] == new for p in (after, before))
        off = np.abs(after - before)[:, others].mean(1) if others.any() else np.zeros(len(rows))
        return rows, np.stack([seen, seen_before, off, drawn.lengths.cpu().numpy()])

    mine = own(swaps)
    with evaluation(ensemble, device), evaluation(judge, device), progress(len(mine), "surgery", "swap") as bar:
        found = collect(operated(swap) for swap in mine)
    order = list(dict.fromkeys(swap.group for swap in swaps))
    sums, count = np.zeros((4, len(indices), len(order))), np.zeros((len(indices), len(order)))
    for swap, (rows, values) in zip(swaps, found, strict=True):
        column = order.index(swap.group)
        sums[:, rows, column] += values
        count[rows, column] += 1
    return Surgery(tuple(order), *(Cases(part, count, "swaps") for part in sums))


def _switched(
    ensemble: VisCoIN, maps: Tensor, score: AttributeScore, present: bool, usual: ConceptDirections
) -> Tensor:
    """Concept maps of images that show an attribute, or do not: its concept is on, or off if it is one of absence."""
    switch = switched_on if present == (score.direction > 0) else switched_off
    return switch(ensemble, maps, score.concept, usual=usual)
