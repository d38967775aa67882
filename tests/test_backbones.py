"""Backbones from timm, built without weights: logits, maps, gradients, files, Psi on top, and which layers train."""

import logging
import os
import re

import pytest
import timm
import torch
from tiny_models import tiny_recipe
from torch import Tensor, nn

from viscoin.models import classifier as module
from viscoin.models.classifier import Classifier, build_classifier, resolve_backbone
from viscoin.models.concept_extractor import ConceptExtractor
from viscoin.models.files import load_model, save_model
from viscoin.training.freezing import blocks, freeze

NAMES = ["a", "b", "c"]


def images(resolution: int, n: int = 2) -> Tensor:
    return torch.rand(n, 3, resolution, resolution, generator=torch.Generator().manual_seed(0)) * 2 - 1


def slow(backbone: str, *shapes: tuple[int, int, int]) -> object:
    return pytest.param(backbone, list(shapes), marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("backbone", "shapes"),
    [
        ("viscoin_resnet10", [(48, 16, 16), (96, 8, 8), (192, 4, 4)]),
        ("resnet18", [(128, 8, 8), (256, 4, 4), (512, 2, 2)]),
        ("mobilenetv3_small_100", [(24, 8, 8), (48, 4, 4), (576, 2, 2)]),
        ("mobilenetv2", [(32, 8, 8), (96, 4, 4), (320, 2, 2)]),
        ("vit_tiny", [(192, 4, 4)] * 3),
        ("deit_tiny", [(192, 4, 4)] * 3),
        slow("resnet50", (512, 8, 8), (1024, 4, 4), (2048, 2, 2)),
        slow("resnet101", (512, 8, 8), (1024, 4, 4), (2048, 2, 2)),
        slow("efficientnetv2_s", (64, 8, 8), (160, 4, 4), (256, 2, 2)),
        slow("convnextv2_tiny", (192, 8, 8), (384, 4, 4), (768, 2, 2)),
        slow("vit_base", *[(768, 4, 4)] * 3),
    ],
)
def test_backbones_from_images_to_concepts_and_files(backbone, shapes, tmp_path, monkeypatch):
    """All that the rest needs of a classifier, for each of the backbones that people ask for."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
    torch.manual_seed(0)
    model = build_classifier(backbone, 3, 64, pretrained=False).eval()
    batch = images(64).requires_grad_()
    logits, maps = model.features(batch)
    assert model.feature_shapes == shapes == [tuple(part.shape[1:]) for part in maps]
    torch.testing.assert_close(logits, model(batch), atol=1e-4, rtol=1e-3)

    concept_maps, support, _ = ConceptExtractor(model.feature_shapes, 4, 8)(maps)
    assert concept_maps.shape == (2, 4, 3, 3) and support.shape == (2, 36)
    (logits.square().sum() + concept_maps.sum() + support.sum()).backward()
    assert batch.grad.abs().sum() > 0
    assert all(weight.grad.abs().sum() > 0 for weight in model.model.get_classifier().parameters())

    recipe = tiny_recipe(dataset__resolution=64)
    path = save_model(tmp_path / "model.safetensors", model, "classifier", recipe=recipe, class_names=NAMES)
    with torch.no_grad():
        torch.testing.assert_close(load_model(path, "classifier").model(batch), logits, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_transformer_at_its_own_resolution():
    model = Classifier("vit_tiny_patch16_224", 3, 224).eval()
    assert model.feature_shapes == [(192, 14, 14)] * 3
    with torch.no_grad():
        logits, maps = model.features(images(224, 1))
    assert logits.shape == (1, 3) and ConceptExtractor(model.feature_shapes, 4, 8)(maps)[0].shape == (1, 4, 3, 3)


# --- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("resnet50", "resnet50"),
        ("ResNet-50", "resnet50"),
        ("resnet50.a1_in1k", "resnet50.a1_in1k"),
        ("mobilenetv2", "mobilenetv2_100"),
        ("MobileNet-V2", "mobilenetv2_100"),
        ("mobilenet_v3_small", "mobilenetv3_small_100"),
        ("mobilenetv3", "mobilenetv3_large_100"),
        ("efficientnetv2_s", "tf_efficientnetv2_s"),
        ("efficientnet_v2_s", "tf_efficientnetv2_s"),
        ("convnext_v2_tiny", "convnextv2_tiny"),
        ("vit_tiny", "vit_tiny_patch16_224"),
        ("vit_b_16", "vit_base_patch16_224"),
        ("vit-tiny.augreg_in21k", "vit_tiny_patch16_224.augreg_in21k"),
        ("deit_tiny", "deit_tiny_patch16_224"),
        ("viscoin_resnet10", "viscoin_resnet10"),
    ],
)
def test_spellings(typed, meant):
    assert resolve_backbone(typed) == meant


def test_spellings_mean_models_with_weights_and_hide_none_that_has_them():
    for typed, meant in module.SPELLINGS.items():
        assert timm.is_model_pretrained(meant), meant
        assert not (timm.is_model(typed) and timm.is_model_pretrained(typed)), typed


@pytest.mark.parametrize(
    ("typed", "near"),
    [("resnet51", "resnet50"), ("convnextv2", "convnextv2_"), ("vit", "vit_tiny"), ("resnext", "resnext")],
)
def test_unknown_names_bring_similar_ones(typed, near):
    for function in (resolve_backbone, lambda name: Classifier(name, 3, 64)):
        with pytest.raises(ValueError, match=rf"no backbone '{typed}' in timm .*did you mean .*{near}"):
            function(typed)


def test_file_holds_the_name_of_timm_and_the_log_says_it(caplog):
    with caplog.at_level(logging.INFO, logger=module.__name__):
        model = build_classifier("mobilenet-v3-small", 3, 64, pretrained=False)
    assert model.architecture["backbone"] == "mobilenetv3_small_100"
    assert [record.getMessage() for record in caplog.records] == [
        "backbone mobilenet-v3-small: taking mobilenetv3_small_100 of timm"
    ]


# --- which layers train ------------------------------------------------------------------------------------------


def trained(model: nn.Module) -> set[str]:
    """Modules of the backbone, two names deep, with weights that train."""
    names = [name for name, weight in model.model.named_parameters() if weight.requires_grad]
    return {".".join(name.split(".")[:-1][:2]) for name in names}


@pytest.mark.parametrize(
    ("backbone", "layers", "expected"),
    [
        ("viscoin_resnet10", "head", {"fc"}),
        ("viscoin_resnet10", "last:1", {"layer4.0", "fc"}),
        ("viscoin_resnet10", "last:2", {"layer3.0", "layer4.0", "fc"}),
        ("viscoin_resnet10", "last:5", {"conv1", "layer1.0", "layer2.0", "layer3.0", "layer4.0", "fc"}),
        ("viscoin_resnet10", "layer3", {"layer3.0", "fc"}),
        ("viscoin_resnet10", "conv1, layer4", {"conv1", "layer4.0", "fc"}),
        ("test_vit", "head", {"head"}),
        ("test_vit", "last:2", {"blocks.4", "blocks.5", "head"}),
        ("test_vit", "blocks.5", {"blocks.5", "head"}),
        ("test_convnext", "last:1", {"stages.3", "head.fc"}),
        ("test_convnext", "stages.2,stages.3", {"stages.2", "stages.3", "head.fc"}),
        ("test_efficientnet", "last:1", {"blocks.4", "conv_head", "classifier"}),
    ],
)
def test_layers_that_train(backbone, layers, expected):
    model = Classifier(backbone, 3, 64)
    freeze(model, layers)
    assert trained(model) == expected


def test_everything_trains_and_nothing_is_frozen_by_default():
    model = Classifier("viscoin_resnet10", 3, 64)
    assert freeze(model) == [] and all(weight.requires_grad for weight in model.parameters())


def test_every_weight_is_in_one_block_or_in_the_last_layer():
    for backbone, count in {"resnet18": 9, "test_vit": 7, "test_convnext": 10, "viscoin_resnet10": 5}.items():
        model = Classifier(backbone, 3, 64)
        names = [name for block in blocks(model) for name in block]
        head = {f"{prefix}.{kind}" for prefix in ("fc", "head", "head.fc") for kind in ("weight", "bias")}
        assert len(names) == len(set(names))
        assert {name for name, _ in model.model.named_parameters()} - set(names) <= head
        assert len(blocks(model)) == count, backbone


@pytest.mark.parametrize("backbone", ["viscoin_resnet10", "test_vit", "test_convnext"])
@pytest.mark.parametrize("layers", ["last:2", "all"])
def test_normalisation_layers_are_left_alone_on_request(backbone, layers):
    """Fine-tuning leaves them alone by itself, full training when asked to."""
    model = Classifier(backbone, 3, 64)
    norms = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)
    of_norms = {id(w) for m in model.modules() if isinstance(m, norms) for w in m.parameters()}
    others = [weight for weight in model.parameters() if id(weight) not in of_norms]
    freeze(model, layers, True if layers == "all" else None)
    assert of_norms and not any(weight.requires_grad for weight in model.parameters() if id(weight) in of_norms)
    assert any(weight.requires_grad for weight in others)
    freeze(model, layers, False)
    assert any(weight.requires_grad for weight in model.parameters() if id(weight) in of_norms)


def test_gradients_and_modes_can_be_set_again():
    model = Classifier("viscoin_resnet10", 3, 64)
    freeze(model, "head")
    assert freeze(model, "all") == [] and all(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize(
    ("backbone", "layers", "message"),
    [
        ("viscoin_resnet10", "last:6", r"'last:6'.*'viscoin_resnet10' has 5 blocks .*at most last:5, or for all"),
        ("viscoin_resnet10", "layer5", r"'layer5', which backbone 'viscoin_resnet10' .*did you mean layer4"),
        ("viscoin_resnet10", "layer4,zzz", r"'zzz'.*its stages are conv1, bn1, layer1, layer2, layer3, layer4 \("),
        ("test_vit", "zzz", r"its stages are patch_embed, norm, blocks\.0, .*blocks\.5 \("),
        ("viscoin_resnet10", "bn1", r"bn1: holds normalisation layers alone.*freeze_norm=false"),
        ("viscoin_resnet10", "fc", r"'fc'"),
    ],
)
def test_layers_that_are_not_there(backbone, layers, message):
    model = Classifier(backbone, 3, 64)
    with pytest.raises(ValueError, match=message):
        freeze(model, layers)


def test_stage_of_normalisation_trains_when_it_may():
    model = Classifier("viscoin_resnet10", 3, 64)
    freeze(model, "bn1", freeze_norm=False)
    assert trained(model) == {"bn1", "fc"}


def test_log_says_how_much_trains(caplog):
    with caplog.at_level(logging.INFO, logger="viscoin.training.freezing"):
        freeze(Classifier("viscoin_resnet10", 3, 64), "head")
    (message,) = caplog.messages
    assert re.fullmatch(r"0\.000579 of 0\.7\d+ million weights train", message)


def test_distilled_transformers_have_two_last_layers():
    model = Classifier("deit_tiny_distilled_patch16_224", 3, 64)
    freeze(model, "head")
    assert trained(model) == {"head", "head_dist"}
