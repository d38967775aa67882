"""Speed of collecting concepts, as JSON: python benchmarks/concepts.py."""

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import timing
from benchmarks.timing import Device, Rounds, Threads
from viscoin.analysis.concepts import collect_concepts
from viscoin.config import DatasetConfig
from viscoin.datasets import ImageDataset, load_dataset
from viscoin.inference.batches import evaluation, image_batches
from viscoin.models.files import ASSETS, LoadedModel, load_model


def concepts(
    model: Annotated[Path | None, typer.Option(help="Ensemble to measure; default: the shipped one.")] = None,
    images: Annotated[int, typer.Option(min=2, help="Test images to read.")] = 2000,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 128,
    rounds: Rounds = 5,
    threads: Threads = 0,
    device: Device = "auto",
) -> None:
    """The concepts of images in memory, nothing cached, beside a plain forward pass of f over the same batches."""
    kind = timing.set_up(threads, device)
    loaded = load_model(model or ASSETS / "birds" / "viscoin.safetensors", "viscoin")
    dataset = read_images(loaded, images)

    def forward() -> None:
        f = loaded.model.classifier
        with evaluation(f, kind):
            for batch, _ in image_batches(dataset, np.arange(len(dataset)), batch_size, kind, "forward"):
                f(batch).cpu()

    def collect() -> None:
        collect_concepts(loaded.model, dataset, kind, batch_size, force=True)

    results: dict[str, Any] = {"machine": timing.machine(kind), "model": os.path.relpath(loaded.path)}
    results |= {"concepts": loaded.model.n_concepts, "images": len(dataset), "batch_size": batch_size}
    timing.show(results | {"rounds": rounds} | compared(forward, collect, rounds))


def read_images(loaded: LoadedModel, number: int) -> ImageDataset:
    """The first test images of the model's dataset, in memory."""
    config = DatasetConfig.model_validate(loaded.recipe["dataset"])
    dataset = load_dataset(config.name, "test", config)
    chosen = np.arange(min(number, len(dataset)))
    pixels, labels = np.array(dataset.pixels[chosen]), dataset.labels[chosen]
    return ImageDataset(dataset.name, dataset.split, pixels, labels, dataset.class_names)


def compared(forward: Callable[[], None], collect: Callable[[], None], rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of both and of their ratio, by the clock on the wall and by that of the process."""
    seconds: dict[str, list[tuple[float, float]]] = {"forward": [], "concepts": []}
    for _ in range(rounds + 1):
        for name, run in (("forward", forward), ("concepts", collect)):
            begin = time.perf_counter(), time.process_time()
            run()
            seconds[name].append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
    results = {}
    for column, clock in enumerate(("wall", "cpu")):  # the second holds on a busy machine too, if threads is 1
        f_times, own_times = ([row[column] for row in rows[1:]] for rows in seconds.values())  # the first warms up
        results[clock] = {
            "forward_seconds": round(statistics.median(f_times), 3),
            "concepts_seconds": round(statistics.median(own_times), 3),
            "ratio": round(statistics.median(own / f for f, own in zip(f_times, own_times)), 3),
        }
    return results


if __name__ == "__main__":
    timing.start(concepts)
