"""The one training loop: classifier, generator and ensemble differ by their task, not by the loop."""

import logging
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from viscoin.runs import Run
from viscoin.training.data import StepBatches
from viscoin.training.runtime import seed_step

logger = logging.getLogger(__name__)

AGREE_EVERY = 10  # steps between two looks at the stop signals of all processes


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop; its state is saved."""


class Task(Protocol):
    """What a training consists of, apart from the loop."""

    def step(self, images: Tensor, labels: Tensor, step: int) -> dict[str, Tensor]:
        """One optimisation step; returns scalars to log. Non-finite losses must go through `check_finite`."""

    def evaluate(self, step: int) -> tuple[dict[str, float], float | None]:
        """Metrics on held-out data, and the score by which the best model is kept (larger is better)."""

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
) -> dict[str, float]:
    """Train `task` for `steps` steps, going on from the run's last checkpoint if it has one.

    Writes metrics.jsonl, `checkpoints/last.pt` (every `save_seconds`, at each evaluation and when interrupted) and
    `checkpoints/best.pt`. SIGINT and SIGTERM save and raise `Interrupted`. Of several processes the first one
    evaluates, writes and speaks. Where there is no terminal for the bar, a line every `report_seconds` says how far it
    is. After `patience` evaluations in a row without a better score the training ends early (one process alone).

    Returns:
        The metrics of the last evaluation.
    """
    first = batches.rank == 0
    start, best, stale, meter = _restore(run, task, device, first)
    done = start
    results: dict[str, float] = {}
    saved_at = reported_at = began = time.monotonic()
    with _stop_signals(batches.world_size, device) as stop, _progress(steps, start, title, first) as bar:
        for step in range(start, steps):
            if patience is not None and stale >= patience:
                break
            images, labels = batches(step)
            seed_step(seed, step, batches.rank)
            meter.append(task.step(images.to(device), labels.to(device), step))
            done = step + 1
            if done % log_every == 0 or done == steps:
                means = _mean(meter, batches.world_size)
                meter = []
                if first:
                    run.log(done, {f"train.{key}": value for key, value in means.items()})
                bar.set_postfix({key: f"{value:.3g}" for key, value in list(means.items())[:4]}, refresh=False)
            if first and (done % evaluate_every == 0 or done == steps):
                results, score = task.evaluate(done)
                if results:
                    run.log(done, {f"validation.{key}": value for key, value in results.items()})
                    if bar.disable:
                        logger.info("%s %s", title, _summary(done, results))
                    else:
                        bar.write(_summary(done, results))
                if on_evaluate is not None:
                    on_evaluate(done)
                stale += score is not None
                if score is not None and (best is None or score > best):
                    best, stale = score, 0
                    run.save_checkpoint("best", {"step": done, "best": best, "task": task.state_dict()})
            bar.update()
            stopping, now = stop(done), time.monotonic()
            if first and bar.disable and now - reported_at > report_seconds:
                logger.info("%s", _pace(title, done, steps, batches.batch_size, (now - began) / (done - start)))
                reported_at = now
            if first and (stopping or done == steps or done % evaluate_every == 0 or now - saved_at > save_seconds):
                state = {"step": done, "best": best, "stale": stale, "meter": meter, "task": task.state_dict()}
                run.save_checkpoint("last", state)
                saved_at = time.monotonic()
            if stopping and done < steps:
                if batches.world_size > 1:
                    dist.barrier()  # none leaves before the first one has saved
                raise Interrupted(f"stopped at step {done} of {steps}; go on with --resume --out {run.path}")
    if done < steps:
        logger.info("%s: no better score in %d evaluations, ended early at step %d of %d", title, stale, done, steps)
    return results


def check_finite(terms: Mapping[str, Tensor], step: int) -> None:
    """Stop before a non-finite loss reaches the weights.

    Raises:
        ValueError: names the step and the terms.
    """
    if not torch.isfinite(torch.stack([value.detach().float() for value in terms.values()])).all():
        bad = [f"{name} = {float(value.detach())}" for name, value in terms.items() if not torch.isfinite(value)]
        raise ValueError(
            f"step {step}: {', '.join(bad)}; training stopped before the weights changed and the last good checkpoint "
            "is kept: --resume goes on from it. If that ends here again, start a new run with a lower learning rate"
        )


def load_best(run: Run, task: Task) -> int:
    """Put the best checkpoint (the last one where no score was kept) back into the task; returns its step."""
    state = run.load_checkpoint("best") or run.load_checkpoint("last")
    if state is None:
        raise ValueError(f"{run.path} holds no checkpoint")
    task.load_state_dict(state["task"])
    return state["step"]


def _restore(
    run: Run, task: Task, device: torch.device, first: bool
) -> tuple[int, float | None, int, list[dict[str, Tensor]]]:
    """Step, best score, evaluations since it and terms not logged yet, of the last checkpoint or of a new start."""
    state = run.load_checkpoint("last")
    if first:
        run.truncate_metrics(state["step"] if state else 0)
    if state is None:
        return 0, None, 0, []
    task.load_state_dict(state["task"])
    if first:
        logger.info("going on from step %d of %s", state["step"], run.path)
    meter = [{key: value.to(device) for key, value in terms.items()} for terms in state.get("meter", [])]
    return state["step"], state["best"], state.get("stale", 0), meter


def _mean(meter: list[dict[str, Tensor]], world_size: int = 1) -> dict[str, float]:
    """Means of the terms over steps and processes, without values that are not finite and terms that have no other."""
    means = {}
    for key in dict.fromkeys(key for values in meter for key in values):
        values = torch.stack([values[key].detach().float() for values in meter if key in values])
        finite = torch.isfinite(values)
        total = torch.stack([torch.where(finite, values, 0).sum(), finite.sum()])
        if world_size > 1:
            dist.all_reduce(total)
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
def _stop_signals(world_size: int, device: torch.device):  # type: ignore[no-untyped-def]
    """Yields a function that tells after a step whether SIGINT or SIGTERM came; the second one interrupts at once.

    Several processes stop together, so they agree now and then on whether one of them was asked to.
    """
    received: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    def stop(step: int) -> bool:
        if world_size == 1:
            return bool(received)
        if step % AGREE_EVERY:
            return False
        asked = torch.tensor(len(received), device=device)
        dist.all_reduce(asked)
        return bool(asked)

    try:
        before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals are somebody else's
        before = {}
    try:
        yield stop
    finally:
        for number, old in before.items():
            signal.signal(number, old)
