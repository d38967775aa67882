"""Figures of concept heatmaps."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from viscoin.analysis.heatmaps import HeatmapResult
from viscoin.plotting.style import HEAT, PAGE, SMALL, ImageTable, styled, wrap


@styled
def heatmap_figure(
    result: HeatmapResult, class_names: Sequence[str], labels: np.ndarray | None = None, width: float = PAGE
) -> Figure:
    """A row for each image: the image, then where each of its concepts is; each map is scaled to its own maximum."""
    rows, columns = result.concepts.shape
    table = ImageTable(rows, columns + 1, width, left=1.35, right=0.55, header_lines=1, caption_lines=2)
    table.header(0, "image")
    colours = mpl.colormaps[HEAT]
    for row in range(rows):
        table.label(row, _classes(class_names, result.predicted[row], None if labels is None else labels[row]))
        table.image(row, 0, result.images[row])
        for column in range(columns):
            table.image(row, column + 1, overlay(result.images[row], result.heatmaps[row, column], colours))
            state = f"r = {result.relevance[row, column]:.2f}" if result.activations[row, column] > 0 else "not active"
            text = f"concept {result.concepts[row, column]}\n{state}"
            table.caption(row, column + 1, text)
    _colour_bar(table, colours)
    return table.figure


def overlay(image: np.ndarray, heat: np.ndarray, colours: mpl.colors.Colormap) -> np.ndarray:
    """The image (H, W, 3) uint8 in grey, covered by the map (H, W) in [0, 1] where it is strong."""
    grey = image.mean(2, keepdims=True).repeat(3, 2) / 255
    opacity = 0.15 + 0.7 * np.sqrt(heat)[..., None]
    return (1 - opacity) * grey + opacity * colours(heat)[..., :3]


def _classes(class_names: Sequence[str], predicted: int, label: int | None) -> str:
    if label is None:
        parts = {"predicted": predicted}
    elif label == predicted:
        parts = {"true and predicted": label}
    else:
        parts = {"true": label, "predicted": predicted}
    return "\n".join(line for title, index in parts.items() for line in (f"{title}:", *wrap(class_names[index], 21)))


def _colour_bar(table: ImageTable, colours: mpl.colors.Colormap) -> None:
    height = min(1.5, table.height - table.top - table.GAP)
    bottom = 1 - (table.top + height) / table.height
    axes = table.figure.add_axes((1 - 0.45 / table.width, bottom, 0.08 / table.width, height / table.height))
    bar = table.figure.colorbar(ScalarMappable(cmap=colours), cax=axes, ticks=[0, 1])
    bar.ax.set_yticklabels(["0", "max"], fontsize=SMALL)
    bar.outline.set_visible(False)  # type: ignore[operator]
