"""What the trials of a sweep came to, and the files that say so."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from viscoin.files import atomic_path
from viscoin.sweep.settings import Settings
from viscoin.sweep.space import Value, recipe_of, show

ENDED: tuple[Literal["finished", "pruned", "failed"], ...] = ("finished", "pruned", "failed")


MOST_ROWS = 20  # of the table that is printed; all are in trials.csv


@dataclass(frozen=True)
class TrialResult:
    """What is known of a trial.

    Attributes:
        state: "finished", "pruned", "failed", "running" or "waiting".
        value: of the metric: for the model of a finished trial, the last one of a pruned trial.
        course: the metric at each evaluation.
        seconds: that it took, None while it runs.
        folder: its run.
        reason: why it failed.
    """

    number: int
    state: str
    value: float | None
    parameters: Mapping[str, Value]
    course: tuple[float, ...]
    seconds: float | None
    folder: Path
    reason: str = ""


@dataclass(frozen=True)
class SweepResult:
    """All trials of a study, and the shares of the parameters in what came out (summing to 1, or none)."""

    settings: Settings
    trials: Sequence[TrialResult]
    importances: Mapping[str, float]

    @property
    def best(self) -> TrialResult | None:
        return best_of(self.trials, self.settings.direction)


def best_of(trials: Sequence[TrialResult], direction: str) -> TrialResult | None:
    """The finished trial of the best value; of equal ones the first."""
    return min((trial for trial in trials if trial.state == "finished"), key=order_by(direction), default=None)


def order_by(direction: str):  # type: ignore[no-untyped-def]
    """A key that sorts trials: finished ones from the best to the worst, then the others by state."""
    sign = -1 if direction == "maximize" else 1
    states = (*ENDED, "running", "waiting")
    return lambda trial: (states.index(trial.state), sign * (trial.value or 0.0), trial.number)


def write_results(settings: Settings, trials: Sequence[TrialResult]) -> None:
    """Write trials.csv and best.yaml, and remove the models of ended trials but the best, unless all are kept."""
    best = best_of(trials, settings.direction)
    _write(settings.folder / "trials.csv", _table(trials, list(settings.space)))
    if best is not None:
        title = f"# The best of {len(trials)} trials, number {best.number}: {settings.metric} {best.value:.6g}\n"
        _write(settings.folder / "best.yaml", title + recipe_of(settings.recipe, best.parameters).to_yaml())
    if not settings.keep_models:
        for trial in trials:
            if trial.state in ENDED and trial is not best:
                remove_models(trial.folder)


def remove_models(folder: Path) -> None:
    """Remove the model and the checkpoints of a run; its recipe, metrics and figures stay."""
    for path in (*folder.glob("*.safetensors"), *folder.glob("checkpoints/*")):
        path.unlink(missing_ok=True)


def _table(trials: Sequence[TrialResult], keys: Sequence[str]) -> str:
    """A line of comma-separated values for each trial."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", "value", *keys, "evaluations", "seconds", "folder", "reason"])
    for trial in trials:
        values = ["" if trial.value is None else repr(trial.value)]
        values += [json.dumps(trial.parameters.get(key)).strip('"') for key in keys]
        seconds = "" if trial.seconds is None else f"{trial.seconds:.1f}"
        folder = f"trials/{trial.folder.name}" if trial.folder.is_dir() else ""
        writer.writerow([trial.number, trial.state, *values, len(trial.course), seconds, folder, trial.reason])
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def text_table(result: SweepResult) -> list[str]:
    """Lines of aligned columns: trial, state, value and parameters, the best trials first."""
    settings = result.settings
    ordered = sorted(result.trials, key=order_by(settings.direction))
    names = [key.removeprefix(f"{settings.kind}.") for key in settings.space]
    rows = [["trial", "state", settings.metric, *names]]
    for trial in ordered[:MOST_ROWS]:
        value = "" if trial.value is None else f"{trial.value:.4f}"
        values = [show(trial.parameters[key]) if key in trial.parameters else "" for key in settings.space]
        rows.append([str(trial.number), trial.state, value, *values])
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows]
    more = len(ordered) - MOST_ROWS
    return lines + ([f"... and {more} more in trials.csv"] if more > 0 else [])
