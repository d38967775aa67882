"""log.txt of a run folder: all that the terminal showed of the command, apart from progress bars."""

import errno
import logging
import os
import shlex
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO, TypeVar

from viscoin.errors import Refused, regular
from viscoin.program import program_name

logger = logging.getLogger(__name__)

T = TypeVar("T")

FILE = "log.txt"
MOST = 2000  # pieces of text that are kept until it is known which folder they belong to


class _Stream:
    """A stream that the transcript reads along, and that is silent once its terminal is closed; else the stream itself.

    A training is not to end for the lines that nobody can see any more.
    """

    def __init__(self, stream: TextIO, transcript: "_Transcript") -> None:
        self._stream, self._transcript = stream, transcript

    def write(self, text: str) -> int:
        self._transcript.note(text)
        return self._try(lambda: self._stream.write(text)) or len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, action: Callable[[], T]) -> T | None:
        try:
            return action()
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self._stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  until the process ends
            return None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Transcript:
    """What this process prints, and the files that take it."""

    def __init__(self) -> None:
        self.before: deque[str] = deque(maxlen=MOST)  # what came before there was a file
        self.command: int | None = None  # descriptor of the file of the whole command
        self.others: list[int] = []
        self.bar = False

    def note(self, text: str) -> None:
        """Take a piece of text, unless it draws a progress bar or ends its line."""
        drawn = text.startswith("\r") or "\x1b[A" in text
        if not drawn and not (self.bar and text == "\n"):
            if self.command is None:
                self.before.append(text)
            for file in [self.command, *self.others]:
                _write(file, text)
        self.bar = drawn or (self.bar and not text)


_transcript: _Transcript | None = None


def listen() -> None:
    """From now on, take down what this process prints; `keep_in` says where."""
    global _transcript
    _transcript = _Transcript()
    sys.stdout, sys.stderr = (_Stream(stream, _transcript) for stream in (sys.stdout, sys.stderr))  # type: ignore[assignment]


def keep_in(folder: Path) -> None:
    """Append to log.txt in a folder what this command prints, until it ends or names another folder."""
    if _transcript is None:
        return
    file = _open(folder)
    for text in _transcript.before:
        _write(file, text)
    _transcript.before.clear()
    if _transcript.command is not None:
        os.close(_transcript.command)
    _transcript.command = file


@contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Append to log.txt in a folder what is printed within the block, and by which error it ends."""
    file = None if _transcript is None else _open(folder)
    if _transcript is None or file is None:
        yield
        return
    _transcript.others.append(file)
    try:
        yield
    except BaseException as error:
        _write(file, f"{type(error).__name__}: {error}\n")
        raise
    finally:
        _transcript.others.remove(file)
        os.close(file)


def _open(folder: Path) -> int | None:
    """The log of a folder, with a line that says which command begins here."""
    from viscoin.runs.revision import code_revision

    command = f"{program_name()} {shlex.join(sys.argv[1:])}"
    first, file = f"--- {datetime.now():%Y-%m-%d %H:%M:%S}, revision {code_revision()}: {command}\n", None
    try:
        file = os.open(regular(folder / FILE), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.write(file, _bytes(first))
    except (OSError, Refused) as error:
        reason = error.reason if isinstance(error, Refused) else error.strerror
        logger.warning("%s cannot be written (%s); what this command prints is not kept", folder / FILE, reason)
        if file is not None:
            os.close(file)
        return None
    return file


def _write(file: int | None, text: str) -> None:
    if file is not None:
        with suppress(OSError):  # a full disk ends what has to be saved, not what is only told
            os.write(file, _bytes(text))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
