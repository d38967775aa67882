"""How a network's images were prepared: from its own files, from options, or as its library usually does it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import timm

from viscoin.datasets.reading import Fit
from viscoin.errors import Refused
from viscoin.models.foreign.fitting import Fitted
from viscoin.models.foreign.reading import Checkpoint
from viscoin.models.preprocessing import check_normalisation

# What torchvision calls the networks whose name in timm is another one.
TORCHVISION = {
    "mobilenetv2_100": "mobilenet_v2", "mobilenetv3_small_100": "mobilenet_v3_small",
    "mobilenetv3_large_100": "mobilenet_v3_large", "vit_huge_patch14_224": "vit_h_14",
    **{f"efficientnetv2_{size}": f"efficientnet_v2_{size}" for size in "sml"},
    **{f"vit_{size}_patch{patch}_224": f"vit_{size[0]}_{patch}" for size in ("base", "large") for patch in (16, 32)},
    **{f"swin_{size}_patch4_window7_224": f"swin_{size[0]}" for size in ("tiny", "small", "base")},
}  # fmt: skip
PILLOW = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
HALF, IMAGENET = (0.5, 0.5, 0.5), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Pipeline:
    """What is done to an image file before the network; None is not known.

    Attributes:
        input_size: side of what the network takes, pixels.
        mean, std: of the channels in [0, 1].
        fit, crop_share, interpolation: see `Fit`.
    """

    input_size: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    fit: str | None = None
    crop_share: float | None = None
    interpolation: str | None = None


@dataclass(frozen=True)
class FoundPipeline:
    """A whole pipeline, and where its values come from, for people."""

    pipeline: Pipeline
    source: str


def find_pipeline(checkpoint: Checkpoint, fitted: Fitted, given: Pipeline) -> FoundPipeline:
    """The pipeline of a checkpoint: what is given counts, then its own files, then what is usual for the network.

    Raises:
        Refused: a value that cannot be, or another size than that of the position embedding.
    """
    known = _of_timm_file(checkpoint.config), _of_transformers(checkpoint.preprocessing)
    own = next((one for one in known if one != Pipeline()), Pipeline())
    usual, library = _usual(checkpoint, fitted)
    sources = [("options", given), ("the files of the checkpoint", own), (f"what is usual in {library}", usual)]
    names = [field.name for field in fields(Pipeline)]
    values: dict[str, Any] = {}
    used: dict[str, list[str]] = {}
    for name in names:
        # a share belongs to its fit: files that say to squash do not leave the share to others
        decided = next((p for _, p in sources if p.fit is not None), usual) if name == "crop_share" else None
        if decided is not None and given.crop_share is None:
            values[name] = decided.crop_share
            continue
        for source, pipeline in sources:
            if getattr(pipeline, name) is not None:
                values[name] = getattr(pipeline, name)
                used.setdefault(source, []).append(name)
                break
    fixed = _embedded_size(fitted)
    if fixed is not None:
        if given.input_size not in (None, fixed):
            raise Refused("input_size", given.input_size, f"the position embedding is of {fixed} px", "omit it")
        values["input_size"] = fixed
    found = Pipeline(**values)
    _check(found)
    source = "; ".join(f"{', '.join(used[name])}: {name}" for name, _ in sources if name in used)
    guessed = {"fit", "interpolation"} & set(used.get(sources[-1][0], ()))
    return FoundPipeline(found, source + (_twin(fitted, found) if library == "timm" and guessed else ""))


def _twin(fitted: Fitted, found: Pipeline) -> str:
    """What torchvision does with a network whose tensors are called as in timm, where that is something else."""
    if not fitted.backbone.startswith(("resnet", "resnext", "wide_resnet")):
        return ""
    other = _of_torchvision(fitted.backbone)
    if other is None or (other.crop_share, other.interpolation) == (found.crop_share, found.interpolation):
        return ""
    return (
        f". The tensors of torchvision's {fitted.backbone} are called alike; if yours comes from there, take a crop "
        f"share of {other.crop_share:g} and {other.interpolation} interpolation, as is usual there"
    )


def _check(found: Pipeline) -> None:
    check_normalisation(found.mean or (), found.std or ())
    size = found.input_size
    if size is None or not 16 <= size <= 4096:
        raise Refused("input_size", size, "out of range", "give 16 to 4096 pixels")
    Fit(found.fit, found.crop_share, found.interpolation)  # type: ignore[arg-type]  # which it checks


def _embedded_size(fitted: Fitted) -> int | None:
    """The image size of which a position embedding is."""
    embedding, patches = fitted.tensors.get("pos_embed"), fitted.tensors.get("patch_embed.proj.weight")
    if embedding is None or patches is None or embedding.ndim != 3:
        return None
    side = math.isqrt(embedding.shape[1])  # class and distillation tokens are fewer than the next square needs
    return side * int(patches.shape[-1])


def _of_timm_file(config: Mapping[str, Any]) -> Pipeline:
    """What config.json of a timm checkpoint says."""
    inner = config.get("pretrained_cfg")
    return _of_config(inner if isinstance(inner, dict) else {})


def _of_config(config: Mapping[str, Any]) -> Pipeline:
    if not {"mean", "std"} <= config.keys():
        return Pipeline()
    size, share = config.get("input_size"), config.get("crop_pct")
    interpolation = config.get("interpolation")
    return Pipeline(
        int(size[-1]) if isinstance(size, list | tuple) and size else None,
        tuple(config["mean"]), tuple(config["std"]),
        {"squash": "squash", "border": "pad"}.get(str(config.get("crop_mode")), "crop"),
        float(share) if isinstance(share, int | float) else None,
        interpolation if interpolation in PILLOW.values() else "bicubic",
    )  # fmt: skip


def _of_transformers(config: Mapping[str, Any]) -> Pipeline:
    """What preprocessor_config.json says."""
    if not {"image_mean", "image_std"} <= config.keys():
        return Pipeline()
    size, crop = config.get("size"), config.get("crop_size")
    width, shortest = _side(size, "width"), _side(size, "shortest_edge")
    side = width or shortest or (size if isinstance(size, int) else None)
    inner = _side(crop, "width") or (crop if isinstance(crop, int) else None)
    share = config.get("crop_pct")
    if inner and side and config.get("do_center_crop"):
        share, side = share_of(inner, side), inner
    elif not (shortest and isinstance(share, int | float)):
        share = None
    return Pipeline(
        side, tuple(config["image_mean"]), tuple(config["image_std"]), "crop" if shortest else "squash", share,
        PILLOW.get(config.get("resample", 2), "bilinear"),
    )  # fmt: skip


def _side(size: object, key: str) -> int | None:
    value = size.get(key) if isinstance(size, dict) else None
    return value if isinstance(value, int) else None


def share_of(inner: int, whole: int) -> float:
    """The share of which `floor(inner / share)` is `whole`, whatever rounding does."""
    share = inner / whole
    return share if math.floor(inner / share) == whole else math.nextafter(share, 0)


def _usual(checkpoint: Checkpoint, fitted: Fitted) -> tuple[Pipeline, str]:
    """What the library of the names does with the network, and which library that is."""
    library = fitted.dialect.library if fitted.dialect else "timm"
    of_timm = _of_config((timm.get_pretrained_cfg(fitted.backbone) or timm.models.PretrainedCfg()).to_dict())
    of_timm = replace(of_timm, input_size=of_timm.input_size or 224)
    if library == "torchvision":
        return _of_torchvision(fitted.backbone) or of_timm, library
    if library == "transformers":
        mean, std = (HALF, HALF) if fitted.backbone.startswith("vit_") else IMAGENET
        size = checkpoint.config.get("image_size")
        side = size if isinstance(size, int) else of_timm.input_size
        fit = "squash" if fitted.backbone.startswith(("vit_", "swin_")) else "crop"
        return Pipeline(side, mean, std, fit, None if fit == "squash" else of_timm.crop_share, "bilinear"), library
    return of_timm, library


def _of_torchvision(backbone: str) -> Pipeline | None:
    """The evaluation transform of its newest published weights."""
    from torchvision import models

    name = TORCHVISION.get(backbone, backbone)
    if name not in models.list_models():
        return None
    transform = models.get_model_weights(name)["DEFAULT"].transforms()
    size, whole = transform.crop_size[0], transform.resize_size[0]
    return Pipeline(
        size, tuple(transform.mean), tuple(transform.std), "crop", share_of(size, whole), transform.interpolation.value
    )
