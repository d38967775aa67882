"""Is a concept where its attribute is: in its heatmap, and in what amplification changes in the image?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from stylegan2_ada.together import collect, own
from viscoin.attribution.heatmaps import concept_heatmaps
from viscoin.datasets import ImageDataset
from viscoin.inference.batches import evaluation, progress
from viscoin.models.ensemble import VisCoIN, amplify
from viscoin.statistics.bootstrap import Estimate, bootstrap
from viscoin.statistics.measures import known_mean
from viscoin.testing.truth.attributes import RESAMPLES, AttributeScore
from viscoin.testing.truth.scenes import Interventions

GROWTH = 1 / 16  # of the image's side: a cell of the first feature map that concepts are made from
IMAGES = 24


@dataclass(frozen=True)
class Localisation:
    """Values per image and attribute (N, A); NaN for images that were not looked at, and edits without a generator.

    Each attribute is looked for in images where its concept is expected to be strong, is active, and its part is seen.

    Attributes:
        pointing: 1 if the highest point of the heatmap lies in the grown part mask, else 0 (the pointing game of
            Zhang et al. 2018, who allow a margin too); chance is `area`.
        mass: share of the heatmap inside the grown mask; chance is `area`.
        area: share of the image that the grown mask covers.
        edit_iou: overlap (intersection over union) of the grown mask with the same number of pixels, those that change
            most between lambda 0 and lambda 1.
        edit_iou_chance: the same for random pixels, a / (2 - a) for area a.
        edit_inside: share of the change inside the grown mask; chance is `area`.
    """

    pointing: np.ndarray
    mass: np.ndarray
    area: np.ndarray
    edit_iou: np.ndarray
    edit_iou_chance: np.ndarray
    edit_inside: np.ndarray

    def mean(self, name: str, attribute: int | None = None, seed: int = 0) -> Estimate | None:
        """Mean over all pairs of image and attribute, or over those of one; the interval resamples images."""
        table = getattr(self, name)
        table = table if attribute is None else table[:, [attribute]]
        table = table[~np.isnan(table).all(1)]
        if not len(table):
            return None
        found = bootstrap(table, known_mean, seed=seed, resamples=RESAMPLES)
        return replace(found, n=int((~np.isnan(table)).sum()), unit="pairs")


def grown(mask: np.ndarray, growth: float = GROWTH) -> np.ndarray:
    """A mask (H, W) bool, wider by `growth` of its side in every direction."""
    radius = round(growth * mask.shape[0])
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return cv2.dilate(mask.astype(np.uint8), kernel).astype(bool)


def pointing_game(heatmaps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Share (B,) of the highest points of maps (B, H, W) that lie in the masks (B, H, W) bool: 0 or 1 but for ties."""
    highest = heatmaps == heatmaps.max((1, 2), keepdims=True)
    return inside(highest.astype(float), masks)


def inside(weights: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Share (B,) of weights (B, H, W) >= 0 that lies in the masks (B, H, W) bool; NaN where all weights are 0."""
    total = weights.sum((1, 2))
    return np.divide((weights * masks).sum((1, 2)), total, out=np.full(len(total), np.nan), where=total > 0)


def edit_iou(change: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Intersection over union (B,) of masks with the same number of most changed pixels; NaN where nothing changes."""
    found = np.full(len(change), np.nan)
    for row, (values, mask) in enumerate(zip(change.reshape(len(change), -1), masks.reshape(len(masks), -1))):
        if values.any() and mask.any():
            top = np.argsort(-values, kind="stable")[: mask.sum()]
            common = mask[top].sum()
            found[row] = common / (2 * mask.sum() - common)
    return found


def localise(
    ensemble: VisCoIN,
    dataset: ImageDataset,
    interventions: Interventions,
    activations: np.ndarray,
    scores: Sequence[AttributeScore],
    device: torch.device | str = "cpu",
    images: int = IMAGES,
    seed: int = 0,
) -> Localisation:
    """Heatmaps and edits of the best concept of each of A attributes.

    Args:
        activations: phi (N, K) of the N images of the interventions.
        images: size of a random sample for each attribute.
    """
    world, masked = interventions.world, list(dataset.part_names)

    def located(column: int) -> dict[str, np.ndarray]:
        found = {name: np.full(len(interventions.indices), np.nan) for name in Localisation.__annotations__}
        score = scores[column]
        bar.update()
        part = world.part_of(score.name)
        strong = interventions.shown[:, world.attributes.index(score.name)] == (score.direction > 0)
        seen = interventions.visible[:, world.parts.index(part)] & (part in masked)
        rows = np.flatnonzero(strong & seen & (activations[:, score.concept] > 0))
        rows = np.random.default_rng([seed, column]).permutation(rows)[:images]
        if not len(rows):
            return found
        indices = interventions.indices[rows]
        masks = np.stack([grown(dataset.part_masks(int(index))[masked.index(part)]) for index in indices])
        batch, _ = dataset.batch(indices)
        concepts = torch.full((len(rows), 1), score.concept)
        heat = concept_heatmaps(ensemble, batch, concepts, device=device).heatmaps[:, 0]
        area = masks.mean((1, 2))
        edits = [np.full(len(rows), np.nan)] * 3
        if ensemble.draws:
            change = edit_change(ensemble, batch, score.concept, device)
            edits = [edit_iou(change, masks), area / (2 - area), inside(change, masks)]
        values = Localisation(pointing_game(heat, masks), inside(heat, masks), area, *edits)
        for name, values_of_all in found.items():
            values_of_all[rows] = getattr(values, name)
        return found

    mine = own(range(len(scores)))
    with progress(len(mine), "localisation", "attribute") as bar:
        columns = collect(located(column) for column in mine)
    return Localisation(**{name: np.stack([column[name] for column in columns], 1) for name in columns[0]})


def edit_change(ensemble: VisCoIN, images: Tensor, concept: int, device: torch.device | str) -> np.ndarray:
    """Mean absolute difference (B, H, W) over the colours between the images generated with lambda 0 and lambda 1."""
    with evaluation(ensemble, device):
        code = ensemble.encode(images.to(device, memory_format=torch.channels_last))
        only = torch.zeros(ensemble.n_concepts, dtype=torch.bool, device=code.concept_maps.device)
        only[concept] = True
        without, rebuilt = (
            ensemble.edit(code, amplify(code.concept_maps, only, factor)).float().clamp(-1, 1) for factor in (0.0, 1.0)
        )
        return (rebuilt - without).abs().mean(1).cpu().numpy()
