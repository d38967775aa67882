"""Scenes that show what the causal tests do."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from viscoin.attribution.heatmaps import concept_heatmaps
from viscoin.datasets.base import to_images
from viscoin.datasets.birds import (
    ATTRIBUTE_GROUPS,
    GROUP_PART,
    PARTS,
    attribute_names,
    delete_part,
    render,
    swap_variant,
)
from viscoin.datasets.birds.dataset import BirdsDataset
from viscoin.models.ensemble import VisCoIN
from viscoin.testing.baselines import CONCEPTS, ConceptFunctions
from viscoin.testing.truth.attributes import AttributeScore, group_of
from viscoin.testing.truth.scenes import Interventions

EXAMPLES = 4


@dataclass(frozen=True)
class Example:
    """A scene, the same with a part deleted, and with a variant swapped, for the best concept of one attribute.

    Attributes:
        images: (3, H, W, 3) uint8: before, deleted, swapped.
        titles: what each shows.
        activations: (3,), in units of the concept's range.
        heatmap: (H, W) in [0, 1], of the concept before.
        mask: (H, W) bool, visible pixels of the part before.
    """

    score: AttributeScore
    images: np.ndarray
    titles: tuple[str, str, str]
    activations: np.ndarray
    heatmap: np.ndarray
    mask: np.ndarray


def choose_examples(
    functions: ConceptFunctions,
    ensemble: VisCoIN,
    dataset: BirdsDataset,
    interventions: Interventions,
    before: np.ndarray,
    ranges: np.ndarray,
    scores: Sequence[AttributeScore],
    device: torch.device | str = "cpu",
    count: int = EXAMPLES,
) -> list[Example]:
    """The best-detected attribute of each of N parts, in the scene of median activation: neither best nor worst.

    Only concepts that are stronger where the attribute is, as the others have no place in such an image.

    Args:
        before: phi (N, K) of the N scenes.
        ranges: (K,) ranges of the concepts.
    """
    found: dict[str, Example] = {}
    for score in sorted(scores, key=lambda score: -score.auroc_validation):
        part = GROUP_PART[group_of(score.name)]
        if len(found) == count or part in found or score.direction < 0:
            continue
        shown = interventions.shown[:, attribute_names().index(score.name)]
        rows = np.flatnonzero(shown & interventions.visible[:, PARTS.index(part)])
        if len(rows) and ranges[score.concept] > 0:
            row = rows[np.argsort(before[rows, score.concept], kind="stable")[len(rows) // 2]]
            index = int(interventions.indices[row])
            found[part] = _example(functions, ensemble, dataset, index, score, ranges[score.concept], device)
    return list(found.values())


def _example(
    functions: ConceptFunctions,
    ensemble: VisCoIN,
    dataset: BirdsDataset,
    index: int,
    score: AttributeScore,
    scale: float,
    device: torch.device | str,
) -> Example:
    bird, scene, _ = dataset.item(index)
    group = group_of(score.name)
    part, size = GROUP_PART[group], dataset.resolution
    values = ATTRIBUTE_GROUPS[group]
    other = values[(values.index(bird[group]) + 1) % len(values)]
    image, masks = render(bird, scene, size)
    deleted = render(bird, delete_part(scene, part), size)[0]
    swapped = render(swap_variant(bird, group, other), scene, size)[0]
    images = np.stack([image, deleted, swapped])
    activations = functions(to_images(images))[CONCEPTS][:, score.concept]
    concepts = torch.tensor([[score.concept]])
    heatmap = concept_heatmaps(ensemble, to_images(image[None]), concepts, device=device).heatmaps[0, 0]
    titles = (score.name, f"no {part}", f"{group}: {other}")
    return Example(score, images, titles, activations / scale, heatmap, masks[PARTS.index(part)])
