"""`data`: what it finds in a dataset, the sheets, splits and exports it writes, and what it refuses."""

import csv
import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from tiny_models import Answer, write_images

from viscoin.config import DatasetConfig
from viscoin.datasets import export, load_dataset
from viscoin.datasets.export import in_turns
from viscoin.datasets.inspection import inspect_dataset
from viscoin.datasets.listing import list_images, warn_once
from viscoin.datasets.selection import parse_classes, select_images
from viscoin.datasets.splitting import Row, Split, class_folders, parse_shares, write_tree
from viscoin.datasets.zip import open_zip
from viscoin.errors import Refused
from viscoin.plotting.data import (
    attribute_frequencies,
    class_counts,
    class_sheets,
    contact_sheets,
    image_sizes,
    pages_of,
)

SPLITS = ("train", "validation", "test")
BIRDS = {"resolution": 32, "classes": 4, "train": 24, "validation": 8, "test": 12}
SETTINGS = [part for key, value in BIRDS.items() for part in ("--set", f"dataset.{key}={value}")]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def birds(split: str):
    return load_dataset("birds", split, DatasetConfig(**BIRDS))


def load(path: str, split: str, resolution: int = 24):
    return load_dataset(path, split, DatasetConfig(name=path, resolution=resolution))


def by_place(images) -> dict[str, tuple[str, bytes]]:
    """Class name and pixels of each image, by split and number in the file name."""
    return {
        f"{images.split}/{Path(file).stem}": (images.class_names[label], pixels.tobytes())
        for file, label, pixels in zip(images.files, images.labels, images.pixels)
    }


def as_exported(images) -> dict[str, tuple[str, bytes]]:
    return {
        f"{images.split}/{i:06d}": (images.class_names[label], images.pixels[i].tobytes())
        for i, label in enumerate(images.labels)
    }


def nothing_new(folder: Path, *known: str) -> None:
    assert sorted(path.name for path in folder.iterdir() if path.name != "cache") == sorted(known)


# --- info --------------------------------------------------------------------------------------------------------


def test_info_of_a_folder_with_flaws(here):
    data = write_images(here / "data", {"ant": 10, "bee": 20})
    (data / "ant" / "bad.png").write_bytes(b"no picture")
    shutil.copy(data / "bee" / "00.png", data / "bee" / "copy.png")
    Image.new("RGB", (80, 50)).save(data / "bee" / "wide.png")
    found = json.loads(Answer("data", "data", "info", "--json").went_well().out)
    assert found["class_names"] == ["ant", "bee"] and found["parts"] == [] and found["attributes"] == {}
    assert np.sum(list(found["class_counts"].values()), 0).tolist() == [10, 22]
    assert found["images"] == {split: sum(counts) for split, counts in found["class_counts"].items()}
    assert found["broken_files"] == [{"file": "data/ant/bad.png", "reason": "no image of a known format"}]
    (group,) = found["duplicates"]["groups"]
    assert {Path(place["image"]).name for place in group} == {"00.png", "copy.png"}
    assert found["duplicates"]["across_splits"] + found["duplicates"]["within_splits"] == 1
    assert found["image_sizes"]["width"] == {"smallest": 24, "median": 24, "largest": 80}
    assert found["image_sizes"]["height"] == {"smallest": 24, "median": 24, "largest": 50}
    assert found["image_sizes"]["most_common"] == {"24x24": 31, "80x50": 1}
    assert found["balance"]["train"]["imbalance"] == max(found["class_counts"]["train"]) / min(
        found["class_counts"]["train"]
    )
    nothing_new(here, "data")  # --json alone writes nothing


def test_duplicates_across_splits_are_told_apart(here):
    for split, count in (("train", 4), ("validation", 2), ("test", 3)):
        write_images(here / "data" / split, {"ant": count, "bee": count})
    for path in (here / "data" / "test").rglob("*.png"):
        Image.new("RGB", (24, 24), (ord(path.parent.name[0]), int(path.stem), 9)).save(path)
    for path in (here / "data" / "validation").rglob("*.png"):
        Image.new("RGB", (24, 24), (ord(path.parent.name[0]), int(path.stem), 99)).save(path)
    shutil.copy(here / "data/train/ant/00.png", here / "data/train/ant/90.png")
    shutil.copy(here / "data/train/bee/01.png", here / "data/test/bee/91.png")
    found = inspect_dataset("data", DatasetConfig(name="data", resolution=24))
    assert len(found.duplicates) == 2
    (across,) = found.across_splits
    assert sorted(across) == [("test", "data/test/bee/91.png"), ("train", "data/train/bee/01.png")]


def test_an_example_of_copies_shows_each_split(here):
    data = write_images(here / "data", {"ant": 20, "bee": 20})
    for i in range(20):
        shutil.copy(data / "bee" / "00.png", data / "ant" / f"copy{i}.png")
    (line,) = (line for line in Answer("data", "data", "info").went_well().out.splitlines() if "copy" in line)
    assert all(f"({split})" in line for split in SPLITS) and line.endswith(" and 17 more")


def test_info_names_all_classes_with_too_few_images(here):
    data = write_images(here / "data", {"ant": 1, "bee": 2, "cow": 8, "dog": 9})
    (data / "empty").mkdir()
    (data / "cow" / "bad.png").write_bytes(b"no picture")
    answer = Answer("data", "data", "info", "--out", "found").went_well()
    found = json.loads((here / "found" / "info.json").read_text())
    assert np.sum(list(found["class_counts"].values()), 0).tolist() == [1, 2, 8, 9, 0]
    (few, broken) = found["problems"]
    assert "'ant' (1), 'bee' (2), 'empty' (0); add images" in few and "cannot be used: 1" in broken
    needs = found["commands"]
    assert all(
        "'ant' (1), 'bee' (2), 'empty' (0)" in needs[key] for key in needs if "classifier" in key or "split" in key
    )
    assert all("skip_bad_files" in needs[key] for key in needs if "gan" in key or "prepare" in key)
    assert "2  cow" in answer.out and "pass --skip-bad-files" in answer.out
    nothing_new(here / "found", "info.json", "class-counts.png")


def test_info_of_what_is_ready(here):
    write_images(here / "data", {"ant": 5, "bee": 5})
    found = json.loads(Answer("data", "data", "info", "--json").went_well().out)
    assert found["problems"] == [] and len(found["commands"]) == 4 and not any(found["commands"].values())
    assert json.loads(Answer("data", "birds", "info", *SETTINGS, "--json").went_well().out)["commands"] == {}


@pytest.mark.parametrize(
    ("folders", "problem", "ready"),
    [
        ({"data/ant": 5}, "holds one class only ('ant')", {"gan", "prepare"}),
        ({"data": 5}, "holds no class folders", {"gan", "prepare"}),
        ({"data": 0}, "holds no class folders", set()),
        ({"data/train/ant": 4, "data/train/bee": 4}, "a folder 'train' but no folder 'test'", set()),
        (
            {"data/train/ant": 4, "data/train/bee": 4, "data/test/ant": 2, "data/test/bee": 0},
            "classes without images in test: 'bee'", {"gan", "prepare", "split"},
        ),
    ],
)  # fmt: skip
def test_info_diagnoses_what_is_no_dataset_yet(here, folders, problem, ready):
    for folder, count in folders.items():
        write_images(here / Path(folder).parent, {Path(folder).name: count})
    found = json.loads(Answer("data", "data", "info", "--json").went_well().out)
    assert sum(found["images"].values()) == sum(folders.values())
    assert problem in found["problems"][0]
    assert {word for key, need in found["commands"].items() if not need for word in key.split()} >= ready
    assert bool(ready) == (not all(found["commands"].values()))


def test_info_of_a_damaged_list_of_labels(here):
    data = write_images(here / "data", {"ant": 5, "bee": 5})
    (data / "dataset.json").write_text('{"labels": [')
    answer = Answer("data", "data", "info", "--json").went_well()
    found = json.loads(answer.out)
    assert found["images"] == {"images": 10} and found["class_names"] == ["ant", "bee"]
    assert "dataset.json is not valid JSON" in found["problems"][0] and all(found["commands"].values())


def test_info_of_folders_whose_names_are_no_text(here):
    data = write_images(here / "data", {os.fsdecode(b"caf\xe9"): 8, os.fsdecode(b"\xff"): 8})
    if not data.is_dir() or len(list(data.iterdir())) != 2:
        pytest.skip("this file system takes no such names")
    for options in ([], ["--skip-bad-files"]):
        found = json.loads(Answer("data", "data", "info", "--json", *options).went_well().out)
        assert found["class_names"] == ["\\xff", "caf\\xe9"] and found["images"] == {"images": 16}
        assert {entry["file"] for entry in found["broken_files"]} == {"data/\\xff", "data/caf\\xe9"}


def test_info_of_drawn_images(here):
    answer = Answer("data", "birds", "info", *SETTINGS, "--out", "found").went_well()
    found = json.loads((here / "found" / "info.json").read_text())
    assert found["images"] == {"train": 24, "validation": 8, "test": 12} and found["image_sizes"] is None
    test = birds("test")
    assert found["attributes"].keys() == set(test.attribute_names) and found["parts"] == list(test.part_names)
    shares = [found["attributes"][name]["test"] for name in test.attribute_names]
    assert np.allclose(shares, test.attributes.mean(0))
    assert found["balance"]["test"] == {
        "smallest": 3, "median": 3.0, "largest": 3, "largest_share": 0.25, "imbalance": 1.0,
    }  # fmt: skip
    assert all(name in answer.out for name in test.class_names)
    nothing_new(here / "found", "info.json", "class-counts.png", "attribute-frequencies.png")


def test_figures_of_sizes_only_where_they_differ(here):
    data = write_images(here / "data", {"ant": 4, "bee": 4})
    assert "all 24x24 px" in Answer("data", data, "info", "--out", "a").went_well().out
    nothing_new(here / "a", "info.json", "class-counts.png")
    Image.new("RGB", (80, 50)).save(data / "bee" / "wide.png")
    assert "24x24 to 80x50 px" in Answer("data", data, "info", "--out", "b").went_well().out
    nothing_new(here / "b", "info.json", "class-counts.png", "image-sizes.png")


def test_same_pixels_without_files(here):
    from viscoin.datasets import base, inspection

    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    parts = {
        "train": base.ImageDataset("x", "train", pixels[[0, 1, 0]], np.array([0, 1, 0]), ["a", "b"]),
        "test": base.ImageDataset("x", "test", pixels[[2, 1]], np.array([0, 1]), ["a", "b"]),
    }
    assert inspection.same_pixels(parts) == [
        [("train", "image 0"), ("train", "image 2")],
        [("train", "image 1"), ("test", "image 1")],
    ]


# --- show --------------------------------------------------------------------------------------------------------


def test_show(here):
    answer = Answer("data", "birds", "show", *SETTINGS, "--split", "test", "--count", 2, "--parts", "--out", "a")
    answer.went_well()
    nothing_new(here / "a", "contact-sheet-test.png")
    Answer("data", "birds", "show", *SETTINGS, "--classes", "1,3", "--out", "b").went_well()
    data = write_images(here / "data", {"ant": 5, "bee": 5})
    Answer("data", data, "show", "--classes", "bug").refused("--classes bug", "2 classes")
    Answer("data", data, "show", "--classes", "2").refused("--classes 2")
    Answer("data", data, "show", "--parts").refused("--parts", "no part masks")
    nothing_new(here, "a", "b", "data")


def test_selection(here):
    config = DatasetConfig(name=str(write_images(here / "data", {"ant": 9, "bee": 5, "cat, wild": 5})), resolution=24)
    one, again, other = (select_images(config, "train", count=3, seed=seed) for seed in (0, 0, 1))
    assert one.class_names == ["ant", "bee", "cat, wild"] and [len(images) for images in one.images] == [3, 3, 3]
    assert np.array_equal(one.images, again.images) and not np.array_equal(one.images, other.images)
    assert parse_classes(["cat, wild", "0,bee", "0"], one.class_names) == [2, 0, 1]
    with pytest.raises(Refused, match=r"classes aunt: unknown class; did you mean 'ant'\? choose .* 0 to 2"):
        parse_classes(["aunt"], one.class_names)
    assert list(contact_sheets(one)) == ["contact-sheet-train"]


def test_sheets_hold_every_class_once():
    images = [np.zeros((1, 8, 8, 3), np.uint8)] * 200
    names = [f"class {i}" for i in range(200)]
    pages = class_sheets(images, names)
    shown = [text.get_text() for page in pages for text in page.axes[0].texts]
    assert shown == names and 1 < len(pages) <= 5
    rows = class_sheets([np.zeros((3, 8, 8, 3), np.uint8)] * 30, names[:30])
    assert sum(len(page.axes[0].images) for page in rows) == 90
    assert all(page.get_size_inches()[1] < 10 for page in (*pages, *rows))


def test_masks_are_coloured():
    mask = np.zeros((1, 2, 8, 8), bool)
    mask[0, 1, :4] = True
    (page,) = class_sheets([np.full((1, 8, 8, 3), 50, np.uint8)] * 2, ["a", "b"], [mask, mask], ["head", "tail"])
    picture = np.asarray(page.axes[0].images[0].get_array())
    assert np.ptp(picture[4:], axis=2).max() < 1e-6 and np.ptp(picture[:4], axis=2).min() > 0.3
    assert [text.get_text() for text in page.legends[0].get_texts()] == ["head", "tail"]


def test_many_parts_have_colours_of_their_own_and_room_in_the_legend():
    names = [f"left part {i}" for i in range(18)]
    picture, masks = np.zeros((1, 24, 24, 3), np.uint8), np.zeros((1, 18, 24, 24), bool)
    for shown in (1, 2, 3, 9):
        for pages in (
            class_sheets([picture] * shown, ["a"] * shown, [masks] * shown, names),
            class_sheets([picture.repeat(2, 0)] * shown, ["a"] * shown, [masks.repeat(2, 0)] * shown, names),
        ):
            legend = pages[0].legends[0]
            pages[0].draw_without_rendering()
            assert (
                pages[0].bbox.x0 <= legend.get_window_extent().x0 and legend.get_window_extent().x1 <= pages[0].bbox.x1
            )
            assert legend.get_window_extent().y0 >= 0
    colours = np.array([to_rgb(line.get_color()) for line in legend.get_lines()])
    apart = np.abs(colours[:, None] - colours).max(-1)
    assert len(colours) == 18 and apart[~np.eye(18, dtype=bool)].min() > 0.12


def test_figures_of_counts_attributes_and_sizes():
    names = [f"class {i}" for i in range(400)]
    counts = {"train": np.arange(400), "test": np.ones(400, int)}
    pages = class_counts(counts, names)
    ticks = [tick.get_text() for page in pages for axes in page.axes for tick in axes.get_yticklabels()]
    assert ticks == names and len(pages) == 3
    bars = [bar for page in pages for axes in page.axes for bar in axes.containers[0]]
    assert [bar.get_width() for bar in bars] == list(range(400))
    (page,) = attribute_frequencies({"train": np.array([0.2, 0.7]), "test": np.array([0.3, 0.6])}, ["red", "blue"])
    assert [bar.get_width() for bar in page.axes[0].containers[0]] == [0.2, 0.7]
    assert page.axes[0].lines[0].get_xdata().tolist() == [0.3, 0.6]
    figure = image_sizes(np.array([[10, 20], [30, 20]]), 16)
    figure.draw_without_rendering()
    assert figure.legends[0].get_window_extent().y0 >= figure.axes[0].get_window_extent().y1  # not on the bars
    assert sum(patch.get_height() for patch in figure.axes[0].containers[0]) == 2


def test_pages():
    assert [(page.start, page.stop) for page in pages_of(10, 4)] == [(0, 3), (3, 7), (7, 10)]
    assert [(page.start, page.stop) for page in pages_of(4, 4)] == [(0, 4)]


# --- split -------------------------------------------------------------------------------------------------------


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_own_split_as_a_file(here):
    data = write_images(here / "data", {"ant": 10, "bee": 20})
    answer = Answer("data", data, "split", "--out", "s").went_well()
    assert "30 images: train 21 (70.0%), validation 3 (10.0%), test 6 (20.0%)" in answer.out
    nothing_new(here / "s", "split.csv")
    rows = read_csv(here / "s" / "split.csv")
    assert len({row["file"] for row in rows}) == 30
    for split in SPLITS:
        part = load("data", split)
        own = [(f"data/{row['file']}", row["class"]) for row in rows if row["split"] == split]
        assert own == [(file, part.class_names[label]) for file, label in zip(part.files, part.labels)]


def test_new_split_is_a_dataset(here):
    data = write_images(here / "data", {"ant": 10, "bee": 20})
    write_images(data / "bee" / "more", {"deep": 10})  # the same file names in one class
    for out, seed in (("s", 0), ("again", 0), ("other", 1)):
        Answer("data", data, "split", "--shares", "80:10:10", "--seed", seed, "--out", out).went_well()
    rows = read_csv(here / "s" / "split.csv")
    assert read_csv(here / "again" / "split.csv") == rows != read_csv(here / "other" / "split.csv")
    parts = {split: load("s", split) for split in SPLITS}
    counts = {split: np.bincount(part.labels).tolist() for split, part in parts.items()}
    assert counts == {"train": [8, 24], "validation": [1, 3], "test": [1, 3]}
    read = {Path(file).resolve() for part in parts.values() for file in part.files}
    assert read == {path.resolve() for path in data.rglob("*.png")}
    for row in rows:
        assert (here / "data" / row["file"]).resolve() in {Path(f).resolve() for f in parts[row["split"]].files}
    assert all(Path(file).is_symlink() for file in parts["test"].files)


def test_classes_that_are_no_folders_are_told(here):
    labels = [[f"{i}.png", i % 2] for i in range(20)]
    for i in range(20):
        (here / "data").mkdir(exist_ok=True)
        Image.new("RGB", (24, 24), (5 * i, 9, 9)).save(here / "data" / f"{i}.png")
    (here / "data" / "dataset.json").write_text(json.dumps({"labels": labels, "class_names": ["ant", "Ram C/V"]}))
    warn_once.cache_clear()
    answer = Answer("data", "data", "split", "--shares", "80:10:10", "--out", "s").went_well()
    assert "1 of 2 classes get another name, as folders need it (first: 'Ram C-V' for 'Ram C/V')" in answer.err
    assert load("s", "test").class_names == ["Ram C-V", "ant"]


def test_edited_split_file(here):
    data = write_images(here / "data", {"ant": 6, "bee": 6})
    Answer("data", data, "split", "--shares", "60:20:20", "--tree", "none", "--out", "s").went_well()
    nothing_new(here / "s", "split.csv")
    rows = read_csv(here / "s" / "split.csv")
    moved = next(row for row in rows if row["split"] == "train" and row["class"] == "ant")
    moved["split"] = "test"
    file = here / "mine.csv"

    def write(rows) -> None:
        text = io.StringIO()
        table = csv.DictWriter(text, ["file", "class", "split"])
        table.writeheader()
        table.writerows(rows)
        file.write_text(text.getvalue())

    write(rows)
    call = ["data", data, "split", "--from", file, "--tree", "copy", "--out", "t"]
    Answer(*call).went_well()
    file.write_text(file.read_text().replace(",", ";"))
    Answer(*call[:-1], "german").went_well()
    assert (here / "german" / "split.csv").read_bytes() == (here / "t" / "split.csv").read_bytes()
    shutil.rmtree(here / "german")
    shutil.rmtree(data / "bee")  # copies need the originals no more
    assert np.bincount(load("t", "test").labels).tolist() == [2, 1]
    write_images(data, {"ant": 6, "bee": 6})
    for change, texts in {
        ("split", "tset"): ("line 2", "'tset'"),
        ("class", "wasp"): ("line 2", "'wasp'", "ant, bee"),
        ("file", "ant/99.png"): ("line 2", "'ant/99.png'"),
        ("file", rows[1]["file"]): ("line 3", "in an earlier line too", "one split only"),
    }.items():
        write([rows[0] | dict([change]), *rows[1:]])
        Answer(*call[:-1], "u").refused("mine.csv", *texts)
    write([row for row in rows if (row["class"], row["split"]) != ("bee", "test")])
    Answer(*call[:-1], "u").refused("mine.csv", "'bee'", "no test images")
    file.write_text("name,label\nx,y\n")
    Answer(*call[:-1], "u").refused("mine.csv", "file, class, split")
    Answer("data", data, "split", "--from", "none.csv", "--out", "u").refused("none.csv", "cannot be read")
    nothing_new(here, "data", "mine.csv", "s", "t")


def test_split_of_images_without_files(here):
    Answer("data", "birds", "split", *SETTINGS, "--shares", "2:1:1", "--out", "s").went_well()
    rows = read_csv(here / "s" / "split.csv")
    counts = [sum(row["split"] == split for row in rows) for split in SPLITS]
    assert counts == [20, 12, 12]
    answer = Answer("data", "birds", "split", *SETTINGS, "--tree", "link", "--out", "t")
    answer.refused("--tree link: the images of birds are no files on disk", "choose none for the CSV")
    nothing_new(here, "s")


def test_pneumonia_keeps_patients_together(here):
    random = np.random.default_rng(0)
    for kind, folder in (("bacteria", "PNEUMONIA"), ("virus", "PNEUMONIA"), ("", "NORMAL")):
        for person in range(12):
            for i in range(2):
                name = f"person{person}_{kind}_{i}.jpeg" if kind else f"IM-{person:04}-{i:04}.jpeg"
                path = here / "x" / ("test" if person % 4 else "train") / folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.integers(0, 256, (20, 20), dtype=np.uint8)).save(path)
    call = ["data", "pneumonia", "split", "--dataset-path", "x", "--shares", "50:25:25"]
    Answer(*call, "--out", "s").went_well()
    rows = read_csv(here / "s" / "split.csv")
    people = {(row["class"], Path(row["file"]).stem.rsplit("_", 1)[0].rsplit("-", 1)[0]): set() for row in rows}
    for row in rows:
        people[row["class"], Path(row["file"]).stem.rsplit("_", 1)[0].rsplit("-", 1)[0]].add(row["split"])
    assert len(rows) == 72 and all(len(splits) == 1 for splits in people.values())


def test_shares():
    assert parse_shares("80:10:10") == {"train": 0.8, "validation": 0.1, "test": 0.1}
    assert parse_shares("1:1:2")["test"] == 0.5
    for text in ("80:20", "80:20:0", "a:b:c", "80:-10:30", "nan:1:1", "inf:1:1", ""):
        with pytest.raises(ValueError, match=r"shares .*: expected three positive numbers .*as in 80:10:10"):
            parse_shares(text)


def test_too_few_images_for_a_split(here):
    data = write_images(here / "data", {"ant": 2, "bee": 20})
    answer = Answer("data", data, "split", "--shares", "80:10:10", "--out", "s")
    answer.refused("--shares 80:10:10", "'ant'", "no train images")
    nothing_new(here, "data")


# --- export ------------------------------------------------------------------------------------------------------


def test_exported_folder_is_the_same_dataset(here):
    Answer("data", "birds", "export", *SETTINGS, "--attributes", "--out", "x").went_well()
    rows = read_csv(here / "x" / "attributes.csv")
    for split in SPLITS:
        own, read = birds(split), load("x", split, 32)
        assert read.class_names == own.class_names
        assert by_place(read) == as_exported(own)
        truth = [[int(v) for k, v in row.items() if k != "file"] for row in rows if row["file"].startswith(split)]
        assert np.array_equal(truth, own.attributes)
    first = next((here / "x" / "test").glob("*/000002.png"))
    assert first.parent.name == birds("test").class_names[birds("test").labels[2]]


def test_order_and_names_of_classes_survive(here):
    names = ["zebra", "AC/DC van", "ant"]
    labels = [[f"{i // 6:05}/{i:08}.png", i % 3] for i in range(36)]
    for i, (name, _) in enumerate(labels):
        (here / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 24), (5 * i, 9, 9)).save(here / "data" / name)
    (here / "data" / "dataset.json").write_text(json.dumps({"labels": labels, "class_names": names}))
    Answer("data", "data", "export", "--out", "x").went_well()
    assert sorted(path.name for path in (here / "x" / "train").iterdir()) == ["AC-DC van", "ant", "zebra"]
    for split in SPLITS:
        own, read = load("data", split), load("x", split)
        assert read.class_names == names and by_place(read) == as_exported(own)


def test_exported_zip_is_the_same_dataset(here):
    Answer("data", "birds", "export", *SETTINGS, "--format", "zip", "--split", "test", "--out", "x.zip").went_well()
    own = birds("test")
    with open_zip(here / "x.zip") as tree:
        listing = list_images(tree)
        assert listing.class_names == own.class_names
        assert [label for _, label in listing.items] == own.labels.tolist()
        with zipfile.ZipFile("x.zip") as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".png"))
            pixels = [np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in names]
    assert names == [f"00000/img{i:08d}.png" for i in range(12)] and np.array_equal(pixels, own.pixels)
    answer = Answer("data", "birds", "export", *SETTINGS, "--format", "zip", "--out", "all.zip").went_well()
    assert "no splits" in answer.out
    again = Answer("data", "x.zip", "info", "--json").went_well()
    assert sum(json.loads(again.out)["images"].values()) == 12 and json.loads(again.out)["resolution"] == 32


def test_fiftyone(here):
    """The documented layout: data/<uuid>.<ext>, labels.json with classes and labels by uuid."""
    Answer("data", "birds", "export", *SETTINGS, "--format", "fiftyone", "--out", "x").went_well()
    content = json.loads((here / "x" / "labels.json").read_text())
    own = birds("test")
    assert content["classes"] == own.class_names
    assert {path.stem for path in (here / "x" / "data").iterdir()} == content["labels"].keys()
    assert len(content["labels"]) == 44
    for i, label in enumerate(own.labels):
        assert content["labels"][f"test-{i:06d}"] == label
        with Image.open(here / "x" / "data" / f"test-{i:06d}.png") as image:
            assert np.array_equal(np.asarray(image), own.pixels[i])
    call = ["data", "birds", "export", *SETTINGS, "--format", "fiftyone", "--out", "x", "--force", "--attributes"]
    Answer(*call, "--split", "test").went_well()
    content = json.loads((here / "x" / "labels.json").read_text())
    assert len(content["labels"]) == len(list((here / "x" / "data").iterdir())) == 12
    entry = content["labels"]["test-000003"]
    truth = dict(zip(own.attribute_names, own.attributes[3].tolist()))
    assert entry == {"label": own.labels[3], "attributes": {"split": "test", **truth}}


def test_limit_and_resolution(here):
    data = write_images(here / "data", {"ant": 20, "bee": 40})
    Answer("data", data, "export", "--limit", 4, "--resolution", 16, "--out", "x").went_well()
    for split in SPLITS:
        part = load("x", split, 16)
        assert np.bincount(part.labels).tolist() == [2, 2]
        whole = {pixels.tobytes() for pixels in load("data", split, 16).pixels}
        assert {pixels.tobytes() for pixels in part.pixels} <= whole


def test_in_turns():
    labels = np.array([0] * 50 + [1] * 2 + [2] * 10)
    assert np.bincount(labels[in_turns(labels, 9, 0)]).tolist() == [4, 2, 3] or np.bincount(
        labels[in_turns(labels, 9, 0)]
    ).tolist() == [3, 2, 4]
    assert in_turns(labels, 9, 0).tolist() == sorted(in_turns(labels, 9, 0).tolist())
    assert in_turns(labels, 9, 0).tolist() != in_turns(labels, 9, 1).tolist()
    assert in_turns(labels, None, 0).tolist() == in_turns(labels, 100, 0).tolist() == list(range(62))


@pytest.mark.parametrize("kind", ["folder", "zip", "fiftyone"])
def test_output_exists(here, kind, monkeypatch):
    data = write_images(here / "data", {"ant": 5, "bee": 5})
    out = "x.zip" if kind == "zip" else "x"
    call = ["data", data, "export", "--format", kind, "--out", out, "--resolution", 16]
    if kind != "zip":
        (here / out).mkdir()  # an empty folder is in nobody's way
    Answer(*call).went_well()
    Answer(*call).refused(f"--out {out}: exists; pass --force")
    before = {path: path.read_bytes() for path in (here / out, *(here / out).rglob("*")) if path.is_file()}
    calls = []

    def fail(image):
        calls.append(image)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return b"png"

    with monkeypatch.context() as patched:
        for module in ("export", "prepare"):
            patched.setattr(f"viscoin.datasets.{module}.png_bytes", fail)
        answer = Answer(*call, "--force")
    assert answer.code == 130 and len(calls) == 4
    nothing_new(here, "data", out)
    assert before == {path: path.read_bytes() for path in (here / out, *(here / out).rglob("*")) if path.is_file()}
    Answer(*call, "--force").went_well()


def test_force_deletes_nothing_but_datasets(here):
    data = write_images(here / "data", {"ant": 5, "bee": 5})
    (here / "thesis").mkdir()
    (here / "thesis" / "chapter.tex").touch()
    for action in (["export"], ["export", "--format", "fiftyone"], ["split", "--shares", "1:1:1"]):
        Answer("data", data, *action, "--out", "thesis", "--force").refused("thesis", "datasets only")
        Answer("data", data, *action, "--out", "data/inside").refused("--out data/inside", "another path")
        Answer("data", data, *action, "--out", "data", "--force").refused("--out data", "another path")
    assert len(list(data.rglob("*.png"))) == 10 and (here / "thesis" / "chapter.tex").is_file()


def test_class_folders():
    assert class_folders(["a/b", "a:b", "..", " x. ", "A-B"]) == ["a-b", "a-b~1", "class", "x", "A-B~4"]
    assert len(class_folders(["x" * 500])[0]) == 120
    assert class_folders(["a-", "a-~2", "a:", "b"]) == ["a-", "a-~2", "a-~3", "b"]
    for names in (["a:", "a:~1", "a-", "a-~3", "A?", "a-~2"], ["~1", ".", "class~1", "class", ".."]):
        assert len({folder.lower() for folder in class_folders(names)}) == len(names)


@pytest.mark.parametrize("tree", ["copy", "link"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_images_of_one_name_in_a_class_are_all_written(tmp_path, tree, order):
    files = [tmp_path / "data" / name for name in ("1/x.png", "2/X.png", "x~2.png")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(file))
    rows = [Row(str(files[i]), 0, "train", files[i]) for i in order]
    write_tree(Split("data", tmp_path, ["alpha"], rows), tmp_path / "out", tree)
    written = list((tmp_path / "out" / "train" / "alpha").iterdir())
    assert sorted(path.read_text() for path in written) == sorted(map(str, files))
    assert len({path.name.lower() for path in written}) == 3


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        (["info", "--shares", "1:1:1"], ["--shares", "split", "info"]),
        (["show", "--limit", 3], ["--limit", "export", "show"]),
        (["split", "--count", 3], ["--count", "show", "split"]),
        (["export", "--json", "--out", "x"], ["--json", "info", "export"]),
        (["split", "--split", "test"], ["--split", "show, export or prepare"]),
        (["prepare", "--set", "dataset.seed=1", "--out", "x"], ["--set", "export, not to prepare"]),
        (["export", "--crop", "none", "--out", "x"], ["--crop", "prepare, not to export"]),
        (["prepare"], ["--out", "photos.zip"]),
        (["look"], ["'look'", "info, show, split, export, prepare"]),
        (["export"], ["--out"]),
        (["export", "--format", "tar", "--out", "x"], ["--format tar", "fiftyone"]),
        (["export", "--split", "half", "--out", "x"], ["--split half"]),
        (["export", "--out", "x.zip"], ["--out x.zip", "without .zip is needed for --format folder"]),
        (["export", "--format", "zip", "--out", "x"], ["ends in .zip"]),
        (["export", "--format", "zip", "--resolution", 40, "--out", "x.zip"], ["--resolution 40", "power of two"]),
        (["export", "--attributes", "--out", "x"], ["--attributes", "no attributes"]),
        (["split", "--shares", "1:1:1", "--from", "x.csv"], ["--shares and --from exclude"]),
        (["split", "--tree", "oak"], ["--tree oak"]),
        (["show", "--split", "half"], ["'half'"]),
        (["show", "--set", "dataset.colour=red"], ["dataset.colour"]),
    ],
)
def test_refusals(here, options, texts):
    data = write_images(here / "data", {"ant": 4, "bee": 4})
    Answer("data", data, *options).refused(*texts)
    nothing_new(here, "data")


def test_names_that_are_no_datasets(here):
    Answer("data", "info", "birds").refused("data birds info")
    Answer("data", "brids", "info").refused("unknown dataset 'brids'")
    Answer("data", "birds", "info", "--dataset-path", "x").refused("--dataset-path", "drawn")
    assert export.FORMATS == ("folder", "zip", "fiftyone")
