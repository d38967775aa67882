"""A shallower network: a backbone that ends after one of its modules, in the mean over positions and a linear layer."""

from typing import Any

import torch
from torch import Tensor, nn

from viscoin.errors import Refused
from viscoin.models.layers import known_layers

KEPT = ("global_pool", "flatten")  # what timm calls what stands between features and last layer


def cut_after(model: Any, path: str, side: int, n_classes: int) -> None:
    """End a convolutional network of timm after a module; what comes later becomes the identity.

    The last layer is new, and random.

    Args:
        path: of the module, as in "blocks.5.0.bn1".
        side: of the images, pixels.

    Raises:
        Refused: there is no such module, it gives no map, or what it gives is joined with something else later.
    """
    if not path or path not in dict(model.named_modules()):
        raise Refused("classifier.cut", path, "there is no such module", known_layers(model, path))
    name = next((name for name, part in model.named_modules() if part is model.get_classifier()), None)
    if name is None or not isinstance(model.get_classifier(), nn.Linear):
        raise Refused("classifier.cut", path, "the backbone ends in no linear layer", "choose another backbone")
    for module in _later(model, path, name):
        model.set_submodule(module, nn.Identity())
    channels = _channels(model, path, side)
    if channels is None:
        raise Refused(
            "classifier.cut", path, "what this module gives is not all that goes on from there, or is no map",
            "cut after a whole block",
        )  # fmt: skip
    model.set_submodule(name, nn.Linear(channels, n_classes))
    model.num_features = model.head_hidden_size = channels


def _later(model: nn.Module, path: str, last: str) -> list[str]:
    """Paths of the modules that come after one, in each module that contains it; not of pooling and last layer."""
    found, parts = list[str](), path.split(".")
    for depth in range(len(parts)):
        above = parts[:depth]
        names = [name for name, _ in model.get_submodule(".".join(above)).named_children()]
        for name in names[names.index(parts[depth]) + 1 :]:
            found += _outside(model, ".".join([*above, name]), last)
    return found


def _outside(model: nn.Module, path: str, last: str) -> list[str]:
    """The module itself, or where it contains the last layer, its parts without that."""
    if path == last or path.rpartition(".")[2] in KEPT:
        return []
    if not last.startswith(f"{path}."):
        return [path]
    children = [name for name, _ in model.get_submodule(path).named_children()]
    return [part for name in children for part in _outside(model, f"{path}.{name}", last)]


@torch.no_grad()
def _channels(model: Any, path: str, side: int) -> int | None:
    """Channels of the map that goes to the pooling; None unless it is what the module gives."""
    seen: list[Any] = []
    hook = model.get_submodule(path).register_forward_hook(lambda _module, _given, output: seen.append(output))
    training, weight = model.training, next(model.parameters())
    x = torch.linspace(-1, 1, 3 * side * side).view(1, 3, side, side).to(weight.device)
    try:
        features = model.eval().forward_features(x)
    except RuntimeError:  # maps of different sizes meet
        return None
    finally:
        hook.remove()
        model.train(training)
    maps = [one for one in seen if isinstance(one, Tensor) and one.ndim == 4]
    if len(maps) != 1 or maps[0].shape != features.shape:
        return None
    return features.shape[1] if features.is_meta or torch.equal(features, maps[0]) else None
