"""Speed and memory of the ensemble's training step, as tables and JSON: python benchmarks/step.py."""

import math
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor as Pool
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import timing
from benchmarks.timing import Device, Rounds, Seconds, Threads
from benchmarks.training_step import OUTSIDE, StepCase, TrainingStep, step_parts


def step(
    sizes: Annotated[
        str, typer.Option("--size", metavar="birds,256", help="What to measure; any recipe will do.")
    ] = "birds",
    dtypes: Annotated[str, typer.Option(metavar="float32,bfloat16", help="bfloat16 is autocast.")] = "float32,bfloat16",
    processes: Annotated[str, typer.Option(metavar="1,2", help="Processes that share a batch, by gloo.")] = "1",
    compiled: Annotated[bool, typer.Option("--compile", help="Also with f, Psi and G compiled.")] = False,
    rounds: Rounds = 3,
    seconds: Seconds = 3.0,
    threads: Threads = 0,
    device: Device = "auto",
) -> None:
    """A training step of the ensemble, by part, beside the convolution peak; random weights and images.

    With --threads 1 on the CPU the clock is that of the process, so that a busy machine does not count.
    """
    cases = [
        StepCase(size, dtype, mode, count)
        for size in sizes.split(",")
        for dtype in timing.chosen("dtypes", dtypes, timing.DTYPES)
        for mode in ("eager", "compiled")[: 1 + compiled]
        for count in timing.counts("processes", processes)
    ]
    kind = timing.set_up(threads, device)
    clock = time.process_time if kind == "cpu" and threads == 1 else time.perf_counter
    rows = measured(cases, kind, rounds, seconds, clock)
    results: dict[str, Any] = {"machine": timing.machine(kind), "rounds": rounds, "clock": clock.__name__, "steps": []}
    for case in cases:
        alone = case.processes == 1
        memory = step_memory(case, kind) if alone else max(row["memory"] for row in rows[case])
        results["steps"].append(step_report(case, rows[case]) | {"peak_memory_mib": memory})
    timing.show(results, *step_tables(results["steps"]))


def measured(
    cases: list[StepCase], kind: str, rounds: int, seconds: float, clock: Callable[[], float]
) -> dict[StepCase, list[dict[str, Any]]]:
    """The rounds of all cases, each with the rate of the peak at that time."""
    works = {case.dtype: timing.peak_works(kind, case.dtype).values() for case in cases}
    steps = {case: TrainingStep(case, kind) for case in cases if case.processes == 1}
    rows: dict[StepCase, list[dict[str, Any]]] = {case: [] for case in cases}
    for _ in range(rounds):
        for case, step in steps.items():
            peak = max(timing.rate(work, kind, seconds / 3, clock) for work in works[case.dtype])
            rows[case].append(step.measure(seconds, clock) | {"peak": peak})
    for case in cases:
        if case.processes > 1:
            shared = shared_steps(case, kind, rounds, seconds)
            peak = max(timing.rate(work, kind, seconds / 3) for work in works[case.dtype])
            rows[case] = [row | {"peak": peak} for row in shared]
    return rows


def shared_steps(case: StepCase, kind: str, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """The rounds of several processes, each with its share of the threads, as the first one sees them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = max(1, torch.get_num_threads() // case.processes)
    with Pool(case.processes, get_context("spawn")) as pool:
        work = [
            pool.submit(_shared_steps, rank, port, case, kind, rounds, seconds, threads)
            for rank in range(case.processes)
        ]
        found = [future.result() for future in work]
    for row, *others in zip(*found, strict=True):
        row["flops"] += sum(other["flops"] for other in others)
        row["memory"] = sum(each["memory"] or 0 for each in (row, *others)) or None
    return found[0]


def _shared_steps(
    rank: int, port: int, case: StepCase, kind: str, rounds: int, seconds: float, threads: int
) -> list[dict[str, Any]]:
    place = {"LOCAL_RANK": rank, "RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": case.processes}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(threads)
    peak = timing.peak_since(kind)
    step = TrainingStep(case, kind)
    memory = peak()
    rows: list[dict[str, Any]] = []
    for _ in range(rounds):  # the same number of steps in all processes
        start = time.perf_counter()
        step.run()
        count = max(3, math.ceil(seconds / (time.perf_counter() - start)))
        count = int(step.task.fabric.broadcast(count))
        start = time.perf_counter()
        for _ in range(count):
            step.run()
        timing.synchronize(kind)
        taken = (time.perf_counter() - start) / count
        row: dict[str, Any] = {
            "images": step.images,
            "first_seconds": step.first_seconds,
            "memory": memory,
            "parts": {},
        }
        rows.append(row | {"seconds": taken, "flops": step.flops()})
    return rows


def step_memory(case: StepCase, kind: str) -> int | None:
    """MiB of a step with its networks and optimiser, in a fresh process."""
    with Pool(1, get_context("spawn")) as pool:
        return pool.submit(_step_memory, case, kind, torch.get_num_threads()).result()


def _step_memory(case: StepCase, kind: str, threads: int) -> int | None:
    timing.set_up(threads, kind)
    peak = timing.peak_since(kind)
    TrainingStep(case, kind)
    return peak()


def step_report(case: StepCase, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds; the parts in milliseconds and as shares of the step."""
    results: dict[str, Any] = case._asdict() | {"batch": rows[0]["images"]}
    results["images_per_second"] = round(statistics.median(row["images"] / row["seconds"] for row in rows), 2)
    results["milliseconds"] = round(statistics.median(1e3 * row["seconds"] for row in rows), 1)
    results["gflop_per_image"] = round(rows[0]["flops"] / rows[0]["images"] / 1e9, 4)
    results["peak_gflops"] = round(statistics.median(row["peak"] / 1e9 for row in rows), 1)
    shares = [row["flops"] / row["seconds"] / row["peak"] for row in rows]
    results["fraction_of_peak"] = round(statistics.median(shares), 3)
    results["first_step_seconds"] = round(rows[0]["first_seconds"], 1)
    if not rows[0]["parts"]:
        return results
    parts = {part: statistics.median(row["parts"].get(part, 0) for row in rows) for part in step_parts()}
    whole = sum(parts.values())
    results["parts_milliseconds"] = {part: round(1e3 * taken, 2) for part, taken in parts.items()}
    results["share_outside_networks"] = round(
        sum(parts[part] for part in step_parts() if part.removesuffix(" backward") in OUTSIDE) / whole, 4
    )
    return results


def step_tables(results: list[dict[str, Any]]) -> tuple[list[list[str]], list[list[str]]]:
    """A line for each way to take the step, and one for the share of each part in it."""
    columns = ["size", "dtype", "mode", "processes", "images/s", "of peak", "MiB", "first step s", "outside networks"]
    lines = [columns]
    for row in results:
        outside = row.get("share_outside_networks")
        line = [row["size"], row["dtype"], row["mode"], str(row["processes"]), f"{row['images_per_second']:.1f}"]
        line += [f"{row['fraction_of_peak']:.2f}", str(row["peak_memory_mib"]), f"{row['first_step_seconds']:.0f}"]
        lines.append([*line, "-" if outside is None else f"{outside:.1%}"])
    split = [row for row in results if "parts_milliseconds" in row]
    parts = [["ms", *(f"{row['size']} {row['dtype']} {row['mode']}" for row in split)]]
    for part in step_parts():
        parts.append([part, *(f"{row['parts_milliseconds'][part]:.1f}" for row in split)])
    return lines, parts


if __name__ == "__main__":
    timing.start(step)
