"""`main.py` that sends itself signals: SIGNALLED="NUMBER,NUMBER WHERE" as soon as it comes to a place.

WHERE is "import NAME", when a module begins to be imported, or "call MODULE:OBJECT", when a function is called first.
"""

import os
import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from typing import Any

from viscoin.signals import leave_on_signals

leave_on_signals()  # as main.py does
numbers, how, where = os.environ["SIGNALLED"].split()
waiting = [int(number) for number in numbers.split(",")]


def send() -> None:
    """Send the signals, the first time that it is called."""
    while waiting:
        os.kill(os.getpid(), waiting.pop(0))


class Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name == where:
            send()


def patch() -> None:
    module, _, name = where.partition(":")
    *parents, last = name.split(".")
    place: Any = import_module(module)
    for parent in parents:
        place = getattr(place, parent)
    original = getattr(place, last)

    def called(*arguments: Any, **options: Any) -> Any:
        send()
        return original(*arguments, **options)

    setattr(place, last, called)


if __name__ == "__main__":
    if how == "import":
        sys.meta_path.insert(0, Finder())
    else:
        patch()
    from viscoin.cli import main

    main()
