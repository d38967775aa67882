"""A run is one folder: recipe.yaml, metrics.jsonl, checkpoints/, model.safetensors, figures/."""

import errno
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from viscoin.config import Recipe, parse_recipe, parse_yaml
from viscoin.errors import Refused
from viscoin.files import atomic_path, write_tensors
from viscoin.kinds import TRAINED

logger = logging.getLogger(__name__)

RUNS = Path("runs")
# Lengths on which nothing else depends (no schedule): a run may be continued to another one.
EXTENDABLE = ("gan.kimg",)
MOVABLE = ("dataset.path",)  # the same files, wherever they lie
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # Lustre and NFS, mounted without them


class Run:
    """Paths of one run and the two files it grows: metrics and checkpoints.

    Attributes:
        listeners: called with step and values whenever metrics are logged; what one raises ends the training.
        goes_on: whether `create` found the run there.
    """

    def __init__(self, path: Path) -> None:
        self.listeners: list[Callable[[int, Mapping[str, float]], None]] = []
        self._damaged: set[str] = set()  # checkpoints that could not be read
        self._warned = False  # that this folder cannot be locked
        self.goes_on = False
        self.path = path
        self.recipe_path = path / "recipe.yaml"
        self.metrics_path = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.figures = path / "figures"
        self.model_path = path / "model.safetensors"

    @classmethod
    def create(
        cls, kind: str, recipe: Recipe, out: Path | None = None, resume: bool = False, allow_changes: bool = False
    ) -> "Run":
        """Make the folder of a new run, or open the one to resume.

        Args:
            kind: "classifier", "gan" or "viscoin".
            out: the folder; one that holds a run of the same kind and recipe is continued. By default a new folder
                `runs/<dataset>-<kind>-<time>`, or with `resume` that of the newest such run.
            resume: there must be a run to resume.
            allow_changes: resume although the recipe differs from that of the run; the change is noted beside it.

        Raises:
            ValueError: the folder holds a run of another kind or recipe or that a live process trains, none to resume,
                or it cannot be written.
        """
        with cls.opened(kind, recipe, out, resume, allow_changes) as run:
            return run

    @classmethod
    @contextmanager
    def opened(
        cls, kind: str, recipe: Recipe, out: Path | None = None, resume: bool = False, allow_changes: bool = False
    ) -> Iterator["Run"]:
        """The run that `create` makes or opens, and nobody else has it within the block."""
        if out is None and not resume:
            run = cls(new_folder(f"{Path(recipe.dataset.name).name}-{kind}"))
        elif out is None:
            found = newest_run(kind, recipe.dataset.name)
            if found is None:
                raise Refused(
                    "resume", None, f"no {kind} run of {recipe.dataset.name!r} in {RUNS}", "start one without"
                )
            run = found
        else:
            run = cls(out)
            if resume and not run.recipe_path.is_file():
                raise Refused("resume", None, f"no {kind} run in {out}", "start one without")
        run._make()
        with run.lock():
            run.goes_on = run.recipe_path.is_file()
            if run.goes_on:
                run._go_on(kind, recipe, allow_changes)
            else:
                created = datetime.now().isoformat(timespec="seconds")
                run._write_header({"kind": kind, "created": created, "recipe": recipe.model_dump()})
            for folder in (run.path, run.checkpoints, run.figures):  # what a killed process was writing
                for partial in folder.glob(".*.partial"):
                    partial.unlink(missing_ok=True)
            yield run

    def _make(self) -> None:
        try:
            for folder in (self.checkpoints, self.figures):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> Refused:
        return Refused("out", self.path, f"cannot write there ({error.strerror})", "choose another folder")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Nobody else may train in this folder meanwhile; a process may lock it several times.

        Where the file system has no locks, a warning must do: a file in their place would outlive a process that is
        killed, and keep the job out that resumes the run on another node.

        Raises:
            ValueError: a live process has it; names process and host. Or the folder cannot be written.
        """
        lock, owner = self._lock(), self.path / ".owner.json"
        try:
            lock.acquire()
        except Timeout as error:
            raise ValueError(f"{self.path} is in use by {_owner(owner)}; wait for its end, or stop it first") from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise self._unwritable(error) from error
            if not self._warned:
                logger.warning(
                    "%s: the file system has no locks (%s); take care that no two processes train there",
                    self.path, error.strerror,
                )  # fmt: skip
            self._warned = True
        try:
            if lock.lock_counter == 1:
                facts = {"process": os.getpid(), "host": socket.gethostname(), "since": datetime.now().isoformat()}
                with suppress(OSError):  # it is for others to read
                    owner.write_text(json.dumps(facts))
            yield
        finally:
            if lock.lock_counter == 1:
                owner.unlink(missing_ok=True)
            lock.release()

    def _lock(self) -> FileLock:
        return FileLock(self.path / ".lock", timeout=0, is_singleton=True, fallback_to_soft=False)

    def _write_header(self, header: Mapping[str, Any]) -> None:
        with atomic_path(self.recipe_path) as partial:
            partial.write_text(yaml.safe_dump(dict(header), sort_keys=False))

    def annotate(self, **facts: Any) -> None:
        """Write facts about this run into recipe.yaml, beside the recipe."""
        self._write_header({**self.header, **facts})

    def _go_on(self, kind: str, recipe: Recipe, allow_changes: bool) -> None:
        """Write the recipe to resume with, unless that would be a different training."""
        if self.kind != kind:
            raise Refused("out", self.path, f"holds a {self.kind} run, not a {kind} run", "choose another folder")
        saved, given = flatten(self.recipe.model_dump()), flatten(recipe.model_dump())
        changed = [
            f"{key}: {saved.get(key)} -> {given[key]}"
            for key in given
            if key.split(".")[0] in ("dataset", "seed", kind) and saved.get(key) != given[key]
        ]
        grave = [change for change in changed if change.partition(":")[0] not in EXTENDABLE + MOVABLE]
        if grave and not allow_changes:
            raise Refused(
                None, None, f"{self.path} was started with another recipe ({'; '.join(grave)})",
                "give the same settings, pass `allow_changes` to resume with the new ones, or start a new run (`out`)",
            )  # fmt: skip
        header = {**self.header, "recipe": recipe.model_dump()}
        if grave:
            logger.warning("%s resumes with a changed recipe: %s", self.path, "; ".join(grave))
            when = datetime.now().isoformat(timespec="seconds")
            header["changes"] = [*header.get("changes", []), {"time": when, "changed": grave}]
        self._write_header(header)

    @property
    def header(self) -> dict[str, Any]:
        return parse_yaml(self.recipe_path.read_text())

    @property
    def kind(self) -> str:
        return self.header["kind"]

    @property
    def recipe(self) -> Recipe:
        return parse_recipe(self.header["recipe"], str(self.recipe_path))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line of flat keys to metrics.jsonl."""
        line = json.dumps({"step": step, "time": round(time.time(), 3), **values})
        with self.metrics_path.open("a") as file:
            file.write(line + "\n")
        for listener in self.listeners:
            listener(step, values)

    def truncate_metrics(self, step: int) -> None:
        """Drop lines after `step`: a resumed run writes them again."""
        if self.metrics_path.is_file():
            lines = [line for line in read_metrics(self.metrics_path) if line["step"] <= step]
            with atomic_path(self.metrics_path) as partial:
                partial.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def save_checkpoint(self, name: str, state: Mapping[str, Any], keep: str | None = None) -> None:
        """Write `checkpoints/<name>.pt` so that it is whole or absent.

        Args:
            keep: what the checkpoint of that name before this one is called from now on.
        """
        path = self.checkpoints / f"{name}.pt"
        with atomic_path(path) as partial:
            write_tensors(dict(state), partial)
            if keep is not None and path.is_file() and name not in self._damaged:
                with atomic_path(path.with_stem(keep)) as second:
                    _link(path, second)
        self._damaged.discard(name)

    def load_checkpoint(self, name: str) -> dict[str, Any] | None:
        """The checkpoint, or None when there is none; ValueError when its check sums say that it is damaged."""
        try:
            return self._read_checkpoint(name)
        except ValueError as error:
            raise ValueError(f"{error}; remove it and resume without it") from error

    def _read_checkpoint(self, name: str) -> dict[str, Any] | None:
        path = self.checkpoints / f"{name}.pt"
        if not path.is_file():
            return None
        from stylegan2_ada.plain_pickle import read_tensor_file  # here, as most users of a run do without

        try:
            state = read_tensor_file(path)
            if not isinstance(state, dict):
                raise ValueError(f"it holds a {type(state).__name__}")
        except (ValueError, OSError) as error:
            reason = str(error).removeprefix(f"{path} ")
            raise ValueError(f"checkpoint {path} is damaged ({reason})") from error
        return state

    def last_checkpoint(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be read, or None where no step is saved yet.

        Raises:
            ValueError: there are checkpoints, but none of them can be read.
        """
        damaged = None
        for name in ("last", "previous"):
            try:
                state = self._read_checkpoint(name)
            except ValueError as error:
                damaged = damaged or error
                self._damaged.add(name)
                continue
            if state is not None and damaged is not None:
                logger.warning("%s; resuming from the one before, %s.pt", damaged, name)
            if state is not None:
                return state
        if damaged is not None:
            reason = f"no checkpoint in {self.checkpoints} can be read ({damaged})"
            raise Refused(None, None, reason, "start a new run in another folder (`out`)")
        return None


def new_folder(name: str) -> Path:
    """Make a folder `runs/<name>-<time>` that nobody else has: several commands may start in the same second.

    Raises:
        Refused: it cannot be made.
    """
    stem = RUNS / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    path, number = stem, 1
    while True:
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
            path = stem.with_name(f"{stem.name}-{number}")
        except OSError as error:
            raise Refused(
                None, None, f"cannot make {path} ({error.strerror})", "choose another folder (`out`)"
            ) from error
        else:
            return path


def drop_folder(folder: Path) -> None:
    """Remove a folder of `new_folder` with all that is in it, and runs/ where nothing else is in there."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        RUNS.rmdir()


def _link(path: Path, second: Path) -> None:
    """A second name for a file; a copy where the file system has no hard links."""
    try:
        os.link(path, second)
    except OSError:
        shutil.copyfile(path, second)


def _owner(path: Path) -> str:
    try:
        facts = json.loads(path.read_text())
        return f"process {facts['process']} on {facts['host']} since {facts['since'].partition('.')[0]}"
    except (OSError, ValueError, KeyError):
        return "another process"


def newest_run(kind: str, dataset: str, finished: bool = False) -> Run | None:
    """The run of that kind and dataset which was started last; with `finished`, only among those with a model."""
    return _newest([kind], dataset, finished)


def newest_of_any(dataset: str) -> Run | None:
    """The run of a dataset, of whatever kind, which was started last."""
    return _newest(TRAINED, dataset)


def _newest(kinds: Collection[str], dataset: str, finished: bool = False) -> Run | None:
    found = []
    for path in RUNS.glob("*/recipe.yaml"):
        run = Run(path.parent)
        try:
            header = run.header
            matches = header["kind"] in kinds and header["recipe"]["dataset"]["name"] == dataset
            created = header["created"]
        except (KeyError, TypeError, OSError, yaml.YAMLError):
            continue
        if matches and (run.model_path.is_file() or not finished):
            found.append((created, path.stat().st_mtime, run))
    return max(found, key=lambda item: item[:2])[2] if found else None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a metrics.jsonl; a broken last line (a killed run) is left out."""
    lines = []
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and "step" in line:
            lines.append(line)
    return lines


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
