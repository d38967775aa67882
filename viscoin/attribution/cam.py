"""Class activation maps: A a feature map, G = d score / d A, both (B, C, h, w)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F

from viscoin.attribution.explained import Explained, enlarged, unit
from viscoin.attribution.targets import Stage

# Steps of autograd that only lay a tensor out anew, as from tokens to a map.
_LAYOUT = {"Alias", "Clone", "Permute", "ReshapeAlias", "Slice", "Transpose", "UnsafeView", "View"}


def hirescam(feature_map: Tensor, gradient: Tensor) -> Tensor:
    """sum_c G_c * A_c (Draelos & Carin 2020, arXiv 2011.08891, Eq. 5): each position by its own gradient."""
    return (gradient * feature_map).sum(1)


def gradcam(feature_map: Tensor, gradient: Tensor) -> Tensor:
    """sum_c mean_hw(G_c) * A_c (Selvaraju et al. 2017, arXiv 1610.02391, Eqs. 1 and 2)."""
    return (gradient.mean((2, 3), keepdim=True) * feature_map).sum(1)


def layercam(feature_map: Tensor, gradient: Tensor) -> Tensor:
    """sum_c relu(G_c) * A_c (Jiang et al. 2021, LayerCAM, IEEE TIP 30, Eqs. 5 and 6): what would raise phi_k."""
    return (gradient.clamp(min=0) * feature_map).sum(1)


def gradcampp(feature_map: Tensor, gradient: Tensor) -> Tensor:
    """sum_c w_c A_c, w_c = sum_ij a_ij relu(G_ij), a = G^2 / (2 G^2 + S_c G^3) = 1 / (2 + S_c G), 0 where G = 0.

    Chattopadhay et al. 2018, arXiv 1710.11063, Eq. 19. S_c, the sum of A_c, is taken over all positions before it meets
    G. It is meant for maps >= 0.
    """
    scale = 2 + feature_map.sum((2, 3), keepdim=True) * gradient
    return _weighed(feature_map, _quotient(gradient.clamp(min=0), scale))


def smoothgradcampp(feature_map: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """Grad-CAM++ with D1, D2, D3, the means of G, G^2 and G^3 over noisy images: a = D2 / (2 D2 + S_c D3).

    Omeiza et al. 2019, arXiv 1908.01224. There D1 stands above the line, which is a slip: without noise, D2 alone gives
    Grad-CAM++.
    """
    scale = 2 * second + feature_map.sum((2, 3), keepdim=True) * third
    return _weighed(feature_map, _quotient(second, scale) * first.clamp(min=0))


def xgradcam(feature_map: Tensor, gradient: Tensor) -> Tensor:
    """sum_c w_c A_c, w_c = sum_ij G A / S_c, 0 where S_c = 0 (Fu et al. 2020, arXiv 2008.02312). For maps >= 0."""
    sums = feature_map.sum((2, 3), keepdim=True)
    return (_quotient((gradient * feature_map).sum((2, 3), keepdim=True), sums) * feature_map).sum(1)


def _quotient(above: Tensor, below: Tensor) -> Tensor:
    """0 where the lower one is 0."""
    return torch.where(
        below == 0, torch.zeros_like(above), above / torch.where(below == 0, torch.ones_like(below), below)
    )


def _weighed(feature_map: Tensor, weights: Tensor) -> Tensor:
    return (weights.sum((2, 3), keepdim=True) * feature_map).sum(1)


Weighing = Callable[[Tensor, Tensor], Tensor]


def activation_maps(explained: Explained, weighing: Weighing, stages: Sequence[Stage]) -> Tensor:
    """relu of the weighing at each stage, multiplied over stages: as sharp as the finest, without what others miss.

    Where the weighing uses gradients place by place, these are evened out over the strides behind the map.
    """
    chosen = explained.observed.scores.gather(1, explained.chosen)
    maps = [explained.observed.maps[stage] for stage in stages]
    coarsest = min(feature_map.shape[-1] for feature_map in explained.observed.maps.values())
    periods = [1 if weighing is gradcam else round(feature_map.shape[-1] / coarsest) for feature_map in maps]
    heats = []
    for column in chosen.unbind(1):
        weighed = [
            unit(enlarged(weighing(A, evened(G, period)).clamp(min=0), explained.size))
            for A, G, period in zip(maps, _gradients(column.sum(), maps), periods, strict=True)
        ]
        together, mean = torch.stack(weighed).prod(0), torch.stack(weighed).mean(0)
        disjoint = together.amax((1, 2), keepdim=True) == 0
        heats.append(torch.where(disjoint, mean, together).detach())
    return torch.stack(heats, 1)


def evened(gradient: Tensor, period: int) -> Tensor:
    """Mean of a gradient (B, C, H, W) over a window of `period` places a side; at the border, the outermost go on.

    A convolution of stride s reads some places of a map more often than others (kernels overlap) and each through
    another weight, so that gradients repeat every s places whatever the image shows. This window takes out exactly
    what repeats with that period.
    """
    if period == 1:
        return gradient
    means = F.avg_pool2d(F.pad(gradient, 4 * [period // 2], mode="replicate"), period, 1)
    # an even window has no middle: the mean of the two places
    return means if period % 2 else F.avg_pool2d(means, 2, 1)


def _gradients(value: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
    """d value / d map for each map, through Psi and through all that f makes of it later.

    The maps of transformers are copies of tokens, laid out for Psi alone: f continues with the tokens. So the gradient
    is taken at the tensor that a map was copied from.
    """
    sources = [_source(feature_map) for feature_map in maps]
    inputs: Any = [*maps, *sources]
    found = torch.autograd.grad(value, inputs, retain_graph=True, materialize_grads=True)
    pairs = zip(maps, found[: len(maps)], found[len(maps) :], strict=True)
    return [_as_map(whole, feature_map.shape, direct) for feature_map, direct, whole in pairs]


def _source(feature_map: Tensor) -> GradientEdge:
    edge = get_gradient_edge(feature_map)
    while edge.node.name().removesuffix("Backward0") in _LAYOUT:
        node, number = edge.node.next_functions[0]
        if node is None:
            break
        edge = GradientEdge(node, number)
    return edge


def _as_map(gradient: Tensor, shape: torch.Size, otherwise: Tensor) -> Tensor:
    """Lay a gradient of tokens (B, N, C), class tokens first, or of (B, H, W, C) out as a map (B, C, H, W)."""
    batch, channels, height, width = shape
    if gradient.shape == shape:
        return gradient
    if gradient.shape == (batch, height, width, channels):
        return gradient.permute(0, 3, 1, 2)
    if gradient.ndim == 3 and gradient.shape[2] == channels and gradient.shape[1] >= height * width:
        return gradient[:, -height * width :].transpose(1, 2).unflatten(2, (height, width))
    return otherwise
