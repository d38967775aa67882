"""Kill one small training again and again at random moments, let it end, and say whether that made a difference.

`python kill_loop.py KIND KILLS FOLDER` prints the number of kills after which the run had not ended yet. It exits with
1 where weights or metrics differ from those of a run that nobody killed. Children are forked, which spares imports, and
kill themselves: so none comes far before its end, however slow or busy the machine is.
"""

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tiny_models import tiny_recipe, write_models

from viscoin.models.files import load_model
from viscoin.runs.run import Run, read_metrics
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
    """As the command does it, with a checkpoint at every step."""
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


def die_after(saves: int, seconds: float) -> None:
    """Kill this process so many seconds after so many saves."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
    timer.daemon = True
    save, left = Run.save_checkpoint, iter(range(saves - 1, -1, -1))

    def counted(*arguments: Any, **options: Any) -> None:
        save(*arguments, **options)
        if next(left, None) == 0:
            timer.start()

    Run.save_checkpoint = counted  # type: ignore[method-assign]
    if not saves:
        timer.start()


RECIPES = {
    "classifier": tiny_recipe(classifier__epochs=30),
    "gan": tiny_recipe(gan__kimg=0.8, gan__warm_start=0.2, gan__snapshot_kimg=0.08),
    "viscoin": tiny_recipe(viscoin__steps=300, viscoin__evaluate_every=50),
}


def main(kind: str, kills: int, folder: Path) -> int:
    torch.set_num_threads(1)
    write_models(folder / "models")
    for module in (classifier, gan, viscoin):
        module.fit = partial(fit, save_seconds=0, log_every=10)
    seconds = []
    for _ in ("training", "nothing left to train"):
        start = time.monotonic()
        if os.waitpid(in_child(lambda: train(kind, folder / "models", folder / "whole")), 0)[1]:
            return 1
        seconds.append(time.monotonic() - start)
    around = seconds[1]  # what is before and after the steps
    step = (seconds[0] - around) / Run(folder / "whole").last_checkpoint()["step"]
    moments = random.Random(kind)
    done = 0
    while done < kills:
        early = moments.random() < 0.3
        fate = (0, moments.uniform(0, around)) if early else (moments.randint(1, 3), moments.uniform(0, step))

        def doomed() -> None:
            die_after(*fate)  # noqa: B023  it is called at once
            train(kind, folder / "models", folder / "killed")

        child = in_child(doomed)
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
