"""Psi, Theta, Omega and G of an ensemble whose classifier f is elsewhere."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from viscoin.models.concept_extractor import ConceptExtractor
from viscoin.models.explainer import Explainer
from viscoin.models.generator import AdaptedGenerator


class EnsembleParts(nn.Module):
    """An ensemble without f, as some older checkpoints hold it. It explains nothing before f is added.

    Args:
        feature_shapes: (C, H, W) of the three feature maps of f, from fine to coarse.
        architecture: as that of `VisCoIN`, without its classifier.
        n_classes: number of logits of g.
    """

    def __init__(
        self, feature_shapes: Sequence[Sequence[int]], architecture: Mapping[str, Any], n_classes: int
    ) -> None:
        super().__init__()
        self.architecture: dict[str, Any] = {
            "feature_shapes": [list(shape) for shape in feature_shapes],
            "architecture": dict(architecture),
            "n_classes": n_classes,
        }
        n_concepts = architecture["n_concepts"]
        shapes = [(channels, height, width) for channels, height, width in feature_shapes]
        self.concept_extractor = ConceptExtractor(
            shapes, n_concepts, architecture["latent_channels"], architecture.get("support_width"),
            architecture.get("support", "learned"),
        )  # fmt: skip
        self.explainer = Explainer(n_concepts, n_classes, architecture["dropout"], architecture["weight_norm"])
        self.generator = AdaptedGenerator(
            n_concepts=n_concepts, support_width=architecture.get("support_width"), **architecture["generator"]
        )
