"""Classifiers around modules that are no networks of timm."""

import pytest
import torch
from torch import Tensor, nn

from viscoin.attribution import attribute
from viscoin.errors import Refused
from viscoin.models.classifier import Classifier

LAYERS = ("0", "2", "4")


def convolutional(classes: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(8, classes),
    )  # fmt: skip


def images(side: int = 32) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_any_module_is_a_classifier():
    network = convolutional()
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    f = Classifier.wrap(network, LAYERS, 32, mean=mean, std=std)
    batch = images().requires_grad_()
    wanted = network((batch / 2 + 0.5 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
    logits, maps = f.features(batch)
    torch.testing.assert_close(logits, wanted)
    torch.testing.assert_close(f(batch), wanted)
    assert f.n_classes == 3 and f.feature_shapes == [(4, 16, 16), (6, 8, 8), (8, 4, 4)]
    assert [tuple(part.shape[1:]) for part in maps] == f.feature_shapes
    logits.sum().backward()
    assert batch.grad.abs().sum() > 0
    read, coarse = f.last_features(images())
    assert f.last_layer is network[8] and read.shape == (2, 8)
    torch.testing.assert_close(read, coarse.mean((2, 3)))


@pytest.mark.parametrize("method", ["saliency", "gradcam", "integrated-gradients", "cam"])
def test_maps_of_a_wrapped_module(method):
    f = Classifier.wrap(convolutional(), LAYERS, 48, input_size=32)
    assert attribute(f, images(48), method, [0, 1]).maps.shape == (2, 48, 48)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = convolutional()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + torch.randn(())


class Pair(Noisy):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x), x


class Stops(Noisy):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no such size")


@pytest.mark.parametrize(
    ("module", "layers", "words"),
    [
        (lambda x: x, LAYERS, "is a function, no torch.nn.Module"),
        (convolutional(), ("0", "2"), "expected three, not 2; its layers are 0, 1"),
        (convolutional(), ("0", "2", "stem"), "layer stem: there is no such layer"),
        (convolutional(), ("0", "2", "8"), r"layer 8: gives something of shape \(2, 3\), no maps"),
        (Noisy(), ("body.0", "body.2", "body.4"), "its output changes from call to call"),
        (Pair(), ("body.0", "body.2", "body.4"), "gives tuple, no logits"),
        (Stops(), ("body.0", "body.2", "body.4"), "cannot take images of 32 px: no such size"),
    ],
)
def test_what_is_no_classifier_is_refused(module, layers, words):
    with pytest.raises(Refused, match=words):
        Classifier.wrap(module, layers, 32)
