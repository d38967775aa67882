"""How far each part of an explanation can be trusted, by what was measured: of this model, and on this very image."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import beta

from viscoin.analysis.explanation_change import Change
from viscoin.analysis.explanation_concepts import Library, Votes
from viscoin.analysis.explanation_patches import HiddenPatches
from viscoin.analysis.explanation_places import Places
from viscoin.program import program_name

GOOD, FAIR, POOR, UNKNOWN = "good", "fair", "poor", "not measured"
SURE, UNSURE = 0.9, 0.6  # probabilities
AGREE, DIFFER = 0.6, 0.3  # rank correlations
HALF, MOST = 0.5, 0.8  # of a probability that is left
AGREEMENT = ("ensemble.agreement", "validation.agreement")  # what files call it


@dataclass(frozen=True)
class Trust:
    """What one part of an explanation is worth.

    Attributes:
        about: the part: "prediction", "maps", "concepts", "patches" or "drawing".
        level: "good", "fair", "poor" or "not measured".
        says: for people; `rests_on`: the numbers behind it, and where they come from.
    """

    about: str
    level: str
    says: str
    rests_on: str


@dataclass(frozen=True)
class Facts:
    """What there is to judge by; see `Explanation`."""

    scores: Mapping[str, float]
    probabilities: np.ndarray
    places: Places | None
    patches: HiddenPatches
    votes: Votes | None
    change: Change | None
    library: Library
    class_names: Sequence[str]


def how_far_to_trust(facts: Facts) -> list[Trust]:
    """A judgement on each part that there is."""
    return [*_prediction(facts), *_maps(facts), *_concepts(facts), *_drawing(facts), *_patches(facts)]


def known_accuracy(scores: Mapping[str, Any]) -> tuple[float, int | None] | None:
    """Accuracy of f as its file says it, and on how many images, where that is known."""
    for name, count in (("classifier.accuracy", "n"), ("accuracy", "n"), ("validation.accuracy", "validation.n")):
        if name in scores:
            n = scores.get(count)
            return float(scores[name]), None if n is None else int(n)
    return None


def interval(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of n images (Clopper & Pearson 1934)."""
    hits = round(share * n)
    low = beta.ppf(0.025, hits, n - hits + 1) if hits else 0.0
    return float(low), float(beta.ppf(0.975, hits + 1, n - hits)) if hits < n else 1.0


def _prediction(facts: Facts) -> Iterator[Trust]:
    top = float(facts.probabilities.max())
    found = known_accuracy(facts.scores)
    sure = f"It gives this answer {_share(top)}."
    unusual = " On an image unlike those that it learned from, it can be as sure and wrong."
    if found is None:
        yield Trust(
            "prediction", UNKNOWN, "Nobody has measured how often this classifier is right." + unusual,
            f"{sure} Its file holds no accuracy; measure it with `{program_name()} test classifier`.",
        )  # fmt: skip
        return
    value, n = found
    ends = "" if n is None else " (95 % interval {} to {})".format(*map(_percent, interval(value, n)))
    level = POOR if value < UNSURE or top < HALF else FAIR if value < SURE or top < SURE else GOOD
    tested = "images" if n is None else f"{n} images"
    says = f"The classifier was right on {_percent(value)} of the {tested} that it was tested on."
    if top < SURE:
        says += " Of this image it is not sure."
    yield Trust(
        "prediction", level, says + unusual,
        f"{sure} Accuracy {value:.3f}{ends}, from the model's file.",
    )  # fmt: skip


def _maps(facts: Facts) -> Iterator[Trust]:
    places = facts.places
    if places is None:
        return
    first = places.maps[0]
    here = (
        f"With the strongest tenth of {first.title}'s map blurred, {_percent(first.kept)} of the probability is left; "
        f"with random places of that size, {_percent(first.kept_at_random)}."
    )
    if not np.isnan(places.agreement):
        here += f" The maps agree with a rank correlation of {places.agreement:.2f}."
    score = places.measured.methods[first.method]
    table = (
        f"{first.title} is better than a map that knows nothing of the network in {score.better} of "
        f"{places.measured.compared} scores on {places.measured.images} images of {places.measured.network}."
    )
    useful = first.kept < first.kept_at_random - 0.1
    level = POOR if not useful else GOOD if first.kept < HALF and places.agreement > AGREE else FAIR
    says = {
        GOOD: "Here the maps find what the prediction depends on, and they agree with one another.",
        FAIR: "The maps find some of what the prediction depends on; read them as a hint, not as an outline.",
        POOR: "On this image, hiding where the maps point costs the prediction hardly more than hiding anything else. "
        "Do not rely on them.",
    }[level]
    if not places.same_network:
        says += " They were chosen by a test on another network of the kind; on this one nobody has measured them."
        table += f" For yours: `{program_name()} test attribution`, then give its results by `measured`."
    yield Trust("maps", level, says, f"{here} {table}")


def _concepts(facts: Facts) -> Iterator[Trust]:
    votes = facts.votes
    if votes is None:
        return
    agrees = votes.g_predicted == votes.predicted
    g_says, f_says = (facts.class_names[c] for c in (votes.g_predicted, votes.predicted))
    other = f"as f does ({_percent(votes.g_probability)})" if agrees else f"f says {f_says!r}"
    here = f"On this image the concepts say {g_says!r}, {other}."
    places = [(vote.kept, vote.kept_at_random) for vote in votes.leading if not np.isnan(vote.kept)]
    placed = True
    if places:
        kept, random = np.median(places, axis=0)
        placed = bool(kept < MOST * random)
        here += (
            f" Blurring where a concept's map points leaves {_percent(kept)} of it, random places of that size leave "
            f"{_percent(random)} (median of those shown)."
        )
    known = next((facts.scores[key] for key in AGREEMENT if key in facts.scores), None)
    if not agrees:
        says = "The concepts come to another answer than the classifier: they do not explain this prediction."
        yield Trust("concepts", POOR, says, here)
        return
    if known is None:
        says = "The concepts come to the same answer here; how often they do, nobody has measured."
        test = f"The file holds no agreement; `{program_name()} test viscoin` measures it."
        yield Trust("concepts", UNKNOWN, says, f"{here} {test}")
        return
    level = GOOD if known >= SURE else FAIR if known >= UNSURE else POOR
    says = (
        f"The concepts come to the classifier's answer on {_percent(known)} of test images, so their votes stand for "
        "it. That they vote so is exact; what to call a concept is for you to judge from the crops."
    )
    if not placed:
        says += " Do not trust where their maps point: most are as strong with these places blurred."
    if facts.library.named_by:
        says += f" Their names are {facts.library.named_by}."
    rests = f"{here} Agreement {known:.3f}, from the model's file.{_removal(facts.scores)}"
    yield Trust("concepts", level, says, rests)


def _removal(scores: Mapping[str, float]) -> str:
    relevant, random = (scores.get(f"faithfulness.0.2.{kind}") for kind in ("relevant", "random"))
    if relevant is None or random is None:
        return ""
    return (
        f" Removing relevant concepts from drawn images lowers g's probability by {relevant:.2f}, the same number of "
        f"random ones by {random:.2f} (medians)."
    )


def _drawing(facts: Facts) -> Iterator[Trust]:
    change = facts.change
    if change is None:
        return
    kept = facts.scores.get("classifier.accuracy_on_reconstructions")
    rests = (
        f"Of the drawing with nothing changed f says {facts.class_names[int(change.before.argmax())]!r} "
        f"({_percent(float(change.before.max()))}). In the changed one, the concept is {change.missed:.2f} off what "
        f"was asked for, and others moved by {change.off_target:.2f} (1 is the largest usual value)."
    )
    if kept is not None:
        rests += f" f is right on {_percent(kept)} of such drawings (model's file)."
    if not change.faithful:
        says = "The generator cannot draw this image well enough: f takes the unchanged drawing for something else."
        yield Trust("drawing", POOR, says, rests)
    elif not change.changes:
        says = "No change of one or two concepts that was drawn changes f's mind; the strongest one is shown."
        yield Trust("drawing", FAIR, says, rests)
    else:
        clean = change.off_target < 0.1
        says = "f was asked about the drawn image itself: this change does change its mind."
        says += " Little else changed." if clean else " Other things changed too, so it is not the concept alone."
        yield Trust("drawing", GOOD if clean else FAIR, says, rests)


def _patches(facts: Facts) -> Iterator[Trust]:
    patches = facts.patches
    rests = f"f was asked about {patches.tried} images with blurred patches."
    if not patches.changes:
        says = "f says the same with the whole image blurred: colours and coarse shapes are enough for it."
        yield Trust("patches", FAIR, says, rests)
        return
    says = (
        "That blurring these patches changes f's answer was tried, and none of them can be left out. A smaller set may "
        "exist, and a blurred image is one that f has never seen."
    )
    yield Trust("patches", FAIR, says, rests)


def _percent(share: float) -> str:
    if 0.995 <= share < 1:
        return f"{100 * share:.1f} %"
    return "under 1 %" if 0 < share < 0.01 else f"{100 * share:.0f} %"


def _share(probability: float) -> str:
    return f"a probability of {_percent(probability)}"
