"""Classifier, generator and ensemble are trained end to end on tiny data; stopped runs equal those left alone."""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_recipe
from torch import Tensor, nn

from stylegan2_ada.networks import Generator
from viscoin.config import ClassifierConfig, Recipe, ViscoinConfig, override_recipe
from viscoin.datasets import ImageDataset, load_dataset
from viscoin.models.classifier import Classifier
from viscoin.models.files import load_model, read_file
from viscoin.runs.run import Run, read_metrics
from viscoin.training import classifier as classifier_module
from viscoin.training import gan as gan_module
from viscoin.training import losses
from viscoin.training import viscoin_task as viscoin_module
from viscoin.training.classifier import ClassifierTask, train_classifier
from viscoin.training.gan import GanTask, build_generator, check_gan, train_gan
from viscoin.training.loop import Interrupted
from viscoin.training.runtime import Runtime, make_fabric
from viscoin.training.viscoin import build_ensemble, train_viscoin
from viscoin.training.viscoin_task import ViscoinTask

SIZE, NAMES = 16, ["a", "b", "c"]
RECIPE = tiny_recipe(
    dataset__resolution=SIZE,
    dataset__train=40,
    classifier__epochs=3,
    classifier__batch_size=8,
    classifier__padding=2,
    gan__warm_start=0.04,
    gan__kimg=0.048,
    gan__snapshot_kimg=0.032,
    gan__r1_interval=2,
    gan__path_length_weight=1.0,
    gan__path_length_interval=3,
    gan__reconstruction=1.0,
    viscoin__steps=9,
    viscoin__evaluate_every=4,
    viscoin__batch_size=4,
    viscoin__dropout=0.2,
    viscoin__decay_every=2,
)
KINDS = ("classifier", "gan", "viscoin")
TASKS = {"classifier": ClassifierTask, "gan": GanTask, "viscoin": ViscoinTask}


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory):
    """A cache of its own, and no waiting for disks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(os, "fsync", lambda file: None)
        yield


def make_parts(n_classes: int = 4, seed: int = 0) -> tuple[Classifier, Generator]:
    """f and G with random weights, the same for each seed."""
    torch.manual_seed(seed)
    f = Classifier("viscoin_resnet10", n_classes, SIZE)
    with torch.no_grad():
        f(torch.randn(16, 3, SIZE, SIZE))
    g = build_generator(RECIPE.gan, SIZE)
    g.mapping.w_avg.normal_()
    return f.eval(), g.eval()


def train(kind: str, folder: Path, recipe: Recipe = RECIPE, seed: int = 0) -> Path:
    """Train, or go on where the folder holds a run."""
    run = Run.create(kind, recipe, folder, resume=folder.exists())
    f, g = make_parts(seed=seed)
    torch.seed()  # whatever was drawn before must not matter
    if kind == "classifier":
        return train_classifier(recipe, run, Runtime("cpu", "32-true"))
    if kind == "gan":
        return train_gan(recipe, run, f, Runtime("cpu", "32-true"))
    return train_viscoin(recipe, run, f, g, Runtime("cpu", "32-true"))


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = read_metrics(folder / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of each kind."""
    folder = tmp_path_factory.mktemp("runs")
    for kind in KINDS:
        train(kind, folder / kind)
    return {kind: folder / kind for kind in KINDS}


def fake_dataset(labels: list[int], classes: int = 3) -> ImageDataset:
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), SIZE, SIZE, 3), dtype=np.uint8)
    return ImageDataset("fake", "validation", pixels, labels, NAMES[:classes])


# --- runs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_run_leaves(finished, kind):
    folder = finished[kind]
    names = {path.name for path in folder.iterdir()}
    files = {".lock", "recipe.yaml", "metrics.jsonl", "status.json", "model.safetensors"}
    files |= {"model-partners.safetensors"} if kind == "gan" else set()
    assert names == {*files, "checkpoints", "figures"}
    assert {path.name for path in (folder / "checkpoints").iterdir()} == (
        {"last.pt", "previous.pt", "model-000000k.safetensors"}
        if kind == "gan"
        else {"best.pt", "last.pt", "previous.pt"}
    )
    loaded = load_model(folder, kind)
    assert loaded.recipe == RECIPE.model_dump() and len(loaded.class_names) == 4
    assert all(math.isfinite(value) for line in metrics(folder) for value in line.values())
    figures = {path.name for path in (folder / "figures").iterdir()}
    assert (
        figures
        == {
            "classifier": set(),
            "gan": {"samples-000000k.png", "reconstructions-000000k.png"},
            "viscoin": {f"reconstructions-{step:06d}.png" for step in (4, 8, 9)},
        }[kind]
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [2, 6])
def test_stopped_run_equals_one_that_was_not(finished, tmp_path, monkeypatch, kind, number):
    """SIGTERM in the middle, then the same call again: weights and metrics are the same, bit for bit."""
    task = TASKS[kind]
    original = task.step

    def step(self: Any, images: Tensor, labels: Tensor, step: int) -> dict[str, Tensor]:
        if step == number:
            signal.raise_signal(signal.SIGTERM)
        return original(self, images, labels, step)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match=f"stopped at step {number + 1} "):
        patch.setattr(task, "step", step)
        train(kind, tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()
    train(kind, tmp_path / "run")
    assert metrics(tmp_path / "run") == metrics(finished[kind])
    expected, found = (read_file(folder / "model.safetensors")[0] for folder in (finished[kind], tmp_path / "run"))
    assert expected.keys() == found.keys()
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


@pytest.mark.parametrize("kind", KINDS)
def test_seed_decides(finished, tmp_path, kind):
    train(kind, tmp_path / "run", override_recipe(RECIPE, {"seed": 1}))
    assert metrics(tmp_path / "run")[0] != metrics(finished[kind])[0]


@pytest.mark.parametrize("kind", KINDS)
def test_training_again_gives_the_same_model(finished, tmp_path, kind):
    """Also a finished run that is called again, which must not train on."""
    before = read_file(finished[kind] / "model.safetensors")
    (tmp_path / "run").mkdir()
    for name in ("recipe.yaml", "metrics.jsonl"):
        (tmp_path / "run" / name).write_bytes((finished[kind] / name).read_bytes())
    for name in ("checkpoints", "figures"):
        (tmp_path / "run" / name).symlink_to(finished[kind] / name)
    train(kind, tmp_path / "run")
    tensors, metadata = read_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(value, before[0][key]) for key, value in tensors.items())
    assert metadata["scores"] == before[1]["scores"] and metadata["scores"]


@pytest.mark.parametrize("kind", KINDS)
def test_nan_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, kind):
    module = {"classifier": classifier_module.F, "gan": torch.nn.functional, "viscoin": losses}[kind]
    name = {"classifier": "cross_entropy", "gan": "mse_loss", "viscoin": "style_regularization"}[kind]
    term = {"classifier": "cross-entropy", "gan": "l2", "viscoin": "style"}[kind]
    original, task, number = getattr(module, name), TASKS[kind], 6
    step = task.step

    def spoiled(self: Any, images: Tensor, labels: Tensor, at: int) -> dict[str, Tensor]:
        with monkeypatch.context() as patch:
            if at == number:
                patch.setattr(module, name, lambda *args, **kwargs: original(*args, **kwargs) * float("nan"))
            return step(self, images, labels, at)

    with monkeypatch.context() as patch, pytest.raises(ValueError, match=rf"step 6: {term} = nan;"):
        patch.setattr(task, "step", spoiled)
        train(kind, tmp_path / "run")
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert 0 < state["step"] <= number and not (tmp_path / "run" / "model.safetensors").exists()

    def finite(value: Any) -> bool:
        if isinstance(value, dict):
            return all(finite(part) for part in value.values())
        return bool(torch.isfinite(value).all()) if isinstance(value, Tensor) else True

    assert finite(state["task"])


# --- classifier --------------------------------------------------------------------------------------------------


def classifier_task(dataset: ImageDataset, **settings: Any) -> ClassifierTask:
    config = ClassifierConfig(**{"pretrained": False, "batch_size": 8} | settings)
    torch.manual_seed(0)
    model = Classifier("viscoin_resnet10", len(dataset.class_names), SIZE)
    return ClassifierTask(model, config, make_fabric(Runtime("cpu", "32-true")), dataset, steps=100, per_epoch=10)


def test_classifier_learns_a_folder_of_colours(tmp_path, monkeypatch):
    """Red against blue squares, as PNG files: all right after a few epochs."""
    for name, colour in (("blue", (40, 60, 200)), ("red", (200, 60, 40))):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(30):
            Image.new("RGB", (20, 20), tuple(v + i for v in colour)).save(tmp_path / "data" / name / f"{i}.png")
    changes = {"dataset.name": str(tmp_path / "data"), "dataset.train": None, "classifier.epochs": 12}
    path = train("classifier", tmp_path / "run", override_recipe(RECIPE, changes))
    loaded = load_model(path, "classifier")
    assert loaded.class_names == ["blue", "red"] and loaded.metadata["dataset"] == str(tmp_path / "data")
    assert loaded.metadata["scores"]["validation.accuracy"] == 1.0
    test = load_dataset(str(tmp_path / "data"), "test", override_recipe(RECIPE, changes).dataset)
    images, labels = test.batch(range(len(test)))
    assert (loaded.model(images).argmax(1) == labels).all()


def test_classifier_is_measured_by_totals_over_totals():
    """Traps 1 and 2: 300 images in batches of 256 and 44 give the same as one by one."""
    dataset = fake_dataset([int(i) for i in np.random.default_rng(1).integers(0, 3, 300)])
    task = classifier_task(dataset)
    results, score = task.evaluate(0)
    with torch.no_grad():
        logits = torch.cat([task.model(images) for images, _ in dataset.batches(50)])
    labels = torch.from_numpy(dataset.labels)
    assert results["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()), abs=1e-6)
    assert results["loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-5)
    assert score == pytest.approx(results["accuracy"], abs=1e-5)
    assert 0 < results["accuracy"] < 1


def test_model_is_the_best_one(finished):
    best = torch.load(finished["classifier"] / "checkpoints" / "best.pt", weights_only=True)
    tensors, metadata = read_file(finished["classifier"] / "model.safetensors")
    assert all(torch.equal(value, best["task"]["model"][key]) for key, value in tensors.items())
    lines = [line for line in metrics(finished["classifier"]) if "validation.accuracy" in line]
    assert len(lines) == 3
    kept = next(line for line in lines if line["step"] == best["step"])
    assert kept["validation.accuracy"] == max(line["validation.accuracy"] for line in lines)
    for key, value in metadata["scores"].items():
        assert value == pytest.approx(kept[key], abs=1e-6)


@pytest.mark.parametrize("kind", ["classifier", "viscoin"])
def test_best_weights_are_saved_though_training_went_on(tmp_path, monkeypatch, kind):
    original = TASKS[kind].evaluate
    monkeypatch.setattr(TASKS[kind], "evaluate", lambda self, step: (original(self, step)[0], -float(step)))
    path = train(kind, tmp_path / "run")
    parts = [
        torch.load(tmp_path / "run" / "checkpoints" / f"{name}.pt", weights_only=True) for name in ("best", "last")
    ]
    best, last = (part["task"]["model" if kind == "classifier" else "ensemble"] for part in parts)
    assert parts[0]["step"] < parts[1]["step"]
    tensors, _ = read_file(path)
    assert all(torch.equal(tensors[key], value) for key, value in best.items())
    assert not all(torch.equal(tensors[key], value) for key, value in last.items())


def test_equal_accuracies_are_told_apart_by_the_loss():
    dataset = fake_dataset([0, 1, 2] * 4)

    class Sure(nn.Module):
        """Right about every image, and as sure of it as it is told."""

        def __init__(self, margin: float) -> None:
            super().__init__()
            self.margin = margin

        def forward(self, images: Tensor) -> Tensor:
            return self.margin * nn.functional.one_hot(torch.from_numpy(dataset.labels), 3)

    task = classifier_task(dataset)
    scores = []
    for margin in (0.1, 5.0):
        task.model = task.answer = Sure(margin)
        scores.append(task.evaluate(0)[1])
    assert scores[0] < scores[1] < scores[0] + 1e-5


@pytest.mark.parametrize(
    ("settings", "expected"),
    [  # factors on the rate at steps of 10 an epoch, 100 in all
        ({"schedule": "constant"}, {0: 1, 99: 1}),
        ({"schedule": "step", "step_epochs": 3, "step_factor": 0.1}, {0: 1, 29: 1, 30: 0.1, 59: 0.1, 60: 0.01}),
        ({"schedule": "cosine"}, {0: 0.1, 9: 1, 10: 1, 55: 0.5, 100: 0}),
    ],
)
def test_schedules_of_the_classifier(settings, expected):
    config = ClassifierConfig(**settings)
    for step, factor in expected.items():
        assert classifier_module._rate(config, step, steps=100, per_epoch=10) == pytest.approx(factor, abs=1e-9)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_optimizers_of_the_classifier(name):
    task = classifier_task(fake_dataset([0, 1, 2] * 4), optimizer=name, weight_decay=0.3, schedule="constant")
    group = task.optimizer.param_groups[0]
    assert type(task.optimizer.optimizer).__name__.lower() == name
    assert group["weight_decay"] == 0.3 and group["lr"] == 2e-3
    before = [value.clone() for value in task.model.parameters()]
    task.step(*task.validation.batch(range(8)), 0)
    assert any(not torch.equal(a, b) for a, b in zip(before, task.model.parameters()))


def test_label_smoothing_reaches_the_loss():
    images, labels = fake_dataset([0, 1, 2] * 4).batch(range(8))
    losses = [
        float(classifier_task(fake_dataset([0, 1, 2] * 4), label_smoothing=value).step(images, labels, 0)["loss"])
        for value in (0.0, 0.5)
    ]
    assert losses[0] != losses[1]


# --- generator ---------------------------------------------------------------------------------------------------


def test_generator_has_a_mean_style(finished):
    """Trap 10: it is never zero, so an ensemble can be built on it."""
    model: Any = load_model(finished["gan"]).model
    assert model.mapping.w_avg.norm() > 0.01
    f, _ = make_parts()
    ensemble = build_ensemble(RECIPE.viscoin, f, model, [*NAMES, "d"])
    assert torch.equal(ensemble.generator.mapping.fixed_w_avg, model.mapping.w_avg)


def test_generator_model_is_the_average(finished):
    state = torch.load(finished["gan"] / "checkpoints" / "last.pt", weights_only=True)["task"]
    tensors, _ = read_file(finished["gan"] / "model.safetensors")
    assert all(torch.equal(value, state["ema"][key]) for key, value in tensors.items())
    assert any(not torch.equal(value, state["generator"][key]) for key, value in tensors.items())


def test_phases_of_the_generator(finished):
    """Five steps of warm start, then six of the adversarial phase; each term is logged, whichever steps had it."""
    state = torch.load(finished["gan"] / "checkpoints" / "last.pt", weights_only=True)
    assert state["step"] == 11
    line = next(line for line in metrics(finished["gan"]) if "train.l1" in line)
    terms = {key.removeprefix("train.") for key in line} - {"step"}
    warm, adversarial = {"l1", "l2", "latent", "latent_match", "perceptual"}, {"generator", "discriminator", "r1"}
    assert warm | adversarial | {"path_length", "real_sign", "fake_sign"} == terms


@pytest.mark.parametrize("warm_start", [0, 0.016])
def test_generator_without_classifier_on_a_handful_of_images(tmp_path, warm_start):
    changes = {"dataset.train": 6, "dataset.validation": 3, "gan.kimg": 0.016, "gan.warm_start": warm_start}
    recipe = override_recipe(RECIPE, changes | {"gan.reconstruction": 0 if warm_start == 0 else 1})
    run = Run.create("gan", recipe, tmp_path / "run")
    load_model(train_gan(recipe, run, None, Runtime("cpu", "32-true")), "gan")
    assert not any("perceptual" in key for line in metrics(run.path) for key in line)


def test_matching_alone_and_its_refusals(tmp_path):
    """A generator that is matched and plays no game."""
    changes = {"gan.warm_start": 0, "gan.reconstruction": 0, "gan.matching": 0.032, "gan.kimg": 0}
    recipe = override_recipe(RECIPE, changes)
    train("gan", tmp_path / "run", recipe)
    terms = {key for line in metrics(tmp_path / "run") for key in line if key.startswith("train.")}
    assert not (tmp_path / "run" / "model-partners.safetensors").exists()  # D never trained
    assert "train.matching" in terms and not terms & {"train.generator", "train.discriminator", "train.l1"}
    with pytest.raises(ValueError, match=r"gan.matching 0.032: needs a classifier"):
        train_gan(recipe, Run.create("gan", recipe, tmp_path / "without"), None, Runtime("cpu", "32-true"))
    with pytest.raises(ValueError, match=r"gan.matching = 0.032 compares all images at once"):
        override_recipe(recipe, {"gan.conditional": True})
    with pytest.raises(ValueError, match=r"gan.kimg 0: less than one batch"):
        check_gan(override_recipe(recipe, {"gan.matching": 0}))
    with pytest.raises(ValueError, match=r"gan.matching 0.001: less than one batch of \d+ images; give at least"):
        check_gan(override_recipe(recipe, {"gan.matching": 0.001}))
    with pytest.raises(ValueError, match=r"gan.batch_size 1: gan.matching compares the images .* choose 2 or more"):
        check_gan(override_recipe(recipe, {"gan.batch_size": 1}))


def test_stopped_matching_goes_on_to_the_same_generator(tmp_path):
    changes = {"gan.warm_start": 0, "gan.reconstruction": 0, "gan.matching": 0.032, "gan.snapshot_kimg": 0.016}
    recipe = override_recipe(RECIPE, changes | {"gan.kimg": 0.016})
    train("gan", tmp_path / "whole", recipe)
    train("gan", tmp_path / "parts", override_recipe(recipe, {"gan.kimg": 0}))
    train("gan", tmp_path / "parts", recipe)
    expected, found = (read_file(tmp_path / name / "model.safetensors")[0] for name in ("whole", "parts"))
    assert all(torch.equal(value, found[key]) for key, value in expected.items())


def test_longer_generator_run_goes_on(finished, tmp_path):
    short = override_recipe(RECIPE, {"gan.kimg": 0.016})
    train("gan", tmp_path / "run", short)
    train("gan", tmp_path / "run", RECIPE)
    expected, found = (read_file(folder / "model.safetensors")[0] for folder in (finished["gan"], tmp_path / "run"))
    assert all(torch.equal(value, found[key]) for key, value in expected.items())


# --- ensemble ----------------------------------------------------------------------------------------------------


def viscoin_task(dataset: ImageDataset | None = None, **settings: Any) -> ViscoinTask:
    config = ViscoinConfig.model_validate(RECIPE.viscoin.model_dump() | settings)
    f, g = make_parts(3)
    ensemble = build_ensemble(config, f, g, NAMES)
    dataset = dataset or fake_dataset([0, 1, 2] * 4)
    return ViscoinTask(ensemble, g, config, make_fabric(Runtime("cpu", "32-true")), dataset)


def test_only_psi_theta_and_omega_are_trained():
    """f and G stay as they are, batch-norm statistics included, whatever mode the ensemble is in."""
    task = viscoin_task(learning_rate=1e-2)
    ensemble = task.ensemble
    before = {key: value.clone() for key, value in ensemble.state_dict().items()}
    sampler = {key: value.clone() for key, value in task.sampler.state_dict().items()}
    for step in range(3):
        task.step(*task.validation.batch(range(4)), step)
        task.evaluate(step)
    after = ensemble.state_dict()
    same = {key for key in before if torch.equal(before[key], after[key])}
    frozen = {key for key in before if key.startswith(("classifier.", "generator.synthesis."))}
    assert any("running_mean" in key for key in frozen) and any("num_batches" in key for key in frozen)
    assert same == frozen | {"generator.mapping.fixed_w_avg"}
    assert all(torch.equal(value, sampler[key]) for key, value in task.sampler.state_dict().items())
    for part in (ensemble.classifier, ensemble.generator.synthesis, task.sampler):
        assert all(value.grad is None for value in part.parameters())


def test_every_trained_weight_has_an_optimizer_and_omega_its_own_rate():
    task = viscoin_task(learning_rate=1e-3, translator_rate=50.0)
    groups = {
        name: group["lr"]
        for group in task.optimizer.param_groups
        for name, value in task.ensemble.named_parameters()
        if any(value is other for other in group["params"])
    }
    trained = {name for name, value in task.ensemble.named_parameters() if value.requires_grad}
    assert set(groups) == trained
    for name, rate in groups.items():
        assert rate == pytest.approx(0.05 if name.startswith("generator.mapping") else 1e-3), name


def test_rate_falls_in_the_second_half():
    """Paper: from half of the steps on, x 0.8 every 1000."""
    task = viscoin_task(steps=100_000, decay_every=1000, decay_factor=0.8)
    factors = {0: 1, 50_000: 1, 50_999: 1, 51_000: 0.8, 52_999: 0.64, 53_000: 0.512}
    assert {step: pytest.approx(task._rate(step, 100_000)) for step in factors} == factors


def test_cosine_rates_and_those_of_directions_which_begin_late():
    task = viscoin_task(
        steps=100, schedule="cosine", translator_rate=2.0, initialisation="pursuit", hold_concepts=1.0,
        directions=0.5, direction_rate=0.5, learning_rate=1.0,
    )  # fmt: skip
    assert task._rates(50) == pytest.approx(
        {"explaining": 0.5, "translator": 1, "synthesis": 0, "directions": 0.5 / 20}
    )
    late = {
        "explaining": 0.5 - 0.5 * math.sqrt(0.5),
        "translator": 1 - math.sqrt(0.5),
        "synthesis": 0,
        "directions": 0.25,
    }
    assert task._rates(75) == pytest.approx(late)


def test_synthesis_trains_if_it_is_asked_to_until_directions_begin():
    """Samples come from the G that was given, so that what it drew is not forgotten."""
    task = viscoin_task(
        steps=4, generator_rate=0.5, learning_rate=1e-2, schedule="cosine", initialisation="pursuit", hold_concepts=1.0,
        directions=0.5,
    )  # fmt: skip
    weights = task.ensemble.generator.synthesis.state_dict
    sampler = {key: value.clone() for key, value in task.sampler.state_dict().items()}
    assert "generator_rate" in task.steerable and "generator_rate" not in viscoin_task().steerable
    moved = []
    for step in range(4):
        before = {key: value.clone() for key, value in weights().items()}
        task.step(*task.validation.batch(range(4)), step)
        moved.append(any(not torch.equal(value, before[key]) for key, value in weights().items()))
        rates = dict(zip(task.groups, (group["lr"] for group in task.optimizer.param_groups), strict=True))
        assert rates["synthesis"] == pytest.approx(5e-3 * task._rate(step, 2))
    assert moved == [True, True, False, False]
    assert all(torch.equal(value, sampler[key]) for key, value in task.sampler.state_dict().items())
    assert not any(module.training for module in task.ensemble.generator.synthesis.modules())
    other = viscoin_task(
        steps=4, generator_rate=0.5, learning_rate=1e-2, schedule="cosine", initialisation="pursuit", hold_concepts=1.0,
        directions=0.5,
    )  # fmt: skip
    task.apply({"generator_rate": 0.0})  # what has been trained is kept all the same
    other.load_state_dict(task.state_dict())
    assert all(
        torch.equal(value, weights()[key]) for key, value in other.ensemble.generator.synthesis.state_dict().items()
    )


def test_terms_of_the_ensemble_and_their_warm_up():
    task = viscoin_task(warmup_steps=2, bimodality=0.0)
    batch = task.validation.batch(range(4))
    terms = [task.step(*batch, step) for step in range(3)]
    early = {"total", "l1", "l2", "perceptual", "reconstruction_class", "orthogonality", "style"}
    assert [set(values) for values in terms] == [early, early, early | {"output_fidelity", "sparsity"}]
    for values in terms:
        parts = sum(float(value) for key, value in values.items() if key != "total")
        assert float(values["total"]) == pytest.approx(parts, rel=1e-5)


@pytest.mark.parametrize(
    ("setting", "term"),
    [
        ("output_fidelity", "output_fidelity"),
        ("perceptual", "perceptual"),
        ("reconstruction_class", "reconstruction_class"),
        ("sparsity", "sparsity"),
        ("orthogonality", "orthogonality"),
        ("style", "style"),
    ],
)
def test_weights_of_the_terms(setting, term):
    def value(weight: float) -> float:
        task = viscoin_task(warmup_steps=0, **{setting: weight})
        torch.manual_seed(1)
        return float(task.step(*task.validation.batch(range(4)), 0)[term])

    assert value(3.0) == pytest.approx(3 * value(1.0), rel=1e-4) and value(0.0) == 0 < value(1.0)


def test_bimodality_is_a_term_where_it_has_a_weight():
    def value(weight: float) -> float:
        task = viscoin_task(warmup_steps=0, bimodality=weight)
        torch.manual_seed(1)
        return float(task.step(*task.validation.batch(range(4)), 0)["bimodality"])

    assert value(3.0) == pytest.approx(3 * value(1.0), rel=1e-4)


def test_only_some_images_are_drawn_again(monkeypatch):
    """All images count for the concepts, the samples of G and the first real ones for the reconstruction."""
    seen = {}
    task = viscoin_task(generated=3, reconstructed=2, warmup_steps=0)
    monkeypatch.setattr(
        losses, "reconstruction_l1", lambda rebuilt, images: seen.setdefault("drawn", images)[0].mean() + rebuilt.mean()
    )
    monkeypatch.setattr(losses, "sparsity", lambda maps, phi: seen.setdefault("concepts", maps).mean())
    real, labels = task.validation.batch(range(4))
    task.step(real, labels, 0)
    assert len(seen["concepts"]) == 3 + 4
    assert torch.equal(seen["drawn"][3:], real[:2])


def test_every_weighted_term_has_a_gradient():
    """Trap 4: a term without one would be a constant added to the loss."""
    task = viscoin_task(warmup_steps=0, bimodality=1.0)
    images = torch.cat([task._samples(torch.randn(2, task.sampler.z_dim)), task.validation.batch(range(4))[0]])
    task.ensemble.train()
    for name, value in task._terms(images, 2, 0).items():
        task.optimizer.zero_grad()
        value.backward(retain_graph=True)
        gradients = [p.grad for p in task.ensemble.parameters() if p.grad is not None]
        assert gradients and any(bool(gradient.any()) for gradient in gradients), name


def test_batch_holds_real_and_generated_images(monkeypatch):
    seen = []
    task = viscoin_task(generated=3)
    original = task._terms
    monkeypatch.setattr(task, "_terms", lambda images, *others: seen.append(images) or original(images, *others))
    real, labels = task.validation.batch(range(4))
    task.step(real, labels, 0)
    task.step(real, labels, 1)
    assert [len(images) for images in seen] == [7, 7]
    assert torch.equal(seen[0][3:], real) and not torch.equal(seen[0][:3], seen[1][:3])
    assert seen[0].abs().max() <= 1


def test_ensemble_may_be_trained_without_generated_images():
    task = viscoin_task(generated=0)
    assert torch.isfinite(task.step(*task.validation.batch(range(4)), 0)["total"])


def test_ensemble_is_measured_by_totals_over_totals():
    """Traps 1 and 2: 160 images in batches of 125 and 35 give the same as one batch."""
    dataset = fake_dataset([int(i) for i in np.random.default_rng(1).integers(0, 3, 160)])
    task = viscoin_task(dataset)
    results, score = task.evaluate(0)
    images, labels = dataset.batch(range(160))
    ensemble = task.ensemble.eval()
    with torch.no_grad():
        code = ensemble.encode(images)
        answers = ensemble.explain(code.concept_maps).argmax(1)
        rebuilt = ensemble.decode(code.concept_maps, code.support).clamp(-1, 1)
        again = ensemble.explain(ensemble.encode(rebuilt).concept_maps).argmax(1)
    expected = {
        "accuracy": (answers == labels).float().mean(),
        "agreement": (answers == code.logits.argmax(1)).float().mean(),
        "accuracy_on_reconstructions": (again == labels).float().mean(),
        "l1": (rebuilt - images).abs().mean(),
        "mse": (rebuilt - images).square().mean(),
    }
    assert results == {key: pytest.approx(float(value), abs=1e-5) for key, value in expected.items()}
    assert score == pytest.approx(results["agreement"] + results["accuracy_on_reconstructions"] - results["mse"])


def test_validation_images_are_of_all_classes(monkeypatch):
    """Trap 6: the head of a dataset that is sorted by class would be its first class alone."""
    dataset = fake_dataset([0] * 40 + [1] * 40 + [2] * 40)
    seen: list[int] = []
    original = dataset.batch
    monkeypatch.setattr(
        dataset, "batch", lambda indices: seen.extend(np.asarray(indices).tolist()) or original(indices)
    )
    monkeypatch.setattr(viscoin_module, "VALIDATION_IMAGES", 30)
    task = viscoin_task(dataset)
    task.evaluate(0)
    assert len(seen) == len(set(seen)) == 30
    assert np.bincount(dataset.labels[seen], minlength=3).min() > 3
    first, seen[:] = list(seen), []
    task.evaluate(5)
    assert seen == first  # the same ones each time, or scores could not be compared


@pytest.mark.parametrize("part", ["classifier", "generator"])
def test_resumed_ensemble_must_have_the_same_parts(part):
    task = viscoin_task()
    state = task.state_dict()
    task.load_state_dict(state)
    f, g = make_parts(3)
    other_f, other_g = make_parts(3, seed=1)
    f, g = (other_f, g) if part == "classifier" else (f, other_g)
    ensemble = build_ensemble(task.config, f, g, NAMES)
    other = ViscoinTask(ensemble, g, task.config, task.fabric, task.validation)
    with pytest.raises(ValueError, match=rf"started with another {part}; give the same one \(`{part}`\)"):
        other.load_state_dict(state)


def test_state_of_the_ensemble_leaves_frozen_weights_out():
    keys = viscoin_task().state_dict()["ensemble"]
    assert not [key for key in keys if key.startswith(("classifier.", "generator.synthesis."))]
    assert {key.split(".")[0] for key in keys} == {"concept_extractor", "explainer", "generator"}


def test_parts_that_do_not_fit_the_data(tmp_path):
    run = Run.create("viscoin", RECIPE, tmp_path / "run")
    f, g = make_parts(3)
    with pytest.raises(ValueError, match=r"classifier knows 3 classes, dataset 'birds' has 4"):
        train_viscoin(RECIPE, run, f, g, Runtime("cpu"))
    large = build_generator(RECIPE.gan, 32)
    with pytest.raises(ValueError, match=r"generator makes 32 px, the dataset has 16 px"):
        train_viscoin(RECIPE, run, make_parts(4)[0], large, Runtime("cpu"))


def test_perceptual_distance_of_the_recipe_is_used(monkeypatch):
    asked = []
    original = viscoin_module.perceptual_distance
    monkeypatch.setattr(
        viscoin_module, "perceptual_distance", lambda kind, f: asked.append(kind) or original("classifier", f)
    )
    assert viscoin_task(perceptual_loss="lpips").perceptual_name == "classifier" and asked == ["lpips"]


def test_metrics_are_plain_json(finished):
    for kind in KINDS:
        for line in (finished[kind] / "metrics.jsonl").read_text().splitlines():
            values = json.loads(line)
            assert {"step", "time"} <= values.keys()
            assert all(isinstance(value, int | float) for value in values.values())


def test_snapshots_show_real_images_beside_their_reconstructions(finished):
    with Image.open(finished["viscoin"] / "figures" / "reconstructions-000009.png") as image:
        strip = np.asarray(image)
    validation = load_dataset("birds", "validation", RECIPE.dataset)
    shown = gan_module.choose_images(len(validation), 16, RECIPE.seed)
    tile = strip[2 : 2 + SIZE, 2 : 2 + SIZE]  # torchvision's grids have a border of two pixels
    assert np.abs(tile.astype(int) - validation.pixels[shown[0]]).max() <= 1
