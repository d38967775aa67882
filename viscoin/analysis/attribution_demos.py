"""Two tests that a map should pass: it stays where only the input's origin moves, and goes where the weights go."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from viscoin.analysis.attribution import (
    Settings,
    check_settings,
    expand_methods,
    explain,
    repeated,
    run_method,
    scale_end,
)
from viscoin.analysis.questions import Asked, Views, ask, scores_of
from viscoin.attribution import METHODS
from viscoin.attribution.targets import ClassifierLogit
from viscoin.datasets import to_pixels
from viscoin.errors import Refused
from viscoin.inference.batches import progress
from viscoin.inference.loading import Pictures, Subject
from viscoin.models.classifier import Classifier
from viscoin.models.layers import backbone_of
from viscoin.testing.attribution.robustness import blocks, randomised, similarity, spearman

DEMOS = ("shift", "randomise")
CONSTANT = 0.3  # added to all pixels in [-1, 1]
EXACT = 1e-3  # difference of logits or of a map, as a share of the largest, up to which they are the same
SHIFT_METHODS = ("gradcam", "saliency", "input-x-gradient", "integrated-gradients")
RANDOMISE_METHODS = ("gradcam", "saliency", "integrated-gradients")
FAILS = "edges"  # knows nothing of the model, so that its maps stay whatever happens to the weights


def study_demo(
    demo: str, subject: Subject, pictures: Pictures, methods: Sequence[str] | None, asked: Asked, settings: Settings
) -> "ShiftResult | RandomisedResult":
    """The demo of that name for the classifier f of a model; by default with methods that show it.

    Raises:
        Refused: unknown; or as `study_shift` and `study_randomisation`.
    """
    f = getattr(subject.model, "classifier", subject.model)
    if demo == "shift":
        grey = replace(settings, baseline="grey")
        return study_shift(
            f, pictures, subject.class_names, methods or SHIFT_METHODS, asked, grey, device=subject.device
        )
    if demo == "randomise":
        chosen = methods or RANDOMISE_METHODS
        return study_randomisation(f, pictures, subject.class_names, chosen, asked, settings, subject.device)
    raise Refused("demo", demo, "unknown", f"choose {' or '.join(DEMOS)}")


# --- shift ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moved:
    """Maps (B, H, W) of one method: of f on x, and of f' on x + c.

    Attributes:
        title: the method, and the baseline where it has one.
        limit: end of the colour scale of both.
        correlation: (B,) Spearman's, of the pixels of both.
        difference: largest change of a map, as a share of its peak.
    """

    title: str
    signed: bool
    before: np.ndarray
    after: np.ndarray
    limit: float
    correlation: np.ndarray
    difference: float

    @property
    def clipped(self) -> bool:
        return bool(max(np.abs(self.before).max(), np.abs(self.after).max()) > self.limit)

    @property
    def stays(self) -> bool:
        return self.difference <= EXACT

    @property
    def verdict(self) -> str:
        return "the same" if self.stays else f"change {self.difference:.2f} of peak"


@dataclass(frozen=True)
class ShiftResult:
    """What methods say of two networks that compute the same of images that differ by a constant.

    Attributes:
        views: of f on x.
        moved: x + c as pixels (B, H, W, 3) uint8, clipped.
        logit_difference: largest |f'(x + c) - f(x)|.
        rows: of methods, those that compare with a baseline twice.
    """

    views: Views
    constant: float
    moved: np.ndarray
    moved_logits: np.ndarray
    logit_difference: float
    rows: list[Moved]

    @property
    def summary(self) -> str:
        """A line for each row: whether the map stayed."""
        lines = [f"{row.title}: {row.verdict}, rank correlation {row.correlation.mean():.2f}" for row in self.rows]
        same = f"f'(x + {self.constant:g}) = f(x): logits differ by at most {self.logit_difference:.1g}"
        return "\n".join([same, *lines])

    def to_dict(self) -> dict[str, Any]:
        rows = [
            {"method": row.title, "rank_correlation": row.correlation.tolist(), "largest_change": row.difference}
            for row in self.rows
        ]
        same = {"constant": self.constant, "largest_difference_of_logits": self.logit_difference}
        return {"demo": "shift", **same, "views": self.views.to_dict(), "maps": rows}


def study_shift(
    classifier: Classifier,
    pictures: Pictures,
    class_names: Sequence[str],
    methods: Sequence[str] = SHIFT_METHODS,
    asked: Asked = Asked(),  # noqa: B008  it is frozen
    settings: Settings = Settings(baseline="grey"),  # noqa: B008  it is frozen
    constant: float = CONSTANT,
    device: torch.device | str = "cpu",
) -> ShiftResult:
    """Explain f on x and f' on x + c, where f'(x + c) = f(x) for every x (Kindermans et al. 2017, arXiv 1711.00867).

    Methods that compare with a baseline are asked twice: with the same one for both, and with the one that moved along.

    Raises:
        Refused: the first layer is no plain convolution; or as `study_attribution`.
    """
    names = expand_methods(methods)
    target, other = ClassifierLogit(classifier), ClassifierLogit(shifted(classifier, constant))
    check_settings(target, names, settings)
    views = ask(target, pictures, class_names, asked, device, settings.batch_size)
    x = repeated(pictures.images, len(views))
    logits = scores_of(other, x + constant, device, settings.batch_size)
    difference = float((logits - torch.from_numpy(views.logits)).abs().max())
    if difference > EXACT * max(1.0, float(np.abs(views.logits).max())):
        raise Refused("demo", "shift", f"the moved network differs by {difference:.2g}", "choose another backbone")
    first = explain(target, x, views, names, settings, device)
    rows = []
    for method, result in first.results.items():
        after = run_method(other, x + constant, views, method, settings, device).maps
        compared, title = METHODS[method].compared, METHODS[method].title
        where = f"{title}, baseline {settings.baseline}" if compared else title
        rows.append(_moved(where, result.signed, result.maps, after))
        if compared:
            rows.append(_with_baseline(target, other, x, views, method, settings, constant, device))
    moved = to_pixels((x + constant).clamp(-1, 1))
    return ShiftResult(views, constant, moved, logits.numpy(), difference, rows)


def _with_baseline(
    target: ClassifierLogit, other: ClassifierLogit, x: Tensor, views: Views, method: str, settings: Settings,
    constant: float, device: torch.device | str,
) -> Moved:  # fmt: skip
    """The row of a method whose baseline, grey, is moved along with the image."""
    grey = torch.zeros_like(x)
    before, after = (
        run_method(one, images, views, method, replace(settings, baseline=baseline), device).maps
        for one, images, baseline in ((target, x, grey), (other, x + constant, grey + constant))
    )
    return _moved(f"{METHODS[method].title}, baseline moved along", METHODS[method].signed, before, after)


def _moved(title: str, signed: bool, before: Tensor, after: Tensor) -> Moved:
    a, b = before.numpy(), after.numpy()
    limit = scale_end(np.stack([a, b]))
    difference = float(np.abs(a - b).max() / (np.abs(a).max() or 1.0))
    return Moved(title, signed, a, b, limit, spearman(a, b), difference)


def shifted(classifier: Classifier, constant: float) -> Classifier:
    """f' with f'(x + c) = f(x): the first convolution has the bias b - sum(W) c, and pads by c instead of 0.

    Raises:
        Refused: the backbone does not begin with a plain convolution.
    """
    changed = copy.deepcopy(classifier)
    network = backbone_of(changed)
    convolutions = ((name, part) for name, part in network.named_modules() if isinstance(part, nn.Conv2d))
    name, first = next(convolutions, ("", None))
    if first is None or type(first) is not nn.Conv2d or first.padding_mode != "zeros" or isinstance(first.padding, str):
        raise Refused("demo", "shift", "the network does not begin with a plain convolution", "choose another backbone")
    network.set_submodule(name, MovedConvolution(first, constant * classifier.scale))
    return changed


class MovedConvolution(nn.Module):
    """A convolution that gives for x + c what the given one gives for x; c: (1, C, 1, 1)."""

    offset: Tensor

    def __init__(self, convolution: nn.Conv2d, offset: Tensor) -> None:
        super().__init__()
        down, right = map(int, convolution.padding)
        self.sides = [right, right, down, down]
        self.convolution = copy.deepcopy(convolution)
        self.convolution.padding = (0, 0)
        weight, bias = convolution.weight.detach(), convolution.bias
        moved = -(weight * offset).sum((1, 2, 3))
        self.convolution.bias = nn.Parameter(moved if bias is None else bias.detach() + moved)
        self.register_buffer("offset", offset.clone())

    def forward(self, x: Tensor) -> Tensor:
        border = 1 - F.pad(torch.ones_like(x[:1, :1]), self.sides)
        return self.convolution(F.pad(x, self.sides) + border * self.offset)


# --- randomise ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RandomisedResult:
    """Maps while weights are redrawn from the last block down; S states, the first one as trained.

    Attributes:
        steps: (S,) "trained", then the block that was redrawn last.
        probabilities: (S, B) of the explained class.
        maps, correlation, similarity: by method: (S, B, H, W), and (S, B) of |maps| with those of the first state.
    """

    views: Views
    steps: list[str]
    probabilities: np.ndarray
    maps: dict[str, np.ndarray]
    correlation: dict[str, np.ndarray]
    similarity: dict[str, np.ndarray]

    def scaled(self, method: str, state: int, view: int) -> np.ndarray:
        """A map (H, W) in units of the end of its own colour scale."""
        heat = self.maps[method][state, view]
        return np.asarray(heat / scale_end(heat))

    def empty(self, method: str, state: int) -> np.ndarray:
        """Which maps (B,) of a state have nothing left, so that they are like no other whatever the method is worth."""
        return np.asarray(~self.maps[method][state].any((1, 2)))

    @property
    def summary(self) -> str:
        """A line for each method: how alike its maps are when all weights are redrawn, and how many are empty."""
        return "\n".join(map(self._line, self.maps))

    def _line(self, method: str) -> str:
        empty = self.empty(method, -1)
        return (
            f"{METHODS[method].title}: rank correlation {self.correlation[method][-1].mean():.2f}, structural "
            f"similarity {self.similarity[method][-1].mean():.2f} with all weights redrawn"
            + (f"; {empty.sum()} of {len(empty)} maps are empty" if empty.any() else "")
        )

    def to_dict(self) -> dict[str, Any]:
        scores = {"rank_correlation": self.correlation, "structural_similarity": self.similarity}
        means = {
            method: {
                **{name: values[method].mean(1).tolist() for name, values in scores.items()},
                "empty_maps": [int(self.empty(method, state).sum()) for state in range(len(self.steps))],
            }
            for method in self.maps
        }
        return {
            "demo": "randomise", "steps": self.steps, "views": self.views.to_dict(),
            "mean_probability": self.probabilities.mean(1).tolist(), "methods": means,
        }  # fmt: skip


def study_randomisation(
    classifier: Classifier,
    pictures: Pictures,
    class_names: Sequence[str],
    methods: Sequence[str] = RANDOMISE_METHODS,
    asked: Asked = Asked(),  # noqa: B008  it is frozen
    settings: Settings = Settings(),  # noqa: B008  it is frozen
    device: torch.device | str = "cpu",
) -> RandomisedResult:
    """Explain the same classes while weights are redrawn from the last block down (Adebayo et al. 2018, 1810.03292).

    The edges of the image, whose map cannot change, are always among the methods.
    """
    names = [*expand_methods(methods), FAILS]
    target = ClassifierLogit(classifier)
    check_settings(target, names, settings)
    views = ask(target, pictures, class_names, asked, device, settings.batch_size)
    images = repeated(pictures.images, len(views))
    first = explain(target, images, views, list(dict.fromkeys(names)), settings, device)
    maps = {method: [result.maps.numpy()] for method, result in first.results.items()}
    steps, likely = ["trained"], [_probability(target, images, views, settings, device)]
    with progress(len(blocks(classifier)), "redrawn weights", "block") as bar:
        for block, changed in randomised(classifier, settings.seed):
            other = ClassifierLogit(changed)
            for method, found in maps.items():
                found.append(run_method(other, images, views, method, settings, device).maps.numpy())
            steps.append(block)
            likely.append(_probability(other, images, views, settings, device))
            bar.update()
    strength = {method: [np.abs(one) for one in found] for method, found in maps.items()}
    return RandomisedResult(
        views, steps, np.stack(likely), {method: np.stack(found) for method, found in maps.items()},
        {method: np.stack([spearman(found[0], one) for one in found]) for method, found in strength.items()},
        {method: np.stack([similarity(found[0], one) for one in found]) for method, found in strength.items()},
    )  # fmt: skip


def _probability(
    target: ClassifierLogit, images: Tensor, views: Views, settings: Settings, device: torch.device | str
) -> np.ndarray:
    logits = scores_of(target, images, device, settings.batch_size)
    return logits.softmax(1).gather(1, torch.from_numpy(views.targets)[:, None])[:, 0].numpy()
