"""What a method costs: seconds an image, and memory beside the model's."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

RUNS = 5
BATCHES = (1, 16)
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
WAIT = 3600.0  # seconds that a process may take

Run = Callable[[], object]


@dataclass(frozen=True)
class Seconds:
    """Seconds an image at a batch size: median, fastest and slowest of the runs after a warm-up."""

    batch: int
    median: float
    fastest: float
    slowest: float


def seconds_per_image(run: Run, batch: int, device: torch.device | str = "cpu", runs: int = RUNS) -> Seconds:
    """Time a function that explains `batch` images, once to warm up and then `runs` times.

    The device is synchronised before each reading of the clock, as GPUs answer before they are done.
    """
    run()
    found = []
    for _ in range(runs):
        _synchronise(device)
        begun = time.perf_counter()
        run()
        _synchronise(device)
        found.append((time.perf_counter() - begun) / batch)
    return Seconds(batch, statistics.median(found), min(found), max(found))


def peak_memory(make: Callable[..., tuple[Run, str]], *arguments: Any) -> int | None:
    """Bytes that a function takes at its peak beyond what was taken before it ran, in a fresh process.

    Args:
        make: of a module, called with the arguments in the new process; it loads the model and gives the function, and
            the device that it runs on.

    Returns:
        None where the system does not tell (of the CPU, all but Linux).

    Raises:
        RuntimeError: the process failed, with what it said.
    """
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe()
    process = context.Process(target=_measure, args=(its, make, arguments), daemon=True)
    process.start()
    its.close()
    try:
        found = mine.recv() if mine.poll(WAIT) else "no answer"
    except EOFError:
        found = "the process ended without an answer"
    finally:
        process.join(1)
        process.kill()
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


def _measure(answer: Any, make: Callable[..., tuple[Run, str]], arguments: Sequence[Any]) -> None:
    try:
        run, device = make(*arguments)
        answer.send(_peak_of(run, device))
    except Exception as error:  # whatever it is, the other process says it
        answer.send(f"{type(error).__name__}: {error}")


def _peak_of(run: Run, device: str) -> int | None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    if not STATUS.exists():
        return None
    CLEAR.write_text("5")  # the highest mark is the present size from here on (proc(5))
    before = _resident("VmRSS")
    run()
    return max(0, _resident("VmHWM") - before)


def _resident(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _synchronise(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
