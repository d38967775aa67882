"""Features of a frozen body, computed once for each image, where only the last layer trains."""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from viscoin.config import ClassifierConfig
from viscoin.datasets import ImageDataset
from viscoin.inference.batches import evaluation, image_batches
from viscoin.models.classifier import Classifier

BATCH = 32
logger = logging.getLogger(__name__)


class FeatureDataset(ImageDataset):
    """A dataset whose batches are the features (B, F) of its images, which a layer makes logits of, and labels (B,)."""

    def __init__(self, images: ImageDataset, features: Tensor, layer: nn.Linear) -> None:
        super().__init__(images.name, images.split, images.pixels, images.labels, images.class_names, images.files)
        self.features, self.layer = features, layer

    def batch(self, indices: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        rows = torch.from_numpy(np.asarray(indices, dtype=np.int64))
        return self.features[rows], torch.from_numpy(self.labels)[rows]


def last_layer(model: Classifier) -> nn.Linear | None:
    """The linear layer that makes the logits of the features before it, None where it is not that simple."""
    layer = model.model.get_classifier()
    return layer if isinstance(layer, nn.Linear) else None


def changes_images(config: ClassifierConfig) -> bool:
    """Whether training images differ from step to step, so that one pass through the body is not enough."""
    augmented = (config.horizontal_flip, config.padding, config.rotation, config.noise, config.blur)
    return any(augmented) or bool(config.rand_augment or config.mixup)


def with_features(
    model: Classifier, config: ClassifierConfig, parts: Sequence[ImageDataset], device: torch.device
) -> list[FeatureDataset] | None:
    """Datasets of features, if these are all that the training of a classifier needs.

    That is where the last layer alone trains, normalisation layers stay, no image is changed, and this layer is linear.

    Args:
        parts: training and validation images.

    Returns:
        None where the body has to run in every step.
    """
    layer = last_layer(model)
    if config.train_layers != "head" or config.freeze_norm is False or changes_images(config) or layer is None:
        return None
    found = []
    with evaluation(model, device):
        for part in parts:
            rows = []
            for images, _ in image_batches(part, np.arange(len(part)), BATCH, device, f"features of {part.split}"):
                rows.append(_before(layer, model, images).cpu())
            found.append(FeatureDataset(part, torch.cat(rows).clone(), layer))
    return None if found[0].features.ndim != 2 else found


def _before(layer: nn.Linear, model: Classifier, images: Tensor) -> Tensor:
    """What goes into the last layer."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    try:
        model(images)
    finally:
        handle.remove()
    return seen[-1].float()
