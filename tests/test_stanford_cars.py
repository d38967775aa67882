"""Stanford Cars from small trees in the published layouts, with .mat files as MATLAB writes them."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from viscoin.config import DatasetConfig
from viscoin.datasets import ImageDataset, load_dataset
from viscoin.datasets.listing import warn_once

NAMES = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Ram C/V Cargo Van Minivan 2012"]
TRAIN = np.tile([2, 1, 3], 20)  # classes, counted from 1 as in the files
TEST = np.tile([3, 1, 2, 2], 4)
WIDTH, HEIGHT, SIZE = 40, 20, 16
BOX = (21, 1, 40, 20)  # x1, y1, x2, y2: the right half, pixels counted from 1
FIELDS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    warn_once.cache_clear()


def photograph(path: Path, grey: int) -> None:
    """Grey, with a right half that is darker by 10: the car."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (WIDTH, HEIGHT), (grey,) * 3)
    image.paste((grey - 10,) * 3, (WIDTH // 2, 0, WIDTH, HEIGHT))
    image.save(path, quality=100)


def write_annotations(path: Path, rows: list[tuple], fields: tuple[str, ...] = FIELDS) -> None:
    """A struct array (1, N) named "annotations", as `loadmat` finds it in the published files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"annotations": np.array([rows], dtype=[(field, object) for field in fields])})


def write_names(path: Path) -> None:
    savemat(path, {"class_names": np.array([NAMES], dtype=object)})


def rows_of(classes: np.ndarray, box: tuple[int, ...] = BOX) -> list[tuple]:
    return [(*box, int(number), f"{i:05d}.jpg") for i, number in enumerate(classes, 1)]


@pytest.fixture
def tree(tmp_path) -> Path:
    """Photograph i (counted from 1) has the grey 3 i + 20 in cars_train and 3 i + 21 in cars_test."""
    root = tmp_path / "stanford_cars"
    for part, classes in (("train", TRAIN), ("test", TEST)):
        for i in range(1, len(classes) + 1):
            photograph(root / f"cars_{part}" / f"{i:05d}.jpg", 3 * i + 20 + (part == "test"))
    write_annotations(root / "devkit" / "cars_train_annos.mat", rows_of(TRAIN))
    blind = [row[:4] + row[5:] for row in rows_of(TEST)]
    write_annotations(root / "devkit" / "cars_test_annos.mat", blind, FIELDS[:4] + FIELDS[5:])
    write_annotations(root / "cars_test_annos_withlabels.mat", rows_of(TEST))
    write_names(root / "devkit" / "cars_meta.mat")
    return root


def load(root: Path, split: str = "train", **settings) -> ImageDataset:
    config = DatasetConfig(name="stanford_cars", path=str(root), resolution=SIZE, **settings)
    return load_dataset("stanford_cars", split, config)


def numbers(dataset: ImageDataset) -> list[int]:
    """The numbers of the photographs, read from their greys at the left edge."""
    return [round((grey - 20 - (dataset.split == "test")) / 3) for grey in dataset.pixels[:, SIZE // 2, 0, 0].tolist()]


# --- what is read ----------------------------------------------------------------------------------------------------


def test_classes_and_splits(tree):
    parts = {split: load(tree, split) for split in ("train", "validation", "test")}
    for split, dataset in parts.items():
        classes = TEST if split == "test" else TRAIN
        assert dataset.class_names == NAMES and dataset.name == "stanford_cars"
        assert dataset.labels.tolist() == [classes[number - 1] - 1 for number in numbers(dataset)]
        folder = tree / ("cars_test" if split == "test" else "cars_train")
        assert dataset.files == [str(folder / f"{number:05d}.jpg") for number in numbers(dataset)]
    assert numbers(parts["test"]) == list(range(1, 17))
    assert sorted(numbers(parts["train"]) + numbers(parts["validation"])) == list(range(1, 61))
    assert np.bincount(parts["validation"].labels).tolist() == [2, 2, 2]  # a tenth of each class
    other = numbers(load(tree, "validation", seed=1))
    assert other != numbers(parts["validation"]) == numbers(load(tree, "validation"))


def test_a_single_annotation(tree):
    write_annotations(tree / "cars_test_annos_withlabels.mat", rows_of(TEST)[:1])
    with pytest.raises(ValueError, match="class 'AM General Hummer SUV 2000' has no images for split 'test'"):
        load(tree)


def test_squares_are_cut_from_the_middle_or_around_the_box(tree):
    whole = load(tree, "test").pixels[4, 8, :, 0].astype(int)
    car = load(tree, "test", crop_to_box=True).pixels[4, 8, :, 0].astype(int)
    grey = 3 * 5 + 21
    assert np.abs(whole[[0, 15]] - [grey, grey - 10]).max() <= 1
    assert np.abs(car - (grey - 10)).max() <= 1  # not a pixel of what is left of the box


def test_all_mat_files_in_one_place(tree):
    expected = numbers(load(tree, "test"))
    for path in (tree / "devkit").iterdir():
        shutil.move(path, tree)
    (tree / "devkit").rmdir()
    assert numbers(load(tree, "test")) == expected
    (tree / "devkit").mkdir()
    for path in tree.glob("*.mat"):
        shutil.move(path, tree / "devkit")
    assert numbers(load(tree, "test")) == expected


def test_folders_inside_folders_of_the_same_name(tree):
    expected = numbers(load(tree))
    for part in ("cars_train", "cars_test"):
        (tree / part).rename(tree / "moved")
        (tree / part).mkdir()
        (tree / "moved").rename(tree / part / part)
    assert numbers(load(tree)) == expected
    assert numbers(load(tree.parent)) == expected


def test_the_layout_with_one_folder(tree, tmp_path):
    root = tmp_path / "single"
    rows = []
    for i, number in enumerate(np.concatenate([TRAIN, TEST]), 1):
        photograph(root / "car_ims" / f"{i:06d}.jpg", 3 * i + 20)
        rows.append((f"car_ims/{i:06d}.jpg", *BOX, int(number), int(i > len(TRAIN))))
    fields = ("relative_im_path", *FIELDS[:5], "test")
    savemat(
        root / "cars_annos.mat",
        {
            "annotations": np.array([rows], dtype=[(field, object) for field in fields]),
            "class_names": np.array([NAMES], dtype=object),
        },
    )
    train, test = load(root), load(root, "test")
    assert train.class_names == NAMES and len(train) == 54
    assert test.labels.tolist() == (TEST - 1).tolist()
    assert [Path(file).stem for file in test.files or []] == [f"{i:06d}" for i in range(61, 77)]
    assert train.labels.tolist() == [TRAIN[number - 1] - 1 for number in numbers(train)]


# --- bad input -------------------------------------------------------------------------------------------------------


def test_test_annotations_without_classes(tree):
    (tree / "cars_test_annos_withlabels.mat").unlink()
    message = (
        r"cars_test_annos_withlabels\.mat is missing \(cars_test_annos\.mat is there, but says nothing of classes\)"
    )
    with pytest.raises(ValueError, match=message):
        load(tree)  # also for training: better known before than at the test
    shutil.copy(tree / "devkit" / "cars_test_annos.mat", tree / "cars_test_annos_withlabels.mat")
    with pytest.raises(
        ValueError, match=r"cars_test_annos_withlabels\.mat has no 'class' in its annotations, only bbox_x1"
    ):
        load(tree)


@pytest.mark.parametrize("name", ["cars_meta.mat", "cars_train_annos.mat"])
def test_missing_devkit(tree, name):
    (tree / "devkit" / name).unlink()
    with pytest.raises(ValueError, match=rf"devkit/{name} is missing; get it from https://www\.kaggle\.com"):
        load(tree)


def test_annotations_of_the_other_layout(tree):
    shutil.rmtree(tree / "devkit")
    write_annotations(tree / "cars_annos.mat", rows_of(TRAIN))
    with pytest.raises(
        ValueError, match=r"is missing \(cars_annos\.mat is there, but names images of the folder car_ims"
    ):
        load(tree)


def test_wrong_folder(tree):
    with pytest.raises(
        ValueError, match="devkit is not a folder of dataset stanford_cars, which holds cars_train, cars_test"
    ):
        load(tree / "devkit")


def test_annotations_name_missing_images(tree, caplog):
    for part, number in (("train", 4), ("train", 9), ("test", 2)):
        (tree / f"cars_{part}" / f"{number:05d}.jpg").unlink()
    with pytest.raises(ValueError, match=r"2 of 60 images that .*cars_train_annos\.mat names are missing .*00004\.jpg"):
        load(tree, "test")
    with caplog.at_level(logging.WARNING):
        test = load(tree, "test", skip_bad_files=True)
    assert "left out: 2 of 60 images" in caplog.text and "left out: 1 of 16 images" in caplog.text
    assert numbers(test) == [1, *range(3, 17)]
    assert test.labels.tolist() == [TEST[number - 1] - 1 for number in numbers(test)]


def test_unusable_images(tree):
    (tree / "cars_test" / "00003.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"1 of 16 files in .* cannot be used: .*00003\.jpg"):
        load(tree, "test")
    test = load(tree, "test", skip_bad_files=True)
    assert test.labels.tolist() == [TEST[number - 1] - 1 for number in numbers(test)] and len(test) == 15


def test_unusable_images_where_boxes_are_cut_out(tree):
    (tree / "cars_test" / "00003.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"1 of 16 files in .* cannot be used: .*00003\.jpg"):
        load(tree, "test", crop_to_box=True)
    assert len(load(tree, "test", crop_to_box=True, skip_bad_files=True)) == 15


def test_class_without_test_images(tree):
    write_annotations(tree / "cars_test_annos_withlabels.mat", rows_of(np.where(TEST == 3, 1, TEST)))
    with pytest.raises(
        ValueError, match=r"class 'Ram C/V Cargo Van Minivan 2012' has no images for split 'test' in .*withlabels"
    ):
        load(tree)


@pytest.mark.parametrize("number", [0, 4, 197])
def test_class_outside_the_list(tree, number):
    rows = rows_of(TRAIN)
    rows[6] = (*rows[6][:4], number, rows[6][5])
    write_annotations(tree / "devkit" / "cars_train_annos.mat", rows)
    with pytest.raises(ValueError, match=rf"cars_train_annos\.mat: .*00007\.jpg is of class {number}, but there are 3"):
        load(tree)


@pytest.mark.parametrize(
    "place, value, message",
    [
        (4, np.zeros((0, 0)), r"as 'class' of an image, which is no number"),
        (4, "Hummer", "'Hummer' as 'class' of an image, which is no number"),
        (2, np.nan, "nan as 'bbox_x2' of an image, which is no number"),
        (2, 20, r"the box of 00007\.jpg ends at 20 20, before 21 1"),
    ],
)
def test_bad_annotation(tree, place, value, message):
    rows = [list(row) for row in rows_of(TRAIN)]
    rows[6][place] = value
    write_annotations(tree / "devkit" / "cars_train_annos.mat", [tuple(row) for row in rows])
    with pytest.raises(ValueError, match=message):
        load(tree)


def test_file_that_is_no_mat(tree):
    (tree / "devkit" / "cars_meta.mat").write_text("<html>404 Not Found</html>")
    with pytest.raises(ValueError, match=r"cars_meta\.mat cannot be read as a \.mat file .*get it again") as error:
        load(tree)
    assert "\n" not in str(error.value)
    savemat(tree / "devkit" / "cars_meta.mat", {"names": np.array([NAMES], dtype=object)})
    with pytest.raises(ValueError, match=r"cars_meta\.mat holds no 'class_names'"):
        load(tree)


def test_copies_across_splits_are_reported(tree, caplog):
    shutil.copy(tree / "cars_train" / "00001.jpg", tree / "cars_test" / "00002.jpg")
    with caplog.at_level(logging.WARNING):
        load(tree)
    assert "stanford_cars: 1 image lies in several splits" in caplog.text
