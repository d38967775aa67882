"""The adapter from concept activations to an embedding space in which images and captions can be compared."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from viscoin.models.classifier import Classifier
from viscoin.models.scorers import AttributeScorer, Scorer, load_clip


class Concept2Clip(nn.Module):
    """phi (B, K) -> embedding (B, D) of the image: one linear layer, or two with `hidden` units between.

    In training most concepts are hidden at each step, so that what a concept says does not lean on all the others:
    concepts go together, and a plain fit would leave to each only what the rest do not say.

    Args:
        n_concepts: K.
        dim: D.
        hidden: units between two layers; 0 for a single linear one.
        dropout: share of concepts hidden at a step.
        space: the embedding space: {"model": "attributes", "names": [...], "features": F}, or
            {"model": ..., "pretrained": ...} of open_clip.
        ensemble: digest of the f and Psi whose concepts it reads.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self, n_concepts: int, dim: int, hidden: int, dropout: float, space: Mapping[str, Any], ensemble: str
    ) -> None:
        super().__init__()
        self.n_concepts, self.space, self.ensemble = n_concepts, dict(space), ensemble
        self.architecture: dict[str, Any] = {
            "n_concepts": n_concepts,
            "dim": dim,
            "hidden": hidden,
            "dropout": dropout,
            "space": self.space,
            "ensemble": ensemble,
        }
        self.register_buffer("mean", torch.zeros(n_concepts))  # of the training images, as the spread
        self.register_buffer("scale", torch.ones(n_concepts))
        self.dropout = nn.Dropout(dropout)
        layers = [nn.Linear(n_concepts, hidden), nn.GELU()] if hidden else []
        self.layers = nn.Sequential(*layers, nn.Linear(hidden or n_concepts, dim))
        self.probe = nn.Linear(space["features"], dim) if space["model"] == "attributes" else None
        if self.probe is not None:
            self.probe.requires_grad_(False)

    def forward(self, phi: Tensor) -> Tensor:
        """Concept activations (B, K) -> embeddings (B, D), not normalised."""
        return self.layers(self.dropout((phi - self.mean) / self.scale))

    def scorer(self, classifier: Classifier) -> Scorer:
        """The scorer in whose space it was trained; `classifier` is the f of its ensemble.

        Raises:
            ValueError: as `load_clip`.
        """
        if self.probe is not None:
            return AttributeScorer(classifier, self.space["names"], self.probe)
        return load_clip(self.space["model"], self.space["pretrained"], download=False)
