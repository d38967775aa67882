"""Which methods to trust on which network: what `test attribution` measured, and the choice that follows from it.

The rows are those of docs/attribution-tests.md and docs/photographs.md; a test compares them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from viscoin.attribution.methods import METHODS
from viscoin.errors import Refused
from viscoin.models.digests import digest
from viscoin.models.layers import backbone_of, has_tokens
from viscoin.texts import read_lines

CHANCE = 0.5  # of `contrast`
LARGE = 128  # pixels a side that f takes, from which on it is more like a network for photographs
RESULTS = "results.json"


@dataclass(frozen=True)
class MethodScores:
    """One method on one network.

    Attributes:
        contrast: share of pairs of classes of which the map of each sees more of its own parts (Con); 0.5 by chance.
        better: number of scores in which it is better than `edges`, which knows nothing of the network.
        mean: of the part scores Com, Cor and Con, in [0, 1].
        pointing: share of images in which the highest point lies on the object.
        gap: insertion - deletion, 0 by chance.
    """

    contrast: float | None
    better: int
    mean: float | None
    pointing: float | None = None
    gap: float | None = None

    @property
    def rank(self) -> tuple[bool, int, float, float]:
        """What methods are ordered by: those that see the class at all first, then by `better`, `mean`, and `gap`."""
        sees = self.contrast is None or self.contrast > CHANCE
        return sees, self.better, self.mean or 0.0, self.gap or 0.0


@dataclass(frozen=True)
class Measured:
    """What was measured of methods on one network.

    Attributes:
        network: for people: "the shipped classifier of the birds, a CNN with ReLU".
        images: number of test images.
        compared: number of scores that are compared with `edges`.
        methods: by name.
        weights: SHA-256 of the network's weights; "" where nobody can have the same.
    """

    network: str
    images: int
    compared: int
    methods: Mapping[str, MethodScores]
    weights: str = ""

    @property
    def order(self) -> list[str]:
        """Methods, the best one first."""
        known = [name for name in self.methods if name in METHODS and METHODS[name].family != "control"]
        return sorted(known, key=lambda name: self.methods[name].rank, reverse=True)


CNN = Measured(
    "the shipped classifier of the birds, a CNN with ReLU", 50, 17,
    {
        "occlusion": MethodScores(0.95, 10, 0.76, 0.81, 0.64),
        "deeplift": MethodScores(0.99, 13, 0.76, 1.00, 0.72),
        "guided-backprop": MethodScores(0.91, 13, 0.75, 1.00, 0.78),
        "gradient-shap": MethodScores(0.98, 11, 0.75, 1.00, 0.69),
        "integrated-gradients": MethodScores(0.97, 11, 0.74, 1.00, 0.69),
        "cam": MethodScores(0.73, 5, 0.62, 0.58, 0.40),
        "saliency": MethodScores(0.70, 12, 0.62, 0.94, 0.72),
        "gradcam": MethodScores(0.51, 4, 0.55, 0.58, 0.40),
    },
    "794007ab9a536a95913bcfe02e33a587491beb769fd4762ff15a61334a10c0a7",
)  # fmt: skip
VIT = Measured(
    "a small ViT trained on the birds", 50, 17,
    {
        "chefer": MethodScores(0.50, 10, 0.62, 1.00),
        "rollout": MethodScores(0.50, 11, 0.62, 0.96),
        "integrated-gradients": MethodScores(0.56, 8, 0.65, 1.00),
        "gradcam": MethodScores(0.50, 1, 0.57, 0.75),
        "occlusion": MethodScores(0.81, 8, 0.77, 0.96),
        "kernel-shap": MethodScores(0.69, 8, 0.70, 0.84),
    },
)  # fmt: skip

# Without RISE, the best by `gap` (0.74), whose 1,000 passes of a network of this size nobody waits for.
PHOTOGRAPHS = Measured(
    "EfficientNet-Lite0 on photographs", 24, 9,
    {
        "cam": MethodScores(None, 4, None, 0.38, 0.73),
        "gradcampp": MethodScores(None, 4, None, 0.46, 0.72),
        "kernel-shap": MethodScores(None, 4, None, 0.68, 0.72),
        "gradient-shap": MethodScores(None, 3, None, 0.96, 0.45),
        "integrated-gradients": MethodScores(None, 3, None, 0.92, 0.43),
        "occlusion": MethodScores(None, 0, None, 0.77, 0.51),
        "saliency": MethodScores(None, 0, None, 0.33, 0.36),
        "smoothgrad": MethodScores(None, 0, None, 0.88, -0.04),
    },
)  # fmt: skip


def measured_for(classifier: Any) -> tuple[Measured, bool]:
    """What was measured on the network nearest to a classifier, and whether it is that very network."""
    if digest(f=classifier)["f"] == CNN.weights:
        return CNN, True
    if has_tokens(backbone_of(classifier)):
        return VIT, False
    return (PHOTOGRAPHS if classifier.input_size >= LARGE else CNN), False


def read_measured(path: Path) -> Measured:
    """What `test attribution` wrote to results.json.

    Raises:
        Refused: unreadable, or numbers of something else.
    """
    remedy = "give results.json of `test attribution`"
    try:
        found = json.loads("\n".join(read_lines(path / RESULTS if path.is_dir() else path, "measured")))
        rows = {name: _scores(row) for name, row in found["methods"].items()}
        compared = max(len(row["above_edges"]) for row in found["methods"].values())
        return Measured(f"this model ({path})", int(found["n"]), compared, rows)
    except Refused:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Refused("measured", path, "holds no scores of methods", remedy) from error


def _scores(row: Mapping[str, Any]) -> MethodScores:
    def value(*names: str) -> float | None:
        found = (row["estimates"].get(name) for name in names)
        return next((float(one["value"]) for one in found if one is not None), None)

    better = len(row["above_edges"]) - len(row["not_above_edges"])
    return MethodScores(
        value("parts.ts"), better, value("parts.mean"), value("object.pointing"),
        value("gap.render", "gap.blur", "gap.grey"),
    )  # fmt: skip
