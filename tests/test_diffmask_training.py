"""Training of DiffMask: its optimisers and loss, that it resumes bit for bit, and what it leaves."""

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
from test_diffmask import CLOSE, golden
from tiny_models import Answer, write_images
from torch import Tensor

from stylegan2_ada.optimizer import Lookahead
from viscoin.attribution.diffmask import diffmask_maps
from viscoin.config import Recipe, load_recipe
from viscoin.datasets import load_dataset
from viscoin.errors import Refused
from viscoin.models.classifier import Classifier
from viscoin.models.diffmask import DiffMask
from viscoin.models.digests import digest
from viscoin.models.files import load_model, read_file, save_model
from viscoin.models.tokens import PatchTokens
from viscoin.runs.run import Run, read_metrics
from viscoin.training import diffmask as module
from viscoin.training.diffmask import DiffMaskTask, ascend, score, sparsity, train_diffmask
from viscoin.training.diffmask_start import build_diffmask, mean_embedding
from viscoin.training.loop import Interrupted
from viscoin.training.runtime import Runtime, make_fabric

HERE = Runtime("cpu", "32-true")
SIZES = {
    "dataset.resolution": 48, "dataset.train": 24, "dataset.validation": 8, "dataset.test": 8, "diffmask.epochs": 3,
    "diffmask.batch_size": 8, "diffmask.warmup_steps": 4, "diffmask.sample_images": 2, "diffmask.log_every_n_steps": 4,
    "diffmask.learning_rate": 0.01,
}  # fmt: skip
RECIPE = load_recipe("toy-count", SIZES)


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory):
    """A cache of its own, and no waiting for disks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(os, "fsync", lambda file: None)
        yield


def make_f(backbone: str = "viscoin_vit_patch16", size: int = 48, seed: int = 0, classes: int = 10) -> Classifier:
    """f with random weights, the same for each seed."""
    torch.manual_seed(seed)
    f = Classifier(backbone, classes, size).eval()
    with torch.no_grad():
        f.last_layer.weight.mul_(20)  # or it would say the same of everything
    return f


def make_task(config: dict[str, Any] | None = None, seed: int = 0) -> DiffMaskTask:
    recipe = load_recipe("toy-count", SIZES | {f"diffmask.{key}": value for key, value in (config or {}).items()})
    tokens = PatchTokens(make_f())
    torch.manual_seed(seed)
    model = build_diffmask(recipe.diffmask, tokens, load_dataset("toy-count", "train", recipe.dataset))
    validation = load_dataset("toy-count", "validation", recipe.dataset)
    return DiffMaskTask(model, tokens, recipe.diffmask, make_fabric(HERE), validation)


def batch(n: int = 8) -> tuple[Tensor, Tensor]:
    return load_dataset("toy-count", "train", RECIPE.dataset).batch(range(n))


# --- optimisers ---------------------------------------------------------------------------------------------------


def test_lookahead_is_that_of_the_paper():
    tensors, config = golden("optimiser")
    weight = torch.nn.Parameter(tensors["start"].clone())
    adam = torch.optim.Adam([weight], config["lr"], tuple(config["betas"]), config["adam_eps"])
    optimizer = Lookahead(adam, config["k"], config["slow_rate"])
    for gradient, wanted in zip(tensors["gradients"], tensors["lookahead"], strict=True):
        weight.grad = gradient.clone()
        optimizer.step()
        torch.testing.assert_close(weight.data, wanted, **CLOSE)
    published = tensors["lookahead.as_published_code"]
    assert not torch.allclose(tensors["lookahead"][5], published[5])  # whose slow weights start at step 6


def test_lookahead_resumes_in_the_middle():
    tensors, _ = golden("optimiser")

    def make() -> tuple[torch.nn.Parameter, Lookahead]:
        weight = torch.nn.Parameter(tensors["start"].clone())
        return weight, Lookahead(torch.optim.Adam([weight], 0.1))

    def run(weight: torch.nn.Parameter, optimizer: Lookahead, steps: slice) -> None:
        for gradient in tensors["gradients"][steps]:
            weight.grad = gradient.clone()
            optimizer.step()

    (whole, first), (part, second), (rest, third) = make(), make(), make()
    run(whole, first, slice(None))
    run(part, second, slice(8))
    rest.data.copy_(part.data)
    third.load_state_dict(second.state_dict())
    run(rest, third, slice(8, None))
    assert torch.equal(whole, rest)


def test_alpha_goes_up_where_the_divergence_is_too_large():
    tensors, config = golden("optimiser")
    alphas = torch.nn.ParameterList([torch.nn.Parameter(torch.tensor(config["alpha_start"])) for _ in range(2)])
    optimizer = torch.optim.Adam(alphas.parameters(), config["alpha_lr"], maximize=True)
    for excess, wanted in zip(tensors["kl_minus_eps"], tensors["alpha.adam"], strict=True):
        ascend(optimizer, alphas[0], excess)
        torch.testing.assert_close(alphas[0].data, wanted, **CLOSE)
    assert alphas[1].item() == config["alpha_start"]
    assert tensors["alpha.as_published_code"][0] < config["alpha_start"] < tensors["alpha.adam"][0]


@pytest.mark.parametrize(("start", "excess", "end"), [(199.9, 1.0, 200.0), (0.1, -1.0, 0.0)])
def test_alpha_stays_within_its_limits(start, excess, end):
    alpha = torch.nn.Parameter(torch.tensor(start))
    optimizer = torch.optim.Adam([alpha], 0.3, maximize=True)
    for _ in range(3):
        ascend(optimizer, alpha, torch.tensor(excess))
    assert alpha.item() == end


@pytest.mark.parametrize(("eps", "up"), [(0.0, True), (50.0, False)])
def test_the_lagrangian_of_a_training_moves_the_right_way(eps, up):
    task = make_task({"eps": eps, "add_activation": -1.0})  # gates half closed: f says something else
    before = [alpha.item() for alpha in task.model.alphas]
    task.step(*batch(), 0)
    moved = [alpha.item() - old for alpha, old in zip(task.model.alphas, before, strict=True) if alpha.item() != old]
    assert len(moved) == 1 and (moved[0] > 0) == up and abs(moved[0]) == pytest.approx(0.3, rel=1e-3)


def test_rates_rise_and_stay():
    task = make_task()
    task._warm_up(0)
    assert [group["lr"] for group in task.optimizer.param_groups] == pytest.approx([0.0025, 0.00025])
    for step in (3, 1000):
        task._warm_up(step)
        assert [group["lr"] for group in task.optimizer.param_groups] == pytest.approx([0.01, 0.001])


# --- loss ---------------------------------------------------------------------------------------------------------


def test_sparsity_is_the_expected_share_or_the_mean_log():
    log_open = torch.log(torch.tensor([[0.5, 0.25], [1.0, 0.1]]))
    assert sparsity(log_open, "expected").tolist() == pytest.approx([0.375, 0.55])
    assert sparsity(log_open, "log").tolist() == pytest.approx([math.log(0.125) / 2, math.log(0.1) / 2])


def test_class_token_has_no_gate():
    task = make_task()
    images, _ = batch(2)
    _, states = task.tokens.states(images)
    assert states.shape == (6, 2, 9, 64)  # of 9 patches, without the class token
    mask, log_open = task.model.sample(states, torch.rand(2, 9, 6))
    assert mask.shape == log_open.shape == (2, 9)


def test_nothing_of_f_changes():
    task = make_task()
    before = digest(f=task.tokens.classifier)
    for step in range(3):
        task.step(*batch(), step)
    assert digest(f=task.tokens.classifier) == before and not task.tokens.classifier.training
    assert all(weight.grad is None for weight in task.tokens.classifier.parameters())


def test_layers_that_are_good_already_are_drawn_less_often():
    task = make_task({"weighted_layer_distribution": True})
    task.running[:, 2] = torch.tensor([101, 0.8, 0.05])
    torch.manual_seed(0)
    drawn = np.bincount([task._draw_layer() for _ in range(2000)], minlength=6)
    assert drawn[2] / 2000 == pytest.approx(0.1 / 5.1, abs=0.01)
    task.running[0, 2] = 100
    assert np.bincount([task._draw_layer() for _ in range(600)], minlength=6)[2] > 60


def test_running_means_start_at_one():
    task = make_task()
    task._note(1, torch.tensor(0.5), torch.tensor(0.0))
    assert task.running[:, 1].tolist() == pytest.approx([1, 0.95, 0.9]) and task.running[:, 0].tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ({"kl": 0.8, "agreement": 0.75, "kept": 0.25}, 0.75),
        ({"kl": 0.9, "agreement": 1.0, "kept": 0.0}, -0.1),
        ({"kl": 0.0, "agreement": 0.5, "kept": 0.0}, -0.25),
    ],
)
def test_the_smallest_masks_that_keep_predictions_are_best(results, expected):
    assert score(results) == pytest.approx(expected)


def test_validation_is_that_of_the_masks():
    task = make_task({"add_activation": 0.0})
    results, _ = task.evaluate(0)
    images, labels = task.validation.batch(range(8))
    found = diffmask_maps(task.tokens.classifier, task.model, images)
    assert results["kl"] == pytest.approx(float(found.kl.mean()), rel=1e-4)
    assert results["kept"] == pytest.approx(float(found.maps.mean()), rel=1e-4)
    assert results["accuracy"] == float((found.masked_logits.argmax(1) == labels).float().mean())
    assert results["agreement"] == float((found.masked_logits.argmax(1) == found.logits.argmax(1)).float().mean())


# --- placeholders -------------------------------------------------------------------------------------------------


def test_a_fixed_placeholder_is_the_mean_embedding_of_what_is_not_counted():
    task = make_task({"placeholder": "fixed"})
    train = load_dataset("toy-count", "train", RECIPE.dataset)
    embeddings = task.tokens.embed(train.batch(range(24))[0])
    wanted = embeddings[~torch.from_numpy(train.counted).flatten(1)].mean(0)
    torch.testing.assert_close(task.model.placeholder.data, wanted, **CLOSE)
    assert len(task.optimizer.param_groups) == 1


def test_a_dataset_that_shows_nothing_but_parts_has_no_fixed_placeholder(monkeypatch):
    train = load_dataset("toy-count", "train", RECIPE.dataset)
    monkeypatch.setattr(type(train), "part_masks", lambda self, index: np.ones((1, 48, 48), bool))
    with pytest.raises(Refused, match=r"diffmask.placeholder fixed: every patch shows a part; choose learned or zeros"):
        mean_embedding(PatchTokens(make_f()), train)


def test_placeholders_of_zeros_stay_zero():
    task = make_task({"placeholder": "zeros"})
    task.step(*batch(), 0)
    assert not task.model.placeholder.any()


def test_gates_start_alike_where_they_are_told_to():
    (images, _), values = batch(), {}
    for spread in (1.0, 0.1, 0.0):
        task = make_task({"spread": spread, "add_activation": 4})
        values[spread] = task.model.gates(task.tokens.states(images)[1]).detach() - 4
    assert values[1.0].abs().mean() > 2 and 0 < values[0.1].abs().max() < 2 and not values[0.0].any()


# --- runs ---------------------------------------------------------------------------------------------------------


def train(folder: Path, recipe: Recipe = RECIPE, f: Classifier | None = None) -> Path:
    run = Run.create("diffmask", recipe, folder, resume=folder.exists())
    torch.seed()  # whatever was drawn before must not matter
    return train_diffmask(recipe, run, f or make_f(), HERE)


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = read_metrics(folder / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(folder)
    return folder


def test_what_a_run_leaves(finished):
    loaded = load_model(finished, "diffmask")
    assert loaded.recipe == RECIPE.model_dump() and len(loaded.class_names) == 10
    assert loaded.model.classifier == digest(f=make_f())["f"]
    assert not [key for key in read_file(finished / "model.safetensors")[0] if "blocks" in key]  # nothing of f
    assert {"validation.kl", "validation.kept", "validation.agreement"} <= loaded.metadata["scores"].keys()
    assert {line["step"] for line in metrics(finished) if "validation.kl" in line} == {4, 8, 9}
    assert any(key.startswith("train.alpha.") for line in metrics(finished) for key in line)
    figures = {path.name for path in (finished / "figures").iterdir()}
    kinds = ("masks-{}.png", "layers-{}.png", "masks-{}.json")
    assert figures == {kind.format(f"{step:06d}") for step in (4, 8, 9) for kind in kinds}
    rows = json.loads((finished / "figures" / "masks-000009.json").read_text())
    assert [row["split"] for row in rows] == ["train"] * 2 + ["validation"] * 2
    assert {"class", "predicted", "predicted_with_mask", "kl", "kept"} <= rows[0].keys()
    with Image.open(finished / "figures" / "masks-000009.png") as picture:
        assert picture.size == (4 * 50 + 2, 3 * 50 + 2)  # image, mask and masked image of four images
        mask = np.asarray(picture)[52:100]
    with Image.open(finished / "figures" / "layers-000009.png") as picture:
        assert picture.size == (4 * 50 + 2, 7 * 50 + 2)  # images, and masks up to each of six layers
        assert np.array_equal(np.asarray(picture)[-50:-2], mask)  # the last is the mask


@pytest.mark.parametrize("number", [2, 6])
def test_stopped_run_equals_one_that_was_not(finished, tmp_path, monkeypatch, number):
    """SIGTERM in the middle, then the same call again: weights and metrics are the same, bit for bit."""
    original = DiffMaskTask.step

    def step(self: Any, images: Tensor, labels: Tensor, step: int) -> dict[str, Tensor]:
        if step == number:
            signal.raise_signal(signal.SIGTERM)
        return original(self, images, labels, step)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match=f"stopped at step {number + 1} "):
        patch.setattr(DiffMaskTask, "step", step)
        train(tmp_path / "run")
    train(tmp_path / "run")
    assert metrics(tmp_path / "run") == metrics(finished)
    expected, found = (read_file(folder / "model.safetensors")[0] for folder in (finished, tmp_path / "run"))
    assert expected.keys() == found.keys()
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


def test_a_run_of_another_classifier_is_not_resumed(finished, tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("recipe.yaml", "metrics.jsonl"):
        (tmp_path / "run" / name).write_bytes((finished / name).read_bytes())
    (tmp_path / "run" / "checkpoints").symlink_to(finished / "checkpoints")
    with pytest.raises(Refused, match=r"started with a classifier of digest \w{16}, and this one has \w{16}"):
        train(tmp_path / "run", f=make_f(seed=1))


def test_it_starts_from_the_weights_of_another(finished, tmp_path):
    start = load_model(finished, "diffmask").model
    recipe = load_recipe("toy-count", SIZES | {"diffmask.checkpoint": str(finished), "diffmask.epochs": 1})
    built = build_diffmask(recipe.diffmask, PatchTokens(make_f()), load_dataset("toy-count", "train", recipe.dataset))
    for key, value in start.state_dict().items():
        assert torch.equal(built.state_dict()[key], value)
    with pytest.raises(Refused, match=r"diffmask.checkpoint .*: it was trained on a classifier of digest"):
        train(tmp_path / "run", recipe, make_f(seed=1))


def test_a_loss_that_is_not_finite_stops_it(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "sparsity", lambda log_open, measure: log_open.mean(1) * float("nan"))
    with pytest.raises(ValueError, match=r"step 0: loss = nan;"):
        train(tmp_path / "run")


# --- measured and shown -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_is_a_method_of_both_commands_once_trained(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    f = save_f(tmp_path / "f.safetensors")
    attribute = [
        "attribute",
        "--dataset",
        "toy-count",
        "--classifier",
        f,
        "--device",
        "cpu",
        "--out",
        tmp_path / "maps",
    ]
    Answer(*attribute, "--method", "diffmask").refused("--method diffmask", "no DiffMask is given", "train diffmask")
    Answer(*attribute, "--method", "gradcam", "--diffmask", finished, "--option", "gates=1").went_well()
    saved = np.load(tmp_path / "maps" / "maps.npz")
    assert saved["diffmask.native"].shape == (4, 3, 3) and "gradcam.maps" in saved
    test = ["test", "attribution", "--checkpoints", f, "--device", "cpu", "--scores", "segments", "--out", "scores"]
    Answer(*test, "--methods", "diffmask").refused("--methods diffmask", "given", "train diffmask", "--diffmask")
    Answer(*test, "--methods", "rollout", "--diffmask", finished).went_well()
    rows = json.loads((tmp_path / "scores" / "results.json").read_text())["methods"]
    assert {"diffmask", "rollout"} < rows.keys() and "segments.ap" in rows["diffmask"]["estimates"]


# --- the command line ---------------------------------------------------------------------------------------------


def save_f(path: Path, f: Classifier | None = None, recipe: Recipe = RECIPE) -> Path:
    names = load_dataset(recipe.dataset.name, "validation", recipe.dataset).class_names
    return save_model(path, f or make_f(), "classifier", recipe=recipe, class_names=names)


def test_the_spelling_of_the_earlier_system_is_understood(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    f = save_f(tmp_path / "f.safetensors")
    small = [part for key in ("train", "validation", "test") for part in ("--set", f"dataset.{key}=8")]
    answer = Answer(
        "train", "diffmask", "--num_epochs", 1, "--sample_images", 1, "--log_every_n_steps", 5, "--from_pretrained", f,
        "--dataset", "toy", "--alpha", 5, "--lr", 1e-4, "--eps", 0.2, "--no_placeholder", "--lr_placeholder", 0.01,
        "--lr_alpha", 0.1, "--mul_activation", 10, "--add_activation", 6, "--weighted_layer_distribution",
        "--batch_size", 4, "--add_noise", "--add_rotation", "--add_blur", "--num_workers", 1, "--class_idx", 3,
        "--grid_size", 3, "--base_model", "ViT", "--enable_progress_bar", "--seed", 123, "--device", "cpu", *small,
    )  # fmt: skip
    (path,) = answer.went_well().out.split()
    recipe = load_model(Path(path), "diffmask").recipe
    assert recipe["diffmask"] | {"alpha": 5, "learning_rate": 1e-4, "placeholder": "zeros"} == recipe["diffmask"]
    assert recipe["diffmask"] | {"weighted_layer_distribution": True, "add_activation": 6} == recipe["diffmask"]
    assert recipe["classifier"] | {"noise": 1, "rotation": 20, "blur": 2} == recipe["classifier"]
    assert recipe["seed"] == 123 and recipe["dataset"]["name"] == "toy-count"


def test_networks_that_are_no_plain_vit_are_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    f = save_f(tmp_path / "f.safetensors", Classifier("viscoin_resnet10", 10, 48))
    small = [part for key in ("train", "validation", "test") for part in ("--set", f"dataset.{key}=8")]
    answer = Answer("train", "diffmask", "--dataset", "toy-count", "--classifier", f, "--device", "cpu", *small)
    answer.refused("viscoin_resnet10", "a ResNet has no tokens", "viscoin_vit_patch8")
    Answer("train", "diffmask", "--base-model", "ConvNeXt").refused("--base-model", "ConvNeXt", "ViT")
    assert not list(tmp_path.glob("runs/*"))


def test_it_trains_on_a_folder_of_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos = write_images(tmp_path / "photos", {"a": 20, "b": 20}, 32)
    settings = ["--set", "dataset.resolution=32", "--set", "diffmask.log_every_n_steps=50"]
    f = Classifier("viscoin_vit_patch8", 2, 32)
    recipe = load_recipe("folder", {"dataset.name": str(photos), "dataset.resolution": 32})
    path = save_f(tmp_path / "f.safetensors", f, recipe)
    answer = Answer(
        "train", "diffmask", "--dataset", photos, "--classifier", path, "--epochs", 1, "--device", "cpu", *settings
    )
    loaded = load_model(Path(answer.went_well().out.strip()), "diffmask")
    assert loaded.class_names == ["a", "b"] and isinstance(loaded.model, DiffMask)
