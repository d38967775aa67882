"""The recipe `photos`: features of a frozen body once for each image, which change nothing of what is learned."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny_recipe, write_images
from torch import nn

from viscoin.config import load_recipe
from viscoin.datasets import SPLITS, load_dataset
from viscoin.models.classifier import Classifier
from viscoin.models.files import load_model
from viscoin.runs.run import Run
from viscoin.training import classifier as training
from viscoin.training.classifier import train_classifier
from viscoin.training.features import with_features
from viscoin.training.runtime import Runtime

HEAD = {"classifier__train_layers": "head", "classifier__horizontal_flip": False, "classifier__pretrained": False}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trained(recipe, folder: str) -> tuple[nn.Module, list[dict]]:
    path = train_classifier(recipe, Run.create("classifier", recipe, Path(folder)), Runtime("cpu", "32-true"))
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return load_model(path, "classifier").model, lines


def test_features_once_give_the_classifier_that_training_by_images_gives(monkeypatch):
    recipe = tiny_recipe(**HEAD, classifier__epochs=3)
    passes = Counter[str]()
    forward = Classifier.forward
    monkeypatch.setattr(
        Classifier, "forward", lambda self, images: passes.update(of=len(images)) or forward(self, images)
    )
    once, fast = trained(recipe, "once")
    assert passes["of"] == 64 + 24, "each training and validation image once"
    monkeypatch.setattr(training, "with_features", lambda *given: None)
    whole, slow = trained(recipe, "whole")
    for (name, mine), theirs in zip(once.state_dict().items(), whole.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5, msg=name)
    keys = ("validation.accuracy", "validation.loss")
    found = [[line[key] for line in lines for key in keys if key in line] for lines in (fast, slow)]
    assert len(found[0]) == 6 and found[0] == pytest.approx(found[1], abs=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"classifier__train_layers": "last:1"},
        {"classifier__horizontal_flip": True},
        {"classifier__padding": 2},
        {"classifier__mixup": 0.2},
        {"classifier__noise": 0.1},
        {"classifier__freeze_norm": False},
    ],
)
def test_the_body_runs_in_every_step_where_it_or_its_images_change(change):
    recipe = tiny_recipe(**(HEAD | change))
    parts = [load_dataset("birds", split, recipe.dataset) for split in SPLITS[:2]]
    model = Classifier("viscoin_resnet10", 4, 32)
    assert with_features(model, recipe.classifier, parts, torch.device("cpu")) is None


def test_features_are_what_the_last_layer_reads():
    recipe = tiny_recipe(**HEAD)
    larger = recipe.dataset.model_copy(update={"resolution": 64, "train": 8, "validation": 8})
    parts = [load_dataset("birds", split, larger) for split in SPLITS[:2]]
    for backbone in ("viscoin_resnet10", "viscoin_vit_patch8", "test_efficientnet"):
        torch.manual_seed(0)
        model = Classifier(backbone, 4, 64).eval()
        found = with_features(model, recipe.classifier, parts, torch.device("cpu"))
        features, labels = found[1].batch([3, 5])
        images, expected = parts[1].batch([3, 5])
        torch.testing.assert_close(found[1].layer(features), model(images), rtol=1e-4, atol=1e-5)
        assert torch.equal(labels, expected)


def test_the_recipe_is_for_few_photographs():
    recipe = load_recipe("photos")
    assert recipe.dataset.resolution == 224 and recipe.dataset.fit == "pad"
    assert recipe.classifier.train_layers == "head" and recipe.classifier.pretrained
    assert recipe.viscoin.without_generator and recipe.viscoin.steps == 0
    write_images(Path("photos"), {"a": 10, "b": 10}, 40)
    parts = [load_dataset("photos", split, recipe.dataset) for split in SPLITS]
    assert sum(map(len, parts)) == 20 and np.all([part.resolution == 224 for part in parts])
