"""Every shipped recipe: what it names exists and fits together at full size, and each of its trainings runs."""

import os
import re
from pathlib import Path

import pytest
import timm
import torch
from tiny_models import Answer, tiny_recipe, write_images, write_models

from viscoin.config import RECIPES, Recipe, load_recipe, recipe_names
from viscoin.datasets import dataset_names, default_recipe
from viscoin.inference import classes, loading
from viscoin.models.classifier import Classifier, resolve_backbone
from viscoin.models.files import load_model
from viscoin.models.generator import ConceptTranslator
from viscoin.presets import gan_preset
from viscoin.runs.run import Run, read_metrics
from viscoin.statistics.bootstrap import Estimate
from viscoin.testing.table import TITLES, markdown_table, table_rows, text_table
from viscoin.training import gan as gan_module
from viscoin.training import starting
from viscoin.training.classifier import train_classifier
from viscoin.training.gan import build_discriminator, build_generator, check_gan, train_gan
from viscoin.training.pipeline import RunOptions, resolve_recipe
from viscoin.training.runtime import Runtime
from viscoin.training.viscoin import train_viscoin

NAMES = recipe_names()
WIDER = ("folder", "paper", "photos")  # recipes of no one dataset
# timm's own test model, of the same family: a ResNet-50 would take seconds to initialise, to step and to save.
STAND_INS = {
    "resnet18": "test_resnet", "resnet50": "test_resnet",
    "tf_efficientnet_lite0": "viscoin_resnet10",
    "vit_tiny_patch16_224": "viscoin_vit_patch8", "viscoin_vit_patch16": "viscoin_vit_patch8",
}  # fmt: skip
WITHOUT_GENERATOR = ("toy-count", "cifar10-qa", "photos")  # images of sizes that none draws
# Sizes alone: how a recipe trains (optimizers, schedules, augmentation, weights of losses) stays its own.
TOY = {
    "dataset.name": "birds",
    "dataset.resolution": 32,
    "dataset.classes": 4,
    "dataset.train": 16,
    "dataset.validation": 8,
    "dataset.test": 8,
    "classifier.pretrained": False,
    "classifier.epochs": 1,
    "classifier.batch_size": 8,
    "gan.z_dim": 8,
    "gan.w_dim": 8,
    "gan.channel_base": 256,
    "gan.channel_max": 8,
    "gan.batch_size": 4,
    "gan.kimg": 0.008,
    "viscoin.n_concepts": 6,
    "viscoin.latent_channels": 8,
    "viscoin.coarse_layer": 1,
    "viscoin.mid_layer": 5,
    "viscoin.steps": 2,
    "viscoin.warmup_steps": 1,
    "viscoin.batch_size": 4,
    "viscoin.generated": 2,
    "viscoin.perceptual_loss": "classifier",  # LPIPS would be a download
}


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory):
    """A cache of its own, and no waiting for disks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(os, "fsync", lambda file: None)
        patch.setattr(gan_module, "EVALUATION_SAMPLES", 16)
        patch.setattr(starting, "DRAWN", 32)
        yield


def toy(name: str) -> Recipe:
    """A recipe at a size at which a step takes milliseconds, on a few birds."""
    own = load_recipe(name)
    backbone = STAND_INS.get(own.classifier.backbone, own.classifier.backbone)
    warm_start = min(own.gan.warm_start, 0.008)
    sizes = {"classifier.backbone": backbone, "gan.warm_start": warm_start}
    if own.viscoin.initialisation == "pursuit":
        sizes |= {"viscoin.pursuit_dimensions": 3, "viscoin.support_width": 9, "viscoin.translator_rank": 9}
    return load_recipe(name, TOY | sizes)


def steps(run: Run) -> int:
    return max(line["step"] for line in read_metrics(run.metrics_path))


# --- what recipes say


def test_datasets_and_recipes_go_together():
    assert set(NAMES) == {*dataset_names(), *WIDER, "birds256", "cub_pursuit"}
    for name in dataset_names():
        assert load_recipe(default_recipe(name)).dataset.name == name
    assert default_recipe("some/folder") == default_recipe("photos.zip") == "folder"
    assert load_recipe("birds256").dataset.name == "birds" and load_recipe("cub_pursuit").dataset.name == "cub"


@pytest.mark.parametrize("name", NAMES)
def test_expected_results_are_measures_that_are_taken(name):
    expected = load_recipe(name).expected
    unknown = [key for key in expected if not any(re.fullmatch(pattern, key) for pattern in TITLES)]
    assert not unknown
    assert all(0 <= value <= 1 for key, value in expected.items() if key != "reconstruction.fid")


def test_published_results_and_what_they_were_trained_with():
    """Parekh et al. 2025: accuracies, and the settings that differ between the datasets."""
    cub, faces, cars = (load_recipe(name) for name in ("cub", "celeba_hq", "stanford_cars"))
    key = {"f": "classifier.accuracy", "g": "ensemble.accuracy"}
    assert [r.expected[key["f"]] for r in (cub, faces, cars)] == [0.8056, 0.8771, 0.8228]
    assert [r.expected[key["g"]] for r in (cub, faces, cars)] == [0.7944, 0.8771, 0.7989]
    assert [r.viscoin.n_concepts for r in (cub, faces, cars)] == [256, 64, 256]
    assert [r.viscoin.reconstruction_class for r in (cub, faces, cars)] == [0.1, 0.2, 0.05]
    assert [r.viscoin.sparsity for r in (cub, faces, cars)] == [0.2, 2, 0.2]
    assert [r.viscoin.steps for r in (cub, faces, cars)] == [100_000, 50_000, 100_000]
    trainings = [(r.classifier.optimizer, r.classifier.learning_rate, r.classifier.epochs) for r in (cub, faces, cars)]
    assert trainings == [("adam", 1e-4, 30), ("adam", 1e-3, 10), ("sgd", 0.1, 90)]
    assert (cars.classifier.schedule, cars.classifier.step_epochs, cars.classifier.step_factor) == ("step", 30, 0.1)
    assert {r.classifier.schedule for r in (cub, faces)} == {"constant"}


def test_published_settings_are_the_defaults_of_the_ensemble():
    paper, default = load_recipe("paper").viscoin, Recipe().viscoin
    assert paper == default.model_copy(update={"perceptual_loss": "lpips"})


def test_generator_of_the_paper_trains_by_the_preset_for_one_gpu():
    paper = load_recipe("paper")
    ours = {"horizontal_flip": True}
    assert paper.gan.model_dump() == gan_preset("auto", paper.dataset.resolution, devices=1) | ours


def test_expected_results_stand_beside_measured_ones():
    estimates = {name: Estimate(0.5, 0.4, 0.6, 40) for name in ("classifier.accuracy", "ensemble.agreement")}
    rows = table_rows(estimates, {}, load_recipe("cub").expected)
    assert [row[-1] for row in rows] == ["0.8056", "–"]
    assert markdown_table(rows).splitlines()[0] == "| measure | value | 95 % interval | n | expected |"
    assert text_table(rows).splitlines()[1].split()[-1] == "0.8056"
    assert "expected" not in text_table(table_rows(estimates, {}, {}))


def test_expected_results_come_from_the_recipe_of_the_model_on_its_own_dataset(tmp_path, monkeypatch):
    model = write_models(tmp_path, tiny_recipe(expected={"classifier.accuracy": 0.25}))["viscoin"]
    assert loading.load_subject("viscoin", model, device="cpu").expected == {"classifier.accuracy": 0.25}
    monkeypatch.setattr(classes, "match_classes", lambda *arguments: None)
    photos = str(write_images(tmp_path / "photos", {"a": 5, "b": 5}))
    assert loading.load_subject("viscoin", model, photos, device="cpu").expected == {}


# --- whether they fit together at full size


BACKBONES = sorted({(recipe.classifier.backbone, recipe.dataset.resolution) for recipe in map(load_recipe, NAMES)})


@pytest.mark.parametrize(("backbone", "size"), BACKBONES)
def test_backbone_takes_images_of_the_recipe(backbone, size):
    assert timm.is_model(resolve_backbone(backbone))
    assert len(Classifier(backbone, 2, size).feature_shapes) == 3


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WITHOUT_GENERATOR])
def test_generator_can_be_built_and_has_the_styles_that_concepts_control(name):
    recipe = load_recipe(name)
    config, wanted = recipe.gan, recipe.viscoin
    check_gan(
        recipe.model_copy(update={"dataset": recipe.dataset.model_copy(update={"name": "birds"})}), Runtime("cpu")
    )
    with torch.device("meta"):
        generator = build_generator(config, recipe.dataset.resolution)
        build_discriminator(config, recipe.dataset.resolution)
        num_ws = generator.synthesis.num_ws
        ConceptTranslator(wanted.n_concepts, num_ws, config.w_dim, wanted.coarse_layer, wanted.mid_layer)
    assert wanted.coarse_layer == 2 and num_ws - 1 - wanted.mid_layer in (2, 3)  # all others follow the support


# --- whether they train


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_of_each_training(name, tmp_path):
    recipe = toy(name)
    runs = {kind: Run.create(kind, recipe, tmp_path / kind) for kind in ("classifier", "gan", "viscoin")}
    f = load_model(train_classifier(recipe, runs["classifier"], Runtime("cpu", "32-true")))
    g = load_model(train_gan(recipe, runs["gan"], f.model, Runtime("cpu", "32-true")))
    drawing = None if recipe.viscoin.without_generator else g.model
    ensemble = load_model(train_viscoin(recipe, runs["viscoin"], f.model, drawing, Runtime("cpu", "32-true")))
    assert steps(runs["classifier"]) == steps(runs["viscoin"]) == 2
    assert steps(runs["gan"]) == (4 if recipe.gan.warm_start else 2)
    for loaded, run in zip((f, g, ensemble), runs.values()):
        assert loaded.recipe == run.recipe.model_dump() == recipe.model_dump()
        assert load_recipe(str(run.recipe_path)) == recipe


# --- how commands choose them


def resolved(dataset=None, recipe=None, settings=(), **options) -> Recipe:
    return resolve_recipe("classifier", RunOptions(dataset, recipe=recipe, settings=list(settings)), options)


def test_a_dataset_starts_from_its_own_recipe_and_a_folder_from_that_of_folders(tmp_path):
    photos = str(write_images(tmp_path / "photos", {"a": 1, "b": 1}))
    assert resolved() == load_recipe("birds")
    assert resolved("cub") == load_recipe("cub")
    assert resolved(settings=["dataset.name=cub"]) == load_recipe("cub")
    assert resolved(photos) == load_recipe("folder", {"dataset.name": photos})
    assert resolved(photos, "paper") == load_recipe("paper", {"dataset.name": photos})


def test_a_folder_with_the_name_of_a_recipe_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(Path("birds256"), {"a": 1, "b": 1})
    assert resolved("birds256") == load_recipe("folder", {"dataset.name": "birds256"})


def test_a_recipe_for_folders_asks_for_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in WIDER:
        Answer("train", "classifier", "--recipe", name).refused("'photos'", "path of a folder")


def test_mistakes_of_set_are_named():
    command = ("train", "gan", "--dataset", "birds", "--dry-run", "--set")
    Answer(*command, "gan.kimgs=3").refused("'gan.kimgs'", "did you mean 'kimg'?")
    Answer(*command, "gan.epochs=3").refused("'gan.epochs'", "'classifier.epochs'")
    Answer(*command, "gan.kimg=long").refused("gan.kimg = 'long'", "number")
    Answer(*command, "gan.kimg=-1").refused("gan.kimg = '-1'", "greater than or equal to 0")
    Answer(*command, "gan.augment=on").refused("gan.augment = 'on'", "'off', 'fixed' or 'ada'")
    Answer(*command, "gan=3").refused("gan = '3'")
    Answer("train", "gan", "--recipe", "cubb").refused("'cubb'", "did you mean 'cub'?")


def test_recipes_are_explained():
    """Each says in its first line what it is for, and each that is not published says so."""
    for path in RECIPES.glob("*.yaml"):
        text = path.read_text()
        assert text.startswith("# "), path
        if path.stem not in ("birds", "paper"):
            assert ("# published" in text) != ("all ours" in text.lower()), path
