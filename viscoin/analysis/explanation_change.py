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
        """ "dark eye turned into red eye", or by the one of two opposites that has a name: "crest turned on"."""
        partners = dict(zip(self.on, self.off, strict=False))
        texts = [_turned(partners.get(k), k, names) for k in self.on]
        return " and ".join(texts or [_turned(k, None, names) for k in self.off])

    def to_dict(self, class_names: Sequence[str], names: Mapping[int, str]) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "change": self.describe(names), "on": list(self.on), "off": list(self.off), "changes": self.changes,
            "reconstruction": _answer(self.before, class_names), "edited": _answer(self.after, class_names),
            "missed": self.missed, "off_target": self.off_target, "tried": self.tried,
        }  # fmt: skip


def _turned(off: int | None, on: int | None, names: Mapping[int, str]) -> str:
    old, new = (None if k is None else names.get(k) for k in (off, on))
    if off is None or (new and not old):
        return f"{new or f'concept {on}'} turned on"
    if on is None or (old and not new):
        return f"{old or f'concept {off}'} turned off"
    return f"{old or f'concept {off}'} turned into {new or f'concept {on}'}"


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

    First concepts one by one, then pairs: those that g expects to change the prediction most are drawn, and f is asked.
    Of those that change its mind, the one is taken that leads to the class which g expects, and disturbs other concepts
    least. Where none does, the one that comes nearest.

    Raises:
        Refused: no concept is there to be changed.
    """
    with evaluation(ensemble, device):
        maps = ensemble.concept_maps(image[None].to(device))[1]
        singles = _singles(ensemble, maps, usual)
        if not singles:
            raise Refused(None, None, "no concept of this image can be changed", "try another image")
        ranked = _foreseen(ensemble, maps, singles, usual)
    tried, best = 0, list[tuple[SurgeryResult, int]]()
    for pairs in (False, True):
        if pairs:
            with evaluation(ensemble, device):
                both = [_together(one, other) for (one, _), (other, _) in combinations(ranked[:AMONG], 2)]
                ranked = _foreseen(ensemble, maps, both, usual) if both else []
        if not ranked:
            break
        surgeries, expected = zip(*ranked[:DRAWN], strict=True)
        result = operate(ensemble, image[None], surgeries, usual, device, batch_size)
        tried += len(surgeries)
        chosen, changed = _best(result, expected)
        best.append((result, chosen))
        if changed:
            return _change(ensemble, result, chosen, tried)
    result, chosen = min(best, key=_still_predicted)
    return _change(ensemble, result, chosen, tried)


def _singles(ensemble: VisCoIN, maps: Tensor, usual: ConceptDirections) -> list[Surgery]:
    """Single changes of what concept maps (1, K, 3, 3) hold: a concept turned into its opposite, or removed."""
    phi, strong = ensemble.activations(maps)[0], usual.strong.to(maps)
    found = []
    for k, opposite in enumerate(ensemble.concept_extractor.opposites()):
        if opposite is not None and strong[opposite] > 0 and phi[k] > phi[opposite]:
            found.append(Surgery({opposite: 1.0}))
        elif opposite is None and phi[k] > SUBTLE * strong[k]:
            found.append(Surgery({k: 0.0}))
    return found


def _together(one: Surgery, other: Surgery) -> Surgery:
    return Surgery({**one.values, **other.values})


def _foreseen(
    ensemble: VisCoIN, maps: Tensor, surgeries: Sequence[Surgery], usual: ConceptDirections
) -> list[tuple[Surgery, int]]:
    """Changes with the class that g then expects, those first that leave least of the predicted one."""
    own = int(ensemble.explain(maps)[0].argmax())
    logits = ensemble.explain(torch.cat([surgery.apply(ensemble, maps, usual) for surgery in surgeries])).float()
    others = logits.clone()
    others[:, own] = -torch.inf
    margins, expected = logits[:, own] - others.amax(1), logits.argmax(1)
    return [(surgeries[i], int(expected[i])) for i in margins.argsort(stable=True).tolist()]


def _best(result: SurgeryResult, expected: Sequence[int]) -> tuple[int, bool]:
    """The operation to show, and whether f changes its mind by it."""
    predicted, unchanged = (int(answer.argmax()) for answer in result.f_classes[0])
    answers = [int(one.f_classes[0].argmax()) for one in result.operations]
    changed = [i for i, answer in enumerate(answers) if unchanged == predicted != answer]
    if changed:
        return min(changed, key=lambda i: (answers[i] != expected[i], float(result.operations[i].off_target[0]))), True
    return min(range(len(answers)), key=lambda i: _still_predicted((result, i))), False


def _still_predicted(found: tuple[SurgeryResult, int]) -> float:
    """What an operation leaves of f's probability of the class that it predicts."""
    result, i = found
    return float(result.operations[i].f_classes[0, int(result.f_classes[0, 0].argmax())])


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
