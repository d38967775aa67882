"""Options of methods: what they may be, and what is said when they are something else."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from viscoin.errors import Refused


@dataclass(frozen=True)
class Option:
    """One option of a method.

    Attributes:
        default: what it is where nothing is given.
        help: for people, in a few words.
        least, below: bounds of a number, the lower one included, the upper one not.
        choices: all that it may be, for words.
        optional: whether None is allowed.
    """

    default: Any
    help: str
    least: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    optional: bool = False

    def wrong(self, value: Any) -> str | None:
        """What is wrong with a value, or None."""
        if value is None and self.optional:
            return None
        if self.choices:
            return None if value in self.choices else f"choose one of: {', '.join(self.choices)}"
        if isinstance(self.default, bool):
            return None if isinstance(value, bool) else "choose True or False"
        if self.least is None:
            return None
        whole = isinstance(self.least, int)
        kind = int if whole else (int, float)
        fits = isinstance(value, kind) and not isinstance(value, bool) and self.least <= value
        if fits and (self.below is None or value < self.below):
            return None
        below = "" if self.below is None else f", below {self.below:g}"
        return f"give a{' whole' if whole else ''} number from {self.least:g}{below}"


def check_options(method: str, options: Mapping[str, Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a method, those that were not given by default.

    Raises:
        Refused: unknown, or out of its range.
    """
    for name, value in given.items():
        if name not in options:
            known = f"it takes {', '.join(options)}" if options else "it takes none"
            raise Refused(name, value, f"method {method} has no such option", known)
        if wrong := options[name].wrong(value):
            raise Refused(name, value, f"not possible for method {method}", wrong)
    return {name: given.get(name, option.default) for name, option in options.items()}
