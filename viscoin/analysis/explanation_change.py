"""The same image with one or two concepts changed, drawn by G, so that f changes its mind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from viscoin.analysis.surgery import Operation, Surgery, SurgeryResult, measure_usual, operate
from viscoin.errors import Refused
from viscoin.inference.batches import evaluation
from viscoin.inference.loading import Subject
from viscoin.models import editing
from viscoin.models.directions import ConceptDirections
from viscoin.models.ensemble import VisCoIN

DRAWN = 8  # changes of each size that are drawn
AMONG = 12  # single changes of which pairs are made
SUBTLE = 0.05  # share of its usual value below which a concept is not there


@dataclass(frozen=True)
class Change:
    """A change of concepts, drawn.

    Attributes:
        on: concepts that were turned on; off: their opposites, which went with it, or concepts that were removed.
        reconstruction: (H, W, 3) uint8, drawn with nothing changed; edited: with the change.
        heat: (H, W) in [0, 1], where both differ.
        before: (C,) f's probabilities of the reconstruction; after: of the edited image.
        predicted: f's class of the image itself.
        missed, off_target: see `viscoin.models.editing.ReadBack`.
        tried: how many changes were drawn.
    """

    on: Sequence[int]
    off: Sequence[int]
    reconstruction: np.ndarray
    edited: np.ndarray
    heat: np.ndarray
    before: np.ndarray
    after: np.ndarray
    predicted: int
    missed: float
    off_target: float
    tried: int

    @property
    def becomes(self) -> int:
        """What f says of the edited image."""
        return int(self.after.argmax())

    @property
    def faithful(self) -> bool:
        """Whether f says of the reconstruction what it says of the image."""
        return int(self.before.argmax()) == self.predicted

    @property
    def changes(self) -> bool:
        """Whether f changes its mind, and by the change alone."""
        return self.faithful and self.becomes != self.predicted

    def describe(self, names: Mapping[int, str]) -> str:
        """ "dark eye turned into red eye", as far as concepts have names."""
        called = {k: names.get(k) or f"concept {k}" for k in (*self.on, *self.off)}
        pairs = dict(zip(self.on, self.off, strict=False))
        texts = [f"{called[pairs[k]]} turned into {called[k]}" if k in pairs else f"{called[k]} added" for k in self.on]
        return " and ".join(texts or [f"{called[k]} removed" for k in self.off])

    def to_dict(self, class_names: Sequence[str], names: Mapping[int, str]) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "change": self.describe(names), "on": list(self.on), "off": list(self.off), "changes": self.changes,
            "reconstruction": _answer(self.before, class_names), "edited": _answer(self.after, class_names),
            "missed": self.missed, "off_target": self.off_target, "tried": self.tried,
        }  # fmt: skip


def _answer(probabilities: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    best = int(probabilities.argmax())
    return {"predicted": class_names[best], "probability": float(probabilities[best])}


def usual_concepts(subject: Subject, batch_size: int = 64, seed: int = 0) -> ConceptDirections:
    """What is usual of the concepts of an ensemble; Refused where neither it nor its images can say."""
    return subject.model.generator.directions or measure_usual(subject, batch_size, seed)


def find_change(
    ensemble: VisCoIN,
    image: Tensor,
    usual: ConceptDirections,
    device: torch.device | str = "cpu",
    batch_size: int = 32,
) -> Change:
    """The smallest change of concepts that makes f say something else of the image (3, H, W) that G draws of it.

    First concepts one by one, then pairs, as g expects them to change the prediction most: of those that are drawn and
    change f's mind, the one that disturbs other concepts least is taken. Where none does, the one that comes nearest.

    Raises:
        Refused: no concept is there to be changed.
    """
    singles, margins = _singles(ensemble, image, usual, device)
    if not singles:
        raise Refused(None, None, "no concept of this image can be changed", "try another image")
    order = np.argsort(margins, kind="stable")
    pairs = _pairs(ensemble, [singles[i] for i in order[:AMONG]])
    best: tuple[SurgeryResult, int] | None = None
    tried = 0
    for surgeries in ([singles[i] for i in order[:DRAWN]], pairs[:DRAWN]):
        if not surgeries:
            continue
        result = operate(ensemble, image[None], surgeries, usual, device, batch_size)
        tried += len(surgeries)
        chosen, changed = _best(result)
        if changed or best is None:
            best = result, chosen
        if changed:
            break
    if best is None:
        raise RuntimeError("no change was drawn")
    return _change(ensemble, *best, tried)


def _singles(
    ensemble: VisCoIN, image: Tensor, usual: ConceptDirections, device: torch.device | str
) -> tuple[list[Surgery], np.ndarray]:
    """Single changes, and for each how far g is then still above its second choice."""
    with evaluation(ensemble, device):
        maps = ensemble.concept_maps(image[None].to(device))[1]
        own = int(ensemble.explain(maps)[0].argmax())
        phi, strong = ensemble.activations(maps)[0], usual.strong.to(maps)
        opposites = ensemble.concept_extractor.opposites()
        found, edited = list[Surgery](), list[Tensor]()
        for k, opposite in enumerate(opposites):
            if opposite is not None and strong[opposite] > 0 and phi[k] > phi[opposite]:
                found.append(Surgery({opposite: 1.0}))
                edited.append(editing.switched_on(ensemble, maps, opposite, 1.0, usual))
            elif opposite is None and phi[k] > SUBTLE * strong[k]:
                found.append(Surgery({k: 0.0}))
                edited.append(editing.switched_on(ensemble, maps, k, 0.0, usual))
        if not found:
            return [], np.zeros(0)
        logits = ensemble.explain(torch.cat(edited)).float()
        rivals = logits.clone()
        rivals[:, own] = -torch.inf
        return found, (logits[:, own] - rivals.amax(1)).cpu().numpy()


def _pairs(ensemble: VisCoIN, singles: Sequence[Surgery]) -> list[Surgery]:
    """Two of the changes together, the strongest first."""
    ranked = sorted(combinations(range(len(singles)), 2), key=sum)
    return [Surgery({**singles[i].values, **singles[j].values}) for i, j in ranked]


def _best(result: SurgeryResult) -> tuple[int, bool]:
    """The operation to show, and whether f changes its mind by it."""
    predicted = int(result.f_classes[0, 0].argmax())
    changed = [
        i for i, one in enumerate(result.operations)
        if int(result.f_classes[0, 1].argmax()) == predicted and int(one.f_classes[0].argmax()) != predicted
    ]  # fmt: skip
    if changed:
        return min(changed, key=lambda i: float(result.operations[i].off_target[0])), True
    return min(range(len(result.operations)), key=lambda i: float(result.operations[i].f_classes[0, predicted])), False


def _change(ensemble: VisCoIN, result: SurgeryResult, chosen: int, tried: int) -> Change:
    operation: Operation = result.operations[chosen]
    opposites = ensemble.concept_extractor.opposites()
    on = [k for k, value in operation.surgery.values.items() if value > 0]
    off = [opposite for k in on if (opposite := opposites[k]) is not None]
    off += [k for k, value in operation.surgery.values.items() if value == 0]
    return Change(
        on, off, result.reconstructions[0], operation.images[0], operation.changes[0], result.f_classes[0, 1],
        operation.f_classes[0], int(result.f_classes[0, 0].argmax()), float(operation.missed[0]),
        float(operation.off_target[0]), tried,
    )  # fmt: skip
