"""What a training of DiffMask starts from: fresh gates or those of another one, and what replaces a patch."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stylegan2_ada.distributed import from_first
from viscoin.config import DiffMaskConfig
from viscoin.datasets import ImageDataset
from viscoin.errors import Refused
from viscoin.inference.batches import choose_images
from viscoin.models.classifier import Classifier
from viscoin.models.diffmask import DiffMask
from viscoin.models.digests import digest
from viscoin.models.files import load_model
from viscoin.models.tokens import PatchTokens

PLACEHOLDER_IMAGES = 1000  # over whose patches a fixed placeholder is the mean


def build_diffmask(config: DiffMaskConfig, tokens: PatchTokens, train: ImageDataset) -> DiffMask:
    """A fresh DiffMask of a classifier, or with the weights of `config.checkpoint`.

    Raises:
        Refused: those are of another classifier.
    """
    f = digest(f=tokens.classifier)["f"]
    model = DiffMask(
        f, tokens.layers, tokens.width, config.mul_activation, config.add_activation, config.placeholder, config.alpha
    )
    model.gates.narrow(config.spread)
    if config.checkpoint is not None:
        _start_from(model, Path(config.checkpoint), tokens.classifier)
    if config.placeholder == "fixed":
        model.placeholder.data.copy_(from_first(mean_embedding(tokens, train)))
    return model


def _start_from(model: DiffMask, path: Path, classifier: Classifier) -> None:
    start: DiffMask = load_model(path, "diffmask").model
    try:
        start.check_classifier(classifier)
    except Refused as error:
        raise Refused("diffmask.checkpoint", path, error.reason, error.remedy) from error
    model.gates.load_state_dict(start.gates.state_dict())
    model.alphas.load_state_dict(start.alphas.state_dict())
    if model.placeholder.requires_grad:
        model.placeholder.data.copy_(start.placeholder)


@torch.no_grad()
def mean_embedding(tokens: PatchTokens, dataset: ImageDataset) -> Tensor:
    """Mean (d,) of the embeddings of up to 1000 images, of patches without a pixel of a known part.

    Raises:
        Refused: there are no such patches.
    """
    total, count = torch.zeros(tokens.width), 0
    for indices in np.array_split(choose_images(len(dataset), PLACEHOLDER_IMAGES, seed=0), 10):
        if not len(indices):
            continue
        images, _ = dataset.batch(indices)
        free = torch.ones(len(indices), *tokens.grid, dtype=torch.bool)
        if dataset.part_names:
            masks = np.stack([dataset.part_masks(int(i)).any(0) for i in indices])
            free = F.adaptive_max_pool2d(torch.from_numpy(masks)[:, None].float(), tokens.grid)[:, 0] == 0
        chosen = tokens.embed(images.to(next(tokens.vit.parameters()).device)).float().cpu()[free.flatten(1)]
        total, count = total + chosen.sum(0), count + len(chosen)
    if not count:
        raise Refused("diffmask.placeholder", "fixed", "every patch shows a part", "choose learned or zeros")
    return total / count
