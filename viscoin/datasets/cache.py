"""The user's cache folder: what is made once, recognised when it was damaged, and then made again.

Beside each file lies a record of its check sum and of what the file system says of it (size, times, inode). While the
latter stay as they are the file is taken for whole, which costs nothing; when they differ, as after a repair, a copy or
a stray write, all of it is read and compared.
"""

import errno
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from platformdirs import user_cache_dir

from viscoin.errors import Refused, reason_of
from viscoin.files import atomic_path, clear_partials

VARIABLE = "XDG_CACHE_HOME"
CHUNK = 2**22  # bytes
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT, *NO_ROOM}
logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Path of prepared images: `viscoin` in the user's cache folder (XDG_CACHE_HOME moves it)."""
    return Path(user_cache_dir("viscoin"))


def is_cached(path: Path) -> bool:
    """Whether a file of the cache is there as it was written; one that is not is reported and has to be made again."""
    record = _record_of(path)
    if not path.is_file() or not record.is_file():
        return False
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(record.read_bytes())
        if known["file"] == file_state(path):
            return True
        if known["crc32"] == checksum(path):
            with suppress(OSError):  # a cache that others may only read
                _record(path, known["crc32"])
            return True
    logger.warning("%s in the cache is damaged and is made again", path)
    return False


@contextmanager
def new_cached(path: Path) -> Iterator[Path]:
    """A temporary path that becomes a file of the cache, with its record, when the block ends well.

    What killed processes were writing into the cache is cleared away.

    Raises:
        Refused: the cache cannot be written, or the disk is full.
    """
    with explained():
        path.parent.mkdir(parents=True, exist_ok=True)
        for folder in (cache_folder(), *(inner for inner in cache_folder().iterdir() if inner.is_dir())):
            clear_partials(folder)
        with atomic_path(path) as partial:
            yield partial
            found = checksum(partial)
        _record(path, found)


def discard(path: Path) -> None:
    """Remove a file of the cache, if it is there.

    Raises:
        Refused: the cache cannot be written.
    """
    with explained():
        path.unlink(missing_ok=True)


def keep(path: Path, write: Callable[[Path], None]) -> bool:
    """Write a result into the cache; where that is not possible a warning must do, as the result is there already."""
    try:
        with new_cached(path) as partial:
            write(partial)
    except Refused as error:
        logger.warning("%s; the result is not cached", error)
        return False
    return True


def reserve(path: Path) -> None:
    """Take the room for all of a file whose size is set, as a memory map that finds no room kills the process."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        except AttributeError:  # not every system has it
            pass
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise
        start = file.read(CHUNK)
        file.seek(0)
        file.write(start)
        for begin in range(len(start), size, CHUNK):
            file.write(bytes(min(CHUNK, size - begin)))


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    found = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            found = zlib.crc32(chunk, found)
    return found


def file_state(path: Path) -> list[int]:
    """Size, times (ns) and inode, one of which changes when the file does.

    The time of modification can be set back, as tools that copy do; that of the last change of any kind cannot.
    """
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sum")


def _record(path: Path, found: int) -> None:
    with atomic_path(_record_of(path)) as partial:
        partial.write_text(json.dumps({"crc32": found, "file": file_state(path)}))


@contextmanager
def explained(folder: Path | None = None, variable: str = VARIABLE) -> Iterator[None]:
    """Say of a cache that cannot be written which variable moves it.

    Args:
        folder: the cache; None for that of this module.

    Raises:
        Refused: in place of an OSError about the folder, or one that holds it.
    """
    place = cache_folder() if folder is None else folder
    try:
        yield
    except OSError as error:
        inside = error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(place)
        above = error.filename is not None and place.is_relative_to(Path(os.fsdecode(error.filename)))
        if error.errno not in NOT_WRITABLE or not (inside or above):
            raise
        room = "with more room" if error.errno in NO_ROOM else "that can be written"
        raise Refused(
            None, None, f"cannot write to the cache folder {place} ({reason_of(error)})",
            f"set the environment variable {variable} to a folder {room}",
        ) from error  # fmt: skip
