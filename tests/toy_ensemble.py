"""An ensemble small enough to compute by hand: four concepts, each the brightness of one quadrant."""

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from viscoin.datasets import ImageDataset
from viscoin.models.classifier import Classifier, ClassifierOutput
from viscoin.models.ensemble import Encoding

SIZE = 8
# Class 0 is voted for by concept 0 and a little by concept 1, class 1 by concept 2; nobody listens to concept 3.
WEIGHT = [[4.0, 1.0, 0.0, 0.0], [0.0, 0.0, 4.0, 0.0]]


def quadrants(amounts: np.ndarray) -> np.ndarray:
    """Amounts (N, 4) in [0, 1] -> uint8 images (N, 8, 8, 3) whose quadrants have that brightness."""
    grid = np.asarray(amounts).reshape(-1, 2, 2).repeat(SIZE // 2, 1).repeat(SIZE // 2, 2)
    return np.round(grid * 255).astype(np.uint8)[..., None].repeat(3, 3)


def toy_dataset(amounts: np.ndarray, labels: list[int], split: str = "test") -> ImageDataset:
    return ImageDataset("toy", split, quadrants(amounts), np.array(labels), ["left", "right"])


class ToyClassifier(nn.Module):
    """Logits WEIGHT @ amounts; its three feature maps are the image's brightness in quadrants."""

    pooled = Classifier.pooled

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images).logits

    def features(self, images: Tensor) -> ClassifierOutput:
        amounts = (nn.functional.avg_pool2d(images.mean(1, keepdim=True), SIZE // 2) + 1) / 2
        channels = amounts.flatten(1)[..., None, None] * _places(images)
        return ClassifierOutput(amounts.flatten(1) @ self.weight.T, (channels, channels * 1, channels * 1))

    @property
    def last_layer(self) -> nn.Linear:
        layer = nn.Linear(4, len(self.weight), bias=False)
        layer.weight = nn.Parameter(self.weight)  # of a twin it is a plain tensor
        return layer

    def last_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        channels = self.features(images).maps[-1]
        return channels.amax((2, 3)), channels


class ToyExtractor(nn.Identity):
    def opposites(self) -> list[int | None]:
        return [None] * 4


class ToyEnsemble(nn.Module):
    """Everything that the measures use of an ensemble. Reconstructions are exact up to `offset` in the red channel."""

    draws = True

    def __init__(self, f: list[list[float]] = WEIGHT, g: list[list[float]] = WEIGHT, offset: float = 0.0) -> None:
        super().__init__()
        self.classifier = ToyClassifier(torch.tensor(f))
        self.concept_extractor = ToyExtractor()
        self.generator = SimpleNamespace(directions=None)
        self.weight = nn.Parameter(torch.tensor(g))
        self.explainer = SimpleNamespace(weight=self.weight)
        self.offset = offset
        self.class_names = ["left", "right"]
        self.n_concepts = 4

    def encode(self, images: Tensor) -> Encoding:
        output = self.classifier.features(images)
        amounts = output.maps[0].amax((2, 3))
        concept_maps = amounts[..., None, None].expand(-1, -1, 3, 3) * 1
        return Encoding(*output, concept_maps, concept_maps.flatten(1), output.maps[2])

    def concept_maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        code = self.encode(images)
        return code.logits, code.concept_maps

    def decode(self, concept_maps: Tensor, support: Tensor, noise_mode: str = "const") -> Tensor:
        if not len(concept_maps):
            raise ValueError("nothing to generate")  # as convolutions of an empty batch do
        amounts = concept_maps.amax((2, 3)).unflatten(1, (2, 2))
        grey = amounts.repeat_interleave(SIZE // 2, 1).repeat_interleave(SIZE // 2, 2)[:, None] * 2 - 1
        return torch.cat([grey + self.offset, grey, grey], 1)

    def edit(self, code: Encoding, concept_maps: Tensor, noise_mode: str = "const") -> Tensor:
        return self.decode(concept_maps, code.support, noise_mode)

    def explain(self, concept_maps: Tensor) -> Tensor:
        return self.activations(concept_maps) @ self.weight.T

    def activations(self, concept_maps: Tensor) -> Tensor:
        return concept_maps.amax((2, 3))

    def relevance(self, phi: Tensor, classes: Tensor) -> Tensor:
        contribution = phi * self.weight[classes]
        return contribution / contribution.abs().amax(1, keepdim=True).clamp_min(1e-12)


def _places(images: Tensor) -> Tensor:
    """(1, 4, 4, 4): one where channel k's quadrant lies."""
    places = torch.eye(4).view(1, 4, 2, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    return places.to(images.device)
