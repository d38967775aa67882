"""The one training loop: classifier, generator and ensemble differ by their task, not by the loop."""

import logging
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from viscoin.runs import Run
from viscoin.training.data import StepBatches
from viscoin.training.runtime import seed_step

logger = logging.getLogger(__name__)


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
    on_evaluate: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Train `task` for `steps` steps, going on from the run's last checkpoint if it has one.

    Writes metrics.jsonl, `checkpoints/last.pt` (every `save_seconds`, at each evaluation and when interrupted) and
    `checkpoints/best.pt`. SIGINT and SIGTERM save and raise `Interrupted`.

    Returns:
        The metrics of the last evaluation.
    """
    start, best, meter = _restore(run, task, device)
    results: dict[str, float] = {}
    saved_at = time.monotonic()
    with _stop_signals() as stop, _progress(steps, start, title) as bar:
        for step in range(start, steps):
            images, labels = batches(step)
            seed_step(seed, step, batches.rank)
            meter.append(task.step(images.to(device), labels.to(device), step))
            done = step + 1
            if done % log_every == 0 or done == steps:
                means = _mean(meter)
                meter = []
                run.log(done, {f"train.{key}": value for key, value in means.items()})
                bar.set_postfix({key: f"{value:.3g}" for key, value in list(means.items())[:4]}, refresh=False)
            if done % evaluate_every == 0 or done == steps:
                results, score = task.evaluate(done)
                if results:
                    run.log(done, {f"validation.{key}": value for key, value in results.items()})
                    if bar.disable:
                        logger.info("%s %s", title, _summary(done, results))
                    else:
                        bar.write(_summary(done, results))
                if on_evaluate is not None:
                    on_evaluate(done)
                if score is not None and (best is None or score > best):
                    best = score
                    run.save_checkpoint("best", {"step": done, "best": best, "task": task.state_dict()})
            bar.update()
            stopping = stop()
            if stopping or done == steps or done % evaluate_every == 0 or time.monotonic() - saved_at > save_seconds:
                state = {"step": done, "best": best, "meter": meter, "task": task.state_dict()}
                run.save_checkpoint("last", state)
                saved_at = time.monotonic()
            if stopping and done < steps:
                raise Interrupted(f"stopped at step {done} of {steps}; go on with --resume --out {run.path}")
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


def _restore(run: Run, task: Task, device: torch.device) -> tuple[int, float | None, list[dict[str, Tensor]]]:
    """Step, best score and terms not logged yet, of the last checkpoint or of a start from nothing."""
    state = run.load_checkpoint("last")
    run.truncate_metrics(state["step"] if state else 0)
    if state is None:
        return 0, None, []
    task.load_state_dict(state["task"])
    logger.info("going on from step %d of %s", state["step"], run.path)
    meter = [{key: value.to(device) for key, value in terms.items()} for terms in state.get("meter", [])]
    return state["step"], state["best"], meter


def _mean(meter: list[dict[str, Tensor]]) -> dict[str, float]:
    keys = dict.fromkeys(key for values in meter for key in values)
    return {key: float(torch.stack([v[key].detach().float() for v in meter if key in v]).mean()) for key in keys}


def _summary(step: int, results: Mapping[str, float]) -> str:
    return f"step {step}: " + ", ".join(f"{key} {value:.4g}" for key, value in results.items())


def _progress(steps: int, start: int, title: str) -> tqdm:
    return tqdm(total=steps, initial=start, desc=title, unit="step", disable=not sys.stderr.isatty(), smoothing=0.05)


@contextmanager
def _stop_signals():  # type: ignore[no-untyped-def]
    """Yields a function that tells whether SIGINT or SIGTERM came; the second one interrupts at once."""
    received: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    try:
        before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals are somebody else's
        before = {}
    try:
        yield lambda: bool(received)
    finally:
        for number, old in before.items():
            signal.signal(number, old)
