"""The one training loop: classifier, generator and ensemble differ by their task, not by the loop."""

import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any, Concatenate, ParamSpec, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from stylegan2_ada.distributed import from_first, mean_over_processes, rank, sum_over_processes, world_size
from stylegan2_ada.together import ProcessGone, together
from viscoin.config import Recipe
from viscoin.errors import Refused, outside, reason_of
from viscoin.estimates import Estimate
from viscoin.processes import is_first_process
from viscoin.runs.run import Run
from viscoin.signals import Stopped, handled, holding
from viscoin.training.data import StepBatches
from viscoin.training.runtime import seed_step

logger = logging.getLogger(__name__)

P = ParamSpec("P")

AGREE_EVERY, AGREE_SECONDS = 10, 5.0  # at most so much between two looks at what all processes want


class Interrupted(Stopped):
    """The run was asked to stop; its state is saved. `signal` is the number of the signal that asked."""


class Failed(RuntimeError):
    """Something outside failed (a full disk, another process); what is saved is intact, and the run can be resumed."""


class Task(Protocol):
    """What a training consists of, apart from the loop."""

    def step(self, images: Tensor, labels: Tensor, step: int) -> dict[str, Tensor]:
        """One optimisation step; returns scalars to log. Non-finite losses must go through `check_finite`."""

    def evaluate(self, step: int) -> tuple[dict[str, float], float | None]:
        """Metrics on held-out data, and the score by which the best model is kept (larger is better).

        All processes call it and get the same."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def fit(
    run: Run,
    task: Task,
    batches: StepBatches,
    steps: int,
    *,
    seed: int,
    evaluate_every: int,
    device: torch.device,
    title: str,
    log_every: int = 50,
    save_seconds: float = 120,
    report_seconds: float = 60,
    on_evaluate: Callable[[int], None] | None = None,
    patience: int | None = None,
    shared_draws: bool = False,
) -> dict[str, float]:
    """Train `task` for `steps` steps, resuming from the run's last checkpoint if it has one.

    Writes metrics.jsonl, `checkpoints/last.pt` (every `save_seconds`, at each evaluation and when interrupted), the one
    before as `checkpoints/previous.pt`, which takes its place if that is damaged, and `checkpoints/best.pt`. SIGINT,
    SIGTERM, SIGHUP and SIGUSR1 save and raise `Interrupted`. All processes evaluate, the first one writes and speaks.
    Where there is no terminal for the bar, a line after the first steps says how long it will take, and one every
    `report_seconds` how far it is. After `patience` evaluations in a row without a better score the training ends
    early.

    Args:
        shared_draws: all processes sample the same random numbers in a step (the task shares them out).

    Returns:
        The metrics of the last evaluation.

    Raises:
        Interrupted: a signal came; all is saved.
        Failed: the disk is full, the run folder is gone, or another process of this training is.
        ValueError: another process trains in this folder, its checkpoint fits another recipe or is gone although the
            run was trained, or a loss is not finite.
    """
    with run.lock() if batches.rank == 0 else nullcontext(), _failures(run):
        loop = _Loop(run, task, batches, steps, device, title, evaluate_every, log_every, report_seconds)
        with _stop_signals() as received, _progress(steps, loop.done, title, loop.first) as bar:
            saved_at = time.monotonic()
            for step in range(loop.done, steps):
                if patience is not None and loop.stale >= patience:
                    break
                images, labels = batches(step)
                seed_step(seed, step, 0 if shared_draws else batches.rank)
                loop.count(task.step(images.to(device), labels.to(device), step), bar)
                due = loop.done % evaluate_every == 0 or loop.done == steps
                if due:
                    loop.evaluate(bar, on_evaluate)
                bar.update()
                stopping, late = loop.agree(max(received, default=0), time.monotonic() - saved_at > save_seconds)
                loop.report(bar)
                if stopping or due or late:
                    loop.save()
                    saved_at = time.monotonic()
                if loop.alone and received.count(signal.SIGINT) > 1:  # while it was saved; that is done now
                    stopping = signal.SIGINT
                if stopping:  # also after the last step: what would follow is another training, or long tests
                    raise Interrupted(
                        f"stopped at step {loop.done} of {steps}; resume with `resume` `out` {run.path}", stopping
                    )
        if loop.done < steps:
            logger.info(
                "%s: no better score in %d evaluations, ended early at step %d of %d",
                title, loop.stale, loop.done, steps,
            )  # fmt: skip
        return loop.results


class _Loop:
    """Where a training is, and what it says and writes of that."""

    def __init__(
        self, run: Run, task: Task, batches: StepBatches, steps: int, device: torch.device, title: str,
        evaluate_every: int, log_every: int, report_seconds: float,
    ) -> None:  # fmt: skip
        self.run, self.task, self.batches, self.steps, self.title = run, task, batches, steps, title
        self.log_every, self.report_seconds = log_every, report_seconds
        self.device, self.first, self.alone = device, batches.rank == 0, batches.world_size == 1
        self.best: float | None = None
        self.done = self.stale = 0
        self.meter: list[dict[str, Tensor]] = []  # terms not logged yet
        self.results: dict[str, float] = {}
        self._restore(evaluate_every)
        self.start, self.began = self.done, time.monotonic()
        self.reported_at = self.began
        self.estimate = Estimate(title, steps, "step", self.done)
        self.looked, self.look_at = (self.done, self.began), self.done  # at what all want: last time, and next step

    def _restore(self, evaluate_every: int) -> None:
        state = _read_once(lambda: _saved(self.run, evaluate_every))
        if state is None:
            if self.first:
                self.run.truncate_metrics(0)
            return
        with _fitting(self.run):
            self.task.load_state_dict(state["task"])
            self.done, self.best, self.stale = int(state["step"]), state["best"], state.get("stale", 0)
            self.meter = [
                {key: value.to(self.device) for key, value in terms.items()} for terms in state.get("meter", [])
            ]
        if self.first:
            self.run.truncate_metrics(self.done)
        if self.first and self.done >= self.steps:
            logger.info("%s: all %d steps of %s are done", self.title, self.done, self.run.path)
        elif self.first:
            logger.info("going on from step %d of %s", self.done, self.run.path)

    def count(self, terms: dict[str, Tensor], bar: tqdm) -> None:
        """One more step; its terms are logged now and then as means over steps and processes."""
        self.meter.append(terms)
        self.done += 1
        if self.done % self.log_every and self.done < self.steps:
            return
        means, self.meter = _mean(self.meter), []
        if self.first:
            self.run.log(self.done, {f"train.{key}": value for key, value in means.items()})
        bar.set_postfix({key: f"{value:.3g}" for key, value in list(means.items())[:4]}, refresh=False)

    def evaluate(self, bar: tqdm, on_evaluate: Callable[[int], None] | None) -> None:
        self.results, score = self.task.evaluate(self.done)
        if self.first:
            if self.results:
                self.run.log(self.done, {f"validation.{key}": value for key, value in self.results.items()})
                if bar.disable:
                    logger.info("%s %s", self.title, _summary(self.done, self.results))
                else:
                    bar.write(_summary(self.done, self.results))
            if on_evaluate is not None:
                on_evaluate(self.done)
        self.stale += score is not None
        if score is not None and (self.best is None or score > self.best):
            self.best, self.stale = score, 0
            if self.first:
                self.run.save_checkpoint("best", {"step": self.done, "best": score, "task": self.task.state_dict()})

    def agree(self, stopping: int, late: bool) -> tuple[int, bool]:
        """Signal to stop by (0: none) and whether to save: what one process wants all do, after the same step."""
        if self.alone:
            return stopping, late
        if self.done < min(self.look_at, self.steps):
            return 0, False
        (step, at), now = self.looked, time.monotonic()
        wishes = torch.tensor([stopping, late and self.first, (now - at) / (self.done - step)], device=self.device)
        dist.all_reduce(wishes, dist.ReduceOp.MAX)
        number, save, pace = wishes.tolist()
        self.looked = self.done, now
        self.look_at = self.done + max(1, int(AGREE_SECONDS / max(pace, AGREE_SECONDS / AGREE_EVERY)))
        return int(number), bool(save)

    def save(self) -> None:
        """Write the state of all processes, which differ in nothing but the terms not logged yet."""
        meter = [{key: mean_over_processes(value) for key, value in terms.items()} for terms in self.meter]
        state = {"step": self.done, "best": self.best, "stale": self.stale, "meter": meter}
        if self.first:
            self.run.save_checkpoint("last", state | {"task": self.task.state_dict()}, keep="previous")
        if not self.alone:
            dist.barrier()  # none leaves before the first one has saved

    def report(self, bar: tqdm) -> None:
        now = time.monotonic()
        if not self.first or not bar.disable:
            return
        self.estimate.count()
        if now - self.reported_at > self.report_seconds:
            pace = (now - self.began) / (self.done - self.start)
            logger.info("%s", _pace(self.title, self.done, self.steps, self.batches.batch_size, pace))
            self.reported_at = now


def check_finite(terms: Mapping[str, Tensor], step: int) -> None:
    """Stop before a non-finite loss reaches the weights.

    Raises:
        ValueError: names the step and the terms.
    """
    if not torch.isfinite(torch.stack([value.detach().float() for value in terms.values()])).all():
        bad = [f"{name} = {float(value.detach())}" for name, value in terms.items() if not torch.isfinite(value)]
        raise Refused(
            None, None,
            f"step {step}: {', '.join(bad)}; training stopped before the weights changed and the last good checkpoint "
            "is saved",
            "`resume` starts from that; if it ends here again, start a new run with a lower learning rate",
        )  # fmt: skip


def load_best(run: Run, task: Task) -> int:
    """Put the best checkpoint (the last one where no score was kept) back into the task; returns its step."""
    state = _read_once(lambda: run.load_checkpoint("best") or run.last_checkpoint())
    if state is None:
        raise ValueError(f"{run.path} holds no checkpoint")
    with _fitting(run):
        task.load_state_dict(state["task"])
        return int(state["step"])


def _saved(run: Run, evaluate_every: int) -> dict[str, Any] | None:
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
def _fitting(run: Run) -> Iterator[None]:
    """What a checkpoint of other settings, or none of ours, may raise, as one line."""
    try:
        yield
    except (LookupError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise Refused(
            None, None, f"the checkpoint of {run.path} does not fit this recipe or version ({reason_of(error, 300)})",
            "give the settings that it was started with, or start a new run in another folder (`out`)",
        ) from error  # fmt: skip


def _read_once(read: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
    """What the first process reads, in all of them: another node may see a file late, or have a disk of its own."""
    with together():  # where the first one cannot read, all say so
        state = read() if rank() == 0 else None
    return from_first(state)


def _mean(meter: list[dict[str, Tensor]]) -> dict[str, float]:
    """Means of the terms over steps and processes, without values that are not finite and terms that have no other."""
    means = {}
    for key in dict.fromkeys(key for values in meter for key in values):
        values = torch.stack([values[key].detach().float() for values in meter if key in values])
        finite = torch.isfinite(values)
        total = sum_over_processes(torch.stack([torch.where(finite, values, 0).sum(), finite.sum()]))
        if total[1] > 0:
            means[key] = float(total[0] / total[1])
    return means


def _summary(step: int, results: Mapping[str, float]) -> str:
    return f"step {step}: " + ", ".join(f"{key} {value:.4g}" for key, value in results.items())


def _pace(title: str, done: int, steps: int, batch_size: int, seconds: float) -> str:
    """How far a training is, and how long the rest takes at `seconds` per step."""
    kimg, pace = done * batch_size / 1000, seconds * 1000 / batch_size
    left = timedelta(seconds=round((steps - done) * seconds))
    return f"{title}: step {done} of {steps}, {kimg:.1f} kimg, {pace:.1f} s/kimg, {left} left"


def _progress(steps: int, start: int, title: str, first: bool) -> tqdm:
    hidden = not first or not sys.stderr.isatty()
    return tqdm(total=steps, initial=start, desc=title, unit="step", disable=hidden, smoothing=0.05)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Yields the list of the signals to stop that came so far; a second Ctrl-C interrupts at once, but for a save.

    Not a second SIGTERM: of SLURM's preemption each process gets two, from srun and from the daemon.
    """
    received: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT and not holding():
            raise KeyboardInterrupt
        received.append(number)

    with handled(handler, hold=False):
        yield received


def recoverable(train: Callable[Concatenate[Recipe, Run, P], Path]) -> Callable[Concatenate[Recipe, Run, P], Path]:
    """A training function that reports failures before and after its steps as `fit` does of those within.

    Raises:
        Failed: the disk is full, or another process of this training is gone.
    """

    @wraps(train)
    def told(recipe: Recipe, run: Run, *args: P.args, **options: P.kwargs) -> Path:
        with _failures(run if is_first_process() else None):  # the others learn in there which run it is
            return train(recipe, run, *args, **options)

    return told


@contextmanager
def _failures(run: Run | None) -> Iterator[None]:
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
