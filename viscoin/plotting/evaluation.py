"""Figures of test results."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from viscoin.plotting.style import (
    BLUE,
    COLUMN,
    DARK,
    GREEN,
    GREY,
    LIGHT,
    LINE,
    PAGE,
    SEQUENTIAL,
    SMALL,
    VERMILION,
    new_figure,
    styled,
    wrap,
)
from viscoin.statistics.bootstrap import Estimate
from viscoin.testing.consistency import Consistency
from viscoin.testing.faithfulness import Faithfulness
from viscoin.testing.sufficiency import Sufficiency
from viscoin.testing.truth import AttributeResult


@styled
def accuracy_figure(
    report: Mapping[str, Any], estimates: Mapping[str, Estimate] | None = None, width: float = COLUMN
) -> Figure:
    """Bars of the accuracies in `EnsembleResult.to_dict()`, with the intervals of `estimates` as lines if given."""
    bars = {
        "classifier f": "classifier.accuracy",
        "ensemble g": "ensemble.accuracy",
        "g agrees with f": "ensemble.agreement",
        "g on reconstructions": "ensemble.accuracy_on_reconstructions",
    }
    figure = new_figure(width, 1.3)
    axes = figure.subplots()
    bars = {title: key for title, key in bars.items() if key.partition(".")[2] in report.get(key.partition(".")[0], {})}
    values = [report[section][name] for section, name in (key.split(".") for key in bars.values())]
    axes.barh(list(bars), values, color=[GREY, BLUE, BLUE, BLUE][: len(bars)], height=0.7)
    for row, (value, key) in enumerate(zip(values, bars.values())):
        interval = estimates[key] if estimates else None
        if interval:
            axes.hlines(row, interval.low, interval.high, color=DARK, lw=1.0)
        low, high = (interval.low, interval.high) if interval and interval.low == interval.low else (value, value)
        inside = low > 0.2
        axes.text(
            low - 0.02 if inside else high + 0.02, row, f"{value:.3f}", va="center", ha="right" if inside else "left",
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
        label = "relevant concepts" if name == "relevant" else "random concepts"
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


RANKING_STYLES = {
    "relevance": ("most relevant ones", BLUE, "-", "o"),
    "activation": ("most active ones", VERMILION, "--", "s"),
    "random": ("random ones", GREY, ":", "^"),
}


@styled
def kept_concepts_figure(
    sufficiency: Sequence[Sufficiency], estimates: Mapping[str, Estimate], width: float = COLUMN
) -> Figure:
    """Accuracy of g against the number of concepts that are kept, with 95 % intervals and the areas under the curves.

    Args:
        estimates: `EnsembleResult.estimates()`.
    """
    figure = new_figure(width, 2.1)
    axes = figure.subplots()
    for item in sufficiency:
        label, colour, line, marker = RANKING_STYLES[item.ranking]
        found = [estimates[f"kept_concepts.{item.ranking}.{n}"] for n in item.kept]
        area = estimates[f"kept_concepts.{item.ranking}.area_log2"].value
        axes.fill_between(item.kept, [e.low for e in found], [e.high for e in found], color=colour, alpha=0.2, lw=0)
        axes.plot(
            item.kept, [e.value for e in found], color=colour, ls=line, marker=marker, ms=3,
            label=f"{label} (area {area:.2f})",
        )  # fmt: skip
    kept = sufficiency[0].kept
    axes.set_xscale("log", base=2)
    axes.set_xticks(kept, [str(n) for n in kept])
    axes.minorticks_off()
    axes.set(ylim=(-0.02, 1.02), xlabel="concepts kept of each image", ylabel="accuracy of g")
    axes.grid(axis="y")
    figure.legend(loc="outside upper left", ncols=1, borderaxespad=0.2)
    return figure


MOST_NAMES = 32  # concepts that have room for their numbers


@styled
def consistency_figure(result: Consistency, width: float = COLUMN) -> Figure:
    """Consistency of every tested concept, best first, with the means over concepts as lines and chance dotted."""
    order = np.argsort(-result.accuracy.mean(1), kind="stable")
    places = np.arange(len(order))
    figure = new_figure(width, 2.1)
    axes = figure.subplots()
    axes.axhline(0.5, color=DARK, lw=0.8, ls=":")
    for factor, column, colour, marker in zip(
        result.factors, result.accuracy.T, (BLUE, VERMILION, GREEN), "os^", strict=False
    ):
        axes.axhline(column.mean(), color=colour, lw=0.8, alpha=0.6)
        label = f"λ = {factor:g} (mean {column.mean():.2f})"
        axes.plot(places, column[order], marker, color=colour, ms=3, alpha=0.8, lw=0, label=label)
    axes.text(-0.5, 0.5, "chance", fontsize=SMALL, color=DARK, va="bottom")
    axes.set(ylim=(min(0.45, result.accuracy.min() - 0.03), 1.02), xlim=(-0.7, len(order) - 0.3))
    axes.set_ylabel("SVM accuracy")
    if len(order) <= MOST_NAMES:
        axes.set_xticks(places, [str(result.concepts[i].concept) for i in order], rotation=90)
        axes.set_xlabel("concept")
    else:
        axes.set_xlabel("tested concepts, most consistent first")
    figure.legend(loc="outside upper left", ncols=2, borderaxespad=0.2, handletextpad=0.2)
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
    right_margin(axes, "concept", [f"{score.concept}" for score in scores])
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
    """Counts (C, C) of true against predicted classes; colours show shares of the true class.

    Up to 8 classes every count is written, up to 40 those of errors; more classes have no room for names or counts, but
    for the numbers of some of them, and a scale of colours that shows rare errors. Rows of classes without images are
    grey.
    """
    classes = len(confusion)
    totals = confusion.sum(1, keepdims=True)
    shares = np.divide(confusion, totals, out=np.full(confusion.shape, np.nan), where=totals > 0)
    few, named = classes <= 8, classes <= 40
    if few:
        width = min(width, 2.4 + 0.45 * classes)
    figure = new_figure(width, 1.1 + 0.32 * classes if few else (0.6 if named else 0.8) * width)
    axes = figure.subplots()
    colours = mpl.colormaps[SEQUENTIAL].with_extremes(bad=LIGHT)
    norm = PowerNorm(1 if named else 0.5, 0, 1)
    image = axes.imshow(shares, cmap=colours, norm=norm, interpolation="none")
    axes.set_aspect("auto" if named else "equal")
    if named:
        _name_classes(axes, confusion, shares, class_names, every=few)
    else:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(20, integer=True, steps=[1, 2, 5, 10]))
        figure.colorbar(image, ax=axes, label="share of the images of the true class", shrink=0.6, aspect=30)
    axes.tick_params(length=0 if named else 2)
    axes.set(
        xlabel="predicted class" if named else f"predicted class, {classes} counted from 0 in the order of the dataset",
        ylabel="true class" if totals.all() else "true class (grey: no images)",
    )
    axes.spines[:].set_visible(not named)
    return figure


def _name_classes(
    axes: Axes, confusion: np.ndarray, shares: np.ndarray, class_names: Sequence[str], every: bool
) -> None:
    classes = range(len(confusion))
    if every:
        axes.set_xticks(classes, ["\n".join(wrap(name, 9)) for name in class_names])
        axes.set_yticks(classes, class_names)
    else:
        axes.set_xticks(classes, [str(index) for index in classes])
        axes.set_yticks(classes, [f"{name}  {index}" for index, name in enumerate(class_names)])
    written = ~np.isnan(shares) if every else confusion * (1 - np.eye(len(confusion), dtype=int))
    for row, column in zip(*np.nonzero(written)):
        colour = "white" if shares[row, column] > 0.5 else DARK
        axes.text(column, row, confusion[row, column], ha="center", va="center", fontsize=SMALL, color=colour)


def right_margin(axes: Axes, title: str, texts: Sequence[str]) -> None:
    """Grey text right of each row, under a title."""
    for row, text in enumerate(texts):
        axes.annotate(
            text, (1, row), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center",
            fontsize=SMALL, color=GREY, annotation_clip=False,
        )  # fmt: skip
    axes.annotate(
        title, (1, 1), (0, 1), xycoords="axes fraction", textcoords="offset points", ha="center", va="bottom",
        fontsize=SMALL, color=GREY,
    )  # fmt: skip
