"""Where in the image a concept is, or what speaks for a class: maps of one score, never of a layer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from viscoin.attribution.concepts import activation_grid, concepts_of
from viscoin.attribution.explained import Explained, unit
from viscoin.attribution.heatmap_methods import FINEST, check_method, maps_of, title_of
from viscoin.attribution.targets import STAGES, ConceptActivation, Stage, Target
from viscoin.datasets import to_pixels
from viscoin.errors import Refused
from viscoin.inference.batches import evaluation
from viscoin.models.ensemble import VisCoIN

DEFAULT_METHOD = "hirescam"


@dataclass(frozen=True)
class HeatmapResult:
    """Maps of M concepts in each of B images.

    Attributes:
        images: (B, H, W, 3) uint8.
        concepts: (B, M) indices of the concepts.
        heatmaps: (B, M, H, W) in [0, 1], each with maximum 1; all 0 for a concept that is not active.
        grids: (B, M, H, W) >= 0, the 3x3 activation grid of the concept, enlarged; its maximum is the activation.
        activations, relevance: (B, M), the relevance for the class that g predicts.
        predicted: (B,) class that g predicts.
        method, stages: how the maps were made; no stages for methods that know none.
    """

    images: np.ndarray
    concepts: np.ndarray
    heatmaps: np.ndarray
    grids: np.ndarray
    activations: np.ndarray
    relevance: np.ndarray
    predicted: np.ndarray
    method: str = DEFAULT_METHOD
    stages: tuple[Stage, ...] = FINEST

    @property
    def title(self) -> str:
        """The method as its paper writes it, and the map: "HiResCAM, finest map"."""
        return title_of(self.method, self.stages)

    def to_dict(self, class_names: Sequence[str], labels: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """For each image its classes, and for each concept its numbers and the highest point (x, y), in pixels."""
        rows = []
        for i, heats in enumerate(self.heatmaps):
            true = {} if labels is None else {"true": class_names[labels[i]]}
            concepts = [self._concept(i, m, heat) for m, heat in enumerate(heats)]
            rows.append({"predicted": class_names[self.predicted[i]], **true, "concepts": concepts})
        return rows

    def _concept(self, i: int, m: int, heat: np.ndarray) -> dict[str, Any]:
        y, x = np.unravel_index(int(heat.argmax()), heat.shape)
        numbers = {name: float(getattr(self, name)[i, m]) for name in ("activations", "relevance")}
        point = [int(x), int(y)] if heat.any() else None
        return {"concept": int(self.concepts[i, m]), **numbers, "highest_point": point}


def heatmaps(
    model: nn.Module,
    images: Tensor,
    target: Target,
    chosen: Tensor,
    method: str = DEFAULT_METHOD,
    stages: Sequence[Stage] | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Maps (B, M, H, W) >= 0 of the chosen scores in images (B, 3, H, W) in [-1, 1], each with maximum 1 or all 0.

    Args:
        model: what the target belongs to; it is moved to the device, and otherwise stays as it is.
        target: of `targets.py`: activations of concepts, logits of f, or logits of g.
        chosen: (B, M) indices of scores.
        method, stages: as `concept_heatmaps`.

    Raises:
        Refused: an unknown method or stage, one that the target does not have, or a score that is out of range.
    """
    stages = check_method(method, stages)
    with evaluation(model, device, gradients=True):
        return unit(maps_of(_observed(target, images, device, chosen), method, stages))


def _observed(target: Target, images: Tensor, device: torch.device | str, chosen: Tensor) -> Explained:
    wrong = chosen[(chosen < 0) | (chosen >= target.n_scores)]
    if len(wrong):
        raise Refused(
            f"{target.noun}_indices",
            int(wrong[0]),
            f"out of range; there are {target.n_scores} {target.nouns}, counted from 0",
        )
    if chosen.ndim != 2 or len(chosen) != len(images):
        raise Refused(None, None, f"indices {tuple(chosen.shape)} must be (B, M) for {len(images)} images")
    images = images.to(device, memory_format=torch.channels_last)
    with torch.enable_grad():
        observed = target.observe(images.clone().requires_grad_())
    return Explained(target, images, chosen.to(observed.scores.device), observed)


def concept_heatmaps(
    ensemble: VisCoIN,
    images: Tensor,
    concepts: Tensor | None = None,
    top: int = 4,
    stages: Sequence[Stage] | None = None,
    device: torch.device | str = "cpu",
    method: str = DEFAULT_METHOD,
) -> HeatmapResult:
    """Maps of phi_k in images, by a method of `methods.py`.

    The default, HiResCAM on the finest feature map of f, finds the causes of phi_k on the built-in birds as well as any
    other: better than at coarser stages or their product, and not behind hundreds of occlusions.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        concepts: (B, M) concept indices; by default the `top` most relevant of each image.
        stages: for hirescam, gradcam and layercam: feature maps of f, 0 (finest) to 2, or "psi", the map from which
            Psi takes the concepts; the maps of several are multiplied. By default 0. The three of a transformer are its
            last blocks, equally fine.
        method: hirescam, gradcam, layercam, integrated-gradients, occlusion, grid or change.

    Raises:
        ValueError: an unknown method or stage, stages for a method without, or a concept that is out of range.
    """
    stages, target = check_method(method, stages), ConceptActivation(ensemble)
    with evaluation(ensemble, device, gradients=True):
        some = torch.zeros(len(images), 0, dtype=torch.long)
        explained = _observed(target, images, device, some if concepts is None else concepts)
        (_, code), phi = concepts_of(explained), explained.observed.scores.detach()
        predicted = ensemble.explain(code.concept_maps).argmax(1)
        relevance = ensemble.relevance(phi, predicted).detach()
        if concepts is None:
            ranked = relevance.argsort(dim=1, descending=True, stable=True)
            explained = replace(explained, chosen=ranked[:, : min(top, target.n_scores)])
        heat = maps_of(explained, method, stages)
    concepts = explained.chosen
    chosen = phi.gather(1, concepts)
    return HeatmapResult(
        images=to_pixels(images),
        concepts=concepts.cpu().numpy(),
        heatmaps=unit(heat * (chosen > 0)[..., None, None]).cpu().numpy(),
        grids=activation_grid(explained).cpu().numpy(),
        activations=chosen.cpu().numpy(),
        relevance=relevance.gather(1, concepts).cpu().numpy(),
        predicted=predicted.cpu().numpy(),
        method=method,
        stages=stages,
    )


def parse_stages(text: str) -> tuple[Stage, ...]:
    """Stages by name: one of 0, 1, 2 and psi, or all.

    Raises:
        Refused: unknown.
    """
    known: dict[str, tuple[Stage, ...]] = {str(stage): (stage,) for stage in STAGES} | {"all": STAGES}
    if text not in known:
        raise Refused("stage", text, "unknown stage", f"choose one of: {', '.join(known)} (0 is the finest)")
    return known[text]
