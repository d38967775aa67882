"""The cache: damaged files are made again, changed pixels are noticed, a full or locked disk is explained."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from viscoin.config import DatasetConfig
from viscoin.datasets import cache, download, files, load_dataset
from viscoin.datasets.base import cached_pixels
from viscoin.datasets.cache import cache_folder, is_cached, keep, new_cached, reserve
from viscoin.datasets.output import new_folder
from viscoin.errors import Refused
from viscoin.files import atomic_path, clear_partials, partial_path

DAMAGE = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "null": lambda content: b"null",
    "one bit": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "longer": lambda content: content + b"\0",
    "absent": None,
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    draw = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(5):
            Image.fromarray(draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(f"data/{name}/{i}.bmp")
    return tmp_path


def pixels() -> np.ndarray:
    return np.array(load_dataset("data", "train", DatasetConfig(name="data", resolution=16)).pixels)


@pytest.mark.parametrize("ending", [".npy", ".json", ".sum"])
@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_files_are_made_again(here, ending, how, caplog):
    before = pixels()
    damaged = [path for path in cache_folder().rglob("*") if path.suffix == ending]
    assert damaged
    for path in damaged:
        if DAMAGE[how] is None:
            path.unlink()
        else:
            path.write_bytes(DAMAGE[how](path.read_bytes()))
    assert (pixels() == before).all()
    assert how == "absent" or "in the cache is damaged and is made again" in caplog.text
    caplog.clear()
    assert (pixels() == before).all() and "damaged" not in caplog.text


def test_an_untouched_file_is_not_read_and_a_copied_one_is(here, monkeypatch):
    with new_cached(cache_folder() / "x") as partial:
        partial.write_text("content")
    path, summed, whole = cache_folder() / "x", [], cache.checksum
    monkeypatch.setattr(cache, "checksum", lambda path: summed.append(path) or whole(path))
    assert is_cached(path) and not summed
    path.write_text("content")  # as a copy or a backup would
    assert is_cached(path) and len(summed) == 1
    assert is_cached(path) and len(summed) == 1


def test_pixels_behind_the_same_size_and_time_are_noticed(here):
    before = pixels()
    groups = files.find_duplicates({"train": sorted(here.glob("data/cat/*"))})
    for path in here.glob("data/*/*.bmp"):
        times, content = path.stat(), bytearray(path.read_bytes())
        content[54:] = bytes([200]) * (len(content) - 54)
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (pixels() != before).any() and len(pixels()) == len(before)
    assert groups == [] and len(files.find_duplicates({"train": sorted(here.glob("data/cat/*"))})) == 1


def test_another_file_in_its_place_is_noticed(here):
    before = pixels()
    first = here / "data" / "cat" / "0.bmp"
    times = first.stat()
    os.replace(here / "data" / "dog" / "0.bmp", first)
    Image.new("RGB", (16, 16)).save("data/dog/0.bmp")
    for path in (first, here / "data" / "dog" / "0.bmp"):
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (pixels() != before).any()


# --- what killed processes leave -------------------------------------------------------------------------------------


def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def left(path: Path, process: int) -> Path:
    partial = partial_path(path)
    partial = partial.with_name(partial.name.replace(f"-{os.getpid()}.", f"-{process}."))
    partial.write_text("half")
    return partial


def test_what_dead_processes_left_is_cleared_away(here):
    folder = cache_folder() / "folder"
    folder.mkdir(parents=True)
    gone, alive = left(folder / "a.npy", dead()), left(folder / "a.npy", os.getppid())
    other = folder / ".a.npy.00000000-1.0123456789abcdef0123456789abcdef.partial"
    old, new = folder / ".x.json.11.partial", folder / ".y.json.22.partial"
    for path in (other, old, new):
        path.write_text("half")
    os.utime(old, (0, 0))
    with new_cached(cache_folder() / "features" / "b.npy") as partial:
        assert partial.name.startswith(".b.npy.")
        partial.write_text("b")
    assert not gone.exists() and not old.exists()
    assert alive.exists() and other.exists() and new.exists()


def test_an_atomic_file_clears_only_its_own(here):
    mine, others = left(here / "a[1].txt", dead()), left(here / "b.txt", dead())
    with atomic_path(here / "a[1].txt") as partial:
        partial.write_text("whole")
    assert not mine.exists() and others.exists()
    folder = partial_path(here / "tree")
    folder.mkdir()
    clear_partials(here)  # ours is alive
    assert folder.exists() and not others.exists()


# --- disks ------------------------------------------------------------------------------------------------------


def test_room_is_taken_before_pixels_are_written(here, monkeypatch):
    state = []

    def rows():
        (partial,) = cache_folder().glob(".key.npy.*.partial")
        state.append(partial.stat())
        yield from np.zeros((100, 32, 32, 3), np.uint8)

    cached_pixels("key", 100, 32, rows, "making")
    assert state[0].st_size > 100 * 32 * 32 * 3
    assert state[0].st_blocks * 512 >= state[0].st_size  # not sparse


@pytest.mark.parametrize("failure", [AttributeError, OSError(errno.EOPNOTSUPP, "not supported")])
def test_room_is_taken_where_the_system_does_not_help(here, monkeypatch, failure):
    def refuse(*arguments):
        raise failure

    content = os.urandom(1000)
    with open("x", "wb") as file:
        file.write(content)
        file.truncate(10_000_000)
    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    reserve(Path("x"))
    stat = os.stat("x")
    assert stat.st_size == 10_000_000 and stat.st_blocks * 512 >= stat.st_size
    assert Path("x").read_bytes() == content + bytes(10_000_000 - 1000)


def test_a_full_disk_is_explained(here, monkeypatch, caplog):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(Refused, match=r"cache.viscoin \(No space left on device\); .* XDG_CACHE_HOME .* more room"):
        pixels()
    assert [path for path in cache_folder().rglob("*.npy*")] == []
    assert not keep(cache_folder() / "x", full) and "the result is not cached" in caplog.text


def test_a_cache_that_cannot_be_written_names_the_variable(here, monkeypatch):
    (here / "cache").write_text("a file where a folder should be")
    with pytest.raises(Refused, match=r"XDG_CACHE_HOME to a folder that can be written$"):
        pixels()


def test_other_caches_name_their_variable(here, monkeypatch):
    (here / "kaggle").write_text("a file where a folder should be")
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(here / "kaggle"))
    with pytest.raises(Refused, match=r"kaggle \(.*\); set the environment variable KAGGLEHUB_CACHE to a folder"):
        download._locked("cub")


def test_a_folder_clears_what_a_killed_process_left_of_it(here):
    gone = partial_path(here / "out")
    gone = gone.with_name(gone.name.replace(f"-{os.getpid()}.", f"-{dead()}."))
    gone.mkdir()
    (gone / "image.png").write_text("half")
    with new_folder(here / "out") as partial:
        assert not gone.exists() and partial.is_dir()
    assert (here / "out").is_dir()


def test_errors_of_others_stay_theirs(here):
    with pytest.raises(PermissionError), new_cached(cache_folder() / "x"):
        raise PermissionError(errno.EACCES, "no", str(here / "data" / "cat"))


def test_records_are_small_and_plain(here):
    pixels()
    (record,) = cache_folder().rglob("*.npy.sum")
    known, content = json.loads(record.read_text()), record.with_suffix("")
    assert known["crc32"] == cache.checksum(content) and known["file"][0] == content.stat().st_size
