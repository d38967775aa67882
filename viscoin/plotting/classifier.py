"""Figures of the test of a classifier; they stay readable from 2 to some hundred classes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from viscoin.datasets import ImageDataset
from viscoin.plotting.evaluation import confusion_figure, right_margin
from viscoin.plotting.style import (
    BLUE,
    COLUMN,
    DARK,
    GREEN,
    GREY,
    LIGHT,
    LINE,
    ORANGE,
    PAGE,
    PALETTE,
    PINK,
    SKY,
    SMALL,
    VERMILION,
    ImageTable,
    middle_cut,
    new_figure,
    styled,
    wrap,
)
from viscoin.statistics.bootstrap import LEVEL
from viscoin.testing.classifier import ClassifierResult
from viscoin.testing.classifier_measures import (
    BINS,
    Calibration,
    ClassifierMeasures,
    Confusion,
    Curve,
    most_confident_errors,
    most_confused,
)

MOST_CURVES = 7  # classes that have room for a curve, a colour and a line of the legend of their own
FEWEST_ROWS, MOST_ROWS = 12, 32  # classes that have room for a row each
WORST = 3  # classes that are plotted individually where not all are
NAME = 40  # characters of a class name that have room in a figure
SPREAD = (0.1, 0.9)  # quantiles over classes
GRID = np.linspace(0, 1, 401)


def classifier_figures(measures: ClassifierMeasures, dataset: ImageDataset) -> dict[str, Figure]:
    """Every figure that the result gives rise to, by file name."""
    result = measures.result
    names, pairs = result.class_names, most_confused(result.confusion)
    figures = {
        "confusion": confusion_figure(result.confusion, names),
        "per-class": class_figure(measures),
        "curves": curves_figure(measures),
        "calibration": calibration_figure(measures),
    }
    if pairs and len(names) > 2:
        figures["confused-pairs"] = pairs_figure(pairs, names)
    if pairs and result.indices is not None:
        figures["errors"] = errors_figure(result, dataset)
    return figures


@styled
def class_figure(measures: ClassifierMeasures, width: float = PAGE) -> Figure:
    """Recall with its exact 95 % interval, precision and F1 of every class, the lowest F1 first.

    Of more classes than there is room for it shows those of lowest F1, and how all of them spread.
    """
    classes, names = measures.by_class, measures.result.class_names
    order = np.argsort(np.nan_to_num(classes.f1, nan=np.inf), kind="stable")
    if len(names) <= MOST_ROWS:
        figure = new_figure(width, 0.75 + max(len(names), 3) * 1.3 * LINE)
        rows = figure.subplots()
        rows.set_title(f"{len(names)} classes")
    else:
        order = order[: int(np.clip((classes.f1 < 1).sum(), FEWEST_ROWS, MOST_ROWS))]
        figure = new_figure(width, 0.75 + len(order) * 1.3 * LINE)
        rows, spread = figure.subplots(1, 2, width_ratios=(1.5, 1))
        rows.set_title(f"the {len(order)} classes of lowest F1")
        _spread_of_classes(spread, measures)
    places = np.arange(len(order))
    rows.hlines(places, classes.recall_low[order], classes.recall_high[order], color=SKY, lw=2.2, alpha=0.6)
    for label, values, marker, colour, size in (
        ("precision", classes.precision, "D", VERMILION, 3), ("F1", classes.f1, "|", DARK, 7),
        ("recall, 95 % interval", classes.recall, "o", BLUE, 4),
    ):  # fmt: skip
        rows.plot(values[order], places, marker, color=colour, ms=size, mew=1.2 if marker == "|" else 0.5, label=label)
    for place, c in enumerate(order):
        if not classes.images[c]:
            rows.text(0.01, place, "no images", va="center", fontsize=SMALL, color=GREY)
    rows.set_yticks(places, [_short(names[c], c) for c in order])
    rows.tick_params(axis="y", length=0)
    rows.set(xlim=(-0.02, 1.02), ylim=(len(order) - 0.4, -0.6), xlabel="share")
    rows.grid(axis="x")
    right_margin(rows, "images", [str(classes.images[c]) for c in order])
    handles, labels = rows.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside upper left", ncols=3, handletextpad=0.2)
    return figure


def _spread_of_classes(axes: Axes, measures: ClassifierMeasures) -> None:
    """Recall, precision and F1 against the share of classes that are no better."""
    mean = measures.by_class.macro
    for name, colour, line in (("recall", BLUE, "-"), ("precision", VERMILION, "--"), ("f1", DARK, ":")):
        values = np.sort(getattr(measures.by_class, name))
        values = values[~np.isnan(values)]
        shares = np.arange(1, len(values) + 1) / len(values)
        axes.plot(values, shares, color=colour, ls=line, drawstyle="steps-post")
    axes.set_title(
        f"all {len(values)} classes with images\nmean recall {mean('recall'):.3f}\n"
        f"precision {mean('precision'):.3f} (dashed)\nF1 {mean('f1'):.3f} (dotted)",
        fontsize=SMALL,
    )
    axes.set(ylim=(0, 1), xlabel="value", ylabel="share of classes at or below it")
    axes.grid()


@styled
def curves_figure(measures: ClassifierMeasures, width: float = PAGE) -> Figure:
    """ROC and precision-recall curves of the classes, their mean, and that of all decisions pooled, with areas.

    Of more classes than there is room for it shows the mean, the middle 80 % and the classes of least area.
    """
    few = len(measures.result.class_names) <= MOST_CURVES
    lines = 2 + (len(measures.result.class_names) if few else 1 + WORST)
    below = 1.45 * LINE * lines + 0.05
    figure = new_figure(width, 3.3 + below)
    (left, right), legends = figure.subplots(2, 2, height_ratios=(3.2, below))
    left.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":")
    _draw_curves(left, measures, measures.roc, measures.roc_micro, measures.by_class.macro("auroc"))
    left.set(title="ROC (area: AUROC)", xlabel="false positive rate", ylabel="true positive rate")
    mean = measures.by_class.macro("average_precision")
    _draw_curves(right, measures, measures.precision_recall, measures.precision_recall_micro, mean)
    right.set(title="precision and recall (area: average precision)", xlabel="recall", ylabel="precision")
    for axes, place in zip((left, right), legends):
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.grid()
        handles, labels = axes.get_legend_handles_labels()
        legend = place.legend(handles[::-1], labels[::-1], loc="upper left", borderaxespad=0)
        legend.set_in_layout(False)  # long names would push the curves away
        place.axis("off")
    return figure


def _draw_curves(
    axes: Axes, measures: ClassifierMeasures, curves: Sequence[Curve | None], micro: Curve | None, macro: float
) -> None:
    names = measures.result.class_names
    found = [(_short(name, c), curve) for c, (name, curve) in enumerate(zip(names, curves)) if curve is not None]
    colours = (VERMILION, GREEN, ORANGE, SKY, PINK, PALETTE[-1], "#A6761D")
    if found:
        heights = np.stack([curve.at(GRID) for _, curve in found])
        if len(names) > MOST_CURVES:
            low, high = np.quantile(heights, SPREAD, axis=0)
            axes.fill_between(GRID, low, high, color=BLUE, alpha=0.18, lw=0, label="middle 80 % of the classes")
            found = sorted(found, key=lambda item: item[1].area)[:WORST]
        for (name, curve), colour in zip(found, colours):
            _draw(axes, curve, color=colour, lw=1.0, label=f"{name} ({curve.area:.3f})")
        start = [] if found[0][1].stepped else [0.0]
        axes.plot(
            [*start, *GRID], [*start, *heights.mean(0)], color=BLUE, lw=1.8, label=f"mean of the classes ({macro:.3f})"
        )
    if micro is not None:
        _draw(axes, micro, color=DARK, lw=1.2, ls="--", label=f"all decisions pooled ({micro.area:.3f})")


def _draw(axes: Axes, curve: Curve, **options: object) -> None:
    x, y = (curve.x, curve.y) if not curve.stepped else (curve.x, np.r_[curve.y[1:2], curve.y[1:]])
    axes.plot(x, y, drawstyle="steps-pre" if curve.stepped else "default", **options)  # type: ignore[arg-type]


@styled
def calibration_figure(measures: ClassifierMeasures, width: float = COLUMN) -> Figure:
    """Accuracy against confidence with exact 95 % intervals, above the number of right and wrong answers."""
    calibration, result = measures.calibration, measures.result
    figure = new_figure(width, 3.9)
    above, below = figure.subplots(2, 1, height_ratios=(2.2, 1), sharex=True)
    _reliability(above, calibration)
    edges = np.linspace(0, 1, BINS + 1)
    right = result.predicted == result.labels
    below.hist(
        [result.confidence[right], result.confidence[~right]], bins=edges.tolist(), log=True,
        color=[BLUE, VERMILION], label=["right", "wrong"], rwidth=0.92,
    )  # fmt: skip
    below.set(xlabel="confidence: probability of the predicted class", ylabel="images", xlim=(0, 1))
    below.set_ylim(bottom=0.5)  # so that one image is seen
    values = {key: measures.estimates[f"classifier.{key}"].value for key in (
        "expected_calibration_error", "brier_score", "negative_log_likelihood",
    )}  # fmt: skip
    above.set_title(
        f"calibration error {values['expected_calibration_error']:.3f}, Brier score {values['brier_score']:.3f}, "
        f"NLL {values['negative_log_likelihood']:.3f}",
        fontsize=SMALL,
    )
    handles, labels = (a + b for a, b in zip(above.get_legend_handles_labels(), below.get_legend_handles_labels()))
    figure.legend(handles, labels, loc="outside upper left", ncols=2, columnspacing=1.0)
    return figure


def _reliability(axes: Axes, calibration: Calibration) -> None:
    filled = calibration.images > 0
    images, confidence, accuracy = (
        column[filled] for column in (calibration.images, calibration.confidence, calibration.accuracy)
    )
    middles = (np.flatnonzero(filled) + 0.5) / BINS
    ends = [stats.binomtest(round(a * n), int(n)).proportion_ci(LEVEL) for a, n in zip(accuracy, images)]
    axes.plot([0, 1], [0, 1], color=DARK, lw=0.8, ls=":", label="perfect calibration")
    axes.bar(middles, accuracy, width=0.92 / BINS, color=LIGHT)
    axes.vlines(confidence, [end.low for end in ends], [end.high for end in ends], color=SKY, lw=2.2, alpha=0.7)
    axes.plot(confidence, accuracy, "o", color=BLUE, ms=3.5, clip_on=False, label="accuracy, 95 % interval")
    axes.set(ylim=(0, 1.02), ylabel="accuracy")


@styled
def pairs_figure(pairs: Sequence[Confusion], class_names: Sequence[str], width: float | None = None) -> Figure:
    """The pairs of classes that are confused most often, as bars of the share of the true class's images.

    The width is that of a column, or of a page for long names.
    """
    longest = max(len(class_names[c]) for pair in pairs for c in (pair.true, pair.predicted))
    width = width or (COLUMN if longest <= 26 else PAGE)
    figure = new_figure(width, 0.6 + len(pairs) * 2.2 * LINE)
    axes = figure.subplots()
    shares = [pair.errors / pair.images for pair in pairs]
    axes.barh(range(len(pairs)), shares, color=VERMILION, height=0.62)
    for row, (pair, share) in enumerate(zip(pairs, shares)):
        axes.annotate(
            f"{pair.errors} of {pair.images}", (share, row), (3, 0), textcoords="offset points", va="center",
            fontsize=SMALL,
        )  # fmt: skip
    labels = [
        f"{_short(class_names[pair.true], pair.true, 2 * NAME)}\n"
        f"→ {_short(class_names[pair.predicted], pair.predicted, 2 * NAME)}"
        for pair in pairs
    ]
    axes.set_yticks(range(len(pairs)), labels, linespacing=0.95)
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, 1.35 * max(shares)), ylim=(len(pairs) - 0.4, -0.6))
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= 1])
    axes.set_xlabel("share of the images of the true class")
    axes.set_title("true → predicted class", fontsize=SMALL, loc="left")
    return figure


@styled
def errors_figure(result: ClassifierResult, dataset: ImageDataset, columns: int = 7, width: float = PAGE) -> Figure:
    """The images that are wrong with most confidence; each with what it was taken for, what it is, and how likely."""
    columns = columns if max(map(len, result.class_names)) <= NAME else columns - 2
    rows = most_confident_errors(result, 3 * columns)
    images = dataset.pixels[rows if result.indices is None else result.indices[rows]]
    characters = int(width / columns / (SMALL * 0.0088))
    texts = []
    for row in rows:
        texts.append([
            wrap(f"{word}{_words(result.class_names[c], c)} {_percent(result.probabilities[row, c])}", characters)
            for word, c in (("", result.predicted[row]), ("is ", result.labels[row]))
        ])  # fmt: skip
        if dataset.files is not None:
            index = row if result.indices is None else result.indices[row]
            texts[-1][1].append(middle_cut(Path(dataset.files[index]).name, characters))
    lines = max(len(wrong) + len(right) for wrong, right in texts)
    width, columns = width * min(1, len(rows) / columns), min(columns, len(rows))
    table = ImageTable(-(-len(rows) // columns), columns, width, caption_lines=lines)
    for i, (wrong, right) in enumerate(texts):
        table.image(*divmod(i, columns), images[i])
        table.caption(*divmod(i, columns), "\n".join(wrong), color=VERMILION)
        table.caption(*divmod(i, columns), "\n" * len(wrong) + "\n".join(right))
    return table.figure


def _words(name: str, index: int) -> str:
    return _short(name, index, 2 * NAME).replace("_", " ")


def _percent(share: float) -> str:
    return f"{100 * share:.0f}\u00a0%" if share >= 0.005 else "<\u00a01\u00a0%"


def _short(name: str, index: int, most: int = NAME) -> str:
    """The name, or the class's index with the beginning and the end of a name that is too long."""
    if len(name) <= most:
        return name
    head, tail = f"{index} {name}"[: most // 2], name[-(most // 2) :]
    if " " in name:
        head, tail = head.rsplit(" ", 1)[0], tail.split(" ", 1)[-1]
    return f"{head.rstrip()}\u00a0…\u00a0{tail.lstrip()}"
