"""CelebA-HQ from small trees as CelebAMask-HQ is laid out: split, classes, attributes, masks, and what can be wrong."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_models import Answer

from viscoin.config import DatasetConfig
from viscoin.datasets import load_dataset
from viscoin.datasets.celeba_hq import ANNOTATION, IMAGES, MAPPING, MASKS, CelebaHQDataset, class_names, mask_suffixes
from viscoin.datasets.listing import warn_once

TITLE = (
    "5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair Blond_Hair "
    "Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup High_Cheekbones Male "
    "Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks "
    "Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace "
    "Wearing_Necktie Young"
)
NAMES = TITLE.split()
COUNT, SIZE = 60, 16
YOUNG, SMILING = NAMES.index("Young"), NAMES.index("Smiling")
# By their numbers in CelebA 40 of the faces are for training, 10 for validation and 10 for testing.
ORIGINALS = [*range(1, 40), 162_770, 162_771, *range(170_000, 170_008), 182_637, 182_638, *range(190_000, 190_009)]
TRUTH = np.random.default_rng(3).random((COUNT, 40)) < 0.5


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    warn_once.cache_clear()


@pytest.fixture
def tree(tmp_path) -> Path:
    """Faces in the published layout; each has a grey that tells its number."""
    root = tmp_path / "CelebAMask-HQ"
    (root / IMAGES).mkdir(parents=True)
    for number in range(COUNT):
        Image.new("RGB", (SIZE, SIZE), (4 * number,) * 3).save(root / IMAGES / f"{number}.jpg")
    rows = [f"{i}.jpg  {' '.join('1' if value else '-1' for value in row)}\n" for i, row in enumerate(TRUTH)]
    (root / ANNOTATION).write_text(f"{COUNT}\n{TITLE}\n{''.join(rows)}")
    lines = [f"{i:<11}{number - 1:<11}{number:06d}.jpg\n" for i, number in enumerate(ORIGINALS)]
    (root / MAPPING).write_text(f"idx        orig_idx   orig_file\n{''.join(lines)}")
    return root


def load(root: Path, split: str = "train", **settings) -> CelebaHQDataset:
    config = DatasetConfig(name="celeba_hq", path=str(root), resolution=SIZE, **settings)
    dataset = load_dataset("celeba_hq", split, config)
    assert isinstance(dataset, CelebaHQDataset)
    return dataset


def numbers(dataset: CelebaHQDataset) -> list[int]:
    """The numbers of the faces, read from their greys."""
    return [round(red / 4) for red in dataset.pixels[:, SIZE // 2, SIZE // 2, 0].tolist()]


def splits(root: Path, **settings) -> dict[str, list[int]]:
    return {split: numbers(load(root, split, **settings)) for split in ("train", "validation", "test")}


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


# --- split -----------------------------------------------------------------------------------------------------------


def test_split_is_that_of_celeba(tree):
    expected = {"train": list(range(40)), "validation": list(range(40, 50)), "test": list(range(50, 60))}
    assert splits(tree) == expected == splits(tree, seed=1, attribute="Smiling")


@pytest.mark.parametrize("name", ["list_eval_partition.txt", "list_eval_partition.csv"])
def test_partition_file_comes_first(tree, name):
    parts = {f"{number:06d}.jpg": i % 3 for i, number in enumerate(ORIGINALS)} | {"202599.jpg": 2}
    if name.endswith(".csv"):
        text = "image_id,partition\n" + "".join(f"{file},{part}\n" for file, part in parts.items())
    else:
        text = "".join(f"{file} {part}\n" for file, part in parts.items())
    (tree / name).write_text(text)
    expected = {split: list(range(i, COUNT, 3)) for i, split in enumerate(("train", "validation", "test"))}
    assert splits(tree) == expected


def test_without_mapping_the_split_is_drawn(tree, caplog):
    (tree / MAPPING).unlink()
    with caplog.at_level(logging.WARNING):
        drawn = splits(tree)
    assert "split 80:10:10 by seed 0, not as published" in caplog.text
    assert sorted(i for part in drawn.values() for i in part) == list(range(COUNT))
    young = TRUTH[:, YOUNG]
    for label in (True, False):
        count = np.count_nonzero(young == label)
        for split in ("validation", "test"):
            assert sum(young[i] == label for i in drawn[split]) == round(0.1 * count)
    assert splits(tree, attribute="Smiling") == drawn  # what one model is tested on, no other has seen
    assert splits(tree, seed=1) != drawn


def test_mapping_may_lack_its_header(tree):
    change(tree / MAPPING, "idx        orig_idx   orig_file\n", "")
    assert splits(tree)["test"] == list(range(50, 60))


# --- classes and attributes ------------------------------------------------------------------------------------------


def test_young_and_old(tree):
    for split, rows in (("train", slice(40)), ("validation", slice(40, 50)), ("test", slice(50, 60))):
        dataset = load(tree, split)
        assert dataset.class_names == ["old", "young"]
        assert dataset.labels.tolist() == TRUTH[rows, YOUNG].astype(int).tolist()
        np.testing.assert_array_equal(dataset.attributes, TRUTH[rows])
        assert dataset.files == [str(tree / IMAGES / f"{i}.jpg") for i in range(COUNT)[rows]]
    assert dataset.attribute_names[:2] == ["5 o Clock Shadow", "Arched Eyebrows"] and len(dataset.attribute_names) == 40
    assert dataset.has_truth and dataset.name == "celeba_hq"


@pytest.mark.parametrize("attribute", ["Smiling", "smiling", "Wearing_Hat", "wearing hat"])
def test_any_attribute_can_be_the_class(tree, attribute):
    column = SMILING if attribute.lower() == "smiling" else NAMES.index("Wearing_Hat")
    dataset = load(tree, attribute=attribute)
    assert dataset.labels.tolist() == TRUTH[:40, column].astype(int).tolist()
    assert dataset.class_names == (
        ["not smiling", "smiling"] if column == SMILING else ["not wearing hat", "wearing hat"]
    )


def test_names_of_classes_are_english():
    expected = {
        "Male": ("female", "male"),
        "No_Beard": ("beard", "no beard"),
        "Eyeglasses": ("no eyeglasses", "eyeglasses"),
    }
    assert {name: class_names(name) for name in expected} == expected
    assert all(len(set(class_names(name))) == 2 for name in NAMES)


def test_a_drawn_sample_keeps_its_attributes(tree):
    dataset = load(tree, train=7)
    chosen = numbers(dataset)
    assert len(dataset) == 7 and chosen == sorted(chosen) != list(range(7))
    np.testing.assert_array_equal(dataset.attributes, TRUTH[chosen])
    assert [Path(file).stem for file in dataset.files or []] == list(map(str, chosen))


def test_the_folder_around_will_do(tree):
    assert numbers(load(tree.parent, "test")) == list(range(50, 60))


# --- masks -----------------------------------------------------------------------------------------------------------


def mask(root: Path, number: int, suffix: str, box: tuple[int, int, int, int]) -> None:
    """A mask of half the side of a face: red, green and blue 255 inside the box."""
    path = root / MASKS / str(number // 2000) / f"{number:05d}_{suffix}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (SIZE // 2, SIZE // 2))
    image.paste((255, 255, 255), box)
    image.save(path)


def test_masks_of_parts(tree):
    mask(tree, 50, "hair", (0, 0, 8, 2))
    mask(tree, 51, "hair", (0, 0, 8, 1))
    mask(tree, 50, "l_eye", (2, 3, 3, 4))
    mask(tree, 3, "beauty_spot", (1, 1, 2, 2))
    (tree / MASKS / "0" / ".DS_Store").touch()
    (tree / MASKS / "0" / "._00050_hair.png").touch()
    dataset = load(tree, "test")
    assert list(dataset.part_names) == ["left eye", "hair", "beauty spot"]
    masks = dataset.part_masks(0)
    assert masks.shape == (3, SIZE, SIZE) and masks.dtype == bool
    expected = np.zeros_like(masks)
    expected[0, 6:8, 4:6] = expected[1, :4] = True
    np.testing.assert_array_equal(masks, expected)
    assert dataset.part_masks(1)[1].sum() == 2 * SIZE
    assert not dataset.part_masks(2).any()


@pytest.mark.parametrize(("fit", "side", "top"), [({"crop_share": 0.5}, 4, 4), ({"fit": "pad"}, 2, 6)])
def test_masks_are_cut_as_the_faces_are(tree, fit, side, top):
    mask(tree, 50, "l_eye", (2, 3, 3, 4))
    expected = np.zeros((SIZE, SIZE), bool)
    left = 2 * (top == 6) * 2
    expected[top : top + side, left : left + side] = True
    np.testing.assert_array_equal(load(tree, "test", **fit).part_masks(0)[0], expected)


def test_masks_lie_in_folders_of_2000(tree):
    (tree / IMAGES / "59.jpg").rename(tree / IMAGES / "4567.jpg")
    change(tree / ANNOTATION, "59.jpg  ", "4567.jpg  ")
    change(tree / MAPPING, "59  ", "4567")
    mask(tree, 4567, "hat", (0, 0, 8, 8))
    assert (tree / MASKS / "2" / "04567_hat.png").is_file()
    assert load(tree, "test").part_masks(9).all()


def test_masks_that_cannot_be_opened_are_named(tree):
    mask(tree, 50, "hair", (0, 0, 8, 2))
    (tree / MASKS / "0" / "@eaDir").mkdir()
    shutil.copy(tree / MASKS / "0" / "00050_hair.png", tree / MASKS / "0" / "@eaDir" / "00050_thumbnail.png")
    assert load(tree, "test").part_names == ["hair"]
    (tree / MASKS / "1").symlink_to("/nowhere/1")
    mask_suffixes.cache_clear()
    with pytest.raises(ValueError, match=r"mask-anno/1 cannot be opened \(a link to /nowhere/1"):
        load(tree, "test").part_names  # noqa: B018


def test_without_masks(tree):
    dataset = load(tree, "test")
    assert not dataset.part_names
    with pytest.raises(ValueError, match=f"has no part masks; put the folder {MASKS} into"):
        dataset.part_masks(0)


def test_damaged_mask(tree):
    mask(tree, 50, "hair", (0, 0, 8, 2))
    (tree / MASKS / "0" / "00050_hair.png").write_bytes(b"no mask")
    with pytest.raises(ValueError, match=r"00050_hair\.png is no readable mask"):
        load(tree, "test").part_masks(0)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attribute, hint",
    [("Yung", "did you mean Young?"), ("smilling", "did you mean Smiling?"), ("???", "choose one of 5_o_")],
)
def test_unknown_attribute(tree, attribute, hint):
    with pytest.raises(ValueError) as error:
        load(tree, attribute=attribute)
    assert f"dataset.attribute = {attribute!r}" in str(error.value) and hint in str(error.value)


def test_wrong_folder(tree):
    with pytest.raises(ValueError, match=f"CelebA-HQ-img is not a folder of dataset celeba_hq.*{ANNOTATION}"):
        load(tree / IMAGES)
    with pytest.raises(ValueError, match="elsewhere: no such folder"):
        load(tree / "elsewhere")


def test_annotation_names_missing_images(tree, caplog):
    for number in (7, 55):
        (tree / IMAGES / f"{number}.jpg").unlink()
    with pytest.raises(ValueError, match=rf"2 of 60 images that .*{ANNOTATION} names are missing \(first: .*7\.jpg\)"):
        load(tree)
    with caplog.at_level(logging.WARNING):
        parts = splits(tree, skip_bad_files=True)
    assert "left out: 2 of 60 images" in caplog.text
    assert [i for part in parts.values() for i in part] == [i for i in range(COUNT) if i not in (7, 55)]


def test_unusable_images_are_left_out_with_their_rows(tree):
    (tree / IMAGES / "52.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"1 of 10 files in .* cannot be used: .*52\.jpg"):
        load(tree, "test")
    dataset = load(tree, "test", skip_bad_files=True)
    kept = [50, 51, *range(53, 60)]
    assert numbers(dataset) == kept
    np.testing.assert_array_equal(dataset.attributes, TRUTH[kept])


def test_class_without_test_images(tree):
    text = (tree / ANNOTATION).read_text().splitlines()
    text[52:] = [line.removesuffix("-1").removesuffix("1") + "-1" for line in text[52:]]
    (tree / ANNOTATION).write_text("\n".join(text))
    with pytest.raises(ValueError, match="class 'young' has no images for split 'test'"):
        load(tree, "train")


def test_copies_across_splits_are_reported(tree, caplog):
    shutil.copy(tree / IMAGES / "3.jpg", tree / IMAGES / "55.jpg")
    with caplog.at_level(logging.WARNING):
        load(tree)
    assert "celeba_hq: 1 image lies in several splits" in caplog.text


@pytest.mark.parametrize(
    "file, old, new, message",
    [
        (ANNOTATION, "60\n", "30000\n", "announces 30000 images and has 60 rows"),
        (ANNOTATION, "60\n", "", "line 1 must be the number of images"),
        (ANNOTATION, "\n4.jpg  ", "\n4.jpg  1 ", r"line 7: expected an image name and 40 values of 1 or -1"),
        (ANNOTATION, "\n0.jpg  1", "\n0.jpg  2", r"line 3: expected an image name and 40 values of 1 or -1"),
        (ANNOTATION, "\n4.jpg", "\n3.jpg", r"has two rows for 3\.jpg"),
        (ANNOTATION, "\n4.jpg", "\nfour.jpg", r"'four\.jpg' is no image name"),
        (MAPPING, "59         190007", "60         190007", r"has no line for 59\.jpg"),
        (MAPPING, "190008.jpg", "", r"line 61: expected '0 119613 119614\.jpg'"),
    ],
)
def test_malformed_files(tree, file, old, new, message):
    change(tree / file, old, new)
    with pytest.raises(ValueError, match=message) as error:
        load(tree)
    assert str(tree / file) in str(error.value) and "\n" not in str(error.value)


def test_annotation_that_is_no_text(tree):
    (tree / ANNOTATION).write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match="cannot be read as text"):
        load(tree)


@pytest.mark.parametrize(
    "text, message",
    [
        ("000001.jpg 0\n", r"has no line for 000002\.jpg, from which 1\.jpg comes"),
        ("000001.jpg 3\n", "line 1: expected an image and 0, 1 or 2"),
        ("000001.jpg\n", "line 1: expected an image and 0, 1 or 2"),
    ],
)
def test_bad_partition(tree, text, message):
    (tree / "list_eval_partition.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        load(tree)


def test_partition_without_mapping(tree):
    (tree / "list_eval_partition.txt").write_text("000001.jpg 0\n")
    (tree / MAPPING).unlink()
    with pytest.raises(ValueError, match=f"list_eval_partition.txt is of use only with {MAPPING}"):
        load(tree)


# --- option ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["classifier", "gan"])
def test_attribute_option_reaches_the_loader(tree, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    data = ("--dataset", "celeba_hq", "--dataset-path", str(tree))
    Answer("train", command, *data, "--attribute", "Smilling", "--device", "cpu").refused("did you mean Smiling?")
    Answer("train", command, "--dataset", "birds", "--attribute", "Smiling").refused(
        "--attribute Smiling: it chooses", "'birds'"
    )
