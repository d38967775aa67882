"""What a map explains: the activation of a concept, a logit of the classifier f, or a logit of the explainer g."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from viscoin.models.classifier import Classifier
from viscoin.models.ensemble import Encoding, VisCoIN

Stage = int | str
STAGES: tuple[Stage, ...] = (0, 1, 2, "psi")


class Observed(NamedTuple):
    """What a target gives for B images, with the graph of its computation where the images require gradients.

    Attributes:
        scores: (B, S).
        maps: feature maps (B, C, h, w) by stage, 0 (finest) to 2 of f, and "psi", the one that Psi reads concepts from,
            where Psi takes part.
        code: all that an ensemble makes of the images, where the target is one of its concepts.
    """

    scores: Tensor
    maps: Mapping[Stage, Tensor]
    code: Encoding | None = None


class Target(Protocol):
    """A model and S scores that it gives to an image. Observing changes nothing about the model."""

    noun: str  # what one score belongs to, for people
    nouns: str

    @property
    def n_scores(self) -> int:
        """S."""

    @property
    def model(self) -> nn.Module:
        """All that takes part in the scores."""

    @property
    def classifier(self) -> Classifier:
        """The network that sees the images, whose layers have the feature maps."""

    def of(self, model: nn.Module) -> "Target":
        """The same question to another model of the kind."""

    def observe(self, images: Tensor) -> Observed:
        """Scores and feature maps of images (B, 3, H, W) in [-1, 1]."""

    def scores(self, images: Tensor) -> Tensor:
        """Scores (B, S) alone."""


class ConceptActivation:
    """phi_k of the concept extractor Psi, for each of K concepts."""

    noun, nouns = "concept", "concepts"

    def __init__(self, ensemble: VisCoIN) -> None:
        self.ensemble = self.model = ensemble

    @property
    def classifier(self) -> Classifier:
        return self.ensemble.classifier

    def of(self, model: Any) -> "ConceptActivation":
        return ConceptActivation(model)

    @property
    def n_scores(self) -> int:
        return self.ensemble.n_concepts

    def observe(self, images: Tensor) -> Observed:
        code = self.ensemble.encode(images)
        return Observed(self.ensemble.activations(code.concept_maps), _maps_of(code), code)

    def scores(self, images: Tensor) -> Tensor:
        return self.ensemble.activations(self.ensemble.concept_maps(images)[1])


class ClassifierLogit:
    """Logits of the classifier f."""

    noun, nouns = "class", "classes"

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = self.model = classifier

    def of(self, model: Any) -> "ClassifierLogit":
        return ClassifierLogit(model)

    @property
    def n_scores(self) -> int:
        return self.classifier.n_classes

    def observe(self, images: Tensor) -> Observed:
        output = self.classifier.features(images)
        return Observed(output.logits, dict(enumerate(output.maps)))

    def scores(self, images: Tensor) -> Tensor:
        return self.classifier(images)


class ExplainerLogit:
    """Logits of the explainer g = Theta o Psi o f."""

    noun, nouns = "class", "classes"

    def __init__(self, ensemble: VisCoIN) -> None:
        self.ensemble = self.model = ensemble

    @property
    def classifier(self) -> Classifier:
        return self.ensemble.classifier

    def of(self, model: Any) -> "ExplainerLogit":
        return ExplainerLogit(model)

    @property
    def n_scores(self) -> int:
        return self.ensemble.explainer.n_classes

    def observe(self, images: Tensor) -> Observed:
        code = self.ensemble.encode(images)
        return Observed(self.ensemble.explain(code.concept_maps), _maps_of(code))

    def scores(self, images: Tensor) -> Tensor:
        return self.ensemble(images)


def _maps_of(code: Encoding) -> dict[Stage, Tensor]:
    return {**dict(enumerate(code.maps)), "psi": code.latent}
