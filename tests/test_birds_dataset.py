"""The birds as a dataset: the format of all datasets, its truth, and pictures that are drawn once."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from viscoin.config import DatasetConfig
from viscoin.datasets import load_dataset
from viscoin.datasets.base import cache_folder
from viscoin.datasets.birds import PARTS, attribute_names, class_names, image_attributes, render
from viscoin.datasets.birds import dataset as module
from viscoin.datasets.birds.dataset import COUNTS, BirdsDataset

SMALL = {"resolution": 32, "classes": 4, "train": 30, "validation": 12, "test": 22}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def load(split: str = "train", **changes) -> BirdsDataset:
    dataset = load_dataset("birds", split, DatasetConfig(**SMALL | changes))
    assert isinstance(dataset, BirdsDataset)
    return dataset


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_format_of_all_datasets(split):
    dataset = load(split)
    assert (dataset.name, dataset.split, dataset.resolution, len(dataset)) == ("birds", split, 32, SMALL[split])
    assert dataset.class_names == class_names(4)
    images, labels = dataset.batch(range(len(dataset)))
    assert images.dtype == torch.float32 and images.shape == (SMALL[split], 3, 32, 32)
    assert -1 <= images.min() < -0.5 and 0.5 < images.max() <= 1
    assert labels.dtype == torch.int64 and (labels.numpy() == dataset.labels).all()
    counts = np.bincount(dataset.labels, minlength=4)
    assert len(counts) == 4 and counts.max() - counts.min() <= 1


def test_pictures_and_labels_are_those_of_the_items():
    dataset = load()
    for index in (0, 7, 29):
        bird, scene, label = dataset.item(index)
        assert (dataset.pixels[index] == render(bird, scene, 32)[0]).all()
        assert dataset.labels[index] == label


def test_truth_is_that_of_the_items():
    dataset = load("test")
    assert dataset.has_truth
    assert list(dataset.part_names) == list(PARTS) and list(dataset.attribute_names) == attribute_names()
    assert dataset.attributes.shape == (22, len(attribute_names())) and dataset.attributes.dtype == bool
    for index in (0, 13):
        bird, scene, _ = dataset.item(index)
        assert (dataset.attributes[index] == image_attributes(bird, scene)).all()
        masks = dataset.part_masks(index)
        assert masks.shape == (len(PARTS), 32, 32) and masks.dtype == bool and masks.any()
        assert (masks == render(bird, scene, 32)[1]).all()


def test_splits_and_seeds_show_different_birds():
    same = {"train": 12, "validation": 12, "test": 12}
    parts = [load("train", **same), load("validation", **same), load("test", **same), load("train", **same, seed=1)]
    firsts = [part.pixels.astype(int) for part in parts]
    for i, one in enumerate(firsts):
        for other in firsts[:i]:
            assert (np.abs(one - other).mean((1, 2, 3)) > 1).all()


def test_fewer_images_are_the_first_ones():
    assert (load(train=10).pixels == load().pixels[:10]).all()


def test_default_counts_and_classes():
    assert COUNTS == {"train": 40_000, "validation": 1_000, "test": 2_000}
    assert len(load("test", classes=None).class_names) == 1000


def test_pictures_are_drawn_once(monkeypatch):
    before = load().pixels
    monkeypatch.setattr(module, "render", None)
    assert (load().pixels == before).all()


@pytest.mark.parametrize("change", [{"train": 31}, {"resolution": 16}, {"classes": 5}, {"seed": 2}])
def test_other_settings_are_drawn_anew(monkeypatch, change):
    load()

    def fail(*arguments):
        raise RuntimeError("drawn")

    monkeypatch.setattr(module, "render", fail)
    with pytest.raises(RuntimeError, match="drawn"):
        load(**change)


def test_a_new_renderer_draws_anew(monkeypatch):
    before = load()
    monkeypatch.setattr(module, "_renderer_version", lambda: "newer")
    monkeypatch.setattr(module, "render", lambda *_: (np.full((32, 32, 3), 9, np.uint8), None))
    assert (load().pixels == 9).all()
    assert not (before.pixels == 9).all()


def test_version_follows_the_drawing_code(tmp_path, monkeypatch):
    folder = Path(module.__file__).parent
    for path in folder.glob("*.py"):
        (tmp_path / path.name).write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    version = module._renderer_version()
    monkeypatch.setattr(module, "__file__", str(tmp_path / "dataset.py"))
    assert module._renderer_version() == version  # line ends do not matter
    (tmp_path / "dataset.py").write_text("")
    assert module._renderer_version() == version  # nor does this file
    (tmp_path / "shapes.py").write_text("")
    assert module._renderer_version() != version


def test_interrupted_drawing_leaves_nothing(monkeypatch):
    def fail(bird, scene, size):
        raise KeyboardInterrupt

    before = sorted(cache_folder().rglob("*"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "render", fail)
        load(seed=77)
    assert sorted(cache_folder().rglob("*")) == before
    assert len(load(seed=77)) == 30


@pytest.mark.slow
def test_many_pictures_in_a_script_without_main_guard(tmp_path):
    """Worker processes would import such a script again, and those of a script from standard input cannot at all."""
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from viscoin.config import DatasetConfig
from viscoin.datasets import load_dataset
print(len(load_dataset("birds", "train", DatasetConfig(resolution=16, train=1100, seed=len(sys.argv[0])))))
"""
    (tmp_path / "script.py").write_text(script)
    for argument in ("script.py", "-"):
        command = [sys.executable, argument]
        answer = subprocess.run(command, input=script, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.split() == ["1100"]
