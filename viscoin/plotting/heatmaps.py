"""Figures of concept heatmaps."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from viscoin.attribution.heatmaps import HeatmapResult
from viscoin.errors import Refused
from viscoin.plotting.style import COLUMN, HEAT, LINE, PAGE, SKY, SMALL, ImageTable, middle_cut, styled, wrap

MOST_IMAGES, MOST_CONCEPTS = 6, 8  # that fit on a page
LABEL = 1.35  # inches beside the images; on a column, labels lie under them
CHARACTER = 0.057  # width of a small letter, inches


def check_page(images: int, concepts: int) -> None:
    """Raise Refused unless that many images, and concepts of each, fit on a page."""
    if images > MOST_IMAGES:
        raise Refused("image_indices", None, f"{images} images do not fit on a page", f"give at most {MOST_IMAGES}")
    if concepts > MOST_CONCEPTS:
        raise Refused(
            "concept_top_k", None, f"{concepts} concepts do not fit on a page", f"give at most {MOST_CONCEPTS}"
        )


@styled
def heatmap_figure(
    result: HeatmapResult,
    class_names: Sequence[str],
    labels: np.ndarray | None = None,
    width: float = PAGE,
    concept_names: Mapping[int, str] | None = None,
    outlines: np.ndarray | None = None,
    image_names: Sequence[str] | None = None,
) -> Figure:
    """A row for each image: the image, then where each of its concepts is; each map is scaled to its own maximum.

    Args:
        labels: (B,) true classes, where they are known.
        width: inches; on a journal column (3.4) the classes stand under the images instead of beside them.
        concept_names: to write instead of "concept 12", of those concepts that have a name.
        outlines: (B, H, W) bool, regions to draw the border of, such as the mask of a part.
        image_names: (B,) to find the images again by.
    """
    rows, columns = result.concepts.shape
    narrow, names = width <= COLUMN, concept_names or {}
    characters = int(width / CHARACTER) if narrow else None
    classes = [
        _classes(result.predicted[row], None if labels is None else labels[row], class_names, characters)
        for row in range(rows)
    ]
    if image_names is not None:
        short = [middle_cut(name, characters or 21) for name in image_names]
        classes = [[name, *parts] for name, parts in zip(short, classes, strict=True)]
    name_lines = (3 if narrow else 2) if names else 1
    captions = name_lines + 1
    below = max(len(parts) for parts in classes) if narrow else 0
    left, right = (0.0, 0.4) if narrow else (LABEL, 0.55)
    table = ImageTable(rows, columns + 1, width, left, right, header_lines=1, caption_lines=captions + below)
    table.header(0, "image")
    table.header(1, result.title, span=columns)
    colours = mpl.colormaps[HEAT]
    for row in range(rows):
        _label(table, row, classes[row], captions if narrow else None)
        table.image(row, 0, result.images[row])
        for column in range(columns):
            table.image(row, column + 1, overlay(result.images[row], result.heatmaps[row, column], colours))
            table.caption(row, column + 1, _caption(result, row, column, names, table.side, name_lines))
        if outlines is not None:
            for column in range(columns + 1):
                _outline(table, row, column, outlines[row])
    _colour_bar(table, colours, table.side if narrow else 1.5)
    return table.figure


def overlay(image: np.ndarray, heat: np.ndarray, colours: mpl.colors.Colormap) -> np.ndarray:
    """The image (H, W, 3) uint8 in grey, covered by the map (H, W) in [0, 1] where it is strong."""
    grey = image.mean(2, keepdims=True).repeat(3, 2) / 255
    opacity = 0.15 + 0.7 * np.sqrt(heat)[..., None]
    return (1 - opacity) * grey + opacity * colours(heat)[..., :3]


def _caption(result: HeatmapResult, row: int, column: int, names: Mapping[int, str], side: float, most: int) -> str:
    concept, activation = int(result.concepts[row, column]), result.activations[row, column]
    characters = max(8, int((side + ImageTable.GAP) / CHARACTER))
    lines = wrap(names.get(concept, f"concept {concept}"), characters)
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1][: characters - 1] + "…"]
    if not activation > 0:
        return "\n".join([*lines, "not active"])
    relevance = f"r {result.relevance[row, column]:.2f}"
    long = f"φ {activation:.2f}, {relevance}"
    return "\n".join([*lines, long if len(long) <= characters else relevance])


def _classes(predicted: int, label: int | None, class_names: Sequence[str], characters: int | None) -> list[str]:
    """Lines with the classes: title and name together within `characters`, or the name below."""
    if label is None:
        found = [("predicted", class_names[predicted])]
    elif label == predicted:
        found = [("true and predicted", class_names[label])]
    else:
        found = [("true", class_names[label]), ("predicted", class_names[predicted])]
    if characters is None:
        return [line for title, name in found for line in (f"{title}:", *wrap(name, 21))]
    return [line for title, name in found for line in wrap(f"{title}: {name}", characters)]


def _label(table: ImageTable, row: int, classes: list[str], skip: int | None) -> None:
    """Classes beside the row, or under it and `skip` lines of captions."""
    text = "\n".join(classes)
    if skip is None:
        table.label(row, text)
        return
    x, y = table.corner(row, 0)
    y += table.side + 0.03 + skip * LINE
    table.axes.text(x, y, text, ha="left", va="top", fontsize=SMALL, linespacing=1.15)


def _outline(table: ImageTable, row: int, column: int, region: np.ndarray) -> None:
    if not region.any() or region.all():
        return
    x, y = table.corner(row, column)
    height, width = region.shape
    across, down = (
        x + (np.arange(width) + 0.5) / width * table.side,
        y + (np.arange(height) + 0.5) / height * table.side,
    )
    table.axes.contour(across, down, region, levels=[0.5], colors=[SKY], linewidths=0.8)
    table.axes.set(xlim=(0, table.width), ylim=(table.height, 0))


def _colour_bar(table: ImageTable, colours: mpl.colors.Colormap, height: float) -> None:
    height = min(height, table.height - table.top - table.GAP)
    bottom = 1 - (table.top + height) / table.height
    axes = table.figure.add_axes((1 - 0.39 / table.width, bottom, 0.08 / table.width, height / table.height))
    bar = table.figure.colorbar(ScalarMappable(cmap=colours), cax=axes, ticks=[0, 1])
    bar.ax.set_yticklabels(["0", "max"], fontsize=SMALL)
    bar.outline.set_visible(False)  # type: ignore[operator]
