"""A zip of images as StyleGAN tools write and read it, or of class folders; nothing is ever unpacked to disk.

The public layout: square PNGs `00000/img00000000.png`, ..., stored without compression, and a `dataset.json` (see
`listing.parse_index`).
"""

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from threading import Lock
from zipfile import BadZipFile, ZipFile, ZipInfo

from viscoin.config import DatasetConfig
from viscoin.datasets.base import ImageDataset
from viscoin.datasets.cache import file_state
from viscoin.datasets.folder import load_tree
from viscoin.datasets.listing import INDEX, Tree, parse_index, warn_of_unread
from viscoin.datasets.reading import EXTENSIONS, UNREADABLE, is_hidden

_one_at_a_time = Lock()  # an open archive may not be read by several threads
LARGEST_MEMBER = 2**29  # bytes; as many as the pixels of the largest picture that Pillow opens


@dataclass(frozen=True)
class Member:
    """A file inside an open zip."""

    archive: ZipFile
    info: ZipInfo
    stamp: str

    @property
    def size(self) -> int:
        """Bytes when unpacked."""
        return self.info.file_size

    def open(self, mode: str = "rb") -> io.BytesIO:
        """All of its bytes; ValueError when there are too many."""
        if self.info.file_size > LARGEST_MEMBER:
            raise ValueError(f"{self.info.file_size >> 20} MiB when unpacked, at most {LARGEST_MEMBER >> 20} are read")
        with _one_at_a_time:
            return io.BytesIO(self.archive.read(self.info))

    def __str__(self) -> str:
        return f"{self.archive.filename}/{self.info.filename}"

    def __repr__(self) -> str:
        return f"{self.stamp}|{self.info.filename}|{self.info.file_size}|{self.info.CRC}"


def load_zip(path: Path, split: str, config: DatasetConfig, labelled: bool = True) -> ImageDataset:
    """One split of a zip of images; arguments, splits and errors as for `load_folder`.

    Raises:
        ValueError: no zip, an encrypted or damaged one, or a dataset.json that is malformed or does not fit.
    """
    with open_zip(path) as tree:
        return load_tree(tree, path.stem, split, config, labelled)


@contextmanager
def open_zip(path: Path) -> Iterator[Tree]:
    """Images and folders of a zip, readable within the block; a single folder around everything is looked through."""
    try:
        archive = ZipFile(path)
    except (BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise ValueError(f"{path} is not a readable zip ({error}); download or make it again") from error
    with archive:
        stamp = f"{path.resolve()}|{file_state(path)}"
        members = {
            info.filename: Member(archive, info, stamp)
            for info in archive.infolist()
            if not info.is_dir() and not _hidden(info.filename)
        }
        folders = {info.filename for info in archive.infolist() if info.is_dir() and not _hidden(info.filename)}
        yield _tree(path, members, {name.rstrip("/") for name in folders})


def _hidden(name: str) -> bool:
    return any(map(is_hidden, name.split("/")))


def _tree(path: Path, members: dict[str, Member], folders: set[str]) -> Tree:
    images = [name for name in members if PurePosixPath(name).suffix.lower() in EXTENSIONS]
    warn_of_unread(map(PurePosixPath, members), path)
    for name in [*images, *folders]:
        folders |= {str(parent) for parent in PurePosixPath(name).parents if parent.name}
    around = _folder_around(set(members), images, folders)
    root = path / around
    index = members.get(f"{around}{INDEX}")
    try:
        text = index.open().getvalue() if index else b""
    except UNREADABLE as error:
        raise ValueError(f"{index} cannot be read ({error}); download or make {path} again") from error
    names = [name for name in images if name.startswith(around)]
    return Tree(
        root,
        {name.removeprefix(around): members[name] for name in sorted(names, key=lambda name: name.split("/"))},
        {name.removeprefix(around) for name in folders if name.startswith(around)} - {""},
        parse_index(text, str(index)) if index else None,
    )


def _folder_around(members: set[str], images: list[str], folders: set[str]) -> str:
    """ "data/" when everything lies in folders inside `data`, as archivers pack a folder; "" otherwise."""
    around = ""
    while True:
        inside = {name.removeprefix(around).partition("/")[0] for name in images if name.startswith(around)}
        if len(inside) != 1 or f"{around}{INDEX}" in members:
            return around
        deeper = f"{around}{inside.pop()}/"
        holds_folders = any(name.startswith(deeper) for name in folders)
        if deeper.rstrip("/") not in folders or not (holds_folders or f"{deeper}{INDEX}" in members):
            return around
        around = deeper
