"""Small plain vision transformers for images around 32 to 64 px, known to timm by their names."""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn

PATCHES = (4, 8, 16)  # pixels

default_cfgs = generate_default_cfgs(
    {
        f"viscoin_vit_patch{patch}": {
            "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "input_size": (3, 64, 64), "fixed_input_size": True,
            "first_conv": "patch_embed.proj", "classifier": "head",
        }
        for patch in PATCHES
    }
)  # fmt: skip


@register_model
def viscoin_vit_patch4(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViT of 6 blocks of width 96 and 3 heads, patches of 4 px: 64 tokens of a 32 px image; 0.68 M weights."""
    return _small_vit(4, pretrained, **kwargs)


@register_model
def viscoin_vit_patch8(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """`viscoin_vit_patch4` with patches of 8 px: 64 tokens of a 64 px image."""
    return _small_vit(8, pretrained, **kwargs)


@register_model
def viscoin_vit_patch16(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViT of 4 blocks of width 64 and 4 heads, patches of 16 px, the cells of the dataset toy-count; 0.25 M weights."""
    return _small_vit(16, pretrained, **{"embed_dim": 64, "depth": 4, "num_heads": 4, **kwargs})


def _small_vit(patch: int, pretrained: bool, **kwargs: Any) -> nn.Module:
    kwargs = {"img_size": 64, "patch_size": patch, "embed_dim": 96, "depth": 6, "num_heads": 3, **kwargs}
    return build_model_with_cfg(VisionTransformer, f"viscoin_vit_patch{patch}", pretrained, **kwargs)
