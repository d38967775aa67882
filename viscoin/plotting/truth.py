"""Figures of what the truth says about concepts."""

from collections.abc import Sequence
from itertools import groupby

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from viscoin.plotting.heatmaps import overlay
from viscoin.plotting.style import (
    BLUE,
    BROWN,
    COLUMN,
    DARK,
    GREEN,
    GREY,
    HEAT,
    LIGHT,
    LINE,
    ORANGE,
    PAGE,
    PINK,
    PURPLE,
    SEQUENTIAL,
    SKY,
    SMALL,
    VERMILION,
    ImageTable,
    new_figure,
    styled,
    wrap,
)
from viscoin.statistics.bootstrap import Estimate
from viscoin.testing.truth.attributes import group_of
from viscoin.testing.truth.examples import Example
from viscoin.testing.truth.result import FunctionTruth, TruthResult
from viscoin.testing.truth.scenes import GROUPS

# Title, colour and marker of each concept function.
FUNCTIONS = {
    "concepts": ("concepts", BLUE, "o"),
    "pursuit": ("pursuit on f", SKY, "*"),
    "random": ("random directions", DARK, "+"),
    "sae": ("sparse autoencoder", BROWN, "p"),
    "nmf": ("NMF of f", GREEN, "v"),
    "ica": ("ICA of f", PURPLE, "<"),
    "pca": ("PCA of f", VERMILION, "^"),
    "channels_k": ("{k} channels of f", ORANGE, "s"),
    "channels": ("all {k} channels", PINK, "D"),
    "untrained": ("untrained Ψ", GREY, "x"),
}


def truth_figures(result: TruthResult) -> dict[str, Figure]:
    """Every figure that the result has numbers for, by file name."""
    figures = {"truth-attributes": attributes_figure(result)}
    if result.intervened:
        figures["truth-tests"] = tests_figure(result)
        if any(measure in result.concepts.summary for _, measure, _ in PLACES):
            figures["truth-places"] = places_figure(result)
        if result.concepts.reaction is not None:
            figures["truth-purity"] = purity_figure(result.concepts)
    if result.examples:
        figures["truth-scenes"] = scenes_figure(result.examples)
    return figures


MOST = 60  # attributes in one figure


@styled
def attributes_figure(result: TruthResult, width: float = COLUMN) -> Figure:
    """AUROC of the best concept of each attribute with its interval, beside the best that each rival has.

    Of more than MOST attributes the best and the worst are shown.
    """
    scores, by_attribute = result.concepts.attributes.scores, result.concepts.by_attribute
    total = len(scores)
    if total > MOST:
        order = sorted(range(total), key=lambda i: -scores[i].auroc)
        kept = order[: MOST // 2] + order[-MOST // 2 :]
        scores, by_attribute = [scores[i] for i in kept], [by_attribute[i] for i in kept if by_attribute]
    rows = np.arange(len(scores))
    figure = new_figure(width, 1.15 + len(scores) * LINE)
    axes = figure.subplots()
    axes.axvline(0.9, color=DARK, lw=0.8, ls=":")
    for name, truth in reversed(result.functions.items()):
        _, colour, marker = FUNCTIONS[name]
        areas = {score.name: score.auroc for score in truth.attributes.scores}
        own = name == "concepts"
        axes.plot(
            [areas.get(score.name, np.nan) for score in scores], rows, marker, color=colour, ms=4.5 if own else 2.5,
            mew=0.9, alpha=1 if own else 0.75, label=_title(name, truth),
        )  # fmt: skip
    for row, estimates in zip(rows, by_attribute):
        axes.hlines(row, estimates["auroc"].low, estimates["auroc"].high, color=BLUE, lw=1.2)
    if total > MOST:
        axes.axhline(MOST // 2 - 0.5, color=DARK, lw=0.6)
        axes.set_ylabel(f"the best and the worst {MOST // 2} of {total} attributes")
    else:
        _group_lines(axes, [score.name for score in scores])
    axes.set_yticks(rows, [score.name for score in scores])
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(None, 1.012), ylim=(len(scores) - 0.4, -0.6), xlabel="AUROC of the best concept, test images")
    axes.grid(axis="x")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles[::-1], labels[::-1], loc="outside upper left", ncols=2, columnspacing=1.0, handletextpad=0.1,
        borderaxespad=0.2,
    )  # fmt: skip
    return figure


# Title of a panel, its measure, and what is plotted beside it: a control or the level of chance.
TESTS = (
    ("attributes found\n(AUROC > 0.9)", "found", None),
    ("part deleted:\nconcept falls", "deletion", "deletion_other"),
    ("variant swapped:\nconcept follows", "swap", "swap_other"),
    ("purity: share of its\nown attribute group", "purity", None),
    ("background deleted:\nconcept stays", "background", None),
)
PLACES = (
    ("heatmap: pointing game", "pointing", "area"),
    ("heatmap: mass inside", "mass", "area"),
    ("edit: most changed pixels, IoU", "edit_iou", "edit_iou_chance"),
    ("edit: change inside", "edit_inside", "area"),
)


@styled
def tests_figure(result: TruthResult, width: float = PAGE) -> Figure:
    """Shares for concepts and rivals, with 95 % intervals; lighter bars are the control."""
    panels = [panel for panel in TESTS if any(panel[1] in truth.summary for truth in result.functions.values())]
    figure = new_figure(width, 0.95 + 0.24 * len(result.functions))
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    titles = [_title(name, truth) for name, truth in result.functions.items()]
    for axes, (title, measure, control) in zip(all_axes, panels):
        for row, (name, truth) in enumerate(result.functions.items()):
            colour = FUNCTIONS[name][1]
            if control is None:
                _bar(axes, row, truth.summary.get(measure), colour, 0.6)
            else:
                _bar(axes, row - 0.19, truth.summary.get(measure), colour, 0.36)
                _bar(axes, row + 0.19, truth.summary.get(control), LIGHT, 0.36)
        if measure == "purity":
            groups = len({group_of(score.name) for score in result.concepts.attributes.scores})
            axes.axvline(1 / groups, color=DARK, lw=0.8, ls=":")
        axes.set_title(title, fontsize=SMALL)
        axes.set(xlim=(0, 1.0), ylim=(len(titles) - 0.45, -0.55))
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.set_yticks(range(len(titles)), titles)
        axes.tick_params(axis="y", length=0)
    keys: dict[str, Artist] = {"control: the same done to another part": Rectangle((0, 0), 1, 1, color=LIGHT)}
    if any(measure == "purity" for _, measure, _ in panels):
        keys["equal share of all attribute groups"] = Line2D([], [], color=DARK, lw=0.8, ls=":")
    figure.legend(list(keys.values()), list(keys), loc="outside lower right", ncols=2, borderaxespad=0.2)
    return figure


@styled
def places_figure(result: TruthResult, width: float = COLUMN) -> Figure:
    """Where concepts are against their part's grown mask, beside chance."""
    panels = [panel for panel in PLACES if panel[1] in result.concepts.summary]
    figure = new_figure(width, 0.55 + 0.3 * len(panels))
    axes = figure.subplots()
    for row, (_, measure, chance) in enumerate(panels):
        _bar(axes, row - 0.19, result.concepts.summary[measure], BLUE, 0.36, "concepts" if row == 0 else "")
        _bar(axes, row + 0.19, result.concepts.summary[chance], LIGHT, 0.36, "chance" if row == 0 else "")
    axes.set_yticks(range(len(panels)), [title for title, *_ in panels])
    axes.set(xlim=(0, 1), ylim=(len(panels) - 0.5, -0.5))
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.2)
    return figure


@styled
def purity_figure(truth: FunctionTruth, width: float = COLUMN) -> Figure:
    """What each attribute's concept reacts to: shares of the attribute groups, its own framed."""
    if truth.reaction is None:
        raise ValueError("there is no reaction to draw: the images were not intervened on")
    names = [score.name for score in truth.attributes.scores]
    groups = list(GROUPS)
    figure = new_figure(width, 1.15 + len(names) * LINE)
    axes = figure.subplots()
    largest = max(float(np.nanmax(truth.reaction)), 1e-6) if not np.isnan(truth.reaction).all() else 1.0
    image = axes.imshow(truth.reaction, cmap=SEQUENTIAL, vmin=0, vmax=largest, aspect="auto")
    for row, name in enumerate(names):
        column = groups.index(group_of(name))
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec=VERMILION, lw=0.9))
    axes.set_yticks(range(len(names)), names)
    axes.set_xticks(range(len(groups)), groups, rotation=90)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_ylabel("attribute of the concept")
    bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.8, aspect=30, pad=0.02)
    bar.set_label("share of each swapped group in its moves", fontsize=SMALL)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


@styled
def scenes_figure(examples: Sequence[Example], width: float = PAGE) -> Figure:
    """A row for each attribute: scene, part deleted, variant swapped, and the heatmap with the part outlined.

    Under the first three the activation of the attribute's concept, as share of its range.
    """
    table = ImageTable(len(examples), 4, width, left=1.2, header_lines=1, caption_lines=2)
    for column, title in enumerate(("scene", "part deleted", "variant swapped", "heatmap, part outlined")):
        table.header(column, title)
    for row, example in enumerate(examples):
        score = example.score
        table.label(row, "\n".join([*wrap(score.name, 19), f"concept {score.concept}", f"AUROC {score.auroc:.2f}"]))
        for column, (image, title, activation) in enumerate(zip(example.images, example.titles, example.activations)):
            table.image(row, column, image)
            table.caption(row, column, f"{title}\nactivation {activation:.2f}")
        table.image(row, 3, overlay(example.images[0], example.heatmap, mpl.colormaps[HEAT]))
        _outline(table, row, 3, example.mask)
    return table.figure


def _outline(table: ImageTable, row: int, column: int, mask: np.ndarray) -> None:
    if not mask.any():
        return
    x, y = table.corner(row, column)
    height, width = mask.shape
    across = x + table.side * (np.arange(width) + 0.5) / width
    down = y + table.side * table.aspect * (np.arange(height) + 0.5) / height
    table.axes.contour(across, down, mask.astype(float), levels=[0.5], colors=[SKY], linewidths=1.0)


def _title(name: str, truth: FunctionTruth) -> str:
    return FUNCTIONS[name][0].format(k=truth.k)


def _bar(axes: Axes, place: float, estimate: Estimate | None, colour: str, height: float, label: str = "") -> None:
    if estimate is None:
        return
    axes.barh(place, estimate.value, height=height, color=colour, label=label or None)
    axes.hlines(place, estimate.low, estimate.high, color=DARK, lw=0.9)
    end = np.nanmax([estimate.value, estimate.high])
    inside = end > 0.75
    start = min(estimate.value, np.nan_to_num(estimate.low, nan=1))
    start = start if start > 0.25 else estimate.value  # where there is room in the bar
    axes.text(
        start - 0.03 if inside else end + 0.03, place,
        f"{estimate.value:.2f}", ha="right" if inside else "left", va="center", fontsize=SMALL,
        color="white" if inside and colour != LIGHT else DARK,
    )  # fmt: skip


def _group_lines(axes: Axes, names: Sequence[str]) -> None:
    row = 0
    for _, members in groupby(names, group_of):
        row += len(list(members))
        axes.axhline(row - 0.5, color=LIGHT, lw=0.6)
