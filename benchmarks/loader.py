"""Speed and memory of the loader beside torchvision's, as a table and JSON: python benchmarks/loader.py."""

import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor as Pool
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
import typer
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import timing
from benchmarks.timing import Rounds, kilobytes


def loader(
    sizes: Annotated[str, typer.Option(metavar="64,256", help="Sides of the squares, pixels.")] = "64,256",
    workers: Annotated[str, typer.Option(metavar="1,2", help="Threads of ours, processes of torchvision.")] = "1,2",
    images: Annotated[int, typer.Option(min=100, help="JPEG files to make, of 256 to 500 px a side.")] = 2000,
    epochs: Annotated[int, typer.Option(min=2, help="Passes over the files; the first one decodes.")] = 4,
    rounds: Rounds = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 64,
) -> None:
    """The loader alone, decoding included, beside a plain torchvision ImageFolder and DataLoader on the same files."""
    cases = [(size, count) for size in timing.counts("sizes", sizes) for count in timing.counts("workers", workers)]
    timed: dict[tuple[int, int], list[dict[str, list[Epoch]]]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder), images)
        for number in range(rounds):
            for size, count in cases:
                row = {}
                for name in list(LOADERS)[:: 1 if number % 2 else -1]:
                    work = (name, folder, size, count, epochs, batch_size)
                    with Pool(1, get_context("spawn")) as pool:
                        row[name] = pool.submit(loader_epochs, *work).result()
                timed[size, count].append(row)
    results: dict[str, Any] = {"machine": timing.machine("cpu") | {"threads": 1}, "images": images, "rounds": rounds}
    results |= {"batch_size": batch_size, "cores": timing.cores(), "loaders": []}
    for (size, count), rows in timed.items():
        results["loaders"].append({"size": size, "workers": count} | loader_report(rows, images))
    timing.show(results, loader_table(results["loaders"]))


class Epoch(NamedTuple):
    """What one pass over the files took."""

    seconds: float
    cpu_seconds: float  # of all processes
    memory: float  # MiB of all processes after it, files that are mapped into memory left out


def write_photographs(root: Path, count: int) -> None:
    """JPEGs with edges and grain in class folders: `count` to train on, and a few in the other splits."""
    rng = np.random.default_rng(0)
    for split, number in (("train", count), ("validation", 10), ("test", 10)):
        for i in range(number):
            width, height = rng.integers(256, 501, 2)
            coarse = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
            grain = smooth + 6 * rng.standard_normal((height, width, 1), dtype=np.float32)
            path = root / split / f"class {i % 10}" / f"{i:05}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def loader_epochs(loader: str, folder: str, size: int, workers: int, epochs: int, batch_size: int) -> list[Epoch]:
    """All passes of one loader, in a process of its own with an empty cache."""
    timing.set_up(1, "cpu")
    made: list[Epoch] = []
    with tempfile.TemporaryDirectory() as cache, patch.dict(os.environ, {"XDG_CACHE_HOME": cache}):
        batches = LOADERS[loader](folder, size, workers, batch_size)
        for _ in range(epochs):
            start, cpu = time.perf_counter(), cpu_seconds()
            for pixels, _labels in batches():
                if pixels.shape[1:] != (3, size, size) or pixels.dtype != torch.float32:
                    raise ValueError(f"{loader} gives {pixels.dtype} of shape {tuple(pixels.shape)}")
            seconds, used = time.perf_counter() - start, cpu_seconds() - cpu
            made.append(Epoch(seconds, used, anonymous_memory()))
    return made


def our_loader(folder: str, size: int, workers: int, batch_size: int) -> Callable[[], Iterator[Any]]:
    """Files become squares on a memory map during the first pass."""
    from viscoin.config import DatasetConfig
    from viscoin.datasets import files, load_dataset
    from viscoin.training.data import StepBatches

    made: list[StepBatches] = []
    step = 0

    def batches() -> Iterator[Any]:
        nonlocal step
        if not made:
            with patch.object(files, "cores", lambda: workers):
                dataset = load_dataset(folder, "train", DatasetConfig(resolution=size))
            made.append(StepBatches(dataset, batch_size, 0, horizontal_flip=True, workers=workers))
        for _ in range(math.ceil(len(made[0].dataset) / batch_size)):
            yield made[0](step)
            step += 1

    return batches


def torchvision_loader(folder: str, size: int, workers: int, batch_size: int) -> Callable[[], Iterator[Any]]:
    """As in torchvision's examples, with images in [-1, 1]; worker processes live on between the passes."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    change = transforms.Compose(
        [
            transforms.Resize(size),
            transforms.CenterCrop(size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    made: list[DataLoader] = []

    def batches() -> Iterator[Any]:
        if not made:
            dataset = ImageFolder(f"{folder}/train", change)
            settings: dict[str, Any] = {"persistent_workers": True, "multiprocessing_context": "fork"}
            made.append(DataLoader(dataset, batch_size, True, num_workers=workers, **settings))
        yield from made[0]

    return batches


LOADERS = {"viscoin": our_loader, "torchvision": torchvision_loader}


def processes() -> list[Path]:
    """Folders in /proc of this process and of its workers."""
    return [Path(f"/proc/{number}") for number in ("self", *(child.pid for child in active_children()))]


def cpu_seconds() -> float:
    """Of this process and of its workers: what a loader costs, however busy the machine is."""
    fields = [(place / "stat").read_text().rpartition(")")[2].split() for place in processes()]
    ticks = sum(int(part[11]) + int(part[12]) for part in fields)  # user and system, behind pid and name
    return ticks / os.sysconf("SC_CLK_TCK")


def anonymous_memory() -> float:
    """MiB of this process and of its workers, shared pages counted once, without the page cache of mapped files."""
    rollups = [place / "smaps_rollup" for place in processes()]
    return sum(kilobytes(rollup, name) for rollup in rollups for name in ("Pss_Anon", "Pss_Shmem")) / 1024


def loader_report(rows: list[dict[str, list[Epoch]]], images: int) -> dict[str, Any]:
    """Medians over the rounds: speed and CPU of the first and of later passes, memory, and ratios to torchvision."""
    results: dict[str, Any] = {name: {} for name in LOADERS}
    for which, part in (("first", slice(0, 1)), ("later", slice(1, None))):
        for label, field in (("speed", "seconds"), ("speed_by_cpu", "cpu_seconds")):
            ours, other = (
                [statistics.mean(getattr(epoch, field) for epoch in row[name][part]) for row in rows]
                for name in LOADERS
            )
            ratios = [theirs / max(own, 0.01) for own, theirs in zip(ours, other, strict=True)]
            results[f"{which}_{label}_ratio"] = round(statistics.median(ratios), 2)
            for name, values in zip(LOADERS, (ours, other), strict=True):
                taken = statistics.median(values)
                if field == "seconds":
                    results[name][f"{which}_images_per_second"] = round(images / taken, 1)
                else:
                    results[name][f"{which}_cpu_ms_per_image"] = round(1e3 * taken / images, 3)
    for name in LOADERS:
        counted = [number for number in (1, 2, 4, 8, 16) if number <= len(rows[0][name])]
        memory = {number: statistics.median(row[name][number - 1].memory for row in rows) for number in counted}
        results[name]["memory_mib"] = {str(number): round(value) for number, value in memory.items()}
    return results


def loader_table(results: list[dict[str, Any]]) -> list[list[str]]:
    """Two lines for each size and number of workers; images/s, and MiB after the first and the last counted pass."""
    names = list(LOADERS)
    columns = ["px", "workers", "pass", *(f"{name}/s" for name in names), "ratio", "by CPU"]
    columns += [f"{name} MiB" for name in names]
    lines = [columns]
    for row in results:
        memory = [[f"{value:.0f}" for value in row[name]["memory_mib"].values()] for name in names]
        for which, at in (("first", 0), ("later", -1)):
            line = [str(row["size"]), str(row["workers"]), which]
            line += [f"{row[name][f'{which}_images_per_second']:.0f}" for name in names]
            line += [f"{row[f'{which}_{label}_ratio']:.2f}" for label in ("speed", "speed_by_cpu")]
            lines.append(line + [each[at] for each in memory])
    return lines


if __name__ == "__main__":
    timing.start(loader)
