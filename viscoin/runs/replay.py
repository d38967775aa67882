"""Repeat a training with the commands that steered it, each at its step."""

import logging
from pathlib import Path

from viscoin.config import Recipe
from viscoin.errors import Refused
from viscoin.files import atomic_path
from viscoin.runs.control import RECORD, REPLAYED, Entry, read_record
from viscoin.runs.kept import FOLDER, copy_kept
from viscoin.runs.run import MOVABLE, Run, flatten

logger = logging.getLogger(__name__)


def commands_of(source: Path, kind: str, recipe: Recipe) -> list[Entry]:
    """The obeyed commands of a run which change what is trained, in the order of their steps.

    Raises:
        Refused: no such run, one of another kind or recipe, or one without such commands.
    """
    run = Run(source)
    if not run.recipe_path.is_file():
        raise Refused("replay", source, "there is no such run")
    if run.kind != kind:
        raise Refused("replay", source, f"a {run.kind} run, not a {kind} run", "choose another one")
    saved, given = flatten(run.recipe.model_dump()), flatten(recipe.model_dump())
    others = [
        f"{key}: {saved.get(key)} -> {value}"
        for key, value in given.items()
        if key.split(".")[0] in ("dataset", "seed", kind) and key not in MOVABLE and saved.get(key) != value
    ]
    if others:
        reason = f"it has another recipe ({'; '.join(others[:5])}{' and more' if len(others) > 5 else ''})"
        raise Refused("replay", source, reason, "give the same settings, or none")
    found = [entry for entry in read_record(source) if entry.refused is None and entry.command in REPLAYED]
    if not found:
        raise Refused("replay", source, "no command has changed what it trained", "train without `replay`")
    return sorted(found, key=lambda entry: entry.step)


def start_replay(run: Run, source: Path) -> None:
    """Write the commands of another run into the record of a new one; one that is resumed has them already.

    Raises:
        Refused: as `commands_of`, or the run to resume was started without these commands.
    """
    begun = run.metrics_path.exists() or any(run.checkpoints.glob("*"))
    if run.goes_on and "replay" in run.header:
        return
    if begun:
        raise Refused("replay", source, f"{run.path} was started without it", "start a new run (`out`)")
    entries = commands_of(source, run.kind, run.recipe)
    with atomic_path(run.path / RECORD) as partial:
        partial.write_text("".join(entry.to_json() for entry in entries), encoding="utf-8")
    copy_kept(source, run.path)
    kept = Run(source).header.get(FOLDER)
    run.annotate(replay=str(source), **({FOLDER: kept} if kept else {}))
    logger.info("%d commands of %s will be repeated", len(entries), source)
