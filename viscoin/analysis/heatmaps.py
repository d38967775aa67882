"""Where in the image a concept is: maps of phi_k itself, never of a layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from viscoin.analysis.heatmap_methods import (
    METHODS,
    STAGES,
    WEIGHINGS,
    Subject,
    activation_grid,
    activation_maps,
    recorded_latent,
    unit,
)
from viscoin.datasets import to_pixels
from viscoin.models.ensemble import VisCoIN
from viscoin.testing.inference import evaluation

DEFAULT_METHOD = "hirescam"
FINEST = (0,)


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
    stages: tuple[int | str, ...] = FINEST

    @property
    def title(self) -> str:
        """ "hirescam, stage 0", or the method alone."""
        return ", stage ".join([self.method, *(["x".join(map(str, self.stages))] if self.stages else [])])

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


def concept_heatmaps(
    ensemble: VisCoIN,
    images: Tensor,
    concepts: Tensor | None = None,
    top: int = 4,
    stages: Sequence[int | str] | None = None,
    device: torch.device | str = "cpu",
    method: str = DEFAULT_METHOD,
) -> HeatmapResult:
    """Maps of phi_k in images, by the method that `heatmap_methods` describes under its name.

    The default, HiResCAM on the finest feature map of f, finds the causes of phi_k on the built-in birds as well as any
    other: better than at coarser stages or their product, and not behind hundreds of occlusions.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        concepts: (B, M) concept indices; by default the `top` most relevant of each image.
        stages: for hirescam, gradcam and layercam: feature maps of f, 0 (finest) to 2, or "psi", the map from which
            Psi draws the concepts; the maps of several are multiplied. By default 0. The three of a transformer are
            its last blocks, equally fine.
        method: hirescam, gradcam, layercam, integrated-gradients, occlusion, grid or change.

    Raises:
        ValueError: an unknown method or stage, stages for a method without, or a concept that is out of range.
    """
    stages = _check_method(method, stages)
    with (
        evaluation(ensemble, device, gradients=True),
        torch.enable_grad(),
        recorded_latent(ensemble, "psi" in stages) as latent,
    ):
        images = images.to(device, memory_format=torch.channels_last)
        code = ensemble.encode(images.clone().requires_grad_())
        phi = ensemble.activations(code.concept_maps).detach()
        predicted = ensemble.explain(code.concept_maps).argmax(1)
        relevance = ensemble.relevance(phi, predicted).detach()
        concepts = _checked(concepts, relevance, top).to(phi.device)
        subject = Subject(ensemble, images, code, concepts, latent[0] if latent else None)
        heat = activation_maps(subject, WEIGHINGS[method], stages) if stages else METHODS[method](subject)
    chosen = phi.gather(1, concepts)
    return HeatmapResult(
        images=to_pixels(images),
        concepts=concepts.cpu().numpy(),
        heatmaps=unit(heat * (chosen > 0)[..., None, None]).cpu().numpy(),
        grids=activation_grid(subject).cpu().numpy(),
        activations=chosen.cpu().numpy(),
        relevance=relevance.gather(1, concepts).cpu().numpy(),
        predicted=predicted.cpu().numpy(),
        method=method,
        stages=stages,
    )


def _check_method(method: str, stages: Sequence[int | str] | None) -> tuple[int | str, ...]:
    """The stages to use: none for methods that know none."""
    if method not in (*WEIGHINGS, *METHODS):
        raise ValueError(f"--method {method!r} is unknown; choose one of: {', '.join((*WEIGHINGS, *METHODS))}")
    if method in METHODS:
        if stages is not None:
            raise ValueError(f"--stage does not go with --method {method}; only with {', '.join(WEIGHINGS)}")
        return ()
    stages = FINEST if stages is None else tuple(stages)
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown or not stages:
        wrong = ", ".join(map(str, unknown)) or "(none)"
        raise ValueError(f"--stage {wrong} is unknown; choose 0 (finest), 1 or 2 of f, psi, or all")
    return stages


def _checked(concepts: Tensor | None, relevance: Tensor, top: int) -> Tensor:
    count = relevance.shape[1]
    if concepts is None:
        return relevance.argsort(dim=1, descending=True, stable=True)[:, : min(top, count)]
    if concepts.ndim != 2 or len(concepts) != len(relevance):
        raise ValueError(f"concepts {tuple(concepts.shape)} must be (B, M) for {len(relevance)} images")
    wrong = concepts[(concepts < 0) | (concepts >= count)]
    if len(wrong):
        raise ValueError(f"--concept-indices {wrong[0]} is out of range; there are {count} concepts, from 0")
    return concepts
