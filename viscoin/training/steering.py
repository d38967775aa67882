"""What commands make of a training: its values, its pauses, its end; the same in all processes, at the same step."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from stylegan2_ada.distributed import rank
from viscoin.config import Recipe, override_recipe
from viscoin.errors import Refused
from viscoin.penalties import edited
from viscoin.runs.control import REPLAYED, Command, Entry, Record, check_values, read_command, waiting
from viscoin.runs.header import recipe_of_header
from viscoin.runs.run import Run
from viscoin.training.checkpoints import read_once
from viscoin.training.penalties import Penalties

logger = logging.getLogger(__name__)

LOOK_EVERY = 0.2  # seconds between two looks into the inbox


@runtime_checkable
class Steerable(Protocol):
    """A task some of whose values may change while it trains."""

    @property
    def steerable(self) -> tuple[str, ...]:
        """Keys of its section of the recipe that have an effect in this training and may change at any step."""

    def apply(self, values: Mapping[str, Any]) -> None:
        """Train by these values, of some of these keys, from now on."""


class Steering:
    """The record of a run, and what of it is in force.

    The first process reads the inbox and writes the record; the others are given what it found.

    Attributes:
        values: what was set so far, by key of the section.
        paused: whether the training waits for a command now.
        at_evaluations: whether it is to pause after each evaluation.
        finished: whether it is to end as if its planned length were reached.
        obeyed: how many of the entries for the present step are obeyed.
    """

    def __init__(self, run: Run, task: object, steps: int) -> None:
        self.run, self.task, self.first = run, task, rank() == 0
        self.values: dict[str, Any] = {}
        self.paused = self.at_evaluations = self.finished = False
        self.step = self.obeyed = 0
        self._looked = 0.0
        self.penalties: Penalties | None = getattr(task, "penalties", None)
        self._at_start = list(self.penalties.wanted) if self.penalties is not None else []
        self._plan: dict[int, list[Entry]] = {}
        for entry in read_once(lambda: self._begin(steps)):
            self._add(entry)

    def _begin(self, steps: int) -> list[Entry]:
        """Read the record; raise Refused where a replay would lose commands."""
        header = self.run.header
        self.kind, self.replayed = header["kind"], header.get("replay")
        self.base: Recipe = recipe_of_header(header, self.run.recipe_path)
        self.record = Record(self.run.path)
        entries = [entry for entry in self.record.entries if entry.refused is None]
        late = [entry for entry in entries if entry.step >= steps]
        if self.replayed and late:
            raise Refused(
                "replay", self.replayed,
                f"it has a command ({late[0].command}) for step {late[0].step}, and this training ends after {steps}",
                "train as long as that run",
            )  # fmt: skip
        return entries

    def restore(self, step: int, obeyed: int) -> None:
        """Put into force what was obeyed before a step, and `obeyed` entries for that step itself."""
        self.step, self.obeyed = step, obeyed
        for at in sorted(self._plan):
            for entry in self._plan[at][: obeyed if at == step else None] if at <= step else ():
                self._fold(entry)
        self.paused = False  # to resume a run that was paused is to continue it
        self._apply(self.values)

    def asks(self) -> bool:
        """Whether a command waits in the inbox; looked at now and then, by the first process alone."""
        now = time.perf_counter()
        if not self.first or now - self._looked < LOOK_EVERY:
            return False
        self._looked = now
        return bool(waiting(self.run.path))

    def due(self, step: int, asked: bool) -> Iterator[Entry]:
        """The entries for a step that are not obeyed yet; each is in force when it comes.

        Args:
            asked: whether to read the inbox before; all processes say the same.
        """
        if step != self.step:
            self.step, self.obeyed = step, 0
        if asked:
            for entry in read_once(self._accept):
                self._add(entry)
        for entry in self._plan.get(step, [])[self.obeyed :]:
            self.obeyed += 1
            self._fold(entry)
            if entry.command == "set":
                self._apply({_short(key): value for key, value in entry.values.items()})
            elif entry.command == "penalty":
                self._apply({"penalties": self._wanted()})
            self._report(entry)
            yield entry

    def refuse_rest(self, step: int) -> None:
        """Refuse what has come too late."""
        self.step = step
        for path in waiting(self.run.path) if self.first else ():
            self._take(path, "the training has ended")

    def present(self) -> dict[str, Any]:
        """Values that may be set, by whole recipe key, as they are now; in the first process."""
        section = getattr(self._recipe(), self.kind)
        return {key: getattr(section, _short(key)) for key in self._keys()}

    # --- the first process

    def _accept(self) -> list[Entry]:
        """Record what is in the inbox; what comes after the end of the training stays there."""
        self.run.check_there()
        found: list[Entry] = []
        for path in waiting(self.run.path):
            entry = self._take(path)
            if entry is not None:
                found.append(entry)
                if entry.command in ("finish", "stop"):
                    break
        return found

    def _take(self, path: Path, refused: str | None = None) -> Entry | None:
        """Record one command and remove its file; returns it where it is to be obeyed and was not recorded before."""
        entry = None
        if not self.record.knows(path.stem):
            entry = self._judge(path, refused)
            self.record.append(entry)
        with suppress(OSError):
            path.unlink()
        if entry is not None and entry.refused is not None:
            logger.warning("refused %s%s: %s", entry.command, f" by {entry.by}" if entry.by else "", entry.refused)
            return None
        return entry

    def _judge(self, path: Path, refused: str | None) -> Entry:
        command = Command(path.stem, "command")
        try:
            command = read_command(path)
            values = command.values if refused else self._checked(command)
        except Refused as error:
            values, refused = command.values, str(error)
        return Entry(command.id, command.command, values, command.by, command.time, self.step, refused)

    def _checked(self, command: Command) -> Mapping[str, Any]:
        """Its values as they are recorded; raises Refused where it cannot be obeyed here."""
        if self.replayed and command.command in REPLAYED and command.command != "note":
            raise Refused(None, None, f"this run replays the commands of {self.replayed}", "start one without `replay`")
        if command.command == "penalty":
            return self._checked_penalty(command.values)
        if command.command == "set":
            return check_values(self.kind, self._recipe(), self._keys(), command.values)
        return command.values

    def _checked_penalty(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.penalties is None:
            raise Refused(None, None, f"a training of kind {self.kind} has no penalties")
        wanted, told = edited(self.kind, self._wanted(), values)
        self.penalties.check(wanted)
        return told

    def _wanted(self) -> list[Any]:
        """The penalties in force."""
        return self.values.get("penalties", self._at_start)

    def _keys(self) -> list[str]:
        return [f"{self.kind}.{name}" for name in self.task.steerable] if isinstance(self.task, Steerable) else []

    def _recipe(self) -> Recipe:
        """With all that is set so far."""
        return override_recipe(self.base, {f"{self.kind}.{name}": value for name, value in self.values.items()})

    # --- all processes

    def _add(self, entry: Entry) -> None:
        self._plan.setdefault(entry.step, []).append(entry)

    def _fold(self, entry: Entry) -> None:
        """Note what is in force from an entry on."""
        if entry.command == "set":
            self.values |= {_short(key): value for key, value in entry.values.items()}
        elif entry.command == "penalty" and self.penalties is not None:
            self.values["penalties"] = edited(self.penalties.kind, self._wanted(), entry.values)[0]
        elif entry.command == "pause" and "at" in entry.values:
            self.at_evaluations = entry.values["at"] == "evaluations"
        elif entry.command == "pause":
            self.paused = True
        elif entry.command in ("continue", "stop", "finish"):
            self.paused = False
            self.finished |= entry.command == "finish"

    def _apply(self, values: Mapping[str, Any]) -> None:
        if values and isinstance(self.task, Steerable):
            self.task.apply(values)

    def _report(self, entry: Entry) -> None:
        if self.first:
            what = " ".join([entry.command, *(f"{key}={value}" for key, value in entry.values.items())])
            logger.info("step %d: %s%s", self.step, what, f", by {entry.by}" if entry.by else "")


def _short(key: str) -> str:
    return key.rpartition(".")[2]
