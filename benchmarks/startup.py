"""Time to the first output of short commands, as a table and JSON: python benchmarks/startup.py."""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import timing

MAIN = str(Path(__file__).parents[1] / "main.py")
COMMANDS = {
    "torch": ["-c", "import torch"],
    "help": [MAIN, "--help"],
    "logs": [MAIN, "logs", "--logs-path", "run"],
    "to-pickle": [MAIN, "to-pickle", "--output", "viscoin.pkl"],
    "data": [MAIN, "data", "birds", "info"],
    "amplify": [MAIN, "amplify", "--image-indices", "0,1,2", "--concept-top-k", "5", "--out", "amplified"],
}


class Spent(NamedTuple):
    """What one process took from its start to its end."""

    cpu: float  # seconds, user and system
    wall: float  # seconds


def startup(
    commands: Annotated[
        str, typer.Option(metavar=",".join(COMMANDS), help="What to time; torch is its import alone.")
    ] = ",".join(COMMANDS),
    rounds: Annotated[int, typer.Option(min=1, help="Fresh processes of each, after one that is not counted.")] = 5,
) -> None:
    """CPU and wall time of whole processes, beside the import of torch, in a folder that is removed again.

    The process that is not counted fills caches: those of the disk and, in the user's cache folder, the birds.
    """
    names = timing.chosen("commands", commands, COMMANDS)
    spent: dict[str, list[Spent]] = {name: [] for name in names}
    for _ in range(rounds + 1):
        for name in names:
            spent[name].append(run(COMMANDS[name]))
    results: dict[str, Any] = {"machine": timing.machine("cpu"), "cores": timing.cores(), "rounds": rounds}
    results["commands"] = [
        {"name": name, "command": shown(COMMANDS[name])} | summary(every[1:]) for name, every in spent.items()
    ]
    timing.show(results, table(results["commands"]))


def run(words: list[str]) -> Spent:
    """Run Python with these words in a new folder, which holds a small run.

    Raises:
        ValueError: the process failed; with the last line that it wrote.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as said:
        write_run(Path(folder, "run"))
        begin = time.perf_counter()
        process = subprocess.Popen([sys.executable, *words], cwd=folder, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)  # which nobody can wait for again
        if process.returncode:
            said.seek(0)
            last = (said.read().strip().splitlines() or ["it wrote nothing"])[-1]
            raise ValueError(f"{shown(words)} ended with exit code {process.returncode}: {last}")
    return Spent(usage.ru_utime + usage.ru_stime, wall)


def write_run(folder: Path) -> None:
    """A run folder as a training leaves it, of a hundred lines of metrics."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text("kind: viscoin\n")
    lines = [{"step": 50 * i, "time": i, "train.l1": 1 / i, "train.total": math.log1p(1 / i)} for i in range(1, 101)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def shown(words: list[str]) -> str:
    """The command as it is typed in the root of the repository."""
    return " ".join(["python", *(Path(word).name if word == MAIN else word for word in words)])


def summary(every: list[Spent]) -> dict[str, float]:
    """Minimum and median of CPU and wall seconds."""
    return {
        f"{clock}_seconds_{name}": round(take(getattr(spent, clock) for spent in every), 3)
        for clock in Spent._fields
        for name, take in (("min", min), ("median", statistics.median))
    }


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """A line for each command."""
    lines = [["s", "CPU min", "median", "wall min", "median"]]
    return lines + [[row["name"], *(f"{value:.2f}" for value in list(row.values())[2:])] for row in rows]


if __name__ == "__main__":
    timing.start(startup)
