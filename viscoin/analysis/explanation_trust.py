"""How far each part of an explanation can be trusted, by what was measured: of this model, and on this very image."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta

from viscoin.analysis.explanation_change import Change
from viscoin.analysis.explanation_concepts import Library, Votes
from viscoin.analysis.explanation_patches import HiddenPatches
from viscoin.analysis.explanation_places import Place, Places
from viscoin.program import program_name

GOOD, FAIR, POOR, UNKNOWN = "good", "fair", "poor", "not measured"
SURE, UNSURE = 0.9, 0.6  # probabilities
AGREE = 0.6  # rank correlation
COSTS = 0.1  # of the probability, that hiding a true map costs more than hiding anything else
HALF, MOST = 0.5, 0.8  # of a probability that is left
# What files call the accuracy of f, and the number of images; of an ensemble `validation.accuracy` is that of g.
OF_CLASSIFIERS = {"accuracy": "n", "validation.accuracy": "validation.n"}
OF_ENSEMBLES = {"classifier.accuracy": "n"}
AGREEMENT = ("ensemble.agreement", "validation.agreement")
FILE = "from the model's file"


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
    model: str = "MODEL"


def how_far_to_trust(facts: Facts) -> list[Trust]:
    """A judgement on each part that there is."""
    return [*_prediction(facts), *_maps(facts), *_concepts(facts), *_drawing(facts), *_patches(facts)]


@dataclass(frozen=True)
class Share:
    """A share of n images (None: their number is not known), and where it comes from."""

    value: float
    n: int | None
    source: str

    @property
    def ends(self) -> str:
        """Its 95 % interval, where it has one."""
        return (
            "" if self.n is None else " (95 % interval {} to {})".format(*map(_percent, interval(self.value, self.n)))
        )


def accuracy_of_f(facts: Facts) -> Share | None:
    """How often f is right: as the model's file says it, else on the images that were searched for crops."""
    names = OF_CLASSIFIERS if facts.votes is None else OF_ENSEMBLES
    for name, count in names.items():
        if name in facts.scores:
            n = facts.scores.get(count)
            return Share(float(facts.scores[name]), None if n is None else int(n), FILE)
    images, table = facts.library.images, facts.library.table
    if images is None or table is None or not images.labelled:
        return None
    return _searched(facts.library, table.f_probabilities.argmax(1) == table.labels)


def agreement_of_g(facts: Facts) -> Share | None:
    """How often the concepts say what f says, from the same places."""
    for name in AGREEMENT:
        if name in facts.scores:
            n = facts.scores.get("n")
            return Share(float(facts.scores[name]), None if n is None else int(n), FILE)
    table = facts.library.table
    return None if table is None else _searched(facts.library, table.f_probabilities.argmax(1) == table.predicted)


def _searched(library: Library, hits: np.ndarray) -> Share:
    split = "" if library.images is None else f"{library.images.split} "
    return Share(float(hits.mean()), len(hits), f"on {len(hits)} {split}images, just now")


def interval(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of n images (Clopper & Pearson 1934)."""
    hits = round(share * n)
    low = beta.ppf(0.025, hits, n - hits + 1) if hits else 0.0
    return float(low), float(beta.ppf(0.975, hits + 1, n - hits)) if hits < n else 1.0


def _prediction(facts: Facts) -> Iterator[Trust]:
    top, found = float(facts.probabilities.max()), accuracy_of_f(facts)
    sure = f"It gives this answer a probability of {_percent(top)}."
    unsure = " Of this image it is not sure." if top < SURE else ""
    unusual = " On an image unlike those that it learned from, it can be as sure and wrong."
    if found is None:
        says = f"Nobody has measured how often this classifier is right.{unsure}{unusual}"
        rests = f"{sure} Its file holds no accuracy. To measure it: `{program_name()} test classifier --checkpoints "
        rests += f"{facts.model} --dataset FOLDER`; `import-classifier` with `--check FOLDER` writes it into the file."
        yield Trust("prediction", POOR if top < HALF else UNKNOWN, says, rests)
        return
    value = found.value
    level = POOR if value < UNSURE or top < HALF else FAIR if value < SURE or top < SURE else GOOD
    tested = "images" if found.n is None else f"{found.n} images"
    says = f"The classifier was right on {_percent(value)} of the {tested} that it was tested on."
    if found.source != FILE:
        says += " Whether it had learned from these is not known here."
    says += unsure + unusual
    yield Trust("prediction", level, says, f"{sure} Accuracy {value:.3f}{found.ends}, {found.source}.")


def _maps(facts: Facts) -> Iterator[Trust]:
    places = facts.places
    if places is None:
        return
    level, says = _judged(places)
    here = "; ".join(f"{place.title} {_percent(place.kept)}" for place in places.maps)
    here = (
        f"With the strongest tenth of a map blurred, of the probability is left: {here}; with random places of that "
        f"size {_percent(places.maps[0].kept_at_random)}."
    )
    if not np.isnan(places.agreement):
        here += f" The maps agree with a rank correlation of {places.agreement:.2f}."
    measured = places.measured
    better = ", ".join(f"{place.title} in {measured.methods[place.method].better}" for place in places.maps)
    table = (
        f"Of {measured.compared} scores on {measured.images} images of {measured.network}, they are better than a map "
        f"that knows nothing of the network: {better}."
    )
    if not places.same_network:
        says += " They were chosen by a test on another network of the kind; on this one nobody has measured them."
        measure = f"{program_name()} test attribution --checkpoints {facts.model} --dataset FOLDER --out maps"
        table += f" To measure this one: `{measure}`; then explain again with `--measured maps/results.json`."
    yield Trust("maps", level, says, f"{here} {table}")


def _judged(places: Places) -> tuple[str, str]:
    """What hiding their strongest places says of the maps of this image."""
    true = [place for place in places.maps if place.kept < place.kept_at_random - COSTS]
    false = [place for place in places.maps if place not in true]
    if not true:
        return POOR, (
            "On this image, hiding where the maps point costs the prediction hardly more than hiding anything else. "
            "Do not rely on them."
        )
    if false:
        return FAIR, f"Here {_titles(true)} found what the prediction depends on; {_titles(false)} did not."
    if max(place.kept for place in true) < HALF and places.agreement > AGREE:
        return GOOD, "Here the maps find what the prediction depends on, and they agree with one another."
    return FAIR, "The maps find some of what the prediction depends on; read them as a hint, not as an outline."


def _titles(places: Sequence[Place]) -> str:
    *first, last = [place.title for place in places]
    return f"{', '.join(first)} and {last}" if first else last


def _concepts(facts: Facts) -> Iterator[Trust]:
    votes = facts.votes
    if votes is None:
        return
    here, known, kept = _answers(facts, votes), agreement_of_g(facts), _kept(votes)
    if kept is not None:
        here += (
            f" Blurring where a concept's map points leaves {_percent(kept[0])} of it, random places of that size "
            f"{_percent(kept[1])} (medians of those shown)."
        )
    if votes.g_predicted != votes.predicted:
        says = "The concepts come to another answer than the classifier: they do not explain this prediction."
        yield Trust("concepts", POOR, says, here)
        return
    if known is None:
        says = "The concepts come to the same answer here; how often they do, nobody has measured."
        test = f"The file holds no agreement; `{program_name()} test viscoin` measures it."
        yield Trust("concepts", UNKNOWN, says, f"{here} {test}")
        return
    level = GOOD if known.value >= SURE else FAIR if known.value >= UNSURE else POOR
    says = (
        f"The concepts come to the classifier's answer on {_percent(known.value)} of the images that were tried, so "
        f"their votes stand for it{'' if level == GOOD else ' only so far'}. What to call a concept is for you to "
        "judge from the small pictures."
    )
    if kept is not None and kept[0] >= MOST * kept[1]:
        says += " Do not trust where their maps point: most are as strong with these places blurred."
    if facts.library.named_by:
        says += f" Their names are {facts.library.named_by}."
    rests = f"{here} Agreement {known.value:.3f}{known.ends}, {known.source}.{_removal(facts.scores)}"
    yield Trust("concepts", level, says, rests)


def _answers(facts: Facts, votes: Votes) -> str:
    g_says, f_says = (facts.class_names[c] for c in (votes.g_predicted, votes.predicted))
    other = f"as f does ({_percent(votes.g_probability)})" if g_says == f_says else f"f says {f_says!r}"
    return f"On this image the concepts say {g_says!r}, {other}."


def _kept(votes: Votes) -> tuple[float, float] | None:
    """What is left of the leading concepts where their maps are hidden, and where other places are; medians."""
    places = [(vote.kept, vote.kept_at_random) for vote in votes.leading if not np.isnan(vote.kept)]
    if not places:
        return None
    kept, random = np.median(places, axis=0)
    return float(kept), float(random)


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
