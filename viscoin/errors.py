"""The error for whatever a caller gave that cannot be used."""

import re
from collections.abc import Callable
from typing import Any

PARAMETER = re.compile(r"`([a-z][a-z0-9_.]*)`")


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


def reason_of(error: BaseException) -> str:
    """What an exception says, in one line: the system's words without number and path; its kind if it says nothing."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(str(said).split()) or type(error).__name__


def renamed(text: str, rename: Callable[[str], str | None]) -> str:
    """A text with the caller's words for the parameters that it names in backticks."""
    return PARAMETER.sub(lambda match: rename(match[1]) or match[0], text)


def _shown(value: Any) -> str:
    """Words that need no quotes as they are, anything else as Python writes it."""
    plain = isinstance(value, str) and not re.fullmatch(r"[\w./:+-]+", value)
    return repr(value) if plain else str(value)
