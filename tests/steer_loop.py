"""Steer one training and kill it around the commands, again and again; say whether any was lost or obeyed twice.

`python tests/steer_loop.py KIND PROCESSES KILLS FOLDER` exits with 1 where a command that was sent is not in the record
exactly once and in order, or where a replay of the record is not equal bit by bit. Trainings of one process are forked,
which spares imports.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kill_loop import in_child
from tiny_models import Answer, set_options, write_models

from viscoin.runs.control import Command, read_record, send, waiting
from viscoin.runs.run import read_metrics
from viscoin.runs.status import read_status

MAIN = Path(__file__).parents[1] / "main.py"
OPTIONS = {
    "classifier": ["--epochs", 2000, "--batch-size", 16],
    "gan": ["--kimg", 100, "--set", "gan.snapshot_kimg=0.08"],
    "viscoin": ["--steps", 20_000, "--set", "viscoin.evaluate_every=20", "--set", "viscoin.batch_size=8"],
}
RATE = {"classifier": 2e-3, "gan": 2e-3, "viscoin": 1e-4}
PATIENCE = 300  # seconds for whatever is waited for


class Training:
    """One command `train` in a process group of its own."""

    def __init__(self, processes: int, *words: object) -> None:
        common = ["train", *words, *set_options(), "--device", "cpu", "--precision", "32-true"]
        if processes == 1:
            self.id = in_child(lambda: (os.setpgid(0, 0), Answer(*common).went_well()))
            return
        line = [sys.executable, str(MAIN), *map(str, common), "--devices", str(processes)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.id = subprocess.Popen(line, env=environment, start_new_session=True, stdout=subprocess.DEVNULL).pid

    def kill(self) -> None:
        os.killpg(self.id, signal.SIGKILL)
        os.waitpid(self.id, 0)

    def is_over(self) -> bool:
        return os.waitpid(self.id, os.WNOHANG) != (0, 0)

    def end(self) -> int:
        """Its exit status, once it has ended."""
        return os.waitpid(self.id, 0)[1]


def until(what: Callable[[], Any], training: Training) -> None:
    """Wait until something is true."""
    limit = time.monotonic() + PATIENCE
    while not what():
        if time.monotonic() > limit or training.is_over():
            raise SystemExit("the training has ended, or nothing happens")
        time.sleep(0.02)


def some_commands(kind: str, run: Path, moments: random.Random) -> list[Command]:
    """Send one to four commands, close to one another."""
    rate = f"{RATE[kind] * moments.uniform(0.5, 2):.6f}"
    choice: list[tuple[str, dict[str, Any]]] = [
        ("set", {"learning_rate": rate}), ("evaluate", {}), ("note", {"text": rate}), ("pause", {}), ("continue", {}),
    ]  # fmt: skip
    sent = []
    for command, values in moments.choices(choice, k=moments.randint(1, 4)):
        sent.append(send(run, command, values))
        time.sleep(moments.choice([0, 0, 0.05, 0.3]))
    return sent


def check(run: Path, again: Path, sent: list[Command]) -> list[str]:
    """What is wrong."""
    entries, faults = read_record(run), []
    if [entry.id for entry in entries] != [command.id for command in sent] or waiting(run):
        faults.append("the record does not hold every command once and in order")
    faults += [f"{entry.command} was refused: {entry.refused}" for entry in entries if entry.refused]
    lines = [
        [{key: value for key, value in line.items() if key != "time"} for line in read_metrics(path / "metrics.jsonl")]
        for path in (run, again)
    ]
    if lines[0] != lines[1]:
        faults.append("the metrics of the replay differ")
    if (run / "model.safetensors").read_bytes() != (again / "model.safetensors").read_bytes():
        faults.append("the weights of the replay differ")
    return faults


def main(kind: str, processes: int, kills: int, folder: Path) -> int:
    torch.set_num_threads(1)
    folder = folder.absolute()
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    models = write_models(folder / "models")
    needs = {"viscoin": ("classifier", "gan"), "gan": ("classifier",)}.get(kind, ())
    words = [kind, *OPTIONS[kind], *(word for name in needs for word in (f"--{name}", models[name])), "--out"]
    run, again, moments, sent = folder / "steered", folder / "again", random.Random(kind), list[Command]()
    for _ in range(kills):
        training = Training(processes, *words, run)
        until(lambda: read_status(run).state in ("running", "paused"), training)
        time.sleep(moments.uniform(0, 0.5))
        sent += some_commands(kind, run, moments)
        time.sleep(moments.uniform(0, 0.4))
        training.kill()
    recorded = len(read_record(run))
    training = Training(processes, *words, run)
    until(lambda: read_status(run).state in ("running", "paused") and not waiting(run), training)
    sent += [send(run, "continue"), send(run, "finish")]
    if training.end() or Training(processes, *words, again, "--replay", run).end():
        return 1
    faults = check(run, again, sent)
    print(f"{kills} kills, {len(sent)} commands, {recorded} of them recorded before the last start", *faults, sep="\n")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])))
