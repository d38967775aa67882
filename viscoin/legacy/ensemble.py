"""Ensembles from checkpoints of older VisCoIN code: the architecture is read off the shapes, the names become ours."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from viscoin.config import ViscoinConfig
from viscoin.legacy.checkpoint import Checkpoint
from viscoin.legacy.resnet import backbone_name, timm_names
from viscoin.models.classifier import Classifier
from viscoin.models.ensemble import VisCoIN
from viscoin.models.parts import EnsembleParts

State = Mapping[str, Tensor]

COARSE_LAYER, MID_LAYER = 2, 10  # of the 14 styles in the paper
PYRAMID = (28, 14, 7)  # sides of f's feature maps where f is not known; only their ratios matter to Psi
WEIGHT_NORM = {
    "linear.weight_g": "linear.parametrizations.weight.original0",
    "linear.weight_v": "linear.parametrizations.weight.original1",
}


def build_ensemble(
    checkpoint: Checkpoint,
    class_names: Sequence[str],
    classifier: Classifier | None = None,
    coarse_layer: int | None = None,
    mid_layer: int | None = None,
) -> VisCoIN | EnsembleParts:
    """The ensemble of a checkpoint, in eval mode.

    Args:
        class_names: one for each class of the explainer.
        classifier: f for a checkpoint that holds none. Where there is no f at all, the result is all but f.
        coarse_layer, mid_layer: first and last style that concepts control, which no checkpoint stores; by default 2
            and 10, and never the last style.

    Raises:
        ValueError: weights that are missing, unknown or of another shape; the first few are listed.
    """
    parts = checkpoint.parts
    explainer = {WEIGHT_NORM.get(name, name): tensor for name, tensor in parts["explainer"].items()}
    ours = {"concept_extractor": parts["concept_extractor"], "explainer": explainer, "generator": parts["gan"]}
    try:
        architecture = _architecture(ours, coarse_layer, mid_layer)
        if "classifier" in parts:
            architecture["classifier"] = {
                "backbone": backbone_name(parts["classifier"]),
                "n_classes": len(class_names),
                "resolution": architecture["generator"]["synthesis"]["img_resolution"],
            }
            ours["classifier.model"] = timm_names(parts["classifier"])
        elif classifier is not None:
            architecture["classifier"] = classifier.architecture
            ours["classifier"] = classifier.state_dict()
        state = {f"{part}.{name}": tensor for part in ours for name, tensor in ours[part].items()}
        if "classifier" in architecture:
            return _load(lambda: VisCoIN.from_architecture(architecture, class_names), state)
        shapes = [
            (_shape(parts["concept_extractor"], f"conv{i}.weight", 4)[1], side, side)
            for i, side in enumerate(PYRAMID, 1)
        ]
        return _load(lambda: EnsembleParts(shapes, architecture, len(class_names)), state)
    except ValueError as error:
        raise ValueError(f"{checkpoint.path}: {error}") from None


def count_classes(checkpoint: Checkpoint) -> int:
    """Classes of the explainer; ValueError without a bias, whose length it is."""
    try:
        return _shape(checkpoint.parts["explainer"], "linear.bias", 1)[0]
    except ValueError as error:
        raise ValueError(f"{checkpoint.path}: explainer: {error}") from None


def _architecture(ours: Mapping[str, State], coarse_layer: int | None, mid_layer: int | None) -> dict[str, Any]:
    """That of `VisCoIN`, without the classifier."""
    synthesis, num_ws = _synthesis(ours["generator"])
    return {
        "generator": {
            "synthesis": synthesis,
            "coarse_layer": COARSE_LAYER if coarse_layer is None else coarse_layer,
            "mid_layer": min(MID_LAYER, num_ws - 2) if mid_layer is None else mid_layer,
        },
        "n_concepts": _shape(ours["concept_extractor"], "conv5.weight", 4)[0],
        "latent_channels": _shape(ours["concept_extractor"], "conv1.weight", 4)[0],
        "dropout": ViscoinConfig().dropout,
        "weight_norm": "linear.weight" not in ours["explainer"],
    }


def _synthesis(state: State) -> tuple[dict[str, Any], int]:
    """Keywords of `Synthesis`, and the number of its styles."""
    blocks = {int(match[1]) for name in state if (match := re.match(r"synthesis\.b(\d{1,5})\.", name))}
    if not blocks:
        raise ValueError("gan holds no synthesis network (synthesis.b4.…)")
    channels = {r: _shape(state, f"synthesis.b{r}.conv1.weight", 4)[0] for r in blocks}
    most, resolution = max(channels.values()), max(blocks)
    narrow = [r * count for r, count in channels.items() if count < most]
    keywords: dict[str, Any] = {
        "w_dim": _shape(state, "mapping.fixed_w_avg", 1)[0],
        "img_resolution": resolution,
        "img_channels": _shape(state, f"synthesis.b{resolution}.torgb.weight", 4)[0],
        "channel_base": max(narrow, default=most * resolution),
        "channel_max": most,
        "use_noise": "synthesis.b4.conv1.noise_const" in state,
    }
    if "synthesis.b4.torgb.weight" not in state and resolution > 4:
        keywords["architecture"] = "resnet" if "synthesis.b8.skip.weight" in state else "orig"
    return keywords, 2 * len(blocks)


def _load(build: Callable[[], Any], state: State) -> Any:
    """The model with these weights, or ValueError for those that do not fit it."""
    with torch.device("meta"):  # shapes only: a file may ask for any size
        wanted = build().state_dict()
    missing = [name for name in wanted if name not in state]
    unknown = [name for name in state if name not in wanted]
    other = [
        f"{name} ({_sizes(tensor)}, needed {_sizes(wanted[name])})"
        for name, tensor in state.items()
        if name in wanted and tensor.shape != wanted[name].shape
    ]
    found = {"missing": missing, "unknown": unknown, "of another shape": other}
    if any(found.values()):
        lists = [f"{len(names)} {what}, first {', '.join(names[:3])}" for what, names in found.items() if names]
        raise ValueError(f"its weights do not fit an ensemble: {'; '.join(lists)}")
    model = build()
    model.load_state_dict(state)
    return model.eval()


def _shape(state: State, name: str, dimensions: int) -> tuple[int, ...]:
    if name not in state:
        raise ValueError(f"{name} is missing; there are {', '.join(list(state)[:3])}, …")
    if state[name].ndim != dimensions:
        raise ValueError(f"{name} has the shape {_sizes(state[name])}; {dimensions} dimensions are needed")
    return tuple(state[name].shape)


def _sizes(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
