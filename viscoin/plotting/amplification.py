"""Figures of amplified concepts: pictures with what f and g say of them, and the lambda curve."""

import string
import textwrap
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from viscoin.analysis.amplification import TOP_CLASSES, AmplificationResult
from viscoin.analysis.amplification_curve import LambdaCurve
from viscoin.plotting.style import (
    BLUE,
    DARK,
    GREEN,
    GREY,
    HEAT,
    LIGHT,
    LINE,
    ORANGE,
    PAGE,
    SKY,
    SMALL,
    VERMILION,
    ImageTable,
    middle_cut,
    new_figure,
    styled,
    wrap,
)

LEFT, CHARACTERS = 1.75, 31  # margin for names, inches, and what fits into it
LETTER = 0.12  # room for the letter of a class, inches
MOST_FACTORS = 6  # more would leave no room for numbers under the images


@styled
def amplification_figure(
    result: AmplificationResult,
    class_names: Sequence[str],
    labels: np.ndarray | None = None,
    width: float = PAGE,
    control: AmplificationResult | None = None,
    concept_names: Mapping[int, str] | None = None,
    image_names: Sequence[str] | None = None,
    unreliable: Collection[float] = (),
) -> Figure:
    """A row for each image: original, every multiplier, and where the one farthest from 1 changed it.

    Under each image the probabilities that f and g give the most probable classes, which are named on the left.

    Args:
        labels: (B,) true classes, if they are known.
        control: the same images with the same number of random concepts: a second row for each image.
        concept_names: to write beside the indices, of those concepts that have a name.
        image_names: (B,) to find the images again by.
        unreliable: multipliers outside of the reliable range, which are drawn in grey.

    Raises:
        ValueError: more multipliers than fit on a page.
    """
    if len(result.factors) > MOST_FACTORS:
        raise ValueError(f"{len(result.factors)} multipliers are too many for a figure; give at most {MOST_FACTORS}")
    shown = [result] if control is None else [result, control]
    titles = ["image", *(f"× {factor:g}" + ("\nreconstruction" if factor == 1 else "") for factor in result.factors)]
    titles.append(f"change\nat × {result.factors[result.strongest]:g}")
    table = ImageTable(
        len(result.images) * len(shown), len(titles), width, left=LEFT, header_lines=2, caption_lines=TOP_CLASSES
    )
    grey = [column for column, factor in enumerate(result.factors, 1) if factor in unreliable]
    for column, title in enumerate(titles):
        table.header(column, title, color=GREY if column in grey else DARK)
    probability_legend(table)
    brightest = max(*(float(one.changes[:, one.strongest].max()) for one in shown), 1e-6)
    for i in range(len(result.images)):
        classes = result.top_classes(i)
        for j, one in enumerate(shown):
            row = i * len(shown) + j
            _pictures(table, row, one, i, classes, brightest, grey, first=j == 0)
            concepts = concept_list(one.concepts(i), names=concept_names)
            if j == 0:
                label = None if labels is None else int(labels[i])
                lines = [] if image_names is None else [middle_cut(image_names[i], CHARACTERS)]
                lines += describe(concepts, classes, class_names, label, 3 if table.side > 0.75 else 2)
            else:
                drawn = "random " if one.selection[i].any() else ""
                lines = wrap(f"control: {drawn}{concepts}", CHARACTERS)
            top = table.corner(row, 0)[1]
            table.axes.text(table.GAP, top, "\n".join(lines), va="top", fontsize=SMALL, linespacing=1.2, color=DARK)
        if i:
            y = table.corner(i * len(shown), 0)[1] - table.GAP * 0.75
            table.axes.plot([table.GAP, table.width - table.GAP], [y, y], color=LIGHT, lw=0.6)
    x, y = table.corner(len(result.images) * len(shown) - 1, len(titles) - 1)
    table.axes.text(
        x + table.side / 2, y + table.side + 0.02, f"0 to {brightest:.2f}", ha="center", va="top", fontsize=SMALL
    )
    return table.figure


def faded(pixels: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) uint8 with little of its colour left."""
    grey = pixels.mean(2, keepdims=True)
    return np.round(grey + 0.25 * (pixels - grey)).astype(np.uint8)


def probability_legend(table: ImageTable) -> None:
    """Which colour is f and which g, above the left margin."""
    for x, colour, text in ((table.GAP, SKY, "f"), (table.GAP + 0.25, ORANGE, "g")):
        table.axes.add_patch(Rectangle((x, table.top - 0.13), 0.09, 0.09, fc=colour, alpha=0.6, ec="none"))
        table.axes.text(x + 0.12, table.top - 0.03, text, va="bottom", fontsize=SMALL)
    table.axes.text(table.GAP + 0.5, table.top - 0.03, "probability of class", va="bottom", fontsize=SMALL)


def _pictures(
    table: ImageTable,
    row: int,
    result: AmplificationResult,
    i: int,
    classes: np.ndarray,
    brightest: float,
    grey: Collection[int],
    first: bool,
) -> None:
    """Pictures, probabilities and change map of image i; the original only in the first row, `grey` columns faded."""
    pictures = [result.originals[i], *result.images[i]]
    for column, picture in enumerate(pictures):
        if column or first:
            table.image(row, column, faded(picture) if column in grey else picture)
            if column in grey:
                table.frame(row, column, GREY)
            probability_bars(
                table, row, column, result.f_classes[i, column, classes], result.g_classes[i, column, classes]
            )
    table.image(row, len(pictures), result.changes[i, result.strongest], cmap=HEAT, vmin=0, vmax=brightest)


def probability_bars(table: ImageTable, row: int, column: int, f: np.ndarray, g: np.ndarray) -> None:
    """Lines of letter, probability by f and by g, each number on a bar of that length."""
    left, top = table.corner(row, column)
    room = (table.side - LETTER - 0.03) / 2
    for line, values in enumerate(zip(f, g, strict=True)):
        y = top + table.side + 0.03 + line * LINE
        table.axes.text(left, y + LINE / 2, string.ascii_lowercase[line], va="center_baseline", fontsize=SMALL)
        for x, value, colour in zip((left + LETTER, left + LETTER + room + 0.03), values, (SKY, ORANGE), strict=True):
            table.axes.add_patch(Rectangle((x, y + 0.01), room, LINE - 0.02, fc=LIGHT, alpha=0.4, ec="none"))
            table.axes.add_patch(Rectangle((x, y + 0.01), room * value, LINE - 0.02, fc=colour, alpha=0.6, ec="none"))
            table.axes.text(
                x + room / 2, y + LINE / 2, f"{value:.2f}", ha="center", va="center_baseline", fontsize=SMALL
            )


def describe(concepts: str, classes: np.ndarray, class_names: Sequence[str], label: int | None, most: int) -> list[str]:
    """Concepts and names of classes, each name on at most `most` lines."""
    lines = wrap(concepts, CHARACTERS)
    for letter, index in zip(string.ascii_lowercase, classes, strict=False):
        wrong = label is not None and label != classes[0]
        name = f"{letter} {class_names[index]}" + (" (true)" if wrong and index == label else "")
        lines += _lines(name, most)
    if label is not None and label not in classes:
        lines += _lines(f"true: {class_names[label]}", most)
    return lines


def _lines(text: str, most: int) -> list[str]:
    indent = "   "  # as wide as a letter and a blank
    return textwrap.wrap(
        text, CHARACTERS, subsequent_indent=indent, break_on_hyphens=False, max_lines=most, placeholder=" …"
    )


def concept_list(concepts: np.ndarray, most: int = 5, names: Mapping[int, str] | None = None) -> str:
    """ "concept 12", "concepts 3, 5, 8", "concepts 1, 2, 3, 4, 5 and 9 more" or "concept 7 (blue wing)"."""
    if not len(concepts):
        return "no concept"
    names = names or {}
    named = ", ".join(f"{k} ({names[k]})" if k in names else str(k) for k in concepts[:most].tolist())
    more = f" and {len(concepts) - most} more" if len(concepts) > most else ""
    return f"concept{'s' if len(concepts) > 1 else ''} {named}{more}"


@styled
def curve_figure(curve: LambdaCurve, control: LambdaCurve | None = None, width: float = PAGE) -> Figure:
    """Three panels over the multiplier: the predicted class, concepts found again, styles; reliable range shaded.

    Lines are medians over the images, bands their middle half, dashed lines random concepts.
    """
    figure = new_figure(width, 2.35)
    target, change, style = figure.subplots(1, 3)
    span = curve.reliable_range
    for axes in (target, change, style):
        if span is not None:
            axes.axvspan(*span, color=GREEN, alpha=0.13, lw=0)
        axes.axvline(1, color=GREY, lw=0.6)
        axes.set(xlabel="multiplier λ", xlim=(curve.factors[0], curve.factors[-1]))
        axes.set_xticks(np.unique(np.linspace(0, curve.factors[-1], 5).round(2)))
    _line(target, curve, "f_target", BLUE, "f", control)
    _line(target, curve, "g_target", VERMILION, "g", control)
    target.set(title="predicted class", ylabel="probability", ylim=(0, 1.02))
    _line(change, curve, "on_target", BLUE, "chosen concepts", control)
    _line(change, curve, "off_target", VERMILION, "other concepts", control)
    change.set(title="concepts found again", ylabel="|change| / largest activation")
    change.set_ylim(0, max(change.get_ylim()[1], 1e-6))
    _line(style, curve, "style_distance", BLUE, "chosen concepts", control)
    style.axhline(curve.reference.largest_distance, color=GREY, ls=":", lw=1, label="95 % of reconstructions")
    style.set(title="distance to the mean style", ylabel="distance / usual distance")
    style.margins(y=0.3)
    style.yaxis.set_major_locator(MaxNLocator(5))
    style.yaxis.set_major_formatter("{x:.2f}")
    for axes in (target, change, style):
        axes.legend(loc="best", handlelength=1.4, borderaxespad=0.2, frameon=True, edgecolor="none", framealpha=0.7)
    figure.supxlabel(_reliable_text(curve, control), fontsize=SMALL, color=DARK)
    return figure


def _line(
    axes: Axes, curve: LambdaCurve, name: str, colour: str, label: str, control: LambdaCurve | None = None
) -> None:
    values = getattr(curve, name)
    axes.plot(curve.factors, np.median(values, 0), color=colour, label=label)
    if len(values) > 1:
        axes.fill_between(curve.factors, *np.quantile(values, (0.25, 0.75), 0), color=colour, alpha=0.15, lw=0)
    if control is not None:
        axes.plot(control.factors, np.median(getattr(control, name), 0), color=colour, ls="--", lw=0.9)


def _reliable_text(curve: LambdaCurve, control: LambdaCurve | None) -> str:
    span, n = curve.reliable_range, len(curve.rows)
    where = "no multiplier is reliable" if span is None else f"shaded: reliable, λ from {span[0]:g} to {span[1]:g}"
    of = "this image" if n == 1 else f"at least half of {n} images"
    return f"{where}, for {of}" + ("; dashed: the same number of random concepts" if control is not None else "")
