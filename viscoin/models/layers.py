"""Where the feature maps of a backbone of timm are, and how its tensors are laid out."""

import difflib
from typing import Any

from torch import Tensor, nn

from viscoin.errors import Refused

MOST_NAMED = 12


def backbone_of(classifier: nn.Module) -> nn.Module:
    """The network of timm inside a `Classifier`; any other classifier itself."""
    inner = getattr(classifier, "model", None)
    return inner if isinstance(inner, nn.Module) else classifier


def stage_layers(model: nn.Module) -> list[str]:
    """Paths of the modules whose outputs are the last three feature maps, from fine to coarse; [] where unknown."""
    return [stage["module"] for stage in getattr(model, "feature_info", [])][-3:]


def default_layer(model: nn.Module, normalised: bool = False) -> str:
    """Path of the module whose output is explained by default: the last feature map.

    Of a transformer, the tokens that enter the last block: what its patch tokens are after it, a score that is read
    from the class token does not see.

    Args:
        normalised: where the last maps or tokens are read through a norm of each position alone, take them after it. It
            takes out the length at each position, so that before it gradient times map is 0 everywhere.

    Raises:
        Refused: no network of timm, so that the layer must be named.
    """
    layers = stage_layers(model)
    if not layers:
        raise Refused("layer", None, f"{type(model).__name__} does not say where its maps are", "name the module")
    if not has_tokens(model):
        return "norm" if normalised and _norm_of_positions(model) else layers[-1]
    depth = len(model.get_submodule("blocks"))  # type: ignore[arg-type]  # a Sequential or a ModuleList
    norm = f"blocks.{depth - 1}.norm1"
    if normalised and getattr(model, "global_pool", None) == "token" and norm in dict(model.named_modules()):
        return norm
    return f"blocks.{depth - 2}" if depth > 1 else "norm_pre"


def _norm_of_positions(model: nn.Module) -> bool:
    """Whether a layer norm over channels comes between the last map and the mean over positions, as in Swin."""
    return isinstance(getattr(model, "norm", None), nn.LayerNorm) and getattr(model, "output_fmt", "") == "NHWC"


def has_tokens(model: nn.Module) -> bool:
    """Whether the network is a stack of equal blocks over tokens, as a plain vision transformer is."""
    blocks = getattr(model, "blocks", None)
    return hasattr(model, "num_prefix_tokens") and isinstance(blocks, nn.Sequential | nn.ModuleList)


def resolve_layer(model: nn.Module, layer: int | str | None, normalised: bool = False) -> str:
    """The path of a module by stage, 0 (finest) to 2 of the last three maps, or by its own path.

    None stands for the default, `normalised` as `default_layer` takes it.

    Raises:
        Refused: there is none; names those that are.
    """
    if layer is None:
        return default_layer(model, normalised)
    stages = stage_layers(model)
    if isinstance(layer, int) or layer.isdigit():
        if int(layer) not in range(len(stages)):
            raise Refused("layer", layer, "unknown stage", known_layers(model))
        return stages[int(layer)]
    if layer not in dict(model.named_modules()) or not layer:
        raise Refused("layer", layer, "there is no such module", known_layers(model, layer))
    return layer


def known_layers(model: nn.Module, like: str = "") -> str:
    """For people: stages, and paths of modules, those first that are like the given one."""
    stages = stage_layers(model)
    paths = [name for name, _ in model.named_modules() if name]
    near = [*difflib.get_close_matches(like, paths, n=4), *stages, *(name for name in paths if name.count(".") < 2)]
    named = ", ".join(list(dict.fromkeys(near))[:MOST_NAMED])
    numbers = f"{', '.join(map(str, range(len(stages))))} (0 is the finest) or " if stages else ""
    return f"choose {numbers}a module such as {named}"


def token_grid(model: nn.Module) -> tuple[int, int] | None:
    """Rows and columns of patches, as the network says; None where it has no patches."""
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    return (int(grid[0]), int(grid[1])) if grid else None


def prefix_tokens(model: nn.Module) -> int:
    """Number of class, distillation and register tokens before the patches."""
    count: Any = getattr(model, "num_prefix_tokens", 0)
    return int(count or 0)


def lay_out(tensor: Tensor, model: nn.Module) -> Tensor | None:
    """What a module of the network gives, as a map (B, C, h, w); a view, so that gradients flow. None: it is no map.

    Maps may be channels-last, and tokens (B, N, C) may have class, distillation or register tokens in front. Images
    are square, and so are their maps; this tells channels from places.
    """
    if tensor.ndim == 3:
        return _tokens_as_map(tensor, model)
    if tensor.ndim != 4:
        return None
    _, a, b, c = tensor.shape
    if a == b == c:
        return tensor.permute(0, 3, 1, 2) if getattr(model, "output_fmt", "NCHW") == "NHWC" else tensor
    if b == c:
        return tensor
    return tensor.permute(0, 3, 1, 2) if a == b else None


def _tokens_as_map(tokens: Tensor, model: nn.Module) -> Tensor | None:
    count, prefix = tokens.shape[1], prefix_tokens(model)
    height, width = token_grid(model) or (2 * (round((count - prefix) ** 0.5),))
    if count not in (height * width, height * width + prefix):
        side = round(count**0.5)  # a pyramid has fewer tokens in later stages
        if side * side != count or prefix:
            return None
        height = width = side
    return tokens[:, count - height * width :].transpose(1, 2).unflatten(2, (height, width))


def name_of(classifier: Any) -> str:
    """What a classifier is called in messages: its backbone, or its class."""
    architecture = getattr(classifier, "architecture", None) or {}
    return str(architecture.get("backbone") or type(classifier).__name__)
