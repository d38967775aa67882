"""What a command is to several processes that share its work; the first one prints and writes."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from viscoin.cli.results import Results, results_folder

if TYPE_CHECKING:
    from viscoin.inference.loading import SubjectWithImages
    from viscoin.training.runtime import Runtime

T = TypeVar("T")

IN_FLOAT32: Any = {"precision": "32-true"}  # default of the options that make up a Runtime


@dataclass(frozen=True)
class Process:
    """One of the processes: its device, and Fabric's precision."""

    first: bool
    device: str
    precision: str
    compiled: bool

    def load(self, kind: str, model: Path | None, **options: Any) -> "SubjectWithImages":
        """`load_subject` on the device of this process, with a model that computes as was asked for."""
        from viscoin.inference.execution import prepare
        from viscoin.inference.loading import load_subject

        subject = self.in_turn(lambda: load_subject(kind, model, device=self.device, **options))
        prepare(subject.model, self.precision, self.compiled)
        return subject

    def in_turn(self, load: Callable[[], T]) -> T:
        """What may be downloaded, drawn or prepared at its first use; the first process goes first."""
        from stylegan2_ada.together import one_first

        return one_first(load)

    def results_folder(self, command: str, dataset: str, out: Path | None) -> AbstractContextManager[Results | None]:
        """The folder for the results in the first process, None in the others."""
        return results_folder(command, dataset, out) if self.first else nullcontext()


@contextmanager
def processes(runtime: "Runtime") -> Iterator[Process]:
    """Start all processes of a command, which end together; a mistake that ends all is told by the first one alone.

    Raises:
        Failed: another process is gone.
        ValueError: the runtime cannot be had, or models are not tested in its precision.
    """
    from stylegan2_ada.together import ProcessGone, together
    from viscoin.inference.execution import check_precision
    from viscoin.training.failures import Failed
    from viscoin.training.runtime import make_fabric

    check_precision(runtime.precision)
    fabric = make_fabric(runtime)
    device = str(fabric.device) if fabric.device.type == "cuda" else fabric.device.type
    first, precision = fabric.global_rank == 0, fabric.strategy.precision.precision
    try:
        with together():
            yield Process(first, device, precision, runtime.compile)
    except (ValueError, OSError) as error:
        if first or not getattr(error, "known_to_all", False):
            raise
        raise typer.Exit(0) from error  # what went wrong, and the exit code, are said by the first one
    except ProcessGone as gone:
        raise Failed(f"{gone}; run the same command again") from gone
