"""Follow a submitted job: the metrics of its runs, and its states in the queue."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from viscoin.runs.metrics import METRICS, followed_lines
from viscoin.slurm import queue
from viscoin.slurm.submission import Submission


@dataclass(frozen=True)
class News:
    """One line of text, about the metrics or about the job itself."""

    text: str
    about_job: bool


def follow_job(submission: Submission, watch: queue.Watch) -> Iterator[News]:
    """Yield what comes until the job has ended; then `watch` knows its exit code.

    Where the job failed or wrote no metrics, the last lines that it printed come at the end.

    Raises:
        Refused: SLURM reports nothing of the job.
    """
    logs = [run / METRICS for run in submission.runs]
    pause = min(1.0, queue.ASK)
    for lines, _ in followed_lines(logs, pause=pause):
        for line in lines:
            yield News(line, about_job=False)
        if watch.ended:  # already before these lines were read: there are no more
            break
        yield from _change(watch)
    while not watch.ended:  # the run has its model, the job ends a little later
        time.sleep(pause)
        yield from _change(watch)
    if not watch.completed or not any(log.is_file() for log in logs):
        yield from _end(submission.output(watch.number))


def _change(watch: queue.Watch) -> Iterator[News]:
    if text := watch.look():
        yield News(text, about_job=True)


def _end(output: Path, count: int = 10) -> Iterator[News]:
    """The last lines of what a job printed."""
    if output.is_file():
        yield News(f"{output} ends with", about_job=True)
        for text in output.read_text(errors="replace").splitlines()[-count:]:
            yield News(f"  {text}", about_job=True)
