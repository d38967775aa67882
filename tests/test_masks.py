"""Masks of folders and zips: beside the classes, or as alpha channels."""

from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image
from tiny_models import write_images

from viscoin.config import DatasetConfig
from viscoin.datasets import load_dataset
from viscoin.errors import Refused

COUNTS = {"cat": 12, "dog": 12}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def load(source: Path, split: str = "test"):
    return load_dataset(str(source), split, DatasetConfig(name=str(source), resolution=16))


def write_masks(folder: Path, size: int = 24) -> None:
    """The upper left quarter of each image."""
    mask = np.zeros((size, size), np.uint8)
    mask[: size // 2, : size // 2] = 255
    for image in sorted(folder.glob("*/*.png")):
        target = folder / "masks" / image.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(target)


@pytest.fixture
def masked(tmp_path):
    folder = write_images(tmp_path / "pets", COUNTS)
    write_masks(folder)
    return folder


def quarter(dataset) -> None:
    assert dataset.part_names == ("object",) and dataset.class_names == ["cat", "dog"]
    mask = dataset.part_masks(1)
    assert mask.shape == (1, 16, 16) and mask.dtype == bool
    assert mask[0, :8, :8].all() and mask.sum() == 64


def test_masks_beside_the_classes(masked):
    quarter(load(masked))
    assert len(load(masked, "train")) + len(load(masked, "validation")) + len(load(masked)) == 24


def test_masks_in_a_zip_are_read_when_they_are_asked_for(masked, tmp_path):
    path = tmp_path / "pets.zip"
    with ZipFile(path, "w") as archive:
        for file in sorted(masked.rglob("*.png")):
            archive.write(file, file.relative_to(masked))
    quarter(load(path))


def test_masks_of_given_splits_have_their_folders(tmp_path):
    root = tmp_path / "pets"
    for split in ("train", "test"):
        write_images(root / split, {"cat": 10, "dog": 10})
    for image in sorted(root.glob("*/*/*.png")):
        target = (root / "masks" / image.relative_to(root)).with_suffix(".gif")
        target.parent.mkdir(parents=True, exist_ok=True)
        corner = np.zeros((24, 24), np.uint8)
        corner[:12, :12] = 1  # of a palette
        Image.fromarray(corner, "P").save(target)
    quarter(load(root))


def test_a_class_called_masks_stays_a_class(tmp_path):
    folder = write_images(tmp_path / "faces", {"hats": 10, "masks": 10})
    dataset = load(folder)
    assert dataset.class_names == ["hats", "masks"] and dataset.part_names == ()
    with pytest.raises(ValueError, match="has no part masks"):
        dataset.part_masks(0)


def test_alpha_channels_are_masks(tmp_path):
    folder = write_images(tmp_path / "stamps", COUNTS)
    for image in folder.glob("*/*.png"):
        pixels = np.dstack([np.asarray(Image.open(image)), np.zeros((24, 24), np.uint8)])
        pixels[:12, :12, 3] = 255
        Image.fromarray(pixels).save(image)
    quarter(load(folder))
    one = sorted(folder.glob("dog/*.png"))
    for image in one:
        Image.open(image).convert("RGB").save(image)
    with pytest.raises(Refused, match=r"2 of 4 test images of stamps have no alpha channel \(first: .*dog"):
        load(folder).part_masks(0)


def test_missing_masks_are_counted_and_named(masked):
    for mask in (masked / "masks" / "dog").glob("*.png"):
        mask.unlink()
    with pytest.raises(Refused, match=r"2 of 4 test images of pets have no mask .*\(first: .*dog.*\); add them"):
        load(masked).part_masks(0)


def test_masks_of_another_size_are_counted_and_named(masked):
    for mask in (masked / "masks" / "cat").glob("*.png"):
        Image.open(mask).resize((20, 24)).save(mask)
    with pytest.raises(Refused, match=r"2 of 4 .* another size \(first: .*masks/cat/.*, 20x24 px for 24x24 px\)"):
        load(masked).part_masks(0)


def test_a_damaged_mask_is_named(masked):
    for mask in (masked / "masks").glob("*/*.png"):
        mask.write_bytes(mask.read_bytes()[:60])
    with pytest.raises(Refused, match=r"masks/cat/.* is no readable mask"):
        load(masked).part_masks(0)
