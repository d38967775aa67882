"""Trainings that the service starts: processes of their own, which outlive it; some at a time, the others wait.

Or jobs of a SLURM cluster, through what `submit` does.
"""

import logging
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from viscoin.config import DEFAULT_DATASET, load_recipe, override_recipe, recipe_names
from viscoin.datasets import check_dataset_name, default_recipe
from viscoin.errors import reason_of
from viscoin.kinds import TRAINED
from viscoin.program import MAIN
from viscoin.runs.run import Run
from viscoin.serving.problems import Problem
from viscoin.serving.runs import NAME
from viscoin.slurm.submission import CommandLine, Limits, Submission, prepare

MOST_WAITING = 64
OUTPUT, STARTING = "output.txt", 120.0  # of a training; seconds that it may take to import all and read its data

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wish:
    """A training as it is asked for: what `train` would be given. Without a dataset: that of `replay`, or birds."""

    kind: str
    dataset: str | None = None
    recipe: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None
    replay: str | None = None
    devices: int | None = None


@dataclass(frozen=True)
class Job:
    """A training to be started: its run, and the arguments of `train`."""

    run: str
    kind: str
    arguments: tuple[str, ...]

    @property
    def command(self) -> str:
        """The command line that does the same."""
        return f"python main.py {shlex.join(self.arguments)}"


class Jobs:
    """A queue of trainings.

    Args:
        root: folder of all runs.
        at_once: how many train at a time.
        data_root: folder below which datasets and models of jobs must lie.
    """

    def __init__(self, root: Path, at_once: int = 1, data_root: Path | None = None) -> None:
        self.root, self.at_once = root, at_once
        self.data_root = (data_root or Path()).resolve()
        self._waiting: deque[Job] = deque()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._failed: dict[str, tuple[Job, OSError]] = {}  # whose turn came, and which could not be started
        self._lock = threading.Lock()

    def check(self, wish: Wish) -> Job:
        """Check a training as the command line would; starts nothing.

        Raises:
            Problem: 422 for what is no kind, dataset or name, 409 for a name that is taken.
            Refused: a setting that the recipe does not take.
        """
        if wish.kind not in TRAINED:
            raise Problem(422, f"there is no training of {wish.kind!r}", f"choose one of: {', '.join(TRAINED)}")
        dataset = wish.dataset or DEFAULT_DATASET
        self._check_inside("dataset", dataset)
        check_dataset_name(dataset)
        if wish.recipe is not None and wish.recipe not in recipe_names():
            raise Problem(422, f"there is no recipe {wish.recipe!r}", f"choose one of: {', '.join(recipe_names())}")
        repeated = wish.replay and wish.recipe is None
        recipe = (
            Run(self.root / str(wish.replay)).recipe
            if repeated
            else load_recipe(wish.recipe or default_recipe(dataset))
        )
        override_recipe(recipe, dict(wish.settings))
        for key, value in wish.settings.items():
            if key.endswith(("path", "weights", "pretrained")) and isinstance(value, str):
                self._check_inside(key, value)
        run = wish.name or f"{wish.replay or Path(dataset).name}-{wish.kind}-{time.strftime('%Y%m%d-%H%M%S')}"
        self.check_name(run)
        return Job(run, wish.kind, self._arguments(wish, run))

    def check_name(self, run: str) -> None:
        """Raise a problem for what is no name of a new run."""
        if not NAME.fullmatch(run):
            raise Problem(422, f"{run!r} is no name for a run", "use letters, digits, . _ + = and -")
        if (self.root / run).exists() or any(job.run == run for job in self._waiting):
            raise Problem(409, f"there is a run {run!r} already", "choose another name")

    def add(self, wish: Wish) -> Job:
        """Start a training when its turn comes.

        Raises:
            Problem: as `check`; 503 if too many wait.
            Refused: as `check`.
            OSError: its turn is now, and its folder cannot be written.
        """
        return self._queue(self.check(wish))

    def resume(self, run: str, kind: str) -> Job:
        """Go on with a run that is there, when its turn comes.

        Raises:
            Problem: 409 if it waits already, 503 if too many wait.
            OSError: as `add`.
        """
        return self._queue(Job(run, kind, ("train", kind, "--out", str(self.root / run), "--resume")))

    def _queue(self, job: Job) -> Job:
        with self._lock:
            if any(other.run == job.run for other in self._waiting):
                raise Problem(409, f"run {job.run!r} waits for its turn already")
            if len(self._waiting) >= MOST_WAITING:
                raise Problem(503, f"{MOST_WAITING} trainings wait already", headers={"Retry-After": "60"})
            self._waiting.append(job)
            self._failed.pop(job.run, None)
        self.advance()
        with self._lock:
            _, error = self._failed.get(job.run, (job, None))
            if error is not None:  # it is told now, to who asked for it
                del self._failed[job.run]
                raise error
        return job

    def submission(self, job: Job, limits: Limits) -> Submission:
        """The batch script that runs a job on a cluster, as `submit` makes it.

        Raises:
            Refused: SLURM would not understand the limits.
        """
        _, kind, *rest = job.arguments
        devices = int(rest[rest.index("--devices") + 1]) if "--devices" in rest else None
        options = {"devices": devices, "num_nodes": None, "out": str(self.root / job.run)}
        program = shlex.join(["python", *_program()])
        return prepare(CommandLine(program, ("train", kind), tuple(rest), options), limits)

    def _arguments(self, wish: Wish, run: str) -> tuple[str, ...]:
        dataset = wish.dataset or (None if wish.replay else DEFAULT_DATASET)
        found = ["train", wish.kind, *(["--dataset", dataset] if dataset else []), "--out", str(self.root / run)]
        found += ["--recipe", wish.recipe] if wish.recipe else []
        for key, value in wish.settings.items():
            found += ["--set", f"{key}={_written(value)}"]
        found += ["--replay", str(self.root / wish.replay)] if wish.replay else []
        return (*found, *(["--devices", str(wish.devices)] if wish.devices else []))

    def _check_inside(self, key: str, value: str) -> None:
        """Raise a problem for a path that leads out of the folder of data."""
        if re.fullmatch(r"[\w.-]+", value) and not Path(value).exists():
            return  # a name, not a path
        if not Path(value).resolve().is_relative_to(self.data_root):
            raise Problem(
                422,
                f"{key}: {value!r} lies outside of the folder of data",
                "start the service with another `data_root`",
            )

    def waiting(self) -> list[dict[str, Any]]:
        """Jobs that have not been started, in their order."""
        self.advance()
        return [_row(job.run, job.kind, "queued", job.command) for job in self._waiting]

    def failed(self) -> list[dict[str, Any]]:
        """Jobs that could not be started when their turn came, with the reason; the last of them."""
        with self._lock:
            failed = list(self._failed.values())
        return [
            {**_row(job.run, job.kind, "failed", job.command), "reason": f"it could not be started: {reason_of(error)}"}
            for job, error in failed
        ]

    def unborn(self) -> list[dict[str, Any]]:
        """Jobs that were started or submitted and have written no recipe yet, or failed before that."""
        found, queued = [], {job.run for job in self._waiting} | self._failed.keys()
        for path in sorted(self.root.iterdir()) if self.root.is_dir() else ():
            if NAME.fullmatch(path.name) and path.name not in queued and not (path / "recipe.yaml").exists():
                if (path / "job.sbatch").is_file():
                    found.append(_row(path.name, None, "queued"))
                elif (path / OUTPUT).is_file():
                    found.append(self._started(path))
        return found

    def _started(self, path: Path) -> dict[str, Any]:
        process, output = self._running.get(path.name), path / OUTPUT
        young = process is None and time.time() - output.stat().st_mtime < STARTING  # of a service before this one
        if young or (process is not None and process.poll() is None):
            return _row(path.name, None, "starting")
        lines = output.read_text(encoding="utf-8", errors="replace").split("\n")
        said = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        return {**_row(path.name, None, "failed"), "reason": said[:1000]}

    def advance(self) -> None:
        """Start what can be started."""
        with self._lock:
            for run, process in list(self._running.items()):
                if process.poll() is not None:
                    del self._running[run]
            while self._waiting and len(self._running) < self.at_once:
                job = self._waiting.popleft()
                try:
                    self._running[job.run] = self._start(job)
                except OSError as error:  # whoever asks just now has nothing to do with it
                    logger.error("run %s could not be started: %s", job.run, reason_of(error))
                    self._failed[job.run] = (job, error)
                    while len(self._failed) > MOST_WAITING:
                        del self._failed[next(iter(self._failed))]

    def leave(self) -> None:
        """Say which jobs wait still, and with which command each can be started."""
        for job in self._waiting:
            logger.warning("run %s waited for its turn and is not started; by hand: %s", job.run, job.command)

    def _start(self, job: Job) -> "subprocess.Popen[bytes]":
        folder = self.root / job.run
        new = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / OUTPUT).open("ab") as output:
                return subprocess.Popen(
                    [sys.executable, *_program(), *job.arguments], stdin=subprocess.DEVNULL, stdout=output,
                    stderr=output, start_new_session=True,
                )  # fmt: skip
        except OSError:
            if new:  # and so the name stays free
                shutil.rmtree(folder, ignore_errors=True)
            raise


def _row(run: str, kind: str | None, state: str, command: str | None = None) -> dict[str, Any]:
    return {"run": run, "kind": kind, "state": state, "command": command, "pending": True}


def _program() -> Sequence[str]:
    return [str(MAIN)] if MAIN.is_file() else ["-m", "viscoin"]


def _written(value: Any) -> str:
    """A setting as `--set` reads it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
