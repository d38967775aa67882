"""Class activation maps of networks that end in the mean over positions and one linear layer (CAM)."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from viscoin.errors import Refused
from viscoin.models.classifier import Classifier

TINY = 1e-6


def last_map(model: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, n_classes), exactly as of `forward`, and the map (B, C, h, w) whose mean the last layer reads.

    Args:
        images: (B, 3, H, W) in [-1, 1].
    """
    backbone: Any = model.model
    found = backbone.forward_features(model._normalised(images))
    return backbone.forward_head(found), found


@torch.no_grad()
def check_class_maps(model: Classifier) -> None:
    """Raise Refused unless the logits are one linear layer of the mean over positions of a map."""
    layer, training = model.last_layer, model.training
    model.eval()
    try:
        sides = torch.linspace(-1, 1, 3 * model.resolution**2, device=layer.weight.device)
        found = last_map(model, sides.view(1, 3, model.resolution, model.resolution))[1]
        plain = found.ndim == 4 and found.shape[1] == layer.in_features
        backbone: Any = model.model
        read = backbone.forward_head(found, pre_logits=True)  # not the logits, which are 0 while this layer is
        plain = plain and torch.allclose(found.mean((2, 3)), read, atol=1e-4, rtol=1e-3)
    except (AttributeError, RuntimeError, ValueError, TypeError):
        plain = False
    finally:
        model.train(training)
    if not plain:
        raise Refused(
            "classifier.backbone", model.architecture["backbone"],
            "it does not end in the mean over positions and one linear layer, so it has no class activation map",
            "use swap, or another backbone, such as resnet50 or viscoin_resnet10",
        )  # fmt: skip


def share_inside(last: Tensor, weight: Tensor, labels: Tensor, region: Tensor) -> Tensor:
    """Share (B,) of the class activation map of each image's class that lies in a region; 0 where the map is empty.

    CAM = relu(sum_c w_c A_c) (Zhou et al. 2016, arXiv 1512.04150); what speaks against the class does not count. It
    needs no gradient, so its own gradient is no second derivative.

    Args:
        last: A, (B, C, h, w).
        weight: of the last layer, (n_classes, C).
        labels: (B,) class indices.
        region: (B, H, W), 1 inside and 0 outside; brought to the size of the map by area.
    """
    cam = torch.einsum("bchw,bc->bhw", last.float(), weight.float()[labels]).relu()
    inside = cam * on_grid(region, cam.shape[-2:])
    return inside.sum((1, 2)) / cam.sum((1, 2)).clamp_min(TINY)


def on_grid(region: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """A region (B, H, W) on a coarser grid (B, h, w): the share of each cell that it covers."""
    return F.adaptive_avg_pool2d(region.float()[:, None], (size[0], size[1]))[:, 0]
