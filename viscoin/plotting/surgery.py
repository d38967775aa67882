"""The figure of a surgery: what was there, what is there instead, and whether f, g and Psi see it."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from viscoin.analysis.surgery import TOP_CLASSES, Operation, SurgeryResult
from viscoin.plotting.amplification import CHARACTERS, LEFT, describe, probability_bars, probability_legend
from viscoin.plotting.style import (
    DARK,
    GREEN,
    GREY,
    HEAT,
    LIGHT,
    LINE,
    PAGE,
    SMALL,
    ImageTable,
    middle_cut,
    styled,
    wrap,
)

READ = 1.5  # room for the concepts that are read back, inches
FULL = 1.5  # value at the end of their bars, in units of the 90 % quantile
MOST_CONCEPTS = 4  # that fit beside a row
TITLES = ("image", "reconstruction", "after surgery", "change")


@styled
def surgery_figure(
    result: SurgeryResult,
    class_names: Sequence[str],
    labels: np.ndarray | None = None,
    width: float = PAGE,
    concept_names: Mapping[int, str] | None = None,
    image_names: Sequence[str] | None = None,
) -> Figure:
    """A row for each image and surgery: image, reconstruction, the edited image, where it changed, concepts read back.

    Under the pictures stand the probabilities that f and g give the most probable classes, which are named on the left.
    On the right, the named concepts as f and Psi read them from the reconstruction (grey) and from the edited image
    (green); a line marks what was asked for.

    Args:
        labels: (B,) true classes, if they are known.
        concept_names: to write beside the indices, of those concepts that have a name.
        image_names: (B,) to find the images again by.
    """
    count, names = len(result.operations), concept_names or {}
    table = ImageTable(
        len(result.originals) * count, len(TITLES), width, LEFT, READ, header_lines=2, caption_lines=TOP_CLASSES
    )
    for column, title in enumerate(TITLES):
        table.header(column, title)
    probability_legend(table)
    edge = table.width - READ + table.GAP
    table.axes.text(edge, table.top - 0.03, "read back, 1: usual\nof images that have it", va="bottom", fontsize=SMALL)
    brightest = max(*(float(one.changes.max()) for one in result.operations), 1e-6)
    for i in range(len(result.originals)):
        for j, operation in enumerate(result.operations):
            row = i * count + j
            classes = result.top_classes(i, operation)
            _pictures(table, row, result, operation, i, classes, brightest)
            lines = [] if image_names is None else [middle_cut(image_names[i], CHARACTERS)]
            lines += [line for text in operation.surgery.describe(names) for line in wrap(text, CHARACTERS)]
            if len(operation.surgery.lengths) > 1:
                lines.append(f"length by read-back: {operation.lengths[i]:g}")
            lines += describe("", classes, class_names, None if labels is None else int(labels[i]), 2)[1:]
            top = table.corner(row, 0)[1]
            table.axes.text(table.GAP, top, "\n".join(lines), va="top", fontsize=SMALL, linespacing=1.2, color=DARK)
            _read_back(table, row, result, operation, i, edge)
    x, y = table.corner(len(result.originals) * count - 1, len(TITLES) - 1)
    table.axes.text(
        x + table.side / 2, y + table.side + 0.02, f"0 to {brightest:.2f}", ha="center", va="top", fontsize=SMALL
    )
    return table.figure


def _pictures(
    table: ImageTable,
    row: int,
    result: SurgeryResult,
    operation: Operation,
    i: int,
    classes: np.ndarray,
    brightest: float,
) -> None:
    pictures = (result.originals[i], result.reconstructions[i], operation.images[i])
    f, g = (
        [*before[i], after[i]]
        for before, after in ((result.f_classes, operation.f_classes), (result.g_classes, operation.g_classes))
    )
    for column, picture in enumerate(pictures):
        table.image(row, column, picture)
        probability_bars(table, row, column, f[column][classes], g[column][classes])
    table.image(row, len(pictures), operation.changes[i], cmap=HEAT, vmin=0, vmax=brightest)


def _read_back(table: ImageTable, row: int, result: SurgeryResult, operation: Operation, i: int, left: float) -> None:
    """A bar for each named concept, before and after; a line where it should be."""
    concepts, room = operation.surgery.concepts, READ - 3 * table.GAP
    y = table.corner(row, 0)[1]
    for k in concepts[:MOST_CONCEPTS]:
        unit = max(float(result.strong[k]), 1e-6)
        before, after, target = (
            float(values[k]) / unit for values in (result.phi[i, 1], operation.found[i], operation.target[i])
        )
        table.axes.text(left, y, f"{k}:  {before:.2f} → {after:.2f}", va="top", fontsize=SMALL, color=DARK)
        for line, value, colour in ((0, before, GREY), (1, after, GREEN)):
            top = y + LINE + 0.02 + line * 0.07
            table.axes.add_patch(Rectangle((left, top), room, 0.06, fc=LIGHT, alpha=0.4, ec="none"))
            table.axes.add_patch(Rectangle((left, top), room * min(value / FULL, 1), 0.06, fc=colour, ec="none"))
        x = left + room * min(target / FULL, 1)
        table.axes.plot([x, x], [y + LINE, y + LINE + 0.17], color=DARK, lw=1)
        y += LINE + 0.24
    if len(concepts) > MOST_CONCEPTS:
        table.axes.text(left, y, f"and {len(concepts) - MOST_CONCEPTS} more", va="top", fontsize=SMALL, color=DARK)
