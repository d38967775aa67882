"""Downloads: resumed, checked, unpacked safely, and what is said when they fail; the server runs in the test."""

import errno
import gzip
import hashlib
import io
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tiny_models import Answer

from viscoin.config import DatasetConfig
from viscoin.datasets import download as module
from viscoin.datasets.download import Archive, Kaggle, dataset_root, download, folder_with, unpack

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `files`; breaks off after `breaks` bytes while any are left, and keeps the ranges it was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.breaks: list[int] = []
        self.errors: list[int] = []
        self.asked: list[str | None] = []
        self.ranges = True

    def archive(self, name: str, content: bytes = CONTENT, **facts: str) -> Archive:
        self.files[f"/{name}"] = content
        return Archive(f"http://127.0.0.1:{self.server_port}/{name}", **facts)  # type: ignore[arg-type]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        if self.server.errors or self.path not in self.server.files:
            return self.send_error(self.server.errors.pop(0) if self.server.errors else 404)
        content = self.server.files[self.path]
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.ranges else 0
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = start + self.server.breaks.pop(0) if self.server.breaks else len(content)
        self.wfile.write(content[start:end])

    def log_message(self, format: str, *values: object) -> None:
        pass


@pytest.fixture
def server():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "PAUSE", 0.001)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def packed(files: dict[str, bytes], kind: str = "zip") -> bytes:
    stream = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(stream, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(fileobj=stream, mode="w:gz") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def tree(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_full_disk_does_not_cost_the_download(here, server, monkeypatch, kind):
    archive = server.archive(f"set.{kind}", packed({"a.txt": b"a"}, kind))
    with monkeypatch.context() as patch:
        patch.setattr("zipfile.ZipFile.extract" if kind == "zip" else "tarfile.TarFile.extract", full_disk)
        with pytest.raises(ValueError, match="No space left on device"):
            dataset_root("set", DatasetConfig(), archive)
    assert tree(here / "cache" / "viscoin" / "downloads") == [f"set/set.{kind}"]
    assert tree(dataset_root("set", DatasetConfig(), archive)) == ["a.txt"] and len(server.asked) == 1


# --- downloads ---------------------------------------------------------------------------------------------------


def test_download_checks_and_names_the_file(here, server):
    target = download(server.archive("a.bin", sha256=SHA256, md5=MD5.upper()), here / "new" / "a.bin")
    assert target.read_bytes() == CONTENT and tree(here) == ["new/a.bin"]
    assert download(server.archive("a.bin"), target) == target and len(server.asked) == 1  # it is there


def test_broken_connections_go_on_where_they_stopped(here, server):
    server.breaks = [1000, 2000, 0, 3000]
    assert download(server.archive("a.bin", sha256=SHA256), here / "a.bin").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-", "bytes=3000-", "bytes=3000-", "bytes=6000-"]


def test_interrupted_downloads_are_resumed(here, server):
    (here / "a.bin.part").write_bytes(CONTENT[:5000])
    assert download(server.archive("a.bin", sha256=SHA256), here / "a.bin").read_bytes() == CONTENT
    assert server.asked == ["bytes=5000-"] and tree(here) == ["a.bin"]


def test_a_complete_part_is_not_downloaded_again(here, server):
    (here / "a.bin.part").write_bytes(CONTENT)
    assert download(server.archive("a.bin", sha256=SHA256), here / "a.bin").read_bytes() == CONTENT
    assert server.asked == [f"bytes={len(CONTENT)}-"]


@pytest.mark.parametrize("rest", [b"of another file", CONTENT + b"and more"])
def test_a_part_of_another_file_is_replaced(here, server, rest):
    (here / "a.bin.part").write_bytes(rest)
    assert download(server.archive("a.bin", md5=MD5), here / "a.bin").read_bytes() == CONTENT


def test_servers_without_ranges_send_all_of_it(here, server):
    server.ranges = False
    server.breaks = [1000]
    assert download(server.archive("a.bin", sha256=SHA256), here / "a.bin").read_bytes() == CONTENT


def test_wrong_checksum_is_refused_and_removed(here, server):
    with pytest.raises(ValueError, match=rf"a\.bin is damaged or has changed: its md5 is {MD5} instead of 0000"):
        download(server.archive("a.bin", sha256=SHA256, md5="0000"), here / "a.bin")
    assert tree(here) == []


def test_passing_troubles_of_the_server_are_waited_for(here, server):
    server.errors = [503, 500]
    assert download(server.archive("a.bin", sha256=SHA256), here / "a.bin").read_bytes() == CONTENT
    server.errors = [503] * 3
    with pytest.raises(ValueError, match="HTTP 503"):
        download(server.archive("b.bin"), here / "b.bin")


def test_lasting_troubles_are_not_waited_for(here, server):
    archive = server.archive("a.bin")
    server.files.clear()
    with pytest.raises(ValueError, match=r"a\.bin: HTTP 404"):
        download(archive, here / "a.bin")
    assert len(server.asked) == 1


def test_mirrors_are_tried_in_order(here, server):
    there = server.archive("a.bin")
    mirrored = Archive(there.url.replace("a.bin", "gone.bin"), sha256=SHA256, mirrors=(there.url,))
    assert download(mirrored, here / "a.bin").read_bytes() == CONTENT and len(server.asked) == 2


# --- unpacking ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives_are_unpacked(here, kind):
    (here / "a.bin").write_bytes(packed({"one.txt": b"1", "inner/two.txt": b"22"}, kind))
    unpack(here / "a.bin", here / "out")
    assert tree(here / "out") == ["inner/two.txt", "one.txt"]
    assert (here / "out" / "inner" / "two.txt").read_bytes() == b"22"


def test_a_single_file_is_unpacked(here):
    (here / "idx.gz").write_bytes(gzip.compress(CONTENT))
    unpack(here / "idx.gz", here / "out")
    assert (here / "out" / "idx").read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", ["../evil.txt", "inner/../../evil.txt", "/tmp/viscoin-evil.txt", "..\\evil.txt"])
def test_files_outside_of_the_folder_are_refused(here, kind, name):
    (here / "a.bin").write_bytes(packed({name: b"evil"}, kind))
    with pytest.raises(ValueError, match=r"evil\.txt', which lies outside of it"):
        unpack(here / "a.bin", here / "out")
    assert tree(here) == ["a.bin"] and not Path("/tmp/viscoin-evil.txt").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_are_left_out(here, kind):
    (here / "secret").mkdir()
    with tarfile.open(here / "a.tar", "w") as archive:
        link = tarfile.TarInfo("way")
        link.type, link.linkname = kind, str(here / "secret")
        archive.addfile(link)
        through = tarfile.TarInfo("way/evil.txt")
        archive.addfile(through)
    unpack(here / "a.tar", here / "out")
    assert tree(here / "secret") == [] and tree(here / "out") == ["way/evil.txt"]


def test_devices_are_left_out(here):
    with tarfile.open(here / "a.tar", "w") as archive:
        pipe = tarfile.TarInfo("pipe")
        pipe.type = tarfile.FIFOTYPE
        archive.addfile(pipe)
    unpack(here / "a.tar", here / "out")
    assert list((here / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.zip", packed({"one.txt": CONTENT})[:-40]),
        ("a.zip", packed({"one.txt": CONTENT}).replace(CONTENT[:64], CONTENT[1:65])),
        ("a.tgz", packed({"one.txt": CONTENT}, "tar")[:-30]),
        ("a.gz", gzip.compress(CONTENT)[:-9]),
        ("a.rar", b"Rar!"),
    ],
)
def test_damaged_archives_are_named(here, name, content):
    (here / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}"):
        unpack(here / name, here / "out")


# --- the folder of a dataset -------------------------------------------------------------------------------------


def test_archives_become_one_folder_in_the_cache(here, server):
    archives = [
        server.archive("images.tgz", packed({"set/images/1.txt": b"1"}, "tar")),
        server.archive("notes.zip", packed({"notes.txt": b"2"}), folder="set"),
    ]
    for _ in range(2):
        root = dataset_root("set", DatasetConfig(), archives, ["images", "notes.txt"])
        assert root == here / "cache" / "viscoin" / "set" / "set"
    assert tree(root) == ["images/1.txt", "notes.txt"] and len(server.asked) == 2
    assert [path for path in tree(here / "cache") if not path.endswith(".lock")] == [
        "viscoin/set/set/images/1.txt",
        "viscoin/set/set/notes.txt",
    ]


def test_nothing_half_unpacked_is_taken_for_a_dataset(here, server):
    archives = [server.archive("a.zip", packed({"one.txt": b"1"})), server.archive("b.zip", b"no zip")]
    for _ in range(2):
        with pytest.raises(ValueError, match=r"cannot download dataset set: .*b\.zip is neither zip"):
            dataset_root("set", DatasetConfig(), archives)
    assert not (here / "cache" / "viscoin" / "set").exists() and not list(here.rglob("*.partial"))
    server.files["/b.zip"] = packed({"two.txt": b"2"})
    assert tree(dataset_root("set", DatasetConfig(), archives)) == ["one.txt", "two.txt"]
    assert len(server.asked) == 4  # b.zip three times; a.zip was kept


def test_without_network_the_way_by_hand_is_told(here):
    archive = Archive("http://127.0.0.1:9/a.zip", size="1.1 GB", page="https://example.org/set")
    with pytest.raises(ValueError, match="refused") as error:
        dataset_root("set", DatasetConfig(), archive)
    for part in (
        "dataset set",
        "https://example.org/set (1.1 GB)",
        "`dataset` set and `dataset_path` FOLDER",
        "network",
    ):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_given_folders_are_used(here):
    (here / "mine" / "deep" / "CUB").mkdir(parents=True)
    (here / "mine" / "deep" / "CUB" / "images.txt").touch()
    config = DatasetConfig(path="mine")
    assert dataset_root("set", config, Archive("http://127.0.0.1:9/a.zip"), ["images.txt"]) == Path("mine/deep/CUB")
    assert not (here / "cache").exists()


def test_wrong_folders_are_refused_with_what_should_be_there(here):
    (here / "mine").mkdir()
    with pytest.raises(ValueError, match=r"mine is not a folder of dataset set, which holds images, labels\.txt"):
        folder_with("set", Path("mine"), ["images", "labels.txt"])
    source = Archive("http://127.0.0.1:9/a.zip", page="https://example.org/set")
    with pytest.raises(ValueError, match=r"dataset_path nowhere: no such folder; .*https://example\.org/set"):
        dataset_root("set", DatasetConfig(path="nowhere"), source)


# --- Kaggle ------------------------------------------------------------------------------------------------------


def test_kaggle_datasets_are_taken_from_the_cache(here, monkeypatch):
    monkeypatch.setattr("kagglehub.dataset_download", None)
    base = here / "cache" / "datasets" / "some" / "set"
    for number in (2, 10, 11):
        (base / "versions" / str(number)).mkdir(parents=True)
        if number < 11:  # kagglehub marks what is complete
            (base / f"{number}.complete").touch()
    assert dataset_root("set", DatasetConfig(), Kaggle("some/set")) == base / "versions" / "10"
    assert dataset_root("set", DatasetConfig(), Kaggle("some/set/versions/2")) == base / "versions" / "2"


def test_kaggle_datasets_are_downloaded(here, monkeypatch):
    (here / "got").mkdir()
    asked = []
    monkeypatch.setattr("kagglehub.dataset_download", lambda handle: asked.append(handle) or str(here / "got"))
    assert dataset_root("set", DatasetConfig(), Kaggle("some/set")) == here / "got" and asked == ["some/set"]


def test_kaggle_without_network_tells_login_and_the_way_by_hand(here, monkeypatch):
    from kagglehub.exceptions import CredentialError

    for trouble in (CredentialError("no\n\ncredentials"), ConnectionError("no\n\ncredentials")):

        def fail(handle, trouble=trouble):
            raise trouble

        monkeypatch.setattr("kagglehub.dataset_download", fail)
        with pytest.raises(ValueError, match="dataset set: no credentials") as error:
            dataset_root("set", DatasetConfig(), Kaggle("some/set/versions/3", size="2 GB"))
        for part in ("kagglehub.login()", "https://www.kaggle.com/datasets/some/set (2 GB)", "`dataset_path` FOLDER"):
            assert part in str(error.value)


# --- on the command line -----------------------------------------------------------------------------------------


def test_dataset_path_belongs_to_datasets_with_files(here):
    (here / "photos" / "cat").mkdir(parents=True)
    answer = Answer("train", "classifier", "--dataset", "birds", "--dataset-path", "photos")
    answer.refused("--dataset-path photos", "'birds'", "no files")
    answer = Answer("train", "classifier", "--dataset", "photos", "--dataset-path", "photos")
    answer.refused("--dataset-path photos", "--dataset photos is not", "mnist")
    answer = Answer("train", "classifier", "--dataset", "mnist", "--dataset-path", "nowhere")
    answer.refused("--dataset-path nowhere: no such folder", "pass --dataset mnist and --dataset-path FOLDER")
    Answer("train", "classifier", "--dataset", "mnist", "--dataset-path", "photos").refused("photos is not", "mnist")
    Answer("train", "classifier", "--dataset-path", "photos").refused("photos holds one class only")
    assert not (here / "runs").exists() or not list((here / "runs").iterdir())
