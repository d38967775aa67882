"""Commands to a training, as files of its run folder: an inbox for everybody, and the record of what was obeyed.

`inbox/<time>-<random>.json` holds one command, written beside and renamed, so that any number of writers need no lock.
`control.jsonl` is written by the training alone. What it does at step t is its recipe with all entries of the record up
to t, which is why a record can be replayed. An entry is on the disk before it is obeyed, and its file leaves the inbox
after that; so a kill at any moment loses no command, and none is obeyed twice.
"""

import getpass
import json
import os
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from viscoin.config import Recipe, override_recipe
from viscoin.errors import Refused, reason_of, regular
from viscoin.files import atomic_path
from viscoin.penalties import check_wish

INBOX, RECORD = "inbox", "control.jsonl"
COMMANDS = ("pause", "continue", "stop", "finish", "evaluate", "set", "penalty", "note")
REPLAYED = ("finish", "evaluate", "set", "penalty", "note")  # the others change when a training runs, not what it does
PAUSES = ("evaluations", "never")  # when to pause, beside now
LARGEST, LONGEST_NOTE = 64 * 1024, 2000  # of a file of the inbox, bytes; of a note, characters


@dataclass(frozen=True)
class Command:
    """One wish, as somebody sent it.

    Attributes:
        id: names its file, and sorts commands by the time when they were sent.
        command: one of `COMMANDS`.
        values: what `set` changes, by recipe key; `{"at": ...}` of pause; `{"text": ...}` of note; of penalty, see
            `viscoin.penalties.edited`.
        by: who sent it.
        time: when, in seconds since 1970.
    """

    id: str
    command: str
    values: Mapping[str, Any] = field(default_factory=dict)
    by: str = ""
    time: float = 0.0


@dataclass(frozen=True)
class Entry(Command):
    """A command in the record.

    Attributes:
        step: the step before which it takes effect.
        refused: why it was not obeyed; None where it was.
    """

    step: int = 0
    refused: str | None = None

    def to_json(self) -> str:
        """Its line in the record."""
        values = asdict(self)
        if self.refused is None:
            del values["refused"]
        return json.dumps(values) + "\n"


# --- the inbox ----------------------------------------------------------------------------------------------------


def send(run: Path, command: str, values: Mapping[str, Any] | None = None, by: str | None = None) -> Command:
    """Put a command into the inbox of a run folder.

    Args:
        by: who sends it; by default the user of this process.

    Raises:
        Refused: no such command, values that it does not take, or the folder cannot be written.
    """
    now = time.time_ns()
    made = Command(
        f"{now:020d}-{uuid.uuid4().hex[:8]}", command, dict(values or {}), _user() if by is None else by, now / 1e9
    )
    check_command(made)
    text = json.dumps(asdict(made))
    if len(text) > LARGEST:
        raise Refused(None, None, f"this command has {len(text)} bytes, and at most {LARGEST} are read")
    try:
        (run / INBOX).mkdir(exist_ok=True)
        with atomic_path(run / INBOX / f"{made.id}.json") as partial:
            partial.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise Refused("run", run, f"cannot write there ({reason_of(error)})") from error
    return made


def check_command(command: Command) -> None:
    """Raise Refused where nobody could obey a command, whatever is trained."""
    name, values = command.command, command.values
    if name not in COMMANDS:
        raise Refused(None, None, f"there is no command {name!r:.60}", f"choose {_either(COMMANDS)}")
    if name == "set" and not values:
        raise Refused(None, None, "set needs a value", "write it as in learning_rate=0.001")
    if name == "note" and not (isinstance(text := values.get("text"), str) and 0 < len(text.strip()) <= LONGEST_NOTE):
        raise Refused(None, None, f"a note is a text of at most {LONGEST_NOTE} characters")
    if name == "pause" and values.get("at", "never") not in PAUSES:
        raise Refused(None, None, f"pause {values['at']!r:.60}: unknown", f"choose {_either(PAUSES)}, or omit it")
    if name == "penalty":
        check_wish(values)
    known = {"note": {"text"}, "pause": {"at"}}.get(name, set())
    if name not in ("set", "penalty") and (odd := values.keys() - known):
        raise Refused(None, None, f"{name} takes no {', '.join(sorted(odd))!r:.100}", "omit it")


def check_values(kind: str, recipe: Recipe, steerable: Iterable[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a `set` by whole recipe key, read as the types that the recipe has.

    Args:
        recipe: with the present values.
        steerable: the keys that may change, as in "classifier.learning_rate".
        values: by recipe key; the section of the kind may be left out.

    Raises:
        Refused: a key that may not change, or a value that the recipe does not take.
    """
    whole = {key if "." in key else f"{kind}.{key}": value for key, value in values.items()}
    known = list(steerable)
    for key in whole:
        if key not in known:
            choice = f"choose {_either(known)}" if known else "start another training with it"
            raise Refused(key, None, "cannot change while this training runs", choice)
    changed = override_recipe(recipe, whole)
    return {key: getattr(getattr(changed, kind), key.removeprefix(f"{kind}.")) for key in whole}


def waiting(run: Path) -> list[Path]:
    """The files of the inbox, those sent first coming first."""
    try:
        names = os.listdir(run / INBOX)
    except OSError:
        return []
    return [run / INBOX / name for name in sorted(names) if name.endswith(".json") and not name.startswith(".")]


def read_command(path: Path) -> Command:
    """The command of a file of the inbox.

    Raises:
        Refused: the file holds none, or one that nobody could obey.
    """
    try:
        if regular(path).stat().st_size > LARGEST:
            raise Refused(None, None, f"the file has more than {LARGEST} bytes")
        facts = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(facts, dict) or not isinstance(facts.get("values", {}), dict):
            raise ValueError("it is no command")
        by, sent = str(facts.get("by", ""))[:100], float(facts.get("time", 0))
        command = Command(path.stem, str(facts.get("command")), facts.get("values", {}), by, sent)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(None, None, f"the file cannot be read ({reason_of(error, 80)})") from error
    check_command(command)
    return command


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user without a name, as in containers
        return ""


def _either(names: Iterable[str]) -> str:
    *some, last = names
    return f"{', '.join(some)} or {last}" if some else last


# --- the record ---------------------------------------------------------------------------------------------------


class Record:
    """control.jsonl of a run folder: entries in the order in which they were written.

    Raises:
        Refused: a line of it is no entry; without it nobody knows what this training did.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / RECORD
        self.entries = read_record(run)
        self._ids = {entry.id for entry in self.entries}

    def knows(self, command_id: str) -> bool:
        """Whether a command is in it, obeyed or refused."""
        return command_id in self._ids

    def append(self, entry: Entry) -> None:
        """Write an entry, so that it survives whatever comes next.

        Raises:
            OSError: it cannot be written; then nothing is.
        """
        with self.path.open("ab") as file:
            size = _whole(self.path)
            file.truncate(size)  # what a killed process left of a line
            try:
                file.write(entry.to_json().encode())
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    file.truncate(size)
                raise
        self.entries.append(entry)
        self._ids.add(entry.id)


def read_record(run: Path) -> list[Entry]:
    """Entries of a run's record; none where it was never steered. A last line that was cut off does not count.

    Raises:
        Refused: another line is no entry.
    """
    path = run / RECORD
    if not regular(path).exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [_entry(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def commands_told(run: Path) -> list[dict[str, Any]]:
    """Step, command and values of all that changed what a run trained, for the metadata of its model."""
    obeyed = [entry for entry in read_record(run) if entry.refused is None and entry.command in REPLAYED]
    return [
        {"step": entry.step, "command": entry.command, "values": dict(entry.values)}
        for entry in sorted(obeyed, key=lambda entry: entry.step)
    ]


def _entry(path: Path, number: int, line: bytes) -> Entry:
    try:
        entry = Entry(**json.loads(line))
        if not (isinstance(entry.values, dict) and isinstance(entry.id, str) and isinstance(entry.step, int)):
            raise ValueError("a value is not of its type")
        if entry.refused is None:
            check_command(entry)
        return entry
    except (ValueError, TypeError, RecursionError) as error:
        raise Refused(
            None, None, f"{path} is damaged: line {number} is no command ({reason_of(error, 80)})",
            "restore it from a copy, or start a new run in another folder (`out`)",
        ) from error  # fmt: skip


def _whole(path: Path) -> int:
    """Bytes of a file up to the end of its last whole line."""
    return path.read_bytes().rfind(b"\n") + 1
