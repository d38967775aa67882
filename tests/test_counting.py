"""toy-count and cifar10-qa: grids that depend on seed and index alone, and whose truth is that of their pixels."""

import numpy as np
import pytest
from test_torchvision_sets import write_cifar
from tiny_models import Answer
from torchvision.datasets import CIFAR10

from viscoin.config import DatasetConfig
from viscoin.datasets import load_dataset, locate_dataset
from viscoin.datasets.counting import CELL, RGB, CountingDataset
from viscoin.errors import Refused
from viscoin.training.pipeline import RunOptions, resolve_recipe

FEW = {"train": 300, "validation": 20, "test": 20}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def toy(split: str = "train", **changes) -> CountingDataset:
    return load_dataset("toy-count", split, DatasetConfig(**{"name": "toy-count", "resolution": 48, **FEW, **changes}))


def cells(dataset: CountingDataset) -> np.ndarray:
    """The colour of each cell, (N, g, g, 3), if each has but one."""
    found = dataset.pixels[:, ::CELL, ::CELL]
    assert (found.repeat(CELL, 1).repeat(CELL, 2) == dataset.pixels).all()
    return found


@pytest.mark.parametrize(("counted", "colour"), [(3, (255, 0, 0)), (0, (0, 0, 255)), (5, (255, 255, 0))])
def test_the_class_is_the_number_of_cells_of_the_counted_colour(counted, colour):
    data = toy(counted_class=counted)
    found = (cells(data) == colour).all(-1)
    assert (found.sum((1, 2)) == data.labels).all() and (found == data.counted).all()
    assert data.class_names == [str(number) for number in range(10)]
    assert {tuple(c) for c in cells(data).reshape(-1, 3)} == {tuple(c) for c in RGB}


def test_counts_are_uniform_and_places_are_shuffled():
    data = toy(train=1200)
    shares = np.bincount(data.labels, minlength=10) / len(data)
    assert shares == pytest.approx(np.full(10, 0.1), abs=0.03)
    assert data.counted.mean(0) == pytest.approx(np.full((3, 3), 0.5), abs=0.05)


def test_truth_is_the_counted_cells_and_recolouring_them_alone_changes_the_class():
    data = toy(counted_class=3)
    for index in (0, 5):
        (mask,) = data.part_masks(index)
        assert mask.shape == (48, 48) and (mask == (data.pixels[index] == (255, 0, 0)).all(-1)).all()
    empty = int(np.flatnonzero(data.labels == 0)[0])
    assert not data.part_masks(empty).any() and data.part_names == ("counted",)


def test_an_image_depends_on_seed_split_and_index_alone():
    many, few = toy(), toy(train=7)
    assert (many.pixels[:7] == few.pixels).all() and (many.labels[:7] == few.labels).all()
    assert not (toy(seed=1).pixels == many.pixels).all() and not (toy("test").pixels[:7] == few.pixels).all()


def test_other_grids():
    data = toy(grid_size=2, resolution=32)
    assert len(data.class_names) == 5 and data.part_masks(0).shape == (1, 32, 32)
    with pytest.raises(Refused, match=r"48: toy-count draws a grid of 4 x 4 cells of 16 px; set dataset.resolution=64"):
        toy(grid_size=4)
    with pytest.raises(Refused, match=r"counted_class 6: toy-count has no such class; choose from 0 \(blue\), "):
        toy(counted_class=6)


def test_names_of_the_earlier_system_are_understood(here):
    assert locate_dataset("toy", None) == ("toy-count", None)
    assert locate_dataset("CIFAR10_QA", "files") == ("cifar10-qa", "files")
    (here / "toy").mkdir()
    assert locate_dataset("toy", None) == ("toy", None)
    recipe = resolve_recipe("classifier", RunOptions("toy-count"))
    assert (recipe.classifier.backbone, recipe.dataset.resolution) == ("viscoin_vit_patch16", 48)


def test_the_command_line_shows_it(here, monkeypatch):
    monkeypatch.setattr("viscoin.datasets.counting.COUNTS", {"toy-count": FEW})
    answer = Answer("data", "toy-count", "info").went_well()
    assert "10 classes" in answer.out and "part masks" in answer.out


# --- photographs --------------------------------------------------------------------------------------------------


@pytest.fixture
def photographs(here, monkeypatch):
    """Four of each class in each batch; the first value of a pixel is its class, the second its batch."""
    names = ["airplane", "automobile", "bird"]
    return write_cifar(here / "data" / "cifar-10-batches-py", CIFAR10, "labels", names, monkeypatch)


def qa(path, split="train", **changes) -> CountingDataset:
    settings = {"name": "cifar10-qa", "resolution": 96, "path": str(path), "counted_class": 1, **FEW, **changes}
    return load_dataset("cifar10-qa", split, DatasetConfig(**settings))


def test_the_class_is_the_number_of_photographs_of_the_counted_class(photographs):
    data = qa(photographs)
    classes = data.pixels[:, 16::32, 16::32, 0]
    assert ((classes == 1) == data.counted).all() and ((classes == 1).sum((1, 2)) == data.labels).all()
    assert set(np.unique(classes)) == {0, 1, 2}
    mask = data.part_masks(3)
    assert mask.shape == (1, 96, 96) and (mask[0] == (data.pixels[3, ..., 0] == 1)).all()


def test_photographs_stay_in_their_split(photographs):
    assert (qa(photographs, "test").pixels[..., 1] == 100).all()
    assert not (qa(photographs, "validation").pixels[..., 1] == 100).any()


def test_a_grid_is_the_same_however_many_there_are_and_at_any_size(photographs):
    assert (qa(photographs).pixels[:5] == qa(photographs, train=5).pixels).all()
    large = qa(photographs, resolution=224, train=5)
    assert large.pixels.shape == (5, 224, 224, 3) and (large.labels == qa(photographs, train=5).labels).all()
    assert large.part_masks(0)[0].mean() == pytest.approx(large.labels[0] / 9, abs=0.02)


def test_it_is_enlarged_by_its_recipe_and_needs_a_class_that_exists(photographs):
    recipe = resolve_recipe("classifier", RunOptions("cifar10-qa"))
    assert recipe.dataset.resolution == 224
    with pytest.raises(Refused, match=r"counted_class 3: cifar10-qa has no such class; choose from 0 \(airplane\), "):
        qa(photographs, counted_class=3)
