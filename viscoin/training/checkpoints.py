"""The checkpoints of a training: which one to resume from, and the best one."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from stylegan2_ada.distributed import from_first, rank
from stylegan2_ada.together import together
from viscoin.errors import Refused, reason_of
from viscoin.runs.run import Run

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Restorable(Protocol):
    """A task, as far as checkpoints are concerned."""

    def load_state_dict(self, state: Any) -> None: ...


def load_best(run: Run, task: Restorable) -> int:
    """Put the best checkpoint (the last one where no score was kept) back into the task; returns its step."""
    state = read_once(lambda: run.load_checkpoint("best") or run.last_checkpoint())
    if state is None:
        raise ValueError(f"{run.path} holds no checkpoint")
    with fitting(run):
        task.load_state_dict(state["task"])
        return int(state["step"])


def saved_state(run: Run, evaluate_every: int) -> dict[str, Any] | None:
    """The state to go on from, or None where the training has yet to begin.

    Raises:
        Refused: what the run holds shows that it was saved, but its checkpoints are gone.
    """
    state = run.last_checkpoint()
    if state is None:
        _check_unsaved(run, evaluate_every)
    elif state.get("best") is not None and not run.has_checkpoint("best"):
        logger.warning(
            "%s/best.pt is gone, and with it the weights of the best score so far; the best of the steps that are left "
            "is taken, and without any the last weights, which may be worse",
            run.checkpoints,
        )  # fmt: skip
        state |= {"best": None, "stale": 0}
    return state


def _check_unsaved(run: Run, evaluate_every: int) -> None:
    """Raise Refused where a training from step 0 on would overwrite one that went further.

    Every evaluation is followed by a checkpoint, so that metrics beyond the first one come from a run that had some.
    """
    step = max((line["step"] for line in run.metrics()), default=0)
    if run.model_path.exists() or step > evaluate_every:
        found = run.model_path.name if run.model_path.exists() else f"metrics up to step {step}"
        raise Refused(
            "out", run.path, f"holds {found}, but no checkpoint to go on from",
            f"restore that, choose another folder, or remove {run.model_path.name} and {run.metrics_path.name} to "
            "train anew",
        )  # fmt: skip
    if step:
        logger.warning("%s has no checkpoint and begins again; its metrics up to step %d are dropped", run.path, step)


@contextmanager
def fitting(run: Run) -> Iterator[None]:
    """What a checkpoint of other settings, or none of ours, may raise, as one line."""
    try:
        yield
    except (LookupError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise Refused(
            None, None, f"the checkpoint of {run.path} does not fit this recipe or version ({reason_of(error, 300)})",
            "give the settings that it was started with, or start a new run in another folder (`out`)",
        ) from error  # fmt: skip


def read_once(read: Callable[[], T]) -> T:
    """What the first process reads, in all of them: another node may see a file late, or have a disk of its own."""
    with together():  # where the first one cannot read, all say so
        found = read() if rank() == 0 else None
    return from_first(found)  # type: ignore[return-value]
