"""What lies in real folders: links, pipes, unreadable folders, leftovers of systems, names in two forms, depth."""

import contextlib
import io
import json
import logging
import os
import shutil
import socket
import tempfile
import threading
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from viscoin.config import DatasetConfig, load_recipe
from viscoin.datasets import ImageDataset, load_dataset, prepared_resolution
from viscoin.datasets import walking as module
from viscoin.datasets.files import noted_files
from viscoin.datasets.prepare import prepare_dataset
from viscoin.datasets.splitting import own_split, read_split, split_dataset, write_csv
from viscoin.datasets.walking import is_leftover, walk
from viscoin.errors import Refused, regular
from viscoin.inference.loading import read_pictures
from viscoin.models.files import load_model
from viscoin.naming.names import read_names
from viscoin.runs.metrics import read_log

SIZE = 16
SPLITS = ("train", "validation", "test")
NFC, NFD = (unicodedata.normalize(form, "Möwe") for form in ("NFC", "NFD"))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(root: Path, counts: dict[str, int], start: int = 0) -> Path:
    """Numbered pictures root/<class>/<number>.png, whose colour tells their number."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(start, start + count):
            Image.new("RGB", (SIZE, SIZE), (number, 0, 7)).save(root / name / f"{number:03}.png")
        start += count
    return root


def load(root: Path | str, split: str = "train", **settings) -> ImageDataset:
    return load_dataset(str(root), split, DatasetConfig(name=str(root), resolution=SIZE, **settings))


def numbers(root: Path | str, **settings) -> list[int]:
    """The numbers of all pictures of a dataset, increasing."""
    return sorted(int(n) for split in SPLITS for n in load(root, split, **settings).pixels[:, 8, 8, 0])


@contextlib.contextmanager
def unprivileged():
    """Without the right of root to read everything."""
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if os.getuid() == 0:
            os.seteuid(0)


@pytest.fixture
def denied(monkeypatch):
    """A function that makes a folder unreadable, as another user's is; root cannot be kept out, so the listing is."""
    real = os.scandir

    def deny(folder: Path) -> None:
        def scandir(path):
            if os.path.realpath(path) == str(folder.resolve()):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path)

        monkeypatch.setattr(module.os, "scandir", scandir)

    return deny


# --- what cannot be opened ---------------------------------------------------------------------------------------


def test_unreadable_folders_are_named(here, denied, caplog):
    root = write(here / "data", {"cat": 8, "dog": 8})
    write(root / "dog", {"more": 4}, 100)
    denied(root / "dog" / "more")
    with pytest.raises(
        ValueError, match=r"1 of 17 files in .* used: .*dog/more \(Permission denied\); repair or remove"
    ):
        load(root)
    with noted_files() as noted:
        assert numbers(root, skip_bad_files=True) == list(range(16))
    assert noted == {str(root / "dog" / "more"): "Permission denied"}
    assert "left out 1 of 17 files that cannot be used" in caplog.text
    with pytest.raises(ValueError, match="dog/more"):
        own_split(str(root), DatasetConfig(name=str(root)))
    with pytest.raises(ValueError, match="dog/more"):
        prepare_dataset(str(root), here / "x.zip")


def test_an_unreadable_class_is_no_missing_class(here, denied):
    root = write(here / "data", {"cat": 8, "dog": 8, "eel": 8})
    denied(root / "eel")
    with pytest.raises(ValueError, match=r"data/eel \(Permission denied\)"):
        load(root)
    with pytest.raises(ValueError, match=r"class 'eel' .* has no readable images"):
        load(root, skip_bad_files=True)


def test_an_unreadable_dataset_is_named(here, denied):
    root = write(here / "data", {"cat": 8, "dog": 8})
    denied(root)
    for skip in (False, True):
        with pytest.raises(Refused, match=r"dataset .*data: the folder cannot be read \(Permission denied\)"):
            load(root, skip_bad_files=skip)


def test_folders_that_may_be_listed_but_not_entered():
    with tempfile.TemporaryDirectory() as folder:  # not within a folder of root alone
        os.chmod(folder, 0o755)
        root = write(Path(folder, "data"), {"cat": 8, "dog": 8})
        (root / "dog").chmod(0o444)
        with unprivileged():
            found = walk(root)
        (root / "dog").chmod(0o755)
    assert found.bad == {"dog": "Permission denied"} and len(found.files) == 8


def test_classes_that_are_dangling_links(here, caplog):
    root = write(here / "data", {"cat": 8, "dog": 8})
    (root / "001.Eel_of_the_sea").symlink_to("/nowhere/eel")
    (root / "notes.txt").symlink_to("/nowhere/notes.txt")  # neither image nor folder
    with pytest.raises(ValueError, match=r"Eel_of_the_sea \(a link to /nowhere/eel, which is not there\)"):
        load(root)
    assert load(root, skip_bad_files=True).class_names == ["cat", "dog"]
    assert "left out 1 of 17" in caplog.text and "notes" not in caplog.text


def special_files(folder: Path) -> dict[str, str]:
    """Names of files that are none, and what is said of them."""
    os.mkfifo(folder / "pipe.png")
    (folder / "gone.jpg").symlink_to("../.annex/objects/1")
    (folder / "circle.png").symlink_to("circle.png")
    (folder / "device.png").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe of no picture")
    with contextlib.chdir(folder), socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.tiff")
    shutil.copy(folder / "000.png", os.fsencode(folder) + b"/caf\xe9.png")
    return {
        "pipe.png": "a named pipe, not a file",
        "gone.jpg": "a link to ../.annex/objects/1, which is not there",
        "circle.png": "a link that leads in a circle",
        "device.png": "a device, not a file",
        "socket.tiff": "a socket, not a file",
        "caf\\xe9.png": "its name is no UTF-8; rename it",
    }


def test_files_that_are_none(here, caplog):
    root = write(here / "data", {"cat": 8, "dog": 8})
    bad = special_files(root / "cat")
    with pytest.raises(ValueError, match=r"6 of 22 files in .*data cannot be used: .*; repair or remove them"):
        load(root)
    with noted_files() as noted:
        assert numbers(root, skip_bad_files=True) == list(range(16))
    assert noted == {str(root / "cat" / name): reason for name, reason in bad.items()}
    assert "left out 6 of 22 files" in caplog.text
    done = prepare_dataset(str(root), here / "x.zip", skip_bad_files=True)
    assert done.count == 16
    assert len(own_split(str(root), DatasetConfig(name=str(root), skip_bad_files=True)).rows) == 16


def test_labels_of_what_is_left_out_are_left_out(here):
    root = write(here / "data", {"cat": 8, "dog": 8})
    labels = [[f"{name}/{n:03}.png", k] for k, name in enumerate(("cat", "dog")) for n in range(8 * k, 8 * k + 8)]
    (root / "dataset.json").write_text(json.dumps({"labels": [*labels, ["cat/pipe.png", 0]]}))
    os.mkfifo(root / "cat" / "pipe.png")
    with pytest.raises(ValueError, match=r"cat/pipe\.png \(a named pipe"):
        load(root)
    assert numbers(root, skip_bad_files=True) == list(range(16))


@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_labels_that_cannot_be_read_are_never_left_out(here, kind):
    root = write(here / "data", {"cat": 8, "dog": 8})
    if kind == "pipe":
        os.mkfifo(root / "dataset.json")
    else:
        (root / "dataset.json").symlink_to("gone.json")
    for skip in (False, True):
        with pytest.raises(ValueError, match=r"data/dataset\.json cannot be read \(a "):
            load(root, skip_bad_files=skip)


def test_datasets_that_cannot_be_opened(here):
    (here / "photos").symlink_to("/nowhere/photos")
    os.mkfifo(here / "x.zip")
    for name, message in {
        "photos": "dataset photos: cannot be opened: a link to /nowhere/photos, which is not there",
        "x.zip": r"dataset x\.zip: a named pipe, not a file; give a folder or a zip",
        "a\0b": "unknown dataset",
        os.fsdecode(b"caf\xe9"): "its path is no UTF-8",
    }.items():
        with pytest.raises(ValueError, match=message):
            load(name)


def test_pipes_do_not_keep_readers_waiting(here):
    pipe = here / "pipe.png"
    os.mkfifo(pipe)
    config = DatasetConfig(name=str(write(here / "data", {"cat": 8, "dog": 8})))
    readers = {
        "regular": lambda: regular(pipe),
        "images": lambda: read_pictures([pipe], SIZE),
        "split.csv": lambda: split_dataset(config, here / "out", source=pipe),
        "names.csv": lambda: read_names(pipe),
        "metrics.jsonl": lambda: read_log(pipe),
        "labels": lambda: prepare_dataset("data", here / "x.zip", labels=str(pipe)),
        "zip": lambda: load(pipe),
        "recipe": lambda: load_recipe(str(pipe)),
        "model": lambda: load_model(pipe),
    }
    refused: dict[str, str] = {}

    def attempt() -> None:
        for name, read in readers.items():
            try:
                read()
            except ValueError as error:
                refused[name] = str(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(60)
    assert refused.keys() == readers.keys()
    assert all("pipe.png" in message for message in refused.values())


# --- each folder once --------------------------------------------------------------------------------------------


def test_two_folders_that_link_to_each_other(here, caplog):
    root = write(here / "data", {"cat": 8, "dog": 8})
    (root / "cat" / "l1").symlink_to("../dog")
    (root / "dog" / "l2").symlink_to("../cat")
    for split in SPLITS:
        part = load(root, split)
        assert part.labels.tolist() == [int(n >= 8) for n in part.pixels[:, 8, 8, 0]]
    assert numbers(root) == list(range(16))
    assert "2 links lead to folders that are read anyway (first: cat/l1)" in caplog.text


def test_a_lattice_of_links(here):
    root = write(here / "data", {"cat": 8, "dog": 8})
    for i in range(13):
        (root / f"cat/L{i}").mkdir()
    write(root / "cat", {"L12": 1}, 100)
    for i in range(12):
        for j in range(3):
            (root / f"cat/L{i}/{j}").symlink_to(f"../L{i + 1}")
    assert numbers(root) == [*range(16), 100]


def test_links_to_one_folder_outside_count_once(here):
    write(here / "elsewhere", {"more": 3}, 50)
    root = write(here / "data", {"cat": 8, "dog": 8})
    for name in ("a", "b"):
        (root / "cat" / name).symlink_to(here / "elsewhere")
    (here / "elsewhere" / "more" / "up").symlink_to(write(here, {"beside": 2}, 200))
    assert numbers(root) == [*range(16), 50, 51, 52]


def test_a_split_may_be_a_link_to_another(here, caplog):
    root = write(here / "data" / "train", {"cat": 8, "dog": 8}).parent
    write(root / "test", {"cat": 3, "dog": 3}, 100)
    (root / "val").symlink_to("test")
    assert len(load(root, "validation")) == len(load(root, "test")) == 6
    assert "lie in several splits" in caplog.text  # it is warned of, as before


def test_folders_deeper_than_python_recurses(here):
    root = write(here / "data", {"cat": 8, "dog": 8})
    place = os.open(root / "cat", os.O_RDONLY)
    try:
        for _ in range(1100):
            os.mkdir("d", dir_fd=place)
            place, before = os.open("d", os.O_RDONLY, dir_fd=place), place
            os.close(before)
        picture = io.BytesIO()
        Image.new("RGB", (SIZE, SIZE), (99, 0, 7)).save(picture, "png")
        with os.fdopen(os.open("deep.png", os.O_CREAT | os.O_WRONLY, dir_fd=place), "wb") as file:
            file.write(picture.getvalue())
    finally:
        os.close(place)
    found = walk(root)
    assert sum(name.endswith(".png") for name in found.files) == 17 and not found.bad
    os.system(f"rm -rf '{root}'")  # shutil recurses


# --- what systems leave ------------------------------------------------------------------------------------------


LEFT = (
    "@eaDir", ".DS_Store", "._photo.jpg", "__MACOSX", "Thumbs.db", "desktop.ini", "#recycle", "$RECYCLE.BIN",
    "System Volume Information", ".Trash-1000", "lost+found", ".thumbnails", ".ipynb_checkpoints", ".git",
    "@Recycle", "#snapshot", ".@__thumb", "SYNOPHOTO_THUMB_M.jpg", ".AppleDouble", "ehthumbs_vista.db", "FOUND.000",
    "LOST.DIR", "Icon\r", ".Spotlight-V100", ".fseventsd", "THUMBS.DB", "@eadir", "__pycache__", "@tmp",
)  # fmt: skip
KEPT = ("cat", "@home", "#1", "$100", "lost", "found", "Thumbs", "recycle", "tmp", "001.Bird", "a.b", "MACOSX")


def test_leftovers_are_known_by_name():
    assert [name for name in LEFT if not is_leftover(name)] == []
    assert [name for name in KEPT if is_leftover(name)] == []


def test_leftovers_are_neither_classes_nor_images(here, caplog):
    root = write(here / "data", {"cat": 8, "dog": 8})
    for name in LEFT:
        write(root, {name: 1, f"cat/{name}/000.png": 1}, 100)
    with caplog.at_level(logging.INFO):
        assert numbers(root) == list(range(16))
    assert load(root).class_names == ["cat", "dog"] and caplog.text.count("passed over") == 1
    assert "passed over what systems and programs leave beside images: #recycle (2)" in caplog.text


# --- one spelling ------------------------------------------------------------------------------------------------


def test_two_forms_of_a_name_are_one_class(here):
    if NFC == NFD or len({*map(len, (NFC, NFD))}) < 2:
        pytest.skip("this Python has one form only")
    write(here / "data" / "train", {NFC: 8, "Ente": 8})
    write(here / "data" / "test", {NFD: 3, "Ente": 3}, 100)
    assert load("data", "test").class_names == ["Ente", NFC]
    assert load("data", "test").labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_files_of_both_forms_are_kept(here):
    root = write(write(here / "data", {NFC: 4, "Ente": 8}), {NFD: 4}, 100)
    for number, path in enumerate(sorted((root / NFD).iterdir())):
        path.rename(path.with_name(f"{number:03}.png"))  # as the files of the other form are called
    assert numbers(root) == [*range(12), *range(100, 104)] and load(root).class_names == ["Ente", NFC]


def test_labels_in_the_other_form(here):
    root = write(here / "data", {NFD: 8, "Ente": 8})
    labels = [[f"{NFC}/{n:03}.png", 0] for n in range(8)] + [[f"Ente/{n:03}.png", 1] for n in range(8, 16)]
    (root / "dataset.json").write_text(json.dumps({"labels": labels, "class_names": [NFD, "Ente"]}))
    assert numbers(root) == list(range(16)) and load(root).class_names == [NFC, "Ente"]


def test_splits_written_in_the_other_form(here):
    split = own_split("data", DatasetConfig(name=str(write(here / "data", {NFC: 8, "Ente": 8}))))
    write_csv(split, here / "split.csv")
    (here / "split.csv").write_text(unicodedata.normalize("NFD", (here / "split.csv").read_text()))
    assert read_split(here / "split.csv", split).rows == split.rows


# --- folders around ----------------------------------------------------------------------------------------------


def test_folders_around_everything_are_looked_through(here):
    inner = here / "cars" / "car_data" / "car_data"
    write(inner / "train", {"Acura": 8, "Hummer": 8})
    write(inner / "test", {"Acura": 3, "Hummer": 3}, 100)
    (here / "cars" / "annotations").mkdir()
    (here / "cars" / "annotations" / "train.csv").touch()
    write(here / "cars" / "__MACOSX", {"Acura": 1})
    assert load("cars", "test").class_names == ["Acura", "Hummer"] and len(load("cars", "test")) == 6
    shutil.make_archive("packed", "zip", ".", "cars")
    assert np.array_equal(load("packed.zip", "test").pixels, load("cars", "test").pixels)


def test_prepared_folders_are_known_through_folders_around_them(here):
    prepare_dataset(str(write(here / "data", {"cat": 8, "dog": 8})), here / "around" / "made")
    assert prepared_resolution("around") == SIZE and load("around").class_names == ["cat", "dog"]


@pytest.mark.parametrize("other", ["empty", "photographs of a phone", "leftovers"])
def test_a_class_that_lost_its_images_is_not_looked_past(here, other):
    write(here / "data" / "cat", {"young": 8, "old": 8})
    (here / "data" / "dog").mkdir()
    if other == "photographs of a phone":
        (here / "data" / "dog" / "1.HEIC").touch()
    elif other == "leftovers":
        (here / "data" / "dog" / "Thumbs.db").touch()
    with pytest.raises(ValueError, match=r"class 'dog' of .* has no readable images"):
        load("data")


def test_images_beside_given_splits_are_counted(here, caplog):
    root = write(here / "data" / "train", {"cat": 8, "dog": 8}).parent
    write(root / "test", {"cat": 3, "dog": 3}, 100)
    write(root, {"more": 5}, 200)
    assert len(numbers(root)) == 22 and "left out 5 images" in caplog.text
