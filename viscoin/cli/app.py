"""How commands run and how their mistakes are reported: one line, and an exit code that says whose fault it was."""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, ClassVar, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from viscoin.cli.output import echo
from viscoin.errors import Refused, of_system, outside, renamed
from viscoin.processes import is_first_process

USER_ERROR = 2
# Parameters of the library whose options have other names; the first that a command has counts.
ALIASES = {
    "adapter": ("concept2clip",),
    "concept2clip.model": ("clip_model",),
    "folder": ("export", "out"),
    "gan.augment_p": ("p",),
    "generator": ("gan",),
    "indices": ("concept_indices",),
    "measures": ("metrics",),
    "method": ("with_map",),
    "noise_mode": ("noise",),
    "threshold": ("concept_threshold",),
    "top_k": ("concept_top_k",),
    "truncation_psi": ("truncation",),
}
EX_TEMPFAIL = 75  # of sysexits.h: something outside failed, and the same command resumes


class Command(TyperCommand):
    """A command that names a refused parameter as its option."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except Refused as error:
            if os.environ.get("VISCOIN_TRACEBACK"):
                raise
            fail(error.sentence(self.option), EX_TEMPFAIL if outside(error) else USER_ERROR, error)
        except (KeyboardInterrupt, MemoryError, RuntimeError) as error:  # a training that was stopped
            if _is_of_memory(error) and not os.environ.get("VISCOIN_TRACEBACK"):
                fail(self._smaller(error), USER_ERROR, error)
            error.args = tuple(renamed(part, self.option) if isinstance(part, str) else part for part in error.args)
            raise

    def _smaller(self, error: BaseException) -> str:
        """What to do where the memory is not enough."""
        said = " ".join(str(error).split())[:200] or "the system gives no more"
        remedy = next((option for name in ("batch_size", "accumulate") if (option := self.option(name))), None)
        return f"out of memory ({said}); {f'choose another {remedy}' if remedy else 'use fewer or smaller images'}"

    def option(self, parameter: str) -> str | None:
        """The option of a parameter, or of a recipe key such as `gan.batch_size`, if this command has one."""
        options = {}
        for own in self.params:
            if isinstance(own, TyperOption):
                usual = f"--{own.name}".replace("_", "-")
                options[own.name] = usual if usual in own.opts else max(own.opts, key=len)
        names = (parameter, *ALIASES.get(parameter, ()), parameter.rpartition(".")[2])
        return next((options[name] for name in names if name in options), None)


# The commands in the order of work.
PANELS = {
    "Start": ("demo", "serve", "train", "test", "data"),
    "Explain": ("explain", "attribute", "scorecard", "concepts", "amplify", "concept-heatmaps", "project"),
    "Runs": ("logs", "control", "sweep", "submit"),
    "Model files": ("export", "to-pickle", "from-pickle", "import-classifier", "import-gan", "import-viscoin", "ops"),
}


class Commands(TyperGroup):
    """Reports mistakes of the user in one line (exit code 2); other exceptions are bugs and keep their traceback.

    What a signal stopped exits with 128 + the number of the signal, a training after it has saved its state; what
    something outside stopped, such as a full disk, with 75.

    Attributes:
        around: what a command runs within.
    """

    around: ClassVar[Callable[[], AbstractContextManager[object]]] = nullcontext

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        try:
            with type(self).around():
                return super().invoke(ctx)
        except BrokenPipeError as error:  # whoever read what this prints has seen enough
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(128 + signal.SIGPIPE) from error
        except (ValueError, OSError) as error:
            if os.environ.get("VISCOIN_TRACEBACK"):
                raise
            said = of_system(error) if isinstance(error, OSError) else str(error) or type(error).__name__
            fail(said, EX_TEMPFAIL if outside(error) else USER_ERROR, error)
        except KeyboardInterrupt as interrupt:
            if is_first_process():
                _say(str(interrupt) or "Interrupted.")
            raise typer.Exit(128 + getattr(interrupt, "signal", signal.SIGINT)) from interrupt
        except RuntimeError as error:
            if type(error).__name__ != "Failed":  # not imported: it would bring all of torch
                raise
            fail(str(error) or type(error).__name__, EX_TEMPFAIL, error)

    def format_commands(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """The commands by panels, each with its whole first sentence."""
        shown = {name: command for name, command in self.commands.items() if not command.hidden}
        rest = tuple(name for name in shown if not any(name in names for names in PANELS.values()))
        width = max(map(len, shown))
        for title, names in {**PANELS, "Others": rest}.items():
            rows = [(name.ljust(width), shown[name].get_short_help_str(70)) for name in names if name in shown]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def fail(message: str, code: int, cause: BaseException) -> NoReturn:
    """Print one line and exit."""
    _say(f"Error: {' '.join(message.split())}")
    raise typer.Exit(code) from cause


def _say(line: str) -> None:
    """Print to standard error, if anybody is left to read it."""
    with suppress(OSError):
        echo(line, err=True)


def _is_of_memory(error: BaseException) -> bool:
    """Whether the memory of the machine or of a GPU is not enough; torch has no exception of its own on the CPU."""
    return isinstance(error, MemoryError) or (
        type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    )


def group(**options: Any) -> typer.Typer:
    """An empty group of commands, without rich help, whose import takes five times as long as the rest of `--help`."""
    return typer.Typer(
        rich_markup_mode=None, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, **options
    )
