"""The command line: one file per command; each parses, calls the library and prints."""

import logging
import os
import signal

import typer
from typer.core import TyperGroup

from viscoin.cli import (
    amplify,
    concept_heatmaps,
    concepts,
    data,
    dataset,
    demo,
    export,
    from_pickle,
    import_gan,
    import_viscoin,
    logs,
    ops,
    project,
    submit,
    sweep,
    test,
    to_pickle,
    train,
)
from viscoin.processes import is_first_process

EX_TEMPFAIL = 75  # of sysexits.h: something outside failed, and the same command goes on


class Commands(TyperGroup):
    """Reports mistakes of the user in one line (exit code 2); other exceptions are bugs and keep their traceback.

    A training that a signal stopped has saved its state and exits with 128 + the number of the signal; one that
    something outside stopped, such as a full disk, with 75.
    """

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (ValueError, OSError) as error:
            if os.environ.get("VISCOIN_TRACEBACK"):
                raise
            typer.echo(f"Error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as interrupt:
            if is_first_process():
                typer.echo(str(interrupt) or "Interrupted.", err=True)
            raise typer.Exit(128 + getattr(interrupt, "signal", signal.SIGINT)) from interrupt
        except RuntimeError as error:
            if type(error).__name__ != "Failed":  # not imported: it would bring all of torch
                raise
            typer.echo(f"Error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(EX_TEMPFAIL) from error


class Console(logging.Handler):
    """Plain lines on what is standard error at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(self.format(record), err=True)


# No rich help: its import takes five times as long as all the rest of `--help`.
app = typer.Typer(
    cls=Commands, rich_markup_mode=None, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False
)
app.add_typer(train.app, name="train")
app.add_typer(test.app, name="test")
app.add_typer(ops.app, name="ops")
for command in (
    logs.logs,
    to_pickle.to_pickle,
    from_pickle.from_pickle,
    export.export,
    import_gan.import_gan,
    import_viscoin.import_viscoin,
    concepts.concepts,
    amplify.amplify,
    concept_heatmaps.concept_heatmaps,
    project.project,
    demo.demo,
    sweep.sweep,
    submit.submit,
    dataset.dataset,
    data.data,
):
    app.command()(command)


@app.callback()
def viscoin() -> None:
    """Explain image classifiers by concepts that a generator can draw.

    A mistake on the command line or in the data ends with one line and exit code 2; VISCOIN_TRACEBACK=1 shows where.
    """
    for name in ("viscoin", "stylegan2_ada"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [Console()]
        logger.setLevel(logging.INFO if is_first_process() else logging.ERROR)  # all would say the same


def main() -> None:
    """Entry point of `python main.py` and of the `viscoin` command."""
    app()
