"""Kill one small training again and again at random moments, let it end, and say whether that made a difference.

`python kill_loop.py KIND KILLS FOLDER` prints the number of kills after which the run had not ended yet. It exits with
1 where weights or metrics differ from those of a run that nobody killed. Children are forked, which spares imports.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from tiny_models import tiny_recipe, write_models

from viscoin.models.files import load_model
from viscoin.runs import Run, read_metrics
from viscoin.training import classifier, gan, viscoin
from viscoin.training.loop import fit
from viscoin.training.runtime import Runtime

RUNTIME = Runtime("cpu", "32-true")


def in_child(work: Callable[[], object]) -> int:
    """Process id of a child that does the work and exits with 0."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def train(kind: str, models: Path, out: Path) -> None:
    """As the command does it, with a checkpoint at nearly every step."""
    recipe = RECIPES[kind]
    run = Run.create(kind, recipe, out)
    with run.lock():
        if kind == "classifier":
            classifier.train_classifier(recipe, run, RUNTIME)
        elif kind == "gan":
            gan.train_gan(recipe, run, None, RUNTIME)
        else:
            f, g = (load_model(models / f"{part}.safetensors").model for part in ("classifier", "gan"))
            viscoin.train_viscoin(recipe, run, f, g, RUNTIME)


def wait_for_saves(checkpoint: Path, count: int, child: int) -> None:
    """Until the checkpoint was replaced so many times, or the child ended."""
    seen = checkpoint.stat().st_ino if checkpoint.is_file() else None
    while count and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.001)
        now = checkpoint.stat().st_ino if checkpoint.is_file() else None
        count, seen = count - (now != seen), now


RECIPES = {
    "classifier": tiny_recipe(classifier__epochs=30),
    "gan": tiny_recipe(gan__kimg=0.8, gan__warm_start=0.2, gan__snapshot_kimg=0.08),
    "viscoin": tiny_recipe(viscoin__steps=300, viscoin__evaluate_every=50),
}


def main(kind: str, kills: int, folder: Path) -> int:
    torch.set_num_threads(1)
    write_models(folder / "models")
    for module in (classifier, gan, viscoin):
        module.fit = partial(fit, save_seconds=0.02, log_every=10)
    for _ in ("training", "nothing left to train"):
        start = time.monotonic()
        if os.waitpid(in_child(lambda: train(kind, folder / "models", folder / "whole")), 0)[1]:
            return 1
    around = time.monotonic() - start  # what is before and after the steps
    moments = random.Random(kind)
    done = 0
    while done < kills:
        child = in_child(lambda: train(kind, folder / "models", folder / "killed"))
        if moments.random() < 0.3:
            time.sleep(moments.uniform(0, around))
        else:
            wait_for_saves(folder / "killed/checkpoints/last.pt", moments.randint(1, 3), child)
            time.sleep(moments.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if not os.WIFSIGNALED(status):
            if status:
                return 1
            break  # it was done; to kill it more often would prove nothing
        done += 1
    print(done)
    if os.waitpid(in_child(lambda: train(kind, folder / "models", folder / "killed")), 0)[1]:
        return 1
    same = (folder / "whole/model.safetensors").read_bytes() == (folder / "killed/model.safetensors").read_bytes()
    curves = [
        [{key: value for key, value in line.items() if key != "time"} for line in read_metrics(run / "metrics.jsonl")]
        for run in (folder / "whole", folder / "killed")
    ]
    leftovers = list((folder / "killed").rglob("*.partial"))
    return int(not same or curves[0] != curves[1] or bool(leftovers))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
