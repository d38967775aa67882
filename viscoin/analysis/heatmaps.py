"""Where in the image a concept is: maps of phi_k itself, never of a layer."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from viscoin.datasets import to_pixels
from viscoin.models.ensemble import VisCoIN
from viscoin.testing.inference import evaluation

STAGES = (0, 1, 2)


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
    """

    images: np.ndarray
    concepts: np.ndarray
    heatmaps: np.ndarray
    grids: np.ndarray
    activations: np.ndarray
    relevance: np.ndarray
    predicted: np.ndarray


def concept_heatmaps(
    ensemble: VisCoIN,
    images: Tensor,
    concepts: Tensor | None = None,
    top: int = 4,
    stages: tuple[int, ...] = STAGES,
    device: torch.device | str = "cpu",
) -> HeatmapResult:
    """HiResCAM of phi_k (Draelos & Carin 2020, Eq. 4) on the feature maps A of f, multiplied over stages.

    Each position of a stage gets relu(sum_c d phi_k / d A_c * A_c), where gradients reach an early stage through the
    later ones too. The product keeps the sharpness of the finest stage and leaves out what coarser ones do not see.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        concepts: (B, M) concept indices; by default the `top` most relevant of each image.
        stages: which of the three feature maps of f to use, 0 the finest.

    Raises:
        ValueError: a concept or stage index is out of range.
    """
    if not stages or not set(stages) <= set(STAGES):
        raise ValueError(f"stages {stages} are unknown; choose from 0 (finest), 1 and 2")
    with evaluation(ensemble, device, gradients=True), torch.enable_grad():
        images = images.to(device, memory_format=torch.channels_last)
        code = ensemble.encode(images.clone().requires_grad_())
        phi = ensemble.activations(code.concept_maps)
        predicted = ensemble.explain(code.concept_maps).argmax(1)
        relevance = ensemble.relevance(phi, predicted).detach()
        concepts = _checked(concepts, relevance, top).to(phi.device)
        maps = [code.maps[stage] for stage in stages]
        chosen = phi.gather(1, concepts)
        heat = torch.stack([_heatmap(column, maps, images.shape[-2:]) for column in chosen.unbind(1)], 1)
    index = concepts[..., None, None].expand(-1, -1, *code.concept_maps.shape[2:])
    grids = F.interpolate(code.concept_maps.detach().gather(1, index), images.shape[-2:], mode="nearest")
    return HeatmapResult(
        images=to_pixels(images),
        concepts=concepts.cpu().numpy(),
        heatmaps=heat.cpu().numpy(),
        grids=grids.cpu().numpy(),
        activations=chosen.detach().cpu().numpy(),
        relevance=relevance.gather(1, concepts).cpu().numpy(),
        predicted=predicted.cpu().numpy(),
    )


def _checked(concepts: Tensor | None, relevance: Tensor, top: int) -> Tensor:
    count = relevance.shape[1]
    if concepts is None:
        return relevance.argsort(dim=1, descending=True, stable=True)[:, : min(top, count)]
    if concepts.ndim != 2 or len(concepts) != len(relevance):
        raise ValueError(f"concepts {tuple(concepts.shape)} must be (B, M) for {len(relevance)} images")
    if ((concepts < 0) | (concepts >= count)).any():
        raise ValueError(f"--concept-indices {concepts.max()} is out of range; there are {count} concepts, from 0")
    return concepts


def _heatmap(activation: Tensor, maps: list[Tensor], size: torch.Size) -> Tensor:
    """(B,) activations of one concept per image -> (B, H, W) in [0, 1]."""
    gradients = torch.autograd.grad(activation.sum(), maps, retain_graph=True, allow_unused=True)
    heats = [
        _unit(_enlarged((gradient * feature_map).sum(1, keepdim=True).clamp(min=0).detach(), size))
        for feature_map, gradient in zip(maps, gradients, strict=True)
        if gradient is not None
    ]
    if not heats:
        return activation.detach().new_zeros(len(activation), *size)
    product, mean = torch.stack(heats).prod(0), torch.stack(heats).mean(0)
    disjoint = product.amax((1, 2), keepdim=True) == 0
    return _unit(torch.where(disjoint, mean, product))


def _enlarged(heat: Tensor, size: torch.Size) -> Tensor:
    """(B, 1, h, w) -> (B, H, W)."""
    return F.interpolate(heat, size, mode="bilinear", align_corners=False).squeeze(1)


def _unit(heat: Tensor) -> Tensor:
    """Divide each map by its maximum; maps of zeros stay zero."""
    peak = heat.amax((1, 2), keepdim=True)
    return heat / torch.where(peak > 0, peak, torch.ones_like(peak))
