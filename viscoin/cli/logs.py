"""`logs`: plot the metrics of a run."""

from pathlib import Path
from typing import Annotated

import typer

from viscoin.cli import common


def logs(
    logs_path: Annotated[
        Path | None,
        typer.Option("--logs-path", metavar="RUN|FILE", help="Run folder or metrics.jsonl; default: the newest run."),
    ] = None,
    dataset: common.DatasetName = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Where figures go; default: figures/ of the run.")
    ] = None,
    show: common.Show = False,
) -> None:
    """Plot the losses and metrics that a training wrote."""
