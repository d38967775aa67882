"""What stands where an ensemble without a generator has none: every attempt to draw says how to get one."""

from typing import Any

from torch import nn

from viscoin.errors import Refused
from viscoin.program import program_name

REASON = "this ensemble has no generator, so it cannot draw"


def cannot_draw() -> Refused:
    """The error of whatever needs pictures."""
    remedy = f"train one that has: {program_name()} train gan, then {program_name()} train viscoin with it"
    return Refused(None, None, REASON, remedy)


class NoGenerator(nn.Module):
    """No Omega and no G. Whatever is asked of it is refused; it has no weights and no architecture."""

    architecture = None

    def forward(self, *arguments: Any) -> Any:
        raise cannot_draw()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # of nn.Module, of copies and pickles
            return super().__getattr__(name)
        raise cannot_draw()
