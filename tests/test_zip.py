"""Zips of images: the public layout, class folders, splits with and without labels, and what is damaged."""

import io
import json
import stat
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from viscoin.config import DatasetConfig
from viscoin.datasets import ImageDataset, load_dataset
from viscoin.datasets import files as files_module
from viscoin.datasets import zip as zip_module
from viscoin.datasets.base import cache_folder

SIZE = 16


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def picture(number: int, kind: str = "png", mode: str = "RGB") -> bytes:
    """A file of one colour, which tells its number."""
    buffer = io.BytesIO()
    colour = (number % 256, number // 256, 7) if mode == "RGB" else number
    Image.new(mode, (SIZE, SIZE), colour).save(buffer, kind)
    return buffer.getvalue()


def place(number: int) -> str:
    return f"00000/img{number:08d}.png"


def write_zip(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_public(path: Path, count: int, labels: Any = "thirds", **extra: Any) -> Path:
    """A zip as the public tool writes it; image i is of class i % 3."""
    if labels == "thirds":
        labels = [[place(i), i % 3] for i in range(count)]
    files = {place(i): picture(i) for i in range(count)}
    return write_zip(path, files | {"dataset.json": json.dumps({"labels": labels, **extra}).encode()})


def load(path: Path, split: str, labelled: bool = True, **settings: Any) -> ImageDataset:
    config = DatasetConfig(name=str(path), resolution=SIZE, **settings)
    return load_dataset(str(path), split, config, labelled=labelled)


def numbers(dataset: ImageDataset) -> list[int]:
    pixels = np.asarray(dataset.pixels[:, SIZE // 2, SIZE // 2], dtype=int)
    return [int(low + 256 * high) for low, high, _ in pixels]


def parts(path: Path, **settings: Any) -> dict[str, ImageDataset]:
    return {split: load(path, split, **settings) for split in ("train", "validation", "test")}


# --- layouts -----------------------------------------------------------------------------------------------------


def test_public_zip_is_split_by_class(here):
    found = parts(write_public(here / "x.zip", 60))
    assert {split: len(part) for split, part in found.items()} == {"train": 42, "validation": 6, "test": 12}
    assert sorted(n for part in found.values() for n in numbers(part)) == list(range(60))
    for part in found.values():
        assert part.class_names == ["0", "1", "2"] and part.name == "x"
        assert [n % 3 for n in numbers(part)] == part.labels.tolist()
        assert len(set(np.bincount(part.labels))) == 1
    assert numbers(load(here / "x.zip", "test", seed=1)) != numbers(found["test"])


def test_zip_and_its_unpacked_folder_are_the_same(here):
    path = write_public(here / "x.zip", 30, class_names=["ant", "bee", "cat"])
    with zipfile.ZipFile(path) as archive:
        archive.extractall(here / "unpacked")
    for split, part in parts(path).items():
        other = load(here / "unpacked", split)
        assert np.array_equal(part.pixels, other.pixels) and part.labels.tolist() == other.labels.tolist()
        assert part.class_names == other.class_names == ["ant", "bee", "cat"]


def test_order_of_the_labels_and_backslashes_do_not_matter(here):
    labels = [[place(i).replace("/", "\\"), i % 3] for i in reversed(range(30))]
    part = load(write_public(here / "x.zip", 30, labels), "train")
    assert [n % 3 for n in numbers(part)] == part.labels.tolist()


def test_grey_images_and_jpegs(here):
    files = {f"{i}.jpg": picture(10 * i, "jpeg", "L") for i in range(8)}
    index = json.dumps({"labels": [[f"{i}.jpg", i % 2] for i in range(8)]}).encode()
    found = parts(write_zip(here / "x.zip", files | {"dataset.json": index}))
    shades = sorted(int(image.mean()) for part in found.values() for image in part.pixels)
    assert np.abs(np.array(shades) - np.arange(0, 80, 10)).max() <= 1


@pytest.mark.parametrize("around", ["", "data/", "deep/er/"])
def test_class_folders_in_a_zip(here, around):
    files = {f"{around}{name}/{i}.png": picture(i + 10 * k) for k, name in enumerate("ab") for i in range(10)}
    files |= {
        "__MACOSX/": b"",
        f"__MACOSX/{around}a/._0.png": b"junk",
        f"{around}.DS_Store": b"junk",
        f"{around}notes.txt": b"text",
    }
    found = parts(write_zip(here / "x.zip", files, zipfile.ZIP_DEFLATED))
    assert sorted(n for part in found.values() for n in numbers(part)) == list(range(20))
    for part in found.values():
        assert part.class_names == ["a", "b"] and part.labels.tolist() == [n // 10 for n in numbers(part)]


def test_given_splits_in_a_zip(here):
    files = {f"train/{name}/{i}.png": picture(i + 10 * k) for k, name in enumerate("ab") for i in range(10)}
    files |= {f"test/{name}/{i}.png": picture(100 + i + 10 * k) for k, name in enumerate("ab") for i in range(2)}
    assert numbers(load(write_zip(here / "x.zip", files), "test")) == [100, 101, 110, 111]


def test_public_zip_around_a_folder(here):
    files = {f"data/{place(i)}": picture(i) for i in range(20)}
    index = json.dumps({"labels": [[place(i), i % 2] for i in range(20)]}).encode()
    part = load(write_zip(here / "x.zip", files | {"data/dataset.json": index}), "train")
    assert [n % 2 for n in numbers(part)] == part.labels.tolist()


# --- without labels ----------------------------------------------------------------------------------------------


def flat_zip(here: Path) -> Path:
    return write_public(here / "x.zip", 20, labels=None)


def flat_folder(here: Path) -> Path:
    (here / "x" / "more").mkdir(parents=True)
    for i in range(20):
        (here / "x" / "more" / f"{i}.png" if i % 4 == 0 else here / "x" / f"{i}.png").write_bytes(picture(i))
    return here / "x"


def one_class(here: Path) -> Path:
    (here / "x" / "only").mkdir(parents=True)
    for i in range(20):
        (here / "x" / "only" / f"{i}.png").write_bytes(picture(i))
    return here / "x"


def zip_of_jpegs(here: Path) -> Path:
    return write_zip(here / "x.zip", {f"photo {i}.png": picture(i) for i in range(20)})


@pytest.mark.parametrize("make", [flat_zip, flat_folder, one_class, zip_of_jpegs])
def test_images_without_classes(here, make):
    path = make(here)
    found = parts(path, labelled=False)
    assert numbers(found["test"]) == numbers(found["validation"]) and len(found["test"]) == 2
    assert sorted(numbers(found["train"]) + numbers(found["test"])) == list(range(20))
    for part in found.values():
        assert part.class_names == ["image"] and set(part.labels.tolist()) == {0} and part.name == "x"
    with pytest.raises(ValueError, match=r"class folders|no labels|one class only"):
        load(path, "train")


def test_remedy_for_missing_labels(here):
    with pytest.raises(ValueError, match=r"x\.zip/dataset\.json has no labels; .*folder of its own.*`labels` FILE"):
        load(flat_zip(here), "train")
    with pytest.raises(ValueError, match=r"x\.zip holds no class folders; .*dataset\.json"):
        load(zip_of_jpegs(here), "train")


def test_classes_are_kept_where_there_are_some(here):
    path = write_public(here / "x.zip", 60)
    for split, part in parts(path).items():
        other = load(path, split, labelled=False)
        assert numbers(other) == numbers(part) and other.class_names == part.class_names
    assert load_dataset("birds", "test", DatasetConfig(resolution=16, test=5), labelled=False).class_names[0] != "image"


def test_given_splits_without_classes(here):
    for split, start, count in (("train", 0, 10), ("test", 10, 3)):
        (here / "x" / split).mkdir(parents=True)
        for i in range(start, start + count):
            (here / "x" / split / f"{i}.png").write_bytes(picture(i))
    found = parts(here / "x", labelled=False)
    assert numbers(found["test"]) == [10, 11, 12]
    assert sorted(numbers(found["train"]) + numbers(found["validation"])) == list(range(10))


def test_unusable_labels_are_no_matter_without_classes(here, caplog):
    path = write_public(here / "x.zip", 20, [[place(i), [0.5, 0.5]] for i in range(20)])
    part = load(path, "train", labelled=False)
    assert len(part) == 18 and part.class_names == ["image"]
    assert "labels are not used" in caplog.text


def test_classes_too_small_to_split_are_no_matter_without_classes(here, caplog):
    labels = [[place(i), i // 2] for i in range(20)]
    part = load(write_public(here / "x.zip", 20, labels), "train", labelled=False)
    assert len(part) == 18 and part.class_names == ["image"]
    assert "class '0' has 2 images" in caplog.text


def test_one_image_cannot_be_split(here):
    with pytest.raises(ValueError, match=r"x\.zip has no readable images for split 'train'"):
        load(write_public(here / "x.zip", 1, None), "train", labelled=False)
    with pytest.raises(ValueError, match=r"x\.zip has no readable images for split 'test'"):
        load(write_public(here / "x.zip", 0, None), "test", labelled=False)


# --- what is remembered ------------------------------------------------------------------------------------------


def test_images_are_read_once_and_never_unpacked(here, monkeypatch):
    path = write_public(here / "x.zip", 30)
    before = load(path, "train")
    assert isinstance(before.pixels, np.memmap)
    with monkeypatch.context() as patch:
        patch.setattr(files_module, "_read", None)
        assert numbers(load(path, "train")) == numbers(before)
    assert {found.suffix for found in cache_folder().rglob("*") if found.is_file()} == {".npy", ".json", ".sum"}
    write_zip(path, {place(i): picture(i + 100) for i in range(30)} | {"dataset.json": index_of(30)})
    assert min(numbers(load(path, "train"))) >= 100


def index_of(count: int) -> bytes:
    return json.dumps({"labels": [[place(i), i % 3] for i in range(count)]}).encode()


def test_names_that_lead_elsewhere_write_nothing(here):
    names = ["../../evil.png", "/tmp/evil.png", "a/../../b/evil.png"]
    files = {name: picture(i) for i, name in enumerate(names)} | {place(i): picture(i) for i in range(8)}
    (here / "inner").mkdir()
    load(write_zip(here / "inner" / "x.zip", files), "train", labelled=False)
    assert not list(here.rglob("evil*")) and not Path("/tmp/evil.png").exists()


# --- what cannot be used -----------------------------------------------------------------------------------------


def test_broken_zip(here):
    path = write_public(here / "x.zip", 30)
    whole = path.read_bytes()
    for content in (b"", b"no zip", whole[:1000], whole[:-30]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.zip is not a readable zip"):
            load(path, "train")


def test_broken_image_is_named_with_its_zip(here, caplog):
    path = write_public(here / "x.zip", 60)
    content = bytearray(path.read_bytes())
    start = content.index(b"IDAT")
    content[start + 5] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"1 of 60 files in .*x\.zip/00000/img00000000\.png \(Bad CRC-32"):
        load(path, "train")
    found = parts(path, skip_bad_files=True)
    assert sorted(n for part in found.values() for n in numbers(part)) == list(range(1, 60))
    assert "left out 1 of 60 files" in caplog.text


def test_no_image_inside_an_image_file(here):
    files = {place(i): picture(i) for i in range(30)} | {place(7): b"text", "dataset.json": index_of(30)}
    with pytest.raises(ValueError, match=r"00000/img00000007\.png \(no image"):
        load(write_zip(here / "x.zip", files), "train")


def test_encrypted_member(here):
    path = write_public(here / "x.zip", 30)
    content = path.read_bytes()
    local, central = content.index(b"PK\x03\x04"), content.index(b"PK\x01\x02")
    flagged = bytearray(content)
    flagged[local + 6] |= 1
    flagged[central + 8] |= 1
    path.write_bytes(flagged)
    with pytest.raises(ValueError, match=r"img00000000\.png \(.*encrypted"):
        load(path, "train")


def test_bombs_are_refused(here, monkeypatch):
    header = struct.pack(">4sIIBBBBB", b"IHDR", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">II4s", zlib.crc32(header), 9, b"IDAT")
    files = {place(i): picture(i) for i in range(30)} | {place(7): bomb, "dataset.json": index_of(30)}
    with pytest.raises(ValueError, match=r"img00000007\.png \(Image size"):
        load(write_zip(here / "x.zip", files), "train")
    monkeypatch.setattr(zip_module, "LARGEST_MEMBER", 2**20)
    files[place(7)] = bytes(2**20 + 1)
    with pytest.raises(ValueError, match=r"img00000007\.png \(1 MiB when unpacked, at most 1"):
        load(write_zip(here / "y.zip", files, zipfile.ZIP_DEFLATED), "train")
    files = {"dataset.json": b" " * (2**20 + 1)}
    with pytest.raises(ValueError, match=r"z\.zip/dataset\.json cannot be read \(1 MiB"):
        load(write_zip(here / "z.zip", files, zipfile.ZIP_DEFLATED), "train")


MALFORMED = {
    "{": "not valid JSON",
    "[" * 100_000: "not valid JSON",
    "\ud800": "not valid JSON",
    "[1, 2]": "must hold",
    '{"label": null}': "must hold",
    '{"labels": {"a.png": 1}}': "must be a list",
    '{"labels": ["a.png"]}': "'a.png' is not of the form",
    '{"labels": [["a.png"]]}': "is not of the form",
    '{"labels": [[1, "a.png"]]}': "is not of the form",
    '{"labels": null, "class_names": "ab"}': "list of texts",
    '{"labels": null, "class_names": ["a", "a"]}': "'a' twice",
}


@pytest.mark.parametrize("text", MALFORMED, ids=lambda text: text[:20])
@pytest.mark.parametrize("labelled", [True, False])
def test_malformed_index(here, text, labelled):
    files = {place(i): picture(i) for i in range(5)} | {"dataset.json": text.encode("utf-8", "surrogatepass")}
    with pytest.raises(ValueError, match=rf"x\.zip/dataset\.json.*{MALFORMED[text]}") as caught:
        load(write_zip(here / "x.zip", files), "train", labelled=labelled)
    assert len(str(caught.value)) < 300


BAD_LABELS = {
    "vector": ([0.1, 0.9], r"label of '00000/img00000000\.png' is \[0\.1, 0\.9\], not a class number"),
    "float": (1.5, "is 1.5, not a class number"),
    "negative": (-1, "is -1, not a class number"),
    "truth": (True, "is True, not a class number"),
    "none": (None, "is None, not a class number"),
    "huge": (10**12, "class numbers up to 1000000000000, but only 30"),
}


@pytest.mark.parametrize("kind", BAD_LABELS)
def test_labels_that_are_no_class_numbers(here, kind):
    value, message = BAD_LABELS[kind]
    labels = [[place(i), i % 3] for i in range(1, 30)] + [[place(0), value]]
    with pytest.raises(ValueError, match=rf"dataset\.json.*{message}"):
        load(write_public(here / "x.zip", 30, labels), "train")


def test_label_of_an_unknown_file(here):
    labels = [[place(i), i % 3] for i in range(31)]
    with pytest.raises(ValueError, match=r"dataset\.json has a label for '00000/img00000030\.png', which is not among"):
        load(write_public(here / "x.zip", 30, labels), "train")


def test_images_without_a_label(here, caplog):
    path = write_public(here / "x.zip", 40, [[place(i), i % 2] for i in range(30)])
    with pytest.raises(ValueError, match=r"no label for 10 of 40 images \(first: 00000/img00000030\.png\)"):
        load(path, "train")
    found = parts(path, skip_bad_files=True)
    assert sorted(n for part in found.values() for n in numbers(part)) == list(range(30))
    assert "left out 10 of 40 images" in caplog.text


def test_too_few_class_names(here):
    with pytest.raises(ValueError, match="class numbers up to 2, but only 2 class names"):
        load(write_public(here / "x.zip", 30, class_names=["a", "b"]), "train")


def test_class_without_images(here):
    with pytest.raises(ValueError, match=r"class '1' of .*x\.zip has no readable images left for split 'train'"):
        load(write_public(here / "x.zip", 30, [[place(i), i % 2 * 2] for i in range(30)]), "train")


def test_other_archives_are_no_datasets(here):
    (here / "x.tar").write_bytes(b"archive")
    with pytest.raises(ValueError, match=r"unknown dataset 'x\.tar'.*\.zip"):
        load_dataset("x.tar", "train", DatasetConfig())


# --- names -------------------------------------------------------------------------------------------------------


def stored_as(path: Path, names: list[bytes], extra: bytes = b"") -> Path:
    """A zip whose names are these bytes, without the mark of UTF-8; image i tells its number."""
    marks = [f"{i:02}".ljust(len(name), "x") for i, name in enumerate(names)]
    with zipfile.ZipFile(path, "w") as archive:
        for i, mark in enumerate(marks):
            entry = zipfile.ZipInfo(mark)
            entry.extra = extra
            archive.writestr(entry, picture(i))
    data = path.read_bytes()
    for mark, name in zip(marks, names, strict=True):
        data = data.replace(mark.encode(), name)
    path.write_bytes(data)
    return path


def in_classes(first: str, second: str, encoding: str) -> list[bytes]:
    return [f"{(first, second)[i % 2]}/{i:02}.png".encode(encoding) for i in range(16)]


def test_backslashes_are_folders(here):
    files = {f"photos\\{'ab'[i % 2]}\\{i}.png": picture(i) for i in range(20)} | {
        "photos\\a\\": b"",
        "photos\\c\\": b"",
    }
    with pytest.raises(ValueError, match=r"class 'c' of .* has no readable images"):
        load(write_zip(here / "x.zip", files), "train")
    del files["photos\\c\\"]
    found = parts(write_zip(here / "x.zip", files))
    assert sorted(n for part in found.values() for n in numbers(part)) == list(range(20))
    for part in found.values():
        assert part.class_names == ["a", "b"] and part.labels.tolist() == [n % 2 for n in numbers(part)]


def test_names_in_utf8_without_its_mark(here, caplog):
    assert load(stored_as(here / "x.zip", in_classes("猫", "犬", "utf-8")), "train").class_names == ["犬", "猫"]
    assert "read as" not in caplog.text
    names = in_classes("Mo\u0308we", "Ente", "utf-8")  # as Macs pack them
    assert load(stored_as(here / "y.zip", names), "train").class_names == ["Ente", "M\u00f6we"]


@pytest.mark.parametrize(("encoding", "read_as"), [("gbk", "UTF-8"), ("shift_jis", "CP437")])
def test_names_in_a_code_page_are_told(here, caplog, encoding, read_as):
    path = stored_as(here / "x.zip", in_classes("猫", "犬", encoding))  # the bytes of GBK happen to be UTF-8 as well
    assert len(load(path, "train").class_names) == 2
    assert f"x.zip: 16 names are not marked as Unicode and are read as {read_as} (first: " in caplog.text


def test_names_of_old_windows_in_europe_are_right(here):
    path = stored_as(here / "x.zip", in_classes("Möwe", "Ente", "cp850"))
    assert load(path, "train").class_names == ["Ente", "M\u00f6we"]


def test_names_in_the_unicode_field_count(here, caplog):
    names = in_classes("猫", "犬", "gbk")
    path = here / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(names):
            entry = zipfile.ZipInfo(f"{i:02}".ljust(len(name), "x"))
            text = f"{'猫犬'[i % 2]}/{i:02}.png".encode()
            entry.extra = struct.pack("<HHBL", 0x7075, 5 + len(text), 1, zlib.crc32(name)) + text
            archive.writestr(entry, picture(i))
    data = path.read_bytes()
    for i, name in enumerate(names):
        data = data.replace(f"{i:02}".ljust(len(name), "x").encode(), name)
    path.write_bytes(data)
    assert load(path, "train").class_names == ["犬", "猫"] and "read as" not in caplog.text


def test_absolute_names_and_leftovers(here):
    files = {f"/photos/./{'ab'[i % 2]}/{i}.png": picture(i) for i in range(20)}
    files |= {f"/photos/a/@eaDir/{i}.png/SYNOPHOTO_THUMB_M.jpg": picture(100) for i in range(3)}
    files |= {"/photos/$RECYCLE.BIN/b/1.png": picture(100), "/photos/Thumbs.db": b"", "/#recycle/1.png": picture(100)}
    found = parts(write_zip(here / "x.zip", files))
    assert sorted(n for part in found.values() for n in numbers(part)) == list(range(20))
    assert found["train"].class_names == ["a", "b"]


def test_links_in_a_zip_are_told(here, caplog):
    path = write_public(here / "x.zip", 30)
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("dog")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "../dogs")
    load(path, "train")
    assert "x.zip holds 1 links, which are not followed (first: dog)" in caplog.text


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_in_a_zip(here, caplog):
    path = write_public(here / "x.zip", 30)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(place(0), picture(0))  # the same again
    load(path, "train")
    assert "holds two different" not in caplog.text
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(place(0), picture(99))
    assert 99 in [n for part in parts(path).values() for n in numbers(part)]
    assert f"holds two different '{place(0)}'; the last one counts" in caplog.text


# --- labels ------------------------------------------------------------------------------------------------------


TWICE = {
    "plain": place(0),
    "backslash": place(0).replace("/", "\\"),
    "dot": f"./{place(0)}",
}


@pytest.mark.parametrize("kind", TWICE)
def test_two_labels_of_an_image(here, kind):
    labels = [*([place(i), i % 3] for i in range(30)), [TWICE[kind], 1]]
    for labelled in (True, False):
        with pytest.raises(ValueError, match=r"dataset\.json has two labels for .*: 0 and 1; remove the wrong one"):
            load(write_public(here / "x.zip", 30, labels), "train", labelled)
    labels[-1][1] = 0  # said twice, but the same
    assert len(load(write_public(here / "x.zip", 30, labels), "train")) == 21


def test_two_labels_under_two_forms_of_a_name(here):
    labels = [*([f"M\u00f6we{i}.png", i % 2] for i in range(20)), ["Mo\u0308we1.png", 0]]
    files = {f"M\u00f6we{i}.png": picture(i) for i in range(20)}
    files["dataset.json"] = json.dumps({"labels": labels}).encode()
    with pytest.raises(ValueError, match=r"two labels for .*: 1 and 0"):
        load(write_zip(here / "x.zip", files), "train")


def test_two_keys_of_a_name(here):
    files = {place(i): picture(i) for i in range(20)}
    labels = json.dumps([[place(i), i % 2] for i in range(20)])
    files["dataset.json"] = f'{{"labels": {labels}, "labels": null}}'.encode()
    with pytest.raises(ValueError, match=r"dataset\.json is not valid JSON \(the key 'labels' stands twice in it\)"):
        load(write_zip(here / "x.zip", files), "train", labelled=False)


def test_class_names_twice_in_two_forms(here):
    with pytest.raises(ValueError, match=r'"class_names" holds .* twice'):
        load(write_public(here / "x.zip", 30, class_names=["a", "M\u00f6we", "Mo\u0308we"]), "train")


def test_labels_from_one(here, caplog):
    labels = [[place(i), i % 3 + 1] for i in range(30)]
    for extra in ({}, {"class_names": ["a", "b", "c"]}):
        path = write_public(here / "x.zip", 30, labels, **extra)
        with pytest.raises(ValueError, match=r"no image has class number 0, the smallest is 1; class numbers count"):
            load(path, "train")
        assert load(path, "train", labelled=False).class_names == ["image"]
        assert "labels are not used: " in caplog.text
    path = write_public(here / "x.zip", 30, labels, class_names=["z", "a", "b", "c"])
    with pytest.raises(ValueError, match="class 'z' of"):  # it is that class that lost its images
        load(path, "train")
