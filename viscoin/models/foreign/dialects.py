"""What torchvision and transformers call the weights of networks that timm has under other names."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
Rename = tuple[str, str | Callable[[re.Match[str]], str]]

RESNETS = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2",
    "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d",
)  # fmt: skip
CONVNEXTS = tuple(
    f"convnext_{size}" for size in ("tiny", "small", "base", "large", "xlarge", "atto", "femto", "pico", "nano")
)
EFFICIENTNETS = (*(f"efficientnet_b{n}" for n in range(8)), *(f"efficientnetv2_{size}" for size in "sml"))
VITS = (
    "vit_tiny_patch16_224", "vit_small_patch16_224", "vit_small_patch32_224", "vit_base_patch16_224",
    "vit_base_patch32_224", "vit_base_patch8_224", "vit_large_patch16_224", "vit_large_patch32_224",
    "vit_huge_patch14_224", "viscoin_vit_patch8",
)  # fmt: skip
DEITS = tuple(f"deit_{size}_distilled_patch16_224" for size in ("tiny", "small", "base"))
SWINS = tuple(f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base", "large"))


@dataclass(frozen=True)
class Dialect:
    """How one library names the weights of one family of networks.

    Attributes:
        title: for people.
        signs: patterns, each of which is in the name of some tensor.
        backbones: of timm, the usual ones first.
        renames: pattern and timm's name; the first pattern that is in a name, from its start, replaces its match, and
            then the next ones go on with the result.
        library: whose it is: "timm", "torchvision" or "transformers".
        norm_eps: of its normalisation layers by the start of a backbone's name ("" is any), where timm has another.
        special: what no renaming does, after it: (tensors, those of timm's network) -> tensors.
        left_out: names that timm's network makes itself.
    """

    title: str
    signs: tuple[str, ...]
    backbones: tuple[str, ...]
    renames: tuple[Rename, ...] = ()
    library: str = "timm"
    norm_eps: tuple[tuple[str, float], ...] = ()
    special: Callable[[Tensors, Tensors], dict[str, Tensor]] | None = None
    left_out: str = r"relative_position_index$|attn_mask$"

    def is_spoken(self, names: Mapping[str, object]) -> bool:
        """Whether these names are of this dialect."""
        return all(any(re.search(sign, name) for name in names) for sign in self.signs)

    def translated(self, tensors: Tensors, wanted: Tensors) -> dict[str, Tensor]:
        """The tensors by the names of timm's network, whose own are `wanted`."""
        found = {}
        for name, tensor in tensors.items():
            if not re.search(self.left_out, name):
                for pattern, replacement in self.renames:
                    name = re.sub(pattern, replacement, name, count=1)
                found[name] = tensor
        return self.special(found, wanted) if self.special else found

    def eps(self, backbone: str) -> float | None:
        """The constant of its normalisation layers, None where it is timm's."""
        return next((eps for start, eps in self.norm_eps if backbone.startswith(start)), None)


def _counted(pattern: str, offset: int = 0, factor: int = 1) -> Callable[[re.Match[str]], str]:
    """A replacement with the first group, a number, shifted and divided."""
    return lambda match: match.expand(pattern).replace("#", str((int(match[1]) + offset) // factor))


def joined_attention(tensors: Tensors, wanted: Tensors) -> dict[str, Tensor]:
    """Queries, keys and values as timm has them: one layer, whose outputs are one after the other."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(.*\.attn\.)([qkv])(\.\w+)", name)
        if match is None:
            found[name] = tensor
        elif match[2] == "q":
            parts = [tensors.get(f"{match[1]}{part}{match[3]}") for part in "qkv"]
            found |= {f"{match[1]}qkv{match[3]}": torch.cat([part for part in parts if part is not None])}
    return found


def flat_layer_scales(tensors: Tensors, wanted: Tensors) -> dict[str, Tensor]:
    """Scales of channels (C, 1, 1) as (C,)."""
    return {name: tensor.flatten() if name.endswith(".gamma") else tensor for name, tensor in tensors.items()}


def inverted_residuals(tensors: Tensors, wanted: Tensors) -> dict[str, Tensor]:
    """Blocks of MobileNets and EfficientNets: torchvision numbers their layers, timm names them by what they do.

    Block after block: both have them in the same order, and timm alone divides them into stages.
    """
    targets = list(dict.fromkeys(match[0] for name in wanted if (match := re.match(r"blocks\.\d+\.\d+", name))))
    pattern = re.compile(r"features\.(\d+(?:\.\d+)?)\.(?:block|conv)\.(.*)")
    inside = [(match[1], match[2], name) for name in tensors if (match := pattern.fullmatch(name))]
    found = {name: tensor for name, tensor in tensors.items() if not pattern.fullmatch(name)}
    blocks = [list(parts) for _, parts in groupby(inside, key=lambda part: part[0])]
    for target, block in zip(targets, blocks, strict=False):
        named = _layers({rest: tensors[name] for _, rest, name in block})
        found |= {f"{target}.{name}": tensor for name, tensor in named.items()}
    return _stem_and_head(found, targets, len(blocks))


def _layers(block: Tensors) -> dict[str, Tensor]:
    """The layers of one block by timm's names."""
    paths = list(dict.fromkeys(name.rpartition(".")[0] for name in block))
    convolutions = [path for path in paths if block[f"{path}.weight"].ndim == 4 and not re.search(r"fc\d$", path)]
    depthwise = [block[f"{path}.weight"].shape[1] == 1 for path in convolutions]
    if True not in depthwise:  # of EfficientNetV2, without a layer for each channel
        names = ["conv"] if len(convolutions) == 1 else ["conv_exp", "conv_pwl"]
    else:
        names = ["conv_dw", "conv_pw"] if depthwise[0] else ["conv_pw", "conv_dw", "conv_pwl"]
    found, norms = dict(zip(convolutions, names, strict=False)), 0
    for path in paths:
        if path.endswith(("fc1", "fc2")):
            found[path] = "se.conv_reduce" if path.endswith("fc1") else "se.conv_expand"
        elif path not in found:
            norms += 1
            found[path] = f"bn{norms}"
    return {f"{found[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": tensor for name, tensor in block.items()}


def _stem_and_head(tensors: Tensors, targets: list[str], blocks: int) -> dict[str, Tensor]:
    """What stands before and after the blocks; the head of MobileNetV3 has one more layer, a convolution in timm."""
    last = max((int(match[1]) for name in tensors if (match := re.match(r"features\.(\d+)\.[01]\.", name))), default=0)
    third = any(name.startswith("classifier.3.") for name in tensors)
    final = targets[-1] if third and len(targets) > blocks else None
    places = {"features.0.0": "conv_stem", "features.0.1": "bn1", "classifier.1": "classifier"}
    places |= {f"features.{last}.0": f"{final}.conv" if final else "conv_head"}
    places |= {f"features.{last}.1": f"{final}.bn1" if final else "bn2"}
    if third:
        places |= {"classifier.0": "conv_head", "classifier.3": "classifier"}
    found = {}
    for name, tensor in tensors.items():
        path, _, rest = name.rpartition(".")
        if third and name == "classifier.0.weight":
            tensor = tensor[..., None, None]
        found[f"{places.get(path, path)}.{rest}"] = tensor
    return found


# transformers 5 has other names in memory than older versions and files have; both are read
_ATTENTION: tuple[Rename, ...] = (
    (r"\.attention\.(?:attention\.|self\.)?(?:query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(?:attention\.|self\.)?(?:key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(?:attention\.|self\.)?(?:value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attention\.(?:self\.|relative_position_bias\.)relative", ".attn.relative"),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(\d)\.output\.dense\.", r"\1.mlp.fc2."),
)
_OF_TRANSFORMERS: tuple[Rename, ...] = (
    (r"^(?:vit|deit)\.", ""),
    (r"^embeddings\.(?=cls_token)", ""),
    (r"^embeddings\.distillation_token", "dist_token"),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^(?:encoder\.)?layers?\.(\d+)\.", r"blocks.\1."),
    *_ATTENTION,
    (r"^layernorm\.", "norm."),
    (r"^(?:cls_)?classifier\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
)

DIALECTS: tuple[Dialect, ...] = (
    Dialect(
        "ConvNeXt of torchvision", (r"^features\.\d+\.\d+\.layer_scale$",), CONVNEXTS,
        (
            (r"^features\.0\.([01])\.", r"stem.\1."),
            (r"^features\.(\d*[13579])\.(\d+)\.", _counted(r"stages.#.blocks.\2.", -1, 2)),
            (r"^features\.(\d+)\.([01])\.", _counted(r"stages.#.downsample.\2.", 0, 2)),
            (r"\.layer_scale$", ".gamma"), (r"\.block\.0\.", ".conv_dw."), (r"\.block\.2\.", ".norm."),
            (r"\.block\.3\.", ".mlp.fc1."), (r"\.block\.5\.", ".mlp.fc2."),
            (r"^classifier\.0\.", "head.norm."), (r"^classifier\.2\.", "head.fc."),
        ),
        "torchvision", special=flat_layer_scales,
    ),
    Dialect(
        "Swin of torchvision", (r"^features\..*relative_position_bias_table$",), SWINS,
        (
            (r"^features\.0\.0\.", "patch_embed.proj."), (r"^features\.0\.2\.", "patch_embed.norm."),
            (r"^features\.(\d*[13579])\.(\d+)\.", _counted(r"layers.#.blocks.\2.", -1, 2)),
            (r"^features\.(\d+)\.(norm|reduction)\.", _counted(r"layers.#.downsample.\2.", 0, 2)),
            (r"\.mlp\.0\.", ".mlp.fc1."), (r"\.mlp\.3\.", ".mlp.fc2."), (r"^head\.", "head.fc."),
        ),
        "torchvision", (("", 1e-5),),
    ),
    Dialect(
        "ViT of torchvision", (r"^encoder\.layers\.encoder_layer_0\.", r"^conv_proj\."), VITS,
        (
            (r"^class_token$", "cls_token"), (r"^conv_proj\.", "patch_embed.proj."),
            (r"^encoder\.pos_embedding$", "pos_embed"),
            (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
            (r"\.ln_([12])\.", r".norm\1."), (r"\.self_attention\.in_proj_", ".attn.qkv."),
            (r"\.self_attention\.out_proj\.", ".attn.proj."),
            (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."), (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
            (r"^encoder\.ln\.", "norm."), (r"^heads\.head\.", "head."),
        ),
        "torchvision", (("", 1e-6),),
    ),
    Dialect(
        "MobileNetV2 of torchvision", (r"^features\.1\.conv\.0\.0\.", r"^classifier\.1\."), ("mobilenetv2_100",),
        library="torchvision", special=inverted_residuals,
    ),
    Dialect(
        "MobileNetV3 of torchvision", (r"^features\.1\.block\.0\.0\.", r"^classifier\.3\."),
        ("mobilenetv3_large_100", "mobilenetv3_small_100"), library="torchvision", norm_eps=(("", 1e-3),),
        special=inverted_residuals,
    ),
    Dialect(
        "EfficientNet of torchvision", (r"^features\.1\.0\.block\.0\.0\.", r"^classifier\.1\."), EFFICIENTNETS,
        library="torchvision",
        norm_eps=tuple((name, 1e-3) for name in ("efficientnetv2", *(f"efficientnet_b{n}" for n in (5, 6, 7)))),
        special=inverted_residuals,
    ),
    Dialect(
        "ResNet of transformers", (r"^resnet\.encoder\.stages\.0\.",), RESNETS,
        (
            (r"^resnet\.embedder\.embedder\.convolution\.", "conv1."),
            (r"^resnet\.embedder\.embedder\.normalization\.", "bn1."),
            (r"^resnet\.encoder\.stages\.(\d+)\.layers\.(\d+)\.", _counted(r"layer#.\2.", 1)),
            (r"\.shortcut\.convolution\.", ".downsample.0."), (r"\.shortcut\.normalization\.", ".downsample.1."),
            (r"\.layer\.(\d+)\.convolution\.", _counted(".conv#.", 1)),
            (r"\.layer\.(\d+)\.normalization\.", _counted(".bn#.", 1)),
            (r"^classifier\.1\.", "fc."),
        ),
        "transformers",
    ),
    Dialect(
        "ConvNeXt of transformers", (r"^convnext\.embeddings\.",), CONVNEXTS,
        (
            (r"^convnext\.embeddings\.patch_embeddings\.", "stem.0."),
            (r"^convnext\.embeddings\.layernorm\.", "stem.1."),
            (r"^convnext\.encoder\.stages\.(\d+)\.downsampling_layer\.", r"stages.\1.downsample."),
            (r"^convnext\.encoder\.stages\.(\d+)\.layers\.(\d+)\.", r"stages.\1.blocks.\2."),
            (r"\.layer_scale_parameter$", ".gamma"), (r"\.dwconv\.", ".conv_dw."),
            (r"\.pwconv1\.", ".mlp.fc1."), (r"\.pwconv2\.", ".mlp.fc2."),
            (r"^convnext\.layernorm\.", "head.norm."), (r"\.layernorm\.", ".norm."),
            (r"^classifier\.", "head.fc."),
        ),
        "transformers",
    ),
    Dialect(
        "Swin of transformers", (r"^swin\.embeddings\.",), SWINS,
        (
            (r"^swin\.embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
            (r"^swin\.embeddings\.norm\.", "patch_embed.norm."),
            (r"^swin\.encoder\.layers\.(\d+)\.downsample\.", _counted("layers.#.downsample.", 1)),
            (r"^swin\.encoder\.layers\.", "layers."), *_ATTENTION,
            (r"^swin\.layernorm\.", "norm."), (r"^classifier\.", "head.fc."),
        ),
        "transformers", (("", 1e-5),), joined_attention,
    ),
    Dialect(
        "DeiT of transformers with two heads", (r"^deit\.embeddings\.", r"^distillation_classifier\."), DEITS,
        _OF_TRANSFORMERS, "transformers", (("", 1e-12),), joined_attention,
    ),
    Dialect(
        "ViT of transformers", (r"^(?:vit|deit)\.embeddings\.", r"^classifier\."), VITS,
        _OF_TRANSFORMERS, "transformers", (("", 1e-12),), joined_attention,
        r"^(?:vit|deit)\.pooler\.|mask_token$",
    ),
    # timm's own names, to find out which of its networks they are of
    Dialect("ResNet", (r"^layer1\.0\.conv1\.", r"^fc\."), (*RESNETS, "viscoin_resnet10", "viscoin_resnet10w")),
    Dialect(
        "EfficientNet or MobileNet", (r"^conv_stem\.", r"^blocks\.0\.0\."),
        (
            "mobilenetv2_100", "mobilenetv3_large_100", "mobilenetv3_small_100", *EFFICIENTNETS,
            *(f"tf_efficientnet_lite{n}" for n in range(5)), *(f"tf_efficientnet_b{n}" for n in range(8)),
            *(f"tf_efficientnetv2_{size}" for size in ("s", "m", "l", "b0", "b1", "b2", "b3")), "efficientnet_es",
        ),
    ),
    Dialect("ConvNeXt", (r"^stages\.0\.blocks\.0\.gamma$",), CONVNEXTS),
    Dialect("distilled ViT", (r"^dist_token$", r"^head_dist\."), DEITS),
    Dialect("ViT", (r"^pos_embed$", r"^blocks\.0\.attn\.qkv\."), VITS),
    Dialect("Swin", (r"^layers\.0\.blocks\.0\.attn\.relative_position_bias_table$",), SWINS),
)  # fmt: skip


def dialect_of(names: Mapping[str, object]) -> Dialect | None:
    """The first dialect that these names are of."""
    return next((dialect for dialect in DIALECTS if dialect.is_spoken(names)), None)
