"""Predictions of a classifier on test images."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from stylegan2_ada.together import collect
from viscoin.datasets import ImageDataset
from viscoin.inference.batches import check_classes, choose_images, evaluation, own_batches
from viscoin.statistics import measures


@dataclass(frozen=True)
class ClassifierResult:
    """Labels (N,) and class probabilities (N, C) of a test; everything else follows from them.

    `indices` (N,) are the places of the images in their dataset, where there is one.
    """

    class_names: list[str]
    labels: np.ndarray
    probabilities: np.ndarray
    indices: np.ndarray | None = None

    @property
    def n(self) -> int:
        return len(self.labels)

    @property
    def predicted(self) -> np.ndarray:
        """(N,) class indices."""
        return self.probabilities.argmax(1)

    @property
    def confidence(self) -> np.ndarray:
        """(N,) probabilities of the predicted classes."""
        return self.probabilities.max(1)

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
        ValueError: the classifier and the dataset have different numbers of classes, or an answer is not finite.
    """
    indices = choose_images(len(dataset), limit, seed)
    with evaluation(classifier, device):
        rows = collect(
            classifier(images).float().cpu()
            for images, _ in own_batches(dataset, indices, batch_size, device, "testing the classifier")
        )
    logits = torch.cat(rows)
    check_classes(logits.shape[1], dataset)
    broken = ~logits.isfinite().all(1).numpy()
    if broken.any():
        raise ValueError(
            f"the classifier gives no finite answer for {broken.sum()} of {len(logits)} images, first for image "
            f"{indices[broken][0]}; its training diverged: train it again with a lower learning rate"
        )
    # in double precision, because likelihoods need the small probabilities, too
    return ClassifierResult(
        list(dataset.class_names), dataset.labels[indices], logits.double().softmax(1).numpy(), indices
    )
