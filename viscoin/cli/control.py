"""`control`: steer a training while it runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from viscoin.cli.output import echo
from viscoin.errors import Refused

if TYPE_CHECKING:
    from viscoin.runs.control import Command
    from viscoin.runs.status import Status


def control(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")],
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="COMMAND",
            help="pause, pause evaluations, pause never, continue, stop, finish, evaluate, set KEY=VALUE..., penalty "
            "add KIND KEY=VALUE..., penalty change NAME KEY=VALUE..., penalty remove NAME, or note TEXT; default: "
            "print the state of the run and what can be set.",
        ),
    ] = None,
    wait: Annotated[
        float, typer.Option("--wait", min=0, metavar="SECONDS", help="How long to wait until it is obeyed.")
    ] = 10.0,
) -> None:
    """Pause, change or end a training that runs.

    The command becomes a file in the inbox of the run folder, which the training obeys between two steps and records in
    control.jsonl; so this also works from other machines that see the folder. `train --replay RUN` repeats it all.
    """
    from viscoin.runs.steer import deliver, find_run

    found, status = find_run(run)
    if not command:
        return _print(found, status)
    name, values = _parsed(command)
    _follow(run, deliver(run, name, _kept(found, values) if name == "penalty" else values), status, wait)


def _parsed(words: list[str]) -> tuple[str, dict[str, Any]]:
    """A command and its values."""
    name, *rest = words
    if name == "set":
        pairs = [word.partition("=") for word in rest]
        if odd := [word for word, (key, sign, _) in zip(rest, pairs) if not key or not sign]:
            raise Refused("command", odd[0], "expected KEY=VALUE, as in set learning_rate=0.001")
        return name, {key.strip(): value.strip() for key, _, value in pairs}
    if name == "note":
        return name, {"text": " ".join(rest)}
    if name == "pause" and rest:
        return name, {"at": " ".join(rest)}
    if name == "penalty":
        return name, _penalty(rest)
    if rest:
        raise Refused("command", " ".join([name, *rest]), f"{name} stands alone", f"omit {' '.join(rest)}")
    return name, {}


def _penalty(words: list[str]) -> dict[str, Any]:
    """The values of `penalty DO ...`."""
    from viscoin.penalties import parse_words

    do, *rest = words or [""]
    named = {"name": rest.pop(0)} if do in ("change", "remove") and rest else {}
    try:
        return {"do": do, **named, **parse_words(rest)}
    except ValueError as error:
        raise Refused("command", None, str(error)) from None


def _kept(run: Path, values: dict[str, Any]) -> dict[str, Any]:
    """The values of a penalty, whose region, where it is a file, now lies in the run folder."""
    from viscoin.penalties import is_file
    from viscoin.runs.kept import FOLDER, keep_file

    region = values.get("region", "")
    if not is_file(region) or region.startswith(f"{FOLDER}/"):
        return values
    return {**values, "region": keep_file(run, Path(region))}


def _follow(run: Path, sent: "Command", status: "Status", wait: float) -> None:
    """Wait for a command's fate and print it; raises Refused where it was refused."""
    from viscoin.runs.steer import fate

    entry = fate(run, sent, wait if status.state in ("starting", "running", "paused") else 0)
    if entry is None:
        when = "soon" if status.state in ("starting", "running", "paused") else "when the run is resumed"
        echo(f"sent: {sent.command}; it will be obeyed {when}")
    elif entry.refused is not None:
        raise Refused(None, None, entry.refused)
    else:
        echo(f"obeyed at step {entry.step}: {entry.command}")


def _print(path: Path, status: "Status") -> None:
    from viscoin.estimates import duration
    from viscoin.runs.control import read_record, waiting

    left = "" if status.left is None or status.state != "running" else f", {duration(status.left)} left"
    echo(f"{path}: {status.state}, step {status.step} of {status.steps}{left}")
    if status.reason:
        echo(f"  {status.reason}")
    for key, value in (status.steerable or {}).items():
        echo(f"  {key} = {'null' if value is None else value}")
    for one in (status.penalties or {}).get("active", ()):
        echo(f"  penalty {one['name']}: " + ", ".join(f"{key} {value}" for key, value in one.items() if key != "name"))
    for entry in read_record(path):
        what = " ".join([entry.command, *(f"{key}={value}" for key, value in entry.values.items())])
        echo(f"  step {entry.step}: {what}{f' (refused: {entry.refused})' if entry.refused else ''}")
    if count := len(waiting(path)):
        echo(f"  {count} waiting")
