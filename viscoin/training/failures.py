"""Failures outside of a training: what is lost, and how to resume."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec

import torch.distributed as dist

from stylegan2_ada.distributed import world_size
from stylegan2_ada.together import ProcessGone
from viscoin.config import Recipe
from viscoin.errors import outside, reason_of
from viscoin.processes import is_first_process
from viscoin.runs.run import Run

P = ParamSpec("P")


class Failed(RuntimeError):
    """Something outside failed (a full disk, another process); what is saved is intact, and the run can be resumed."""


def recoverable(train: Callable[Concatenate[Recipe, Run, P], Path]) -> Callable[Concatenate[Recipe, Run, P], Path]:
    """A training function that reports failures before and after its steps as `fit` does of those within.

    Raises:
        Failed: the disk is full, or another process of this training is gone.
    """

    @wraps(train)
    def told(recipe: Recipe, run: Run, *args: P.args, **options: P.kwargs) -> Path:
        with failures(run if is_first_process() else None):  # the others learn in there which run it is
            return train(recipe, run, *args, **options)

    return told


@contextmanager
def failures(run: Run | None) -> Iterator[None]:
    """For external failures, report what is lost and how to resume the run."""
    path = run.path if run else None
    try:
        yield
    except Failed:
        raise
    except (OSError, ValueError) as error:
        if run is not None and run.is_gone():
            reason = f"{path} was moved, renamed or deleted while it trained; move it back, or take its new path"
        elif (found := outside(error)) is not None:
            reason = f"{found.strerror} ({found.filename or path}); make room"
        else:
            raise
    except RuntimeError as error:
        if world_size() == 1 or not _is_of_network(error):
            raise
        said = reason_of(error)[:200]
        reason = f"another process of this training is gone ({said}); see its messages above"
    else:
        return
    how = f"`resume` `out` {path}" if path else "the same command"
    raise Failed(f"{reason}, then resume with {how}: only the steps since its last save are lost")


def _is_of_network(error: RuntimeError) -> bool:
    """Whether it comes from the exchange with other processes; gloo has no exception of its own."""
    return isinstance(error, (dist.DistError, ProcessGone)) or any(
        word in str(error).lower() for word in ("gloo", "nccl", "connection closed", "connection reset", "timed out")
    )
