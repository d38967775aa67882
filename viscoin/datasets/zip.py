"""A zip of images as StyleGAN tools write and read it, or of class folders; nothing is ever unpacked to disk.

The public layout: square PNGs `00000/img00000000.png`, ..., stored without compression, and a `dataset.json` (see
`listing.parse_index`).
"""

import io
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from zipfile import BadZipFile, ZipFile, ZipInfo

from viscoin.config import DatasetConfig
from viscoin.datasets.base import ImageDataset
from viscoin.datasets.cache import file_state
from viscoin.datasets.folder import load_tree
from viscoin.datasets.listing import Tree, make_tree, plain_name, warn_once
from viscoin.datasets.walking import free_name, is_leftover
from viscoin.errors import regular

UTF8_FLAG, UNICODE_PATH = 0x800, 0x7075  # of the format
THREE_BYTES = "\u0800"  # the first letter that takes as many in UTF-8
_one_at_a_time = Lock()  # an open archive may not be read by several threads
LARGEST_MEMBER = 2**29  # bytes; as many as the pixels of the largest picture that Pillow opens


@dataclass(frozen=True)
class Member:
    """A file inside an open zip; `name` is what messages call it."""

    archive: ZipFile
    info: ZipInfo
    stamp: str
    name: str

    @property
    def size(self) -> int:
        """Bytes when unpacked."""
        return self.info.file_size

    def open(self, mode: str = "rb") -> io.BytesIO:
        """All of its bytes; ValueError when there are too many."""
        if self.info.file_size > LARGEST_MEMBER:
            raise ValueError(f"{self.info.file_size >> 20} MiB when unpacked, at most {LARGEST_MEMBER >> 20} are read")
        with _one_at_a_time:
            if self.archive.fp is None:  # masks are read when they are asked for, after the block of `open_zip`
                with ZipFile(str(self.archive.filename)) as again:
                    return io.BytesIO(again.read(self.info))
            return io.BytesIO(self.archive.read(self.info))

    def __str__(self) -> str:
        return f"{self.archive.filename}/{self.name}"

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
    """Images and folders of a zip, readable within the block; single folders around everything are looked through."""
    try:
        archive = ZipFile(regular(path))
    except (BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise ValueError(f"{path} is not a readable zip ({error}); download or make it again") from error
    with archive:
        stamp = f"{path.resolve()}|{file_state(path)}"
        members: dict[str, Member] = {}
        folders = set()
        for name, info in _last_of_each(archive):
            plain = plain_name(name)
            if any(map(is_leftover, plain.split("/"))):
                continue
            if name.endswith(("/", "\\")):
                folders.add(plain)
            else:
                plain = free_name(plain, members)
                members[plain] = Member(archive, info, stamp, plain)
        _warn_of_links(path, members)
        yield make_tree(path, members, folders)


def _warn_of_links(path: Path, members: dict[str, Member]) -> None:
    links = [name for name, member in members.items() if stat.S_ISLNK(member.info.external_attr >> 16)]
    if links:
        warn_once(
            f"{path} holds {len(links)} links, which are not followed (first: {links[0]}); pack their targets instead"
        )


def _last_of_each(archive: ZipFile) -> list[tuple[str, ZipInfo]]:
    """Members with their names, in which a later one of the same name takes the place of an earlier one."""
    members: dict[str, tuple[str, ZipInfo]] = {}
    for name, info in zip(_names(archive), archive.infolist(), strict=True):
        before = members.get(info.filename)
        if before and (before[1].CRC, before[1].file_size) != (info.CRC, info.file_size):
            warn_once(f"{archive.filename} holds two different {name!r}; the last one counts")
        members[info.filename] = name, info
    return list(members.values())


def _names(archive: ZipFile) -> list[str]:
    """Names of all members as they were meant, as far as the archive tells.

    Names without the mark of UTF-8 are taken for UTF-8 if all of them are, as other systems than Windows write it;
    else they are in the code page of some system, which a zip does not name, and are read as CP437. A warning says so,
    unless the names have letters whose bytes are hardly anything but UTF-8.
    """
    infos = archive.infolist()
    names = [info.filename for info in infos]
    stored = {i: raw for i, info in enumerate(infos) if (raw := _stored(info)) is not None}
    for i in list(stored):
        if given := _unicode_path(infos[i], stored[i]):
            names[i] = given
            del stored[i]
    try:
        decoded, encoding = {i: raw.decode() for i, raw in stored.items()}, "UTF-8"
    except UnicodeDecodeError:
        decoded, encoding = {i: names[i] for i in stored}, "CP437"
    if decoded and (encoding == "CP437" or max(map(max, decoded.values())) < THREE_BYTES):
        warn_once(
            f"{archive.filename}: {len(decoded)} names are not marked as Unicode and are read as {encoding} (first: "
            f"{next(iter(decoded.values()))!r}); if they look wrong, pack them with UTF-8 names, or unpack them with "
            "the right code page (unzip -O gbk) and give the folder"
        )
    return [decoded.get(i, name) for i, name in enumerate(names)]


def _stored(info: ZipInfo) -> bytes | None:
    """The name as it is stored, unless it is plain ASCII or marked as UTF-8."""
    if info.flag_bits & UTF8_FLAG or info.filename.isascii():
        return None
    try:
        return info.filename.encode("cp437")
    except UnicodeEncodeError:  # decoded otherwise already
        return None


def _unicode_path(info: ZipInfo, stored: bytes) -> str | None:
    """The name in the extra field of Info-ZIP: type, length, version 1, CRC-32 of the stored name, UTF-8."""
    extra = info.extra
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        content, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == UNICODE_PATH and content[:5] == struct.pack("<BL", 1, zlib.crc32(stored)):
            return content[5:].decode(errors="replace")
    return None
