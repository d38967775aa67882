"""The demo: the whole pipeline on the built-in birds, measured, pictured and written up in one report."""

import logging
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from stylegan2_ada.metrics import FeatureMoments, frechet_distance
from stylegan2_ada.networks import Generator
from viscoin.analysis.amplification import amplify_images, image_relevance, select_concepts
from viscoin.analysis.concepts import ConceptTable, collect_concepts
from viscoin.attribution.heatmaps import concept_heatmaps
from viscoin.config import DatasetConfig, Recipe, load_recipe
from viscoin.datasets import ImageDataset, load_dataset
from viscoin.errors import Refused, reason_of
from viscoin.inference.batches import choose_images, evaluation, image_batches, pooled
from viscoin.inference.devices import resolve_device
from viscoin.kinds import CHAIN
from viscoin.models.classifier import Classifier
from viscoin.models.ensemble import VisCoIN
from viscoin.models.files import ASSETS, load_model
from viscoin.plotting.amplification import amplification_figure
from viscoin.plotting.concepts import class_concept_importance
from viscoin.plotting.data import contact_sheet, part_masks
from viscoin.plotting.evaluation import attribute_figure, confusion_figure, faithfulness_figure
from viscoin.plotting.heatmaps import heatmap_figure
from viscoin.plotting.training import training_figure
from viscoin.program import program_name
from viscoin.reports.demo_page import write_report
from viscoin.reports.pictures import draw_reconstructions, draw_samples
from viscoin.runs.metrics import read_log
from viscoin.runs.run import Run
from viscoin.runs.transcript import keep_in, kept_in
from viscoin.testing.classifier import test_classifier
from viscoin.testing.ensemble import test_ensemble
from viscoin.testing.gan import test_gan
from viscoin.testing.truth import test_attributes, untrained
from viscoin.training.pipeline import load_needed, train_in
from viscoin.training.runtime import Runtime

logger = logging.getLogger(__name__)

STRIPS = 6  # moments of the training that the report shows
SHOWN_CLASSES = 20
ROWS, CONCEPTS = 5, 3  # images of amplifications and heatmaps; concepts of each


@dataclass(frozen=True)
class Size:
    """How much a demo does: random test images, steps of Psi, Theta and Omega, and other changes of the recipe."""

    test: int
    faithfulness: int
    steps: int
    changes: Mapping[str, Any] = field(default_factory=dict)


FULL = Size(test=2000, faithfulness=1000, steps=500)
QUICK = Size(
    test=300,
    faithfulness=150,
    steps=60,
    changes={"dataset.train": 4000, "classifier.epochs": 1, "gan.warm_start": 4, "gan.kimg": 1},
)


@dataclass(frozen=True)
class Models:
    """f, G and the ensemble on top of them, and the recipe that the ensemble was saved with."""

    classifier: Classifier
    generator: Generator
    ensemble: VisCoIN
    recipe: Recipe

    @classmethod
    def load(cls, paths: Mapping[str, Path]) -> "Models":
        """From one model file of each kind."""
        loaded = {kind: load_model(paths[kind], kind) for kind in CHAIN}
        f, generator, ensemble = (loaded[kind].model for kind in CHAIN)
        return cls(f, generator, ensemble, Recipe.model_validate(loaded["viscoin"].recipe))


@dataclass
class Notes:
    """What the stages of the demo find."""

    numbers: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[None]:
        """Announce a stage and measure its time."""
        logger.info("\n%d  %s", len(self.seconds) + 1, title)
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 1)


@dataclass(frozen=True)
class Trial:
    """What all tests of one demo share."""

    train: ImageDataset
    validation: ImageDataset
    test: ImageDataset
    size: Size
    seed: int
    device: torch.device


def run_demo(out: Path, size: Size = FULL, *, from_scratch: bool = False, seed: int = 0, device: str = "auto") -> Path:
    """Run the whole pipeline; `report.html` and `report.json` appear at its end, whole or not at all.

    Args:
        out: folder of the reports, their figures, and the runs that are trained for them.
        from_scratch: train f and G for the fresh ensemble as well.

    Returns:
        The path of report.html.

    Raises:
        ValueError: the folder cannot be written, or a shipped model is missing.
    """
    start, where = time.monotonic(), resolve_device(device)
    paths = {kind: ASSETS / "birds" / f"{kind}.safetensors" for kind in CHAIN}
    shipped, recipe, notes = Models.load(paths), _recipe(size, seed), Notes()
    _prepare(out)
    keep_in(out)
    with notes.stage("data", "The data"):
        trial = _load_data(shipped.recipe.dataset, recipe.dataset, size, seed, where)
        notes.figures |= _draw_data(trial.test)
    with notes.stage("test_shipped", "Testing the shipped models"):
        _test_shipped(shipped, trial, notes)
    with notes.stage("training", "Making an ensemble anew"):
        run, paths = _train(paths, recipe, out, from_scratch, Runtime(device))
        notes.figures["losses"] = training_figure([read_log(run.path)])
    with notes.stage("test_fresh", "Testing the fresh ensemble"):
        fresh = Models.load(paths)
        notes.numbers["fresh"] = _test_fresh(fresh, trial, from_scratch)
    with notes.stage("explain", "Concepts, amplifications and heatmaps"):
        _explain(shipped, fresh, trial, notes)
    notes.numbers["seconds"] = notes.seconds | {"total": round(time.monotonic() - start, 1)}
    info = _info(shipped.recipe, recipe, trial) | {
        "from_scratch": from_scratch,
        "command": f"{program_name()} demo" + " --quick" * (size is QUICK) + " --from-scratch" * from_scratch,
    }
    return write_report(out, notes.numbers, notes.figures, _strips(run), info)


def _recipe(size: Size, seed: int) -> Recipe:
    changes = {
        "seed": seed,
        "viscoin.steps": size.steps,
        "viscoin.evaluate_every": -(-size.steps // STRIPS),
        "viscoin.decay_every": max(1, size.steps // 10),
        "viscoin.warmup_steps": min(100, size.steps // 10),
        "viscoin.perceptual_loss": "classifier",
        "dataset.validation": 200,
    }
    return load_recipe("birds", changes | dict(size.changes))


def _prepare(out: Path) -> None:
    """Make the folder and clear it of the runs of an earlier demo."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for kind in CHAIN:
            if (out / kind / "recipe.yaml").is_file():
                with Run(out / kind).lock():  # not of a demo that is running
                    shutil.rmtree(out / kind)
    except OSError as error:
        raise Refused("out", out, f"cannot write there ({reason_of(error)})", "choose another folder") from error


def _load_data(saved: DatasetConfig, fresh: DatasetConfig, size: Size, seed: int, device: torch.device) -> Trial:
    """Test and validation images of the shipped models' recipe, and the training images of the fresh ensemble."""
    config = saved.model_copy(update={"train": fresh.train})
    train, validation, test = (load_dataset(config.name, split, config) for split in ("train", "validation", "test"))
    logger.info("%d training, %d validation and %d test images", len(train), len(validation), len(test))
    logger.info("%d classes: %s, ...", len(test.class_names), ", ".join(test.class_names[:6]))
    return Trial(train, validation, test, size, seed, device)


def _test_shipped(models: Models, trial: Trial, notes: Notes) -> None:
    size, seed, device, f = trial.size, trial.seed, trial.device, models.classifier
    accuracy = test_classifier(f, trial.test, device, seed=seed, limit=size.test)
    notes.numbers["classifier"] = accuracy.to_dict()
    notes.figures["confusion"] = confusion_figure(accuracy.confusion, accuracy.class_names)
    logger.info("classifier f: accuracy %.3f", accuracy.accuracy)

    distance, control = test_gan(models.generator, f, trial.test, size.test, seed, device), _real_distance(f, trial)
    notes.numbers["gan"] = distance.to_dict() | {"fid_control": control}
    notes.figures["generated"] = draw_samples(models.generator, trial.test, 36, seed)
    logger.info("generator G: FID in features of f %.3g (real training images: %.3g)", distance.fid, control)

    result = test_ensemble(
        models.ensemble, trial.test, device, seed=seed, limit=size.test, faithfulness_limit=size.faithfulness
    )
    numbers = result.to_dict()
    notes.numbers |= {key: numbers[key] for key in ("ensemble", "reconstruction", "faithfulness")}
    notes.numbers["reconstruction"] |= _mean_image_distance(trial)
    notes.figures["faithfulness"] = faithfulness_figure(result.faithfulness)
    _say_ensemble(numbers)

    trained, random = (
        test_attributes(ensemble, trial.validation, trial.test, device, seed=seed, limit=max(500, size.test))
        for ensemble in (models.ensemble, untrained(models.ensemble, seed))
    )
    notes.numbers["attributes"] = trained.to_dict() | {"mean_auroc_untrained": random.mean_auroc}
    notes.figures["attributes"] = attribute_figure(trained, random)
    logger.info("attributes: mean AUROC %.3f (untrained: %.3f)", trained.mean_auroc, random.mean_auroc)


def _say_ensemble(numbers: Mapping[str, Any]) -> None:
    logger.info(
        "ensemble: accuracy %(accuracy).3f, agreement with f %(agreement).3f, "
        "accuracy on its own reconstructions %(accuracy_on_reconstructions).3f",
        numbers["ensemble"],
    )


def _real_distance(f: Classifier, trial: Trial) -> float:
    """The Frechet distance of as many training images: the best that a generator can be expected to reach."""
    moments = FeatureMoments(), FeatureMoments()
    with evaluation(f, trial.device):
        for found, images in zip(moments, (trial.train, trial.test), strict=True):
            chosen = choose_images(len(images), trial.size.test, trial.seed)
            for batch, _ in image_batches(images, chosen, 128, trial.device, "features of real images"):
                found.add(pooled(f.features(batch).maps[-1]))
    return frechet_distance(*moments)


def _mean_image_distance(trial: Trial) -> dict[str, float]:
    """L1 and MSE of the mean training image as the reconstruction of every test image."""
    train, test = (np.asarray(images.pixels[:1000], np.float32) / 127.5 - 1 for images in (trial.train, trial.test))
    difference = test - train.mean(0)
    return {"l1_control": float(np.abs(difference).mean()), "mse_control": float(np.square(difference).mean())}


def _train(
    shipped: Mapping[str, Path], recipe: Recipe, out: Path, from_scratch: bool, runtime: Runtime
) -> tuple[Run, dict[str, Path]]:
    """A new ensemble on the shipped f and G, or on new ones; its run, and the model files it consists of."""
    paths = dict(shipped)
    for kind in CHAIN if from_scratch else CHAIN[-1:]:
        run = Run.create(kind, recipe, out / kind)
        if kind == "viscoin":
            logger.info("see it learn: %s/reconstructions-*.png", run.figures)
        with kept_in(run.path):
            paths[kind] = train_in(run, kind, recipe, load_needed(kind, paths, recipe), runtime)
    return run, paths


def _test_fresh(models: Models, trial: Trial, from_scratch: bool) -> dict[str, Any]:
    size, seed, device = trial.size, trial.seed, trial.device
    result = test_ensemble(
        models.ensemble, trial.test, device, seed=seed, limit=size.test, faithfulness_limit=size.faithfulness // 4
    )
    numbers = result.to_dict()
    _say_ensemble(numbers)
    found = {key: numbers[key] for key in ("ensemble", "reconstruction", "faithfulness")}
    if from_scratch:
        f = models.classifier
        found["classifier"] = test_classifier(f, trial.test, device, seed=seed, limit=size.test).to_dict()
        found["gan"] = test_gan(models.generator, f, trial.test, size.test, seed, device).to_dict()
    return found


def _explain(shipped: Models, fresh: Models, trial: Trial, notes: Notes) -> None:
    test, device = trial.test, trial.device
    table = collect_concepts(shipped.ensemble, test, device, seed=trial.seed, limit=trial.size.test)
    chosen = _one_of_each(test, 10, trial.seed)
    few = chosen[:ROWS]
    heat = concept_heatmaps(shipped.ensemble, test.batch(few)[0], top=CONCEPTS + 1, device=device)
    notes.numbers["concepts"] = {"n": table.activations.shape[1], "never_active": int(table.dead.sum())}
    notes.figures |= {
        "importance": class_concept_importance(table, test.class_names),
        "top_images": _draw_top_images(table, test),
        "heatmaps": heatmap_figure(heat, test.class_names, test.labels[few]),
    }
    for prefix, models in (("", shipped), ("fresh_", fresh)):
        notes.figures[f"{prefix}reconstructions"] = draw_reconstructions(models.ensemble, test, chosen, device)
        notes.figures[f"{prefix}amplification"] = _draw_amplification(models.ensemble, test, few, device)


def _one_of_each(images: ImageDataset, count: int, seed: int) -> list[int]:
    """Random images of different classes."""
    order = np.random.default_rng(seed).permutation(len(images))
    _, first = np.unique(images.labels[order], return_index=True)
    return [int(i) for i in order[np.sort(first)][:count]]


def _draw_data(images: ImageDataset) -> dict[str, Figure]:
    classes = np.arange(len(images.class_names))[:SHOWN_CLASSES]
    shown = np.concatenate([np.flatnonzero(images.labels == label)[:2] for label in classes])
    few = shown[:14:2]
    masks = np.stack([images.part_masks(int(i)) for i in few])
    return {
        "data": contact_sheet(images.pixels[shown], [images.class_names[images.labels[i]] for i in shown], columns=8),
        "parts": part_masks(images.pixels[few], masks, images.part_names),
    }


def _draw_top_images(table: ConceptTable, images: ImageDataset, concepts: int = 6, columns: int = 7) -> Figure:
    """The images that activate the concepts of the largest positive relevance most, a row for each."""
    shown = np.argsort(-np.nan_to_num(table.class_concept_importance).max(0), kind="stable")[:concepts]
    best = [np.argsort(-table.activations[:, concept], kind="stable")[:columns] for concept in shown]
    captions = [f"concept {k}: {table.activations[i, k]:.2f}" for k, rows in zip(shown, best) for i in rows]
    return contact_sheet(images.pixels[table.indices[np.concatenate(best)]], captions, columns)


def _draw_amplification(
    ensemble: VisCoIN, images: ImageDataset, indices: Sequence[int], device: torch.device
) -> Figure:
    batch, labels = images.batch(indices)
    selection = select_concepts(image_relevance(ensemble, batch, device), top_k=min(CONCEPTS, ensemble.n_concepts))
    result = amplify_images(ensemble, batch, selection, device=device)
    return amplification_figure(result, images.class_names, labels.numpy())


def _strips(run: Run) -> list[tuple[int, Path]]:
    """Step and file of the reconstructions that the training wrote, at most STRIPS of them."""
    paths = sorted(run.figures.glob("reconstructions-*.png"))
    kept = np.unique(np.linspace(0, len(paths) - 1, min(STRIPS, len(paths))).round().astype(int))
    return [(int(paths[i].stem.rpartition("-")[2]), paths[i]) for i in kept]


def _info(saved: Recipe, recipe: Recipe, trial: Trial) -> dict[str, Any]:
    """What the report says besides numbers and figures."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "numpy", "matplotlib"))
    cuda, threads = trial.device.type == "cuda", torch.get_num_threads()
    return {
        "date": f"{datetime.now():%d %B %Y, %H:%M}",
        "device": torch.cuda.get_device_name(trial.device) if cuda else f"CPU, {threads} thread{'s' * (threads > 1)}",
        "versions": f"Python {platform.python_version()}, {packages}",
        "seed": trial.seed,
        "quick": trial.size.test < len(trial.test),
        "test_images": min(trial.size.test, len(trial.test)),
        "all_test_images": len(trial.test),
        "faithfulness_images": min(trial.size.faithfulness, len(trial.test)),
        "train_images": len(trial.train),
        "n_classes": len(trial.test.class_names),
        "resolution": trial.test.resolution,
        "steps": recipe.viscoin.steps,
        "batch": recipe.viscoin.batch_size + recipe.viscoin.generated,
        "shipped_steps": saved.viscoin.steps,
    }
