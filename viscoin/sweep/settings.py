"""What a sweep is asked to do, and what can be seen to be wrong with it before anything runs."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from viscoin.config import Recipe
from viscoin.errors import Refused
from viscoin.kinds import KINDS
from viscoin.runs.run import MOVABLE, flatten
from viscoin.sweep.space import Space

SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("median", "hyperband", "none")
DIRECTIONS = ("maximize", "minimize")
FILES = {"sqlite": "study.db", "journal": "study.journal"}
SUFFIXES = {".db": "sqlite", ".journal": "journal"}


@dataclass(frozen=True)
class Settings:
    """What a sweep is asked to do.

    Attributes:
        kind: "classifier", "gan" or "viscoin".
        recipe: holds all that the space leaves open; its seed is that of the sampler as well.
        folder: takes the study and a folder for each trial.
        metric: a name in metrics.jsonl and of a score of the model, see `viscoin.kinds`.
        trials: that the study shall have in the end, over all processes.
        storage: "sqlite", "journal", a file of one of both, or None: what the folder has, else SQLite.
        timeout: seconds after which no trial is started any more.
        keep_models: keep models and checkpoints of all trials, not of the best one alone.
        models: names and files of the trained models that the trainings build on.
    """

    kind: str
    recipe: Recipe
    space: Space
    folder: Path
    metric: str
    direction: str
    trials: int
    sampler: str = "tpe"
    pruner: str = "median"
    storage: str | None = None
    timeout: float | None = None
    keep_models: bool = False
    models: Mapping[str, str] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """All that must stay the same for trials to be comparable, flat."""
        space = {f"space.{key}": str(parameter) for key, parameter in self.space.items()}
        recipe = {
            key: value
            for key, value in flatten(self.recipe.model_dump()).items()
            if key.split(".")[0] in (self.kind, "dataset", "seed") and key not in (*self.space, *MOVABLE)
        }
        named = {"kind": self.kind, "metric": self.metric, "direction": self.direction, "sampler": self.sampler}
        return {**named, **self.models, **space, **recipe}


def check_metric(kind: str, metric: str | None, direction: str | None, recipe: Recipe) -> tuple[str, str]:
    """Metric and direction, by default those of the kind; Refused where trainings of this kind do not log it."""
    known = KINDS[kind].metrics
    if kind == "viscoin" and recipe.viscoin.without_generator:
        known = {name: known[name] for name in ("validation.agreement", "validation.accuracy")}
    name = next(iter(known)) if metric is None else metric
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose {', '.join(known)}"
        raise Refused("metric", name, f"the training of a {kind} does not log it", hint)
    measure = name.removeprefix("validation.")
    if measure in ("balanced_accuracy", "f1") and recipe.classifier.best_metric != measure:
        raise Refused("metric", name, f"it is logged with classifier.best_metric={measure} alone", "set that")
    if direction is not None and direction not in DIRECTIONS:
        raise Refused("direction", direction, "unknown", "choose maximize or minimize")
    return name, direction or known[name]


def check_settings(settings: Settings) -> None:
    """Raise Refused for what can be seen to be wrong without the study."""
    for parameter, value, known in (("sampler", settings.sampler, SAMPLERS), ("pruner", settings.pruner, PRUNERS)):
        if value not in known:
            raise Refused(parameter, value, "unknown", f"choose {', '.join(known[:-1])} or {known[-1]}")
    if settings.trials < 1:
        raise Refused("trials", settings.trials, "too few", "give the number of trainings, 1 or more")
    if settings.timeout is not None and settings.timeout <= 0:
        raise Refused("timeout", f"{settings.timeout:g}", "too short", "give seconds, above 0")
    if settings.sampler == "grid":
        for key, varied in settings.space.items():
            if varied.grid is None:
                raise Refused("sampler", "grid", f"{key} is a range without steps", "give it a step, or choices")
    storage_file(settings.folder, settings.storage)


def storage_file(folder: Path, storage: str | None) -> tuple[Path, str]:
    """File and kind ("sqlite" or "journal") of the study's storage; ValueError where they contradict what is there."""
    there = [kind for kind, name in FILES.items() if (folder / name).is_file()]
    if storage is None:
        storage = there[0] if there else "sqlite"
    if there and storage not in (*there, str(folder / FILES[there[0]])):
        raise Refused("storage", storage, f"the study in {folder} is in {FILES[there[0]]}", "leave it out")
    if storage in FILES:
        return folder / FILES[storage], storage
    path = Path(storage)
    if path.suffix not in SUFFIXES:
        remedy = f"choose sqlite, journal or a file that ends in {' or '.join(SUFFIXES)}"
        raise Refused("storage", storage, "unknown", remedy)
    return path, SUFFIXES[path.suffix]
