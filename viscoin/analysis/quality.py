"""Whether an ensemble is good enough for its explanations to mean anything: what a report of concepts says first."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stylegan2_ada.together import collect
from viscoin.analysis.concepts import ConceptTable
from viscoin.datasets import ImageDataset
from viscoin.inference.batches import choose_images, evaluation, own_batches
from viscoin.models.ensemble import VisCoIN
from viscoin.models.no_generator import REASON

RECONSTRUCTED = 200  # images, drawn at random
LEAST_ACCURACY, LEAST_AGREEMENT, LEAST_KEPT = 0.8, 0.9, 0.7
FEW = 100  # images; an accuracy of 0.5 has a 95 % interval of +-0.1 there


@dataclass(frozen=True)
class Quality:
    """What the classifier f, the explainer g and the reconstructions are worth on N images.

    Attributes:
        n: images that f and g were asked about.
        f_accuracy, g_accuracy: share that each puts into its true class; NaN of images without labels.
        agreement: share for which both say the same.
        never_right: classes, with their numbers of images, of which f recognises none.
        n_reconstructed: images that were reconstructed; 0 without a generator, and then the next two are NaN.
        reconstruction_l1: mean |difference| of the reconstructions from their images, whose values are in [-1, 1].
        kept: share of the reconstructions that f puts into the class that it says the image is of.
    """

    n: int
    f_accuracy: float
    g_accuracy: float
    agreement: float
    never_right: list[tuple[str, int]]
    n_reconstructed: int
    reconstruction_l1: float
    kept: float

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, those that are known, and the warnings."""
        left_out = {"n", "never_right", *(key for key, value in vars(self).items() if value != value)}
        numbers = {key: value for key, value in vars(self).items() if key not in left_out}
        return numbers | {"never_right": [name for name, _ in self.never_right], "warnings": self.warnings}

    @property
    def warnings(self) -> list[str]:
        """What a reader has to know before believing the rest; none for a good ensemble."""
        found = []
        if self.n < FEW:
            found.append(f"Only {self.n} images were looked at: all numbers are rough.")
        if self.f_accuracy < LEAST_ACCURACY:
            found.append(f"f is right on only {self.f_accuracy:.2f} of the images: its concepts explain many mistakes.")
        if self.never_right:
            some = ", ".join(f"{name} (0 of {count})" for name, count in self.never_right[:5])
            more = f" and {len(self.never_right) - 5} more" if len(self.never_right) > 5 else ""
            found.append(f"f recognises no image of {some}{more}: concepts of these classes mean nothing.")
        if self.agreement < LEAST_AGREEMENT:
            found.append(f"g says the same as f on only {self.agreement:.2f} of the images: it explains another model.")
        if not self.n_reconstructed:
            found.append(f"Nothing is drawn: {REASON}.")
        if self.kept < LEAST_KEPT:
            found.append(
                f"f says the same of only {self.kept:.2f} of the reconstructions as of their images: what "
                "amplification shows can hardly be trusted."
            )
        return found


def measure_quality(
    ensemble: VisCoIN,
    dataset: ImageDataset,
    table: ConceptTable,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
    seed: int = 0,
) -> Quality:
    """The quality on the images of a table; a random sample of them is reconstructed."""
    chosen = table.indices[choose_images(len(table.indices), RECONSTRUCTED, seed)]
    f, right = table.f_probabilities.argmax(1), table.f_probabilities.argmax(1) == table.labels
    counts = np.bincount(table.labels, minlength=len(dataset.class_names))
    recognised = np.bincount(table.labels[right], minlength=len(counts))
    lost = np.flatnonzero((counts > 0) & (recognised == 0))
    known = 1.0 if dataset.labelled else np.nan
    error = kept = float("nan")
    if ensemble.draws:
        error, kept = _reconstructions(ensemble, dataset, chosen, device, batch_size)
    return Quality(
        n=len(table.labels),
        f_accuracy=float(right.mean()) * known,
        g_accuracy=float((table.predicted == table.labels).mean()) * known,
        agreement=float((table.predicted == f).mean()),
        never_right=[(dataset.class_names[c], int(counts[c])) for c in lost],
        n_reconstructed=len(chosen) if ensemble.draws else 0,
        reconstruction_l1=error,
        kept=kept,
    )


def _reconstructions(
    ensemble: VisCoIN, dataset: ImageDataset, indices: np.ndarray, device: torch.device | str, batch_size: int
) -> tuple[float, float]:
    """Mean |difference| of reconstructions from their images, and the share for which f says the same."""

    def compared(images: Tensor) -> np.ndarray:
        code = ensemble.encode(images)
        drawn = ensemble.decode(code.concept_maps, code.support).float().clamp(-1, 1)
        same = ensemble.classifier(drawn).argmax(1) == code.logits.argmax(1)
        return torch.stack([(images - drawn).abs().mean((1, 2, 3)), same.float()], 1).cpu().numpy()

    with evaluation(ensemble, device):
        rows = collect(compared(images) for images, _ in own_batches(dataset, indices, batch_size, device, "drawing"))
    error, kept = np.concatenate(rows).mean(0)
    return float(error), float(kept)
