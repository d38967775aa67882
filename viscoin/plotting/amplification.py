"""Figures of amplified concepts."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from viscoin.analysis.amplification import AmplificationResult
from viscoin.plotting.style import HEAT, PAGE, ImageTable, styled, wrap


@styled
def amplification_figure(
    result: AmplificationResult, class_names: Sequence[str], labels: np.ndarray | None = None, width: float = PAGE
) -> Figure:
    """A row for each image: original, every multiplier, and where the largest one changed it.

    Under each image the probabilities of f and g for the class that g predicts for the original.
    """
    factors = [f"{factor:g}" for factor in result.factors]
    titles = ["image", *(f"× {text}" + ("\nreconstruction" if text == "1" else "") for text in factors)]
    titles.append(f"change\nat × {factors[-1]}")
    left = 1.35
    table = ImageTable(len(result.images), len(titles), width, left=left, header_lines=2, caption_lines=1)
    for column, title in enumerate(titles):
        table.header(column, title)
    brightest = max(float(result.changes[:, -1].max()), 1e-6)
    for row in range(len(result.images)):
        table.label(row, _description(result, row, class_names, labels))
        table.image(row, 0, result.originals[row])
        table.caption(row, 0, _probabilities(result.f_original[row], result.g_original[row]))
        for column in range(len(factors)):
            table.image(row, column + 1, result.images[row, column])
            table.caption(
                row, column + 1, _probabilities(result.f_probability[row, column], result.g_probability[row, column])
            )
        table.image(row, len(titles) - 1, result.changes[row, -1], cmap=HEAT, vmin=0, vmax=brightest)
    table.caption(len(result.images) - 1, len(titles) - 1, f"0 to {brightest:.2f}")
    return table.figure


def concept_list(concepts: np.ndarray, most: int = 5) -> str:
    """ "concept 12", "concepts 3, 5, 8" or "concepts 1, 2, 3, 4, 5 and 9 more"."""
    if not len(concepts):
        return "no concept"
    named = ", ".join(map(str, concepts[:most]))
    more = f" and {len(concepts) - most} more" if len(concepts) > most else ""
    return f"concept{'s' if len(concepts) > 1 else ''} {named}{more}"


def _description(result: AmplificationResult, row: int, class_names: Sequence[str], labels: np.ndarray | None) -> str:
    name = class_names[result.predicted[row]]
    lines = [*wrap(name, 21)]
    if labels is not None and labels[row] != result.predicted[row]:
        lines += wrap(f"(true: {class_names[labels[row]]})", 21)
    chosen = np.flatnonzero(result.selection[row])
    chosen = chosen[np.argsort(-result.relevance[row, chosen], kind="stable")]
    return "\n".join([*lines, "", *wrap(concept_list(chosen), 21)])


def _probabilities(f: float, g: float) -> str:
    return f"f {f:.2f}   g {g:.2f}"
