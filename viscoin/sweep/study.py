"""The study of a sweep: which trial comes next, and how each of them ended.

Several processes may work on one study. They share the storage of Optuna and locks on files: one for the study, taken
for moments, and one for each trial that runs. The system frees the locks of a process that dies, however it dies, so
that the next one to look sees at once which trial must be gone on with.
"""

import itertools
import logging
import os
import random
import shutil
import socket
import sqlite3
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock, Timeout

from viscoin.errors import Refused, reason_of
from viscoin.runs.run import NO_LOCKS, read_metrics
from viscoin.sweep.results import SweepResult, TrialResult, write_results
from viscoin.sweep.settings import Settings, check_settings, storage_file
from viscoin.sweep.space import Parameter, Value, show
from viscoin.training.failures import Failed

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)

ATTEMPTS = 3  # processes that may die of a trial without coming further; then it counts as failed
BUSY = 60  # seconds to wait for a storage that other workers use
FEWEST = 4  # finished trials from which importances are computed


def load_optuna() -> ModuleType:
    """The package optuna, which speaks of errors alone; ValueError where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise ValueError("sweep needs the package optuna; install it by: pip install viscoin[sweep]") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


class Study:
    """A study of Optuna and its folder, as one of the processes that work on it sees it."""

    def __init__(self, settings: Settings) -> None:
        """Open the study of the folder, or begin it.

        Raises:
            ValueError: wrong settings, a study of other ones (with what differs), a storage that cannot be read, or
                optuna is not installed.
        """
        self.optuna = load_optuna()
        self.states = self.optuna.trial.TrialState
        check_settings(settings)
        self.settings, self.runs = settings, settings.folder / "trials"
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = f"cannot write there ({reason_of(error)})"
            raise Refused("folder", settings.folder, reason, "choose another folder") from error
        # A soft lock, to which filelock falls back, would stay when its process is killed.
        self._turn = FileLock(settings.folder / ".lock", fallback_to_soft=False)
        self._held: dict[int, FileLock] = {}
        with self._alone():
            self.study = self._open()
            self._check_same()
            self._check_whole()
        self.study.pruner = self._pruner()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process changes the study meanwhile.

        Raises:
            Failed: the storage is full, gone or busy for too long.
        """
        try:
            with self._turn:
                yield
        except (self.optuna.exceptions.StorageInternalError, OSError) as error:
            if getattr(error, "errno", None) in NO_LOCKS:
                reason = "its file system has no locks, which a study needs"
                raise Refused("folder", self.settings.folder, reason, "choose another") from error
            cause = error.__cause__ or error
            if _is_damaged(cause):
                raise self._unreadable(cause) from error
            raise Failed(
                f"the study in {self.settings.folder} cannot be written ({first_line(cause)}); make that possible, "
                "and the same command resumes it"
            ) from error

    def _open(self) -> "optuna.Study":
        path, kind = storage_file(self.settings.folder, self.settings.storage)
        inside = path.parent == self.settings.folder  # else it may hold the studies of several folders
        name = "sweep" if inside else str(self.settings.folder.resolve())
        if not path.exists():
            self._check_lost(path, 0)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.storage = self._storage(path, kind)
            study = self.optuna.create_study(
                storage=self.storage, study_name=name, direction=self.settings.direction, load_if_exists=True
            )
            known = len(study.get_trials(deepcopy=False))
        except Exception as error:  # what databases say of damaged files is of many types
            raise self._unreadable(error) from error
        self._check_lost(path, known)
        return study

    def _unreadable(self, error: BaseException) -> Refused:
        path, _ = storage_file(self.settings.folder, self.settings.storage)
        reason = f"study {path} cannot be read or written ({first_line(error)})"
        return Refused(None, None, reason, "repair it, or choose another `folder`")

    def _check_lost(self, path: Path, known: int) -> None:
        """Raise Refused where the folder holds more trials than the study, which would be trained over."""
        lost = [run.name for run in self.runs.iterdir() if run.name.isdecimal() and int(run.name) >= known]
        lost += [name for name in ("trials.csv",) if not known and (self.settings.folder / name).exists()]
        if lost:
            raise Refused(
                "folder", self.settings.folder,
                f"holds {lost[0]} of a sweep whose study {path} is gone or does not know of it",
                "restore the study, or choose another folder",
            )  # fmt: skip

    def _check_whole(self) -> None:
        """Raise Refused where trials that ended well lack parameters or their value."""
        for trial in self.study.get_trials(deepcopy=False, states=(self.states.COMPLETE, self.states.PRUNED)):
            missing = [key for key in self.settings.space if key not in trial.params]
            missing += ["its value"] if trial.values is None and trial.state == self.states.COMPLETE else []
            if missing:
                raise self._unreadable(ValueError(f"trial {trial.number} lacks {', '.join(missing)}"))

    def _storage(self, path: Path, kind: str) -> "optuna.storages.BaseStorage":
        storages = self.optuna.storages
        path = path.resolve()  # the journal's lock is a link to it, which Optuna follows to see whether it is stale
        if kind == "journal":
            return storages.JournalStorage(storages.journal.JournalFileBackend(str(path)))
        url = f"sqlite:///{path}".replace("{", "{{").replace("}", "}}")
        return storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": BUSY}})

    def _check_same(self) -> None:
        """Write down what the study is about, or compare it."""
        given = self.settings.identity()
        saved = self.study.user_attrs.get("settings")
        if saved is None:
            self.study.set_user_attr("settings", given)
            return
        # A later version may know more keys of the recipe, which did not matter then.
        special = [key for key in {**saved, **given} if key.startswith(("space.", "--"))]
        keys = dict.fromkeys([*(key for key in given if key in saved), *special])
        changed = [f"{key}: {show(saved.get(key))} -> {show(given.get(key))}" for key in keys
                   if saved.get(key) != given.get(key)]  # fmt: skip
        if changed:
            raise Refused(
                "folder", self.settings.folder, f"holds a study of other settings ({'; '.join(changed)})",
                "give the same ones to resume it, or another `folder` for a new study",
            )  # fmt: skip

    def _pruner(self) -> "optuna.pruners.BasePruner":
        pruners = self.optuna.pruners
        kinds = {"median": pruners.MedianPruner, "hyperband": pruners.HyperbandPruner, "none": pruners.NopPruner}
        return kinds[self.settings.pruner]()

    def forget(self) -> bool:
        """Remove the study if it has but one trial, so that nothing in its folder contradicts other settings."""
        with self._alone():
            if len(self.results()) > 1:
                return False
            self.optuna.delete_study(study_name=self.study.study_name, storage=self.storage)
            (self.settings.folder / "trials.csv").unlink(missing_ok=True)
            for number in list(self._held):
                shutil.rmtree(self.folder(number), ignore_errors=True)
                self._unlock(number)
            return True

    def _check_there(self) -> None:
        if self.study.study_name not in self.optuna.get_all_study_names(self.storage):
            raise ValueError(
                f"the study in {self.settings.folder} is gone: the first training of another worker did not begin; "
                "see its messages, and start again"
            )

    # --- which trial comes next

    def next_trial(self) -> "optuna.Trial | None":
        """A trial to train, whose lock this process has; None when the study has the number asked for.

        Raises:
            ValueError: another worker has removed the study.
            Failed: the storage is full, gone or busy for too long.
        """
        with self._alone():
            self._check_there()
            self._free_dead()
            trials = self.study.get_trials(deepcopy=False)
            waiting = any(trial.state == self.states.WAITING for trial in trials)
            begun = [trial for trial in _current(trials) if trial.state != self.states.WAITING]
            if len(begun) >= self.settings.trials:
                return None
            number = sum("retry_of" not in trial.user_attrs for trial in trials)
            if self.settings.sampler == "grid" and not waiting:
                grid = self._grid()
                if number >= len(grid):
                    return None
                self.study.enqueue_trial(grid[number])
            self.study.sampler = self._sampler(number)
            trial = self.study.ask({key: self._distribution(value) for key, value in self.settings.space.items()})
            self._lock(trial.number)
            self._take_over(trial)
            facts = {"process": os.getpid(), "host": socket.gethostname(), "lines": self._lines(trial.number)}
            for key, value in facts.items():
                trial.set_user_attr(key, value)
            return trial

    def _sampler(self, number: int) -> "optuna.samplers.BaseSampler":
        """A sampler for one trial: its samples depend on the seed, the trial's number and the trials before.

        So workers do not sample the same, and an interrupted study resumes as if it had not been.
        """
        seed = int(np.random.SeedSequence([self.settings.recipe.seed, number]).generate_state(1)[0])
        samplers = self.optuna.samplers
        return samplers.TPESampler(seed=seed) if self.settings.sampler == "tpe" else samplers.RandomSampler(seed)

    def _grid(self) -> list[dict[str, Value]]:
        """All combinations in an order that the seed shuffles: a part of them should be informative, too."""
        values = [parameter.grid or [] for parameter in self.settings.space.values()]
        grid = [dict(zip(self.settings.space, combination)) for combination in itertools.product(*values)]
        random.Random(self.settings.recipe.seed).shuffle(grid)
        return grid

    def _distribution(self, parameter: Parameter) -> "optuna.distributions.BaseDistribution":
        made = self.optuna.distributions
        if parameter.choices:
            return made.CategoricalDistribution(parameter.choices)
        if isinstance(parameter.low, int):
            return made.IntDistribution(parameter.low, int(parameter.high), parameter.log, int(parameter.step or 1))
        return made.FloatDistribution(parameter.low, float(parameter.high), parameter.log, parameter.step)

    def _lock(self, number: int) -> bool:
        """Take the lock of a trial; false when a live process has it."""
        lock = FileLock(self.runs / f".{number:04d}.lock", timeout=0, fallback_to_soft=False)
        try:
            lock.acquire()
        except Timeout:
            return False
        self._held[number] = lock
        return True

    def _take_over(self, trial: "optuna.Trial") -> None:
        """Let a trial that was queued once more resume the run that was begun for it."""
        for before in trial.user_attrs.get("retry_of", [])[::-1]:
            if self.folder(before).is_dir() and not self.folder(trial.number).exists():
                self.folder(before).rename(self.folder(trial.number))

    def _free_dead(self) -> None:
        """Queue the trials of processes that are gone once more, unless they get no further."""
        for trial in self.study.get_trials(deepcopy=False, states=(self.states.RUNNING,)):
            if self._lock(trial.number):
                facts = trial.user_attrs
                reason = f"process {facts.get('process', '?')} on {facts.get('host', '?')} is gone"
                stuck = 0 if self._lines(trial.number) > facts.get("lines", 0) else facts.get("stuck", 0) + 1
                logger.warning("trial %d: its %s", trial.number, reason)
                if stuck < ATTEMPTS:
                    self._retry(trial.number, reason, stuck)
                else:
                    self._end(trial.number, None, f"{reason}, the last of {ATTEMPTS} that came no further")

    # --- how trials end

    def end(self, number: int, value: float | None, reason: str = "", pruned: bool = False) -> None:
        """Report to the study how a trial of this process ended: with a value, pruned, or failed and why."""
        with self._alone():
            self._end(number, value, reason, pruned)
            write_results(self.settings, self.results())

    def queue_again(self, number: int, reason: str) -> None:
        """Mark a trial of this process as failed and queue it once more; it will resume where it stopped."""
        with self._alone():
            self._retry(number, reason)
            write_results(self.settings, self.results())

    def _retry(self, number: int, reason: str, stuck: int = 0) -> None:
        trials = self.study.get_trials(deepcopy=False)
        trial = trials[number]
        if trial in _current(trials):  # else the process that queued it once more died before it ended it
            self.study.add_trial(
                self.optuna.create_trial(
                    state=self.states.WAITING,
                    params=trial.params,
                    distributions=trial.distributions,
                    user_attrs={"retry_of": [*trial.user_attrs.get("retry_of", []), number], "stuck": stuck},
                )
            )
        self._end(number, None, reason)

    def _end(self, number: int, value: float | None, reason: str = "", pruned: bool = False) -> None:
        if reason:
            study = self.storage.get_study_id_from_name(self.study.study_name)
            trial = self.storage.get_trial_id_from_study_id_trial_number(study, number)
            self.storage.set_trial_user_attr(trial, "reason", reason)
        if value is not None:
            self.study.tell(number, value)
        else:
            self.study.tell(number, state=self.states.PRUNED if pruned else self.states.FAIL)
        self._unlock(number)

    def _unlock(self, number: int) -> None:
        lock = self._held.pop(number)
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)

    # --- what is known

    def folder(self, number: int) -> Path:
        """The run of a trial."""
        return self.runs / f"{number:04d}"

    def _lines(self, number: int) -> int:
        """Lines of metrics that the run of a trial has: how far it came."""
        path = self.folder(number) / "metrics.jsonl"
        return len(read_metrics(path)) if path.is_file() else 0

    def results(self) -> list[TrialResult]:
        """Every trial, by its last attempt."""
        return [self._result(trial) for trial in _current(self.study.get_trials(deepcopy=False))]

    def _result(self, trial: "optuna.trial.FrozenTrial") -> TrialResult:
        names = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}
        return TrialResult(
            trial.number,
            names.get(trial.state.name, trial.state.name.lower()),
            trial.value,
            dict(trial.params),
            tuple(value for _, value in sorted(trial.intermediate_values.items())),
            trial.duration.total_seconds() if trial.duration else None,
            self.folder(trial.number),
            trial.user_attrs.get("reason", ""),
        )

    def result(self) -> SweepResult:
        """All trials, and the importances of the parameters; the files are up to date after it."""
        with self._alone():
            write_results(self.settings, self.results())
        return SweepResult(self.settings, self.results(), self._importances())

    def _importances(self) -> dict[str, float]:
        """Shares of the parameters in the variance of the value over the space (fANOVA, Hutter et al. 2014)."""
        finished = self.study.get_trials(deepcopy=False, states=(self.states.COMPLETE,))
        varied = [key for key in self.settings.space if len({trial.params[key] for trial in finished}) > 1]
        if len(finished) < FEWEST or len({trial.value for trial in finished}) < 2 or not varied:
            return {}
        importance = self.optuna.importance
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importance.get_param_importances(
                self.study, evaluator=importance.FanovaImportanceEvaluator(seed=0), params=varied
            )


def _is_damaged(error: BaseException) -> bool:
    """Whether SQLite says that the file itself is wrong; other failures may pass."""
    code = getattr(getattr(error, "orig", error), "sqlite_errorcode", 0)
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def first_line(error: BaseException) -> str:
    """What an error says, as far as it fits a line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _current(trials: Sequence["optuna.trial.FrozenTrial"]) -> list["optuna.trial.FrozenTrial"]:
    """The trials without those that were queued once more."""
    again = {number for trial in trials for number in trial.user_attrs.get("retry_of", [])}
    return [trial for trial in trials if trial.number not in again]
