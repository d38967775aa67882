"""Files that are written whole or not at all, and what may be written into JSON."""

import errno
import glob
import hashlib
import math
import os
import platform
import re
import shutil
import stat
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from viscoin.signals import held

DIGEST = re.compile(r"digest: ([0-9a-f]{64})\n")
LEFT_FOR = 7 * 24 * 3600  # seconds


def write_tensors(content: Mapping[str, Any], path: Path) -> None:
    """`torch.save`, which on a full disk ends in an OSError, too.

    Signals wait for its end: an exception that Python raises within its C++ may abort the process.
    """
    import torch  # here, as most users of this module do without

    with held(), path.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of `path` when the block ends well, and vanishes when not.

    A link stays, and what it leads to is replaced; a device, a pipe or standard output is `path` itself, written to
    as it comes. What killed processes have left of the same file is cleared away.

    Raises:
        OSError: `path` is a folder, or cannot be written to; names `path`, or what the link leads to.
    """
    if _takes_a_stream(path):
        yield path
        return
    path = end_of_links(path)
    clear_partials(path.parent, path.name)
    partial = partial_path(path)
    try:
        with writing(path, partial):
            yield partial
            with held():
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
                partial.replace(path)
                _sync_folder(path.parent)
    finally:
        with held():
            partial.unlink(missing_ok=True)


def _takes_a_stream(path: Path) -> bool:
    """Whether something that is no file is written to, or a file that another program has opened for it."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return not stat.S_ISREG(mode) or os.path.abspath(path).startswith(("/dev/std", "/dev/fd/", "/proc/"))


def end_of_links(path: Path) -> Path:
    """What a link leads to, there or not; anything else as it is."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@contextmanager
def writing(path: Path, partial: Path) -> Iterator[None]:
    """Have errors of the system within the block name `path`, where they name `partial` or say that a disk is full."""
    try:
        yield
    except OSError as error:
        names = [name for name in (error.filename2, error.filename) if str(name).startswith(str(partial))]
        if names:
            error.filename, error.filename2 = f"{path}{str(names[0]).removeprefix(str(partial))}", None
        elif error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            error.filename = str(path)
        raise


def partial_path(path: Path) -> Path:
    """A name beside `path` that no other has, and by which `clear_partials` knows the process that writes it."""
    return path.with_name(f".{path.name}.{_machine()}-{os.getpid()}.{uuid.uuid4().hex}.partial")


def clear_partials(folder: Path, name: str | None = None) -> None:
    """Remove temporary files and folders of processes of this machine that are no longer alive.

    Those of other machines, of which nobody here can know, are removed a week after their last change.

    Args:
        name: only those of the file of that name.
    """
    for partial in folder.glob(f".{'*' if name is None else glob.escape(name)}.*.partial"):
        with suppress(OSError):
            if _abandoned(partial):
                shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)


def _abandoned(partial: Path) -> bool:
    owner = re.search(r"\.([0-9a-f]{8})-(\d+)\.[0-9a-f]{32}\.partial$", partial.name)
    if owner is None or owner[1] != _machine() or os.name != "posix":
        return time.time() - partial.stat().st_mtime > LEFT_FOR
    try:
        os.kill(int(owner[2]), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):  # somebody else's
        return False
    return False


def _machine() -> str:
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _sync_folder(path: Path) -> None:
    """Have the new name of a file survive a power failure, where the system can do that."""
    with suppress(OSError):
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sealed(text: str) -> str:
    """A YAML mapping with a first key `digest`, by which `is_whole` sees whether anything of it is lost or changed."""
    return f"digest: {_digest(text)}\n{text}"


def is_whole(text: str) -> bool:
    """Whether a text of `sealed` is as it was written, but for its key `created`; also true of one without digest."""
    match = DIGEST.match(text)
    return _digest(text[match.end() :]) == match[1] if match else not text.startswith("digest")


def _digest(text: str) -> str:
    lines = [line.rstrip() for line in text.rstrip().split("\n") if not line.startswith("created:")]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "backslashreplace")).hexdigest()


def without_nan(values: Any) -> Any:
    """The same with None for every NaN and infinity, which JSON does not know."""
    if isinstance(values, Mapping):
        return {key: without_nan(value) for key, value in values.items()}
    if isinstance(values, list):
        return [without_nan(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
