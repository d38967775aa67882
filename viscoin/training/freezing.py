"""Which layers of a classifier train: all, the last one alone, the last N blocks, or stages by name."""

import difflib
import logging
from collections.abc import Iterator

from timm.models import group_parameters
from torch import nn

from viscoin.errors import Refused
from viscoin.models.classifier import Classifier

logger = logging.getLogger(__name__)

CONTAINERS = ("blocks", "stages", "layers", "features")  # what timm calls the modules that hold all stages


def freeze(model: Classifier, train_layers: str = "all", freeze_norm: bool | None = None) -> list[nn.Module]:
    """Switch gradients off in all weights that do not train. The last layer, which gives the logits, always trains.

    Args:
        train_layers: "all"; "head", the last layer alone; "last:N", it and the last N blocks of the backbone; or names
            of its stages ("layer4", "stages.2,stages.3"), which train with it.
        freeze_norm: keep weights and statistics of normalisation layers; None means unless all layers train.

    Returns:
        The frozen modules. They belong in eval mode while the others train, or batch-norm statistics would move.

    Raises:
        ValueError: a stage that is not there (similar names are given), or more blocks than there are.
    """
    if freeze_norm is None:
        freeze_norm = train_layers != "all"
    chosen = _chosen(model, train_layers) - (_norm_weights(model.model) if freeze_norm else set())
    if train_layers != "head" and chosen <= _head(model):
        raise Refused(
            "classifier.train_layers", train_layers, "holds normalisation layers alone, which do not train",
            "name other stages, or set classifier.freeze_norm=false",
        )  # fmt: skip
    for name, weight in model.model.named_parameters():
        weight.requires_grad_(name in chosen)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    if trained < (everything := sum(weight.numel() for weight in model.parameters())):
        logger.info("%.4g of %.4g million weights train", trained / 1e6, everything / 1e6)
    return list(_frozen(model.model, freeze_norm))


def blocks(model: Classifier) -> list[list[str]]:
    """Names of the weights of each block, from the stem on, without the last layer.

    Blocks are timm's finest groups of layers (those of its layer-wise rates), such as a residual block or a transformer
    block. What only normalises belongs to the block before it.
    """
    backbone = model.model
    apart, norms = _head(model), _norm_weights(backbone)
    found: list[list[str]] = []
    for names in group_parameters(backbone, backbone.group_matcher(coarse=False)).values():
        names = [name for name in names if name not in apart]
        if found and norms.issuperset(names):
            found[-1] += names
        elif names:
            found.append(names)
    return found


def _chosen(model: Classifier, train_layers: str) -> set[str]:
    """Names of the weights that train, normalisation layers among them."""
    head = _head(model)
    if train_layers == "head":
        return head
    if train_layers == "all":
        return {name for name, _ in model.model.named_parameters()}
    if train_layers.startswith("last:"):
        body, number = blocks(model), int(train_layers.removeprefix("last:"))
        if number > len(body):
            raise ValueError(
                f"classifier.train_layers = {train_layers!r}: backbone {model.architecture['backbone']!r} has "
                f"{len(body)} blocks before its last layer; ask for at most last:{len(body)}, or for all"
            )
        return head.union(*body[-number:])
    return head.union(*(_stage(model, name.strip()) for name in train_layers.split(",")))


def _stage(model: Classifier, stage: str) -> set[str]:
    """Names of the weights of one module of the backbone."""
    stages = _stages(model)
    if stage in stages:
        return {name for name, _ in model.model.named_parameters() if name.startswith(f"{stage}.")}
    near = difflib.get_close_matches(stage, stages, n=3)
    advice = f"did you mean {', '.join(near)}?" if near else f"its stages are {', '.join(_outer(stages))}"
    raise ValueError(
        f"classifier.train_layers names {stage!r}, which backbone {model.architecture['backbone']!r} does not have; "
        f"{advice} (all, head and last:N are possible as well)"
    )


def _stages(model: Classifier) -> list[str]:
    """Names of all modules with weights outside the last layer, outer ones first."""
    head = _head(model)
    names = [name for name, _ in model.model.named_parameters() if name not in head]
    prefixes = (name.rsplit(".", depth)[0] for name in names for depth in range(1, name.count(".") + 1))
    return sorted(dict.fromkeys(prefixes), key=lambda name: name.count("."))


def _outer(stages: list[str]) -> list[str]:
    """The outermost stages, and the parts of those that only hold others."""
    parts = [name.split(".") for name in stages]
    return [".".join(names) for names in parts if len(names) == (2 if names[0] in CONTAINERS else 1)]


def _head(model: Classifier) -> set[str]:
    """Names of the weights of the last layer; distilled transformers have two of them."""
    classifier = model.model.get_classifier()
    layers = classifier if isinstance(classifier, tuple | list) else [classifier]
    weights = {id(weight) for layer in layers for weight in layer.parameters()}
    return {name for name, weight in model.model.named_parameters() if id(weight) in weights}


def _is_norm(module: nn.Module) -> bool:
    """Whether a module normalises by itself: known by its name, since timm has many such classes without a base."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return "Norm" in type(module).__name__ and bool(own)


def _norm_weights(backbone: nn.Module) -> set[str]:
    return {
        f"{name}.{weight}"
        for name, module in backbone.named_modules()
        if _is_norm(module)
        for weight, _ in module.named_parameters(recurse=False)
    }


def _frozen(module: nn.Module, freeze_norm: bool) -> Iterator[nn.Module]:
    """The outermost modules inside `module` that have weights, none of which trains."""
    for child in module.children():
        weights = list(child.parameters())
        if (weights and not any(weight.requires_grad for weight in weights)) or (freeze_norm and _is_norm(child)):
            yield child
        else:
            yield from _frozen(child, freeze_norm)
