"""Tiny real models and data for tests of the command line: 32 px, untrained, seeded."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from viscoin.cli import app
from viscoin.config import Recipe, load_recipe
from viscoin.datasets import load_dataset
from viscoin.models.classifier import Classifier
from viscoin.models.files import save_model
from viscoin.training.gan import build_generator
from viscoin.training.viscoin import build_ensemble

SETTINGS = {
    "dataset.resolution": 32,
    "dataset.classes": 4,
    "dataset.train": 64,
    "dataset.validation": 24,
    "dataset.test": 40,
    "classifier.epochs": 1,
    "classifier.batch_size": 16,
    "gan.z_dim": 8,
    "gan.w_dim": 8,
    "gan.mapping_layers": 2,
    "gan.channel_base": 256,
    "gan.channel_max": 8,
    "gan.batch_size": 8,
    "gan.warm_start": 0.016,
    "gan.kimg": 0.032,
    "gan.snapshot_kimg": 0.016,
    "viscoin.n_concepts": 6,
    "viscoin.latent_channels": 8,
    "viscoin.coarse_layer": 1,
    "viscoin.mid_layer": 5,
    "viscoin.steps": 4,
    "viscoin.batch_size": 6,
    "viscoin.generated": 2,
    "viscoin.warmup_steps": 2,
    "viscoin.evaluate_every": 2,
    "viscoin.perceptual_loss": "classifier",
    # nothing that is fitted before the training: tests of that have settings of their own
    "viscoin.initialisation": "channels",
    "viscoin.hold_concepts": 0,
    "viscoin.support": "learned",
    "viscoin.support_width": None,
    "viscoin.translator_activation": "lrelu",
    "viscoin.translator_inputs": "second_moment",
    "viscoin.translator_rank": None,
    "viscoin.generator_rate": 0,
    "viscoin.translator_start": "random",
    "viscoin.directions": 0,
    "viscoin.schedule": "step",
}


def tiny_recipe(**changes: object) -> Recipe:
    """The recipe of these models; changes name keys with `__` for the dot."""
    return load_recipe("birds", SETTINGS | {key.replace("__", "."): value for key, value in changes.items()})


def set_options(recipe: Recipe | None = None) -> list[str]:
    """The same recipe as --set options."""
    return [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]


def train_and_test(recipe: str, data: Path, folder: Path) -> dict[str, Any]:
    """results.json of `test viscoin` for a chain that `train all` made with all of a recipe but its sizes.

    Args:
        recipe: one of ours, whose concepts start from the pursuit; of two classes it finds one direction.
        data: of the recipe's dataset.
    """
    kept = ("dataset.resolution", "classifier", "gan", "viscoin")
    fitted = (
        "initialisation", "hold_concepts", "support", "translator", "directions", "schedule", "warmup", "generator_rate"
    )  # fmt: skip
    sizes = {
        key: value
        for key, value in SETTINGS.items()
        if key.startswith(kept) and not key.removeprefix("viscoin.").startswith(fitted)
    }
    sizes |= {
        "classifier.backbone": "viscoin_resnet10", "classifier.pretrained": "false", "viscoin.n_concepts": 2,
        "viscoin.support_width": 9, "viscoin.translator_rank": 9,
    }  # fmt: skip
    options = [part for key, value in sizes.items() for part in ("--set", f"{key}={value}")]
    paths = Answer("train", "all", "--recipe", recipe, "--dataset-path", data, *options).went_well().out.split()
    asked = ("--checkpoints", paths[-1], "--measures", "accuracy,truth", "--rivals", "none")
    Answer("test", "viscoin", *asked, "--out", folder).went_well()
    return json.loads((folder / "results.json").read_text())


def write_models(folder: Path, recipe: Recipe | None = None) -> dict[str, Path]:
    """Model files of all three kinds, by kind."""
    recipe = recipe or tiny_recipe()
    names = load_dataset(recipe.dataset.name, "validation", recipe.dataset).class_names
    torch.manual_seed(0)
    f = Classifier("viscoin_resnet10", len(names), recipe.dataset.resolution)
    g = build_generator(recipe.gan, recipe.dataset.resolution)
    g.mapping.w_avg.normal_()
    models = {"classifier": f, "gan": g, "viscoin": build_ensemble(recipe.viscoin, f, g, names)}
    return {
        kind: save_model(folder / f"{kind}.safetensors", model, kind, recipe=recipe, class_names=names)
        for kind, model in models.items()
    }


def write_images(folder: Path, counts: dict[str, int], size: int = 24) -> Path:
    """A folder of noise images: folder/<class>/<i>.png."""
    random = np.random.default_rng(0)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:02}.png")
    return folder


def close(a: object, b: object) -> bool:
    """The same results but for rounding: dictionaries and lists of numbers and texts."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(close, a, b))
    return a == pytest.approx(b, rel=1e-3, abs=1e-5) if isinstance(a, float) else a == b


class Answer:
    """Exit code and output of one call of the command line in this process."""

    def __init__(self, *arguments: object) -> None:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        self.code, self.out, self.err = result.exit_code, result.stdout, result.stderr

    def refused(self, *texts: str) -> None:
        """Assert exit code 2 and one line of error that holds the texts."""
        assert self.code == 2, self.out + self.err
        line = self.err.strip().splitlines()[-1]
        assert line.startswith("Error: "), self.err
        for text in texts:
            assert text in line, f"{text!r} is not in {line!r}"
        assert "Traceback" not in self.err

    def went_well(self) -> "Answer":
        assert self.code == 0, self.out + self.err
        return self
