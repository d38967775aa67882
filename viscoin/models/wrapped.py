"""Classifiers that are no networks of timm: any module, and the three of its layers that show the features."""

import importlib.util
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from viscoin.errors import Refused, reason_of

logger = logging.getLogger(__name__)

TIMES, TOLERANCE = 3, 1e-5  # calls that have to agree, relative to the largest logit


class ForeignBackbone(nn.Module):
    """A module with the methods of timm's networks that `Classifier` needs.

    Args:
        module: normalised images (B, 3, H, W) -> logits (B, n_classes).
        layers: three paths of modules inside of it, from fine to coarse, that give maps (B, C, H, W).

    Attributes:
        last: path of the linear layer that gives the logits; None where something else does.
    """

    def __init__(self, module: nn.Module, layers: Sequence[str], last: str | None, side: int) -> None:
        super().__init__()
        self.module, self.layers, self.last = module, tuple(layers), last
        self.pretrained_cfg = {"mean": (0, 0, 0), "std": (1, 1, 1), "input_size": (3, side, side)}
        self.feature_info = [{"module": f"module.{path}"} for path in layers]

    def forward(self, images: Tensor) -> Tensor:
        return self.module(images)

    def forward_intermediates(self, images: Tensor, **keywords: Any) -> tuple[Tensor, list[Tensor]]:
        """What the last layer reads, or the logits where it is not linear; and the maps of the layers."""
        maps: dict[str, Tensor] = {}
        read: list[Tensor] = []
        hooks = [
            self.module.get_submodule(path).register_forward_hook(
                lambda _module, _given, output, path=path: maps.__setitem__(path, output)
            )
            for path in self.layers
        ]
        if self.last is not None:
            linear = self.module.get_submodule(self.last)
            hooks.append(linear.register_forward_hook(lambda _module, given, _output: read.append(given[0])))
        try:
            logits = self.module(images)
        finally:
            for hook in hooks:
                hook.remove()
        missing = [path for path in self.layers if path not in maps]
        if missing:
            raise Refused("layer", missing[0], "takes no part in the forward pass", "name another layer")
        return (read[-1] if read else logits), [maps[path] for path in self.layers]

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, n_classes) of what the last layer reads, or that itself."""
        linear = self.get_classifier()
        return features if pre_logits or linear is None else linear(features)

    def forward_features(self, images: Tensor) -> Tensor:
        """The coarsest map."""
        return self.forward_intermediates(images)[1][-1]

    def get_classifier(self) -> Any:
        return None if self.last is None else self.module.get_submodule(self.last)


def check_module(module: object, layers: Sequence[str], images: Tensor) -> tuple[int, str | None]:
    """Number of logits of a module in eval mode, and where its last linear layer is, if that gives them.

    Args:
        images: (B, 3, H, W) that it takes.

    Raises:
        Refused: no module, one that does not take the images, gives no logits, or others from call to call; or layers
            that are not there or show no maps.
    """
    if not isinstance(module, nn.Module):
        raise Refused("module", None, f"is a {type(module).__name__}, no torch.nn.Module", "return the network itself")
    if len(layers) != 3:
        raise Refused("layer", ", ".join(layers) or None, f"expected three, not {len(layers)}", _layers_of(module))
    names = dict(module.named_modules())
    for path in layers:
        if path not in names:
            raise Refused("layer", path, "there is no such layer", _layers_of(module))
    module.eval()
    outputs: list[tuple[str, object]] = []
    linear = [(path, part) for path, part in names.items() if isinstance(part, nn.Linear)]
    hooks = [
        part.register_forward_hook(lambda _module, _given, output, path=path: outputs.append((path, output)))
        for path, part in [*linear, *((path, names[path]) for path in layers)]
    ]
    try:
        with torch.no_grad():
            logits = module(images)
    except Exception as error:  # whatever a foreign module raises
        raise Refused("module", None, f"cannot take images of {images.shape[-1]} px: {reason_of(error)}") from error
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise Refused("module", None, f"gives {given}, no logits ({len(images)}, classes)", "wrap what it returns")
    for path in layers:
        shown = next((output for name, output in outputs if name == path), None)
        if not isinstance(shown, Tensor) or shown.ndim != 4:
            what = f"of shape {tuple(shown.shape)}" if isinstance(shown, Tensor) else "of another kind"
            raise Refused("layer", path, f"gives something {what}, no maps (B, C, H, W)", _layers_of(module))
    check_steady(module, images, logits)
    last = next((path for path, output in reversed(outputs) if output is logits), None)
    return logits.shape[1], last


def check_steady(module: Callable[[Tensor], Tensor], images: Tensor, logits: Tensor) -> None:
    """Raise Refused unless further calls of a module give the logits of the first again."""
    with torch.no_grad():
        others = [module(images) for _ in range(TIMES - 1)]
    bound = TOLERANCE * float(logits.abs().max().clamp_min(1))
    if any(other.shape != logits.shape or not torch.allclose(other, logits, rtol=0, atol=bound) for other in others):
        raise Refused("module", None, "its output changes from call to call for the same images",
                      "switch off what is random in it")  # fmt: skip


def _layers_of(module: nn.Module) -> str:
    names = [name for name, _ in module.named_modules() if name and name.count(".") < 2]
    return f"its layers are {', '.join(names[:12])}{', …' if len(names) > 12 else ''}"


def load_function(place: str) -> Any:
    """What a function of a Python file returns; the file is run.

    Args:
        place: "FILE.py:function".

    Raises:
        Refused: no such file or function, or whatever they raise.
    """
    name, _, function = place.rpartition(":")
    path = Path(name)
    if not name or path.suffix != ".py" or not path.is_file():
        raise Refused("module", place, "expected FILE.py:function, of a file that is there")
    logger.info("running %s, code of your own", path.resolve())
    specification = importlib.util.spec_from_file_location(f"viscoin_module_{path.stem}", path)
    if specification is None or specification.loader is None:
        raise Refused("module", place, "cannot be loaded")
    loaded = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(loaded)
        build = getattr(loaded, function, None)
        if not callable(build):
            raise Refused("module", place, f"{path} has no function {function!r}")
        return build()
    except Refused:
        raise
    except Exception as error:  # of the user's code
        raise Refused("module", place, f"its code stopped with {type(error).__name__}: {reason_of(error)}") from error
