"""Surgery: concepts set to a value or swapped for others, drawn, and read back from what was drawn."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from viscoin.datasets import load_dataset, to_pixels
from viscoin.errors import Refused, reason_of
from viscoin.inference.batches import choose_images, evaluation, image_batches
from viscoin.inference.loading import Pictures, Subject
from viscoin.models import editing
from viscoin.models.directions import ConceptDirections
from viscoin.models.ensemble import Encoding, VisCoIN

MEASURED = 1000  # validation images that say what is usual, where the ensemble does not know
TOP_CLASSES = 3


@dataclass(frozen=True)
class Surgery:
    """Changes that are made together in an image.

    Attributes:
        values: concept -> value in units of its 90 % quantile; 0 removes it.
        swaps: pairs of a concept to switch off and one to switch on instead.
    """

    values: Mapping[int, float] = field(default_factory=dict)
    swaps: Sequence[tuple[int, int]] = ()

    @property
    def concepts(self) -> list[int]:
        """The concepts that are named, in their order and each once."""
        return list(dict.fromkeys([*(k for pair in self.swaps for k in pair), *self.values]))

    @property
    def lengths(self) -> tuple[float, ...]:
        """The parts of the whole change that are tried: many for a swap, all of it where values were asked for."""
        return editing.LENGTHS if self.swaps else (1.0,)

    def one_by_one(self) -> list["Surgery"]:
        """The same changes, each alone."""
        return [Surgery(swaps=(pair,)) for pair in self.swaps] + [Surgery({k: v}) for k, v in self.values.items()]

    def describe(self, names: Mapping[int, str] | None = None) -> list[str]:
        """A line for each change, as in "concept 3 → 12 (plume crest)" or "concept 5 = 0.8"."""
        names = names or {}
        named = {k: f"{k} ({names[k]})" if k in names else str(k) for k in self.concepts}
        swaps = [f"concept {named[off]} → {named[on]}" for off, on in self.swaps]
        return swaps + [f"concept {named[k]} = {value:g}" for k, value in self.values.items()]

    def apply(self, ensemble: VisCoIN, concept_maps: Tensor, usual: ConceptDirections) -> Tensor:
        """Concept maps (B, K, 3, 3) after all changes."""
        for off, on in self.swaps:
            concept_maps = editing.swapped(ensemble, concept_maps, off, on, usual=usual)
        for concept, value in self.values.items():
            concept_maps = editing.switched_on(ensemble, concept_maps, concept, value, usual)
        return concept_maps


@dataclass(frozen=True)
class Operation:
    """B images after one surgery.

    Attributes:
        surgery: what was done.
        images: (B, H, W, 3) uint8.
        changes: (B, H, W) in [0, 1], mean absolute difference to the reconstruction over the colours.
        lengths: (B,) the part of the change that was drawn.
        costs: (B, L) of each part that was tried, see `viscoin.models.editing.ReadBack`.
        target, found: (B, K) activations asked for, and read from the images.
        missed, off_target: (B,) distance of the changed concepts from their targets, and change of the others, both in
            units of the 97.5 % quantile of each.
        f_classes, g_classes: (B, C) probabilities.
    """

    surgery: Surgery
    images: np.ndarray
    changes: np.ndarray
    lengths: np.ndarray
    costs: np.ndarray
    target: np.ndarray
    found: np.ndarray
    missed: np.ndarray
    off_target: np.ndarray
    f_classes: np.ndarray
    g_classes: np.ndarray


@dataclass(frozen=True)
class SurgeryResult:
    """B images, their reconstructions, and what each surgery makes of them.

    Attributes:
        originals, reconstructions: (B, H, W, 3) uint8.
        phi: (B, 2, K) activations of both.
        f_classes, g_classes: (B, 2, C) probabilities of both.
        strong: (K,) 90 % quantile of each activation.
        operations: one for each surgery.
    """

    originals: np.ndarray
    reconstructions: np.ndarray
    phi: np.ndarray
    f_classes: np.ndarray
    g_classes: np.ndarray
    strong: np.ndarray
    operations: Sequence[Operation]

    def top_classes(self, row: int, operation: Operation, count: int = TOP_CLASSES) -> np.ndarray:
        """The class that g predicts for the original, then those most probable by f or g in any of the images."""
        seen = [
            self.f_classes[row],
            self.g_classes[row],
            operation.f_classes[None, row],
            operation.g_classes[None, row],
        ]
        largest = np.concatenate(seen).max(0)
        largest[self.g_classes[row, 0].argmax()] = np.inf
        return np.argsort(-largest, kind="stable")[:count]

    def to_dict(self, class_names: Sequence[str]) -> list[list[dict[str, Any]]]:
        """For each image, what each surgery did."""
        rows = range(len(self.originals))
        return [[self._operation(row, operation, class_names) for operation in self.operations] for row in rows]

    def _operation(self, row: int, operation: Operation, class_names: Sequence[str]) -> dict[str, Any]:
        surgery = operation.surgery
        kinds = ("original", "reconstruction", "edited")
        classes = {
            name: np.stack([*before[row], after[row]])
            for name, before, after in (
                ("f", self.f_classes, operation.f_classes),
                ("g", self.g_classes, operation.g_classes),
            )
        }
        read = [*self.phi[row], operation.target[row], operation.found[row]]
        return {
            "set": {str(k): value for k, value in surgery.values.items()},
            "swap": [list(pair) for pair in surgery.swaps],
            "length": float(operation.lengths[row]),
            "costs": dict(zip(map("{:g}".format, surgery.lengths), operation.costs[row].tolist(), strict=True)),
            "concepts": {
                str(k): {
                    name: float(phi[k] / self.strong[k]) if self.strong[k] > 0 else None
                    for name, phi in zip(("original", "reconstruction", "target", "edited"), read, strict=True)
                }
                for k in surgery.concepts
            },
            "missed": float(operation.missed[row]),
            "off_target": float(operation.off_target[row]),
            "change": float(operation.changes[row].mean()),
            "predicted": {
                name: dict(zip(kinds, (class_names[c] for c in values.argmax(1)), strict=True))
                for name, values in classes.items()
            },
            "classes": {
                class_names[c]: {
                    name: dict(zip(kinds, values[:, c].tolist(), strict=True)) for name, values in classes.items()
                }
                for c in self.top_classes(row, operation)
            },
        }


@dataclass(frozen=True)
class SurgeryStudy:
    """What `study_surgery` finds."""

    subject: Subject
    pictures: Pictures
    result: SurgeryResult

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers; labels only where they are known."""
        names, labels = self.subject.model.class_names, self.pictures.labels
        numbers: dict[str, Any] = {"images": self.pictures.names}
        if labels is not None:
            numbers["labels"] = [names[label] for label in labels]
        return numbers | {"surgery": self.result.to_dict(names)}


def study_surgery(
    subject: Subject,
    pictures: Pictures,
    surgery: Surgery,
    *,
    one_by_one: bool = False,
    batch_size: int = 64,
    seed: int = 0,
) -> SurgeryStudy:
    """Operate on some images.

    Args:
        subject: an ensemble; for one without directions, validation images of its dataset say what is usual.
        one_by_one: each change alone, instead of all together.

    Raises:
        Refused: changes that contradict one another or cannot be made, or no validation images where they are needed.
    """
    check_surgery(subject.model, surgery)
    usual = subject.model.generator.directions or measure_usual(subject, batch_size, seed)
    check_known(surgery, usual)
    surgeries = surgery.one_by_one() if one_by_one else [surgery]
    result = operate(subject.model, pictures.images, surgeries, usual, subject.device, batch_size)
    return SurgeryStudy(subject, pictures, result)


def check_surgery(ensemble: VisCoIN, surgery: Surgery) -> None:
    """Raise Refused for concepts or values that do not exist, and changes that contradict one another."""
    known = f"the ensemble has {ensemble.n_concepts} concepts, counted from 0"
    named = [("swap", k) for pair in surgery.swaps for k in pair] + [("set_concept", k) for k in surgery.values]
    if not named:
        raise Refused("swap", None, "no change is given", "give `swap` or `set_concept`")
    for parameter, concept in named:
        if not 0 <= concept < ensemble.n_concepts:
            raise Refused(parameter, concept, "out of range", known)
    for concept, value in surgery.values.items():
        if not 0 <= value < math.inf:
            raise Refused("set_concept", f"{concept}={value:g}", "expected a value of 0 or more")
    for off, on in surgery.swaps:
        if off == on:
            raise Refused("swap", f"{off}:{on}", "a concept cannot be swapped for itself", "give another one")
    _check_agreement(surgery, ensemble.concept_extractor.opposites())


def _check_agreement(surgery: Surgery, opposites: Sequence[int | None]) -> None:
    on = [new for _, new in surgery.swaps] + [k for k, value in surgery.values.items() if value > 0]
    gone = [old for old, _ in surgery.swaps]
    off = {*gone, *(k for k, value in surgery.values.items() if value == 0)}
    twice = [k for k, times in Counter(on).items() if times > 1]
    if twice:
        raise Refused("swap", twice[0], "the concept is turned on twice", "give it once")
    present = {*on, *(opposites[k] for k in gone)} - {None}
    absent = {*off, *(opposites[k] for k in on)} - {None}
    both = sorted(k for k in present & absent if k is not None)
    if both:
        reason = "the concept is turned on and off at once"
        pairs = [(k, opposites[k]) for k in both if opposites[k] is not None]
        if pairs:
            reason += f"; {pairs[0][0]} and {pairs[0][1]} are two signs of one direction and exclude each other"
        raise Refused("swap" if surgery.swaps else "set_concept", both[0], reason, "decide for one")


def check_known(surgery: Surgery, usual: ConceptDirections) -> None:
    """Raise Refused for a concept that is to be turned on, but of which no usual value is known."""
    on = [("swap", k) for _, k in surgery.swaps] + [("set_concept", k) for k, v in surgery.values.items() if v > 0]
    for parameter, concept in on:
        if not usual.strong[concept] > 0:
            reason = "fewer than a tenth of the images have the concept, so its 90 % quantile is 0 and sets no scale"
            raise Refused(parameter, concept, reason, "choose another concept")


def measure_usual(subject: Subject, batch_size: int = 64, seed: int = 0) -> ConceptDirections:
    """What is usual of the concepts of an ensemble, from random validation images of its dataset.

    Raises:
        Refused: these images are not here.
    """
    try:
        images = load_dataset(subject.config.name, "validation", subject.config)
    except (ValueError, OSError) as error:
        raise Refused(
            "dataset", subject.config.name,
            f"validation images must say what is usual of each concept, and they are not here ({reason_of(error)})",
            "give their folder by `dataset_path`",
        ) from error  # fmt: skip
    model, chosen = subject.model, choose_images(len(images), MEASURED, seed)
    with evaluation(model, subject.device):
        batches = image_batches(images, chosen, batch_size, subject.device, "usual activations")
        return editing.measured(torch.cat([model.concept_maps(batch)[1].float().clone() for batch, _ in batches]))


def operate(
    ensemble: VisCoIN,
    images: Tensor,
    surgeries: Sequence[Surgery],
    usual: ConceptDirections,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
) -> SurgeryResult:
    """Do each surgery on each image; the support Phi' stays as it is.

    Args:
        images: (B, 3, H, W) in [-1, 1], at least one.
    """
    with evaluation(ensemble, device):
        parts = [
            _operate_batch(ensemble, part.to(device, memory_format=torch.channels_last), surgeries, usual)
            for part in images.split(batch_size)
        ]
    joined = [
        {key: np.concatenate([part[i][key] for part in parts]) for key in parts[0][i]} for i in range(len(parts[0]))
    ]
    operations = [Operation(surgery, **values) for surgery, values in zip(surgeries, joined[1:], strict=True)]
    return SurgeryResult(
        originals=to_pixels(images), strong=usual.strong.cpu().numpy(), operations=operations, **joined[0]
    )


def _operate_batch(
    ensemble: VisCoIN, images: Tensor, surgeries: Sequence[Surgery], usual: ConceptDirections
) -> list[dict[str, np.ndarray]]:
    """What is the same for all surgeries, then what each has done."""
    code = ensemble.encode(images)
    rebuilt = editing.drawn_images(ensemble, code, code.concept_maps)
    before = _answers(ensemble, ensemble.encode(rebuilt))
    first = {key: torch.stack([value, before[key]], 1) for key, value in _answers(ensemble, code).items()}
    found = [
        {**_numpy(first), "reconstructions": to_pixels(rebuilt)},
    ]
    for surgery in surgeries:
        edited = surgery.apply(ensemble, code.concept_maps, usual)
        drawn = editing.length_by_readback(ensemble, code, edited, surgery.lengths, usual)
        after = _answers(ensemble, ensemble.encode(drawn.images))
        target = ensemble.activations(edited)
        changed = editing.changed_concepts(ensemble.activations(code.concept_maps), target, usual)
        read = editing.read_back(after["phi"], before["phi"], target, changed, usual)
        values = {
            "changes": (drawn.images - rebuilt).abs().mean(1) / 2,
            "lengths": drawn.lengths,
            "costs": drawn.costs,
            "target": target,
            "found": after.pop("phi"),
            "missed": read.missed,
            "off_target": read.off_target,
        }
        found.append({**_numpy({**values, **after}), "images": to_pixels(drawn.images)})
    return found


def _answers(ensemble: VisCoIN, code: Encoding) -> dict[str, Tensor]:
    """Activations, and probabilities by f and g, each (B, ...)."""
    return {
        "phi": ensemble.activations(code.concept_maps),
        "f_classes": code.logits.float().softmax(1),
        "g_classes": ensemble.explain(code.concept_maps).float().softmax(1),
    }


def _numpy(values: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {key: value.float().cpu().numpy() for key, value in values.items()}
