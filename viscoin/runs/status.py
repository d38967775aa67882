"""status.json of a run folder: what a training is doing, for whoever watches or steers it."""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from viscoin.errors import reason_of, regular
from viscoin.files import partial_path, without_nan
from viscoin.runs.run import Run

FILE = "status.json"
EVERY, SILENT = 2.0, 30.0  # seconds between two signs of life, and without one
LIVE = ("starting", "running", "paused", "silent")  # states in which a process has the run


@dataclass
class Status:
    """What a training says of itself.

    Attributes:
        state: "running", "paused", "finished" (all steps are done), "stopped" (saved, to be resumed) or "failed"; as
            `read_status` sees it also "starting", and "silent" where no sign of life has come for half a minute.
        step, steps: steps that are done, and in all.
        pace, left: seconds a step, and until the end, of steps alone; None as long as nobody knows.
        metrics: the newest value of each.
        steerable: present values of what `set` may change, by recipe key; None where nobody has said yet.
        penalties: those in force (`active`), and the `kinds` and `regions` to choose from; None: it takes none.
        reason: how a failed training ended.
        host, process, time: where it runs, and when it wrote this, in seconds since 1970.
    """

    state: str = "starting"
    step: int = 0
    steps: int = 0
    pace: float | None = None
    left: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    steerable: dict[str, Any] | None = None
    penalties: dict[str, Any] | None = None
    reason: str = ""
    host: str = ""
    process: int = 0
    time: float = 0.0


class StatusFile:
    """Replaces a run's status.json now and then; a full disk is no reason to end a training for that."""

    def __init__(self, run: Run) -> None:
        self.run, self.status, self._next = run, Status(host=socket.gethostname(), process=os.getpid()), 0.0

    def due(self) -> bool:
        """Whether it is time for a sign of life."""
        return time.perf_counter() >= self._next

    def write(self, state: str, **facts: Any) -> None:
        """Write the state and what else has changed."""
        self._next = time.perf_counter() + EVERY
        for name, value in {**facts, "state": state, "time": round(time.time(), 3)}.items():
            setattr(self.status, name, value)
        if self.run.is_gone():
            return  # another run may be in its place
        partial = partial_path(self.run.path / FILE)
        with suppress(OSError):
            try:
                partial.write_text(json.dumps(without_nan(vars(self.status))) + "\n", encoding="utf-8")
                partial.replace(self.run.path / FILE)
            finally:
                partial.unlink(missing_ok=True)

    @contextmanager
    def ending(self, facts: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
        """Write how the block ends."""
        try:
            yield
        except KeyboardInterrupt:
            self.write("stopped", **facts())
            raise
        except BaseException as error:
            self.write("failed", **facts(), reason=reason_of(error))
            raise
        self.write("finished", **facts())


def read_status(run: Path) -> Status:
    """What a run is doing, by its status.json and by whether the process that has the run is alive."""
    status = Status(state="finished" if Run(run).model_path.exists() else "stopped")  # of older versions
    with suppress(OSError, ValueError, TypeError, RecursionError):
        status = Status(**json.loads(regular(run / FILE).read_text(encoding="utf-8")))
    owner = _owner(run)
    if owner is None:
        if status.state in LIVE or (status.state == "finished" and not Run(run).model_path.exists()):
            status.state = "failed"  # nobody was left to write it
        return status
    if (owner["process"], owner["host"]) != (status.process, status.host) or status.state not in LIVE:
        done = status.state == "finished" and (owner["process"], owner["host"]) == (status.process, status.host)
        status.state = "running" if done else "starting"  # what follows the steps: tests, and the model file
    elif time.time() - status.time > SILENT:
        status.state = "silent"
    return status


def _owner(run: Path) -> dict[str, Any] | None:
    """Process and host that have locked a run; None where nobody has, or where the process is known to be dead."""
    try:
        owner = json.loads(regular(run / ".owner.json").read_text(encoding="utf-8"))
        process, host = int(owner["process"]), str(owner["host"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    if host == socket.gethostname():
        try:
            os.kill(process, 0)
        except (ProcessLookupError, OverflowError):
            return None
        except PermissionError:
            pass  # alive, and somebody else's
    return {"process": process, "host": host}
