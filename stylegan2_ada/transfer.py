"""Starting from another training's weights: load what fits, freeze part of the discriminator."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from stylegan2_ada.networks import Convolution, Discriminator


@dataclass(frozen=True)
class Transfer:
    """Names of weights: `loaded`, `left_out` (given, but fit nowhere) and `fresh` (nothing fitting was given)."""

    loaded: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)

    def summary(self, most: int = 3) -> str:
        """One line with the counts and the first few names."""
        parts = [f"{len(self.loaded)} weights loaded"]
        parts += [
            f"{len(names)} {what} ({', '.join(names[:most])}{', …' if len(names) > most else ''})"
            for what, names in (("left out", self.left_out), ("start fresh", self.fresh))
            if names
        ]
        return ", ".join(parts)


@torch.no_grad()
def load_fitting(module: nn.Module, state_dict: Mapping[str, Tensor]) -> Transfer:
    """Copy the weights whose name and shape the module knows, whatever their type and device.

    Raises:
        ValueError: no parameter fits but single numbers and biases; names the first few on both sides.
    """
    own = module.state_dict()
    loaded = [name for name, value in state_dict.items() if name in own and own[name].shape == value.shape]
    weights = {name: value for name, value in module.named_parameters() if value.ndim > 1}
    if not any(name in weights for name in loaded):
        raise ValueError(
            f"no weight fits by name and shape: wanted are {_first(weights)}, given are {_first(state_dict) or 'none'}"
        )
    for name in loaded:
        own[name].copy_(state_dict[name])
    taken = set(loaded)
    return Transfer(
        loaded, [name for name in state_dict if name not in taken], [name for name in own if name not in taken]
    )


def freeze_highest(discriminator: Discriminator, layers: int) -> list[str]:
    """Freeze-D (Mo et al., arXiv 2002.10964): the convolutions nearest to the image do not train.

    Layers count from the highest resolution: RGB input, first and second convolution, residual path, next block. The
    last block (4x4) always trains.

    Returns:
        Names of the frozen layers.

    Raises:
        ValueError: there are fewer layers than that.
    """
    blocks = [discriminator.get_submodule(f"b{r}") for r in discriminator.block_resolutions]
    found = {
        f"b{r}.{name}": layer
        for r, block in zip(discriminator.block_resolutions, blocks, strict=True)
        for name, layer in block.named_children()
        if isinstance(layer, Convolution)
    }
    if not 0 <= layers <= len(found):
        raise ValueError(f"{layers} layers cannot be frozen; this discriminator has 0 to {len(found)} to freeze")
    chosen = list(found)[:layers]
    for name in chosen:
        found[name].requires_grad_(False)
    return chosen


def _first(weights: Mapping[str, Tensor], most: int = 3) -> str:
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in list(weights.items())[:most])
