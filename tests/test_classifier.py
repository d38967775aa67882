"""The classifier f over timm backbones."""

import logging

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from viscoin.attribution import attribute
from viscoin.config import load_recipe
from viscoin.datasets import to_images
from viscoin.errors import Refused
from viscoin.models import classifier as module
from viscoin.models.architecture import ClassifierArchitecture
from viscoin.models.classifier import Classifier, build_classifier
from viscoin.models.files import load_model, save_model
from viscoin.models.foreign import hub


def images(resolution: int = 64, n: int = 2) -> Tensor:
    return torch.rand(n, 3, resolution, resolution, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(
    ("backbone", "resolution", "shapes"),
    [
        ("viscoin_resnet10", 64, [(48, 16, 16), (96, 8, 8), (192, 4, 4)]),
        ("test_resnet", 128, [(48, 16, 16), (192, 8, 8), (96, 4, 4)]),
        ("test_convnext", 64, [(32, 8, 8), (48, 4, 4), (64, 2, 2)]),
        ("test_vit", 64, [(64, 4, 4)] * 3),
    ],
)
def test_logits_and_maps_of_one_pass(backbone, resolution, shapes):
    torch.manual_seed(0)
    model = Classifier(backbone, 5, resolution).eval()
    batch = images(resolution)
    logits, maps = model.features(batch)
    assert model.feature_shapes == shapes
    assert [tuple(part.shape) for part in maps] == [(2, *shape) for shape in shapes]
    torch.testing.assert_close(logits, model(batch))
    assert logits.shape == (2, 5)
    torch.testing.assert_close(model.pooled(batch, 0), maps[0].mean((2, 3)))
    torch.testing.assert_close(model.pooled(batch), maps[2].mean((2, 3)))


def test_default_backbone_is_small():
    model = timm.create_model("viscoin_resnet10", num_classes=20)
    assert sum(p.numel() for p in model.parameters()) < 750_000
    assert [stage["reduction"] for stage in model.feature_info] == [2, 2, 4, 8, 16]


def test_maps_carry_gradients_to_the_image_and_the_weights():
    model = Classifier("viscoin_resnet10", 5, 64).eval()
    batch = images().requires_grad_()
    logits, maps = model.features(batch)
    (logits.sum() + maps[0].sum()).backward()
    assert batch.grad.abs().sum() > 0
    assert model.model.conv1.weight.grad.abs().sum() > 0


def test_images_are_normalised_for_the_backbone():
    model = Classifier("resnet18", 5, 64).eval()
    unit = (images() + 1) / 2
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = model.model((unit - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))
    torch.testing.assert_close(model(images()), expected, atol=1e-4, rtol=1e-4)
    assert not {"scale", "shift"} & set(model.state_dict())


def test_rebuilds_from_its_architecture():
    model = Classifier("test_resnet", 5, 64).eval()
    twin = Classifier(**model.architecture).eval()
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(twin(images()), model(images()))


def test_probing_leaves_no_trace():
    model = Classifier("viscoin_resnet10", 5, 64)
    assert model.training
    assert model.model.bn1.num_batches_tracked == 0


def test_unknown_backbone_names_similar_ones():
    with pytest.raises(ValueError, match=r"no backbone 'resnet51'.*did you mean .*resnet50"):
        Classifier("resnet51", 5, 64)
    with pytest.raises(ValueError, match=r"no backbone 'qqqqqq'.*viscoin_resnet10"):
        build_classifier("qqqqqq", 5, 64)


@pytest.mark.parametrize(
    ("backbone", "resolution", "message"),
    [
        ("test_resnet", 16, "images of 16 px are too small .* 2x2, 1x1, 1x1.*use larger images"),
        ("test_vit", 60, "'test_vit' cannot take images of 60 px.*divisible"),
        ("test_resnet.nonsense", 64, "cannot be built.*nonsense"),
    ],
)
def test_backbones_that_do_not_fit(backbone, resolution, message):
    with pytest.raises(ValueError, match=message):
        Classifier(backbone, 5, resolution)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (AssertionError(), "stops with AssertionError and gives no reason"),
        (KeyError("x"), "'x'"),
        (TypeError("no"), "no"),
    ],
)
def test_a_size_that_is_not_taken_has_a_reason_and_others_are_named(monkeypatch, error, reason):
    whole = timm.models.resnet.ResNet.forward_intermediates

    def picky(self, images, *arguments, **keywords):
        if images.shape[-1] % 96:
            raise error
        return whole(self, images, *arguments, **keywords)

    def never(self, *arguments, **keywords):
        raise error

    monkeypatch.setattr(timm.models.resnet.ResNet, "forward_intermediates", picky)
    with pytest.raises(ValueError, match=rf"images of 80 px: .*{reason}; it takes 96 px \(dataset.resolution\)"):
        Classifier("test_resnet", 5, 80)
    monkeypatch.setattr(timm.models.resnet.ResNet, "forward_intermediates", never)
    with pytest.raises(ValueError, match=rf"{reason}; its usual size is 160 px"):
        Classifier("test_resnet", 5, 80)


def test_a_backbone_with_an_input_size_of_its_own_takes_other_images():
    """The published weights of a ViT fit one size; images of another are resized in front of it, as Pillow does it."""
    model = Classifier("test_vit", 5, 96, input_size=160).eval()
    model.model.load_state_dict(timm.create_model("test_vit", num_classes=5).state_dict())
    assert model.feature_shapes == [(64, 10, 10)] * 3
    pixels = np.random.default_rng(0).integers(60, 190, (96, 96, 3), dtype=np.uint8)
    large = Image.fromarray(pixels).resize((160, 160), Image.Resampling.BICUBIC)
    given, wanted = to_images(pixels[None]), to_images(np.array(large)[None])
    given.requires_grad_()
    torch.testing.assert_close(model._normalised(given), wanted, atol=0.01, rtol=0)
    logits, maps = model.features(given)
    torch.testing.assert_close(logits, model(given))
    assert [tuple(part.shape[1:]) for part in maps] == model.feature_shapes
    logits.sum().backward()
    assert given.grad.abs().sum() > 0


@pytest.mark.parametrize("method", ["gradcam", "saliency", "rollout"])
def test_maps_have_the_size_of_the_images(method):
    found = attribute(Classifier("test_vit", 5, 48, input_size=96).eval(), images(48), method, [0, 1])
    assert found.maps.shape == (2, 48, 48) and found.native.shape[1:] in {(6, 6), (48, 48)}


def test_what_stands_in_front_of_a_backbone_is_in_its_model_file(tmp_path):
    own = {
        "input_size": 64, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear",
        "norm_eps": 1e-3, "options": {"channels": [8, 16, 24, 32]},
    }  # fmt: skip
    model = Classifier("viscoin_resnet10", 3, 32, **own).eval()
    assert model.feature_shapes == [(16, 16, 16), (24, 8, 8), (32, 4, 4)]
    assert {part.eps for part in model.modules() if isinstance(part, torch.nn.BatchNorm2d)} == {1e-3}
    recipe = load_recipe("birds", {"dataset.resolution": 32, "dataset.classes": 3})
    path = save_model(tmp_path / "f.safetensors", model, "classifier", recipe=recipe, class_names=list("abc"))
    loaded = load_model(path).model
    assert loaded.architecture == {"backbone": "viscoin_resnet10", "n_classes": 3, "resolution": 32, **own}
    torch.testing.assert_close(loaded(images(32)), model(images(32)))
    assert Classifier("viscoin_resnet10", 3, 32).architecture == {
        "backbone": "viscoin_resnet10", "n_classes": 3, "resolution": 32,
    }  # fmt: skip


def test_a_model_file_names_no_path_to_the_backbone():
    with pytest.raises(ValidationError, match="unknown option of the backbone 'checkpoint_path'"):
        ClassifierArchitecture(backbone="resnet18", n_classes=2, resolution=64, options={"checkpoint_path": "x"})


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (
            {"mean": (123.7, 116.3, 103.5)},
            "mean .*is not of pixels in [0, 1]; of pixels from 0 to 255 it would be 0.485",
        ),
        ({"std": (58.4, 57.1, 57.4)}, "std .*is not of pixels in [0, 1]; .* 0.229, 0.2239, 0.2251"),
        ({"std": (0.5, 0, 0.5)}, "std .*is not above 0"),
        ({"mean": (-0.1, 0, 0.5)}, "mean .*is negative"),
        ({"mean": (0.5,)}, "mean 0.5: expected three numbers"),
        ({"std": (0.5, float("nan"), 0.5)}, "std .*expected three numbers"),
        ({"interpolation": "nearest"}, "interpolation nearest: unknown; choose bicubic or bilinear"),
    ],
)
def test_preprocessing_that_cannot_be_is_refused(wrong, words):
    with pytest.raises(Refused, match=words.replace("[", r"\[")):
        Classifier("viscoin_resnet10", 5, 32, **wrong)


def test_images_of_another_shape_are_refused():
    model = Classifier("viscoin_resnet10", 5, 64)
    with pytest.raises(ValueError, match=r"takes images \(B, 3, 64, 64\), not \(2, 3, 32, 32\)"):
        model(images(32))
    with pytest.raises(ValueError, match=r"not \(2, 1, 64, 64\)"):
        model(images()[:, :1])


def test_weights_that_were_asked_for_are_there_or_it_stops(monkeypatch):
    create = timm.create_model

    def offline(name, pretrained=False, **kwargs):
        if pretrained:
            raise OSError("no route to host")
        return create(name, **kwargs)

    def unreachable(*arguments, **keywords):
        raise OSError("no network")

    monkeypatch.setattr(module.timm, "create_model", offline)
    monkeypatch.setattr(hub, "get_session", unreachable)
    words = "classifier.pretrained test_resnet: its published weights are not here.*no network.*`classifier.weights`"
    with pytest.raises(Refused, match=words):
        build_classifier("test_resnet", 5, 64, pretrained=True)
    monkeypatch.setattr(module, "check_reachable", lambda *arguments: None)
    with pytest.raises(Refused, match=r"its weights could not be downloaded \(no route to host\)"):
        build_classifier("test_resnet", 5, 64, pretrained=True)


def test_backbone_without_published_weights_is_told(caplog):
    with caplog.at_level(logging.WARNING):
        build_classifier("viscoin_resnet10", 5, 64, pretrained=True)
    assert [record.getMessage() for record in caplog.records] == [
        "no pretrained weights of viscoin_resnet10 are published; starting from random weights"
    ]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_resizing_in_front_is_no_obstacle_to_methods_for_relu_alone(interpolation):
    f = Classifier("viscoin_resnet10", 3, 32, input_size=48, interpolation=interpolation).eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert attribute(f, images, "guided-backprop").maps.any()
    found = attribute(f, images, "deeplift")
    assert found.gap is not None and found.gap.abs().max() < 1e-3
