"""Datasets from the internet: downloads that resume, are checked and unpacked safely, and share one cache."""

import gzip
import hashlib
import http.client
import logging
import os
import shutil
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from filelock import FileLock
from tqdm import tqdm

from viscoin.config import DatasetConfig
from viscoin.datasets.cache import explained
from viscoin.datasets.walking import is_leftover
from viscoin.errors import Refused, reason_of

CHUNK = 2**20  # bytes
TIMEOUT = 30  # seconds without an answer
TRIES = 3  # in a row without a byte
PAUSE = 1.0  # seconds before the second try, doubled before each further one
DAMAGED = (
    OSError, EOFError, RuntimeError, NotImplementedError, zlib.error, LZMAError, zipfile.BadZipFile, tarfile.TarError
)  # fmt: skip
_downloads = ContextVar("_downloads", default=True)


@contextmanager
def no_downloads() -> Iterator[None]:
    """Within, a dataset that would have to be downloaded first raises ValueError instead."""
    token = _downloads.set(False)
    try:
        yield
    finally:
        _downloads.reset(token)


@dataclass(frozen=True)
class Kaggle:
    """A dataset on Kaggle: "owner/dataset", or "owner/dataset/versions/2" for a certain version."""

    handle: str
    size: str = ""

    @property
    def page(self) -> str:
        return f"https://www.kaggle.com/datasets/{'/'.join(self.handle.split('/')[:2])}"


@dataclass(frozen=True)
class Archive:
    """A zip, a tar in any compression, or a single file in gzip.

    `page` tells people about it, `size` ("1.1 GB") what to expect; `mirrors` are tried when `url` does not answer;
    `folder` is where it is unpacked, below the folder of the dataset. An empty checksum is not checked.
    """

    url: str
    sha256: str = ""
    md5: str = ""
    size: str = ""
    page: str = ""
    mirrors: tuple[str, ...] = ()
    folder: str = ""

    @property
    def file_name(self) -> str:
        return PurePosixPath(self.url.partition("?")[0]).name


Source = Kaggle | Archive | Sequence[Archive]


def dataset_root(name: str, config: DatasetConfig, source: Source, holds: Sequence[str] = ()) -> Path:
    """The folder with the files of a dataset, downloaded if they are neither in `config.path` nor in the cache.

    Downloads from Kaggle lie where kagglehub puts them (KAGGLEHUB_CACHE moves that), all others in `viscoin` beside.

    Args:
        name: what the dataset is called by callers and in messages, and its folder in the cache.
        holds: files or folders that must be in it ("images.txt"); a folder up to two levels further in will do.

    Raises:
        ValueError: the files are not there and cannot be got; says where to get them by hand and where to put them.
    """
    if config.path is not None:
        path = Path(config.path)
        if not path.is_dir():
            raise Refused("dataset_path", path, "no such folder", _by_hand(name, source))
        return folder_with(name, path, holds)
    try:
        root = _from_kaggle(source) if isinstance(source, Kaggle) else _from_archives(name, source)
    except (ValueError, OSError) as error:
        login = "run kagglehub.login() in Python if Kaggle wants a login, " if isinstance(source, Kaggle) else ""
        raise Refused(
            None, None, f"cannot download dataset {name}: {_one_line(error)}",
            f"check the network, {login}and try again, which resumes the download; or {_by_hand(name, source)}",
        ) from error  # fmt: skip
    return folder_with(name, root, holds)


def folder_with(name: str, root: Path, holds: Sequence[str]) -> Path:
    """`root`, or a folder up to two levels further in, that holds all given files and folders.

    Raises:
        ValueError: there is none.
    """
    for folder in _nested(root):
        if all(os.path.isdir(folder / held) or os.path.isfile(folder / held) for held in holds):
            return folder
    raise Refused(
        None, None, f"{root} is not a folder of dataset {name}, which holds {', '.join(holds)}",
        f"pass as `dataset_path` the folder that does, or only `dataset` {root} if it holds one folder of images per "
        "class",
    )  # fmt: skip


def _nested(root: Path, levels: int = 2) -> Iterator[Path]:
    """A folder, those in it, those in these."""
    here = [root]
    for level in range(levels + 1):
        yield from here
        if level < levels:
            here = [Path(inner.path) for folder in here for inner in _folders(folder)]


def _folders(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        inside = [entry for entry in entries if not is_leftover(entry.name) and entry.is_dir()]
    return sorted(inside, key=lambda entry: entry.name)


def _by_hand(name: str, source: Source) -> str:
    parts: Sequence[Kaggle | Archive] = [source] if isinstance(source, Kaggle | Archive) else source
    sizes = ", ".join(part.size for part in parts if part.size)
    pages = dict.fromkeys(part.page or part.url if isinstance(part, Archive) else part.page for part in parts)
    return (
        f"download it by hand from {' and '.join(pages)}{f' ({sizes})' if sizes else ''}, unpack it into a folder, "
        f"and pass `dataset` {name} and `dataset_path` FOLDER"
    )


def _check_downloads() -> None:
    if not _downloads.get():
        raise ValueError("it is not in the cache, and nothing is downloaded here")


def _one_line(error: BaseException) -> str:
    return reason_of(error).rstrip(".")


# --- Kaggle ----------------------------------------------------------------------------------------------------------


def _from_kaggle(source: Kaggle) -> Path:
    """The newest downloaded version, without asking the network; else a download, which kagglehub can resume."""
    import kagglehub

    for handler in logging.getLogger("kagglehub").handlers:
        if type(handler) is logging.StreamHandler:
            handler.setStream(sys.stderr)  # standard output is for results
    owner, dataset, *version = source.handle.split("/")
    place = _cache() / "datasets" / owner / dataset
    found = [int(marker.stem) for marker in place.glob("*.complete") if marker.stem.isdigit()]
    for number in sorted(found, reverse=True):
        folder = place / "versions" / str(number)
        if folder.is_dir() and version[1:] in ([], [str(number)]):
            return folder
    _check_downloads()
    with _locked(f"{owner}-{dataset}"):
        try:
            return Path(kagglehub.dataset_download(source.handle))
        except Exception as error:  # kagglehub has a dozen without a common parent
            raise ValueError(_one_line(error)) from error


# --- archives --------------------------------------------------------------------------------------------------------


def _cache() -> Path:
    from kagglehub.config import get_cache_folder

    return Path(get_cache_folder())


def _locked(name: str) -> FileLock:
    """A lock against processes that want the same dataset at the same time, such as those of several GPUs."""
    folder = _cache() / "viscoin"
    with explained(_cache(), "KAGGLEHUB_CACHE"):
        folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f".{name}.lock")


def _from_archives(name: str, source: Archive | Sequence[Archive]) -> Path:
    archives = [source] if isinstance(source, Archive) else list(source)
    place = _cache() / "viscoin" / name
    if place.is_dir():
        return place
    _check_downloads()
    downloads = place.parent / "downloads" / name
    with _locked(name):
        if place.is_dir():
            return place
        for archive in archives:
            download(archive, downloads / archive.file_name)
        partial = place.parent / f".{name}.partial"
        try:
            for archive in archives:
                _unpack_or_remove(downloads / archive.file_name, partial / archive.folder)
            partial.rename(place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(downloads)
    return place


def download(archive: Archive, target: Path) -> Path:
    """Download a file to `target`; what an interrupted download left in `target.part` is not downloaded again.

    Raises:
        ValueError: no server answers, or the checksum is wrong; then the file is removed.
    """
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    resumed = part.exists()
    _fetch_from_any(archive, part)
    wrong = _wrong_checksum(archive, part)
    if wrong and resumed:  # the beginning may have been that of an older file
        part.unlink()
        _fetch_from_any(archive, part)
        wrong = _wrong_checksum(archive, part)
    if wrong:
        part.unlink()
        raise ValueError(f"{archive.url} is damaged or has changed: {wrong}")
    part.rename(target)
    return target


def _fetch_from_any(archive: Archive, part: Path) -> None:
    reasons = []
    for url in (archive.url, *archive.mirrors):
        try:
            return _fetch(url, part)
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError("; ".join(reasons))


def _fetch(url: str, part: Path) -> None:
    """Download to `part`, and again from where it broke off, as long as something arrives."""
    failures = 0
    while True:
        start = _length(part)
        try:
            return _fetch_rest(url, part, start)
        except HTTPError as error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
                if error.headers.get("Content-Range") == f"bytes */{start}":
                    return  # all of it is there
                part.unlink()
            elif error.code < 500:
                raise ValueError(f"{url}: HTTP {error.code} {error.reason}") from error
            reason = f"HTTP {error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            reason = _one_line(error)
        failures = 0 if _length(part) > start else failures + 1
        if failures == TRIES:
            raise ValueError(f"{url}: {reason}")
        time.sleep(PAUSE * 2 ** max(0, failures - 1))


def _fetch_rest(url: str, part: Path, start: int) -> None:
    """Add what is missing to a file that has the first `start` bytes; begin anew if the server sends all of them."""
    headers = {"User-Agent": "viscoin"} | ({"Range": f"bytes={start}-"} if start else {})
    with urlopen(Request(url, headers=headers), timeout=TIMEOUT) as response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink()
            raise OSError("the server sent another part of the file than the one asked for")
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        name = PurePosixPath(url.partition("?")[0]).name
        bar = tqdm(
            desc=name, total=total, initial=start, unit="B", unit_scale=True, unit_divisor=1024, leave=False,
            disable=None,
        )  # fmt: skip
        with bar, part.open("ab" if start else "wb") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and _length(part) < total:
        raise OSError(f"the connection broke off after {_length(part)} of {total} bytes")


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _wrong_checksum(archive: Archive, path: Path) -> str:
    for algorithm, expected in (("sha256", archive.sha256), ("md5", archive.md5)):
        if expected:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, algorithm).hexdigest()
            if found != expected.lower():
                return f"its {algorithm} is {found} instead of {expected}"
    return ""


def _unpack_or_remove(archive: Path, folder: Path) -> None:
    """What cannot be unpacked will be downloaded again."""
    try:
        unpack(archive, folder)
    except ValueError:
        archive.unlink()
        raise


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip, a tar or a gzip into a folder.

    Links in it are left out: images need none, and they are the way out of the folder.

    Raises:
        ValueError: damaged, of an unknown kind, or with a file that would land outside the folder.
        OSError: the disk is full, or the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if tarfile.is_tarfile(archive):
            _unpack_tar(archive, folder)
        elif zipfile.is_zipfile(archive):
            _unpack_zip(archive, folder)
        elif archive.suffix == ".gz":
            with gzip.open(archive) as packed, (folder / archive.stem).open("wb") as file:
                shutil.copyfileobj(packed, file, CHUNK)
        else:
            raise ValueError(f"{archive} is neither zip nor tar nor gzip; get it again")
    except DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # it is the disk that is full, or the folder that may not be written to
        raise ValueError(f"{archive} cannot be unpacked ({_one_line(error)}); get it again") from error


def _unpack_tar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in tqdm(tar, desc=f"unpacking {archive.name}", unit="file", leave=False, disable=None):
            _check_inside(archive, member.name)
            if member.isfile() or member.isdir():
                tar.extract(member, folder, filter="data")


def _unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as packed:
        for name in packed.namelist():
            _check_inside(archive, name)
        for name in tqdm(
            packed.namelist(), desc=f"unpacking {archive.name}", unit="file", leave=False, disable=None
        ):  # fmt: skip
            packed.extract(name, folder)


def _check_inside(archive: Path, name: str) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{archive} holds {name!r}, which lies outside of it: it is not to be trusted")
