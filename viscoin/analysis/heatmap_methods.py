"""Ways to find where phi_k comes from: each takes a `Subject` and gives maps (B, M, H, W) >= 0 of any scale."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F

from viscoin.analysis.amplification import amplify_images
from viscoin.models.ensemble import Encoding, VisCoIN

STAGES = (0, 1, 2, "psi")
FACTOR = 2.0  # of the amplification whose change is shown
STEPS = 16  # of the path integral
SMOOTHING = 1 / 32  # deviation of the Gaussian over maps of single pixels, of the image's side
BLUR = 1 / 10  # deviation of the Gaussian that takes the details out of an image, of its side
PATCHES = 8  # that cover a side; they move by half of their own
BATCH = 64

# Steps of autograd that only lay a tensor out anew, as from tokens to a map.
_LAYOUT = {"Alias", "Clone", "Permute", "ReshapeAlias", "Slice", "Transpose", "UnsafeView", "View"}


@dataclass(frozen=True)
class Subject:
    """What is looked at: M concepts (B, M) in images (B, 3, H, W), and how the ensemble sees these.

    `latent` (B, C, h, w) is what the last convolution of Psi takes, where it was asked for. With it and `code` comes
    the graph of their computation.
    """

    ensemble: VisCoIN
    images: Tensor
    code: Encoding
    concepts: Tensor
    latent: Tensor | None

    @property
    def size(self) -> torch.Size:
        return self.images.shape[-2:]

    def activations(self, images: Tensor) -> Tensor:
        """phi (B, K)."""
        return self.ensemble.activations(self.ensemble.encode(images).concept_maps)

    def feature_map(self, stage: int | str) -> Tensor:
        found = self.latent if stage == "psi" else self.code.maps[int(stage)]
        if found is None:
            raise ValueError("stage 'psi' was not recorded")
        return found


@contextmanager
def recorded_latent(ensemble: VisCoIN, wanted: bool) -> Iterator[list[Tensor]]:
    """Notes what the last convolution of Psi, which draws the concept maps, takes at each encoding inside."""
    inputs: list[Tensor] = []
    if not wanted:
        yield inputs
        return
    hook = ensemble.concept_extractor.conv5.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    try:
        yield inputs
    finally:
        hook.remove()


# --- class activation maps: A a feature map, G = d phi_k / d A, both (B, C, h, w) ---------------------------------


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
WEIGHINGS: Mapping[str, Weighing] = {"hirescam": hirescam, "gradcam": gradcam, "layercam": layercam}


def activation_maps(subject: Subject, weighing: Weighing, stages: Sequence[int | str]) -> Tensor:
    """relu of the weighing at each stage, multiplied over stages: as sharp as the finest, without what others miss."""
    chosen = subject.ensemble.activations(subject.code.concept_maps).gather(1, subject.concepts)
    maps = [subject.feature_map(stage) for stage in stages]
    heats = []
    for column in chosen.unbind(1):
        weighed = [
            unit(_enlarged(weighing(A, G).clamp(min=0), subject.size))
            for A, G in zip(maps, _gradients(column.sum(), maps), strict=True)
        ]
        together, mean = torch.stack(weighed).prod(0), torch.stack(weighed).mean(0)
        disjoint = together.amax((1, 2), keepdim=True) == 0
        heats.append(torch.where(disjoint, mean, together).detach())
    return torch.stack(heats, 1)


def _gradients(value: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
    """d value / d map for each map, through Psi and through all that f makes of it later.

    The maps of transformers are copies of tokens, laid out for Psi alone: f goes on with the tokens. So the gradient
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


# --- on the image itself ------------------------------------------------------------------------------------------


def integrated_gradients(subject: Subject) -> Tensor:
    """Integral of gradients from the blurred image x' to x (Sundararajan et al. 2017, arXiv 1703.01365, Eq. 1).

    Summed over colours and smoothed over pixels, as gradients of single pixels are noisy (Smilkov et al. 2017, arXiv
    1706.03825); what raises phi_k stays.
    """
    heat = path_integral(subject).cpu().numpy()
    sigma = SMOOTHING * subject.size[0]
    smooth = gaussian_filter(heat, (0, 0, sigma, sigma), mode="nearest")
    return torch.from_numpy(smooth).clamp(min=0).to(subject.images.device)


def path_integral(subject: Subject, steps: int = STEPS) -> Tensor:
    """Signed attributions (B, M, H, W), by the midpoint rule; their sum approaches phi_k(x) - phi_k(x')."""
    start = blurred(subject.images)
    way = subject.images - start
    total = torch.zeros(*subject.concepts.shape, *subject.size, device=way.device)
    for step in range(steps):
        images = (start + (step + 0.5) / steps * way).requires_grad_()
        chosen = subject.activations(images).gather(1, subject.concepts)
        for m, column in enumerate(chosen.unbind(1)):
            total[:, m] += (torch.autograd.grad(column.sum(), images, retain_graph=True)[0] * way).sum(1)
    return total / steps


def occlusion(subject: Subject) -> Tensor:
    """Mean fall of phi_k over the patches that hide a pixel (Zeiler & Fergus 2014, arXiv 1311.2901, Sec. 4.2).

    Patches show the blurred image instead, and are averaged as in RISE (Petsiuk et al. 2018, arXiv 1806.07421, Eq. 6).
    It takes no gradients and tells what the ensemble does when pixels change, at hundreds of encodings an image.
    """
    masks = _patches(*subject.size).to(subject.images.device)
    weights = masks.flatten(1) / masks.flatten(1).sum(0)
    heats = []
    with torch.no_grad():
        whole = subject.activations(subject.images)
        for image, hidden, before, concepts in zip(
            subject.images, blurred(subject.images), whole, subject.concepts, strict=True
        ):
            after = [subject.activations(torch.where(part[:, None], hidden, image)) for part in masks.split(BATCH)]
            fall = (before - torch.cat(after))[:, concepts].clamp(min=0)
            heats.append((fall.T @ weights).unflatten(1, subject.size))
    return torch.stack(heats)


def _patches(height: int, width: int) -> Tensor:
    """(P, H, W) bool: squares that move by half their side, over the border by half of it too."""
    side = max(2, height // PATCHES)
    rows, columns = (range(-(side // 2), length, max(1, side // 2)) for length in (height, width))
    places = list(product(rows, columns))
    masks = torch.zeros(len(places), height, width, dtype=torch.bool)
    for mask, (y, x) in zip(masks, places, strict=True):
        mask[max(y, 0) : y + side, max(x, 0) : x + side] = True
    return masks[masks.any(2).any(1)]


def blurred(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) without details, of the same colours."""
    sigma = BLUR * images.shape[-1]
    smooth = gaussian_filter(images.detach().cpu().numpy(), (0, 0, sigma, sigma), mode="nearest")
    return torch.from_numpy(smooth).to(images.device)


# --- of the explanation -------------------------------------------------------------------------------------------


def activation_grid(subject: Subject) -> Tensor:
    """The 3x3 concept map of which phi_k is the maximum, each cell a ninth of the image.

    A cell sees more than its ninth, up to the whole image, so its place need not be that of the cause.
    """
    maps = subject.code.concept_maps.detach()
    index = subject.concepts[..., None, None].expand(-1, -1, *maps.shape[2:])
    return F.interpolate(maps.gather(1, index), subject.size, mode="nearest")


def amplification_change(subject: Subject) -> Tensor:
    """|difference| of the images generated with phi_k amplified and as it is, smoothed over pixels."""
    shape = subject.concepts.shape
    selection = F.one_hot(subject.concepts.flatten(), subject.ensemble.n_concepts).bool()
    images = subject.images.repeat_interleave(shape[1], 0)
    found = amplify_images(subject.ensemble, images, selection, (1.0, FACTOR), device=subject.images.device)
    sigma = SMOOTHING * subject.size[0]
    changes = gaussian_filter(np.asarray(found.changes[:, -1], np.float32), (0, sigma, sigma), mode="nearest")
    return torch.from_numpy(changes).unflatten(0, shape).to(subject.images.device)


METHODS: Mapping[str, Callable[[Subject], Tensor]] = {
    "integrated-gradients": integrated_gradients,
    "occlusion": occlusion,
    "grid": activation_grid,
    "change": amplification_change,
}


def unit(heat: Tensor) -> Tensor:
    """Divide each map (..., H, W) by its maximum; maps of zeros stay zero."""
    peak = heat.amax((-2, -1), keepdim=True)
    return heat / torch.where(peak > 0, peak, torch.ones_like(peak))


def _enlarged(heat: Tensor, size: torch.Size) -> Tensor:
    """(B, h, w) -> (B, H, W)."""
    return F.interpolate(heat[:, None], size, mode="bilinear", align_corners=False).squeeze(1)
