"""The command line: one file per command; each parses, calls the library and prints."""

import logging
import os
from typing import Annotated

import typer

from viscoin.cli import (
    amplify,
    attribute,
    concept_heatmaps,
    concepts,
    control,
    data,
    dataset,
    demo,
    explain,
    export,
    from_pickle,
    import_classifier,
    import_gan,
    import_viscoin,
    logs,
    ops,
    project,
    scorecard,
    serve,
    submit,
    sweep,
    test,
    test_attribution,
    to_pickle,
    train,
)
from viscoin.cli.app import Command, Commands, group
from viscoin.cli.output import echo
from viscoin.processes import is_first_process
from viscoin.program import program_name
from viscoin.signals import leave_on_signals, stop_on_signals

# What says how OpenMP's threads wait. Spinning, its default, takes the time of what else runs beside.
WAITING = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}


class Console(logging.Handler):
    """Plain lines on what is standard error at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        echo(self.format(record), err=True)


app = group(cls=Commands)
app.add_typer(train.app, name="train")
test.app.command(cls=Command)(test_attribution.attribution)
app.add_typer(test.app, name="test")
app.add_typer(ops.app, name="ops")
for command in (
    logs.logs,
    control.control,
    to_pickle.to_pickle,
    from_pickle.from_pickle,
    export.export,
    import_classifier.import_classifier,
    import_gan.import_gan,
    import_viscoin.import_viscoin,
    concepts.concepts,
    amplify.amplify,
    concept_heatmaps.concept_heatmaps,
    explain.explain,
    attribute.attribute,
    scorecard.scorecard,
    project.project,
    serve.serve,
    demo.demo,
    sweep.sweep,
    submit.submit,
    dataset.dataset,
    data.data,
):
    app.command(cls=Command, hidden=command is dataset.dataset)(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from viscoin.runs.revision import describe_version

        echo(describe_version())
        raise typer.Exit


@app.callback()
def viscoin(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print version, revision and PyTorch's version."
        ),
    ] = False,
) -> None:
    """Explain image classifiers by concepts that a generator can draw.

    A mistake on the command line or in the data ends with one line and exit code 2; VISCOIN_TRACEBACK=1 shows where.
    """
    for name in ("viscoin", "stylegan2_ada"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [Console()]
        logger.setLevel(logging.INFO if is_first_process() else logging.ERROR)  # all would say the same


def main() -> None:
    """Entry point of `python main.py`, `python -m viscoin` and the `viscoin` command."""
    if not os.environ.keys() & WAITING:  # OpenMP reads it when torch is imported
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    leave_on_signals()
    Commands.around = stop_on_signals
    if is_first_process():
        from viscoin.runs.transcript import listen

        listen()
    app(prog_name=program_name())
