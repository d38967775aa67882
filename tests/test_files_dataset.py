"""What datasets of files share: limits, boxes, unusable files, duplicates, classes, and splits by group."""

import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from viscoin.config import DatasetConfig
from viscoin.datasets import files as module
from viscoin.datasets import load_dataset
from viscoin.datasets.files import check_every_class, find_duplicates, prepare_files, warn_about_duplicates
from viscoin.datasets.listing import stratified, stratified_groups

SIZE = 16


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, number: int, size: int = SIZE) -> Path:
    """A picture of one colour, which tells its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (number, 0, 7)).save(path)
    return path


def prepare(files: list[Path], split: str = "train", crops=None, **settings) -> tuple[list[int], list[int]]:
    """Numbers of the prepared pictures, and the positions that were kept."""
    config = DatasetConfig(**{"resolution": SIZE, **settings})
    found = prepare_files("set", split, files, config, Path("set"), crops)
    assert found.pixels.dtype == np.uint8 and isinstance(found.pixels, np.memmap)
    return found.pixels[:, 3, 3, 0].tolist(), found.kept.tolist()


# --- preparing ---------------------------------------------------------------------------------------------------


def test_files_are_read_in_order(here):
    files = [write(here / f"{number}.png", number) for number in (5, 3, 9)]
    assert prepare(files) == ([5, 3, 9], [0, 1, 2])


def test_limits_draw_by_seed(here):
    files = [write(here / f"{number}.png", number) for number in range(40)]
    numbers, kept = prepare(files, train=10, test=3)
    assert numbers == kept and len(set(kept)) == 10 and kept == sorted(kept) and kept != list(range(10))
    assert prepare(files, train=10) == (numbers, kept) and prepare(files, train=10, seed=1)[1] != kept
    assert len(prepare(files, "test", train=10, test=3)[1]) == 3
    assert len(prepare(files, "validation", train=10)[1]) == 40


def test_unusable_files_stop_or_are_left_out(here, caplog):
    files = [write(here / f"{number}.png", number) for number in range(4)]
    files[1].write_text("no picture")
    with pytest.raises(ValueError, match=r"1 of 4 files in set cannot be used: .*1\.png .*`skip_bad_files`"):
        prepare(files)
    with caplog.at_level(logging.WARNING):
        assert prepare(files, skip_bad_files=True) == ([0, 2, 3], [0, 2, 3])
    assert "left out 1 of 4 files" in caplog.text and "1.png" in caplog.text


def test_no_files_are_an_error(here):
    with pytest.raises(ValueError, match=r"set has no readable images for split 'test'"):
        prepare([], "test")


def test_boxes_are_cut_out_first(here):
    picture = np.zeros((40, 60, 3), dtype=np.uint8)
    picture[10:30, 20:40] = 200
    Image.fromarray(picture).save(here / "a.png")
    cut = prepare_files(
        "set", "train", [here / "a.png"], DatasetConfig(resolution=SIZE), here, [(20.0, 10.0, 40.0, 30.0)]
    )
    assert (cut.pixels == 200).all()
    beyond = [(-10.0, -10.0, 20.0, 20.0)]  # only what lies in the image is cut out
    assert prepare([here / "a.png"], crops=beyond)[0] == [0]
    assert (prepare_files("set", "train", [here / "a.png"], DatasetConfig(resolution=SIZE), here).pixels == 0).any()


def test_boxes_outside_of_the_image_are_named(here):
    write(here / "a.png", 1)
    with pytest.raises(ValueError, match=r"a\.png \(the box \(50, 50, 60, 60\) lies outside its 16x16 px"):
        prepare([here / "a.png"], crops=[(50, 50, 60, 60)])


def test_small_boxes_count_as_small_images(here, caplog):
    files = [write(here / f"{number}.png", number, size=40) for number in range(2)]
    with caplog.at_level(logging.WARNING):
        prepare(files, crops=[None, (0.0, 0.0, 30.0, 9.0)])
    assert "1 of 2 images are smaller than 16 px" in caplog.text


# --- duplicates --------------------------------------------------------------------------------------------------


def test_duplicates_are_found_within_and_across_splits(here):
    parts = {
        split: [write(here / split / f"{number}.png", number) for number in numbers]
        for split, numbers in {"train": (1, 2, 3), "validation": (4, 2), "test": (5, 2, 3)}.items()
    }
    parts["test"].append(write(here / "test" / "copy.png", 5))
    groups = [sorted(f"{split}/{file.name}" for split, file in group) for group in find_duplicates(parts)]
    assert sorted(groups) == [
        ["test/2.png", "train/2.png", "validation/2.png"],
        ["test/3.png", "train/3.png"],
        ["test/5.png", "test/copy.png"],
    ]


def test_duplicates_across_splits_are_warned_of_with_count(here, caplog):
    parts = {
        "train": [write(here / f"train{number}.png", number) for number in range(5)],
        "test": [write(here / f"test{number}.png", number) for number in (3, 4, 9)],
    }
    with caplog.at_level(logging.WARNING):
        warn_about_duplicates("set", parts)
        warn_about_duplicates("set", parts)
    assert caplog.text.count("set: 2 images lie in several splits") == 1
    assert "train3.png (train) = " in caplog.text and "test3.png (test)" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        warn_about_duplicates("set", {"train": parts["train"], "test": parts["test"][2:]})
        warn_about_duplicates("set", {"train": [*parts["train"], parts["test"][0]]})  # copies of one split do no harm
    assert caplog.text == ""


def test_duplicates_are_remembered_until_a_file_changes(here, monkeypatch):
    parts = {"train": [write(here / "a.png", 1)], "test": [write(here / "b.png", 1)]}
    assert len(find_duplicates(parts)) == 1
    with monkeypatch.context() as patch:
        patch.setattr(module, "_equal_files", None)
        assert len(find_duplicates(parts)) == 1
    write(here / "b.png", 2, size=40)
    assert find_duplicates(parts) == []


def test_only_files_of_equal_size_are_read(here, monkeypatch):
    files = [write(here / f"{size}.png", 1, size) for size in (16, 64, 256)]
    assert len({file.stat().st_size for file in files}) == 3
    hashed = []
    monkeypatch.setattr(module, "_content", lambda file: hashed.append(file) or file.read_bytes())
    assert find_duplicates({"train": files}) == [] and hashed == []
    copy = write(here / "copy.png", 1, 64)
    assert len(find_duplicates({"train": files, "test": [copy]})) == 1 and hashed == [files[1], copy]


def test_folders_with_given_splits_are_warned_of_copies(here, caplog):
    for split, numbers in {"train": range(20), "test": range(18, 24)}.items():
        for name, shift in (("cat", 0), ("dog", 100)):
            for number in numbers:
                write(here / "data" / split / name / f"{number}.png", number + shift)
    with caplog.at_level(logging.WARNING):
        dataset = load_dataset("data", "test", DatasetConfig(name="data", resolution=SIZE))
    assert "data: 4 images lie in several splits" in caplog.text
    assert dataset.files == [f"data/test/{name}/{n}.png" for name in ("cat", "dog") for n in range(18, 24)]


@pytest.mark.parametrize(
    "called",
    [
        ("train", "val", "test"), ("train", "valid", "test"), ("train", "validation", "test"), ("Train", "Val", "Test"),
        ("TRAIN", "validation", "test"), ("training", "val", "testing"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("indexed", [False, True])
def test_the_folders_of_splits_have_several_names(here, called, indexed):
    labels = []
    for split, numbers in zip(called, (range(20), range(20, 26), range(30, 36))):
        for name, shift in (("cat", 0), ("dog", 100)):
            for number in numbers:
                file = f"{split}/{name}/{number}.png"
                write(here / "data" / file, number + shift)
                labels.append([file, name == "dog"])
    if indexed:
        index = {"labels": [[file, int(dog)] for file, dog in labels], "class_names": ["cat", "dog"]}
        (here / "data" / "dataset.json").write_text(json.dumps(index))
    config = DatasetConfig(name="data", resolution=SIZE)
    parts = [load_dataset("data", split, config) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [40, 12, 12]
    assert [part.files[0] for part in parts] == [
        f"data/{called[0]}/cat/0.png",
        f"data/{called[1]}/cat/20.png",
        f"data/{called[2]}/cat/30.png",
    ]


def test_a_class_may_be_called_as_a_split_is(here):
    """A train is a vehicle too."""
    for name in ("Bus", "Train"):
        for number in range(10):
            write(here / "data" / name / f"{number}.png", number + 100 * (name == "Bus"))
    assert load_dataset("data", "train", DatasetConfig(name="data", resolution=SIZE)).class_names == ["Bus", "Train"]


def test_without_test_images_the_remedy_is_named(here):
    for split in ("train", "val"):
        write(here / "data" / split / "cat" / "1.png", 1)
    with pytest.raises(ValueError, match=r"but no folder 'test'; add it, rename 'validation' \(or 'val'\) to 'test'"):
        load_dataset("data", "train", DatasetConfig(name="data", resolution=SIZE))


def test_copies_are_warned_of_also_where_the_split_is_drawn(here, caplog):
    for number in range(20):
        write(here / "data" / "cat" / f"{number}.png", 7)  # twenty copies: some are drawn for the test
        write(here / "data" / "dog" / f"{number}.png", number + 100)
    with caplog.at_level(logging.WARNING):
        load_dataset("data", "train", DatasetConfig(name="data", resolution=SIZE))
    assert "data: 1 image lies in several splits" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):  # without labels the test images are those for validation
        load_dataset("data/dog", "train", DatasetConfig(name="data/dog", resolution=SIZE), labelled=False)
    assert "several splits" not in caplog.text
    for split in ("train", "test"):
        for number in range(10):
            write(here / "plain" / split / f"{number}.png", number + 50 * (split == "test" and number > 2))
    with caplog.at_level(logging.WARNING):
        load_dataset("plain", "train", DatasetConfig(name="plain", resolution=SIZE), labelled=False)
    assert "plain: 3 images lie in several splits" in caplog.text


# --- classes and splits ------------------------------------------------------------------------------------------


def test_every_class_needs_images_and_every_label_a_class():
    check_every_class("set", "test", [0, 1, 1], ["cat", "dog"], "list.txt")
    with pytest.raises(ValueError, match=r"set: class 'eel' has no images for split 'test' in list\.txt"):
        check_every_class("set", "test", np.array([0, 1]), ["cat", "dog", "eel"], "list.txt")
    for label in (2, -1):
        with pytest.raises(ValueError, match=rf"list\.txt: class number {label} .* outside the list of 2 classes"):
            check_every_class("set", "test", [0, 1, label], ["cat", "dog"], "list.txt")


def test_stratified_splits_are_complete_and_disjoint():
    items = [(f"{label}-{i}", label) for label, count in enumerate((10, 40)) for i in range(count)]
    shares = {"validation": 0.1, "test": 0.2}
    parts = {split: stratified(items, split, shares, 0) for split in ("train", "validation", "test")}
    assert sorted(item for part in parts.values() for item in part) == sorted(items)
    assert [Counter(label for _, label in parts[split]) for split in parts] == [
        {0: 7, 1: 28},
        {0: 1, 1: 4},
        {0: 2, 1: 8},
    ]
    assert stratified(items, "test", shares, 1) != parts["test"] == stratified(items, "test", shares, 0)


def test_groups_stay_together():
    draw = np.random.default_rng(0)
    groups = [f"person{n}" for n in draw.integers(300, size=1000)]
    items = [(i, int(group.endswith("7"))) for i, group in enumerate(groups)]
    shares = {"validation": 0.1, "test": 0.1}
    parts = {split: stratified_groups(items, groups, split, shares, 3) for split in ("train", "validation", "test")}
    assert sorted(item for part in parts.values() for item in part) == items
    people = {split: {groups[i] for i, _ in part} for split, part in parts.items()}
    assert not (people["train"] & people["test"] or people["train"] & people["validation"])
    assert not people["validation"] & people["test"]
    total = Counter(label for _, label in items)
    for split in shares:
        counts = Counter(label for _, label in parts[split])
        assert parts[split] == sorted(parts[split])
        for label in (0, 1):  # the share, and at most the rest of one person more
            assert 0 <= counts[label] - shares[split] * total[label] < max(Counter(groups).values())
    assert stratified_groups(items, groups, "test", shares, 4) != parts["test"]


def test_groups_of_several_classes_count_for_most_of_their_items():
    items = [(i, int(i % 5 == 0)) for i in range(100)]  # four of class 0 and one of class 1 each
    groups = [str(i // 5) for i in range(100)]
    parts = [stratified_groups(items, groups, split, {"test": 0.25}, 0) for split in ("train", "test")]
    assert [Counter(label for _, label in part) for part in parts] == [{0: 60, 1: 15}, {0: 20, 1: 5}]
