"""`logs`: plot the metrics of runs."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from viscoin.cli import options
from viscoin.cli.results import results_folder, show_figures

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
            help="Run folder or log file; repeat to compare. Default: the newest run.",
        ),
    ] = None,
    dataset: options.DatasetOfRun = None,
    measures: Annotated[
        list[str] | None,
        typer.Option("--measures", metavar="M,N", help="Measures to show, as in l1,accuracy; default: all."),
    ] = None,
    smoothing: Annotated[
        float, typer.Option("--smoothing", metavar="S", help="Weight of the past in a moving average, 0 to below 1.")
    ] = 0.0,
    log_scale: Annotated[bool, typer.Option("--log-scale", help="Logarithmic values.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Print new lines and redraw the figure until the runs end, or Ctrl-C.")
    ] = False,
    csv: Annotated[
        Path | None,
        typer.Option("--csv", metavar="FILE", help="Write a table too: run, split, measure, step, value."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Where the figure goes; default: figures/ of the run."),
    ] = None,
    show: options.Show = False,
) -> None:
    """Plot the losses and metrics of trainings, also while they run."""
    from viscoin.config import DEFAULT_DATASET
    from viscoin.files import atomic_path
    from viscoin.plotting.style import figure_bytes
    from viscoin.plotting.training import training_figure
    from viscoin.runs.metrics import log_file, read_log, write_csv

    if not 0 <= smoothing < 1:
        raise ValueError(f"--smoothing {smoothing}: choose a number from 0 to below 1")
    names = [name.strip() for text in measures or [] for name in text.split(",") if name.strip()]
    given = logs_path or [_newest(dataset or DEFAULT_DATASET)]
    paths = list({log_file(path).resolve(): path for path in given}.values())
    run = paths[0] if paths[0].is_dir() else paths[0].parent
    folder = out or (run / "figures" if (run / "recipe.yaml").is_file() else None)
    with results_folder("logs", paths[0].stem, folder) as results:
        file = results.folder / ("training.png" if len(paths) == 1 else f"training-of-{len(paths)}-runs.png")

        def draw(found: "Sequence[Log]") -> "Figure":
            figure = training_figure(found, smoothing=smoothing, log_scale=log_scale)
            with atomic_path(file) as partial:
                partial.write_bytes(figure_bytes(figure))
            if csv:
                write_csv(found, csv)
            return figure

        if follow:
            typer.echo(f"figure: {file}, redrawn every {REDRAW:g} s; Ctrl-C ends this, not the training", err=True)
        found = _followed(paths, names, draw) if follow else [read_log(path) for path in paths]
        figure = draw(_selected(found, names))
    for written in filter(None, (file, csv)):
        typer.echo(written)
    if show:
        show_figures([figure])


def _followed(paths: Sequence[Path], names: Sequence[str], draw: "Callable[[Sequence[Log]], Figure]") -> "list[Log]":
    """Print and draw what comes, until the runs end or somebody interrupts; returns what there is by then."""
    from viscoin.runs.metrics import describe_line, follow, log_file, run_names

    for path in paths:
        if not path.exists() and not (path.parent / "recipe.yaml").is_file():
            raise ValueError(f"--logs-path {path}: there is no such run or log to follow")
    runs = run_names([log_file(path) for path in paths])
    found: list[Log] = []
    drawn, waiting = -REDRAW, False
    try:
        for growth in follow(paths):
            found = [log for log in growth.logs if log.series]
            for i in growth.rewritten:
                typer.echo(f"{runs[i]}: went back, as after a resume")
            for i, text in growth.fresh:
                if line := describe_line(text, names):
                    typer.echo(f"{runs[i]}  {line}" if len(runs) > 1 else line)
            waiting |= bool(growth.fresh or growth.rewritten)
            chosen = [log for log in (log.only(names) if names else log for log in found) if log.series]
            if waiting and chosen and time.monotonic() - drawn >= REDRAW:
                draw(chosen)
                drawn, waiting = time.monotonic(), False
    except KeyboardInterrupt:
        typer.echo("stopped following", err=True)
    if not found:
        raise ValueError(f"{' and '.join(map(str, paths))}: no line with numbers has come")
    return found


def _selected(found: "Sequence[Log]", names: Sequence[str]) -> "list[Log]":
    known = list(dict.fromkeys(name for log in found for name in (*log.measures, *log.series)))
    for name in names:
        if name not in known:
            held = ", ".join(dict.fromkeys(name for log in found for name in log.measures))
            raise ValueError(f"--measures {name!r}: no log has it; there are {held}")
    return [log.only(names) for log in found] if names else list(found)


def _newest(dataset: str) -> Path:
    from viscoin.models.files import KINDS
    from viscoin.runs.run import newest_run

    runs = [run for kind in KINDS if (run := newest_run(kind, dataset)) is not None]
    if not runs:
        raise ValueError(f"there is no run of {dataset!r} in runs/; name a run folder or a log file with --logs-path")
    return max(runs, key=lambda run: run.header["created"]).path
