"""A new training from a saved step of a run, with its record up to there."""

import json
import shutil
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from viscoin.errors import Refused, reason_of
from viscoin.files import atomic_path
from viscoin.runs.control import RECORD, Entry, read_record
from viscoin.runs.header import write_header
from viscoin.runs.run import Run

SAVED = ("last", "previous", "best")  # checkpoints that hold all of a training
OWN = ("replay", "sweep", "branch")  # facts that are of the run itself, not of what it trains
PASSING = ("pause", "continue", "stop", "finish")  # commands at the very step that would hold or end the branch


def saved_steps(run: Run) -> dict[int, str]:
    """The steps that a run could start from again, and the checkpoints that hold them; damaged ones are left out."""
    found: dict[int, str] = {}
    for name in SAVED:
        path = run.checkpoints / f"{name}.pt"
        try:
            found.setdefault(_step_of(path, path.stat().st_mtime_ns), name)
        except (OSError, ValueError, LookupError, TypeError):
            continue
    return dict(sorted(found.items()))


@lru_cache(maxsize=64)
def _step_of(path: Path, _changed: int) -> int:
    """Step of a checkpoint, read once for each version of it."""
    state = Run(path.parent.parent).load_checkpoint(path.stem)
    return int((state or {})["step"])


def branch(source: Run, step: int, place: Path) -> Run:
    """Make a run that goes on where another one was saved; `train ... --resume` trains it.

    It has the recipe, the metrics up to that step, and the commands that were obeyed by then; not those that held or
    ended the training at that very step. The run that it comes from is left as it is, and may be training meanwhile.

    Args:
        step: one of `saved_steps`.
        place: folder of the new run, which must not be there.

    Returns:
        The new run, whose recipe.yaml says from where it branches.

    Raises:
        Refused: nothing is saved of that step, the folder is there or cannot be written, or a file of the run is
            damaged.
    """
    steps = saved_steps(source)
    if step not in steps:
        have = f"those saved: {', '.join(map(str, steps))}" if steps else "it has saved none that can be read"
        raise Refused("step", step, f"run {source.path.name} saved nothing at that step", have)
    state = dict(source.load_checkpoint(steps[step]) or {})
    if int(state.get("step", -1)) != step:
        raise Refused("step", step, f"run {source.path.name} has just saved another step", "look again")
    partial = place.with_name(f".{place.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        made = Run(partial)
        for folder in (made.checkpoints, made.figures):
            folder.mkdir(parents=True)
        _write(source, made, state)
        if place.exists():
            raise Refused("name", place.name, "there is such a run already", "choose another name")
        partial.rename(place)
    except OSError as error:
        reason = f"the new run cannot be written ({reason_of(error)})"
        raise Refused("name", place.name, reason, "make room, or choose another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Run(place)


def _write(source: Run, made: Run, state: dict[str, Any]) -> None:
    step, header = int(state["step"]), dict(source.header)
    facts: Mapping[str, Any] = {
        **{key: value for key, value in header.items() if key not in OWN},
        "created": datetime.now().isoformat(timespec="seconds"),
        "branch": {"run": source.path.name, "step": step},
    }
    entries, state["obeyed"] = _obeyed(source.path, step, int(state.get("obeyed", 0)))
    if not _keeps_best(source, made, state):
        state |= {"best": None, "stale": 0}
    write_header(made.recipe_path, facts)
    with atomic_path(made.path / RECORD) as path:
        path.write_text("".join(entry.to_json() for entry in entries), encoding="utf-8")
    lines = [json.dumps(line) + "\n" for line in source.metrics() if line["step"] <= step]
    made.metrics_path.write_text("".join(lines), encoding="utf-8")
    made.save_checkpoint("last", state)


def _obeyed(source: Path, step: int, count: int) -> tuple[list[Entry], int]:
    """What was in force when the step was saved, and how many of these entries are of that step itself."""
    taken = [entry for entry in read_record(source) if entry.refused is None]
    before = [entry for entry in taken if entry.step < step]
    at = [entry for entry in taken if entry.step == step][:count]
    at = [entry for entry in at if entry.command not in PASSING or "at" in entry.values]
    return [*sorted(before, key=lambda entry: entry.step), *at], len(at)


def _keeps_best(source: Run, made: Run, state: Mapping[str, Any]) -> bool:
    """Take the best weights along; False where those of that step were replaced by better ones meanwhile."""
    if state.get("best") is None:
        return False
    try:
        best = source.load_checkpoint("best")
    except ValueError:
        return False
    if best is None or int(best["step"]) > int(state["step"]) or best["best"] != state["best"]:
        return False
    made.save_checkpoint("best", best)
    return True
