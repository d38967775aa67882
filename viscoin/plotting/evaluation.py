"""Figures of test results."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from viscoin.plotting.style import (
    BLUE,
    COLUMN,
    DARK,
    GREY,
    LIGHT,
    LINE,
    PAGE,
    SEQUENTIAL,
    SMALL,
    VERMILION,
    new_figure,
    styled,
)
from viscoin.testing.faithfulness import Faithfulness
from viscoin.testing.truth import AttributeResult


@styled
def accuracy_figure(report: Mapping[str, Any], width: float = COLUMN) -> Figure:
    """Bars of the accuracies in `EnsembleResult.to_dict()`."""
    bars = {
        "classifier f": report["classifier"]["accuracy"],
        "ensemble g": report["ensemble"]["accuracy"],
        "g agrees with f": report["ensemble"]["agreement"],
        "g on reconstructions": report["ensemble"]["accuracy_on_reconstructions"],
    }
    figure = new_figure(width, 1.3)
    axes = figure.subplots()
    axes.barh(list(bars), list(bars.values()), color=[GREY, BLUE, BLUE, BLUE], height=0.7)
    for row, value in enumerate(bars.values()):
        inside = value > 0.2
        axes.text(
            value + (-0.02 if inside else 0.02), row, f"{value:.3f}", va="center", ha="right" if inside else "left",
            fontsize=SMALL, color="white" if inside else DARK,
        )  # fmt: skip
    axes.set(xlim=(0, 1), xlabel="share of test images")
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    return figure


@styled
def faithfulness_figure(results: Sequence[Faithfulness], width: float = COLUMN) -> Figure:
    """Fall of the predicted class's probability: medians, with the middle half of the images as a line."""
    figure = new_figure(width, 2.0)
    axes = figure.subplots()
    for shift, name, colour in ((-0.19, "relevant", BLUE), (0.19, "random", GREY)):
        falls = np.stack([np.quantile(getattr(item, name), (0.25, 0.5, 0.75)) for item in results])
        places = np.arange(len(results)) + shift
        label = "relevant concepts" if name == "relevant" else "as many random ones"
        axes.bar(places, falls[:, 1], width=0.36, color=colour, label=label)
        axes.vlines(places, falls[:, 0], falls[:, 2], color=DARK, lw=0.8)
        for place, fall in zip(places, falls):
            axes.annotate(
                f"{fall[1]:.2f}", (place, max(fall[2], fall[1])), (0, 2), textcoords="offset points", ha="center",
                fontsize=SMALL,
            )  # fmt: skip
    labels = [f"r > {item.threshold:g}\n({item.removed.mean():.1f} removed)" for item in results]
    axes.set_xticks(range(len(results)), labels)
    axes.set_ylabel("fall of the probability")
    axes.axhline(0, color=DARK, lw=0.6)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.2)
    axes.margins(y=0.12)
    return figure


@styled
def attribute_figure(
    trained: AttributeResult, untrained: AttributeResult | None = None, width: float = COLUMN
) -> Figure:
    """AUROC of the best concept of each attribute, best first, beside that of an untrained concept extractor."""
    scores = sorted(trained.scores, key=lambda score: -score.auroc)
    baseline = {score.name: score.auroc for score in untrained.scores} if untrained else {}
    figure = new_figure(width, 0.75 + len(scores) * LINE)
    axes = figure.subplots()
    rows = np.arange(len(scores))
    names = [score.name for score in scores]
    before = np.array([baseline.get(name, np.nan) for name in names])
    after = np.array([score.auroc for score in scores])
    if untrained:
        axes.hlines(rows, before, after, color=LIGHT, lw=1.6)
        axes.plot(before, rows, "o", color=GREY, ms=3, label=f"untrained (mean {untrained.mean_auroc:.2f})")
    axes.plot(after, rows, "o", color=BLUE, ms=4, label=f"trained (mean {trained.mean_auroc:.2f})")
    axes.axvline(0.9, color=VERMILION, lw=0.8, ls=":")
    axes.set_yticks(rows, names)
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(min(0.5, float(np.nanmin([before, after])) - 0.02), 1.01), ylim=(len(scores) - 0.4, -0.6))
    axes.set_xlabel("AUROC of the best concept, test images")
    axes.grid(axis="x")
    _concept_numbers(axes, [f"{score.concept}" for score in scores])
    figure.legend(loc="outside upper left", ncols=2, columnspacing=1.0, handletextpad=0.2)
    return figure


@styled
def feature_plane_figure(
    real: np.ndarray, generated: np.ndarray, features: str, measures: Mapping[str, float], width: float = PAGE
) -> Figure:
    """Where real and generated images lie in a plane of features, and the measures of all features.

    Args:
        real, generated: coordinates (N, 2) and (M, 2) on the two main axes of the real features.
        features: name of the network that they come from.
        measures: numbers by their full names.
    """
    figure = new_figure(width, 2.5)
    grid = figure.subplots(1, 3, width_ratios=(1, 1, 0.75))
    both = np.concatenate([real, generated])
    low, high = both.min(0), both.max(0)
    margin = 0.04 * (high - low)
    for axes, title, points, colour in (
        (grid[0], "real images", real, BLUE), (grid[1], "samples of the generator", generated, VERMILION),
    ):  # fmt: skip
        if points is generated:
            axes.scatter(*real.T, s=3, color=LIGHT, lw=0)
        axes.scatter(*points.T, s=3, color=colour, lw=0, alpha=0.7)
        axes.set_title(title)
        axes.set(xlim=(low[0] - margin[0], high[0] + margin[0]), ylim=(low[1] - margin[1], high[1] + margin[1]))
        axes.set(xticks=[], yticks=[], xlabel="main axis of real features")
    grid[0].set_ylabel("second axis")
    grid[1].set_yticks([])
    grid[2].axis("off")
    grid[2].set_title(f"features: {features}")
    for row, (name, value) in enumerate(measures.items()):
        y = 0.95 - row * 0.085
        grid[2].text(0, y, name, transform=grid[2].transAxes, fontsize=SMALL, va="top")
        grid[2].text(1, y, f"{value:.4g}", transform=grid[2].transAxes, fontsize=SMALL, va="top", ha="right")
    return figure


@styled
def confusion_figure(confusion: np.ndarray, class_names: Sequence[str], width: float = PAGE) -> Figure:
    """Counts (C, C) of true against predicted classes; colours show shares of the true class, numbers the errors."""
    classes = len(confusion)
    totals = confusion.sum(1, keepdims=True)
    shares = np.divide(confusion, totals, out=np.zeros(confusion.shape), where=totals > 0)
    figure = new_figure(width, 0.6 * width)
    axes = figure.subplots()
    axes.imshow(shares, cmap=SEQUENTIAL, vmin=0, vmax=1, interpolation="none", aspect="auto")
    if classes <= 40:
        axes.set_xticks(range(classes), [str(index) for index in range(classes)])
        axes.set_yticks(range(classes), [f"{name}  {index}" for index, name in enumerate(class_names)])
        for row, column in zip(*np.nonzero(confusion * (1 - np.eye(classes, dtype=int)))):
            colour = "white" if shares[row, column] > 0.5 else DARK
            axes.text(column, row, confusion[row, column], ha="center", va="center", fontsize=SMALL, color=colour)
    axes.tick_params(length=0)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.spines[:].set_visible(False)
    return figure


def _concept_numbers(axes: Axes, numbers: Sequence[str]) -> None:
    for row, number in enumerate(numbers):
        axes.annotate(
            number, (1, row), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center",
            fontsize=SMALL, color=GREY, annotation_clip=False,
        )  # fmt: skip
    axes.annotate(
        "concept", (1, 1), (0, 1), xycoords="axes fraction", textcoords="offset points", ha="center", va="bottom",
        fontsize=SMALL, color=GREY,
    )  # fmt: skip
