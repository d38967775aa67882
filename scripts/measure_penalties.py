"""Measure what penalties do: birds with a patch in the corner that tells the class, which a network should not use.

    python scripts/measure_penalties.py measured.jsonl --folder patches --seeds 5 --figure docs/images/penalties.png

Each training that ends is one line of measured.jsonl; those that are there are not run again. At the end, or with
`--seeds 0` at once, it prints the table of docs/penalties.md.
"""

import argparse
import json
import logging
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from viscoin.config import DatasetConfig, load_recipe
from viscoin.datasets import load_dataset
from viscoin.datasets.base import to_images
from viscoin.models.files import load_model
from viscoin.plotting.style import BLUE, DARK, GREY, LIGHT, PAGE, VERMILION, new_figure, save_figure, styled
from viscoin.runs.run import Run
from viscoin.training.classifier import train_classifier
from viscoin.training.runtime import Runtime

CLASSES, SIDE, PATCH = 8, 64, 16  # pixels
REGION = "0,0,0.25,0.25"
STEPS, BATCH, VALIDATION = 150, 32, 400
COLOURS = (
    (230, 40, 40), (40, 200, 60), (50, 70, 240), (240, 220, 40), (220, 60, 220), (40, 220, 220), (245, 245, 245),
    (15, 15, 15),
)  # fmt: skip
SETTINGS = {
    "none": f"attention region={REGION} weight=0",  # measured, without any effect
    "attention, weight 1": f"attention region={REGION} weight=1",
    "attention, weight 10": f"attention region={REGION} weight=10",
    "attention, weight 100": f"attention region={REGION} weight=100",
    "swap, 25 % of a batch": f"swap region={REGION} share=0.25",
    "swap, 50 % of a batch": f"swap region={REGION} share=0.5",
    "swap, all of a batch": f"swap region={REGION} share=1",
}
COLUMNS = {
    "step": "CPU time of a step, ms", "accuracy": "accuracy, own patch",
    "wrong_patch": "accuracy, patch of another class",
    "no_patch": "accuracy, no patch", "cam_share": "share of CAM in the region",
}  # fmt: skip


def birds(split: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Pixels without patches, labels, and names of the classes."""
    config = DatasetConfig(resolution=SIDE, classes=CLASSES, train=STEPS * BATCH, validation=VALIDATION, test=80)
    found = load_dataset("birds", split, config)
    return np.asarray(found.pixels), found.labels, found.class_names


def write_patched(folder: Path) -> None:
    """The images with the patch of their class, as a folder that any training reads."""
    if (folder / "complete").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    for split in ("train", "validation", "test"):  # the last one because every dataset has it
        pixels, labels, names = birds(split)
        for i, (image, label) in enumerate(zip(pixels, labels)):
            image = image.copy()
            image[:PATCH, :PATCH] = COLOURS[label]
            place = folder / split / f"{label}-{names[label]}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{i:05}.png")
    (folder / "complete").touch()


def train(folder: Path, setting: str, seed: int) -> dict[str, float]:
    """One training; what it measured at its end, and what its model says without patches."""
    place = folder / "run"
    shutil.rmtree(place, ignore_errors=True)
    settings = {
        "dataset.name": str(folder / "images"), "dataset.resolution": SIDE, "classifier.pretrained": False,
        "classifier.epochs": 1, "classifier.batch_size": BATCH, "classifier.horizontal_flip": False,
        "classifier.penalties": SETTINGS[setting], "seed": seed,
    }  # fmt: skip
    recipe = load_recipe("folder", settings)
    run, used = Run.create("classifier", recipe, place), {}
    run.listeners.append(lambda step, _: used.setdefault(step, time.process_time()))
    path = train_classifier(recipe, run, Runtime("cpu", "32-true"))
    last = {key: value for line in run.metrics() for key, value in line.items() if key.startswith("validation.")}
    name = recipe.classifier.penalties[0].name
    found = {
        "step": 1000 * (used[STEPS] - used[STEPS // 3]) / (STEPS - STEPS // 3),
        "accuracy": last["validation.accuracy"],
        "wrong_patch": last[f"validation.penalties.{name}.accuracy_swapped"],
        "no_patch": without_patches(path),
        "cam_share": last[f"validation.penalties.{name}.cam_share"],
    }
    shutil.rmtree(place)
    return found


@torch.no_grad()
def without_patches(path: Path) -> float:
    """Accuracy on the same validation images as they were."""
    pixels, labels, _ = birds("validation")
    model = load_model(path, "classifier").model.eval()
    right = [
        model(to_images(pixels[i : i + 100])).argmax(1).numpy() == labels[i : i + 100]
        for i in range(0, len(labels), 100)
    ]
    return float(np.concatenate(right).mean())


def table(lines: list[dict]) -> str:
    """Means over seeds, with the smallest and largest value."""
    rows = [f"| penalty | seeds | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 2) + "|"]
    for setting in SETTINGS:
        found = [line for line in lines if line["setting"] == setting]
        if found:
            cells = []
            for key in COLUMNS:
                values, digits = np.array([line[key] for line in found]), 0 if key == "step" else 3
                cells.append(f"{values.mean():.{digits}f} ({values.min():.{digits}f} to {values.max():.{digits}f})")
            rows.append(f"| {setting} | {len(found)} | {' | '.join(cells)} |")
    return "\n".join(rows)


@styled
def draw(lines: list[dict]) -> Figure:
    """Map and behaviour of every training, a dot each; a line at the mean."""
    figure = new_figure(PAGE, 2.3)
    left, right = figure.subplots(1, 2, sharey=True)
    shown = [setting for setting in SETTINGS if any(line["setting"] == setting for line in lines)]
    panels = ((left, "cam_share", "share of the map in the corner"), (right, "wrong_patch", COLUMNS["wrong_patch"]))
    for axes, key, title in panels:
        for row, setting in enumerate(shown):
            values = [line[key] for line in lines if line["setting"] == setting]
            colour = {"n": GREY, "a": VERMILION, "s": BLUE}[setting[0]]
            axes.plot(values, [row] * len(values), "o", color=colour, alpha=0.6, markersize=4, markeredgewidth=0)
            axes.plot([np.mean(values)] * 2, [row - 0.3, row + 0.3], color=DARK, linewidth=1)
        axes.set(xlabel=title, ylim=(len(shown) - 0.5, -0.5), yticks=range(len(shown)), yticklabels=shown)
        axes.grid(axis="y", color=LIGHT)
        axes.tick_params(axis="y", length=0)
    left.set(xlim=(-0.01, None), title="the map")
    right.set(xlim=(-0.02, 1), title="the behaviour")
    right.axvline(1 / CLASSES, color=GREY, linestyle=":", linewidth=0.8)
    right.text(1 / CLASSES + 0.01, 0, "chance", fontsize=6, color=GREY, va="center")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path, help="JSON lines, to which it appends")
    parser.add_argument("--folder", type=Path, default=Path("patches"), help="for images and the run that is under way")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--figure", type=Path, help="draw map and behaviour into this file")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    lines = [json.loads(line) for line in asked.measured.read_text().splitlines()] if asked.measured.exists() else []
    done = {(line["setting"], line["seed"]) for line in lines}
    if asked.seeds:
        write_patched(asked.folder / "images")
    for seed in range(asked.seeds):
        for setting in SETTINGS:
            if (setting, seed) not in done:
                lines.append({"setting": setting, "seed": seed, **train(asked.folder, setting, seed)})
                with asked.measured.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
    print(table(lines))
    if asked.figure:
        save_figure(draw(lines), asked.figure)


if __name__ == "__main__":
    main()
