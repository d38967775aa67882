"""Send commands to a training, checked as far as that is possible from outside, and learn what became of them."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from viscoin.config import override_recipe
from viscoin.errors import Refused
from viscoin.penalties import KINDS, check_wish, checked, edited
from viscoin.runs.control import Command, Entry, check_values, read_record, send
from viscoin.runs.run import Run
from viscoin.runs.status import LIVE, Status, read_status

LOOK_EVERY = 0.1  # seconds
OF_LIVE = ("pause", "continue", "stop")  # commands that mean nothing to a run that no process has


def find_run(path: Path) -> tuple[Path, Status]:
    """The run in a folder and what it is doing.

    Raises:
        Refused: there is no run in it.
    """
    if not Run(path).recipe_path.is_file():
        raise Refused("run", path, "there is no run in it", "name the folder that a training printed first")
    return path, read_status(path)


def deliver(path: Path, command: str, values: Mapping[str, Any]) -> Command:
    """Send a command to the training in a run folder.

    A run that was stopped obeys it when it is resumed.

    Raises:
        Refused: no run, one that has ended, or a command that it cannot obey.
    """
    _, status = find_run(path)
    if status.state == "finished":
        raise Refused("run", path, "this training has ended", "start another one")
    if status.state not in LIVE and command in OF_LIVE:
        raise Refused("run", path, f"no training runs there (it is {status.state}), so it cannot {command}")
    if command == "set" and status.steerable is not None:  # else only the training knows
        run = Run(path)
        check_values(run.kind, override_recipe(run.recipe, status.steerable), status.steerable, values)
    if command == "penalty":
        check_penalty(Run(path), status, values)
    return send(path, command, values)


def check_penalty(run: Run, status: Status, values: Mapping[str, Any]) -> None:
    """Raise Refused where a training will not take a command about penalties, as far as its status tells."""
    if run.kind not in KINDS:
        raise Refused("run", run.path, f"a training of kind {run.kind} has no penalties", f"{' and '.join(KINDS)} have")
    check_wish(values)
    if status.penalties is not None:
        present = [checked(run.kind, one) for one in status.penalties["active"]]
        edited(run.kind, present, values)


def fate(path: Path, command: Command, seconds: float) -> Entry | None:
    """What the record says of a command; None where it says nothing within so many seconds."""
    end = time.monotonic() + seconds
    while True:
        found = next((entry for entry in read_record(path) if entry.id == command.id), None)
        if found is not None or time.monotonic() >= end:
            return found
        time.sleep(LOOK_EVERY)
