"""All that can be said about one prediction: places, concepts, what would change it, and how true that is."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from viscoin.analysis.explanation_change import Change, find_change, usual_concepts
from viscoin.analysis.explanation_concepts import Library, Votes, count_votes, open_library
from viscoin.analysis.explanation_patches import HiddenPatches, fewest_patches
from viscoin.analysis.explanation_places import Places, find_places, probabilities
from viscoin.analysis.explanation_trust import Facts, Trust, how_far_to_trust
from viscoin.analysis.questions import target_of
from viscoin.attribution.measured import Measured, measured_for
from viscoin.datasets import to_pixels
from viscoin.errors import Refused
from viscoin.inference.batches import progress
from viscoin.inference.loading import Pictures, Subject
from viscoin.models.directions import ConceptDirections
from viscoin.models.ensemble import VisCoIN
from viscoin.models.no_generator import REASON

SHOWN = 5  # classes
STEPS = ("where it looks", "which patches would change it", "concepts", "drawing")
logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Explanation:
    """One image, and what a model makes of it.

    Attributes:
        name: of the image; `pixels` (H, W, 3) uint8, as f sees it.
        label: true class, None where it is not known.
        class_names: (C,); probabilities: (C,) of f.
        places: maps; None where no measured method holds for f, which `missing` explains.
        patches: the fewest without which f says something else.
        votes, change: of an ensemble, and of one with a generator.
        concept_names: of those that have one; `named_by` says where they come from.
        trust: what all this is worth, a sentence or two for each part.
        missing: parts that there are not, and why: "concepts", "crops", "drawing", "places".
        prepared: how the file was made a square for f, "" where it was one.
    """

    name: str
    pixels: np.ndarray
    label: int | None
    class_names: Sequence[str]
    probabilities: np.ndarray
    places: Places | None
    patches: HiddenPatches
    votes: Votes | None = None
    change: Change | None = None
    concept_names: Mapping[int, str] = field(default_factory=dict)
    named_by: str = ""
    trust: Sequence[Trust] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    prepared: str = ""

    @property
    def ranked(self) -> list[int]:
        """The most probable classes."""
        return np.argsort(-self.probabilities, kind="stable")[:SHOWN].tolist()

    @property
    def predicted(self) -> int:
        return self.ranked[0]

    @property
    def runner_up(self) -> int:
        return self.ranked[1]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and sentences, without pictures."""
        names = list(self.class_names)
        found = {
            "image": self.name,
            "prepared": self.prepared,
            "predicted": names[self.predicted],
            "probability": float(self.probabilities[self.predicted]),
            "runner_up": names[self.runner_up],
            "classes": [{"class": names[c], "probability": float(self.probabilities[c])} for c in self.ranked],
        }
        if self.label is not None:
            found |= {"true": names[self.label], "right": self.label == self.predicted}
        return found | {
            "where": None if self.places is None else self.places.to_dict(),
            "concepts": None if self.votes is None else self.votes.to_dict(names, self.concept_names),
            "fewest_patches": self.patches.to_dict(names),
            "drawn_change": None if self.change is None else self.change.to_dict(names, self.concept_names),
            "concepts_named_by": self.named_by,
            "trust": [vars(one) for one in self.trust],
            "missing": dict(self.missing),
        }


@dataclass(frozen=True)
class Explainer:
    """A model with all that explaining an image takes, which is found once.

    Attributes:
        subject: a classifier or an ensemble.
        scores: what was measured of it, from its file, by name; of an ensemble the measures of `test viscoin`.
        measured: of methods of attribution; `same_network`: on this very f.
        library: of an ensemble; `usual`: of one that draws.
    """

    subject: Subject
    scores: Mapping[str, float]
    measured: Measured
    same_network: bool
    library: Library | None = None
    usual: ConceptDirections | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    batch_size: int = 32
    seed: int = 0

    def explain(self, pictures: Pictures) -> Iterator[Explanation]:
        """One explanation after the other."""
        with progress(len(pictures.images) * self.steps, "explain", "step") as bar:
            for row in range(len(pictures.images)):
                yield self._explain(pictures, row, bar)

    @property
    def steps(self) -> int:
        """How many of `STEPS` an image takes."""
        return 2 + (self.library is not None) + (self.usual is not None)

    def _explain(self, pictures: Pictures, row: int, bar: Any) -> Explanation:
        name, image = pictures.names[row], pictures.images[row : row + 1]

        def step(number: int, work: Callable[[], T]) -> T:
            if number >= self.steps:
                return work()
            logger.info("%s: %s (%d of %d)", name, STEPS[number], number + 1, self.steps)
            found = work()
            bar.update()
            return found

        target, missing = target_of(self.subject.model, "f"), dict(self.missing)
        shares = probabilities(target, image, self.subject.device, self.batch_size)[0]
        one = Pictures(image, [name], None, pictures.indices[row : row + 1])
        places = step(0, lambda: self._places(one, missing))
        heat = places.maps[0].heat if places is not None else np.zeros(image.shape[-2:])
        patches = step(1, lambda: fewest_patches(target, image[0], heat, self.subject.device, self.batch_size))
        votes = step(2, lambda: self._votes(image[0]))
        change = step(3, lambda: self._change(image[0], missing))
        library = self.library or Library()
        label = None if pictures.labels is None else int(pictures.labels[row])
        names, model = self.subject.class_names, str(self.subject.path)
        facts = Facts(self.scores, shares, places, patches, votes, change, library, names, model)
        return Explanation(
            name, to_pixels(image)[0], label, self.subject.class_names, shares, places, patches, votes, change,
            library.names, library.named_by, how_far_to_trust(facts), missing,
            pictures.prepared[row] if pictures.prepared else "",
        )  # fmt: skip

    def _places(self, picture: Pictures, missing: dict[str, str]) -> Places | None:
        model = self.subject.model
        try:
            return find_places(
                target_of(model, "f"), picture, self.subject.class_names, self.measured, self.same_network,
                self.subject.device, self.batch_size, self.seed,
            )  # fmt: skip
        except Refused as error:
            missing["places"] = error.reason
            return None

    def _votes(self, image: Tensor) -> Votes | None:
        if self.library is None:
            return None
        model, device = self.subject.model, self.subject.device
        return count_votes(model, image, self.library, device, self.batch_size, self.seed)

    def _change(self, image: Tensor, missing: dict[str, str]) -> Change | None:
        if self.usual is None:
            return None
        try:
            return find_change(self.subject.model, image, self.usual, self.subject.device, self.batch_size)
        except Refused as error:
            missing["drawing"] = error.reason
            return None


def prepare(
    subject: Subject,
    scores: Mapping[str, float],
    *,
    measured: Measured | None = None,
    names: Mapping[int, str] | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> Explainer:
    """All that explaining images by a model takes.

    Args:
        subject: a classifier, or an ensemble, with a generator or without.
        scores: from the model's file.
        measured: of methods on this very f; by default what was measured on the network nearest to it.
        names: of concepts; by default the attributes of the data that they detect, where it has any.

    Raises:
        Refused: f knows one class alone.
    """
    model = subject.model
    if len(subject.class_names) < 2:
        raise Refused(None, None, "the classifier knows one class alone, so nothing speaks against it")
    found, same = (measured, True) if measured is not None else measured_for(getattr(model, "classifier", model))
    missing: dict[str, str] = {}
    if not isinstance(model, VisCoIN):
        missing["concepts"] = "f alone shows none; `train viscoin` finds some, also without a generator"
        return Explainer(subject, scores, found, same, missing=missing, batch_size=batch_size, seed=seed)
    library = open_library(subject, names, batch_size, seed)
    if library.missing:
        missing["crops"] = f"images of the model's own data are not here ({library.missing})"
    usual = None
    if not model.draws:
        missing["drawing"] = REASON
    else:
        try:
            usual = usual_concepts(subject, batch_size, seed)
        except Refused as error:
            missing["drawing"] = error.reason
    return Explainer(subject, scores, found, same, library, usual, missing, batch_size, seed)
