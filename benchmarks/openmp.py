"""What waiting OpenMP threads cost f, as a table and JSON: python benchmarks/openmp.py."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor as Pool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from unittest.mock import patch

import torch
import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import timing
from viscoin.models.files import ASSETS, load_model

VARIABLE = "OMP_WAIT_POLICY"
POLICIES = (None, "PASSIVE")
BUSY = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass"  # ends with its parent


class Passes(NamedTuple):
    """Milliseconds of a forward pass: median on the wall, mean of the CPU."""

    wall: float
    cpu: float


def openmp(
    busy: Annotated[int | None, typer.Option(min=1, help="Busy processes beside it; default: one a core.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of f.")] = 2,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 128,
    rounds: Annotated[int, typer.Option(min=1, help="Fresh processes for each figure; medians are printed.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.0, help="Least time of the forward passes in a process.")] = 2.0,
) -> None:
    """Forward passes of the shipped classifier with and without OMP_WAIT_POLICY=PASSIVE, alone and beside others.

    "Alone" is only true if nothing else runs; the load that the machine had at the start is printed.
    """
    results: dict[str, Any] = {"machine": timing.machine("cpu") | {"threads": threads}, "cores": timing.cores()}
    results |= {"load": round(os.getloadavg()[0], 2), "batch_size": batch_size, "rounds": rounds, "passes": []}
    for others in (0, busy or timing.cores()):
        passes: dict[str | None, list[Passes]] = {policy: [] for policy in POLICIES}
        with busy_processes(others):
            for _ in range(rounds):
                for policy in POLICIES:
                    passes[policy].append(in_fresh_process(policy, threads, batch_size, seconds))
        for policy, every in passes.items():
            results["passes"].append({"busy": others, "policy": policy} | summary(every))
    timing.show(results, table(results["passes"]))


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """Processes that compute all the while."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY, str(os.getpid())]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def in_fresh_process(policy: str | None, threads: int, batch_size: int, seconds: float) -> Passes:
    """OpenMP reads the variable when it is loaded, so that each setting needs a process of its own."""
    with patch.dict(os.environ):
        os.environ.pop(VARIABLE, None)
        os.environ |= {} if policy is None else {VARIABLE: policy}
        with Pool(1, get_context("spawn")) as pool:
            return pool.submit(forward_passes, threads, batch_size, seconds).result()


def forward_passes(threads: int, batch_size: int, seconds: float) -> Passes:
    """As many as take so long, after one to warm up."""
    timing.set_up(threads, "cpu")
    f = load_model(ASSETS / "birds" / "classifier.safetensors", "classifier").model
    images = torch.rand(batch_size, 3, f.resolution, f.resolution) * 2 - 1
    images = images.contiguous(memory_format=torch.channels_last)
    times: list[float] = []
    with torch.inference_mode():
        f(images)
        cpu = time.process_time()
        while not times or sum(times) < seconds:
            begin = time.perf_counter()
            f(images)
            times.append(time.perf_counter() - begin)
    return Passes(1e3 * statistics.median(times), 1e3 * (time.process_time() - cpu) / len(times))


def summary(every: list[Passes]) -> dict[str, float]:
    """Medians over the processes, and the fastest of them."""
    walls, cpus = zip(*every)
    return {
        "milliseconds": round(statistics.median(walls), 2),
        "milliseconds_min": round(min(walls), 2),
        "cpu_milliseconds": round(statistics.median(cpus), 2),
    }


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """A line for each setting: busy processes, policy, and milliseconds of a pass."""
    lines = [["busy", VARIABLE, "ms", "min", "CPU ms"]]
    for row in rows:
        figures = [f"{row[key]:.1f}" for key in ("milliseconds", "milliseconds_min", "cpu_milliseconds")]
        lines.append([str(row["busy"]), row["policy"] or "-", *figures])
    return lines


if __name__ == "__main__":
    timing.start(openmp)
