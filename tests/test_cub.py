"""CUB-200-2011: a small tree in the format of the archive, with its quirks, and what can be wrong with it."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import train_and_test
from toy_ensemble import WEIGHT, ToyClassifier, ToyEnsemble

from viscoin.config import DatasetConfig
from viscoin.datasets import cub, load_dataset
from viscoin.datasets.cub import CERTAINTIES, CubDataset, readable_attribute
from viscoin.datasets.files import noted_files
from viscoin.datasets.reading import square_around
from viscoin.plotting.truth import truth_figures
from viscoin.testing import truth

SIZE = 16
CLASSES = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Parakeet_Auklet"]
EACH = 14  # images of a class; the last four are for testing
ATTRIBUTES = ["has_bill_shape::curved_(up_or_down)", "has_bill_shape::dagger", "has_size::medium_(9_-_16_in)"]
PARTS = ["back", "beak", "left_eye"]
PAPER = (40, 20)  # width and height of the photographs


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """For tests that only read."""
    return write_tree(tmp_path_factory.mktemp("data") / "CUB_200_2011")


@pytest.fixture
def root(tree, tmp_path):
    """For tests that change something."""
    return shutil.copytree(tree.parent, tmp_path / "data") / tree.name


def write_tree(root: Path) -> Path:
    """Grey-green photographs whose redness tells their id, listed in an order of their own."""
    names = {}
    for number in range(1, len(CLASSES) * EACH + 1):
        name = CLASSES[(number - 1) // EACH]
        names[number] = f"{name}/{name[4:]}_{number:04}_{7 * number}.jpg"
        (root / "images" / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", PAPER, (5 * number, 90, 90)).save(root / "images" / names[number], quality=95)
    order = [*range(20, 43), *range(1, 20)]
    write(root / "images.txt", [f"{number} {names[number]}" for number in order])
    write(root / "classes.txt", [f"{i} {name}" for i, name in enumerate(CLASSES, 1)])
    write(root / "image_class_labels.txt", [f"{i} {(i - 1) // EACH + 1}" for i in names])
    write(root / "train_test_split.txt", [f"{i} {int((i - 1) % EACH < EACH - 4)}" for i in names])
    write(root / "bounding_boxes.txt", [f"{i} 10.0 5.0 8.0 6.0" for i in names])
    write(root / "parts" / "parts.txt", [f"{i} {name}" for i, name in enumerate(PARTS, 1)])
    spots = [f"{i} 1 20.0 10.0 1\n{i} 2 2.0 3.0 1\n{i} 3 21.0 11.0 0" for i in names]  # centre; cut off; hidden
    write(root / "parts" / "part_locs.txt", spots)
    write(root.parent / "attributes.txt", [f"{i} {name}" for i, name in enumerate(ATTRIBUTES, 1)])
    answers = [f"{i} {a} {int((i + a) % 2 == 0)} {1 + (i + a) // 2 % 4} 2.431" for i in names for a in (1, 2, 3)]
    write(root / "attributes" / "image_attribute_labels.txt", answers)
    return root


def write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def load(root: Path, split: str = "test", **settings) -> CubDataset:
    dataset = load_dataset(
        "cub", split, DatasetConfig(**{"name": "cub", "resolution": SIZE, "path": str(root)} | settings)
    )
    assert isinstance(dataset, CubDataset)
    return dataset


def numbers(dataset: CubDataset) -> list[int]:
    """Ids of the images, from their colour."""
    return np.rint(np.asarray(dataset.pixels[:, 8, 8, 0], float) / 5).astype(int).tolist()


# --- images --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["", ".."])
def test_published_split_and_names(tree, inside):
    parts = {split: load(tree / inside, split) for split in ("train", "validation", "test")}
    for split, part in parts.items():
        assert (part.name, part.split, part.resolution) == ("cub", split, SIZE)
        assert part.class_names == ["Black footed Albatross", "Laysan Albatross", "Parakeet Auklet"]
        assert part.labels.tolist() == [(number - 1) // EACH for number in numbers(part)]
        assert [Path(file).name.split("_")[-2] for file in part.files] == [f"{n:04}" for n in numbers(part)]
    assert numbers(parts["test"]) == [11, 12, 13, 14, 25, 26, 27, 28, 39, 40, 41, 42]
    assert np.bincount(parts["validation"].labels).tolist() == [1, 1, 1]
    known = numbers(parts["train"]) + numbers(parts["validation"])
    assert sorted(known + numbers(parts["test"])) == list(range(1, 43))


def test_validation_depends_on_the_seed_alone(tree):
    first = numbers(load(tree, "validation"))
    assert numbers(load(tree, "validation")) == first
    assert {tuple(numbers(load(tree, "validation", seed=seed))) for seed in range(5)} > {tuple(first)}
    assert numbers(load(tree, "test", seed=3)) == numbers(load(tree))


def test_grey_photographs_have_three_equal_colours(root):
    path = next((root / "images" / CLASSES[0]).glob("*_0012_*"))
    Image.new("L", PAPER, 77).save(path)
    picture = load(root).pixels[1]
    assert picture.shape == (SIZE, SIZE, 3) and (np.abs(picture.astype(int) - 77) < 2).all()


def test_truth_follows_the_images_that_are_left(root):
    whole = load(root)
    (root / "images" / CLASSES[1] / Path(whole.files[4]).name).write_bytes(b"broken")
    Path(whole.files[0]).unlink()
    part = load(root, test=7, skip_bad_files=True)
    rows = [numbers(whole).index(number) for number in numbers(part)]
    assert 6 <= len(part) <= 7 and not {0, 4} & set(rows)
    assert (part.attributes == whole.attributes[rows]).all() and (part.certainty == whole.certainty[rows]).all()
    assert part.files == [whole.files[row] for row in rows]


# --- boxes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "box, size, square",
    [
        ((10, 5, 18, 11), (40, 20), (10, 4, 18, 12)),
        ((0, 0, 4, 10), (40, 20), (0, 0, 10, 10)),  # moved into the picture
        ((34, 14, 40, 20), (40, 20), (34, 14, 40, 20)),
        ((36, 2, 40, 12), (40, 20), (30, 2, 40, 12)),
        ((5, 5, 35, 15), (40, 20), (5, 0, 35, 20)),  # the picture is too low for the square
        ((-3, -3, 45, 25), (40, 20), (0, 0, 40, 20)),
    ],
)
def test_squares_around_boxes(box, size, square):
    assert square_around(box, size) == square


def test_crop_to_box_shows_the_box_alone(root):
    for path in (root / "images" / CLASSES[0]).iterdir():
        image = Image.new("RGB", PAPER, (0, 0, 200))
        image.paste((200, 0, 0), (10, 4, 18, 12))
        image.save(path, "png")
    whole, box = load(root).pixels[0], load(root, crop_to_box=True).pixels[0]
    assert (whole[..., 2] > 150).any() and (whole[..., 0] > 150).any()
    assert (box == [200, 0, 0]).all()


def test_broken_photographs_are_named_also_where_boxes_are_cut_out(root):
    path = next((root / "images" / CLASSES[0]).glob("*_0012_*"))
    path.write_bytes(b"broken")
    with pytest.raises(ValueError, match=rf"1 of 12 files in .* cannot be used: .*{path.name} \(no image of a known"):
        load(root, crop_to_box=True)
    left = load(root, crop_to_box=True, skip_bad_files=True)
    assert numbers(left) == [number for number in numbers(load(root, skip_bad_files=True)) if number != 12]


def test_boxes_are_needed_only_to_crop(root):
    (root / "bounding_boxes.txt").unlink()
    assert len(load(root)) == 12
    with pytest.raises(ValueError, match=r"bounding_boxes.txt is missing"):
        load(root, crop_to_box=True)


# --- parts ---------------------------------------------------------------------------------------------------------


def test_discs_lie_around_visible_locations(tree):
    dataset = load(tree)
    assert list(dataset.part_names) == ["back", "beak", "left eye"]
    assert np.array_equal(dataset.part_points(0), [[8, 8], [np.nan] * 2, [np.nan] * 2], equal_nan=True)
    masks = dataset.part_masks(0)
    assert masks.shape == (3, SIZE, SIZE) and masks.dtype == bool
    assert np.argwhere(masks[0]).tolist() == [[7, 7], [7, 8], [8, 7], [8, 8]]  # 0.8 px around the corner of four pixels
    assert not masks[1:].any()
    fine = load(tree, resolution=100).part_masks(0)[0]
    assert abs(fine.sum() - np.pi * 5**2) < 5


@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("fit", [{}, {"fit": "pad"}, {"fit": "squash"}, {"crop_share": 0.8}])
@pytest.mark.parametrize("spot", [(13, 6), (16, 9), (12, 6)])
def test_discs_lie_where_the_picture_shows_the_part(root, crop, fit, spot):
    path = next((root / "images" / CLASSES[0]).glob("*_0011_*"))
    image = Image.new("RGB", PAPER)
    image.putpixel(spot, (255, 0, 0))  # borders are white
    image.save(path, "png")
    edit(root / "parts" / "part_locs.txt", "11 2 2.0 3.0 1", f"11 2 {spot[0] + 0.5} {spot[1] + 0.5} 1")
    dataset = load(root, resolution=64, crop_to_box=crop, **fit)
    bright = (dataset.pixels[0, ..., 0].astype(float) - dataset.pixels[0, ..., 1]).clip(0)
    (y, x), mask = np.argwhere(bright > 0.9 * bright.max()).mean(0) + 0.5, dataset.part_masks(0)[1]
    assert np.hypot(*(dataset.part_points(0)[1] - (x, y))) < 0.6
    assert bright[mask].sum() > 0.5 * bright.sum() if not crop else mask[int(y), int(x)]


def test_trees_without_parts_or_attributes(root):
    shutil.rmtree(root / "parts")
    shutil.rmtree(root / "attributes")
    dataset = load(root)
    assert not dataset.has_truth and not dataset.part_names and not dataset.attribute_names
    with pytest.raises(ValueError, match=r"has no parts: parts/parts.txt and parts/part_locs.txt are needed"):
        dataset.part_masks(0)
    for what in ("attributes", "certainty"):
        with pytest.raises(ValueError, match=r"has no attributes: attributes/image_attribute_labels.txt and"):
            getattr(dataset, what)


# --- attributes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["..", ".", "attributes"])
def test_attribute_names_wherever_they_lie(root, place):
    if place != "..":
        (root.parent / "attributes.txt").rename(root / place / "attributes.txt")
    dataset = load(root)
    assert dataset.has_truth
    names = ["bill shape: curved (up or down)", "bill shape: dagger", "size: medium (9 - 16 in)"]
    assert list(dataset.attribute_names) == names == [readable_attribute(name) for name in ATTRIBUTES]


def test_what_counts_as_present(root):
    """Any answer but "not visible"; lines with a sixth field are read, lines that are missing mean absent."""
    lines = ["11 1 1 1 2.0", "11 2 1 2 2.0", "11 3 1 4 2.0", "12 1 0 4 1.5", "12 3 0 1 1.5", "13 2 1 3 0  1.509"]
    write(root / "attributes" / "image_attribute_labels.txt", lines)
    dataset = load(root)
    assert dataset.attributes.dtype == bool and dataset.attributes.shape == (12, 3)
    assert dataset.attributes[:3].tolist() == [[False, True, True], [False, False, False], [False, True, False]]
    assert not dataset.attributes[3:].any()
    said = [["not visible", "guessing", "definitely"], ["definitely", "no answer", "not visible"]]
    assert [[CERTAINTIES[i] for i in row] for row in dataset.certainty[:2]] == said
    assert dataset.certainty[2].tolist() == [0, 3, 0] and not dataset.certainty[3:].any()


def test_answers_are_read_once_and_anew_when_they_change(root, monkeypatch):
    first = load(root).attributes
    expected = [[(n + a) % 2 == 0 and (n + a) // 2 % 4 != 0 for a in (1, 2, 3)] for n in numbers(load(root))]
    assert first.tolist() == expected and first.any() and not first.all()
    with monkeypatch.context() as patch:
        patch.setattr(np, "loadtxt", None)
        assert (load(root).attributes == first).all()
    write(root / "attributes" / "image_attribute_labels.txt", [f"{i} 1 1 4 1.0" for i in range(1, 43)])
    assert load(root).attributes[:, 0].all()


def test_concepts_are_tried_on_the_attributes(root):
    """Attributes are made to say that a quadrant is bright, which is what the concepts of the toy know."""

    class Half(ToyClassifier):
        def features(self, images):
            return super().features(torch.nn.functional.avg_pool2d(images, 2))

    ensemble = ToyEnsemble()
    ensemble.classifier = Half(torch.tensor(WEIGHT))

    random, answers = np.random.default_rng(0), []
    for path in sorted((root / "images").rglob("*.jpg")):
        quadrants = random.integers(0, 256, (2, 2), dtype=np.uint8)
        Image.fromarray(quadrants.repeat(10, 0).repeat(10, 1)).save(path, "png")
        number = int(path.stem.split("_")[-2])
        answers += [f"{number} {a} {int(quadrants[i, i] > 127)} 4 1.0" for a, i in ((1, 0), (3, 1))]
    write(root / "attributes" / "image_attribute_labels.txt", answers)
    splits = [load(root, split) for split in ("train", "test")]
    found = truth.test_truth(ensemble, *splits, batch_size=16)
    scores = [(score.name, score.concept, score.auroc) for score in found.concepts.attributes.scores]
    assert scores == [("bill shape: curved (up or down)", 0, 1.0), ("size: medium (9 - 16 in)", 3, 1.0)]
    assert found.concepts.attributes.left_out == ["bill shape: dagger"]
    assert found.intervened == 0 and list(truth_figures(found)) == ["truth-attributes"]


# --- what can be wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, old, new, message",
    [
        (
            "images.txt",
            "3 001.",
            "3 009.",
            r"1 of 42 images that .*images.txt names are missing .*009.*unpack",
        ),
        ("images.txt", "3 001.", "4 001.", r"images.txt names an id twice"),
        ("images.txt", "3 001.", "three 001.", r"images.txt does not hold lines of an id and a text .*'three'"),
        ("image_class_labels.txt", "3 1\n", "3 4\n", r"image_class_labels.txt: image 3 has 4.* class of classes.txt"),
        ("image_class_labels.txt", "3 1\n", "3 x\n", r"image_class_labels.txt does not hold lines of two numbers"),
        ("image_class_labels.txt", "\n3 1\n", "\n", r"image_class_labels.txt has no line for image 3 \(001.*of images"),
        ("train_test_split.txt", "\n3 1\n", "\n43 1\n", r"train_test_split.txt has a line for image 43, which images"),
        ("train_test_split.txt", "\n3 1\n", "\n3 2\n", r"train_test_split.txt: image 3 has 2, which is not 1 \(train"),
        ("classes.txt", "2 002.Laysan_Albatross", "", r"image 15 has 2, which is not a class of classes.txt"),
        ("classes.txt", "3 003", "4 Nobody\n3 003", r"cub: class 'Nobody' has no images for split 'train'"),
    ],
)
def test_tables_that_do_not_fit(root, name, old, new, message):
    edit(root / name, old, new)
    with pytest.raises(ValueError, match=message) as error:
        load(root)
    assert "\n" not in str(error.value)


def test_a_class_without_test_images(root):
    split = (root / "train_test_split.txt").read_text().splitlines()
    write(root / "train_test_split.txt", [f"{line[:-1]}1" if 15 <= int(line[:-2]) <= 28 else line for line in split])
    with pytest.raises(
        ValueError, match=r"cub: class 'Laysan Albatross' has no images for split 'test' in .*split.txt"
    ):
        load(root)


@pytest.mark.parametrize(
    "line, message",
    [
        ("99 1 1 4 1.0", r"image_attribute_labels.txt has a line for 99, which images.txt does not name"),
        ("1 4 1 4 1.0", r"image_attribute_labels.txt has a line for 4, which attributes.txt does not name"),
        ("1 1 2 4 1.0", r"image_attribute_labels.txt: '1 1 2 4' … is not <image> <attribute> <0 or 1>"),
        ("1 1 1 5 1.0", r"image_attribute_labels.txt: '1 1 1 5' …"),
        ("1 1 yes 4 1.0", r"image_attribute_labels.txt does not hold lines of 4 numbers .*yes"),
        ("1 1", r"image_attribute_labels.txt does not hold lines of 4 numbers"),
    ],
)
def test_answers_that_cannot_be(root, line, message):
    write(root / "attributes" / "image_attribute_labels.txt", ["1 2 1 4 1.0", line])
    with pytest.raises(ValueError, match=message):
        _ = load(root).attributes


@pytest.mark.parametrize(
    "line, message",
    [
        ("11 4 1.0 2.0 1", r"part_locs.txt has a line for 4, which parts/parts.txt does not name"),
        ("0 1 1.0 2.0 1", r"part_locs.txt has a line for 0, which images.txt does not name"),
        ("11 1 1.0", r"part_locs.txt does not hold lines of 5 numbers"),
    ],
)
def test_locations_that_cannot_be(root, line, message):
    write(root / "parts" / "part_locs.txt", [line])
    with pytest.raises(ValueError, match=message):
        load(root).part_masks(0)


@pytest.mark.parametrize(
    "line, message",
    [
        ("", r"bounding_boxes.txt has no box for image 11 \(Black_footed_Albatross_0011"),
        ("11 50.0 5.0 8.0 6.0", r"the box 50.0 5.0 8.0 6.0 of image 11 lies outside its 40x20 px"),
        ("11 5.0 5.0 0.0 6.0", r"the box 5.0 5.0 0.0 6.0 of image 11"),
    ],
)
def test_boxes_that_cannot_be(root, line, message):
    edit(root / "bounding_boxes.txt", "11 10.0 5.0 8.0 6.0\n", f"{line}\n")
    with pytest.raises(ValueError, match=message):
        load(root, crop_to_box=True)


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "cats").mkdir()
    with pytest.raises(ValueError, match=r"cats is not a folder of dataset cub, which holds images.txt, image_class_"):
        load(tmp_path / "cats")
    with pytest.raises(
        ValueError, match=r"dataset_path .*dogs: no such folder; download it by hand from https://data.cal"
    ):
        load(tmp_path / "dogs")


def test_missing_photographs_are_left_out_on_demand(root, caplog):
    next((root / "images" / CLASSES[0]).glob("*_0011_*")).unlink()
    assert numbers(load(root, skip_bad_files=True))[0] == 12
    assert "left out: 1 of 42 images" in caplog.text
    with noted_files() as found:
        load(root, "train", skip_bad_files=True)
    assert list(found.values()) == ["missing"]  # `data cub info` lists it


def test_copies_across_splits_are_reported(root, caplog):
    training, test = (next((root / "images" / CLASSES[0]).glob(f"*_{number}_*")) for number in ("0001", "0011"))
    shutil.copy(training, test)
    with caplog.at_level("WARNING"):
        load(root)
    assert "cub: 1 image lies in several splits" in caplog.text


def test_the_archive_is_the_published_one():
    assert cub.SOURCE.md5 == "97eceeb196236b17998738112f37df78" and cub.SOURCE.file_name == "CUB_200_2011.tgz"


def test_tables_that_are_pipes_are_refused(root):
    for name, message in (("bounding_boxes.txt", "named pipe"), ("images.txt", "not a folder of dataset cub")):
        (root / name).unlink()
        os.mkfifo(root / name)
        with pytest.raises(ValueError, match=message):
            load(root, "train", crop_to_box=True)


@pytest.mark.slow
def test_the_recipe_of_the_pursuit_trains_and_its_concepts_are_told_by_attributes(tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = train_and_test("cub_pursuit", tree.parent, tmp_path / "tested")
    assert found["estimates"]["attributes.concepts.auroc"]["n"] == 12
    assert "attributes.concepts.deletion" not in found["estimates"]
