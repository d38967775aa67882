"""`logs`: plot the metrics of runs."""

import time
from collections.abc import Callable
from pathlib import Path
from signal import SIGINT
from typing import TYPE_CHECKING, Annotated

import typer

from viscoin.cli import options
from viscoin.cli.output import echo
from viscoin.cli.results import results_folder, show_figures
from viscoin.errors import Refused

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from viscoin.runs.metrics import Log

REDRAW = 5.0  # seconds


def logs(
    logs_path: Annotated[
        list[Path] | None,
        typer.Option(
            "--logs-path",
            metavar="RUN|FILE",
            help="Run folder or log file, repeatable to compare runs; default: the newest run.",
        ),
    ] = None,
    dataset: options.DatasetOfRun = None,
    measures: Annotated[
        list[str] | None,
        typer.Option("--measures", metavar="M,N", help="Metrics to show, as in l1,accuracy; default: all."),
    ] = None,
    smoothing: Annotated[
        float,
        typer.Option("--smoothing", metavar="S", help="Weight of the past in a moving average, in [0, 1)."),
    ] = 0.0,
    log_scale: Annotated[bool, typer.Option("--log-scale", help="Logarithmic vertical axis.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Print new lines and redraw the figure until the runs end.")
    ] = False,
    csv: Annotated[
        Path | None,
        typer.Option("--csv", metavar="FILE", help="Also write a table: run, split, measure, step, value."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Folder for the figure; default: figures/ of the run."),
    ] = None,
    show: options.Show = False,
) -> None:
    """Plot the losses and metrics of trainings.

    Works while they run, too; --follow keeps the figure up to date.
    """
    from viscoin.config import DEFAULT_DATASET
    from viscoin.files import atomic_path
    from viscoin.plotting.style import figure_bytes
    from viscoin.plotting.training import training_figure
    from viscoin.runs.metrics import check_smoothing, log_file, read_log, selected, write_csv

    check_smoothing(smoothing)
    names = options.split_list(measures or [])
    given = logs_path or [_newest(dataset or DEFAULT_DATASET)]
    paths = list({log_file(path).resolve(): path for path in given}.values())
    run = paths[0] if paths[0].is_dir() else paths[0].parent
    folder = out or (run / "figures" if (run / "recipe.yaml").is_file() else None)
    with results_folder("logs", paths[0].stem, folder) as results:
        file = results.folder / ("training.png" if len(paths) == 1 else f"training-of-{len(paths)}-runs.png")

        def draw(logs: "list[Log]") -> "Figure":
            figure = training_figure(logs, smoothing=smoothing, log_scale=log_scale)
            with atomic_path(file) as partial:
                partial.write_bytes(figure_bytes(figure))
            if csv:
                write_csv(logs, csv)
            return figure

        if follow:
            echo(f"figure: {file}, redrawn every {REDRAW:g} s; Ctrl-C stops this, not the training", err=True)
        found = _followed(paths, names, draw) if follow else [read_log(path) for path in paths]
        figure = draw(selected(found, names))
    for written in filter(None, (file, csv)):
        echo(written)
    if show:
        show_figures([figure])


def _followed(paths: list[Path], names: list[str], draw: "Callable[[list[Log]], Figure]") -> "list[Log]":
    """Print and draw what comes, until the runs end or somebody interrupts; returns what there is by then."""
    from viscoin.runs.metrics import followed_lines

    for path in paths:
        if not path.exists() and not (path.parent / "recipe.yaml").is_file():
            raise Refused("logs_path", path, "there is no such run or log to follow")
    found: list[Log] = []
    drawn, waiting = -REDRAW, False
    try:
        for lines, growth in followed_lines(paths, names):
            for line in lines:
                echo(line)
            found = [log for log in growth.logs if log.series]
            waiting |= bool(growth.fresh or growth.rewritten)
            chosen = [log for log in (log.only(names) if names else log for log in found) if log.series]
            if waiting and chosen and time.monotonic() - drawn >= REDRAW:
                draw(chosen)
                drawn, waiting = time.monotonic(), False
    except KeyboardInterrupt as stop:
        if getattr(stop, "signal", SIGINT) != SIGINT:
            raise
        echo("stopped following", err=True)
    if not found:
        raise Refused(None, None, f"{' and '.join(map(str, paths))}: no line with numbers has come")
    return found


def _newest(dataset: str) -> Path:
    from viscoin.datasets import dataset_of_runs
    from viscoin.runs.run import newest_of_any

    run = newest_of_any(dataset_of_runs(dataset))
    if run is None:
        reason, remedy = f"there is no run of {dataset!r} in runs/", "name a run folder or a log file with `logs_path`"
        raise Refused(None, None, reason, remedy)
    return run.path
