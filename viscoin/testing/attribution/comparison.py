"""Methods compared as Vision DiffMask compares them, and by what they cost."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from viscoin.attribution import METHODS
from viscoin.datasets.base import ImageDataset
from viscoin.errors import Refused
from viscoin.inference.batches import evaluation, progress
from viscoin.models.classifier import Classifier
from viscoin.models.diffmask import DiffMask
from viscoin.models.files import load_model
from viscoin.models.tokens import PatchTokens
from viscoin.statistics.bootstrap import Estimate
from viscoin.testing.attribution.cost import BATCHES, Run, Seconds, peak_memory, seconds_per_image
from viscoin.testing.attribution.maps import MethodMaps
from viscoin.testing.attribution.methods import Trained
from viscoin.testing.attribution.scenes import Sample, answers
from viscoin.testing.attribution.types import BadMaps, Explain, min_max
from viscoin.testing.attribution.vision_diffmask import (
    IMAGES,
    ORDERS,
    PATCH,
    Curves,
    blended,
    noise_image,
    replacement_curves,
)

KINDS = {"probability": "p", "minus_log": "-log p"}
BLENDED = {"kl": "KL blended", "accuracy": "accuracy", "masked": "masked"}


@dataclass(frozen=True)
class Compared:
    """One method in the comparison of Vision DiffMask: by pixels as published, by patches, and by embeddings.

    `blended` has KL, accuracy and masked share, and is empty for classifiers without patches.
    """

    pixels: Curves
    patches: Curves
    blended: dict[str, Estimate]

    def to_dict(self, seed: int = 0) -> dict[str, Any]:
        """Plain numbers."""
        embeddings = {key: asdict(estimate) for key, estimate in self.blended.items()}
        return {"pixels": self.pixels.to_dict(seed), "patches": self.patches.to_dict(seed), "blended": embeddings}


def compare_vision_diffmask(
    classifier: nn.Module,
    test: ImageDataset,
    methods: Mapping[str, Explain],
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 32,
    images: int = IMAGES,
) -> tuple[dict[str, Compared], dict[str, str]]:
    """The first test images, as published, by every method; and methods that failed, with the reason."""
    rows = np.arange(min(images, len(test)))
    batch, labels = test.batch(rows)
    found: dict[str, Compared] = {}
    failed: dict[str, str] = {}
    learned = next((explain.mask_model for explain in methods.values() if isinstance(explain, Trained)), None)
    with evaluation(classifier, device, gradients=True), progress(len(methods), "vision-diffmask", "method") as bar:
        batch = batch.to(device)
        predicted = np.concatenate([answers(classifier, part).argmax(1) for part in batch.split(batch_size)])
        sample = Sample(batch, labels.numpy(), predicted, rows)
        for name, explain in methods.items():
            try:
                maps = MethodMaps(explain, classifier, sample, batch_size).of(rows, predicted)
            except BadMaps as error:
                failed[name] = str(error)
            else:
                found[name] = _compared(classifier, sample, maps, isinstance(explain, Trained), learned)
            bar.update()
    return found, failed


def _compared(
    classifier: nn.Module, sample: Sample, maps: np.ndarray, shares: bool, learned: DiffMask | None
) -> Compared:
    """Both comparisons of one method's maps; `shares` says that they are in [0, 1] already."""
    noise, predicted = noise_image((sample.images.shape[2], sample.images.shape[3])), torch.from_numpy(sample.predicted)
    tokens = _tokens(classifier)
    patch = PATCH if tokens is None else sample.images.shape[2] // tokens.grid[0]
    curves = [replacement_curves(classifier, sample.images, predicted, maps, noise, side) for side in (None, patch)]
    values = {}
    if tokens is not None:
        kept = torch.from_numpy(maps if shares else min_max(maps)).float().to(sample.images.device)[:, None]
        pooled = nn.functional.adaptive_avg_pool2d(kept, tokens.grid).flatten(1)
        values = blended(classifier, partial(_blend, tokens, learned), sample.images, sample.labels, pooled)
    estimates = {key: estimate for key, one in values.items() if (estimate := one.estimate()) is not None}
    return Compared(curves[0], curves[1], estimates)


def _tokens(classifier: nn.Module) -> PatchTokens | None:
    try:
        return PatchTokens(classifier) if isinstance(classifier, Classifier) else None
    except Refused:
        return None


def _blend(tokens: PatchTokens, learned: DiffMask | None, images: Tensor, kept: Tensor) -> Tensor:
    """Logits with embeddings that are kept by their share; a DiffMask's placeholder, or 0, for the rest."""
    embeddings = tokens.embed(images)
    return tokens.logits(embeddings * kept[..., None] if learned is None else learned.replace(embeddings, kept))


def comparison_table(found: Mapping[str, Compared]) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """A row for each method: areas of both curves, by pixels and by patches, and the blended embeddings."""
    rows = []
    for name, one in found.items():
        areas = [one.pixels.estimates(), one.patches.estimates()]
        cells = [f"{part[f'{what}.{order}'].value:.3f}" for part in areas for what in KINDS for order in ORDERS]
        cells += [f"{one.blended[key].value:.3f}" if key in one.blended else "–" for key in BLENDED]
        rows.append((name, *cells))
    titles = [f"{what} {order}{where}" for where in ("", ", patches") for what in KINDS.values() for order in ORDERS]
    return rows, ("method", *titles, *BLENDED.values())


# --- cost --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What one method costs: seconds an image by batch size, and bytes at its peak beyond the model; None: not told."""

    seconds: tuple[Seconds, ...]
    memory: int | None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"seconds": [asdict(one) for one in self.seconds], "memory": self.memory}


def costs(
    classifier: Classifier,
    path: Path,
    images: Tensor,
    methods: Mapping[str, Explain],
    device: torch.device | str = "cpu",
    memory: bool = True,
) -> dict[str, Cost]:
    """Cost of each method of `METHODS` that holds for the classifier; a process for each measures its memory.

    Args:
        path: file of the classifier, for the other processes.
        images: (B, 3, H, W) with B >= 16.
    """
    found = {}
    with progress(len(methods), "cost", "method") as bar:
        for name, explain in methods.items():
            bar.update()
            if name not in METHODS or METHODS[name].family == "control":
                continue
            try:
                seconds = tuple(
                    seconds_per_image(partial(_explain, explain, classifier, images[:batch]), batch, device)
                    for batch in BATCHES
                )
            except ValueError:  # it does not hold for this classifier; its row says so
                continue
            where = str(device)
            taken = peak_memory(_load, path, explain, images[: BATCHES[-1]].cpu().numpy(), where) if memory else None
            found[name] = Cost(seconds, taken)
    return found


def _explain(explain: Explain, classifier: nn.Module, images: Tensor) -> np.ndarray:
    with torch.no_grad():
        targets = classifier(images.to(next(classifier.parameters()).device)).argmax(1).cpu()
    return explain(classifier, images, targets, range(len(images)))


def _load(path: Path, explain: Explain, images: np.ndarray, device: str) -> tuple[Run, str]:
    """What `peak_memory` runs in its process."""
    classifier = load_model(path, "classifier").model.to(device).eval()
    batch = torch.from_numpy(images).to(device)
    with torch.no_grad():
        classifier(batch)  # what the model itself takes is there before
    return partial(_explain, explain, classifier, batch), device


def cost_table(found: Mapping[str, Cost]) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """Milliseconds an image at each batch size, and MB."""
    header = ("method", *(f"ms an image, B = {batch}" for batch in BATCHES), "MB beyond the model")
    rows = [
        (name, *(f"{1000 * one.median:.1f}" for one in cost.seconds), _megabytes(cost.memory))
        for name, cost in found.items()
    ]
    return rows, header


def _megabytes(memory: int | None) -> str:
    return "–" if memory is None else f"{memory / 1e6:.0f}"
