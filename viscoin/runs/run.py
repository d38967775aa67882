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
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from viscoin.config import Recipe
from viscoin.errors import Refused, regular
from viscoin.files import atomic_path, clear_partials, write_tensors
from viscoin.kinds import TRAINED
from viscoin.runs.control import INBOX, RECORD
from viscoin.runs.header import read_header, recipe_of_header, write_header
from viscoin.signals import held

logger = logging.getLogger(__name__)

RUNS = Path("runs")
# Lengths on which nothing else depends (no schedule): a run may be continued to another one.
EXTENDABLE = ("gan.kimg",)
MOVABLE = ("dataset.path", "diffmask.num_workers")  # the same files, wherever they lie, whoever reads them
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
        self._identity: tuple[int, int] | None = None  # of the folder, while it is locked
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
        run = cls(cls._place(kind, recipe, out, resume))
        run._make()
        with run.lock():
            run._begin(kind, recipe, allow_changes)
            yield run

    @staticmethod
    def _place(kind: str, recipe: Recipe, out: Path | None, resume: bool) -> Path:
        """The folder that `opened` means."""
        if out is None and not resume:
            return new_folder(f"{Path(recipe.dataset.name).name}-{kind}")
        if out is None:
            found = newest_run(kind, recipe.dataset.name)
            if found is None:
                raise Refused(
                    "resume", None, f"no {kind} run of {recipe.dataset.name!r} in {RUNS}", "start one without"
                )
            return found.path
        if resume and not Run(out).recipe_path.is_file():
            raise Refused("resume", None, f"no {kind} run in {out}", "start one without")
        return out

    def _begin(self, kind: str, recipe: Recipe, allow_changes: bool) -> None:
        """Write the recipe of a new run, or of the one to resume, and remove what a killed process was writing."""
        self.goes_on = self.recipe_path.is_file()
        if self.goes_on:
            self._go_on(kind, recipe, allow_changes)
        else:
            self._check_new()
            created = datetime.now().isoformat(timespec="seconds")
            self._write_header({"kind": kind, "created": created, "recipe": recipe.model_dump()})
        for folder in (self.path, self.checkpoints, self.figures):
            for partial in folder.glob(".*.partial"):
                partial.unlink(missing_ok=True)
        clear_partials(self.path / INBOX)  # where others may be writing

    def _make(self) -> None:
        try:
            for folder in (self.checkpoints, self.figures):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def _check_new(self) -> None:
        """Raise Refused where checkpoints or commands would be taken for those of a recipe that they are not of."""
        checkpoints = any(self.checkpoints.glob("*.pt"))
        if checkpoints or (self.path / RECORD).exists():
            found = "checkpoints" if checkpoints else RECORD
            raise Refused(
                "out", self.path, f"holds {found} of a run whose recipe.yaml is gone",
                "restore that, or choose another folder",
            )  # fmt: skip

    def _unwritable(self, error: OSError) -> Refused:
        return Refused("out", self.path, f"cannot write there ({error.strerror})", "choose another folder")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Nobody else may train in this folder meanwhile; a process may lock it several times.

        Where the file system has no locks, a warning must do: a file in their place would outlive a process that is
        killed, and keep the job out that resumes the run on another node.

        Raises:
            ValueError: a live process has it; names process and host. Or the folder cannot be written, or a pipe, a
                device or a folder is in the place of one of its files.
        """
        lock, owner = self._lock(), self.path / ".owner.json"
        self._check_files(owner)
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
                self._identity = _identity(self.path)
            yield
        finally:
            if lock.lock_counter == 1:
                if not self.is_gone():
                    owner.unlink(missing_ok=True)
                self._identity = None
            lock.release()

    def _check_files(self, *more: Path) -> None:
        """Raise Refused where opening one of the files that grow would wait for ever, or fail after long work."""
        checkpoints = [self.checkpoints / f"{name}.pt" for name in ("last", "previous", "best")]
        for path in (*more, self.recipe_path, self.metrics_path, self.model_path, *checkpoints):
            if regular(path).is_dir():
                raise Refused(None, path, "a folder, not a file", "move it away")

    def is_gone(self) -> bool:
        """Whether the folder that was locked is no longer there; another run may be in its place."""
        return self._identity is not None and _identity(self.path) != self._identity

    def check_there(self) -> None:
        """Raise FileNotFoundError where another run may be in the place of this one."""
        if self.is_gone():
            reason = "the run folder was moved, renamed or deleted while it was in use"
            raise FileNotFoundError(errno.ENOENT, reason, str(self.path))

    def _lock(self) -> FileLock:
        return FileLock(self.path / ".lock", timeout=0, is_singleton=True, fallback_to_soft=False)

    def _write_header(self, header: Mapping[str, Any]) -> None:
        write_header(self.recipe_path, header)

    def annotate(self, **facts: Any) -> None:
        """Write facts about this run into recipe.yaml, beside the recipe."""
        self.check_there()
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
        """What recipe.yaml holds; ValueError when it is damaged."""
        return read_header(self.recipe_path)

    @property
    def kind(self) -> str:
        return self.header["kind"]

    @property
    def recipe(self) -> Recipe:
        return recipe_of_header(self.header, self.recipe_path)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line of flat keys to metrics.jsonl."""
        self.check_there()
        line = json.dumps({"step": step, "time": round(time.time(), 3), **values})
        with self.metrics_path.open("a") as file:
            file.write(line + "\n")
        for listener in self.listeners:
            listener(step, values)

    def metrics(self) -> list[dict[str, Any]]:
        """What is logged so far, as of `read_metrics`."""
        return read_metrics(self.metrics_path) if self.metrics_path.is_file() else []

    def truncate_metrics(self, step: int, without: tuple[str, ...] = ()) -> None:
        """Drop lines after `step`, which a resumed run writes again.

        Args:
            without: beginnings of keys; lines of that step which have some are dropped, too.
        """
        if self.metrics_path.is_file():
            lines = [
                line
                for line in self.metrics()
                if line["step"] < step or (line["step"] == step and not any(key.startswith(without) for key in line))
            ]
            with atomic_path(self.metrics_path) as partial:
                partial.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def save_checkpoint(self, name: str, state: Mapping[str, Any], keep: str | None = None) -> None:
        """Write `checkpoints/<name>.pt` so that it is whole or absent.

        Args:
            keep: what the checkpoint of that name before this one is called from now on.
        """
        self.check_there()
        path = self.checkpoints / f"{name}.pt"
        with held(), atomic_path(path) as partial:
            write_tensors(dict(state), partial)
            if keep is not None and path.is_file() and name not in self._damaged:
                with atomic_path(path.with_stem(keep)) as second:
                    _link(path, second)
        self._damaged.discard(name)

    def has_checkpoint(self, name: str) -> bool:
        return (self.checkpoints / f"{name}.pt").is_file()

    def load_checkpoint(self, name: str) -> dict[str, Any] | None:
        """The checkpoint, or None when there is none; ValueError when its check sums say that it is damaged."""
        try:
            return self._read_checkpoint(name)
        except ValueError as error:
            raise ValueError(f"{error}; restore it from a copy, or remove it to do without") from error

    def _read_checkpoint(self, name: str) -> dict[str, Any] | None:
        path = self.checkpoints / f"{name}.pt"
        if not path.is_file():
            return None
        from stylegan2_ada.plain_pickle import DamagedError, read_tensor_file  # most users of a run do without

        try:
            state = read_tensor_file(path)
            if not isinstance(state, dict):
                raise ValueError(f"it holds a {type(state).__name__}")
        except (ValueError, OSError) as error:
            reason = error.reason if isinstance(error, DamagedError) else str(error).removeprefix(f"{path} ")
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


def epoch_path(run: Run, epoch: int) -> Path:
    """Where the model of an epoch is kept, counted from 1."""
    return run.checkpoints / f"epoch-{epoch:04}.safetensors"


def kept_epochs(run: Run) -> dict[int, Path]:
    """The models that a run kept, by epoch."""
    found = {path: path.stem.removeprefix("epoch-") for path in run.checkpoints.glob("epoch-*.safetensors")}
    return {int(number): path for path, number in sorted(found.items()) if number.isdecimal()}


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
        facts = json.loads(regular(path).read_text())
        return f"process {facts['process']} on {facts['host']} since {str(facts['since']).partition('.')[0]}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
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
        if not path.is_file():
            continue
        run = Run(path.parent)
        try:
            header, changed = run.header, path.stat().st_mtime
        except (Refused, OSError) as error:
            _pass_over(path.absolute(), str(error).partition("; ")[0])
            continue
        matches = header["kind"] in kinds and header["recipe"]["dataset"]["name"] == dataset
        if matches and (run.model_path.is_file() or not finished):
            found.append((header["created"], changed, run))
    return max(found, key=lambda item: item[:2])[2] if found else None


@cache
def _pass_over(path: Path, reason: str) -> None:
    """Warn of a run that is left out where runs are looked for; once, however often that is."""
    logger.warning("%s; this run is passed over", reason)


def _identity(path: Path) -> tuple[int, int] | None:
    """What is the same of a folder as long as it is the same folder; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a metrics.jsonl: a step, perhaps a time, and numbers.

    A broken last line (of a killed run) is left out; other lines that hold no step, and values that are no numbers, are
    left out with a warning.
    """
    texts = regular(path).read_text(encoding="utf-8", errors="replace").split("\n")
    lines = [_parse_line(text) for text in texts]
    odd = [line is None for line, text in zip(lines[:-1], texts) if text.strip()]
    if any(odd) or any(left_out for _, left_out in filter(None, lines)):
        logger.warning("%s is damaged: what of it is no number or has no step is left out", path)
    return [line for line, _ in filter(None, lines)]


def _parse_line(text: str) -> tuple[dict[str, Any], bool] | None:
    """Step, time and numbers of a line, and whether it holds anything else; None of a line without a step."""
    try:
        line = json.loads(text)
        step = line["step"] if isinstance(line, dict) else None
        if isinstance(step, bool) or not isinstance(step, int | float) or step < 0 or step != int(step):
            return None
    except (ValueError, KeyError, OverflowError, RecursionError):
        return None
    line["step"] = int(step)
    numbers = {key: value for key, value in line.items() if _is_number(value)}
    return numbers, len(numbers) < len(line)


def _is_number(value: object) -> bool:
    """Whether a value is a number that fits a float, which NaN is as well."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    with suppress(OverflowError):
        return isinstance(float(value), float)
    return False


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
