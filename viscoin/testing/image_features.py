"""Networks in whose features images are compared, and a cache of the features of real images."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from huggingface_hub.constants import HF_HUB_CACHE
from torch import Tensor, nn
from torch.nn import functional as F

from stylegan2_ada.metrics import InceptionFeatures, inception_weights
from stylegan2_ada.together import collect, once
from viscoin.datasets import ImageDataset
from viscoin.datasets.cache import cache_folder, is_cached, keep
from viscoin.errors import Refused
from viscoin.inference.batches import own_batches
from viscoin.inference.execution import precision_of
from viscoin.models.classifier import Classifier

logger = logging.getLogger(__name__)


class ClassifierFeatures(nn.Module):
    """Pooled last-stage features and logits of the classifier f.

    Args:
        classifier: f, or a timm backbone in its frame.
        name: of the backbone, if it is not f.
        has_classes: the last layer is trained.
    """

    def __init__(self, classifier: Classifier, name: str = "classifier", has_classes: bool = True) -> None:
        super().__init__()
        self.classifier, self.name, self.has_classes = classifier, name, has_classes
        self.side: int | None = None if name == "classifier" else classifier.resolution
        self.resize = "none" if self.side is None else f"bilinear with antialias to {self.side} px, from 8 bit"

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (B, 3, H, W) -> features (B, D) and logits (B, C)."""
        images = pixels.float().div(127.5).sub(1)
        if self.side is not None and images.shape[-1] != self.side:
            size = (self.side, self.side)
            images = F.interpolate(images, size, mode="bilinear", antialias=True).clamp(-1, 1)
        output = self.classifier.features(images)
        return output.maps[-1].float().mean((2, 3)), output.logits


# Distances (B,) between images (B, 3, H, W) in [-1, 1]
Distance = Callable[[Tensor, Tensor], Tensor]
# Modules from uint8 images (B, 3, H, W) to features (B, D) and logits (B, C). `name` and `resize` say what they do;
# unless `has_classes`, the logits mean nothing.
FeatureNetwork = InceptionFeatures | ClassifierFeatures


def find_features(kind: str, classifier: Classifier | None = None, weights: Path | None = None) -> FeatureNetwork:
    """The feature network of that kind.

    Args:
        kind: "inception", "classifier", "timm:NAME", or "auto": Inception where its weights are on disk, else f.
        classifier: f, if there is one.
        weights: file of the Inception weights, if not in torch's hub folder.

    Raises:
        ValueError: unknown kind, no classifier where one is needed, or unavailable weights.
    """
    if kind == "inception" or (kind == "auto" and inception_weights(weights) is not None):
        found = inception_weights(weights, download=True)
        return InceptionFeatures(found)  # type: ignore[arg-type]
    if kind in ("auto", "classifier"):
        if classifier is None:
            raise Refused(
                "features", kind, "there is no classifier of this dataset to take features from",
                "name one by `classifier`, or choose inception or timm:NAME",
            )  # fmt: skip
        return ClassifierFeatures(classifier)
    if kind.startswith("timm:"):
        return timm_features(kind.removeprefix("timm:"))
    known = "auto, inception, classifier or timm:NAME, such as timm:resnet50"
    raise Refused("features", kind, "unknown", f"choose {known}")


def timm_features(backbone: str, pretrained: bool = True) -> ClassifierFeatures:
    """Pooled last-stage features of a timm backbone with its published weights, for images of the size it knows.

    Raises:
        ValueError: unknown backbone, or its weights are not published or cannot be downloaded.
    """
    config = timm.get_pretrained_cfg(backbone) if timm.is_model(backbone) else None
    side, n_classes = (config.input_size[-1], config.num_classes) if config else (224, 0)
    model = Classifier(backbone, n_classes, side)  # refuses unknown names
    if pretrained:
        if config is None or not config.has_weights:
            reason = "no weights of this backbone are published"
            raise Refused("features", f"timm:{backbone}", reason, "choose another")
        size = sum(4 * parameter.numel() for parameter in model.parameters()) / 1e6
        logger.info("weights of %s: %.0f MB, downloaded to %s if not there yet", backbone, size, HF_HUB_CACHE)
        try:
            model = Classifier(backbone, n_classes, side, pretrained=True)
        except Exception as error:  # the same without weights has just worked, so it was the download
            reason = (str(error) or type(error).__name__).splitlines()[0][:200]
            failed = f"its weights ({size:.0f} MB) could not be downloaded ({reason})"
            raise Refused("features", f"timm:{backbone}", failed, "choose classifier") from error
    return ClassifierFeatures(model, backbone, has_classes=n_classes > 1)


def real_features(
    network: FeatureNetwork, dataset: ImageDataset, indices: np.ndarray, batch_size: int, device: torch.device | str
) -> np.ndarray:
    """Features (N, D) float32 of these images, from the user's cache folder where they are known already.

    They are found by the contents of the images and by the weights of the network, never by a name.
    """

    def kept_in() -> tuple[Path, bool]:
        digest = hashlib.sha256(f"{len(indices)} {network_digest(network)}".encode())
        for start in range(0, len(indices), 1024):
            digest.update(dataset.pixels[indices[start : start + 1024]].tobytes())
        path = cache_folder() / "features" / f"{digest.hexdigest()[:24]}.npy"
        return path, is_cached(path)

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.save(file, np.concatenate(rows))

    def kept() -> np.ndarray:
        if not known and not keep(path, write):
            return np.concatenate(rows)
        return np.load(path, mmap_mode="r")

    path, known = once(kept_in)
    rows = (
        []
        if known
        else collect(
            network(to_uint8(images))[0].float().cpu().numpy()
            for images, _ in own_batches(dataset, indices, batch_size, device, "features of real images")
        )
    )
    logger.info(
        "%s features of %d real images: %s %s", network.name, len(indices), "from" if known else "kept in", path
    )
    return once(kept)


def network_digest(network: FeatureNetwork) -> str:
    """Digest of all that the features of an image depend on: layers, weights, precision and the resize rule."""
    digest = hashlib.sha256(f"{network.name} {network.resize} {network!r}".encode())
    if (precision := precision_of(network)) != "32-true":
        digest.update(precision.encode())
    for key, value in [*network.named_parameters(), *network.named_buffers()]:
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def to_uint8(images: Tensor) -> Tensor:
    """Images (B, 3, H, W), clamped to [-1, 1] -> uint8, on their device: what a file of them would hold."""
    return images.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
