"""`sweep`: train by many recipes that Optuna chooses, and tell which is best."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from viscoin.cli import options
from viscoin.cli.output import echo

if TYPE_CHECKING:
    from viscoin.sweep.results import SweepResult
    from viscoin.training.pipeline import RunOptions
    from viscoin.training.runtime import Runtime


@options.with_runtime
@options.with_run(without=("resume", "allow_changes", "replay"))
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
    classifier: Annotated[
        Path | None, options.model_option("--classifier", "Classifier f, for gan and viscoin")
    ] = None,
    gan: Annotated[Path | None, options.model_option("--gan", "Generator G, for viscoin")] = None,
    run: "RunOptions",
    runtime: "Runtime",
) -> None:
    """Search for better settings with Optuna.

    The same command resumes a study that was stopped, and works on it beside others that run.
    """
    from viscoin.sweep.search import Request, search

    request = Request(kind, space, trials, metric, direction, sampler, pruner, storage, timeout, keep_models)
    result = search(request, run, {"classifier": classifier, "gan": gan}, runtime, report)
    figures = sorted(result.settings.folder.glob("*.png"))
    echo(f"open first: {next(iter(figures), result.settings.folder / 'trials.csv')}", err=True)


def report(result: "SweepResult") -> list[Path]:
    """Print the trials, the best ones first, and where the best model, its recipe, the table and the figures are.

    Returns:
        The files of the figures.
    """
    from viscoin.plotting.study import study_figures
    from viscoin.plotting.style import save_figure
    from viscoin.runs.run import Run
    from viscoin.sweep.results import text_table

    for line in text_table(result):
        echo(line)
    folder, best = result.settings.folder, result.best
    if best is None:
        echo("no trial has finished")
    else:
        model = Run(best.folder).model_path
        echo(f"best model:  {model if model.is_file() else f'gone, {model} is not there; its recipe trains it anew'}")
        echo(f"best recipe: {folder / 'best.yaml'}")
        if not result.settings.keep_models:
            echo("models and checkpoints of the other trials are removed (--keep-models keeps them)", err=True)
    echo(folder / "trials.csv")
    paths = []
    for name, figure in study_figures(result).items():
        paths.append(folder / f"{name}.png")
        echo(save_figure(figure, paths[-1]))
    return paths
