"""The one training loop: classifier, generator and ensemble differ by their task, not by the loop."""

import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from types import FrameType
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from stylegan2_ada.distributed import mean_over_processes
from viscoin.errors import Refused
from viscoin.estimates import Estimate
from viscoin.runs.run import Run
from viscoin.runs.status import StatusFile
from viscoin.signals import Stopped, handled, holding
from viscoin.training.checkpoints import fitting, read_once, saved_state
from viscoin.training.data import StepBatches
from viscoin.training.failures import failures
from viscoin.training.runtime import seed_step
from viscoin.training.steering import LOOK_EVERY, Steering

logger = logging.getLogger(__name__)

AGREE_EVERY, AGREE_SECONDS = 10, 5.0  # at most so much between two looks at what all processes want


class Interrupted(Stopped):
    """The run was asked to stop; its state is saved. `signal` is the number of the signal that asked."""


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
    early. Between two steps, commands in the inbox of the run folder are obeyed (see `viscoin.runs.control`).

    Args:
        shared_draws: all processes sample the same random numbers in a step (the task shares them out).

    Returns:
        The metrics of the last evaluation.

    Raises:
        Interrupted: a signal or the command `stop` came; all is saved.
        Failed: the disk is full, the run folder is gone, or another process of this training is.
        ValueError: another process trains in this folder, its checkpoint fits another recipe or is gone although the
            run was trained, or a loss is not finite.
    """
    with run.lock() if batches.rank == 0 else nullcontext(), failures(run):
        loop = _Loop(run, task, batches, steps, device, title, evaluate_every, log_every, report_seconds, patience)
        loop.on_evaluate = on_evaluate
        with _stop_signals() as loop.received, _progress(steps, loop.done, title, loop.first) as loop.bar, loop.told():
            loop.interrupt(loop.steer(asked=True))
            saved_at = time.monotonic()
            while not loop.over:
                images, labels = batches(loop.done)
                seed_step(seed, loop.done, 0 if shared_draws else batches.rank)
                loop.count(task.step(images.to(device), labels.to(device), loop.done))
                due = loop.done % evaluate_every == 0 or loop.done == steps
                if due:
                    loop.evaluate()
                loop.bar.update()
                stopping, late, asked = loop.agree(
                    max(loop.received, default=0), time.monotonic() - saved_at > save_seconds
                )
                loop.report()
                if stopping or due or late:
                    loop.save()
                    saved_at = time.monotonic()
                if loop.alone and loop.received.count(signal.SIGINT) > 1:  # while it was saved; that is done now
                    stopping = signal.SIGINT
                # also after the last step: what would follow is another training, or long tests
                loop.interrupt(stopping or loop.steer(asked, due))
            loop.conclude()
        return loop.results


class _Loop:
    """Where a training is, and what it says and writes of that."""

    def __init__(
        self, run: Run, task: Task, batches: StepBatches, steps: int, device: torch.device, title: str,
        evaluate_every: int, log_every: int, report_seconds: float, patience: int | None = None,
    ) -> None:  # fmt: skip
        self.run, self.task, self.batches, self.steps, self.title = run, task, batches, steps, title
        self.log_every, self.report_seconds, self.patience = log_every, report_seconds, patience
        self.device, self.first, self.alone = device, batches.rank == 0, batches.world_size == 1
        self.best: float | None = None
        self.done = self.stale = 0
        self.evaluated = -1  # the last step that was evaluated
        self.meter: list[dict[str, Tensor]] = []  # terms not logged yet
        self.results: dict[str, float] = {}
        self.bar, self.received = tqdm(disable=True), list[int]()
        self.on_evaluate: Callable[[int], None] | None = None
        self.steering, self.status = Steering(run, task, steps), StatusFile(run)
        self._restore(evaluate_every)
        self.start, self.began = self.done, time.monotonic()
        self.pace: float | None = None  # seconds a step
        self.reported_at = self.began
        self.estimate = Estimate(title, steps, "step", self.done)
        self.looked, self.look_at = (self.done, self.began), self.done  # at what all want: last time, and next step

    def _restore(self, evaluate_every: int) -> None:
        state = read_once(lambda: saved_state(self.run, evaluate_every))
        if state is None:
            if self.first:
                self.run.truncate_metrics(0)
            return
        with fitting(self.run):
            self.task.load_state_dict(state["task"])
            self.done, self.best, self.stale = int(state["step"]), state["best"], state.get("stale", 0)
            self.evaluated = state.get("evaluated", self.done)
            self.meter = [
                {key: value.to(self.device) for key, value in terms.items()} for terms in state.get("meter", [])
            ]
        self.steering.restore(self.done, state.get("obeyed", 0))
        if self.first:  # without what a command had it log after the checkpoint
            again = ("train.",) * bool(self.meter) + ("validation.",) * (self.evaluated != self.done)
            self.run.truncate_metrics(self.done, again)
        if self.first and self.done >= self.steps:
            logger.info("%s: all %d steps of %s are done", self.title, self.done, self.run.path)
        elif self.first:
            logger.info("going on from step %d of %s", self.done, self.run.path)

    @property
    def over(self) -> bool:
        """Whether there is nothing left to train."""
        return self.done >= self.steps or self.steering.finished or self._out_of_patience()

    def _out_of_patience(self) -> bool:
        patience = self.steering.values.get("early_stopping", self.patience)
        return patience is not None and self.stale >= patience

    def count(self, terms: dict[str, Tensor]) -> None:
        """One more step; its terms are logged now and then as means over steps and processes."""
        self.meter.append(terms)
        self.done += 1
        if self.done % self.log_every == 0 or self.done >= self.steps:
            self._log()

    def _log(self) -> None:
        means, self.meter = _mean(self.meter), []
        if self.first and means:
            self._write({f"train.{key}": value for key, value in means.items()})
        self.bar.set_postfix({key: f"{value:.3g}" for key, value in list(means.items())[:4]}, refresh=False)

    def _write(self, values: dict[str, float]) -> None:
        self.run.log(self.done, values)
        self.status.status.metrics.update(values)

    def evaluate(self, planned: bool = True) -> None:
        """Evaluate, and keep the weights if they are the best; only a planned one counts against the patience."""
        self.results, score = self.task.evaluate(self.done)
        self.evaluated = self.done
        if self.first:
            if self.results:
                self._write({f"validation.{key}": value for key, value in self.results.items()})
                if self.bar.disable:
                    logger.info("%s %s", self.title, _summary(self.done, self.results))
                else:
                    self.bar.write(_summary(self.done, self.results))
            if self.on_evaluate is not None:
                self.on_evaluate(self.done)
        self.stale += score is not None and planned
        if score is not None and (self.best is None or score > self.best):
            self.best, self.stale = score, 0
            if self.first:
                self.run.save_checkpoint("best", {"step": self.done, "best": score, "task": self.task.state_dict()})

    def agree(self, stopping: int, late: bool) -> tuple[int, bool, bool]:
        """Signal to stop by (0: none), whether to save, and whether a command waits.

        What one process wants all do, after the same step.
        """
        if self.alone:
            return stopping, late, self.steering.asks()
        if self.done < min(self.look_at, self.steps):
            return 0, False, False
        (step, at), now = self.looked, time.monotonic()
        *wishes, pace = self._most(stopping, late and self.first, self.steering.asks(), (now - at) / (self.done - step))
        self.looked = self.done, now
        self.look_at = self.done + max(1, int(AGREE_SECONDS / max(pace, AGREE_SECONDS / AGREE_EVERY)))
        return int(wishes[0]), bool(wishes[1]), bool(wishes[2])

    def _most(self, *wishes: float) -> list[float]:
        """The largest of each over all processes."""
        if self.alone:
            return list(wishes)
        shared = torch.tensor([float(wish) for wish in wishes], device=self.device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return shared.tolist()

    def steer(self, asked: bool, evaluated: bool = False) -> int:
        """Obey the commands for the step that comes next, and wait while they say pause.

        Args:
            asked: whether any may have come.
            evaluated: whether the plan had an evaluation here.

        Returns:
            The signal to stop by, or 0.
        """
        if self.done >= self.steps or self.steering.finished:
            return 0
        stopping = self._obey(asked)
        self.steering.paused |= evaluated and self.steering.at_evaluations and not self.over
        if stopping or not self.steering.paused:
            return stopping
        self.save()
        if self.first:
            logger.info("%s: paused at step %d of %d", self.title, self.done, self.steps)
        paused_at = time.monotonic()
        self._tell(now=True)
        while self.steering.paused and not stopping:
            self._tell()
            time.sleep(LOOK_EVERY)  # nobody waits inside of an exchange, which has its limit and keeps a GPU busy
            number, asks = self._most(max(self.received, default=0), self.steering.asks())
            stopping = int(number) or self._obey(bool(asks))
        self._tell(now=True)
        self.began += time.monotonic() - paused_at
        if stopping:
            self.save()
        elif self.first and not self.steering.finished:
            logger.info("%s: continues", self.title)
        return stopping

    def _obey(self, asked: bool) -> int:
        """Do what the commands for the next step say; returns the signal to stop by, or 0."""
        stopping = 0
        for entry in self.steering.due(self.done, asked):
            if entry.command in ("evaluate", "finish"):
                if entry.command == "finish":
                    self._log()
                if self.evaluated != self.done:
                    self.evaluate(planned=False)
                self.save()
            elif entry.command == "stop":
                self.save()
                stopping = int(signal.SIGINT)
            self._tell(now=True)
        return stopping

    def interrupt(self, stopping: int) -> None:
        """Raise Interrupted where a signal to stop by is given."""
        if stopping:
            raise Interrupted(
                f"stopped at step {self.done} of {self.steps}; resume with `resume` `out` {self.run.path}", stopping
            )

    def conclude(self) -> None:
        """Say why the training ended before its last step, and refuse what came too late for it."""
        self.steering.refuse_rest(self.done)
        if self.done >= self.steps:
            return
        why = "as it was told to" if self.steering.finished else f"no better score in {self.stale} evaluations"
        logger.info("%s: %s, ended early at step %d of %d", self.title, why, self.done, self.steps)

    def save(self) -> None:
        """Write the state of all processes, which differ in nothing but the terms not logged yet."""
        meter = [{key: mean_over_processes(value) for key, value in terms.items()} for terms in self.meter]
        state = {
            "step": self.done, "best": self.best, "stale": self.stale, "meter": meter, "evaluated": self.evaluated,
            "obeyed": self.steering.obeyed if self.steering.step == self.done else 0,
        }  # fmt: skip
        if self.first:
            self.run.save_checkpoint("last", state | {"task": self.task.state_dict()}, keep="previous")
        if not self.alone:
            dist.barrier()  # none leaves before the first one has saved

    def report(self) -> None:
        """Say now and then how far the training is."""
        now = time.monotonic()
        self.pace = (now - self.began) / (self.done - self.start)
        self._tell()
        if not self.first or not self.bar.disable:
            return
        self.estimate.count()
        if now - self.reported_at > self.report_seconds:
            logger.info("%s", _pace(self.title, self.done, self.steps, self.batches.batch_size, self.pace))
            self.reported_at = now

    def told(self) -> AbstractContextManager[None]:
        """Keep status.json up to date within the block."""
        self._tell(now=True)
        return self.status.ending(self._facts) if self.first else nullcontext()

    def _tell(self, now: bool = False) -> None:
        if self.first and (now or self.status.due()):
            self.status.write("paused" if self.steering.paused else "running", **self._facts())

    def _facts(self) -> dict[str, Any]:
        left = None if self.pace is None else (self.steps - self.done) * self.pace
        facts = {"step": self.done, "steps": self.steps, "pace": self.pace, "left": left}
        penalties = self.steering.penalties
        return facts | {"steerable": self.steering.present(), "penalties": penalties and penalties.facts()}


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


def _mean(meter: list[dict[str, Tensor]]) -> dict[str, float]:
    """Means of the terms over processes, as a checkpoint keeps them, then over steps; only of what is finite."""
    means = {}
    for key in dict.fromkeys(key for values in meter for key in values):
        values = mean_over_processes(torch.stack([values[key].detach().float() for values in meter if key in values]))
        finite = values[torch.isfinite(values)]
        if len(finite):
            means[key] = float(finite.mean())
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
