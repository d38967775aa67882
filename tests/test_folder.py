"""Folders of images: splits, every kind of picture with the right colours, what is left out, what is remembered."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from viscoin.config import DatasetConfig
from viscoin.datasets import ImageDataset, load_dataset
from viscoin.datasets import files as files_module
from viscoin.datasets.base import cache_folder
from viscoin.datasets.reading import read_square

SIZE = 16
COLOURS = np.array([[200, 30, 40], [20, 180, 90]], dtype=np.uint8)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, number: int, size: int = SIZE) -> Path:
    """A picture of one colour, which tells its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (number % 256, number // 256, 7)).save(path)
    return path


def write_classes(root: Path, counts: dict[str, int], start: int = 0) -> Path:
    """Numbered pictures root/<class>/<number>.png."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(start, start + count):
            write(root / name / f"{number:03}.png", number)
        start += count
    return root


def load(root: Path, split: str, **settings) -> ImageDataset:
    return load_dataset(str(root), split, DatasetConfig(name=str(root), resolution=SIZE, **settings))


def numbers(dataset: ImageDataset) -> list[int]:
    """The numbers of the pictures of a dataset."""
    pixels = np.asarray(dataset.pixels[:, SIZE // 2, SIZE // 2], dtype=int)
    return [int(low + 256 * high) for low, high, _ in pixels]


def test_notes_of_a_mac_are_no_class(here):
    root = write_classes(here / "data", {"cat": 5, "dog": 5})
    write(root / "__MACOSX" / "cat" / "._000.png", 1)
    assert load(root, "train").class_names == ["cat", "dog"]


def test_photographs_that_cannot_be_read_are_counted(here, caplog):
    root = write_classes(here / "data", {"cat": 5, "dog": 5})
    for name in ("IMG_1.HEIC", "IMG_2.heic", "IMG_3.dng", "notes.txt", ".IMG_4.heic"):
        (root / "cat" / name).touch()
    with caplog.at_level(logging.WARNING):
        load(root, "train")
    assert "left out 3 images of kinds that are not read (.dng, .heic); convert them to .jpg or .png" in caplog.text


def test_the_folder_around_the_classes_is_named(here):
    write(write_classes(here / "data" / "photos", {"cat": 5, "dog": 5}).parent / "beside.png", 1)
    with pytest.raises(ValueError, match=r"one class only \('photos'\).*if the folders in it .* give data/photos"):
        load(Path("data"), "train")
    write_classes(here / "one", {"cat": 5})
    with pytest.raises(ValueError, match=r"one class only \('cat'\); a classifier needs at least two$"):
        load(Path("one"), "train")


# --- splits ------------------------------------------------------------------------------------------------------


def test_one_level_is_split_by_class(here):
    root = write_classes(here / "data", {"cat": 10, "dog": 20, "eel": 7})
    parts = {split: load(root, split) for split in ("train", "validation", "test")}
    assert sorted(n for part in parts.values() for n in numbers(part)) == list(range(37))  # disjoint and complete
    assert [np.bincount(parts[split].labels).tolist() for split in parts] == [[7, 14, 5], [1, 2, 1], [2, 4, 1]]
    for part in parts.values():
        assert part.class_names == ["cat", "dog", "eel"] and part.name == "data"
        assert [0 if n < 10 else 1 if n < 30 else 2 for n in numbers(part)] == part.labels.tolist()


def test_split_depends_on_the_seed_alone(here):
    root = write_classes(here / "data", {"cat": 20, "dog": 20})
    first = numbers(load(root, "test"))
    assert numbers(load(root, "test")) == first
    assert numbers(load(root, "test", seed=1)) != first
    assert numbers(load(root, "test")) != sorted(range(20))[: len(first)]
    for split in ("train", "validation"):
        assert not set(numbers(load(root, split, seed=1))) & set(numbers(load(root, "test", seed=1)))


def test_two_levels_keep_their_test_images(here):
    write_classes(here / "data" / "train", {"cat": 10, "dog": 20})
    write_classes(here / "data" / "test", {"cat": 3, "dog": 4}, start=100)
    parts = {split: load(here / "data", split) for split in ("train", "validation", "test")}
    assert numbers(parts["test"]) == list(range(100, 107))
    assert sorted(numbers(parts["train"]) + numbers(parts["validation"])) == list(range(30))
    assert np.bincount(parts["validation"].labels).tolist() == [1, 2]


def test_two_levels_with_a_validation_folder(here):
    for start, (split, count) in zip((0, 100, 200), (("train", 5), ("validation", 2), ("test", 3))):
        write_classes(here / "data" / split, {"cat": count, "dog": count}, start)
    for start, (split, count) in zip((0, 100, 200), (("train", 5), ("validation", 2), ("test", 3))):
        part = load(here / "data", split)
        assert numbers(part) == list(range(start, start + 2 * count))
        assert part.labels.tolist() == [0] * count + [1] * count


def test_classes_unknown_to_training_are_named(here):
    write_classes(here / "data" / "train", {"cat": 3, "dog": 3})
    write_classes(here / "data" / "test", {"cat": 3, "dog": 3, "eel": 3})
    with pytest.raises(ValueError, match=r"data/test holds classes that .*data/train has not: eel"):
        load(here / "data", "train")


def test_fewer_images_on_demand(here):
    root = write_classes(here / "data", {"cat": 30, "dog": 30})
    whole, part = numbers(load(root, "train")), numbers(load(root, "train", train=10))
    assert len(part) == 10 and set(part) < set(whole)
    assert min(part) < 30 <= max(part)  # of both classes, not the head of the list
    assert part == numbers(load(root, "train", train=10))
    assert numbers(load(root, "train", train=1000)) == whole


def test_other_files_are_passed_over(here):
    root = write_classes(here / "data", {"cat": 4, "dog": 4})
    write(root / "cat" / "deep" / "down" / "X.JPG", 60)  # nested folders and capitals count
    (root / "cat" / "notes.txt").write_text("no picture")
    (root / "cat" / "._000.png").write_bytes(b"what macOS leaves in archives")
    write(root / "cat" / ".thumbnails" / "000.png", 61)
    (root / ".git").mkdir()
    (root / "README.md").touch()
    found = [n for split in ("train", "validation", "test") for n in numbers(load(root, split))]
    assert len(found) == 9 and load(root, "train").class_names == ["cat", "dog"]
    for split in ("train", "test"):
        write_classes(here / "two" / split, {"cat": 4, "dog": 4})
        (here / "two" / split / ".hidden").mkdir()
    assert load(here / "two", "test").class_names == ["cat", "dog"]


def test_pictures_beside_the_class_folders_are_left_out_with_a_warning(here, caplog):
    root = write_classes(here / "data", {"cat": 4, "dog": 4})
    for i in range(3):
        write(root / f"{i}.png", 90 + i)
    found = [n for split in ("train", "validation", "test") for n in numbers(load(root, split))]
    assert sorted(found) == list(range(8)) and "left out 3 images" in caplog.text


def test_links_to_folders_are_followed_unless_they_lead_back(here):
    elsewhere = write_classes(here / "elsewhere", {"cat": 4, "dog": 4})
    (here / "data" / "dog").mkdir(parents=True)
    (here / "data" / "cat").symlink_to(elsewhere / "cat")
    (here / "data" / "dog" / "deeper").symlink_to(elsewhere / "dog")
    (here / "data" / "dog" / "back").symlink_to(here / "data")
    found = [n for split in ("train", "validation", "test") for n in numbers(load(here / "data", split))]
    assert sorted(found) == list(range(8))


def test_folder_named_by_a_dot_has_the_name_of_the_folder(here, monkeypatch):
    monkeypatch.chdir(write_classes(here / "scans", {"cat": 4, "dog": 4}))
    assert load(Path("."), "train").name == "scans"


def test_folder_has_no_truth(here):
    dataset = load(write_classes(here / "data", {"cat": 4, "dog": 4}), "train")
    assert not dataset.has_truth
    with pytest.raises(ValueError, match="'data' has no ground-truth attributes"):
        dataset.attributes  # noqa: B018
    with pytest.raises(ValueError, match="'data' has no part masks"):
        dataset.part_masks(0)


# --- pictures ----------------------------------------------------------------------------------------------------


def two_colours() -> np.ndarray:
    """(16, 16, 3): left half one colour, right half another."""
    return COLOURS[np.arange(SIZE) // (SIZE // 2)][None].repeat(SIZE, 0)


def two_greys() -> np.ndarray:
    return np.array([40, 200], dtype=np.uint8)[np.arange(SIZE) // (SIZE // 2)][None].repeat(SIZE, 0)


def check(path: Path, expected: np.ndarray, tolerance: int = 0) -> None:
    pixels = read_square(path, SIZE)
    assert pixels.shape == (SIZE, SIZE, 3) and pixels.dtype == np.uint8
    wanted = expected if expected.ndim == 3 else expected[..., None].repeat(3, 2)
    assert np.abs(pixels.astype(int) - wanted).max() <= tolerance, pixels[0, [0, -1]]


def mode(path: Path) -> str:
    with Image.open(path) as image:
        return image.mode


def test_rgb(here):
    Image.fromarray(two_colours()).save(here / "x.png")
    check(here / "x.png", two_colours())


def test_grey(here):
    Image.fromarray(two_greys()).save(here / "x.png")
    check(here / "x.png", two_greys())


def test_black_and_white(here):
    Image.fromarray(two_greys() > 100).save(here / "x.png")
    check(here / "x.png", np.where(two_greys() > 100, 255, 0))


def test_palette(here):
    image = Image.fromarray((np.arange(SIZE) // (SIZE // 2)).astype(np.uint8)[None].repeat(SIZE, 0), mode="L")
    image = image.convert("P")
    image.putpalette(COLOURS.tobytes())
    image.save(here / "x.png")
    assert mode(here / "x.png") == "P"
    check(here / "x.png", two_colours())
    image.save(here / "t.png", transparency=1)  # the second colour is see-through
    expected = two_colours()
    expected[:, SIZE // 2 :] = 255
    check(here / "t.png", expected)


def test_transparency_shows_white(here):
    alpha = np.array([255, 51], dtype=np.uint8)[np.arange(SIZE) // (SIZE // 2)][None].repeat(SIZE, 0)
    Image.fromarray(np.dstack([two_colours(), alpha])).save(here / "rgba.png")
    shown = two_colours() * (alpha / 255)[..., None] + 255 * (1 - alpha / 255)[..., None]
    check(here / "rgba.png", shown, tolerance=1)
    Image.fromarray(np.dstack([two_greys(), alpha]), mode="LA").save(here / "la.png")
    check(here / "la.png", two_greys() * (alpha / 255) + 255 - alpha, tolerance=1)


def test_colour_that_stands_for_transparent(here):
    Image.fromarray(two_colours()).save(here / "x.png", transparency=tuple(int(v) for v in COLOURS[0]))
    expected = two_colours()
    expected[:, : SIZE // 2] = 255
    check(here / "x.png", expected)


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_sixteen_bits(here, name):
    values = two_greys().astype(np.uint16) * 257
    Image.fromarray(values).save(here / name)
    assert mode(here / name) == "I;16"
    check(here / name, two_greys())


def test_thirty_two_bits(here):
    Image.fromarray(two_greys().astype(np.int32) * 257).save(here / "x.tif")
    assert mode(here / "x.tif") == "I"
    check(here / "x.tif", two_greys())


def test_floating_point(here):
    values = np.where(two_greys() > 100, 199.7, -3.0).astype(np.float32)
    Image.fromarray(values).save(here / "x.tif")
    assert mode(here / "x.tif") == "F"
    check(here / "x.tif", np.where(two_greys() > 100, 200, 0))


def test_cmyk(here):
    ink = np.array([[0, 255, 255, 0], [255, 0, 0, 100]], dtype=np.uint8)[np.arange(SIZE) // (SIZE // 2)]
    Image.fromarray(ink[None].repeat(SIZE, 0), mode="CMYK").save(here / "x.tif")
    expected = np.array([[255, 0, 0], [0, 155, 155]])[np.arange(SIZE) // (SIZE // 2)][None].repeat(SIZE, 0)
    check(here / "x.tif", expected, tolerance=1)
    Image.fromarray(ink[None].repeat(SIZE, 0), mode="CMYK").save(here / "x.jpg", quality=100, subsampling=0)
    check(here / "x.jpg", expected, tolerance=3)


def test_lab(here):
    """CIELAB of the sRGB primaries red and green (D50 white)."""
    lab = np.array([[54.3, 80.8, 69.9], [87.8, -79.3, 81.0]])[np.arange(SIZE) // (SIZE // 2)]
    stored = np.column_stack([lab[:, 0] * 2.55, lab[:, 1:] % 256]).round().astype(np.uint8)
    Image.fromarray(stored[None].repeat(SIZE, 0), mode="LAB").save(here / "x.tif")
    expected = np.array([[255, 0, 0], [0, 255, 0]])[np.arange(SIZE) // (SIZE // 2)][None].repeat(SIZE, 0)
    check(here / "x.tif", expected, tolerance=20)


def test_jpeg_and_webp(here):
    Image.fromarray(two_colours()).save(here / "x.jpg", quality=100, subsampling=0)
    check(here / "x.jpg", two_colours(), tolerance=3)
    Image.fromarray(two_colours()).save(here / "x.webp", lossless=True)
    check(here / "x.webp", two_colours())


UPRIGHT = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [  # EXIF 2.3, tag 274: where the first row and column of the stored picture lie
        (1, UPRIGHT),
        (2, UPRIGHT[:, ::-1]),
        (3, UPRIGHT[::-1, ::-1]),
        (4, UPRIGHT[::-1]),
        (5, UPRIGHT.swapaxes(0, 1)),
        (6, np.rot90(UPRIGHT)),
        (7, UPRIGHT[::-1, ::-1].swapaxes(0, 1)),
        (8, np.rot90(UPRIGHT, -1)),
    ],
)
def test_pictures_of_turned_cameras_stand_upright(here, orientation, stored):
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(here / "x.png", exif=exif)
    check(here / "x.png", UPRIGHT)


def test_wide_and_high_pictures_are_cropped_at_the_centre(here):
    wide = np.zeros((SIZE, 2 * SIZE, 3), dtype=np.uint8)
    wide[:, SIZE // 2 : -SIZE // 2] = two_colours()
    Image.fromarray(wide).save(here / "wide.png")
    Image.fromarray(wide.swapaxes(0, 1).copy()).save(here / "high.png")
    check(here / "wide.png", two_colours())
    check(here / "high.png", two_colours().swapaxes(0, 1))


def test_large_pictures_are_shrunk_smoothly(here):
    stripes = (np.arange(4 * SIZE) % 2 * 255).astype(np.uint8)[None].repeat(4 * SIZE, 0)
    Image.fromarray(stripes).save(here / "x.png")
    assert np.abs(read_square(here / "x.png", SIZE)[2:-2, 2:-2].astype(int) - 127).max() < 12


def test_small_pictures_are_enlarged_and_said_so(here, caplog):
    root = write_classes(here / "data", {"cat": 4, "dog": 4})
    small = [write(path, 5, size=10) for path in root.glob("*/*.png")]
    with caplog.at_level(logging.WARNING, "viscoin"):
        assert load(root, "train").pixels.shape == (4, SIZE, SIZE, 3)
    assert len(small) == 8 and "8 of 8 images are smaller than 16 px" in caplog.text


# --- what cannot be used -----------------------------------------------------------------------------------------


def test_pictures_with_damaged_orientation_are_named(here):
    root = write_classes(here / "data", {"cat": 1, "dog": 4})
    for i in range(3):
        Image.new("RGB", (SIZE, SIZE)).save(root / "cat" / f"odd{i}.png", exif=b"no EXIF at all")
    with pytest.raises(ValueError, match=r"cannot be used: .*odd\d\.png \(not a TIFF file"):
        load(root, "train")


def test_enormous_pictures_are_named(here, monkeypatch):
    root = write_classes(here / "data", {"cat": 4, "dog": 4})
    write(root / "dog" / "000.png", 1, size=40)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20 * 20)
    with pytest.raises(ValueError, match=r"1 of \d files in .*000\.png \(Image size \(1600 pixels\)"):
        for split in ("train", "validation", "test"):
            load(root, split)


def test_bad_files_are_found_under_any_spelling_of_the_folder(here, caplog):
    root = write_classes(here / "data", {"cat": 20, "dog": 20})
    bad = root / "cat" / "003.png"
    bad.write_text("no picture")
    for spelling in (root, Path("data"), Path("./data/../data")):  # the second time from what was remembered
        found = [
            n for split in ("train", "validation", "test") for n in numbers(load(spelling, split, skip_bad_files=True))
        ]
        assert sorted(found) == [n for n in range(40) if n != 3]
    with pytest.raises(ValueError, match=r"1 of \d+ files in data .*003\.png"):
        for split in ("train", "validation", "test"):
            load(Path("data"), split)


# --- what is remembered ------------------------------------------------------------------------------------------


def test_pictures_are_decoded_once(here, monkeypatch):
    root = write_classes(here / "data", {"cat": 4, "dog": 4})
    before = numbers(load(root, "train"))
    monkeypatch.setattr(files_module, "_read", None)
    assert numbers(load(root, "train")) == before


def test_changed_pictures_are_read_again(here):
    root = write_classes(here / "data", {"cat": 4, "dog": 4})
    before = numbers(load(root, "train"))
    path = root / "cat" / f"{before[0]:03}.png"
    write(path, 99)
    os.utime(path, ns=(1, 1))
    assert numbers(load(root, "train")) == [99, *before[1:]]


def test_sizes_and_splits_are_kept_apart(here):
    root = write_classes(here / "data", {"cat": 8, "dog": 8})
    assert load(root, "train").pixels.shape[1] == SIZE
    other = load_dataset(str(root), "train", DatasetConfig(resolution=2 * SIZE))
    assert other.pixels.shape[1] == other.resolution == 2 * SIZE
    assert len(load(root, "train")) != len(load(root, "test"))
    assert len(list(cache_folder().rglob("*.npy"))) == 2  # all splits of a size lie together


def test_folders_with_files_of_the_same_sizes_and_times_are_kept_apart(here):
    roots = [write_classes(here / name, {"cat": 4, "dog": 4}, start) for name, start in (("one", 0), ("two", 100))]
    for path in here.rglob("*.png"):
        os.utime(path, ns=(1, 1))
    assert len({path.stat().st_size for path in here.rglob("*.png")}) == 1
    one, two = (numbers(load(root, "train")) for root in roots)
    assert max(one) < 100 <= min(two)


def test_interrupted_reading_leaves_nothing_behind(here, monkeypatch):
    root = write_classes(here / "data", {"cat": 4, "dog": 4})

    def fail(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files_module, "_read", fail)
        load(root, "train")
    assert [path for path in cache_folder().rglob("*") if path.suffix != ".json" and path.is_file()] == []
    assert len(load(root, "train")) == 4
