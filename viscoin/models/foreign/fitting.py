"""Which backbone of timm a checkpoint belongs to, and its tensors by the names of that backbone."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import timm
import torch
from torch import Tensor

from viscoin.errors import Refused
from viscoin.models.classifier import resolve_backbone
from viscoin.models.foreign.dialects import DIALECTS, Dialect, dialect_of
from viscoin.models.foreign.reading import Checkpoint

logger = logging.getLogger(__name__)

# What trainings keep beside a network; everything else that is too many means another network.
BESIDE = re.compile(r"(criterion|n_averaged|\w*(loss|loss_fn|metrics?|accuracy|acc|auroc|f1|confusion_matrix))(\.|$)")
COUNTER = "num_batches_tracked"  # of batch norm; old checkpoints have none, and nothing reads it
SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Fitted:
    """A checkpoint by the names of a backbone.

    Attributes:
        backbone: timm's name.
        tensors: all that the backbone has, and nothing else.
        dialect: whose names they had; None where they were taken by their order.
        norm_eps: see `Classifier`.
        also: other backbones with the same names and shapes, which may compute something else.
        left_out: names of tensors that belong to something else.
    """

    backbone: str
    tensors: Mapping[str, Tensor]
    dialect: Dialect | None
    n_classes: int
    norm_eps: float | None = None
    also: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def fit_checkpoint(
    checkpoint: Checkpoint,
    backbone: str | None = None,
    by_order: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Fitted:
    """Find the backbone of a checkpoint, or see whether it is the given one.

    Args:
        backbone: as for `resolve_backbone`; None guesses it by names and shapes.
        by_order: take the tensors one after the other, whatever their names.
        options: more keywords for the backbone.

    Raises:
        Refused: it is of no known backbone, or not of this one: says what does not fit, and which backbone is nearest;
            or the order of the tensors is all that fits, and was not asked for.
    """
    dialect = dialect_of(checkpoint.tensors)
    if backbone is None:
        named = _named(checkpoint)
        found = [named] if named else _guess(checkpoint, dialect)
        backbone, also = found[0], tuple(found[1:])
    else:
        # torchvision's EfficientNetV2 is not the one that people mean by this name in timm
        exact = dialect is not None and backbone in dialect.backbones
        backbone, also = backbone if exact else resolve_backbone(backbone), ()
    options = dict(options or {})
    if by_order:
        return _by_order(checkpoint, backbone, options)
    tensors, missing, wrong, over = _compared(checkpoint, dialect, backbone, options)
    if missing or wrong or _foreign(over):
        _offer_order(checkpoint, backbone, options)
        raise _misfit(checkpoint, dialect, backbone, missing, wrong, over)
    if over:
        logger.info("left out, as no part of the network: %s", _some(over))
    eps = dialect.eps(backbone) if dialect else None
    return Fitted(backbone, tensors, dialect, _classes(checkpoint, backbone, options, tensors), eps, also, tuple(over))


@lru_cache(maxsize=128)
def _network(backbone: str, options: tuple[tuple[str, Any], ...] = ()) -> tuple[dict[str, Tensor], frozenset[str]]:
    """Tensors of a backbone of two classes, without memory, and where its last layers are."""
    with torch.device("meta"):
        model: Any = timm.create_model(backbone, num_classes=2, **dict(options))
    last = model.get_classifier()
    heads = {id(layer) for layer in (last if isinstance(last, tuple | list) else (last,))}
    return dict(model.state_dict()), frozenset(name for name, part in model.named_modules() if id(part) in heads)


def wanted_tensors(backbone: str, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors of a backbone on the meta device, by name, in its order; those of its last layer are of two classes."""
    return _network(backbone, _hashable(options))[0]


def _hashable(options: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted((key, tuple(value) if isinstance(value, list) else value) for key, value in options.items()))


def _is_head(backbone: str, options: Mapping[str, Any], name: str) -> bool:
    return name.rpartition(".")[0] in _network(backbone, _hashable(options))[1]


def _compared(
    checkpoint: Checkpoint, dialect: Dialect | None, backbone: str, options: Mapping[str, Any]
) -> tuple[dict[str, Tensor], list[str], list[str], list[str]]:
    """The tensors by timm's names; names that are missing; those of another shape; and those that are too many."""
    wanted = wanted_tensors(backbone, options)
    given = dialect.translated(checkpoint.tensors, wanted) if dialect else dict(checkpoint.tensors)
    found, missing, wrong = {}, [], []
    for name, like in wanted.items():
        if name not in given:
            if name.endswith(COUNTER):
                found[name] = torch.zeros((), dtype=torch.int64)
            else:
                missing.append(name)
        elif not _same_shape(backbone, options, name, given[name], like):
            wrong.append(f"{name} {_shape(given[name])} instead of {_shape(like)}")
        else:
            found[name] = given[name]
    over = [name for name in given if name not in wanted and not name.endswith((COUNTER, "total_ops", "total_params"))]
    return found, missing, wrong, over


def _foreign(over: list[str]) -> list[str]:
    """Those that are of another network."""
    return [name for name in over if not BESIDE.match(name)]


def _same_shape(backbone: str, options: Mapping[str, Any], name: str, tensor: Tensor, like: Tensor) -> bool:
    """Whether a tensor has this shape; the last layer may have any number of classes."""
    if _is_head(backbone, options, name):
        return tensor.ndim == like.ndim and tensor.shape[1:] == like.shape[1:]
    if name == "pos_embed":  # of any image size
        return tensor.ndim == like.ndim and tensor.shape[-1] == like.shape[-1]
    return tensor.shape == like.shape


def _classes(checkpoint: Checkpoint, backbone: str, options: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> int:
    heads = [
        tensor for name, tensor in tensors.items() if _is_head(backbone, options, name) and name.endswith("weight")
    ]
    if not heads:
        raise Refused("checkpoint", checkpoint.path, f"{backbone} has no last layer whose classes could be counted")
    return int(heads[0].shape[0])


def _named(checkpoint: Checkpoint) -> str | None:
    """The backbone that the checkpoint's own configuration names, where timm knows it."""
    name = checkpoint.config.get("architecture")
    return name if isinstance(name, str) and timm.is_model(name) else None


def _guess(checkpoint: Checkpoint, dialect: Dialect | None) -> list[str]:
    """All backbones that fit, the usual one first.

    Raises:
        Refused: none does.
    """
    if dialect is None:
        names = _plausible(checkpoint)
        logger.info("no known names: comparing shapes with those of %d backbones", len(names))
        for name in names:
            _offer_order(checkpoint, name, {})
        raise Refused(
            "checkpoint", checkpoint.path,
            f"its {len(checkpoint.tensors)} tensors have names of no network that is known here ("
            f"{_some([f'{name} {_shape(tensor)}' for name, tensor in checkpoint.tensors.items()])})",
            f"name its `backbone`, a name of timm{_nearest_words(_nearest(checkpoint, names))}; or give its code by "
            "`module`",
        )  # fmt: skip
    found = next((name for name in dialect.backbones if _fits(checkpoint, dialect, name)), None)
    if found is not None:
        own, _, kept = found.partition("_")
        twins = [f"tf_{found}", kept if own == "tf" else "", f"deit_{kept}" if own == "vit" else ""]
        of_timm = twins if dialect.library == "timm" else []
        return [found, *(name for name in of_timm if timm.is_model(name) and _fits(checkpoint, dialect, name))]
    near = _nearest(checkpoint, dialect.backbones) or list(dialect.backbones[:1])
    _, missing, wrong, over = _compared(checkpoint, dialect, near[0], {})
    raise _misfit(checkpoint, dialect, near[0], missing, wrong, over, guessed=True)


def _fits(checkpoint: Checkpoint, dialect: Dialect, backbone: str) -> bool:
    _, missing, wrong, over = _compared(checkpoint, dialect, backbone, {})
    return not (missing or wrong or _foreign(over))


def _misfit(
    checkpoint: Checkpoint, dialect: Dialect | None, backbone: str, missing: list[str], wrong: list[str],
    over: list[str], guessed: bool = False,
) -> Refused:  # fmt: skip
    parts = []
    if missing:
        parts.append(f"{len(missing)} tensors are missing ({_some(missing)})")
    if wrong:
        parts.append(f"{len(wrong)} have another shape ({_some(wrong)})")
    if over:
        shown = [f"{name} {_shape(checkpoint.tensors[name])}" if name in checkpoint.tensors else name for name in over]
        parts.append(f"{len(over)} are too many ({_some(shown)})")
    whose = f"its names are those of {dialect.title}" if dialect else "its names are of no network that is known here"
    if guessed:
        reason = f"{whose}, but of no size that is known here; for {backbone}, the nearest, {'; '.join(parts)}"
        return Refused("checkpoint", checkpoint.path, reason, "name its `backbone`, if timm has it")
    try:
        better = f"; it fits {_guess(checkpoint, dialect)[0]}" if dialect else ""
    except Refused:
        better = ""
    near = (
        "" if better else _nearest_words(_nearest(checkpoint, dialect.backbones if dialect else _plausible(checkpoint)))
    )
    return Refused(
        "backbone", backbone, f"{checkpoint.path} does not fit: {'; '.join(parts)}", f"{whose}{better}{near}"
    )


def _plausible(checkpoint: Checkpoint) -> list[str]:
    """Known backbones with layers of the same kinds: batch norm or not, convolutions of single channels or not."""
    batch_norm = any(name.endswith("running_mean") for name in checkpoint.tensors)
    single = any(part.ndim == 4 and part.shape[1] == 1 < part.shape[2] for part in checkpoint.tensors.values())
    known = [dialect for dialect in DIALECTS if dialect.library == "timm"]
    kinds = {("ResNet", True, False), ("EfficientNet or MobileNet", True, True), ("ConvNeXt", False, True)}
    kinds |= {(title, False, False) for title in ("ViT", "distilled ViT", "Swin")}
    return [name for one in known if (one.title, batch_norm, single) in kinds for name in one.backbones]


def _nearest(checkpoint: Checkpoint, names: Iterable[str], most: int = 2) -> list[str]:
    """Backbones whose tensors have most shapes in common with the checkpoint, whatever their names."""
    given = Counter(tuple(tensor.shape) for tensor in checkpoint.tensors.values() if tensor.ndim)

    def common(name: str) -> float:
        own = Counter(tuple(tensor.shape) for tensor in wanted_tensors(name, {}).values() if tensor.ndim)
        return (given & own).total() / max(1, (given | own).total())

    scores = {name: common(name) for name in dict.fromkeys(names)}
    best = sorted(scores, key=lambda name: -scores[name])[:most]
    return [name for name in best if scores[name] > 0.5 * scores[best[0]]]


def _nearest_words(names: list[str]) -> str:
    return f"; the nearest backbone by shapes is {' or '.join(names)}" if names else ""


# --- tensors in the same order under other names -----------------------------------------------------------------


def _by_order(checkpoint: Checkpoint, backbone: str, options: Mapping[str, Any]) -> Fitted:
    if not checkpoint.in_order:
        raise Refused("by_order", None, f"{checkpoint.path} has its tensors in the order of their names, not that of "
                      "the network", "give a file of torch.save")  # fmt: skip
    wanted = wanted_tensors(backbone, options)
    pairs = _in_order(checkpoint, wanted)
    if pairs is None:
        names, given = _in_shape(wanted), _in_shape(checkpoint.tensors)
        first = next((
            f"first differs {theirs} {_shape(checkpoint.tensors[theirs])} from {mine} {_shape(wanted[mine])}"
            for theirs, mine in zip(given, names, strict=False)
            if not _same_shape(backbone, options, mine, checkpoint.tensors[theirs], wanted[mine])
        ), f"there are {len(given)} tensors instead of {len(names)}")  # fmt: skip
        raise Refused("by_order", backbone, f"the tensors of {checkpoint.path} have other shapes: {first}")
    _print_pairs(pairs)
    tensors = {mine: checkpoint.tensors[theirs] for theirs, mine in pairs}
    tensors |= {name: torch.zeros((), dtype=torch.int64) for name in wanted if name not in tensors}
    return Fitted(backbone, tensors, None, _classes(checkpoint, backbone, options, tensors))


def _in_shape(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names without those of single numbers, which count batches."""
    return [name for name, tensor in tensors.items() if tensor.ndim]


def _in_order(checkpoint: Checkpoint, wanted: Mapping[str, Tensor]) -> list[tuple[str, str]] | None:
    """Pairs of names, theirs and ours, where all shapes are the same one after the other, but for the classes."""
    theirs, ours = _in_shape(checkpoint.tensors), _in_shape(wanted)
    if not checkpoint.in_order or len(theirs) != len(ours):
        return None
    for given, own in zip(theirs, ours, strict=True):
        tensor, like = checkpoint.tensors[given], wanted[own]
        last = own in ours[-2:] and tensor.ndim == like.ndim and tensor.shape[1:] == like.shape[1:]
        if tensor.shape != like.shape and not last:
            return None
    return list(zip(theirs, ours, strict=True))


def _offer_order(checkpoint: Checkpoint, backbone: str, options: Mapping[str, Any]) -> None:
    """Raise Refused, with the mapping printed, where the tensors fit in their order."""
    pairs = _in_order(checkpoint, wanted_tensors(backbone, options))
    if pairs is not None:
        _print_pairs(pairs)
        raise Refused(
            "checkpoint", checkpoint.path,
            f"its names are not those of {backbone}, but its {len(pairs)} tensors have the same shapes in the same "
            "order, as printed above", f"if that is right, give `backbone` {backbone} and `by_order`",
        )  # fmt: skip


def _print_pairs(pairs: list[tuple[str, str]], most: int = 5) -> None:
    shown = pairs if len(pairs) <= 2 * most else [*pairs[:most], None, *pairs[-most:]]
    for pair in shown:
        logger.info("  ... %d more", len(pairs) - 2 * most) if pair is None else logger.info("  %s -> %s", *pair)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
