"""A whole search for better settings: from what is asked for to the result, which trackers get as well."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from viscoin.config import Recipe
from viscoin.errors import Refused
from viscoin.kinds import CHAIN
from viscoin.processes import is_first_process
from viscoin.runs.run import RUNS, Run
from viscoin.runs.tracking import Shown, followers, parse_trackers, tracked_sweep
from viscoin.runs.transcript import keep_in
from viscoin.sweep.results import ENDED, SweepResult
from viscoin.sweep.running import run_sweep
from viscoin.sweep.settings import Settings, check_metric
from viscoin.sweep.space import read_space
from viscoin.sweep.study import Study, load_optuna
from viscoin.training.pipeline import RunOptions, find_needed, load_needed, resolve_recipe, train_in

if TYPE_CHECKING:
    from viscoin.training.runtime import Runtime

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What to search for, and how; see `Settings`, whose fields of the same names these become.

    Attributes:
        kind: of the models that are trained.
        space: YAML file with the keys that vary.
        metric, direction: None means those of the kind.
    """

    kind: str
    space: Path
    trials: int = 20
    metric: str | None = None
    direction: str | None = None
    sampler: str = "tpe"
    pruner: str = "median"
    storage: str | None = None
    timeout: float | None = None
    keep_models: bool = False


def search(
    request: Request,
    options: RunOptions,
    models: Mapping[str, Path | None],
    runtime: "Runtime",
    report: Callable[[SweepResult], list[Path]] = lambda result: [],
) -> SweepResult:
    """Train trials until the study has as many as it shall have, or the time is up.

    Args:
        models: by kind, those that the trainings build on; None means the newest or shipped one.
        report: writes up the result; gives the files of figures, which trackers show.

    Raises:
        Refused: an unknown kind, or a runtime of several processes.
        ValueError: other options that do not fit, or trainings that fail.
    """
    if request.kind not in CHAIN:
        raise Refused("kind", request.kind, "not a kind to sweep", f"choose {', '.join(CHAIN[:-1])} or {CHAIN[-1]}")
    if runtime.processes > 1 or not is_first_process():
        raise Refused(
            None, None, "sweep: a trial has one process and one device",
            "for several at once, start the same command several times",
        )  # fmt: skip
    recipe = resolve_recipe(request.kind, options)
    load_optuna()
    trackers = parse_trackers(options.track)
    needed = find_needed(request.kind, models, recipe)
    study = Study(_settings(request, recipe, options, needed))
    folder, dataset = study.settings.folder, Path(recipe.dataset.name).name
    keep_in(folder)
    logger.info("study: %s", folder)

    def train(chosen: Recipe, run: Run) -> Path:
        with run.lock():
            return train_in(run, request.kind, chosen, load_needed(request.kind, needed, chosen), runtime)

    names = trackers if options.track else followers(folder)
    facts = {**study.settings.identity(), "pruner": request.pruner}
    with tracked_sweep(folder, dataset, facts, names, request.keep_models) as shown:
        result = run_sweep(study, train, names)
        show(result, shown, report(result))
    return result


def _settings(request: Request, recipe: Recipe, options: RunOptions, needed: Mapping[str, Path | None]) -> Settings:
    space = read_space(request.space, request.kind, recipe)
    for key in (text.partition("=")[0].strip() for text in options.settings or []):
        if key in space:
            raise Refused("settings", key, f"`space` {request.space} varies this key", "leave it out of one of them")
    metric, direction = check_metric(request.kind, request.metric, request.direction, recipe)
    folder = options.out or RUNS / f"{Path(recipe.dataset.name).name}-{request.kind}-sweep"
    return Settings(
        request.kind, recipe, space, folder, metric, direction, request.trials, request.sampler, request.pruner,
        request.storage, request.timeout, request.keep_models, {name: str(path) for name, path in needed.items()},
    )  # fmt: skip


def show(result: SweepResult, shown: Shown, figures: list[Path]) -> None:
    """Put into `shown` what trackers get of a sweep."""
    shown.figures = figures
    ended = {Run(trial.folder): end for trial in result.trials for end in ENDED if trial.state == end}
    shown.step = len(ended)
    shown.trials = {run.path: end for run, end in ended.items() if run.recipe_path.is_file()}
    best = result.best
    if best is not None and best.value is not None:
        shown.metrics = {"best": best.value}
        shown.files = [result.settings.folder / name for name in ("best.yaml", "trials.csv")]
        shown.files.append(Run(best.folder).model_path)
