"""All that `test attribution` measures, from a loaded classifier to tables."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from viscoin.datasets import load_dataset
from viscoin.errors import Refused, reason_of
from viscoin.inference.loading import SubjectWithImages
from viscoin.models.files import find_model, load_model
from viscoin.testing.attribution.comparison import Cost, compare_vision_diffmask, comparison_table, cost_table, costs
from viscoin.testing.attribution.cost import BATCHES
from viscoin.testing.attribution.methods import Trained, named_methods
from viscoin.testing.attribution.study import FAST, FULL, AttributionScores, Extent, test_attribution
from viscoin.testing.attribution.tables import Table, method_tables, scores_csv, sentences
from viscoin.testing.attribution.types import Explain

DIFFMASK = "diffmask"


@dataclass
class Outcome:
    """Plain numbers, tables by name, sentences below them, and text files by name; `scores` is for figures."""

    numbers: dict[str, Any]
    tables: dict[str, Table]
    sentences: list[str]
    files: dict[str, str] = field(default_factory=dict)
    scores: AttributionScores | None = None


def extent_of(limit: int | None, fast: bool) -> Extent:
    """How much is measured."""
    extent = FAST if fast else FULL
    return extent if limit is None else replace(extent, images=limit)


def run_attribution(
    subject: SubjectWithImages,
    methods: Sequence[str] | None = None,
    diffmask: Path | None = None,
    groups: Sequence[str] | None = None,
    extent: Extent = FULL,
    *,
    protocol: str = "viscoin",
    cost: bool = False,
    baseline: str = "blur",
    batch_size: int = 32,
    seed: int = 0,
) -> Outcome:
    """Measure methods on the test images of a classifier.

    Args:
        methods: names of `METHODS`; default: all that are not slow.
        diffmask: a DiffMask of this classifier, as one more method.
        groups: as `test_attribution`.
        protocol: "viscoin", or "vision-diffmask" for `compare_vision_diffmask`.
        cost: measure what methods cost, too.

    Raises:
        Refused: an unknown method or group, none of the named methods holds for the classifier, a DiffMask of another
            classifier, or masks that do not fit.
    """
    device = subject.device
    trained = {} if diffmask is None else {DIFFMASK: _trained(subject, diffmask, batch_size)}
    chosen = named_methods(methods, trained, batch_size=batch_size, device=device, baseline=baseline, seed=seed)
    _check_some_hold(subject, {name: chosen[name] for name in methods or ()})
    if protocol == "vision-diffmask":
        return _vision_diffmask(subject, chosen, batch_size)
    # before the scores, which take longest: whoever ends it here loses little
    spent = _costs(subject, chosen) if cost else {}
    known = load_dataset(subject.config.name, "validation", subject.config, subject.images.labelled)
    found = test_attribution(
        subject.model, subject.images, known, chosen, groups, extent, device=device, batch_size=batch_size, seed=seed
    )
    outcome = Outcome(found.to_dict(), method_tables(found), sentences(found), {"scores.csv": scores_csv(found)}, found)
    if cost:
        outcome.tables["cost"] = cost_table(spent)
        outcome.numbers["cost"] = {name: one.to_dict() for name, one in spent.items()}
    return outcome


def _costs(subject: SubjectWithImages, methods: dict[str, Explain]) -> dict[str, Cost]:
    images, _ = subject.images.batch(range(min(BATCHES[-1], len(subject.images))))
    return costs(subject.model, subject.path, images.to(subject.device), methods, subject.device)


def _check_some_hold(subject: SubjectWithImages, named: dict[str, Explain]) -> None:
    """Refused where no method that was named gives a map, before the controls are measured for nothing."""
    image, label = subject.images.batch([0])
    first: tuple[str, Exception] | None = None
    for name, explain in named.items():
        try:
            explain(subject.model, image.to(subject.device), label, [0])
        except Exception as error:  # whatever a method of others raises
            first = first or (name, error)
        else:
            return
    if first is not None:
        name, cause = first
        known = (cause.reason, cause.remedy) if isinstance(cause, Refused) else (reason_of(cause), "")
        raise Refused("methods", name, *known) from cause


def _trained(subject: SubjectWithImages, path: Path, batch_size: int) -> Explain:
    mask_model = load_model(find_model("diffmask", path, subject.config.name), "diffmask").model
    mask_model.check_classifier(subject.model)
    return Trained(mask_model.to(subject.device), batch_size, subject.device)


def _vision_diffmask(subject: SubjectWithImages, methods: dict[str, Explain], batch_size: int) -> Outcome:
    found, failed = compare_vision_diffmask(
        subject.model, subject.images, methods, device=subject.device, batch_size=batch_size
    )
    numbers = {"protocol": "vision-diffmask", "methods": {name: one.to_dict() for name, one in found.items()}}
    reasons = [f"{name} has no row: {reason}" for name, reason in failed.items()]
    return Outcome({**numbers, "failed": failed}, {"vision-diffmask": comparison_table(found)}, reasons)
