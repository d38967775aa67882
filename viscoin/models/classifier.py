"""The classifier f: any timm backbone that shows its last three feature maps."""

import difflib
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import timm
import torch
from huggingface_hub.constants import HF_HUB_CACHE
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

import viscoin.models.small_vit  # noqa: F401  timm learns its names
from viscoin.errors import Refused, reason_of
from viscoin.models.concept_extractor import CONCEPT_GRID
from viscoin.models.cutting import cut_after
from viscoin.models.foreign.hub import check_reachable
from viscoin.models.preprocessing import check_normalisation, check_resampling, resized, set_norm_eps
from viscoin.models.wrapped import ForeignBackbone, check_module

__all__ = ["Classifier", "ClassifierOutput", "build_classifier", "resolve_backbone"]

logger = logging.getLogger(__name__)

N_MAPS = 3
NO_WEIGHTS = "name a file with `classifier.weights`, or set classifier.pretrained=false to start from random weights"
STEPS = (16, 32, 64, 128, 256)  # pixels; what sides of images must often be multiples of
LARGEST_TRIED, MOST_TRIED = 512, 8  # pixels; sizes

# What people call backbones, and the timm model that they mean: the one with published weights, at its usual size.
SPELLINGS = {
    "mobilenetv2": "mobilenetv2_100",
    "mobilenetv3": "mobilenetv3_large_100",
    "mobilenetv3_small": "mobilenetv3_small_100",
    "mobilenetv3_large": "mobilenetv3_large_100",
    **{f"efficientnetv2_{size}": f"tf_efficientnetv2_{size}" for size in ("s", "m", "l")},
    **{f"vit_{size}": f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large")},
    **{f"vit_{size[0]}_16": f"vit_{size}_patch16_224" for size in ("base", "large")},
    **{f"deit_{size}": f"deit_{size}_patch16_224" for size in ("tiny", "small", "base")},
    **{f"swin_{size}": f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base")},
}

default_cfgs = generate_default_cfgs(
    {name: {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)} for name in ("viscoin_resnet10", "viscoin_resnet10w")}
)


@register_model
def viscoin_resnet10(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Small ResNet for images around 64 px: one basic block a stage, stride-2 stem, no max-pool; 0.67 M weights."""
    kwargs = {"block": BasicBlock, "layers": (1, 1, 1, 1), "channels": (24, 48, 96, 192), **kwargs}
    return build_model_with_cfg(_small_resnet, "viscoin_resnet10", pretrained, **kwargs)


@register_model
def viscoin_resnet10w(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """`viscoin_resnet10` with widths that are multiples of 32, as vector registers are filled by; 0.75 M weights."""
    kwargs = {"block": BasicBlock, "layers": (1, 1, 1, 1), "channels": (32, 64, 96, 192), **kwargs}
    return build_model_with_cfg(_small_resnet, "viscoin_resnet10w", pretrained, **kwargs)


def _small_resnet(**kwargs: Any) -> nn.Module:
    model: Any = ResNet(**kwargs)
    model.conv1 = nn.Conv2d(model.conv1.in_channels, model.conv1.out_channels, 3, stride=2, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    for stage in model.feature_info[1:]:
        stage["reduction"] //= 2
    return model


class ClassifierOutput(NamedTuple):
    """Logits (B, n_classes) and the last three feature maps, each (B, C, H, W), from fine to coarse."""

    logits: Tensor
    maps: tuple[Tensor, ...]


class Classifier(nn.Module):
    """A timm backbone with its own normalisation: takes images in [-1, 1].

    Maps are the last three stages of a convolutional network, or the tokens of the last three blocks of a vision
    transformer laid out as maps.

    Args:
        backbone: a name of `timm.list_models()`, with or without a tag of its weights; `resolve_backbone` reads others.
        n_classes: number of logits.
        resolution: side of the square images, pixels.
        pretrained: load the published weights; the last layer stays random.
        cut: module of the backbone after which it ends: then come the mean over positions and one linear layer.
        input_size: side of the images that the backbone itself takes, pixels; images of another resolution are resized
            in front of it, differentiably and without aliasing. None: the resolution.
        mean, std: of the three channels in [0, 1], by which the backbone's input is normalised; None: the backbone's.
        interpolation: of that resizing, bicubic or bilinear; None: the backbone's if it is one of them, else bicubic.
        norm_eps: the constant in all normalisation layers, where it is not the backbone's.
        options: more keywords for the backbone, of those in `architecture.BACKBONE_OPTIONS`.

    Attributes:
        feature_shapes: (C, H, W) of the three maps.

    Raises:
        Refused: the backbone cannot be cut there, or a mean, std or interpolation that cannot be.
        ValueError: unknown backbone (similar names are given), one without feature maps, or too small images.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        backbone: str,
        n_classes: int,
        resolution: int,
        pretrained: bool = False,
        cut: str | None = None,
        *,
        input_size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        interpolation: str | None = None,
        norm_eps: float | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        given = {
            "cut": cut, "input_size": input_size, "mean": None if mean is None else list(mean),
            "std": None if std is None else list(std), "interpolation": interpolation, "norm_eps": norm_eps,
            "options": dict(options) if options else None,
        }  # fmt: skip
        self.architecture: dict[str, Any] = {"backbone": backbone, "n_classes": n_classes, "resolution": resolution}
        self.architecture |= {key: value for key, value in given.items() if value is not None}
        self.n_classes, self.resolution, self.input_size = n_classes, resolution, input_size or resolution
        self.model = _create(backbone, n_classes, self.input_size, pretrained, options or {})
        if cut is not None:
            cut_after(self.model, cut, self.input_size, n_classes)
        if norm_eps is not None:
            set_norm_eps(self.model, norm_eps)
        self._preprocess_by(mean, std, interpolation)
        self.feature_shapes = self._probe()

    @classmethod
    def wrap(
        cls,
        module: nn.Module,
        layers: Sequence[str],
        resolution: int = 224,
        *,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        input_size: int | None = None,
        interpolation: str = "bicubic",
    ) -> "Classifier":
        """A classifier around any module that gives logits; for use in Python, as no model file can hold its code.

        Args:
            module: normalised images (B, 3, H, W) -> logits (B, n_classes); switched to eval mode.
            layers: paths of three modules inside of it, from fine to coarse, that give maps (B, C, H, W).
            resolution, mean, std, input_size, interpolation: see `Classifier`.

        Raises:
            Refused: see `check_module`; or maps that are too small.
        """
        side = input_size or resolution
        n_classes, last = check_module(module, layers, torch.linspace(-1, 1, 6 * side * side).view(2, 3, side, side))
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self.n_classes, self.resolution, self.input_size = n_classes, resolution, side
        self.architecture = {"backbone": type(module).__name__, "n_classes": n_classes, "resolution": resolution}
        self.model = ForeignBackbone(module, layers, last, side)
        self._preprocess_by(mean, std, interpolation)
        self.feature_shapes = self._probe()
        return self.eval()

    def _preprocess_by(
        self, mean: Sequence[float] | None, std: Sequence[float] | None, interpolation: str | None
    ) -> None:
        """Normalise and resize by these, or else by what the backbone's own configuration says."""
        config = self.model.pretrained_cfg
        self.mean, self.std = check_normalisation(mean or config["mean"], std or config["std"])
        self.interpolation = check_resampling(interpolation, config.get("interpolation"))
        # on the CPU even where the weights are to have no memory yet: no file holds these
        middle, spread = (torch.tensor(one, device="cpu").view(1, -1, 1, 1) for one in (self.mean, self.std))
        # ((x + 1) / 2 - mean) / std in one multiplication and one addition
        self.register_buffer("scale", 1 / (2 * spread), persistent=False)
        self.register_buffer("shift", (0.5 - middle) / spread, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> logits (B, n_classes)."""
        return self.model(self._normalised(images))

    def features(self, images: Tensor) -> ClassifierOutput:
        """Logits and feature maps of images (B, 3, H, W) in [-1, 1] in one pass, with gradients where they are on."""
        return self._look(self._normalised(images))

    def _look(self, normalised: Tensor) -> ClassifierOutput:
        last, maps = self.model.forward_intermediates(normalised, indices=N_MAPS, norm=False, output_fmt="NCHW")
        return ClassifierOutput(self.model.forward_head(last), tuple(maps))

    @property
    def last_layer(self) -> nn.Linear:
        """The linear layer that makes the logits.

        Raises:
            Refused: the backbone ends in something else.
        """
        layer = self.model.get_classifier()
        if not isinstance(layer, nn.Linear):
            raise Refused(
                "classifier.backbone", self.architecture["backbone"], f"its last layer is {type(layer).__name__}",
                "a linear last layer is needed here, as resnet50 or viscoin_resnet10 have",
            )  # fmt: skip
        return layer

    def last_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What the last layer reads, (B, D), and the coarsest feature map, (B, C, h, w), of images in [-1, 1]."""
        last, maps = self.model.forward_intermediates(
            self._normalised(images), indices=N_MAPS, norm=False, output_fmt="NCHW"
        )
        return self.model.forward_head(last, pre_logits=True), maps[-1]

    def pooled(self, images: Tensor, stage: int = -1) -> Tensor:
        """Features (B, C) of one of the three maps (0 fine, 2 or -1 coarse), averaged over positions."""
        return self.features(images).maps[stage].float().mean((2, 3))

    def _normalised(self, images: Tensor) -> Tensor:
        expected = (3, self.resolution, self.resolution)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"the classifier takes images (B, {', '.join(map(str, expected))}), not {tuple(images.shape)}"
            )
        if self.input_size != self.resolution:
            images = resized(images, self.input_size, self.interpolation)
        return images * self.scale + self.shift

    @torch.no_grad()
    def _probe(self) -> list[tuple[int, int, int]]:
        """Shapes (C, H, W) of the three maps."""
        backbone = self.architecture["backbone"]
        self.eval()
        try:
            maps = self._look(torch.zeros(1, 3, self.input_size, self.input_size)).maps
        except Exception as error:  # whatever a network of timm raises, often without a word
            raise ValueError(
                f"backbone {backbone!r} cannot take images of {self.input_size} px: {_reason(error)}; "
                f"{self._sizes_taken()}"
            ) from error
        self.train()
        shapes = [(part.shape[1], part.shape[2], part.shape[3]) for part in maps]
        finest = min(shapes[0][1:])
        if len(shapes) < N_MAPS or finest < CONCEPT_GRID:
            sizes = ", ".join(f"{height}x{width}" for _, height, width in shapes)
            raise ValueError(
                f"images of {self.input_size} px are too small for backbone {backbone!r}: its last {N_MAPS} feature "
                f"maps are {sizes}, and the first must be at least {CONCEPT_GRID}x{CONCEPT_GRID}; use larger images "
                f"({self._size_key}) or a backbone with smaller strides, such as viscoin_resnet10"
            )
        return shapes

    def _sizes_taken(self) -> str:
        """Which sizes near the resolution it does take, found by trying."""
        own = int(self.model.pretrained_cfg.get("input_size", (3, 224, 224))[-1])
        near = {own, *(step * max(1, self.input_size // step + more) for step in STEPS for more in (0, 1))}
        near = {side for side in near - {self.input_size} if side <= max(LARGEST_TRIED, own)}
        tried = sorted(near, key=lambda side: abs(side - self.input_size))[:MOST_TRIED]
        taken = [side for side in sorted({*tried, own} - {self.input_size}) if self._takes(side)]
        if not taken:
            return f"its usual size is {own} px ({self._size_key})"
        return f"it takes {' or '.join(map(str, taken[:3]))} px ({self._size_key})"

    @property
    def _size_key(self) -> str:
        """The setting that changes the size of what the backbone sees."""
        return "classifier.input_size" if "input_size" in self.architecture else "dataset.resolution"

    def _takes(self, side: int) -> bool:
        try:
            images = torch.zeros(1, 3, side, side)
            _, maps = self.model.forward_intermediates(images, indices=N_MAPS, norm=False, output_fmt="NCHW")
        except Exception:
            return False
        return min(maps[0].shape[2:]) >= CONCEPT_GRID


def _reason(error: Exception) -> str:
    said = " ".join(str(error).split())
    return said or f"it stops with {type(error).__name__} and gives no reason"


def build_classifier(
    backbone: str,
    n_classes: int,
    resolution: int,
    pretrained: bool = True,
    cut: str | None = None,
    input_size: int | None = None,
) -> Classifier:
    """A classifier with published weights where there are any, else with random ones and a warning.

    Args:
        backbone: as for `resolve_backbone`; the others as for `Classifier`.

    Raises:
        Refused: the published weights are not here and cannot be downloaded.
        ValueError: as `Classifier`.
    """
    asked, backbone = backbone, resolve_backbone(backbone)
    if backbone != asked:
        logger.info("backbone %s: taking %s of timm", asked, backbone)
    model = Classifier(backbone, n_classes, resolution, cut=cut, input_size=input_size)
    if not pretrained:
        return model
    config = timm.get_pretrained_cfg(backbone)
    if config is None or not config.has_weights:
        logger.warning("no pretrained weights of %s are published; starting from random weights", backbone)
        return model
    check_reachable("classifier.pretrained", backbone, NO_WEIGHTS)
    size = sum(4 * parameter.numel() for parameter in model.parameters()) / 1e6
    logger.info("pretrained weights of %s: %.0f MB, downloaded to %s if not there yet", backbone, size, HF_HUB_CACHE)
    try:
        return Classifier(backbone, n_classes, resolution, pretrained=True, cut=cut, input_size=input_size)
    except Exception as error:  # the same without weights has just worked, so it was the download
        raise Refused(
            "classifier.pretrained", backbone, f"its weights could not be downloaded ({reason_of(error)})", NO_WEIGHTS
        ) from error


def resolve_backbone(backbone: str) -> str:
    """The timm name of a backbone, with the tag of its weights if there was one.

    Common spellings are understood: "vit_tiny", "efficientnetv2_s", "MobileNet-V2", "resnet-50".

    Raises:
        ValueError: neither a name of timm nor a known spelling; names similar ones.
    """
    name, dot, tag = backbone.partition(".")
    plain = re.sub(r"_?(v\d)", r"\1", name.lower().replace("-", "_"))  # MobileNet-V2, mobilenet_v2 -> mobilenetv2
    plain = re.sub(r"net_(\d)", r"net\1", plain)  # resnet-50 -> resnet50
    for spelling in (name, plain):
        found = SPELLINGS.get(spelling, spelling)
        if timm.is_model(found):
            return found + dot + tag
    raise _unknown(backbone)


def _unknown(backbone: str) -> ValueError:
    name, names = backbone.lower(), [*SPELLINGS, *timm.list_models()]
    near = [*[one for one in names if name in one][:3], *difflib.get_close_matches(name, names, n=3)]
    near = list(dict.fromkeys(near))[:4]
    advice = f"did you mean {', '.join(near)}?" if near else "see timm.list_models(), for example viscoin_resnet10"
    return ValueError(f"there is no backbone {backbone!r} in timm {timm.__version__}; {advice}")


def _create(backbone: str, n_classes: int, side: int, pretrained: bool, options: Mapping[str, Any]) -> Any:
    if not timm.is_model(backbone):
        raise _unknown(backbone)
    usual = ""
    try:
        config = timm.get_pretrained_cfg(backbone)
        if config is not None and config.fixed_input_size:
            usual = f"; its usual size is {config.input_size[-1]} px (dataset.resolution)"
        size: dict[str, Any] = {"img_size": side} if usual else {}
        model = timm.create_model(backbone, pretrained=pretrained, num_classes=n_classes, **{**size, **options})
    except Exception as error:  # as timm's networks raise anything
        if pretrained:
            raise
        raise ValueError(
            f"backbone {backbone!r} cannot be built for images of {side} px: {_reason(error)}{usual}"
        ) from error
    if not hasattr(model, "forward_intermediates"):
        raise ValueError(
            f"backbone {backbone!r} does not show its feature maps; choose another, such as resnet50 or "
            f"vit_small_patch16_224"
        )
    return model
