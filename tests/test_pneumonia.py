"""Chest X-rays: classes and patients from file names, the split anew, on a tree with the published names."""

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from viscoin.config import DatasetConfig
from viscoin.datasets import ImageDataset, load_dataset
from viscoin.datasets.pneumonia import CLASS_NAMES, patient

SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kaggle"))
    return tmp_path


def write(path: Path, number: int) -> None:
    """A grey picture, which tells its number by its darkness and width."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (20 + number // 200, 18), number % 200).save(path, quality=95)


@pytest.fixture
def root(here):
    """100 images of 100 healthy children, 120 of 40 with bacteria, 60 of 30 with a virus; unevenly split."""
    root = here / "chest-xray-pneumonia" / "chest_xray"
    number = 0
    for i in range(100):
        part = "test" if i < 60 else "val" if i < 62 else "train"
        name = f"IM-{i:04}-0001.jpeg" if i % 2 else f"NORMAL2-IM-{i:04}-0001.jpeg"
        write(root / part / "NORMAL" / name, number := number + 1)
    for person in range(70):
        kind, count = ("bacteria", 3) if person < 40 else ("virus", 2)
        for _ in range(count):
            part = "test" if number % 9 == 0 else "train"
            write(root / part / "PNEUMONIA" / f"person{person}_{kind}_{number}.jpeg", number := number + 1)
    (root / "train" / "NORMAL" / ".DS_Store").write_text("of a Mac")
    (root / "train" / "NORMAL" / "._IM-0001-0001.jpeg").write_text("of a Mac")
    return root


def load(root: Path | None, split: str, **settings) -> ImageDataset:
    config = DatasetConfig(name="pneumonia", path=str(root) if root else None, resolution=16, **settings)
    return load_dataset("pneumonia", split, config)


def test_everything_is_split_anew(root):
    parts = {split: load(root, split) for split in SPLITS}
    assert [np.bincount(part.labels).tolist() for part in parts.values()] == [[80, 96, 48], [10, 12, 6], [10, 12, 6]]
    files = [file for part in parts.values() for file in part.files]
    assert len(files) == len(set(files)) == 280
    for part in parts.values():
        assert part.class_names == ["normal", "bacteria", "virus"] == CLASS_NAMES and part.name == "pneumonia"
        for file, label, pixels in zip(part.files, part.labels, part.pixels, strict=True):
            assert label == (0 if "/NORMAL/" in file else 1 if "bacteria" in file else 2)
            with Image.open(file) as image:
                assert abs(int(pixels[8, 8, 0]) - image.getpixel((8, 8))) <= 1  # each image with its own label
            assert (pixels == pixels[..., :1]).all()


def test_no_patient_is_in_two_splits(root):
    people = [{patient(Path(file)) for file in load(root, split).files} for split in SPLITS]
    assert [len(found) for found in people] == [80 + 32 + 24, 10 + 4 + 3, 10 + 4 + 3]
    assert not (people[0] & people[1] or people[0] & people[2] or people[1] & people[2])


def test_split_depends_on_the_seed_alone(root):
    first = load(root, "test").files
    assert load(root, "test").files == first
    assert len(set(first) & set(load(root, "test", seed=1).files)) < len(first) / 2


def test_patients_are_told_from_names():
    names = {
        "person12_virus_34.jpeg": "person12",
        "person12_bacteria_7.jpeg": "person12",
        "IM-0115-0001.jpeg": "im-0115",
        "IM-0115-0001-0002.jpeg": "im-0115",
        "NORMAL2-IM-0115-0001.jpeg": "normal2-im-0115",
        "BACTERIA-1008087-0001.jpeg": "1008087",
        "NORMAL-1008087-0003.jpeg": "1008087",
        "unknown.jpeg": "some/unknown.jpeg",
    }
    assert {name: patient(Path("some") / name) for name in names} == names


@pytest.mark.parametrize("up", [0, 1])
def test_the_folder_or_one_around_it_may_be_given(root, up):
    assert len(load([root, root.parent][up], "test")) == 28


def test_the_download_lies_two_levels_in(here, root, monkeypatch):
    monkeypatch.setattr("kagglehub.dataset_download", lambda handle: str(root.parent))
    assert len(load(None, "test")) == 28


def test_counts_are_limits(root):
    few = load(root, "train", train=30)
    assert len(few) == len(few.files) == 30 and len(Counter(few.labels.tolist())) == 3


def test_broken_images_stop_or_are_left_out(root, caplog):
    files = sorted((root / "train").rglob("person*.jpeg"))
    files[0].write_bytes(b"broken")
    with pytest.raises(ValueError, match=rf"1 of \d+ files in .*{files[0].name}"):
        for split in SPLITS:
            load(root, split)
    found = [file for split in SPLITS for file in load(root, split, skip_bad_files=True).files]
    assert len(found) == 279 and str(files[0]) not in found


def test_names_without_a_class_are_refused(root):
    write(root / "train" / "PNEUMONIA" / "person900_fungus_1.jpeg", 3)
    with pytest.raises(ValueError, match=r"person900_fungus_1\.jpeg: its name has neither 'bacteria' nor 'virus'"):
        load(root, "train")


def test_a_class_without_images_is_refused(root):
    for file in root.rglob("*virus*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"pneumonia: class 'virus' has no images for split 'train'"):
        load(root, "train")


def test_copies_in_several_splits_are_warned_of(root, caplog):
    source = next((root / "train" / "NORMAL").glob("IM*.jpeg"))
    for i in range(60):  # of sixty copies some are drawn for the test
        (root / "train" / "NORMAL" / f"IM-{5000 + i}-0001.jpeg").write_bytes(source.read_bytes())
    with caplog.at_level(logging.WARNING):
        load(root, "test")
    assert "pneumonia: 1 image lies in several splits" in caplog.text


def test_another_folder_is_refused(here):
    (here / "photos" / "train").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"photos is not a folder of dataset pneumonia, which holds train/NORMAL, "):
        load(here / "photos", "train")


def test_what_cannot_be_opened_is_named(root, caplog):
    (root / "train" / "NORMAL" / "gone.jpeg").symlink_to("/nowhere/gone.jpeg")
    (root / "test" / "PNEUMONIA" / "more").symlink_to("/nowhere/more")
    (root / "test" / "PNEUMONIA" / "@eaDir").mkdir()
    write(root / "test" / "@eaDir" / "person1_virus_3.jpeg", 3)
    with pytest.raises(ValueError, match=r"test/PNEUMONIA/more|train/NORMAL/gone\.jpeg \(a link to"):
        load(root, "train")
    assert sum(len(load(root, split, skip_bad_files=True)) for split in SPLITS) == 280
    assert "gone.jpeg" in caplog.text and "PNEUMONIA/more" in caplog.text
