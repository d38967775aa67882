"""What lies below a folder: each real folder once, without what systems leave there, and what cannot be opened."""

import errno
import fnmatch
import mimetypes
import os
import re
import stat
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from pathlib import Path

from viscoin.datasets.reading import EXTENSIONS
from viscoin.errors import not_a_file

# Files and folders, in any case, that systems and programs leave beside photographs.
LEFTOVERS = (
    ".*",  # what Unix and macOS hide: .DS_Store, ._*, .Trash-1000, .thumbnails, .git, .ipynb_checkpoints, .@__thumb
    "__MACOSX", "Icon\r", "Network Trash Folder", "Temporary Items", "TheVolumeSettingsFolder",  # macOS
    "Thumbs.db*", "ehthumbs*.db", "desktop.ini", "$RECYCLE.BIN", "System Volume Information",  # Windows
    "found.[0-9][0-9][0-9]", "msdownld.tmp", "~$*",
    "@eaDir", "@tmp", "@Recycle", "@Recently-Snapshot", "@__thumb", "@sharebin", "#recycle", "#snapshot",  # NAS
    "~snapshot", "SYNOPHOTO_THUMB*", "SYNOFILE_THUMB*", "SYNOPHOTO_FILM*",
    "lost+found", "LOST.DIR", "__pycache__",  # Linux, Android, Python
)  # fmt: skip
_LEFTOVER = re.compile("|".join(map(fnmatch.translate, LEFTOVERS)), re.IGNORECASE)
# What the folders of given splits are called, in any case.
SPLIT_FOLDERS = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
INDEX = "dataset.json"
NOT_UTF8 = "its name is no UTF-8; rename it"


def is_leftover(name: str) -> bool:
    """Whether a file or folder of this name, without its folders, is no part of a dataset."""
    return _LEFTOVER.match(name) is not None


def is_image(name: str) -> bool:
    """Whether a file of this name counts as an image."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def composed(name: str) -> str:
    """One spelling (NFC) of a name, which Macs write with accents apart and others do not."""
    return unicodedata.normalize("NFC", name)


def readable(name: str) -> str:
    """A name with bytes that are no UTF-8 written as \\xe9."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def free_name(name: str, taken: Container[str], key: Callable[[str], str] = str) -> str:
    """The name, or "cat/1~2.png" where there is a "cat/1.png" already: two spellings of one name are two files.

    Args:
        key: in what form names are in `taken`, as `str.lower` where case makes no difference.
    """
    stem, suffix = os.path.splitext(name)
    number, free = 1, name
    while key(free) in taken:
        number += 1
        free = f"{stem}~{number}{suffix}"
    return free


@dataclass
class Found:
    """What lies below a folder, by names relative to it, composed and with "/" between folders.

    Attributes:
        files: all regular files, images or not.
        folders: all folders that can be opened, and those that cannot but are there.
        bad: folders and image files that cannot be used, and why.
        again: links to folders that are in `files` already, and are not read again.
        leftovers: how often each name of what systems leave was passed over.
    """

    files: dict[str, Path] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    bad: dict[str, str] = field(default_factory=dict)
    again: list[str] = field(default_factory=list)
    leftovers: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Folder:
    """A folder to look into: its path on disk, its name in `Found`, and the folder of a given split it lies in."""

    path: str
    name: str
    part: str

    def inside(self, entry: str) -> str:
        return f"{self.name}/{composed(entry)}" if self.name else composed(entry)


def walk(root: Path) -> Found:
    """All below a folder, in the order of names; links to folders are followed after the real folders.

    A real folder is read once, whatever links lead to it; but in each of the folders train, validation and test,
    since a split may be a link to another one.

    Raises:
        OSError: the folder itself cannot be read.
    """
    found, seen = Found(), set[tuple[str, int, int]]()
    real, links = deque([_Folder(str(root), "", "")]), deque[_Folder]()
    while real or links:
        linked = not real
        folder = links.popleft() if linked else real.popleft()
        try:
            status = os.stat(folder.path)
            identity = (folder.part, status.st_dev, status.st_ino)
            if identity in seen or (linked and _leads_back(folder.path)):
                found.again.append(folder.name)
                continue
            found.folders |= {folder.name} - {""}
            with os.scandir(folder.path) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
            if entries:  # names alone may be readable
                os.lstat(entries[0].path)
        except OSError as error:
            if not folder.name:
                raise
            found.bad[folder.name] = why_not(error, folder.path)
            continue
        seen.add(identity)
        _sort(folder, entries, found, real, links)
    return found


def _sort(
    folder: _Folder,
    entries: list[os.DirEntry[str]],
    found: Found,
    real: deque[_Folder],
    links: deque[_Folder],
) -> None:
    """Note the files of a folder, and what else is to be looked into."""
    usual = {SPLIT_FOLDERS[entry.name.lower()] for entry in entries if entry.name.lower() in SPLIT_FOLDERS}
    splits = not folder.part and {"train", "test"} <= usual
    for entry in entries:
        if is_leftover(entry.name):
            found.leftovers[readable(entry.name)] += 1
            continue
        name = folder.inside(entry.name)
        wanted = is_image(name) or entry.name == INDEX
        try:
            mode = _mode(entry)
        except OSError as error:
            if wanted or not mimetypes.guess_type(entry.name)[0]:
                found.bad[readable(name)] = why_not(error, entry.path)
            continue
        if not _is_text(entry.name):
            if wanted or stat.S_ISDIR(mode):
                found.bad[readable(name)] = NOT_UTF8
        elif stat.S_ISDIR(mode):
            part = name if splits and entry.name.lower() in SPLIT_FOLDERS else folder.part
            (links if entry.is_symlink() else real).append(_Folder(entry.path, name, part))
        elif stat.S_ISREG(mode):
            found.files[free_name(name, found.files)] = Path(entry.path)
        elif wanted:
            found.bad[name] = not_a_file(mode) or "not a file"


def _mode(entry: os.DirEntry[str]) -> int:
    """`st_mode`, as far as it tells files from folders, without asking the system where the listing says it."""
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    return stat.S_IFDIR if entry.is_dir(follow_symlinks=False) else entry.stat().st_mode


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _leads_back(link: str) -> bool:
    """Whether a link leads to a folder that it lies in."""
    target, place = os.path.realpath(link), os.path.realpath(os.path.dirname(link) or ".")
    return place == target or place.startswith(target.rstrip(os.sep) + os.sep)


def why_not(error: OSError, path: str | Path) -> str:
    """Why a path cannot be opened."""
    if error.errno == errno.ELOOP:
        return "a link that leads in a circle"
    if error.errno == errno.ENOENT and os.path.islink(path):
        return f"a link to {readable(os.readlink(path))}, which is not there"
    return error.strerror or type(error).__name__
