"""All subjects asked all questions, as one table."""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from viscoin.datasets import ImageDataset
from viscoin.errors import Refused
from viscoin.inference.batches import progress
from viscoin.models.classifier import Classifier
from viscoin.models.ensemble import VisCoIN
from viscoin.printing import said_once
from viscoin.statistics.bootstrap import Estimate, bootstrap
from viscoin.testing.attribution.robustness import perturbations
from viscoin.testing.scorecard.concepts import concept_functions
from viscoin.testing.scorecard.questions import QUESTIONS, Maps, ask
from viscoin.testing.scorecard.scenes import SCENES, Cases, choose_cases
from viscoin.testing.scorecard.subjects import Subject, class_subjects, concept_subjects

NOISES = 4
RESAMPLES = 500

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """The mean score of a question over n scenes with its 95 % interval.

    Attributes:
        chance: the mean of what chance would have in the same scenes.
        above_chance: whether the 95 % interval of the difference from it, scene by scene, lies above 0.
        above_edges: the same of the difference from `edges`; None for the controls.
    """

    estimate: Estimate
    chance: float
    above_chance: bool
    above_edges: bool | None = None


@dataclass(frozen=True)
class Example:
    """One scene, (3, H, W, 3) uint8: whole, without the part in question, and without the objects behind the bird;
    the maps (3, H, W) there; and what they explain."""

    case: int
    maps: np.ndarray
    explains: str


@dataclass(frozen=True)
class Row:
    """A subject and its answers by question; a question that could not be asked is not there.

    Attributes:
        seconds: for one map, on average over all that were made.
    """

    name: str
    kind: str
    method: str
    function: str | None
    k: int | None
    signed: bool
    answers: dict[str, Answer]
    seconds: float
    example: Example

    def to_dict(self) -> dict[str, Any]:
        known = {"name": self.name, "kind": self.kind, "method": self.method, "function": self.function, "k": self.k}
        answers = {question: asdict(answer) for question, answer in self.answers.items()}
        return known | {"signed": self.signed, "seconds": self.seconds, "answers": answers}


@dataclass(frozen=True)
class Scorecard:
    """All rows, why others are not there, and the scenes that they were asked about."""

    rows: list[Row]
    left_out: dict[str, str]
    cases: Cases
    seed: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "scenes": len(self.cases),
            "skipped": self.cases.skipped,
            "with_objects": int(self.cases.objects.sum()),
            "parts": self.cases.counts,
            "mean_fall_of_logit": float(self.cases.falls.mean()),
            "noises": NOISES,
            "seed": self.seed,
            "questions": {name: asdict(question) for name, question in QUESTIONS.items()},
            "rows": [row.to_dict() for row in self.rows],
            "left_out": self.left_out,
        }


def test_scorecard(
    model: VisCoIN | Classifier,
    test: ImageDataset,
    validation: ImageDataset | None,
    methods: Sequence[str],
    rivals: Sequence[str] = (),
    scenes: int = SCENES,
    device: torch.device | str = "cpu",
    batch_size: int = 32,
    seed: int = 0,
) -> Scorecard:
    """Ask maps of classes and of concepts the same questions about the same scenes.

    Args:
        model: an ensemble, or a classifier alone, which has no concepts.
        validation: images on which rivals are fitted and concepts are matched to attributes; None: no concepts.
        methods: of class maps, names of `METHODS`; controls always take part.
        rivals: names of `baselines.RIVALS` beside the ensemble's concepts.
        scenes: size of a random sample of test images.

    Raises:
        Refused: nothing in the scenes of this dataset can be deleted.
        TooFewImages: fewer than two scenes have a part that f needs.
    """
    classifier = model.classifier if isinstance(model, VisCoIN) else model
    cases = choose_cases(classifier, test, scenes, device, seed)
    subjects = class_subjects(classifier, test.class_names, cases, methods, device, batch_size, seed)
    if isinstance(model, VisCoIN) and validation is not None:
        functions = concept_functions(model, validation, rivals, device, batch_size, seed)
        subjects += concept_subjects(functions, validation, cases, device, batch_size, seed)
    return scorecard(subjects, cases, seed)


@dataclass(frozen=True)
class _Asked:
    """What came of one subject."""

    subject: Subject
    scores: Mapping[str, tuple[np.ndarray, np.ndarray]]
    seconds: float
    shown: np.ndarray  # (3, N, H, W)


def scorecard(subjects: Iterable[Subject], cases: Cases, seed: int = 0) -> Scorecard:
    """Ask every subject; one that refuses is left out, with its reason."""
    subjects, noisy = list(subjects), perturbations(cases.images, NOISES, seed=seed).swapaxes(0, 1) + cases.images
    found, left_out = [], {}
    with said_once("viscoin.attribution.activation"), progress(len(subjects), "scorecard", "row") as bar:
        for subject in subjects:
            try:
                found.append(_asked(subject, cases, noisy))
            except Refused as error:
                left_out[subject.name] = error.reason
                logger.warning("%s is left out: %s", subject.name, error.reason)
            bar.update()
    edges = next((one.scores for one in found if one.subject.name == "edges"), None)
    shown = _shown(found, cases)
    return Scorecard([_row(one, edges, shown, seed) for one in found], left_out, cases, seed)


def _asked(subject: Subject, cases: Cases, noisy: torch.Tensor) -> _Asked:
    rows = np.flatnonzero(subject.asked)
    if len(rows) < 2:
        raise Refused("scenes", None, f"{len(rows)} of {len(cases)} scenes show what it knows", "take more scenes")
    began = time.perf_counter()
    whole, without, plain = (subject.maps(images[rows], rows) for images in (cases.images, cases.without, cases.plain))
    maps = Maps(whole, without, plain, np.stack([subject.maps(images[rows], rows) for images in noisy]))
    seconds = (time.perf_counter() - began) / ((3 + len(noisy)) * len(rows))
    answers = ask(maps, cases.grown[rows], cases.objects[rows]).items()
    scores = {
        question: (_spread(values, rows, len(cases)), _spread(chance, rows, len(cases)))
        for question, (values, chance) in answers
    }
    shown = np.stack([_spread(part, rows, len(cases)) for part in (whole, without, plain)])
    return _Asked(subject, scores, seconds, shown)


def _spread(values: np.ndarray, rows: np.ndarray, n: int) -> np.ndarray:
    """Values (M, ...) of some of n scenes as (n, ...), NaN for the others."""
    found = np.full((n, *values.shape[1:]), np.nan)
    found[rows] = values
    return found


def _shown(found: Sequence[_Asked], cases: Cases) -> int:
    """The scene of the pictures: one that most subjects are asked about, with objects, its part of the median size."""
    asked = np.sum([one.subject.asked for one in found], 0)
    best = np.flatnonzero((asked == asked.max()) & cases.objects)
    best = best if len(best) else np.flatnonzero(asked == asked.max())
    return int(best[np.argsort(cases.masks[best].sum((1, 2)), kind="stable")[len(best) // 2]])


def _row(one: _Asked, edges: Mapping[str, tuple[np.ndarray, np.ndarray]] | None, shown: int, seed: int) -> Row:
    subject = one.subject
    answers = {}
    for question, (values, chance) in one.scores.items():
        other = None if edges is None or subject.kind == "control" else edges[question][0]
        if not np.isnan(values).all():
            answers[question] = _answer(values, chance, other, seed)
    case = shown if subject.asked[shown] else int(np.flatnonzero(subject.asked)[0])
    return Row(
        subject.name, subject.kind, subject.method, subject.function, subject.k, subject.signed, answers, one.seconds,
        Example(case, one.shown[:, case], subject.explains[case]),
    )  # fmt: skip


def _answer(values: np.ndarray, chance: np.ndarray, edges: np.ndarray | None, seed: int) -> Answer:
    known = ~np.isnan(values)
    estimate = bootstrap(values[known], seed=seed, resamples=RESAMPLES, unit="scenes")
    return Answer(
        estimate,
        float(np.nanmean(chance)),
        _above(values - chance, seed),
        None if edges is None else _above(values - edges, seed),
    )


def _above(difference: np.ndarray, seed: int) -> bool:
    known = difference[~np.isnan(difference)]
    return bool(len(known) > 1 and bootstrap(known, seed=seed, resamples=RESAMPLES).low > 0)
