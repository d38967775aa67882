"""The ensemble VisCoIN: f, Psi, Theta, Omega and G (Parekh et al., ICLR 2025, arXiv 2407.01331)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from viscoin.models.classifier import Classifier, ClassifierOutput
from viscoin.models.concept_extractor import ConceptExtractor
from viscoin.models.explainer import Explainer, activations
from viscoin.models.generator import AdaptedGenerator
from viscoin.models.no_generator import NoGenerator


class Encoding(NamedTuple):
    """What f and Psi make of images."""

    logits: Tensor  # of f, (B, n_classes)
    maps: tuple[Tensor, ...]  # the three feature maps of f, (B, C_i, H_i, W_i)
    concept_maps: Tensor  # Phi, (B, K, 3, 3), >= 0
    support: Tensor  # Phi', (B, S), S = 0 without a generator
    latent: Tensor  # of Psi, what concepts and support are read from, (B, C, h, w)


class VisCoIN(nn.Module):
    """A classifier that is explained by concepts, and a generator that shows them.

    f and the synthesis network are frozen: no gradients for their weights (but where `viscoin.generator_rate` trains
    the latter), eval mode always. Gradients flow through them to images and style vectors.

    Args:
        classifier, concept_extractor, explainer, generator: the parts, which must fit together. Without a generator
            (None) there are concepts, their votes and their places, as in FLINT (Parekh et al. 2021, arXiv 2010.09345),
            and whatever draws is refused.
        class_names: one for each logit.

    Raises:
        ValueError: numbers of classes or concepts, or image sizes, that differ between the parts.
    """

    def __init__(
        self,
        classifier: Classifier,
        concept_extractor: ConceptExtractor,
        explainer: Explainer,
        generator: AdaptedGenerator | None,
        class_names: Sequence[str],
    ) -> None:
        super().__init__()
        _check_fit(classifier, concept_extractor, explainer, generator, class_names)
        self.classifier = classifier.requires_grad_(False).eval()
        self.concept_extractor = concept_extractor
        self.explainer = explainer
        self.generator = cast(AdaptedGenerator, NoGenerator() if generator is None else generator)
        self.class_names = list(class_names)

    @classmethod
    def from_architecture(cls, architecture: Mapping[str, Any], class_names: Sequence[str]) -> "VisCoIN":
        """Rebuild an ensemble, with random weights, from its `architecture`."""
        classifier = Classifier(**architecture["classifier"])
        n_concepts, width = architecture["n_concepts"], architecture.get("support_width")
        support, channels = architecture.get("support", "learned"), architecture["latent_channels"]
        drawing, dropout, norm = architecture["generator"], architecture["dropout"], architecture["weight_norm"]
        return cls(
            classifier,
            ConceptExtractor(classifier.feature_shapes, n_concepts, channels, width, support),
            Explainer(n_concepts, classifier.n_classes, dropout, norm, architecture.get("classes")),
            None if drawing is None else AdaptedGenerator(n_concepts=n_concepts, support_width=width, **drawing),
            class_names,
        )

    @property
    def architecture(self) -> dict[str, Any]:
        """All that `from_architecture` needs; goes through JSON unchanged."""
        chosen = self.explainer.chosen
        return {
            "classifier": self.classifier.architecture,
            "generator": self.generator.architecture,
            "n_concepts": self.n_concepts,
            "latent_channels": self.concept_extractor.latent_channels,
            "support_width": self.concept_extractor.support_width,
            "support": self.concept_extractor.support_kind,
            "dropout": self.explainer.dropout.p,
            "weight_norm": self.explainer.weight_norm,
            **({} if chosen is None else {"classes": chosen.tolist()}),
        }

    @property
    def draws(self) -> bool:
        """Whether there is a generator."""
        return not isinstance(self.generator, NoGenerator)

    @property
    def explained_classes(self) -> list[str]:
        """Names of the classes that g knows: all of f, or those that were chosen when it was trained."""
        chosen = self.explainer.chosen
        return self.class_names if chosen is None else [self.class_names[c] for c in chosen.tolist()]

    @property
    def n_concepts(self) -> int:
        """K."""
        return self.concept_extractor.n_concepts

    def train(self, mode: bool = True) -> "VisCoIN":
        """Switch Psi, Theta and Omega; f and the synthesis network stay in eval mode."""
        super().train(mode)
        self.classifier.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> logits (B, n_classes) of g; -10,000 for classes that it does not know."""
        return self.explain(self.concept_maps(images)[1])

    def encode(self, images: Tensor, supported: int | None = None, exact: bool = False) -> Encoding:
        """Run f and Psi on images (B, 3, H, W) in [-1, 1]. f keeps a graph only for images that require a gradient.

        Args:
            supported: number of leading images to give the support of, those that G reconstructs; None for all.
            exact: run Psi in float32 under autocast as well, as concepts of the pursuit need, which are small
                differences of large numbers.
        """
        logits, maps = self._features(images)
        if not exact:
            return Encoding(logits, maps, *self.concept_extractor(maps, supported))
        with torch.autocast(images.device.type, enabled=False):
            return Encoding(logits, maps, *self.concept_extractor([part.float() for part in maps], supported))

    def concept_maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of f and concept maps (B, K, 3, 3) as `encode` gives them, without the support of the generator."""
        logits, maps = self._features(images)
        return logits, self.concept_extractor.concept_maps(self.concept_extractor.latent(maps))

    def _features(self, images: Tensor) -> ClassifierOutput:
        with torch.set_grad_enabled(images.requires_grad and torch.is_grad_enabled()):
            return self.classifier.features(images)

    def decode(self, concept_maps: Tensor, support: Tensor, noise_mode: str = "const") -> Tensor:
        """Concept maps (B, K, 3, 3) and support (B, S) -> images (B, 3, H, W) around [-1, 1], not clamped.

        By Omega alone, as published.
        """
        return self.generator(concept_maps, support, noise_mode)

    def edit(self, code: Encoding, concept_maps: Tensor, noise_mode: str = "const") -> Tensor:
        """The images of a code with these concept maps (B, K, 3, 3) instead, (B, 3, H, W), not clamped.

        What changes is drawn by Omega and, where the ensemble has them, by the directions of the changed concepts.
        With the code's own maps it is what `decode` draws.
        """
        return self.generator(concept_maps, code.support, noise_mode, code.concept_maps)

    def explain(self, concept_maps: Tensor) -> Tensor:
        """Concept maps (B, K, 3, 3) -> logits (B, n_classes) of g."""
        return self.explainer(concept_maps)

    def activations(self, concept_maps: Tensor) -> Tensor:
        """Concept maps (B, K, 3, 3) -> concept activations phi (B, K)."""
        return activations(concept_maps)

    def relevance(self, phi: Tensor, classes: Tensor) -> Tensor:
        """Relevance (B, K) in [-1, 1] of concepts with activations phi (B, K) for classes (B,) (paper, Sec. 3.4).

        r_k = phi_k * Theta[c, k], divided by the largest absolute value over k; zero where all activations are.
        """
        contribution = phi * self.explainer.weight[classes]
        largest = contribution.abs().amax(1, keepdim=True)
        return contribution / largest.clamp_min(torch.finfo(contribution.dtype).tiny)


def amplify(concept_maps: Tensor, concepts: Tensor, factor: float | Tensor) -> Tensor:
    """Concept maps (B, K, 3, 3) with those of the chosen concepts (B, K) or (K,), bool, multiplied by lambda.

    Args:
        factor: lambda; 0 removes the concepts, 1 changes nothing; a tensor must broadcast to (B, K, 3, 3).
    """
    return torch.where(concepts[..., None, None], concept_maps * factor, concept_maps)


def _check_fit(
    classifier: Classifier,
    concept_extractor: ConceptExtractor,
    explainer: Explainer,
    generator: AdaptedGenerator | None,
    class_names: Sequence[str],
) -> None:
    if not classifier.n_classes == explainer.n_classes == len(class_names):
        raise ValueError(
            f"the classifier knows {classifier.n_classes} classes, the explainer {explainer.n_classes}, and there are "
            f"{len(class_names)} class names; build all from one dataset"
        )
    if concept_extractor.n_concepts != explainer.n_concepts:
        raise ValueError(
            f"the concept extractor has {concept_extractor.n_concepts} concepts, the explainer {explainer.n_concepts}"
        )
    if (generator is None) != (concept_extractor.support_kind == "none"):
        raise ValueError("the support is what a generator reads; an ensemble has both or neither")
    if generator is None:
        return
    if generator.img_resolution != classifier.resolution or generator.img_channels != 3:
        raise ValueError(
            f"the generator makes images of {generator.img_resolution} px with {generator.img_channels} channels, "
            f"the classifier takes {classifier.resolution} px with 3; train both at one dataset.resolution"
        )
