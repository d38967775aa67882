"""Directions of single concepts in w+: what changes the image when one concept changes, and little else."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from viscoin.models.concept_extractor import CONCEPT_GRID

LARGE, STRONG = 0.975, 0.9  # quantiles: the largest activations, and those of images that have a concept
TOP = 0.1  # share of images whose maps make the template of a concept
SMALLEST = 1e-3


class ConceptDirections(nn.Module):
    """One offset for each concept and each style that concepts control, and what activations are usual.

    Args:
        n_concepts: K.
        styles: which of the style vectors, in order.
        w_dim: their width.

    Attributes:
        vectors: (K, S, w_dim); what `scale` more of a concept adds to its styles.
        scale: (K,) 97.5 % quantile of each activation, at least 0.001: the unit of changes.
        strong: (K,) 90 % quantile: an image that has the concept.
        templates: (K, 3, 3) mean concept map of the images in which it is strongest, its maximum `strong`.
        correlation: (K, K) absolute correlation of activations.
    """

    scale: Tensor
    strong: Tensor
    templates: Tensor
    correlation: Tensor

    def __init__(self, n_concepts: int, styles: Sequence[int], w_dim: int) -> None:
        super().__init__()
        self.styles = list(styles)
        self.vectors = nn.Parameter(torch.zeros(n_concepts, len(self.styles), w_dim))
        self.register_buffer("scale", torch.ones(n_concepts))
        self.register_buffer("strong", torch.ones(n_concepts))
        self.register_buffer("templates", torch.ones(n_concepts, CONCEPT_GRID, CONCEPT_GRID))
        self.register_buffer("correlation", torch.eye(n_concepts))

    def forward(self, ws: Tensor, change: Tensor) -> Tensor:
        """Style vectors (B, num_ws, w_dim) moved by a change (B, K) of the activations; no change moves nothing."""
        moved = ws.clone()
        moved[:, self.styles] += torch.einsum("bk,ksw->bsw", change / self.scale, self.vectors)
        return moved

    def unrelated(self, changed: Tensor) -> Tensor:
        """How much each concept counts (B, K) among those that an edit should leave alone.

        0 for the changed ones (B, K), and for others (1 - correlation)^2 with the nearest of them: who wants a crest
        also wants what comes with crests.
        """
        apart = (1 - self.correlation.to(changed.device)).clamp_min(0).square()
        return torch.where(changed[:, :, None], apart, 1.0).amin(1) * ~changed

    @torch.no_grad()
    def measure(self, concept_maps: Tensor) -> None:
        """Take what is usual from concept maps (N, K, 3, 3) of many images."""
        phi = concept_maps.float().amax((2, 3))
        # not by torch, which takes no more than 16 million numbers
        large, strong = torch.from_numpy(np.quantile(phi.cpu().numpy(), (LARGE, STRONG), axis=0)).float()
        self.scale.copy_(large.clamp_min(SMALLEST))
        self.strong.copy_(strong)
        top = phi.topk(max(1, int(TOP * len(phi))), 0).indices
        means = torch.stack([concept_maps[rows, k].float().mean(0) for k, rows in enumerate(top.T)])
        peaks = means.amax((1, 2), keepdim=True).clamp_min(SMALLEST)
        self.templates.copy_(means / peaks * self.strong[:, None, None])
        standard = (phi - phi.mean(0)) / (phi.std(0, correction=0) + 1e-6)
        self.correlation.copy_((standard.T @ standard / len(phi)).abs())
