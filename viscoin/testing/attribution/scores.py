"""The one table of scores, and a score's values by image with their interval."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from viscoin.statistics.bootstrap import Estimate, bootstrap
from viscoin.statistics.measures import known_mean

GROUPS = (
    "parts",
    "places",
    "segments",
    "hiding",
    "road",
    "infidelity",
    "completeness",
    "stability",
    "randomisation",
    "complexity",
)
BASELINES = ("grey", "blur", "render")


@dataclass(frozen=True)
class Score:
    """What a number means.

    Attributes:
        title: for people.
        group: which of GROUPS it is measured with.
        better: 1 if more is better, -1 if less is, 0 if neither.
        chance: what a map without any knowledge has, where that does not depend on the image.
    """

    title: str
    group: str
    better: int
    chance: float | None = None


def _parts() -> dict[str, Score]:
    titles = {
        "com": "completeness", "csdc": "CSDC, sufficient parts", "pc": "PC, prediction preserved",
        "dc": "DC, prediction deleted", "d": "D, distractors left out", "sd": "SD, correctness",
        "ts": "TS, contrastivity", "mean": "mean of Com, SD, TS",
    }  # fmt: skip
    chance = {"sd": 0.5, "ts": 0.5}
    found = {f"parts.{key}": Score(title, "parts", 1, chance.get(key)) for key, title in titles.items()}
    published = {f"published.{key}": Score(f"{title}, as published", "parts", 1) for key, title in titles.items()}
    return found | published


def _places() -> dict[str, Score]:
    titles = {"pointing": "highest point", "mass": "share of the map", "rank": "highest pixels"}
    return {
        f"{where}.{key}": Score(f"{title} in the {what}", "places", 1)
        for where, what in (("object", "object"), ("decisive", "decisive part"))
        for key, title in titles.items()
    }


def _segments() -> dict[str, Score]:
    found = {
        "iou": "IoU above 0.5", "dice": "Dice above 0.5", "best_iou": "IoU at the best threshold",
        "ap": "average precision of pixels", "auroc": "AUROC of pixels", "centroid": "centroid in the mask",
    }  # fmt: skip
    pooled = {name: f"{name} of all pixels" for name in ("accuracy", "precision", "recall", "dice", "iou")}
    titles = {f"segments.{key}": title for key, title in found.items()}
    titles |= {f"pooled.{key}": title for key, title in pooled.items()}
    return {key: Score(title, "segments", 1, 0.5 if key == "segments.auroc" else None) for key, title in titles.items()}


def _hiding() -> dict[str, Score]:
    found = {}
    for name in BASELINES:
        found[f"deletion.{name}"] = Score(f"deletion, {name}", "hiding", -1)
        found[f"insertion.{name}"] = Score(f"insertion, {name}", "hiding", 1)
        found[f"gap.{name}"] = Score(f"insertion - deletion, {name}", "hiding", 1, 0.0)
    return found


SCORES: dict[str, Score] = {
    **_parts(),
    **_places(),
    **_segments(),
    **_hiding(),
    "road.deletion": Score("ROAD, most important imputed", "road", -1),
    "road.gap": Score("ROAD, least - most", "road", 1, 0.0),
    "infidelity.scaled": Score("infidelity, best scale", "infidelity", -1),
    "infidelity.unexplained": Score("infidelity, share unexplained", "infidelity", -1, 1.0),
    "completeness.gap": Score("completeness gap", "completeness", -1),
    "stability.max_sensitivity": Score("max-sensitivity", "stability", -1),
    "randomisation.spearman": Score("randomised f: rank correlation", "randomisation", -1, 0.0),
    "randomisation.ssim": Score("randomised f: SSIM", "randomisation", -1),
    "complexity.gini": Score("Gini index", "complexity", 0),
    "complexity.entropy": Score("entropy, nats", "complexity", 0),
}


@dataclass(frozen=True)
class Values:
    """A score's values of images (N,) or what it is made from (N, k), NaN where it is undefined, and how it is made.

    `chance` (N,) is what each image gives to a map that knows nothing, where that depends on the image.
    """

    rows: np.ndarray
    statistic: Callable[[np.ndarray], float] = known_mean
    chance: np.ndarray | None = None

    @property
    def defined(self) -> np.ndarray:
        """(N,) bool: images that count."""
        return ~np.isnan(self.rows.reshape(len(self.rows), -1)).all(1)

    def estimate(self, seed: int = 0) -> Estimate | None:
        """Value and 95 % interval over images; None where it is undefined."""
        rows = self.rows[self.defined]
        if not len(rows) or np.isnan(self.statistic(rows)):
            return None
        return bootstrap(rows, self.statistic, seed=seed)

    def expected(self) -> float | None:
        """Mean chance of the images that count."""
        return None if self.chance is None or not self.defined.any() else known_mean(self.chance[self.defined])


def difference(values: Values, other: Values, seed: int = 0) -> Estimate | None:
    """How much higher one method is than another on the same images, with its interval; None where undefined."""
    both = values.defined & other.defined
    if not both.any():
        return None
    pairs = np.stack([values.rows[both], other.rows[both]], 1)

    def higher(drawn: np.ndarray) -> float:
        return values.statistic(drawn[:, 0]) - other.statistic(drawn[:, 1])

    found = bootstrap(pairs, higher, seed=seed)
    return None if np.isnan(found.value) else replace(found, unit="pairs")
