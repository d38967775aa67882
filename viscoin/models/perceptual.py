"""Perceptual distances between images: on the feature maps of f, and LPIPS."""

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from viscoin.errors import Refused, reason_of
from viscoin.models.classifier import Classifier

logger = logging.getLogger(__name__)

Maps = Sequence[Tensor]
Perceptual = Callable[..., Tensor]
KINDS = ("auto", "lpips", "classifier")
VGG_FILE, VGG_SIZE = "vgg16-397923af.pth", "528 MB"


class ClassifierPerceptual:
    """Perceptual distance on f's own three feature maps, as LPIPS (Zhang et al., arXiv 1801.03924, Eq. 1) is on VGG's.

    d(a, b) = sum over maps of the mean over positions of || a / ||a|| - b / ||b|| ||^2, norms taken over channels.
    """

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier

    def __call__(self, a: Tensor, b: Tensor, maps_a: Maps | None = None, maps_b: Maps | None = None) -> Tensor:
        """Distances (B,) between images (B, 3, H, W) in [-1, 1]; runs f only for maps that are not given."""
        maps_a = self.classifier.features(a).maps if maps_a is None else maps_a
        maps_b = self.classifier.features(b).maps if maps_b is None else maps_b
        return self.distance(maps_a, maps_b)

    def distance(self, maps_a: Maps, maps_b: Maps) -> Tensor:
        """Distances (B,) between feature maps of f."""
        layers = [(_unit(a) - _unit(b)).square().sum(1).mean((1, 2)) for a, b in zip(maps_a, maps_b, strict=True)]
        return torch.stack(layers).sum(0)


class Lpips:
    """LPIPS (Zhang et al., arXiv 1801.03924) of the `lpips` package, by default on VGG-16 as in the paper.

    The package does ImageNet scaling itself. Weights that are missing are downloaded to torch's hub folder.
    """

    def __init__(self, device: torch.device | str = "cpu", network: str = "vgg", pretrained: bool = True) -> None:
        import lpips

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="torchvision")  # lpips uses torchvision's older keywords
            model: nn.Module = lpips.LPIPS(net=network, pnet_rand=not pretrained, verbose=False)
        self.model = model.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)

    def __call__(self, a: Tensor, b: Tensor, maps_a: Maps | None = None, maps_b: Maps | None = None) -> Tensor:
        """Distances (B,) between images (B, 3, H, W) in [-1, 1]; maps of f are not needed."""
        return self.model(a, b).flatten()


def find_perceptual(
    kind: str,
    classifier: Classifier | None,
    device: torch.device | str = "cpu",
    *,
    download: bool = False,
    parameter: str = "perceptual",
) -> tuple[Perceptual, str] | None:
    """The perceptual distance of that kind and its name, "lpips" or "classifier"; None where "auto" finds neither.

    Args:
        kind: "lpips", "classifier", or "auto": LPIPS where its weights are available, else feature maps of f.
        classifier: f, if there is one; moved to the device.
        download: whether "auto" may download the weights of LPIPS; without, it takes what is on disk.
        parameter: what the caller calls `kind`, for errors.

    Raises:
        Refused: unknown kind, no classifier where one is needed, or weights that are not available.
    """
    if kind not in KINDS:
        raise Refused(parameter, kind, "unknown distance", f"choose {', '.join(KINDS)}")
    if kind == "lpips" or (kind == "auto" and (download or lpips_weights().is_file())):
        try:
            return load_lpips(device), "lpips"
        except Refused as error:
            if kind == "lpips":
                raise Refused(parameter, kind, error.reason, f"{error.remedy} or choose classifier") from error
            logger.warning("%s", error)
    if classifier is not None:
        return ClassifierPerceptual(classifier.to(device)), "classifier"
    if kind == "classifier":
        raise Refused(parameter, kind, "there is no classifier of this dataset", "name one by `classifier`")
    return None


def lpips_weights() -> Path:
    """Where the VGG-16 weights of LPIPS are looked for: torch's hub folder."""
    return Path(torch.hub.get_dir()) / "checkpoints" / VGG_FILE


def load_lpips(device: torch.device | str) -> Lpips:
    """LPIPS on VGG-16; Refused where its weights neither lie in the cache nor can be downloaded."""
    weights = lpips_weights()
    if not weights.is_file():
        logger.info("downloading the VGG-16 weights of LPIPS (%s) to %s", VGG_SIZE, weights)
    try:
        return Lpips(device)
    except (OSError, RuntimeError) as error:
        raise Refused(
            None, None, f"could not download the VGG-16 weights of LPIPS ({VGG_SIZE}): {reason_of(error)}",
            f"put {VGG_FILE} into {weights.parent}",
        ) from error  # fmt: skip


def _unit(maps: Tensor) -> Tensor:
    return F.normalize(maps.float(), dim=1)
