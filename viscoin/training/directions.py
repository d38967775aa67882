"""Learning one direction of w+ for each concept, by reading the edited images back with f and Psi.

No attribute is used: concepts of random images are turned up, down, on and off, and the image must show to f and Psi
just that.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from viscoin.models.directions import ConceptDirections

MOST = 3  # concepts that are edited together, so that directions do not depend on each other
FACTORS = (0.0, 0.0, 0.5, 1.5, 2.0)  # of concepts that are there
ON = (0.7, 1.2)  # of the 90 % quantile, for concepts that are turned on
CEILING = 1.3  # of the 97.5 % quantile: no concept is asked to grow beyond what f knows
OTHERS, IMAGE = 2.0, 0.5  # weights of the change of other concepts, and of the image, beside that of the chosen ones


@dataclass(frozen=True)
class Edits:
    """Changes of the concepts of B images, each (B, K): what maps are multiplied with, how much of the templates is
    added, which concepts are chosen, what they shall be, and which may do as they like."""

    factor: Tensor
    added: Tensor
    chosen: Tensor
    target: Tensor
    free: Tensor

    def apply(self, concept_maps: Tensor, templates: Tensor) -> Tensor:
        """Concept maps (B, K, 3, 3), edited."""
        return concept_maps * self.factor[..., None, None] + self.added[..., None, None] * templates


def random_edits(phi: Tensor, directions: ConceptDirections, opposites: Sequence[int | None]) -> Edits:
    """One to three edits of each image: half of them turn an absent concept on, the others multiply one that is there.

    Of two opposites the weaker one is turned on, and half of the time the stronger one off with it.

    Args:
        phi: (B, K) activations of the images.
    """
    axes = [(k, other) for k, other in enumerate(opposites) if other is None or k < other]
    usual = phi / directions.strong.clamp_min(1e-6)
    factor, added = torch.ones_like(phi), torch.zeros_like(phi)
    chosen, free, target = torch.zeros_like(phi, dtype=torch.bool), torch.zeros_like(phi, dtype=torch.bool), phi.clone()
    for row in range(len(phi)):
        for axis in torch.randperm(len(axes))[: int(torch.randint(1, MOST + 1, ()))].tolist():
            k, other = axes[axis]
            if other is not None and usual[row, k] < usual[row, other]:
                k, other = other, k
            if torch.rand(()) < 0.5:
                amount = float(torch.empty(()).uniform_(*ON))
                on = k if other is None else other
                factor[row, on], added[row, on], chosen[row, on] = 0, amount, True
                target[row, on] = amount * directions.strong[on]
                if other is not None and torch.rand(()) < 0.5:
                    factor[row, k], target[row, k], chosen[row, k] = 0, 0, True
                elif other is not None:
                    free[row, k] = True
            else:
                times = FACTORS[int(torch.randint(len(FACTORS), ()))]
                factor[row, k], chosen[row, k] = times, True
                target[row, k] = torch.minimum(times * phi[row, k], CEILING * directions.scale[k])
                if other is not None:
                    free[row, other] = True
    return Edits(factor, added, chosen, target, free)


def readback_terms(
    seen: Tensor, plain: Tensor, edits: Edits, directions: ConceptDirections, images: Tensor, unedited: Tensor
) -> dict[str, Tensor]:
    """How far edited images are from what was asked of them, in units of each concept's 97.5 % quantile.

    Args:
        seen, plain: activations (B, K) that f and Psi read in the edited images and in the unedited ones.
        images, unedited: both (B, 3, H, W).

    Returns:
        "chosen": distance of the chosen concepts to their targets; "others": change of those that were not chosen, less
        the more they correlate with a chosen one; "image": change of the image.
    """
    distance = (seen - edits.target).abs() / directions.scale
    chosen = edits.chosen.float()
    weight = directions.unrelated(edits.chosen) * ~edits.free
    change = (seen - plain).abs() / directions.scale
    return {
        "chosen": (distance * chosen).sum() / chosen.sum().clamp_min(1),
        "others": OTHERS * (change * weight).sum() / weight.sum().clamp_min(1),
        "image": IMAGE * (images - unedited).abs().mean(),
    }
