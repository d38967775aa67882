"""A plain vision transformer from its patch embeddings on: what DiffMask looks at, and where it intervenes."""

from typing import Any

import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from viscoin.errors import Refused
from viscoin.models.classifier import Classifier

REMEDY = "train one, as with classifier.backbone=viscoin_vit_patch8 or vit_tiny"


class PatchTokens:
    """The patch tokens of a classifier that is a plain ViT: embeddings, then L blocks; the class token is left alone.

    Attributes:
        grid: patches down and across.
        width: d, numbers of a token.
        layers: L + 2 states of each token: its embedding before positions are added, the inputs of the L blocks, the
            output of the last one.

    Raises:
        Refused: another network; says what stands in the way.
    """

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self.vit = _plain_vit(classifier)
        self.grid: tuple[int, int] = self.vit.patch_embed.grid_size
        self.width: int = self.vit.embed_dim
        self.layers = len(self.vit.blocks) + 2

    @property
    def blocks(self) -> nn.Module:
        return self.vit.blocks

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> patch embeddings (B, N, d) before positions are added."""
        return self.vit.patch_embed(self.classifier._normalised(images))

    def states(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, n_classes) of images (B, 3, H, W) in [-1, 1], and all states (L + 2, B, N, d) of their patches."""
        embeddings = self.embed(images)
        logits, inner = self._run(embeddings)
        return logits, torch.stack([embeddings, *(tokens[:, self.vit.num_prefix_tokens :] for tokens in inner)])

    def logits(self, embeddings: Tensor) -> Tensor:
        """Logits (B, n_classes) of patch embeddings (B, N, d) in place of an image's own."""
        return self._run(embeddings)[0]

    def enlarge(self, values: Tensor, resolution: int) -> Tensor:
        """One number a patch, (B, N) -> that number on all of its pixels, (B, H, W)."""
        maps = values.view(-1, 1, *self.grid)
        return F.interpolate(maps, (resolution, resolution), mode="nearest")[:, 0]

    def _run(self, embeddings: Tensor) -> tuple[Tensor, list[Tensor]]:
        tokens = self.vit.norm_pre(self.vit.patch_drop(self.vit._pos_embed(embeddings)))
        inner = [tokens]
        for block in self.vit.blocks:
            inner.append(block(inner[-1]))
        return self.vit.forward_head(self.vit.norm(inner[-1])), inner


def _plain_vit(classifier: Classifier) -> Any:
    model = classifier.model
    reason = None
    if not isinstance(model, VisionTransformer):
        reason = f"a {type(model).__name__} has no tokens that stay patches from the first block to the last"
    elif not isinstance(model.patch_embed, PatchEmbed):
        reason = f"its tokens come from a {type(model.patch_embed).__name__}, in which patches mix"
    elif model.dynamic_img_size:
        reason = "its grid of patches follows the size of the image"
    if reason is not None:
        raise Refused(
            "classifier.backbone", classifier.architecture["backbone"],
            f"DiffMask masks the patches of a plain vision transformer (ViT, DeiT, DINOv2), and {reason}", REMEDY,
        )  # fmt: skip
    return model
