"""What the benchmarks share: options, clocks, counted flops, the peak of the machine, memory, and printing."""

import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from stylegan2_ada.memory import keep_freed_memory
from viscoin.errors import Refused

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Rounds = Annotated[int, typer.Option(min=1, help="Each round times everything once; medians are printed.")]
Seconds = Annotated[float, typer.Option(min=0.0, help="Least time for each figure and round.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads of all processes; 0 takes one for each core.")]
Device = Annotated[str, typer.Option(help="cpu or cuda; auto takes a GPU if there is one.")]


# --- programs


def program(function: Callable[..., None]) -> typer.Typer:
    """A command line whose one command is `function`."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(function)
    return app


def start(function: Callable[..., None]) -> None:
    """Run the program; a mistake of the user ends with one line and exit code 2."""
    try:
        program(function)()
    except (ValueError, OSError) as error:
        if os.environ.get("VISCOIN_TRACEBACK"):
            raise
        sentence = error.sentence(_option) if isinstance(error, Refused) else str(error)
        typer.echo(f"Error: {' '.join(sentence.split())}", err=True)
        sys.exit(2)


def _option(parameter: str) -> str:
    return f"--{parameter.replace('_', '-')}"


def chosen(parameter: str, text: str, known: Collection[str]) -> list[str]:
    """Comma-separated names, each of them `known`."""
    for name in text.split(","):
        if name not in known:
            raise Refused(parameter, name, "unknown", f"choose from {', '.join(known)}")
    return text.split(",")


def counts(parameter: str, text: str) -> list[int]:
    """Comma-separated whole numbers from 1."""
    for number in text.split(","):
        if not number.isdecimal() or int(number) < 1:
            raise Refused(parameter, number, "not a whole number from 1", "give one or several, as in 1,2")
    return [int(number) for number in text.split(",")]


def set_up(threads: int, device: str) -> str:
    """Set the number of threads, 0 for one on each core; returns the kind of device, "cpu" or "cuda"."""
    if device not in ("auto", "cpu", "cuda"):
        raise Refused("device", device, "unknown", "choose from auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise Refused("device", device, "PyTorch sees no CUDA device here", "choose cpu")
    keep_freed_memory()
    torch.set_num_threads(threads or cores())
    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))


def machine(kind: str) -> dict[str, Any]:
    """What the numbers were measured on."""
    name = torch.cuda.get_device_name() if kind == "cuda" else platform.processor() or platform.machine()
    return {"device": kind, "name": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def show(results: dict[str, Any], *tables: list[list[str]]) -> None:
    """JSON to standard output, tables for the eye to standard error."""
    if tables:
        typer.echo("\n\n".join(map(aligned, tables)), err=True)
    typer.echo(json.dumps(results, indent=2))


def aligned(lines: list[list[str]]) -> str:
    """Cells in columns, to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines)


# --- time and flops


@dataclass(frozen=True)
class Work:
    """One thing to time: `run` does it once on `images` images."""

    run: Callable[[], Any]
    images: int


def duration(work: Work, kind: str, least: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """Median seconds of one run after one to warm up: three runs or as many as `least` seconds take, less if slow."""
    times: list[float] = []
    work.run()
    while not times or sum(times) < least or (len(times) < 3 and sum(times) < 3 * least):
        synchronize(kind)
        begin = clock()
        work.run()
        synchronize(kind)
        times.append(clock() - begin)
    return statistics.median(times)


def synchronize(kind: str) -> None:
    """Wait for the GPU, if that is the device."""
    if kind == "cuda":
        torch.cuda.synchronize()


class FlopCounter(TorchDispatchMode):
    """torch's formulas without its FlopCounterMode, whose module hooks do not survive the double backward of R1."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        self.total += formula(*args, **(kwargs or {}), out_val=out) if formula else 0
        return out


def flops(work: Work) -> int:
    """Multiplications and additions of convolutions and matrix products, as torch counts them."""
    with FlopCounter() as counter:
        work.run()
    return counter.total


def peak_work(layout: torch.memory_format, kind: str, dtype: torch.dtype) -> Work:
    """A 3x3 convolution of 128 channels at 64x64, whose rate counts as the machine's peak."""
    n = 64 if kind == "cuda" else 4
    x = torch.randn(n, 128, 64, 64, device=kind, dtype=dtype).contiguous(memory_format=layout)
    conv = nn.Conv2d(128, 128, 3, padding=1, bias=False, device=kind, dtype=dtype).to(memory_format=layout)
    return Work(torch.no_grad()(lambda: conv(x)), n)


def peak_works(kind: str, dtype: str) -> dict[str, Work]:
    """One for each memory layout."""
    return {name: peak_work(layout, kind, DTYPES[dtype]) for name, layout in LAYOUTS.items()}


def rate(work: Work, kind: str, least: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """Flops in a second."""
    return flops(work) / duration(work, kind, least, clock)


# --- memory


def peak_since(kind: str) -> Callable[[], int | None]:
    """A function that tells the MiB which were added since at their peak: resident memory, or that of the GPU."""
    if kind == "cuda":
        return lambda: math.ceil(torch.cuda.max_memory_allocated() / 2**20)
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():  # Linux alone tells
        return lambda: None
    reset.write_text("5")  # forget the peak of imports
    before = kilobytes(status, "VmRSS")
    return lambda: math.ceil((kilobytes(status, "VmHWM") - before) / 1024)


def kilobytes(status: Path, name: str) -> int:
    """A line of a file in /proc."""
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))
