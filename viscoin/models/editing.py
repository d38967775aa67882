"""Edits of concept maps beyond `amplify`: a concept turned on or off or swapped for another, and how far to go.

Units come from what is usual of concepts: from the directions of an ensemble, which were measured with them, or, for an
ensemble without directions, from the concept maps of some images by `measured`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from viscoin.models.directions import ConceptDirections
from viscoin.models.ensemble import Encoding, VisCoIN

LENGTHS = (0.25, 0.4, 0.55, 0.7, 0.85, 1.0)
OTHERS = 2.0  # weight of changes that nobody asked for
SMALL = 0.02  # change of an activation, in units of its largest, below which nobody asked for it


class ReadBack(NamedTuple):
    """How an edit shows in B drawn images, in units of the largest activation of each concept."""

    missed: Tensor  # (B,) mean distance of the changed concepts from what they were to become
    off_target: Tensor  # (B,) mean change of the others, those that go with a changed one counting less

    @property
    def cost(self) -> Tensor:
        """(B,) what a good length makes small."""
        return self.missed + OTHERS * self.off_target


class Drawn(NamedTuple):
    """B images of an edit, each with its length of L that were tried."""

    images: Tensor  # (B, 3, H, W) in [-1, 1]
    lengths: Tensor  # (B,)
    costs: Tensor  # (B, L)


def measured(concept_maps: Tensor) -> ConceptDirections:
    """What is usual of concepts in the concept maps (N, K, 3, 3) of many images; its directions are empty."""
    usual = ConceptDirections(concept_maps.shape[1], (), 0)
    usual.measure(concept_maps)
    return usual.to(concept_maps.device)


def switched_on(
    ensemble: VisCoIN, concept_maps: Tensor, concept: int, value: float = 1.0, usual: ConceptDirections | None = None
) -> Tensor:
    """Concept maps (B, K, 3, 3) with one that is there: its template, and its opposite, if it has one, gone.

    Args:
        value: in units of its 90 % quantile; 0 removes the concept and leaves its opposite alone.
        usual: what is usual; default: that of the ensemble's directions.

    Raises:
        ValueError: neither `usual` nor directions.
    """
    maps, opposite = concept_maps.clone(), ensemble.concept_extractor.opposites()[concept]
    maps[:, concept] = value * _usual(ensemble, usual).templates[concept].to(maps)
    if opposite is not None and value > 0:
        maps[:, opposite] = 0
    return maps


def switched_off(
    ensemble: VisCoIN, concept_maps: Tensor, concept: int, usual: ConceptDirections | None = None
) -> Tensor:
    """Concept maps (B, K, 3, 3) with one that is not there, and its opposite, if it has one, there instead."""
    maps, opposite = concept_maps.clone(), ensemble.concept_extractor.opposites()[concept]
    maps[:, concept] = 0
    if opposite is not None:
        maps[:, opposite] = _usual(ensemble, usual).templates[opposite].to(maps)
    return maps


def swapped(
    ensemble: VisCoIN,
    concept_maps: Tensor,
    off: int,
    on: int,
    value: float = 1.0,
    usual: ConceptDirections | None = None,
) -> Tensor:
    """Concept maps (B, K, 3, 3) with concept `off` switched off and then `on` switched on."""
    return switched_on(ensemble, switched_off(ensemble, concept_maps, off, usual), on, value, usual)


def changed_concepts(before: Tensor, target: Tensor, usual: ConceptDirections) -> Tensor:
    """The concepts (B, K), bool, whose activations (B, K) an edit changes by more than a trifle."""
    return (target - before).abs() > SMALL * usual.scale.to(before)


def read_back(found: Tensor, unedited: Tensor, target: Tensor, changed: Tensor, usual: ConceptDirections) -> ReadBack:
    """Compare activations (B, K) that are read from the images of an edit with what they should be.

    Args:
        found, unedited: read from the images with and without the edit.
        target: of the edited concept maps.
        changed: (B, K), bool, the concepts that the edit is about; others count as `ConceptDirections.unrelated` says.
    """
    scale = usual.scale.to(found)
    weight = usual.unrelated(changed)
    missed = ((found - target).abs() / scale * changed).sum(1) / changed.sum(1).clamp_min(1)
    moved = ((found - unedited).abs() / scale * weight).sum(1)
    return ReadBack(missed, moved / weight.sum(1).clamp_min(torch.finfo(weight.dtype).tiny))


@torch.no_grad()
def length_by_readback(
    ensemble: VisCoIN,
    code: Encoding,
    edited_maps: Tensor,
    lengths: Sequence[float] = LENGTHS,
    usual: ConceptDirections | None = None,
) -> Drawn:
    """Draw for each image the part of an edit that f and Psi read back best from the image drawn.

    A whole edit often leaves what G knows; a part of it may show the concept as well and disturb less. No label and no
    other judge is asked.

    Args:
        edited_maps: (B, K, 3, 3); a length s draws maps + s (edited_maps - maps).
        lengths: to try; the first of the best is taken.
        usual: what is usual; default: that of the ensemble's directions.

    Raises:
        ValueError: neither `usual` nor directions, or no lengths.
    """
    if not lengths:
        raise ValueError("give at least one of `lengths`")
    usual = _usual(ensemble, usual)
    maps = code.concept_maps
    before, target = ensemble.activations(maps), ensemble.activations(edited_maps)
    changed = changed_concepts(before, target, usual)
    unedited = found_activations(ensemble, drawn_images(ensemble, code, maps))
    drawn = [drawn_images(ensemble, code, torch.lerp(maps, edited_maps, length)) for length in lengths]
    tried = [read_back(found_activations(ensemble, images), unedited, target, changed, usual) for images in drawn]
    costs = torch.stack([one.cost for one in tried], 1)
    best = costs.argmin(1)
    images = torch.stack(drawn, 1)[torch.arange(len(best), device=best.device), best]
    return Drawn(images, torch.tensor(lengths, device=best.device)[best], costs)


def drawn_images(ensemble: VisCoIN, code: Encoding, concept_maps: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] of an edit."""
    return ensemble.edit(code, concept_maps).float().clamp(-1, 1)


def found_activations(ensemble: VisCoIN, images: Tensor) -> Tensor:
    """Activations (B, K) that f and Psi read from images."""
    return ensemble.activations(ensemble.concept_maps(images)[1])


def _usual(ensemble: VisCoIN, usual: ConceptDirections | None) -> ConceptDirections:
    usual = ensemble.generator.directions if usual is None else usual
    if usual is None:
        raise ValueError("the ensemble has no directions, so it does not know what is usual; give `usual`")
    return usual
