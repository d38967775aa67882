"""Options of training f: layers, class weights, rates, measures, early stopping; and that stopped runs go on."""

import math
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score
from tiny_models import Answer, tiny_recipe, write_images
from torch import Tensor, nn

from viscoin.config import ClassifierConfig, DatasetConfig, Recipe, load_recipe
from viscoin.datasets import ImageDataset
from viscoin.models.classifier import Classifier
from viscoin.models.files import load_model, read_file
from viscoin.runs.run import Run, read_metrics
from viscoin.statistics.measures import confusion
from viscoin.training import classifier as module
from viscoin.training.checkpoints import load_best
from viscoin.training.classifier import (
    ClassifierTask,
    balanced_weights,
    class_average,
    train_classifier,
    zero_last_layer,
)
from viscoin.training.data import StepBatches
from viscoin.training.loop import Interrupted, fit
from viscoin.training.runtime import Runtime, make_fabric

SIZE, NAMES = 16, ["a", "b", "c"]


@pytest.fixture(autouse=True)
def no_waiting_for_disks(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)


def dataset(labels: list[int], split: str = "train") -> ImageDataset:
    pixels = np.random.default_rng(len(labels)).integers(0, 256, (len(labels), SIZE, SIZE, 3), dtype=np.uint8)
    return ImageDataset("fake", split, pixels, labels, NAMES)


def task(class_weights: Tensor | None = None, **settings: Any) -> ClassifierTask:
    config = ClassifierConfig(**{"pretrained": False, "schedule": "constant"} | settings)
    torch.manual_seed(0)
    model = Classifier("viscoin_resnet10", 3, SIZE)
    validation = dataset([0, 1, 2, 0, 0, 1], "validation")
    return ClassifierTask(model, config, make_fabric(Runtime("cpu", "32-true")), validation, 100, 10, class_weights)


def changed(of: ClassifierTask) -> set[str]:
    """Parts of the backbone that two steps of training change, statistics among them."""
    before = {key: value.clone() for key, value in of.model.state_dict().items()}
    for step in range(2):
        of.step(*dataset([0, 1, 2, 0] * 2).batch(range(8)), step)
    after = of.model.state_dict()
    return {key.removeprefix("model.") for key in before if not torch.equal(before[key], after[key])}


@pytest.mark.parametrize(("backbone", "size"), [("viscoin_resnet10", 16), ("deit_tiny_distilled_patch16_224", 48)])
def test_a_training_starts_with_all_classes_alike(backbone, size):
    model = Classifier(backbone, 3, size)
    zero_last_layer(model)
    assert not model(torch.randn(2, 3, size, size)).any()


# --- which layers train ------------------------------------------------------------------------------------------


def test_frozen_body_stays_as_it_is_statistics_included():
    assert changed(task(train_layers="head")) == {"fc.weight", "fc.bias"}


def test_last_block_trains_without_its_normalisation():
    names = changed(task(train_layers="last:1"))
    assert names == {"fc.weight", "fc.bias"} | {
        f"layer4.0.{name}.weight" for name in ("conv1", "conv2", "downsample.0")
    }


def test_stage_may_train_with_its_normalisation_and_others_keep_their_statistics():
    names = changed(task(train_layers="layer4", freeze_norm=False))
    assert {"layer4.0.bn1.weight", "layer4.0.bn1.running_mean", "layer4.0.conv1.weight"} <= names
    assert all(name.startswith(("layer4.", "fc.")) for name in names)


def test_full_training_changes_everything_and_may_leave_normalisation_alone():
    everything = set(task().model.model.state_dict())
    assert changed(task()) == everything
    names = changed(task(freeze_norm=True))
    assert names == {name for name in everything if "bn" not in name and "downsample.1" not in name}


def test_optimizer_holds_what_trains():
    of = task(train_layers="head", optimizer="sgd", momentum=0.7)
    (group,) = of.optimizer.param_groups
    assert [tuple(weight.shape) for weight in group["params"]] == [(3, 192), (3,)]
    assert group["momentum"] == 0.7


def test_frozen_modules_are_in_eval_mode_after_each_evaluation_too():
    of = task(train_layers="last:1")
    of.evaluate(0)
    of.step(*dataset([0, 1, 2, 0]).batch(range(4)), 0)
    assert not of.model.model.layer3.training and not of.model.model.layer4[0].bn1.training
    assert of.model.model.layer4.training and of.model.model.fc.training


@pytest.mark.parametrize("name", ["adam", "adamw", "radam"])
def test_optimizers_by_name(name):
    optimizer = task(optimizer=name, weight_decay=0.5).optimizer
    assert type(optimizer).__name__.lower() == f"fabric{name}" and optimizer.param_groups[0]["weight_decay"] == 0.5


def test_state_of_another_optimizer_is_refused():
    """As on --allow-changes; else the first step would miss its moments, or SGD would take those of Adam."""
    state = task(optimizer="adam").state_dict()
    task(optimizer="adamw").load_state_dict(state)
    for other in (task(optimizer="sgd"), task(optimizer="adam", train_layers="head")):
        with pytest.raises(RuntimeError, match="optimizer"):
            other.load_state_dict(state)


# --- class weights -----------------------------------------------------------------------------------------------


def test_balanced_weights():
    """N / (C n_c): 4 images of a, 1 of b, 1 of c."""
    assert balanced_weights(dataset([0, 0, 1, 0, 2, 0])).tolist() == pytest.approx([0.5, 2.0, 2.0])


def test_weights_reach_the_loss():
    weights, labels = torch.tensor([0.5, 2.0, 2.0]), torch.tensor([0, 0, 1, 2])
    of = task(class_weights=weights)
    images, _ = dataset([0, 0, 1, 2]).batch(range(4))
    with torch.no_grad():
        each = nn.functional.cross_entropy(task().model.train()(images), labels, reduction="none")
    loss = of.step(images, labels, 0)["loss"]
    assert float(loss) == pytest.approx(float((weights[labels] * each).sum() / weights[labels].sum()), rel=1e-5)
    assert float(loss) != pytest.approx(float(each.mean()), rel=1e-4)


def test_class_without_images_has_no_weight():
    with pytest.raises(ValueError, match=r"class_weights balanced: dataset 'fake' has no train images of b, c; .*none"):
        balanced_weights(dataset([0, 0]))


# --- rates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [  # factors on the rate at steps of 10 an epoch, 100 in all
        ({"schedule": "constant", "warmup_epochs": 2}, {0: 0.05, 9: 0.5, 19: 1, 20: 1, 99: 1}),
        ({"schedule": "step", "warmup_epochs": 0.5, "step_epochs": 3}, {0: 0.2, 4: 1, 29: 1, 30: 0.1}),
        ({"schedule": "cosine", "warmup_epochs": 2}, {0: 0.05, 19: 1, 20: 1, 60: 0.5, 100: 0}),
        ({"schedule": "cosine", "warmup_epochs": 0}, {0: 1, 50: 0.5, 100: 0}),
    ],
)
def test_warm_up(settings, expected):
    config = ClassifierConfig(epochs=10, **settings)
    for step, factor in expected.items():
        assert module._rate(config, step, steps=100, per_epoch=10) == pytest.approx(factor, abs=1e-9)


# --- measures ----------------------------------------------------------------------------------------------------


def test_averages_over_classes_are_those_of_scikit_learn():
    """Class 3 has images but no predictions, class 4 predictions alone, class 5 neither."""
    generator = np.random.default_rng(0)
    labels, predicted = generator.integers(0, 4, 60), generator.integers(0, 3, 60)
    predicted[::10] = 4
    counts = confusion(predicted, labels, 6)
    expected = f1_score(labels, predicted, average="macro", zero_division=0)
    assert class_average(counts, "f1") == pytest.approx(expected)
    known = predicted != 4  # scikit-learn warns of predictions outside the classes that have images
    counts = confusion(predicted[known], labels[known], 6)
    expected = balanced_accuracy_score(labels[known], predicted[known])
    assert class_average(counts, "balanced_accuracy") == pytest.approx(expected)


class Answers(nn.Module):
    """Says class 0 to everything: right about half of the validation images."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.0, 0.0]).repeat(len(images), 1)


@pytest.mark.parametrize(
    ("measure", "value"), [("accuracy", 0.5), ("balanced_accuracy", 1 / 3), ("f1", 2 * 0.5 / 1.5 / 3), ("loss", None)]
)
def test_score_is_the_chosen_measure(measure, value):
    of = task(best_metric=measure)
    of.model = of.answer = Answers()
    results, score = of.evaluate(0)
    loss = math.log(math.e + 2) - 0.5
    assert set(results) == {"accuracy", "loss", measure}
    assert results["accuracy"] == 0.5 and results["loss"] == pytest.approx(loss)
    assert score == pytest.approx(-loss if measure == "loss" else value, abs=1e-5)
    assert score != value  # the loss decides among equals


def recipe(**settings: Any) -> Recipe:
    options = {f"classifier__{key}": value for key, value in settings.items()}
    small = {"classifier__epochs": 4, "classifier__batch_size": 8, "dataset__resolution": SIZE}
    return tiny_recipe(**small | options)


@pytest.fixture
def fake_images(monkeypatch):
    """24 training and 12 validation images of noise in place of birds."""
    counts = {"train": 24, "validation": 12}

    def load(name: str, split: str, config: DatasetConfig) -> ImageDataset:
        return dataset([i % 3 for i in range(counts[split])], split)

    monkeypatch.setattr("viscoin.training.runtime.load_dataset", load)


def run_training(folder: Path, chosen: Recipe) -> Path:
    """Train, or go on where the folder holds a run."""
    run = Run.create("classifier", chosen, folder, resume=folder.exists())
    torch.seed()  # whatever was drawn before must not matter
    return train_classifier(chosen, run, Runtime("cpu", "32-true"))


@pytest.mark.parametrize("measure", ["accuracy", "loss", "f1", "balanced_accuracy"])
def test_model_file_says_how_it_was_chosen(fake_images, tmp_path, measure):
    path = run_training(tmp_path / "run", recipe(best_metric=measure))
    selection = load_model(path, "classifier").metadata["selection"]
    key = f"validation.{measure}"
    lines = {line["step"]: line[key] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if key in line}
    assert len(lines) == 4 and selection.keys() == {"metric", "value", "step"} and selection["metric"] == key
    best = (min if measure == "loss" else max)(lines.values())
    assert best == lines[selection["step"]] == pytest.approx(selection["value"], abs=1e-6)
    assert read_file(path)[1]["scores"][key] == selection["value"]


def test_a_training_begins_there(fake_images, tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(module, "fit", lambda run, task, *_rest, **_options: begun.append(task) or sys.exit())
    with pytest.raises(SystemExit):
        run_training(tmp_path / "run", recipe())
    assert not begun[0].model.last_layer.weight.any()


# --- early stopping ----------------------------------------------------------------------------------------------

SCORES = [0.1, 0.3, 0.2, 0.3, 0.25, 0.9, 1.0]  # the best of the first five is the second; equal is not better


class Scored:
    """A task of one number that counts its steps, with given scores every second step."""

    def __init__(self, before: Callable[[int], None] = lambda step: None) -> None:
        self.count, self.before, self.steps = 0, before, []

    def step(self, images: Tensor, labels: Tensor, step: int) -> dict[str, Tensor]:
        self.before(step)
        self.steps.append(step)
        self.count += 1
        return {"count": torch.tensor(float(self.count))}

    def evaluate(self, step: int) -> tuple[dict[str, float], float | None]:
        return {"count": float(self.count)}, SCORES[step // 2 - 1]

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count = state["count"]


def fit_scored(run: Run, scored: Scored, patience: int | None) -> dict[str, float]:
    batches = StepBatches(dataset([0, 1, 2]), 2, 0)
    device = torch.device("cpu")
    return fit(
        run, scored, batches, 14, seed=0, evaluate_every=2, device=device, title="toy", log_every=2, patience=patience
    )


@pytest.fixture
def run(tmp_path):
    return Run.create("classifier", load_recipe("birds"), tmp_path / "run")


@pytest.mark.parametrize(("patience", "steps", "best"), [(1, 6, 4), (3, 10, 4), (4, 14, 14), (None, 14, 14)])
def test_training_ends_after_evaluations_without_a_better_score(run, caplog, patience, steps, best):
    scored = Scored()
    with caplog.at_level("INFO"):
        assert fit_scored(run, scored, patience) == {"count": steps}
    assert scored.steps == list(range(steps)) and load_best(run, scored) == best
    text = f"toy: no better score in {patience} evaluations, ended early at step {steps} of 14"
    assert (text in caplog.messages) == (steps < 14)


@pytest.mark.parametrize("number", [4, 5, 8])
def test_stopped_run_counts_on(run, number):
    """Interrupted while it is losing patience: it ends where it would have ended."""
    with pytest.raises(Interrupted):
        fit_scored(run, Scored(lambda step: signal.raise_signal(signal.SIGTERM) if step == number else None), 3)
    scored = Scored()
    fit_scored(run, scored, 3)
    assert scored.count == 10 and scored.steps == list(range(number + 1, 10))


def test_run_that_ended_early_has_nothing_to_do(run):
    fit_scored(run, Scored(), 3)
    lines = read_metrics(run.metrics_path)
    scored = Scored()
    assert fit_scored(run, scored, 3) == {} and scored.steps == [] and scored.count == 10
    assert read_metrics(run.metrics_path) == lines


def test_checkpoints_from_before_there_was_patience(run):
    with pytest.raises(Interrupted):
        fit_scored(run, Scored(lambda step: signal.raise_signal(signal.SIGTERM) if step == 4 else None), None)
    state = run.load_checkpoint("last")
    del state["stale"]
    run.save_checkpoint("last", state)
    scored = Scored()
    fit_scored(run, scored, 3)
    assert scored.count == 10


def test_classifier_that_ends_early_keeps_its_best_weights_also_when_stopped(fake_images, tmp_path, monkeypatch):
    """Better once, then worse for two epochs: the model is that of the second of eight epochs."""
    scores = {3: 0.1, 6: 0.5, 9: 0.4, 12: 0.3}
    evaluate = ClassifierTask.evaluate
    monkeypatch.setattr(ClassifierTask, "evaluate", lambda self, step: (evaluate(self, step)[0], scores.get(step)))
    chosen = recipe(epochs=8, early_stopping=2, train_layers="last:1", class_weights="balanced", best_metric="f1")
    path = run_training(tmp_path / "whole", chosen)
    assert read_file(path)[1]["selection"]["step"] == 6
    best, last = (torch.load(tmp_path / f"whole/checkpoints/{name}.pt", weights_only=True) for name in ("best", "last"))
    assert (best["step"], last["step"], last["stale"]) == (6, 12, 2)

    step = ClassifierTask.step

    def stopping(self: ClassifierTask, images: Tensor, labels: Tensor, number: int) -> dict[str, Tensor]:
        if number == 9:
            signal.raise_signal(signal.SIGTERM)
        return step(self, images, labels, number)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(ClassifierTask, "step", stopping)
        run_training(tmp_path / "stopped", chosen)
    again = run_training(tmp_path / "stopped", chosen)
    for one in (again, run_training(tmp_path / "whole", chosen)):  # the second one has nothing left to do
        tensors = read_file(one)[0]
        assert all(torch.equal(value, best["task"]["model"][key]) for key, value in tensors.items())
    assert any(not torch.equal(value, last["task"]["model"][key]) for key, value in tensors.items())


# --- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classifier.early_stopping": 0}, r"classifier\.early_stopping = 0: .*greater than or equal to 1"),
        ({"classifier.class_weights": "inverse"}, r"classifier\.class_weights = 'inverse'.*'balanced'"),
        ({"classifier.best_metric": "auroc"}, r"classifier\.best_metric = 'auroc'.*'balanced_accuracy'"),
        ({"classifier.momentum": 1}, r"classifier\.momentum = 1"),
        (
            {"classifier.train_layers": "last:0"},
            r"classifier\.train_layers = 'last:0': .*last:N with N from 1",
        ),
        ({"classifier.train_layers": "last:two"}, r"classifier\.train_layers = 'last:two'"),
        ({"classifier.epochs": 3, "classifier.warmup_epochs": 3}, r"warmup_epochs = 3 must be below .*epochs = 3"),
    ],
)
def test_values_that_mean_nothing(settings, message):
    with pytest.raises(ValueError, match=message):
        load_recipe("birds", settings)


def command(folder: Path, *options: str) -> Answer:
    """A short training on a folder of 20 images in two classes."""
    if not (folder / "data").exists():
        write_images(folder / "data", {"blue": 10, "red": 10}, 16)
    small = {"dataset.resolution": 16, "classifier.batch_size": 8, "classifier.epochs": 2}
    settings = [part for key, value in small.items() for part in ("--set", f"{key}={value}")]
    where = ["--dataset", folder / "data", "--device", "cpu", "--precision", "32-true", "--out", folder / "run"]
    return Answer("train", "classifier", *where, *settings, *options)


def test_options_of_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = {
        "backbone": "viscoin_resnet10",
        "train_layers": "last:2",
        "optimizer": "sgd",
        "schedule": "step",
        "class_weights": "balanced",
        "early_stopping": 1,
        "best_metric": "f1",
    }
    given = [part for key, value in options.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    command(tmp_path, *given, "--no-pretrained").went_well()
    loaded = load_model(tmp_path / "run", "classifier")
    expected = options | {"pretrained": False}
    assert expected == {key: loaded.recipe["classifier"][key] for key in expected}
    assert loaded.metadata["selection"]["metric"] == "validation.f1"


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        (["--backbone", "resnet51"], ["'resnet51'", "did you mean", "resnet50"]),
        (["--train-layers", "last:9"], ["'last:9'", "5 blocks", "at most last:5"]),
        (["--train-layers", "layer7"], ["'layer7'", "did you mean", "layer4"]),
        (["--early-stopping", "0"], ["--early-stopping", "1"]),
        (["--optimizer", "magic"], ["classifier.optimizer", "'magic'"]),
        (
            ["--class-weights", "balanced", "--set", "dataset.train=1"],
            ["balanced: dataset", "no train images of", "choose none"],
        ),
    ],
)
def test_mistakes_leave_one_line_and_no_run(tmp_path, monkeypatch, options, texts):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command(tmp_path, *options).refused(*texts)
    assert not (tmp_path / "run").exists()
