"""`demo`: the whole pipeline on the built-in birds, with a report."""

from pathlib import Path
from typing import Annotated

import typer

from viscoin.cli import options
from viscoin.cli.output import echo


def demo(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer steps and test images: at most 90 s.")] = False,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Train f and G as well, by the recipe (hours without a GPU).")
    ] = False,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the report goes.")] = Path("runs/demo"),
    seed: options.Seed = 0,
    device: options.Device = "auto",
    show: options.Show = False,
) -> None:
    """Run the whole pipeline on the birds, with a report.

    Show the data, test the shipped models, train Psi, Theta and Omega, explain images, write report.html.
    """
    from viscoin.reports import demo as library

    size = library.QUICK if quick else library.FULL
    report = library.run_demo(out, size, from_scratch=from_scratch, seed=seed, device=device)
    echo(report)
    echo(f"open first: {report}", err=True)
    if show:
        typer.launch(str(report))
