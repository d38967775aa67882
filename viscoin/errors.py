"""The error for whatever a caller gave that cannot be used."""

import errno
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What people mend outside of this program, such as a full disk or a server that is gone; then the same command works.
OUTSIDE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE)
PARAMETER = re.compile(r"`([a-z][a-z0-9_.]*)`")
KINDS = {
    stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip


class Refused(ValueError):
    """An argument, a setting or a file cannot be used; says which, why, and what to do instead.

    In `reason` and `remedy`, names of other parameters and recipe keys stand in backticks. As a string, this is a plain
    sentence for Python; the command line writes `--batch-size` for `batch_size`, and a service can report the fields.

    Attributes:
        parameter: name of the Python parameter, dotted key of a recipe, or None where it is about a file or the call.
        value: what was given, None where the value itself says nothing.
        reason: what is wrong with it.
        remedy: what to do instead, "" where the reason leaves no doubt.
    """

    def __init__(self, parameter: str | None, value: Any, reason: str, remedy: str = "") -> None:
        super().__init__(parameter, value, reason, remedy)
        self.parameter, self.value, self.reason, self.remedy = parameter, value, reason, remedy

    def __str__(self) -> str:
        return self.sentence(lambda name: None)

    def sentence(self, rename: Callable[[str], str | None]) -> str:
        """The whole message in one line.

        Args:
            rename: gives the caller's word for a parameter, as "--batch-size" for "batch_size"; None keeps the name.
        """
        subject = "" if self.parameter is None else rename(self.parameter) or self.parameter
        if self.value is not None:
            subject = f"{subject} {_shown(self.value)}".strip()
        text = f"{self.reason}; {self.remedy}" if self.remedy else self.reason
        text = renamed(text, rename)
        return f"{subject}: {text}" if subject else text


def outside(error: BaseException | None) -> OSError | None:
    """The failure outside of this program that led to an error, if one did."""
    while error is not None and not (isinstance(error, OSError) and error.errno in OUTSIDE):
        error = error.__cause__
    return error


def of_system(error: OSError) -> str:
    """What an error of the system says, without its number: which file, and what is wrong with it."""
    if error.strerror is None:
        return str(error) or type(error).__name__
    return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror


def renamed(text: str, rename: Callable[[str], str | None]) -> str:
    """A text with the caller's words for the parameters that it names in backticks."""
    return PARAMETER.sub(lambda match: rename(match[1]) or match[0], text)


def reason_of(error: BaseException, most: int = 200) -> str:
    """What an exception says, in one short line: the system's words, without number and path; its kind if it is silent.

    Torch's advice to run what is in a file is left out.
    """
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(str(said).split())
    if "weights_only" in text:
        found = re.search(r"GLOBAL ([\w.]+)|instruction: (\w+)|Unsupported \w+ ([\w.]+)", text)
        named = next((name for name in found.groups() if name), "more than tensors") if found else "more than tensors"
        return f"it asks for {named}, which is not part of a file of tensors; refused"
    return text[:most] or type(error).__name__


def _shown(value: Any) -> str:
    """Words that need no quotes as they are, anything else as Python writes it."""
    plain = isinstance(value, str) and not re.fullmatch(r"[\w./:+-]+", value)
    return repr(value) if plain else str(value)


def not_a_file(mode: int) -> str | None:
    """What a path of this `st_mode` is instead of a file, as in "a named pipe, not a file"; None for files, folders."""
    kind = KINDS.get(stat.S_IFMT(mode))
    return f"{kind}, not a file" if kind else None


def regular(path: Path) -> Path:
    """The same path, unless opening it might wait for ever.

    Raises:
        Refused: it is a named pipe, a socket or a device.
    """
    try:
        reason = not_a_file(path.stat().st_mode)
    except (OSError, ValueError):  # whoever opens it will say why it cannot be
        return path
    if reason:
        raise Refused(None, path, reason, "give a file")
    return path
