"""Classifiers small enough for every method of attribution, one for each family of networks."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from timm.models.beit import Beit
from timm.models.convnext import ConvNeXt
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from viscoin.models.classifier import Classifier, ClassifierOutput

GOLDEN = Path(__file__).parent / "golden" / "attribution"
CLASSES = 4


def golden(name: str) -> dict[str, Tensor]:
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no dictionary


class TinyNet(nn.Module):
    """The network of the golden files: two convolutions with ReLU, the mean over positions, one linear layer."""

    def __init__(self, classes: int = 5, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.n_classes = classes
        self.conv1, self.relu1 = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.relu2(self.conv2(self.relu1(self.conv1(images))))
        return self.fc(self.pool(maps).flatten(1))

    @property
    def last_layer(self) -> nn.Linear:
        return self.fc


class Built(Classifier):
    """Any network of timm as a classifier that takes images as they are."""

    def __init__(self, model: Any, resolution: int) -> None:
        nn.Module.__init__(self)
        self.model, self.resolution, self.n_classes = model, resolution, CLASSES
        self.input_size = resolution
        self.architecture = {"backbone": type(model).__name__, "n_classes": CLASSES, "resolution": resolution}
        self.register_buffer("scale", torch.ones(1, 3, 1, 1))
        self.register_buffer("shift", torch.zeros(1, 3, 1, 1))
        self.feature_shapes = self._probe()


class Plain(nn.Module):
    """A network that shows nothing but its logits."""

    def __init__(self, model: nn.Module, classes: int) -> None:
        super().__init__()
        self.model, self.n_classes = model, classes

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)

    def features(self, images: Tensor) -> ClassifierOutput:
        return ClassifierOutput(self.model(images), ())


def _vit(kind: Callable[..., nn.Module] = VisionTransformer, **settings: Any) -> nn.Module:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": CLASSES}
    return kind(**{**sizes, **settings})


def _swin() -> nn.Module:
    return SwinTransformer(
        32, 2, embed_dim=8, depths=(1, 1, 2, 1), num_heads=(1, 1, 2, 2), window_size=2, num_classes=CLASSES
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: Classifier("viscoin_resnet10", CLASSES, 32),
    "efficientnet": lambda: Classifier("test_efficientnet", CLASSES, 64),
    "mobilenetv3": lambda: Classifier("mobilenetv3_small_050", CLASSES, 64),
    "regnet": lambda: Classifier("regnetx_002", CLASSES, 64),
    "convnext": lambda: Built(ConvNeXt(depths=(1, 1, 2, 1), dims=(8, 8, 12, 16), num_classes=CLASSES), 64),
    "vit": lambda: Built(_vit(), 32),
    "vit-distilled": lambda: Built(_vit(VisionTransformerDistilled), 32),
    "vit-registers": lambda: Built(_vit(reg_tokens=4), 32),
    "vit-average": lambda: Built(_vit(global_pool="avg", class_token=False), 32),
    "vit-map": lambda: Built(_vit(global_pool="map", class_token=False), 32),
    "eva": lambda: Built(_vit(Eva, use_rot_pos_emb=True), 32),
    "beit": lambda: Built(_vit(Beit, use_rel_pos_bias=True), 32),
    "swin": lambda: Built(_swin(), 32),
}


@cache
def network(name: str) -> Any:
    """One of `NETWORKS`, with random weights that are large enough for maps to differ."""
    torch.manual_seed(0)
    classifier = NETWORKS[name]()
    if name not in ("resnet", "regnet", "efficientnet", "mobilenetv3"):
        for parameter in classifier.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.3)
    return classifier.eval()


def noise(n: int, side: int, seed: int = 1) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1
