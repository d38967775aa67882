"""`sweep`: train by many recipes that Optuna chooses, and tell which is best."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from viscoin.cli import common
from viscoin.processes import is_first_process

if TYPE_CHECKING:
    from viscoin.config import Recipe
    from viscoin.runs.run import Run
    from viscoin.runs.tracking import Shown
    from viscoin.sweep.results import SweepResult
    from viscoin.training.runtime import Runtime

KINDS = ("classifier", "gan", "viscoin")
MOST_ROWS = 20  # of the table that is printed; all are in trials.csv


@common.with_runtime
def sweep(
    *,
    kind: Annotated[str, typer.Argument(metavar="classifier|gan|viscoin", help="What to train.")],
    space: Annotated[
        Path, typer.Option("--space", metavar="FILE", help="YAML: keys of the recipe, each with a range or choices.")
    ],
    trials: Annotated[
        int,
        typer.Option("--trials", metavar="N", help="Trainings that the study shall have, of all calls and workers."),
    ] = 20,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            metavar="NAME",
            help="What to go by; default: validation.accuracy, validation.fid of a gan, "
            "validation.accuracy_on_reconstructions of viscoin.",
        ),
    ] = None,
    direction: Annotated[
        str | None,
        typer.Option("--direction", metavar="maximize|minimize", help="What is better; default: as the metric means."),
    ] = None,
    sampler: Annotated[
        str,
        typer.Option("--sampler", metavar="tpe|random|grid", help="How values are chosen; grid: all combinations."),
    ] = "tpe",
    pruner: Annotated[
        str,
        typer.Option(
            "--pruner",
            metavar="median|hyperband|none",
            help="What stops hopeless trials; median: from the sixth on, below the median of the others.",
        ),
    ] = "median",
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage", metavar="sqlite|journal|FILE", help="Where the study is kept; default: study.db in --out."
        ),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", metavar="SECONDS", help="Start no trial after so long.")
    ] = None,
    keep_models: Annotated[
        bool, typer.Option("--keep-models", help="Keep models and checkpoints of all trials, not of the best alone.")
    ] = False,
    dataset: common.DatasetName = None,
    dataset_path: common.DatasetPath = None,
    attribute: common.Attribute = None,
    classifier: Annotated[Path | None, common.model_option("--classifier", "Classifier f, for gan and viscoin")] = None,
    gan: Annotated[Path | None, common.model_option("--gan", "Generator G, for viscoin")] = None,
    recipe: common.RecipeName = None,
    settings: common.Settings = None,
    seed: common.RecipeSeed = None,
    runtime: "Runtime",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FOLDER", help="The study's folder, which several processes may share; default: in runs/."
        ),
    ] = None,
    track: common.Track = None,
    skip_bad_files: common.SkipBadFiles = False,
) -> None:
    """Train by many recipes, chosen by Optuna, and tell which is best.

    The same command goes on with a study that was stopped, and works on it beside others that run.
    """
    if kind not in KINDS:
        raise ValueError(f"sweep {kind!r}: choose {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    if runtime.processes > 1 or not is_first_process():
        raise ValueError(
            "sweep: a trial has one process and one device; for several at once, start the same command several times"
        )
    options = {"seed": seed, "dataset.attribute": attribute, "dataset.skip_bad_files": skip_bad_files or None}
    resolved = common.resolve_recipe(kind, dataset, recipe, settings, options, dataset_path=dataset_path)
    from viscoin.runs.run import RUNS
    from viscoin.runs.tracking import followers, parse_trackers, tracked_sweep
    from viscoin.sweep.running import run_sweep
    from viscoin.sweep.settings import Settings, check_metric
    from viscoin.sweep.space import read_space
    from viscoin.sweep.study import Study, load_optuna

    load_optuna()
    trackers = parse_trackers(track)
    values = read_space(space, kind, resolved)
    for key in (text.partition("=")[0].strip() for text in settings or []):
        if key in values:
            raise ValueError(f"--set {key}: --space {space} varies this key; leave it out of one of them")
    name, better = check_metric(kind, metric, direction, resolved)
    folder = out or RUNS / f"{Path(resolved.dataset.name).name}-{kind}-sweep"
    models = _models(kind, classifier, gan, resolved)
    study = Study(
        Settings(
            kind, resolved, values, folder, name, better, trials, sampler, pruner, storage, timeout, keep_models,
            {option: str(path) for option, path in models.items()},
        )
    )  # fmt: skip
    typer.echo(f"study: {folder}", err=True)

    def train(chosen: "Recipe", run: "Run") -> Path:
        with run.lock():
            return _train(kind, chosen, run, models, runtime)

    names = trackers if track else followers(folder)
    facts = {**study.settings.identity(), "pruner": pruner}
    with tracked_sweep(folder, Path(resolved.dataset.name).name, facts, names, keep_models) as shown:
        show(run_sweep(study, train, names), shown)


def _models(kind: str, classifier: Path | None, gan: Path | None, recipe: "Recipe") -> dict[str, Path]:
    """Files of the models that the trainings build on, by option."""
    from viscoin.models.files import find_model

    given = {"--classifier": (classifier, "classifier"), "--gan": (gan, "gan")}
    needed = {"classifier": (), "gan": ("--classifier",), "viscoin": ("--classifier", "--gan")}[kind]
    for option, (value, _) in given.items():
        if value is not None and option not in needed:
            raise ValueError(f"{option} {value}: a sweep of {kind} does not need it; leave it out")
    return {option: find_model(given[option][1], given[option][0], recipe.dataset.name) for option in needed}


def _train(kind: str, recipe: "Recipe", run: "Run", models: dict[str, Path], runtime: "Runtime") -> Path:
    """Train one run, on models that no other trial has touched."""
    if kind == "classifier":
        from viscoin.training.classifier import train_classifier

        return train_classifier(recipe, run, runtime)
    if kind == "gan":
        from viscoin.training.gan import train_gan

        return train_gan(recipe, run, common.load_classifier(models["--classifier"], recipe.dataset).model, runtime)
    from viscoin.training.viscoin import train_viscoin

    f, g = common.trained_parts(models["--classifier"], models["--gan"], recipe)
    return train_viscoin(recipe, run, f.model, g.model, runtime)


def show(result: "SweepResult", shown: "Shown") -> None:
    """Print the trials, the best ones first, and where everything is; the trackers get it, too."""
    from viscoin.runs.run import Run
    from viscoin.sweep.results import ENDED

    shown.figures = report(result)
    ended = {Run(trial.folder): end for trial in result.trials for end in ENDED if trial.state == end}
    shown.step = len(ended)
    shown.trials = {run.path: end for run, end in ended.items() if run.recipe_path.is_file()}
    best = result.best
    if best is not None and best.value is not None:
        shown.metrics = {"best": best.value}
        shown.files = [result.settings.folder / name for name in ("best.yaml", "trials.csv")]
        shown.files.append(Run(best.folder).model_path)


def report(result: "SweepResult") -> list[Path]:
    """Print the trials, the best ones first, and where the best model, its recipe, the table and the figures are.

    Returns:
        The files of the figures.
    """
    from viscoin.files import atomic_path
    from viscoin.plotting.study import study_figures
    from viscoin.plotting.style import figure_bytes
    from viscoin.runs.run import Run

    for line in table(result):
        typer.echo(line)
    folder, best = result.settings.folder, result.best
    if best is None:
        typer.echo("no trial has finished")
    else:
        typer.echo(f"best model:  {Run(best.folder).model_path}")
        typer.echo(f"best recipe: {folder / 'best.yaml'}")
        if not result.settings.keep_models:
            typer.echo("models and checkpoints of the other trials are removed (--keep-models keeps them)", err=True)
    typer.echo(folder / "trials.csv")
    paths = []
    for name, figure in study_figures(result).items():
        paths.append(folder / f"{name}.png")
        with atomic_path(paths[-1]) as partial:
            partial.write_bytes(figure_bytes(figure))
        typer.echo(paths[-1])
    return paths


def table(result: "SweepResult") -> list[str]:
    """Lines of aligned columns: trial, state, value and parameters, the best trials first."""
    from viscoin.sweep.results import order_by
    from viscoin.sweep.space import show

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
