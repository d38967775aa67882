"""Folders that hold a published dataset are read as that dataset, by whatever way they are given."""

import logging
from pathlib import Path

import pytest
from test_cub import write_tree

from viscoin.config import DatasetConfig
from viscoin.datasets import dataset_of_runs, load_dataset, locate_dataset
from viscoin.datasets.layouts import known_layout
from viscoin.datasets.prepare import prepare_dataset
from viscoin.training.pipeline import RunOptions, resolve_recipe

PUBLISHED = {
    "cub": ("images.txt", "image_class_labels.txt", "images/001.Albatross/1.jpg", "parts/parts.txt"),
    "celeba_hq": ("CelebAMask-HQ-attribute-anno.txt", "CelebA-HQ-img/0.jpg"),
    "funnybirds": ("parts.json", "classes.json", "dataset_train.json", "train/0/000000.png", "test/0/000000.png"),
    "stanford_cars": ("cars_train/00001.jpg", "cars_test/00001.jpg", "devkit/cars_meta.mat"),
    "pneumonia": tuple(f"{part}/{name}/1.jpeg" for part in ("train", "test") for name in ("NORMAL", "PNEUMONIA")),
    "cifar10": ("cifar-10-batches-py/batches.meta", "cifar-10-batches-py/data_batch_1"),
    "cifar100": ("cifar-100-python/meta", "cifar-100-python/train", "cifar-100-python/test"),
    "mnist": ("MNIST/raw/train-images-idx3-ubyte",),
}
OTHERS = {
    "class folders": ("cat/1.png", "dog/1.png"),
    "splits": ("train/cat/1.png", "test/cat/1.png", "meta"),
    "two published ones": (
        "CUB/images.txt",
        "CUB/image_class_labels.txt",
        "CUB/images/a/1.png",
        "cars/cars_train/1.png",
    ),
    "another set in files of the same names": ("FashionMNIST/raw/train-images-idx3-ubyte",),
    "a file": (),
}


def write(root: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_datasets_are_known(here, name):
    write(here / "data" / "around", PUBLISHED[name])
    (here / "data" / "__MACOSX").mkdir()
    (here / "data" / "attributes.txt").touch()
    assert known_layout(here / "data") == known_layout(here / "data" / "around") == name


def test_the_other_layout_of_cars_is_known(here):
    assert known_layout(write(here / "data", ("car_ims/000001.jpg", "cars_annos.mat"))) == "stanford_cars"


@pytest.mark.parametrize("name", OTHERS)
def test_other_folders_are_not(here, name):
    assert known_layout(write(here / "data", OTHERS[name])) is None


def test_a_folder_means_its_dataset_wherever_it_is_given(here, caplog):
    root = write_tree(here / "data" / "CUB_200_2011")
    for given in ({"dataset": str(root)}, {"dataset_path": f"{root}/"}, {"dataset": "cub", "dataset_path": str(root)}):
        with caplog.at_level(logging.INFO):
            config = resolve_recipe("classifier", RunOptions(**given)).dataset
        assert (config.name, Path(config.path or "")) == ("cub", root)
    assert f"{root} holds the files of dataset cub, and is read as that" in caplog.text
    assert locate_dataset(str(root), None) == ("cub", str(root)) and locate_dataset("cub", None) == ("cub", None)
    assert dataset_of_runs(str(root)) == "cub" and dataset_of_runs("photos/") == "photos"
    done = prepare_dataset(str(root.parent), here / "x.zip", 32)
    assert done.class_names == load_dataset("cub", "test", DatasetConfig(name="cub", path=str(root))).class_names


def test_reading_its_class_folders_is_still_possible_but_not_silent(here, caplog):
    root = write_tree(here / "data" / "CUB_200_2011")
    part = load_dataset(str(root), "train", DatasetConfig(name=str(root), resolution=16))
    assert part.class_names[0].startswith("001.") and "give `dataset` cub and `dataset_path`" in caplog.text
