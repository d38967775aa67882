"""Mistakes of the user: exit code 2, one line that names option, value and remedy, and nothing half-written."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_models import Answer, set_options, tiny_recipe, write_images, write_models

from viscoin.config import DatasetConfig
from viscoin.datasets import load_dataset
from viscoin.models.files import read_file, save_model, write_file


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Every test works in an empty folder, where runs/ would appear, and without shipped models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("viscoin.models.files.ASSETS", tmp_path / "assets")
    return tmp_path


@pytest.fixture(scope="module")
def models(cache, tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


def nothing_written(folder: Path, *allowed: str) -> None:
    left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert [path for path in left if not path.startswith(allowed)] == []
    assert not list(folder.glob("runs/*"))


# --- unknown names -----------------------------------------------------------------------------------------------


def test_unknown_dataset_names_those_there_are(here):
    Answer("train", "classifier", "--dataset", "dogs").refused("'dogs'", "birds", "folder")
    Answer("test", "viscoin", "--dataset", "dogs").refused("'dogs'", "birds")
    nothing_written(here)


def test_unknown_recipe_names_those_there_are(here):
    Answer("train", "classifier", "--recipe", "dogs").refused("'dogs'", "birds")
    nothing_written(here)


@pytest.mark.parametrize("command", [("test", "classifier"), ("to-pickle",), ("test", "gan")])
def test_missing_model_file_is_named(here, command):
    Answer(*command, "--checkpoints", "nowhere.safetensors").refused("nowhere.safetensors")
    nothing_written(here)


def test_no_model_of_a_dataset_says_how_to_get_one(here):
    data = write_images(here / "data", {"a": 10, "b": 10})
    Answer("test", "classifier", "--dataset", data).refused("classifier", "data", "train classifier --dataset")
    nothing_written(here, "data")


def test_unfinished_run_folder(here):
    (here / "run").mkdir()
    Answer("amplify", "--viscoin-pickle-path", "run", "--concept-top-k", 2).refused("run", "model.safetensors")


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        (["--set", "classifier.optimizer=magic"], ["classifier.optimizer", "'magic'", "'adam'", "'sgd'"]),
        (["--set", "classifier.epohcs=3"], ["classifier.epohcs", "did you mean 'epochs'"]),
        (["--set", "classifier.epochs"], ["--set", "--set classifier.epochs", "KEY=VALUE"]),
        (["--set", "classifier.epochs=0"], ["classifier.epochs", "0"]),
        (["--learning-rate", "-1"], ["classifier.learning_rate", "-1"]),
        (["--set", "classifier.backbone=resnet5000"], ["'resnet5000'", "did you mean"]),
        (["--device", "tpu"], ["--device", "--device tpu", "cpu"]),
        (["--precision", "8"], ["--precision", "--precision 8", "bf16-mixed"]),
    ],
)
def test_unknown_option_values(here, options, texts):
    Answer("train", "classifier", *set_options(), *options).refused(*texts)
    nothing_written(here)


def test_values_out_of_an_options_range(here):
    Answer("train", "viscoin", "--steps", -1).refused("--steps", "0")
    Answer("train", "viscoin", "--steps", "many").refused("--steps")
    Answer("train", "viscoin", "--stpes", 5).refused("--stpes")
    nothing_written(here)


# --- folders of images -------------------------------------------------------------------------------------------


def train_on(data: Path, *options: object) -> Answer:
    small = ["--set", "dataset.resolution=32", "--epochs", 1, "--batch-size", 8]
    return Answer("train", "classifier", "--dataset", data, *small, *options)


def test_empty_folder(here):
    (here / "data").mkdir()
    train_on(here / "data").refused("data", "no class folders", "<class>")
    nothing_written(here)


def test_one_class(here):
    train_on(write_images(here / "data", {"only": 10})).refused("'only'", "at least two")
    nothing_written(here, "data")


def test_class_without_images(here):
    data = write_images(here / "data", {"a": 10, "b": 0})
    train_on(data).refused("'b'", "no readable images", str(data / "b"))
    nothing_written(here, "data")


def test_test_folder_missing(here):
    data = write_images(here / "data" / "train", {"a": 10, "b": 10}).parent
    train_on(data).refused("'train'", "'test'")
    nothing_written(here, "data")


@pytest.fixture
def spoilt(here):
    """Fixed splits; a truncated PNG, a text named .png and a picture of 4 px among the training images."""
    data = here / "data"
    for split in ("train", "validation", "test"):
        write_images(data / split, {"a": 10, "b": 10})
    truncated, text, tiny = (data / "train" / name for name in ("a/00.png", "b/00.png", "b/01.png"))
    truncated.write_bytes(truncated.read_bytes()[:200])
    text.write_text("this is no picture")
    Image.new("RGB", (4, 4)).save(tiny)
    return data, [str(truncated), str(text), str(tiny)]


def test_unreadable_images_stop_the_run_before_training(here, spoilt):
    data, bad = spoilt
    train_on(data).refused("3 of 60 files", *bad, "4x4 px", "--skip-bad-files")
    nothing_written(here, "data")


def test_unreadable_images_of_other_splits_stop_the_training_too(here, spoilt):
    data, bad = spoilt
    late = data / "test" / "a" / "03.png"
    late.write_bytes(b"")
    train_on(data).refused("4 of 60 files", *bad, str(late))
    nothing_written(here, "data")


def test_skip_bad_files_says_how_many(here, spoilt):
    data, bad = spoilt
    answer = train_on(data, "--skip-bad-files", "--out", "run").went_well()
    assert "left out 3 of 60 files" in answer.err and bad[0] in answer.err
    config = DatasetConfig(name=str(data), resolution=32, skip_bad_files=True)
    assert len(load_dataset(str(data), "train", config)) == 17


def test_any_kind_of_picture_loads(here):
    """Grey, palette, transparent, 16-bit and CMYK pictures become the same RGB grey (128) within rounding."""
    kinds = {
        "grey.png": Image.new("L", (20, 20), 128),
        "palette.png": Image.new("RGB", (20, 20), (128, 128, 128)).convert("P", palette=Image.Palette.ADAPTIVE),
        "rgba.png": Image.new("RGBA", (20, 20), (128, 128, 128, 255)),
        "grey-alpha.png": Image.new("LA", (20, 20), (128, 255)),
        "sixteen.png": Image.fromarray(np.full((20, 20), 128 * 257, dtype=np.uint16)),
        "cmyk.jpg": Image.new("CMYK", (20, 20), (0, 0, 0, 127)),
        "colour.jpg": Image.new("RGB", (20, 20), (128, 128, 128)),
    }
    for name in ("a", "b"):
        for split in ("train", "test", "validation"):
            (here / "data" / split / name).mkdir(parents=True)
            for file, image in kinds.items():
                image.save(here / "data" / split / name / file)
    test = load_dataset(str(here / "data"), "test", DatasetConfig(resolution=32))
    assert len(test) == 2 * len(kinds)
    assert np.abs(np.asarray(test.pixels, dtype=int) - 128).max() <= 4
    train_on(here / "data").went_well()


def test_transparent_pixels_become_white(here):
    for name in ("a", "b"):
        for split in ("train", "test"):
            (here / "data" / split / name).mkdir(parents=True)
            for i in range(3):
                Image.new("RGBA", (20, 20), (10, 10, 10, 0)).save(here / "data" / split / name / f"{i}.png")
    assert np.asarray(load_dataset(str(here / "data"), "test", DatasetConfig(resolution=32)).pixels).min() == 255


def test_images_too_small_for_the_classifier(here):
    data = write_images(here / "data", {"a": 10, "b": 10})
    options = ["--set", "dataset.resolution=16", "--set", "classifier.backbone=resnet50"]
    answer = Answer("train", "classifier", "--dataset", data, *options, "--set", "classifier.pretrained=false")
    answer.refused("16 px", "resnet50", "dataset.resolution")
    nothing_written(here, "data")


# --- model files -------------------------------------------------------------------------------------------------


def test_model_of_another_kind(here, models):
    answer = Answer("test", "classifier", "--checkpoints", models["viscoin"], *["--dataset", "birds"])
    answer.refused(str(models["viscoin"]), "viscoin model", "classifier model is needed")
    Answer("amplify", "--viscoin-pickle-path", models["gan"], "--concept-top-k", 2).refused(
        "gan model", "viscoin model"
    )
    Answer(
        "train", "viscoin", *set_options(), "--gan", models["classifier"], "--classifier", models["classifier"]
    ).refused("classifier model", "gan model is needed")
    nothing_written(here)


def test_model_of_another_architecture(here, models):
    tensors, metadata = read_file(models["viscoin"])
    metadata["architecture"]["n_concepts"] += 1
    write_file(here / "odd.safetensors", tensors, metadata)
    answer = Answer("concept-heatmaps", "--viscoin-pickle-path", "odd.safetensors")
    answer.refused("odd.safetensors", "do not fit its architecture")
    nothing_written(here, "odd")


def test_models_of_another_resolution(here, models):
    options = [*set_options(), "--set", "dataset.resolution=64"]
    answer = Answer("train", "viscoin", *options, "--classifier", models["classifier"], "--gan", models["gan"])
    answer.refused("--classifier", "32 px", "64 px", "dataset.resolution")
    nothing_written(here)


def test_models_of_another_class_count(here, models):
    data = write_images(here / "data", {"a": 10, "b": 10, "c": 10})
    for command in (["test", "classifier"], ["test", "viscoin"], ["concepts"], ["concept-heatmaps"]):
        kind = "classifier" if "classifier" in command else "viscoin"
        answer = Answer(*command, "--checkpoints", models[kind], "--dataset", data)
        answer.refused(str(models[kind]), "4 classes", "3 classes", "a, b, c", "--dataset")
    parts = ["--classifier", models["classifier"], "--gan", models["gan"]]
    Answer("train", "viscoin", *set_options(), "--dataset", data, *parts).refused(
        "--classifier", "4 classes", "3 classes"
    )
    nothing_written(here, "data")


def test_classes_of_other_names(here, models):
    data = write_images(here / "data", {name: 10 for name in "abcd"})
    Answer("test", "classifier", "--checkpoints", models["classifier"], "--dataset", data).refused("a, b, c, d")
    nothing_written(here, "data")


@pytest.mark.parametrize("suffix", [".safetensors", ".pkl"])
def test_truncated_model_files(here, models, suffix):
    whole = here / f"whole{suffix}"
    write_file(whole, *read_file(models["viscoin"]))
    broken = here / f"broken{suffix}"
    broken.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    Answer("concepts", "--viscoin-pickle-path", broken).refused(str(broken), "damaged")
    nothing_written(here, "whole", "broken")


def test_files_that_are_no_models(here):
    (here / "text.safetensors").write_text("hello")
    Answer("test", "classifier", "--checkpoints", "text.safetensors").refused("text.safetensors")
    save_file({"a": torch.zeros(1)}, here / "other.safetensors")
    Answer("test", "classifier", "--checkpoints", "other.safetensors").refused(
        "other.safetensors", "not written by viscoin"
    )
    (here / "text.pkl").write_text("hello")
    Answer("test", "classifier", "--checkpoints", "text.pkl").refused("text.pkl")


def test_pickle_with_code_is_not_run(here):
    class Evil:
        def __reduce__(self):
            return (open, (str(here / "written-by-the-pickle"), "w"))

    torch.save(Evil(), here / "evil.pkl")
    Answer("test", "classifier", "--checkpoints", "evil.pkl").refused("evil.pkl")
    assert not (here / "written-by-the-pickle").exists()


def test_untrained_generator(here, models):
    recipe = tiny_recipe()
    from viscoin.training.gan import build_generator

    path = here / "fresh.safetensors"
    save_model(path, build_generator(recipe.gan, 32), "gan", recipe=recipe, class_names=list("abcd"))
    answer = Answer("train", "viscoin", *set_options(), "--classifier", models["classifier"], "--gan", path)
    answer.refused("mean style", "trained generator")
    nothing_written(here, "fresh")


# --- places to write ---------------------------------------------------------------------------------------------


def test_output_folder_not_writable(here, models):
    (here / "file").write_text("")
    blocked = here / "file" / "run"
    Answer("train", "classifier", *set_options(), "--out", blocked).refused("--out", str(blocked), "another folder")
    for command in (
        ["test", "classifier", "--checkpoints", models["classifier"]],
        ["concepts", "--viscoin-pickle-path", models["viscoin"]],
        ["amplify", "--viscoin-pickle-path", models["viscoin"], "--concept-top-k", 1],
    ):
        Answer(*command, "--out", blocked).refused("--out", str(blocked), "another folder")
    Answer("to-pickle", "--checkpoints", models["viscoin"], "--output", blocked).refused(str(blocked), "another path")
    nothing_written(here, "file")


def test_folder_of_another_run(here):
    Answer("train", "classifier", *set_options(), "--out", "run").went_well()
    before = (here / "run" / "model.safetensors").read_bytes()
    again = Answer("train", "classifier", *set_options(), "--out", "run").went_well()
    assert again.out.strip() == "run/model.safetensors" and "all 4 steps of run are done" in again.err
    other = [*set_options(), "--out", "run", "--seed", 5]
    Answer("train", "classifier", *other).refused("seed: 0 -> 5", "--allow-changes")
    Answer("train", "gan", *set_options(), "--out", "run", "--resume").refused("classifier run", "not a gan run")
    Answer("train", "classifier", *set_options(), "--out", "run", "--resume", "--seed", 5).refused("seed: 0 -> 5")
    assert (here / "run" / "model.safetensors").read_bytes() == before


def test_resume_without_a_run(here):
    Answer("train", "classifier", "--resume").refused("--resume", "no classifier run")
    Answer("train", "viscoin", "--resume", "--out", "nowhere").refused("--resume", "nowhere")


# --- choosing concepts and images --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        ([], ["--concept-threshold", "--concept-top-k"]),
        (["--concept-top-k", 2, "--concept-threshold", 0.2], ["--concept-threshold", "--concept-top-k", "exactly one"]),
        (["--concept-top-k", 7], ["--concept-top-k 7", "6 concepts"]),
        (["--concept-threshold", 1.5], ["--concept-threshold 1.5"]),
        (["--concept-indices", "6"], ["--concept-indices 6", "6 concepts"]),
        (["--concept-indices", "1,two"], ["--concept-indices", "--concept-indices two"]),
        (["--concept-top-k", 2, "--image-indices", "3,40"], ["--image-indices 40", "40 test images"]),
        (["--concept-top-k", 2, "--image-indices", "-1"], ["--image-indices -1"]),
    ],
)
def test_choice_of_concepts_and_images(here, models, options, texts):
    Answer("amplify", "--viscoin-pickle-path", models["viscoin"], *options).refused(*texts)
    nothing_written(here)


def test_heatmap_indices_out_of_range(here, models):
    command = ["concept-heatmaps", "--viscoin-pickle-path", models["viscoin"]]
    Answer(*command, "--concept-indices", "6").refused("--concept-indices 6", "6 concepts")
    Answer(*command, "--image-indices", "40").refused("--image-indices 40")
    nothing_written(here)


# --- losses that are no numbers ----------------------------------------------------------------------------------


def test_nan_in_a_loss_stops_and_keeps_the_last_checkpoint(here, models, monkeypatch):
    from viscoin.training import losses

    calls = []
    original = losses.sparsity

    def spoiled(*args):
        calls.append(1)
        return original(*args) * (float("nan") if len(calls) > 3 else 1)

    monkeypatch.setattr(losses, "sparsity", spoiled)
    parts = ["--classifier", models["classifier"], "--gan", models["gan"]]
    options = [*set_options(), "--set", "viscoin.warmup_steps=0", "--steps", 6]
    Answer("train", "viscoin", *options, *parts, "--out", "run").refused("step 3", "sparsity = nan", "--resume")
    assert not (here / "run" / "model.safetensors").exists()
    steps = [json.loads(line)["step"] for line in (here / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 2  # the evaluation before the bad step
    state = torch.load(here / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert state["step"] == 2
    assert all(torch.isfinite(value).all() for value in state["task"]["ensemble"].values())
    monkeypatch.setattr(losses, "sparsity", original)
    Answer("train", "viscoin", *options, *parts, "--out", "run", "--resume").went_well()
