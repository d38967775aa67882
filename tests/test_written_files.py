"""Files that are written whole: through links, into pipes and devices, and what is said when they cannot be."""

import errno
import os
import threading

import pytest

from viscoin.datasets.output import new_folder
from viscoin.datasets.prepare import new_dataset
from viscoin.files import atomic_path


def test_a_link_stays_and_its_target_is_written(tmp_path):
    for target in ("there.csv", "new.csv"):
        link, place = tmp_path / f"link-to-{target}", tmp_path / "elsewhere" / target
        place.parent.mkdir(exist_ok=True)
        if target == "there.csv":
            place.write_text("old")
        link.symlink_to(place)
        with atomic_path(link) as partial:
            partial.write_text("new")
        assert link.is_symlink() and place.read_text() == "new"
    assert len(list(tmp_path.rglob("*"))) == 5


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_takes_what_is_written(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    with atomic_path(pipe) as partial:
        assert partial == pipe
        partial.write_text("table")
    reader.join(5)
    assert read == ["table"] and pipe.is_fifo()


def test_a_folder_in_the_place_of_a_file_is_named_before_anything_is_done(tmp_path):
    (tmp_path / "last.pt").mkdir()
    with pytest.raises(IsADirectoryError) as caught, atomic_path(tmp_path / "last.pt"):
        pytest.fail("the block must not run")
    assert caught.value.filename == str(tmp_path / "last.pt")


@pytest.mark.parametrize("out", ["photos", "photos.zip"])
def test_a_full_disk_is_said_to_be_where_the_output_is(tmp_path, out):
    with pytest.raises(OSError, match=f"{out}'$") as caught, new_dataset(tmp_path / out):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())


def test_errors_name_no_temporary_file(tmp_path):
    with pytest.raises(OSError) as caught, new_folder(tmp_path / "photos") as folder:
        raise OSError(errno.ENOSPC, "full", "source.png", None, str(folder / "a" / "1.png"))
    assert caught.value.filename == str(tmp_path / "photos" / "a" / "1.png") and caught.value.filename2 is None


def test_a_link_to_a_folder_stays(tmp_path):
    (tmp_path / "disk" / "old").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    with new_folder(tmp_path / "link") as folder:
        (folder / "new").touch()
    assert (tmp_path / "link").is_symlink() and [path.name for path in (tmp_path / "disk").iterdir()] == ["new"]
    assert len(list(tmp_path.iterdir())) == 2
