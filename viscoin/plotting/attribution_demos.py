"""Figures of the two tests of maps: an input whose origin moves, and weights that are redrawn."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from viscoin.analysis.attribution_demos import FAILS, RandomisedResult, ShiftResult
from viscoin.attribution import METHODS
from viscoin.plotting.attribution import BAR, CHARACTER, LARGEST, colour_bar, describe_view, painted
from viscoin.plotting.style import (
    DARK,
    GREY,
    LINE,
    PAGE,
    PALETTE,
    SMALL,
    VERMILION,
    ImageTable,
    new_figure,
    styled,
    wrap,
)

LABEL = 1.35  # inches for methods and their numbers
MOST_STATES = 6  # columns of states of the weights


def demo_figures(result: ShiftResult | RandomisedResult) -> dict[str, Figure]:
    """Every figure of a demo, by file name."""
    if isinstance(result, ShiftResult):
        return {"shift": shift_figure(result)}
    return {"randomise": randomised_figure(result), "randomise-curves": randomisation_curves(result)}


@styled
def shift_figure(result: ShiftResult, width: float = PAGE) -> Figure:
    """For each image two columns: f on x, and f' on x + c, which computes the same. A row for each method."""
    views = result.views
    table_side = min((width - LABEL - BAR) / (2 * len(views)) - ImageTable.GAP, LARGEST)
    captions = [describe_view(views, view, int(2 * table_side / CHARACTER)) for view in range(len(views))]
    lines = max(map(len, captions)) + 3
    table = ImageTable(len(result.rows) + 1, 2 * len(views), width, LABEL, BAR, header_lines=lines, largest=LARGEST)
    said = f"f′(x + {result.constant:g}) = f(x): logits differ by at most {result.logit_difference:.1g}"
    table.axes.text(table.corner(0, 0)[0], 0.03, said, va="top", fontsize=SMALL, color=DARK)
    for view, caption in enumerate(captions):
        x, top = table.corner(0, 2 * view)[0] + table.side + ImageTable.GAP / 2, 0.06 + LINE
        table.axes.text(x, top, "\n".join(caption), ha="center", va="top", fontsize=SMALL, linespacing=1.15, color=DARK)
        for column, title, pixels in ((0, "f on x", views.images), (1, f"f′ on x + {result.constant:g}", result.moved)):
            table.header(2 * view + column, title)
            table.image(0, 2 * view + column, pixels[view])
    for row, method in enumerate(result.rows, 1):
        text = [*wrap(method.title, 24), *wrap(method.verdict, 24), f"rank correlation {method.correlation.mean():.2f}"]
        table.label(row, "\n".join(text), color=DARK if method.stays else VERMILION)
        for view in range(len(views)):
            for column, (pixels, heat) in enumerate(((views.images, method.before), (result.moved, method.after))):
                drawn = painted(pixels[view], heat[view] / method.limit, method.signed, overlay=False)
                table.image(row, 2 * view + column, drawn)
        colour_bar(table, row, method.signed, f"{method.limit:.2g}", method.clipped)
    return table.figure


@styled
def randomised_figure(result: RandomisedResult, view: int = 0, width: float = PAGE) -> Figure:
    """One image: as trained, and with the weights redrawn down to some blocks; a row for each method.

    Under each map the rank correlation and the structural similarity with the first. Each map has its own scale.
    """
    states = np.unique(np.linspace(0, len(result.steps) - 1, MOST_STATES).round().astype(int)).tolist()
    table = ImageTable(
        len(result.maps), len(states) + 1, width, 1.0, BAR - 0.1, header_lines=3, caption_lines=1, largest=LARGEST
    )
    table.header(0, "image")
    table.image(0, 0, result.views.images[view])
    for row, method in enumerate(result.maps):
        text = wrap(METHODS[method].title, 17)
        table.label(row, "\n".join([*text, "(of no network)"] if method == FAILS else text))
        signed = METHODS[method].signed
        for column, state in enumerate(states, 1):
            if not row:
                share = f"p = {result.probabilities[state, view]:.2f}"
                down = wrap(f"down to {result.steps[state]}" if state else "as trained", int(table.side / CHARACTER))
                table.header(column, "\n".join([*down[:2], share]))
            table.image(row, column, painted(result.views.images[view], result.scaled(method, state, view), signed))
            if state:
                numbers = result.correlation[method][state, view], result.similarity[method][state, view]
                likeness = f"ρ {numbers[0]:.2f}, S {numbers[1]:.2f}".replace("-", "−")
                table.caption(row, column, "empty" if result.empty(method, state)[view] else likeness)
        colour_bar(table, row, signed, "max", clipped=True)
    return table.figure


@styled
def randomisation_curves(result: RandomisedResult, width: float = PAGE) -> Figure:
    """Means over the images of rank correlation and similarity with the map as trained, over the redrawn blocks."""
    figure = new_figure(width, 2.4)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, scores, title in zip(
        panels, (result.correlation, result.similarity), ("rank correlation ρ", "structural similarity S"), strict=True
    ):
        for number, (method, values) in enumerate(scores.items()):
            known = {"color": GREY, "linestyle": "--"} if method == FAILS else {"color": PALETTE[number % 6]}
            axes.plot(values.mean(1), marker=".", label=METHODS[method].title, **known)
        axes.plot(result.probabilities.mean(1), color=DARK, lw=0.7, ls=":", label="probability of the class")
        axes.set(title=f"{title} with the map as trained", xlabel="blocks redrawn, from the last")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.axhline(0, color=GREY, lw=0.5)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=SMALL)
    return figure
