"""Trainings that the service starts: processes of their own, which outlive it; some at a time, the others wait."""

import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from viscoin.config import load_recipe, override_recipe, recipe_names
from viscoin.datasets import check_dataset_name, default_recipe
from viscoin.kinds import TRAINED
from viscoin.program import MAIN
from viscoin.serving.problems import Problem
from viscoin.serving.runs import NAME

MOST_WAITING = 64


@dataclass(frozen=True)
class Job:
    """A training to be started: its run, and the arguments of `train`."""

    run: str
    kind: str
    arguments: tuple[str, ...]

    @property
    def command(self) -> str:
        """The command line that does the same."""
        return " ".join(["python main.py", *self.arguments])


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
        self._lock = threading.Lock()

    def add(
        self, kind: str, dataset: str, recipe: str | None, settings: Mapping[str, Any], name: str | None,
        replay: str | None,
    ) -> Job:  # fmt: skip
        """Check a training as the command line would, and start it when its turn comes.

        Raises:
            Problem: 422 for what is no kind, dataset or name, 409 for a name that is taken, 503 if too many wait.
            Refused: a setting that the recipe does not take.
        """
        if kind not in TRAINED:
            raise Problem(422, f"there is no training of {kind!r}", f"choose one of: {', '.join(TRAINED)}")
        self._check_inside("dataset", dataset)
        check_dataset_name(dataset)
        if recipe is not None and recipe not in recipe_names():
            raise Problem(422, f"there is no recipe {recipe!r}", f"choose one of: {', '.join(recipe_names())}")
        override_recipe(load_recipe(recipe or default_recipe(dataset)), dict(settings))
        for key, value in settings.items():
            if key.endswith(("path", "weights", "pretrained")) and isinstance(value, str):
                self._check_inside(key, value)
        run = name or f"{Path(dataset).name}-{kind}-{time.strftime('%Y%m%d-%H%M%S')}"
        if not NAME.fullmatch(run):
            raise Problem(422, f"{run!r} is no name for a run", "use letters, digits, . _ + = and -")
        with self._lock:
            if (self.root / run).exists() or any(job.run == run for job in self._waiting):
                raise Problem(409, f"there is a run {run!r} already", "choose another name")
            if len(self._waiting) >= MOST_WAITING:
                raise Problem(503, f"{MOST_WAITING} trainings wait already", headers={"Retry-After": "60"})
            job = Job(run, kind, self._arguments(kind, dataset, recipe, settings, run, replay))
            self._waiting.append(job)
        self.advance()
        return job

    def _arguments(
        self, kind: str, dataset: str, recipe: str | None, settings: Mapping[str, Any], run: str, replay: str | None
    ) -> tuple[str, ...]:
        found = ["train", kind, "--dataset", dataset, "--out", str(self.root / run)]
        found += ["--recipe", recipe] if recipe else []
        for key, value in settings.items():
            found += ["--set", f"{key}={_written(value)}"]
        return (*found, *(("--replay", str(self.root / replay)) if replay else ()))

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
        return [{"run": job.run, "kind": job.kind, "state": "queued", "command": job.command} for job in self._waiting]

    def advance(self) -> None:
        """Start what can be started."""
        with self._lock:
            for run, process in list(self._running.items()):
                if process.poll() is not None:
                    del self._running[run]
            while self._waiting and len(self._running) < self.at_once:
                job = self._waiting.popleft()
                self._running[job.run] = self._start(job)

    def _start(self, job: Job) -> "subprocess.Popen[bytes]":
        folder = self.root / job.run
        folder.mkdir(parents=True)
        with (folder / "output.txt").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, *_program(), *job.arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip


def _program() -> Sequence[str]:
    return [str(MAIN)] if MAIN.is_file() else ["-m", "viscoin"]


def _written(value: Any) -> str:
    """A setting as `--set` reads it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
