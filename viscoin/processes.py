"""What a process finds when it starts: which of several it is, and its standard streams."""

import os
import sys


def is_first_process() -> bool:
    """Whether this process writes files and speaks: false in those that a launcher started beside it."""
    return all(int(os.environ.get(name) or 0) == 0 for name in ("RANK", "NODE_RANK", "LOCAL_RANK", "SLURM_PROCID"))


def open_missing_streams() -> None:
    """Give a process that was started without standard streams, as some daemons do, ones that lead nowhere.

    Otherwise the next file that is opened would get their number, and whatever a library prints.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115
