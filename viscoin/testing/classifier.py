"""Accuracy of a classifier."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from viscoin.datasets import ImageDataset
from viscoin.testing import measures
from viscoin.testing.inference import check_classes, choose_images, evaluation, image_batches


@dataclass(frozen=True)
class ClassifierResult:
    """Labels (N,) and class probabilities (N, C) of a test; everything else follows from them."""

    class_names: list[str]
    labels: np.ndarray
    probabilities: np.ndarray

    @property
    def n(self) -> int:
        return len(self.labels)

    @property
    def predicted(self) -> np.ndarray:
        """(N,) class indices."""
        return self.probabilities.argmax(1)

    @property
    def accuracy(self) -> float:
        return measures.accuracy(self.predicted, self.labels)

    @property
    def confusion(self) -> np.ndarray:
        """Counts (C, C): row = true class, column = predicted class."""
        return measures.confusion(self.predicted, self.labels, len(self.class_names))

    @property
    def per_class_accuracy(self) -> np.ndarray:
        """(C,); NaN for a class without images."""
        totals = self.confusion.sum(1)
        return np.divide(self.confusion.diagonal(), totals, out=np.full(len(totals), np.nan), where=totals > 0)

    def to_dict(self) -> dict[str, Any]:
        return {"accuracy": self.accuracy, "n": self.n}


def test_classifier(
    classifier: nn.Module,
    dataset: ImageDataset,
    device: torch.device | str = "cpu",
    batch_size: int = 128,
    seed: int = 0,
    limit: int | None = None,
) -> ClassifierResult:
    """Run the classifier over a dataset, or over a random sample of `limit` images.

    Args:
        classifier: images (B, 3, H, W) in [-1, 1] -> logits (B, C).

    Raises:
        ValueError: the classifier and the dataset have different numbers of classes.
    """
    indices = choose_images(len(dataset), limit, seed)
    with evaluation(classifier, device):
        probabilities = [
            classifier(images).float().softmax(1).cpu().numpy()
            for images, _ in image_batches(dataset, indices, batch_size, device, "testing the classifier")
        ]
    result = ClassifierResult(list(dataset.class_names), dataset.labels[indices], np.concatenate(probabilities))
    check_classes(result.probabilities.shape[1], dataset)
    return result
