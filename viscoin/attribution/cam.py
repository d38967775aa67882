"""Class activation maps: A a feature map, G = d score / d A, both (B, C, h, w)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F

from viscoin.attribution.explained import Explained, unit
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
            unit(_enlarged(weighing(A, evened(G, period)).clamp(min=0), explained.size))
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


def _enlarged(heat: Tensor, size: torch.Size) -> Tensor:
    """(B, h, w) -> (B, H, W)."""
    return F.interpolate(heat[:, None], size, mode="bilinear", align_corners=False).squeeze(1)
