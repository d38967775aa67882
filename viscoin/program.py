"""The name under which this program was started, for messages that say what to run next."""

import os
import shlex
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
MAIN = PACKAGE.parent / "main.py"


def program_name() -> str:
    """What a user types before a command: `python main.py`, `python -m viscoin`, or `viscoin`, also in Python.

    Where main.py is not that of the current folder, its whole path.
    """
    started = os.path.realpath(sys.argv[0])
    if started == str(PACKAGE / "__main__.py"):
        return "python -m viscoin"
    if started != str(MAIN):
        return "viscoin"
    return "python main.py" if os.path.realpath("main.py") == started else f"python {shlex.quote(started)}"
