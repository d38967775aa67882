"""`main.py` whose classifier, before the step that DISTURB names, does what DISTURB says: "STEP PYTHON-CODE"."""

import os
from contextlib import suppress
from typing import Any

from viscoin.cli import main
from viscoin.training.classifier import ClassifierTask

number, _, code = os.environ.get("DISTURB", "").partition(" ")
train = ClassifierTask.step


def fill(path: str) -> None:
    """Write a file until its disk is full."""
    with suppress(OSError), open(path, "wb", buffering=0) as file:
        while file.write(bytes(1 << 16)):
            pass


def step(self: ClassifierTask, images: Any, labels: Any, step: int) -> Any:
    if str(step) == number and int(os.environ.get("LOCAL_RANK", 0)) == 0:
        exec(code)
    return train(self, images, labels, step)


if __name__ == "__main__":
    ClassifierTask.step = step  # type: ignore[method-assign]
    main()
