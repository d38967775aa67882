"""`logs`: plot the metrics of runs."""

from pathlib import Path
from typing import Annotated

import typer

from viscoin.cli import common


def logs(
    logs_path: Annotated[
        list[Path] | None,
        typer.Option(
            "--logs-path",
            metavar="RUN|FILE",
            help="Run folder or log file; repeat to compare. Default: the newest run.",
        ),
    ] = None,
    dataset: common.DatasetName = None,
    smoothing: Annotated[
        float, typer.Option("--smoothing", metavar="S", help="Weight of the past in a moving average, 0 to below 1.")
    ] = 0.0,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Where the figure goes; default: figures/ of the run."),
    ] = None,
    show: common.Show = False,
) -> None:
    """Plot the losses and metrics of a training."""
    from viscoin.analysis.logs import read_log
    from viscoin.plotting.training import training_figure

    paths = logs_path or [_newest(dataset or common.DEFAULT_DATASET)]
    figure = training_figure([read_log(path) for path in paths], smoothing=smoothing)
    run = paths[0] if paths[0].is_dir() else paths[0].parent
    folder = out or (run / "figures" if (run / "recipe.yaml").is_file() else None)
    with common.results_folder("logs", paths[0].stem, folder) as results:
        results.figures({"training": figure}, show)


def _newest(dataset: str) -> Path:
    from viscoin.models.files import KINDS
    from viscoin.runs import newest_run

    runs = [run for kind in KINDS if (run := newest_run(kind, dataset)) is not None]
    if not runs:
        raise ValueError(f"there is no run of {dataset!r} in runs/; name a run folder or a log file with --logs-path")
    return max(runs, key=lambda run: run.header["created"]).path
