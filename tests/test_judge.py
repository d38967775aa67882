"""The judge: its network, its training on attributes of real images, and how tests find it."""

import json
import logging

import numpy as np
import pytest
import torch
from tiny_models import Answer, tiny_recipe, write_images, write_models

from viscoin.config import DatasetConfig
from viscoin.datasets import load_dataset
from viscoin.inference.loading import find_judge
from viscoin.kinds import CHAIN, TRAINED
from viscoin.models.files import ASSETS, load_model, save_model
from viscoin.models.judge import Judge
from viscoin.runs.run import Run
from viscoin.statistics.measures import auroc
from viscoin.training.data import StepBatches
from viscoin.training.judge import Attributed, JudgeTask, spoiled, train_judge
from viscoin.training.runtime import Runtime, make_fabric, seed_step

HERE = Runtime("cpu", "32-true")


@pytest.mark.parametrize(("resolution", "stages"), [(8, 1), (16, 1), (32, 2), (64, 3), (100, 3), (256, 5)])
def test_the_body_ends_near_eight_pixels(resolution, stages):
    judge = Judge(["a", "b"], resolution).eval()
    assert len(judge.body) == 6 * stages
    assert judge(torch.zeros(2, 3, resolution, resolution)).shape == (2, 2)


def test_train_all_and_sweeps_leave_it_out():
    assert "judge" in TRAINED and CHAIN == ("classifier", "gan", "viscoin")


def test_labels_are_the_attributes_of_the_images():
    recipe = tiny_recipe()
    train = load_dataset("birds", "train", recipe.dataset)
    images, labels = Attributed(train).batch(np.array([5, 2]))
    assert torch.equal(images, train.batch([5, 2])[0])
    assert labels.tolist() == train.attributes[[5, 2]].astype(float).tolist()


def test_a_share_of_the_images_is_blurred_and_made_noisy():
    torch.manual_seed(0)
    images = torch.rand(400, 3, 8, 8)
    assert torch.equal(spoiled(images, 0, 0), images)
    blurred = spoiled(images, 0.3, 0)
    changed = (blurred != images).flatten(1).any(1)
    assert 0.2 < changed.float().mean() < 0.4
    assert blurred[changed].std() < 0.7 * images[changed].std()
    assert 0.15 < (spoiled(images, 0, 0.2) != images).flatten(1).any(1).float().mean() < 0.25


def test_it_learns_attributes_and_its_file_reads_them_as_well(tmp_path):
    recipe = tiny_recipe(dataset__train=256, judge__epochs=4, judge__batch_size=32, judge__learning_rate=0.01)
    path = train_judge(recipe, Run.create("judge", recipe, tmp_path / "run"), HERE)
    loaded = load_model(path, "judge")
    validation = load_dataset("birds", "validation", recipe.dataset)
    with torch.inference_mode():
        logits = loaded.model(validation.batch(range(len(validation)))[0]).numpy()
    areas = np.diagonal(auroc(logits, validation.attributes))
    assert loaded.metadata["scores"]["validation.auroc"] == pytest.approx(np.nanmean(areas), abs=1e-6)
    assert np.nanmean(areas) > 0.75
    assert loaded.model.attributes == list(validation.attribute_names) and loaded.model.resolution == 32


def test_a_resumed_training_repeats_the_steps():
    recipe = tiny_recipe(judge__batch_size=16)
    fabric, validation = make_fabric(HERE), load_dataset("birds", "validation", recipe.dataset)
    batches = StepBatches(Attributed(load_dataset("birds", "train", recipe.dataset)), 16, 0, True)

    def task() -> JudgeTask:
        torch.manual_seed(0)
        return JudgeTask(Judge(validation.attribute_names, 32), recipe.judge, fabric, validation, 4)

    def go(task: JudgeTask, steps: range) -> None:
        for step in steps:
            seed_step(0, step)
            task.step(*batches(step), step)

    whole, first, second = task(), task(), task()
    go(whole, range(4))
    go(first, range(2))
    second.load_state_dict(first.state_dict())
    go(second, range(2, 4))
    for a, b in zip(whole.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_dataset_without_attributes_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_images(tmp_path / "folder", {"a": 10, "b": 10}, 32)
    answer = Answer("train", "judge", "--dataset", folder, "--device", "cpu", "--set", "dataset.resolution=32")
    answer.refused("--dataset", "it has no attributes that a judge could learn", "birds")
    assert not list(tmp_path.glob("runs/*"))


# --- how tests find it ----------------------------------------------------------------------------------------------


def judge_file(path, attributes=None, resolution=32):
    recipe = tiny_recipe()
    data = load_dataset("birds", "validation", recipe.dataset)
    judge = Judge(attributes or data.attribute_names, resolution)
    return save_model(path, judge, "judge", recipe=recipe, class_names=data.class_names)


def test_a_judge_is_found_where_it_reads_these_images(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    recipe = tiny_recipe()
    data = load_dataset("birds", "validation", recipe.dataset)
    found = find_judge(judge_file(tmp_path / "judge.safetensors"), data)
    assert found is not None and found.model.attributes == list(data.attribute_names)
    with pytest.raises(ValueError, match=r"made for 64 px images, not for 32 px; train one"):
        find_judge(judge_file(tmp_path / "large.safetensors", resolution=64), data)
    with pytest.raises(ValueError, match=r"it reads 2 attributes that are not those of dataset 'birds'"):
        find_judge(judge_file(tmp_path / "other.safetensors", ["a", "b"]), data)
    with pytest.raises(ValueError, match="there is no model file"):
        find_judge(tmp_path / "none.safetensors", data)
    with caplog.at_level(logging.WARNING):
        assert find_judge(None, data) is None  # the shipped one reads 64 px
    plain = load_dataset(str(images_of(tmp_path)), "validation", tiny_recipe().dataset)
    assert find_judge(None, plain) is None
    with pytest.raises(ValueError, match="has no attributes to be seen; omit it"):
        find_judge(tmp_path / "judge.safetensors", plain)


def images_of(folder):
    return write_images(folder / "images", {"a": 10, "b": 10}, 32)


def test_test_viscoin_asks_the_judge_that_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models = write_models(tmp_path)
    judge = judge_file(tmp_path / "judge.safetensors")
    answer = Answer(
        "test", "viscoin", "--checkpoints", models["viscoin"], "--measures", "drawing", "--fast", "--judge", judge,
        "--device", "cpu", "--out", "results",
    )  # fmt: skip
    answer.went_well()
    assert "judge: AUROC on real images" in answer.out and "attribute swapped" in answer.out
    names = {path.name for path in (tmp_path / "results").iterdir()}
    assert {"dose-response.png", "surgery.png"} <= names, names
    assert json.loads((tmp_path / "results" / "results.json").read_text())["judge"] == str(judge)
    Answer(
        "test", "viscoin", "--checkpoints", models["viscoin"], "--judge", tmp_path / "no.safetensors",
        "--device", "cpu",
    ).refused("there is no model file")  # fmt: skip


def test_the_shipped_judge_reads_birds_that_it_never_saw(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = ASSETS / "birds" / "judge.safetensors"
    assert path.stat().st_size < 1e6
    data = load_dataset("birds", "test", DatasetConfig(test=200))
    judge = find_judge(None, data)
    assert judge is not None
    with torch.inference_mode():
        logits = judge.model(data.batch(range(200))[0]).numpy()
    assert np.nanmean(np.diagonal(auroc(logits, data.attributes))) > 0.999
