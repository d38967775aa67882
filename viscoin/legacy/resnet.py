"""ResNets (He et al., arXiv 1512.03385) in the names of the transformers library, turned into those of timm."""

import re
from collections.abc import Mapping

from torch import Tensor

# (convolutions in a block, blocks in each stage) -> timm's name
BACKBONES: dict[tuple[int, tuple[int, ...]], str] = {
    (2, (2, 2, 2, 2)): "resnet18",
    (2, (3, 4, 6, 3)): "resnet34",
    (3, (2, 2, 2, 2)): "resnet26",
    (3, (3, 4, 6, 3)): "resnet50",
    (3, (3, 4, 23, 3)): "resnet101",
    (3, (3, 8, 36, 3)): "resnet152",
}
STEM = {
    "resnet.embedder.embedder.convolution": "conv1",
    "resnet.embedder.embedder.normalization": "bn1",
    "linear": "fc",
    "classifier.1": "fc",  # the head of ResNetForImageClassification
}
BLOCK = re.compile(r"resnet\.encoder\.stages\.(\d+)\.layers\.(\d+)\.(?:layer\.(\d+)|(shortcut))\.(\w+)")
KINDS = {"convolution": ("conv", 0), "normalization": ("bn", 1)}  # name in a block, index in a shortcut


def timm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under timm's names; names that mean nothing here stay as they are."""
    return {_timm_name(name): tensor for name, tensor in state.items()}


def backbone_name(state: Mapping[str, Tensor]) -> str:
    """Timm's name for the ResNet, by its number of blocks.

    Raises:
        ValueError: no ResNet in these names, or one of another depth.
    """
    found = [match for name in state if (match := BLOCK.match(name))]
    if not found:
        raise ValueError(f"the classifier is no ResNet in the names of transformers; it starts with {_first(state)}")
    blocks = {(int(match[1]), int(match[2])) for match in found}
    stages = tuple(sum(stage == i for stage, _ in blocks) for i in range(max(blocks)[0] + 1))
    depth = 1 + max(int(match[3]) for match in found if match[3])
    if (depth, stages) not in BACKBONES:
        raise ValueError(
            f"the classifier is a ResNet of {'-'.join(map(str, stages))} blocks with {depth} convolutions each; "
            f"known are {', '.join(BACKBONES.values())}"
        )
    return BACKBONES[depth, stages]


def _timm_name(name: str) -> str:
    module, _, tensor = name.rpartition(".")
    if module in STEM:
        return f"{STEM[module]}.{tensor}"
    match = BLOCK.fullmatch(module)
    if match is None or match[5] not in KINDS:
        return name
    stage, block, layer, shortcut, kind = match.groups()
    short, index = KINDS[kind]
    inner = f"downsample.{index}" if shortcut else f"{short}{int(layer) + 1}"
    return f"layer{int(stage) + 1}.{block}.{inner}.{tensor}"


def _first(state: Mapping[str, Tensor]) -> str:
    return ", ".join(str(name)[:60] for name in list(state)[:3]) or "nothing"
