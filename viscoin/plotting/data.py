"""Figures of data: contact sheets, part masks, real beside generated images."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from viscoin.datasets import to_pixels
from viscoin.datasets.inspection import Inspection
from viscoin.datasets.selection import Selection
from viscoin.plotting.style import (
    BLUE,
    COLUMN,
    DARK,
    LINE,
    MEDIUM,
    ORANGE,
    PAGE,
    PALETTE,
    SKY,
    SMALL,
    VERMILION,
    YELLOW,
    ImageTable,
    middle_cut,
    new_figure,
    styled,
    wrap,
)

if TYPE_CHECKING:
    from torch import Tensor

PAGE_HEIGHT = 8.8  # inches
ROW_LABEL, ROW_HEIGHT = 1.3, 0.8  # inches: names beside rows of images, and largest images there
GRID_COLUMNS, CAPTION_LINES = 7, 8
ROW, NARROW_ROWS, PAGE_ROWS = 0.13, 30, 60  # of bars: inches, so many in one column, so many in a column of a page
LEGEND_COLUMNS, LEGEND_MARKER = 8, 0.28  # at most; inches that a name has before and after it
LONG_NAME, SHORT_NAME = 70, 34  # characters of names beside bars, on a page or beside a second column of bars


@styled
def contact_sheet(images: np.ndarray, captions: Sequence[str], columns: int = 7, width: float = PAGE) -> Figure:
    """Images (N, H, W, 3) uint8 in rows, each with its caption (a class name) under it."""
    rows = -(-len(images) // columns)
    lines = _wrapped(captions, width / columns)
    table = ImageTable(rows, columns, width, caption_lines=max(text.count("\n") + 1 for text in lines))
    for i, (image, text) in enumerate(zip(images, lines, strict=True)):
        table.image(*divmod(i, columns), image)
        table.caption(*divmod(i, columns), text)
    return table.figure


@styled
def part_masks(images: np.ndarray, masks: np.ndarray, part_names: Sequence[str], width: float = PAGE) -> Figure:
    """Images (N, H, W, 3) uint8 above the same images with the masks (N, P, H, W) bool of their parts in colour."""
    table = ImageTable(2, len(images), width, caption_lines=0)
    colours = _part_colours(len(part_names))
    for column, (image, parts) in enumerate(zip(images, masks, strict=True)):
        table.image(0, column, image)
        table.image(1, column, _coloured(image, parts, colours))
    _add_legend(table, part_names, colours)
    return table.figure


@styled
def class_rows(
    images: Sequence[np.ndarray],
    class_names: Sequence[str],
    masks: Sequence[np.ndarray] | None = None,
    part_names: Sequence[str] = (),
    width: float = PAGE,
) -> Figure:
    """Images of one class a row, with its name: for each class (n, H, W, 3) uint8, at most as many as fit a page.

    With masks, for each class (n, P, H, W) bool, the parts are in colour.
    """
    columns = max(len(of_class) for of_class in images)
    table = ImageTable(len(images), columns, width, left=ROW_LABEL, largest=ROW_HEIGHT)
    colours = _part_colours(len(part_names))
    for row, (of_class, name) in enumerate(zip(images, class_names, strict=True)):
        lines = max(2, int(table.row_height / (0.85 * LINE)))
        table.label(row, _clipped(name, ROW_LABEL, lines))
        for column, image in enumerate(of_class):
            parts = None if masks is None else masks[row][column]
            table.image(row, column, image if parts is None else _coloured(image, parts, colours))
    if masks is not None:
        _add_legend(table, part_names, colours)
    return table.figure


@styled
def class_grid(
    images: np.ndarray,
    class_names: Sequence[str],
    masks: np.ndarray | None = None,
    part_names: Sequence[str] = (),
    columns: int = GRID_COLUMNS,
    width: float = PAGE,
) -> Figure:
    """One image a class: images (N, H, W, 3) uint8, each above the name of its class; masks as for `class_rows`."""
    width, columns = width * min(1, len(images) / columns), min(columns, len(images))
    lines = _grid_captions(class_names, width / columns)
    table = ImageTable(-(-len(images) // columns), columns, width, caption_lines=_caption_lines(lines))
    colours = _part_colours(len(part_names))
    for i, (image, text) in enumerate(zip(images, lines, strict=True)):
        table.image(*divmod(i, columns), image if masks is None else _coloured(image, masks[i], colours))
        table.caption(*divmod(i, columns), text, fontsize=SMALL - 1)
    if masks is not None:
        _add_legend(table, part_names, colours)
    return table.figure


def _grid_captions(names: Sequence[str], width: float) -> list[str]:
    return [_clipped(name, width * SMALL / (SMALL - 1), CAPTION_LINES) for name in names]


def _caption_lines(captions: Sequence[str]) -> int:
    """Room for captions, which are set in smaller type, in lines of small text."""
    return math.ceil(max(text.count("\n") + 1 for text in captions) * (SMALL - 1) / SMALL)


def contact_sheets(selection: Selection) -> dict[str, Figure]:
    """Pages of the selected images of all classes, by name."""
    sheets = class_sheets(selection.images, selection.class_names, selection.masks, selection.part_names)
    return _by_page({f"contact-sheet-{selection.split}": sheets})


def inspection_figures(found: Inspection) -> dict[str, Figure]:
    """Class counts and, where there are any, frequencies of attributes and different sizes of images, by name."""
    pages = {"class-counts": class_counts(found.counts, found.class_names)}
    if found.attribute_names:
        pages["attribute-frequencies"] = attribute_frequencies(found.attributes, found.attribute_names)
    if found.sizes is not None and len(np.unique(found.sizes, axis=0)) > 1:
        pages["image-sizes"] = [image_sizes(found.sizes, found.resolution)]
    return _by_page(pages)


def _by_page(pages: Mapping[str, Sequence[Figure]]) -> dict[str, Figure]:
    """Figures by name, with the number of the page where there are several."""
    return {
        name if len(figures) == 1 else f"{name}-{i}": figure
        for name, figures in pages.items()
        for i, figure in enumerate(figures, 1)
    }


def class_sheets(
    images: Sequence[np.ndarray],
    class_names: Sequence[str],
    masks: Sequence[np.ndarray] | None = None,
    part_names: Sequence[str] = (),
) -> list[Figure]:
    """Pages of images of all classes: rows of several images a class, or a grid of one a class.

    Args:
        images: for each class (n, H, W, 3) uint8, n >= 1.
        masks: for each class (n, P, H, W) bool, parts to draw in colour.
    """
    single = all(len(of_class) == 1 for of_class in images)
    if single:
        cell = PAGE / GRID_COLUMNS
        height, in_row = cell + _caption_lines(_grid_captions(class_names, cell)) * LINE, GRID_COLUMNS
    else:
        height, in_row = min(ROW_HEIGHT, (PAGE - ROW_LABEL) / max(map(len, images))) + ImageTable.GAP, 1
    pages = []
    for rows in pages_of(-(-len(images) // in_row), int(PAGE_HEIGHT / height)):
        page = slice(rows.start * in_row, rows.stop * in_row)
        of_page = None if masks is None else masks[page]
        if single:
            stacked = None if of_page is None else np.concatenate(of_page)
            pages.append(class_grid(np.concatenate(images[page]), class_names[page], stacked, part_names))
        else:
            pages.append(class_rows(images[page], class_names[page], of_page, part_names))
    return pages


def pages_of(count: int, most: int) -> list[slice]:
    """Slices of at most `most` of `count` things, about equally long."""
    pages = max(1, -(-count // most))
    edges = [round(i * count / pages) for i in range(pages + 1)]
    return [slice(start, end) for start, end in pairwise(edges)]


def class_counts(counts: Mapping[str, np.ndarray], class_names: Sequence[str]) -> list[Figure]:
    """Images of each class (C,), the splits side by side in one bar; as many pages as the classes need."""
    names = _numbered(class_names)
    highest = max(1.0, float(sum(counts.values(), np.zeros(len(names))).max()))
    return [
        _class_counts({split: values[page] for split, values in counts.items()}, names[page], highest)
        for page in pages_of(len(names), _rows_of_page(names))
    ]


@styled
def _class_counts(counts: Mapping[str, np.ndarray], names: Sequence[str], highest: float) -> Figure:
    figure, panels = _bar_panels(names, legend=True)
    for axes, rows in panels:
        left = np.zeros(rows.stop - rows.start)
        for colour, (split, values) in zip((BLUE, SKY, ORANGE), counts.items()):
            axes.barh(range(len(left)), values[rows], left=left, height=0.75, color=colour, label=split)
            left = left + values[rows]
        axes.set(xlim=(0, 1.03 * highest), xlabel="images")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def attribute_frequencies(shares: Mapping[str, np.ndarray], names: Sequence[str]) -> list[Figure]:
    """Share of the images that have each attribute (A,): a bar for training images, a dot for test images."""
    return [
        _attribute_frequencies({split: values[page] for split, values in shares.items()}, names[page])
        for page in pages_of(len(names), _rows_of_page(names))
    ]


@styled
def _attribute_frequencies(shares: Mapping[str, np.ndarray], names: Sequence[str]) -> Figure:
    figure, panels = _bar_panels(names, legend=True)
    for axes, rows in panels:
        places = range(rows.stop - rows.start)
        axes.barh(places, shares["train"][rows], height=0.75, color=SKY, label="training images")
        axes.plot(shares["test"][rows], places, ".", ms=4, color=VERMILION, label="test images")
        axes.set(xlim=(0, 1), xlabel="share with the attribute")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside upper center", ncols=len(labels))
    return figure


@styled
def image_sizes(sizes: np.ndarray, resolution: int, width: float = COLUMN) -> Figure:
    """How large images are as stored: width and height (N, 2) in pixels, and the side that models are given."""
    figure = new_figure(width, 2.4)
    axes = figure.subplots()
    low, high = min(sizes.min(), resolution), max(sizes.max(), resolution)
    bins = np.linspace(low, high, 30).tolist() if high > low else [low - 0.5, high + 0.5]
    axes.hist(sizes[:, 0], bins=bins, color=SKY, label="width")
    axes.hist(sizes[:, 1], bins=bins, histtype="step", color=BLUE, lw=1.2, label="height")
    axes.axvline(resolution, color=VERMILION, ls="--", lw=1.0, label=f"models see {resolution} px")
    axes.set(xlabel="side as stored, pixels", ylabel="images")
    figure.legend(loc="outside upper left", ncols=3, columnspacing=1.2)
    return figure


def _bar_panels(names: Sequence[str], legend: bool) -> tuple[Figure, list[tuple[Axes, slice]]]:
    """A figure with one to three columns of rows for bars, and the rows of each."""
    count = 1 if len(names) <= NARROW_ROWS else 2 if _are_long(names) else 3
    panels = pages_of(len(names), -(-len(names) // count))
    most = max(rows.stop - rows.start for rows in panels)
    long = _are_long(names)
    figure = new_figure(COLUMN if count == 1 and not long else PAGE, 0.55 + (0.2 if legend else 0) + most * ROW)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    characters = LONG_NAME if count == 1 and long else SHORT_NAME
    for panel, rows in zip(axes, panels, strict=True):
        labels = [middle_cut(name, characters) for name in names[rows]]
        panel.set_yticks(range(len(labels)), labels, fontsize=SMALL - 1)
        panel.set_ylim(most - 0.4, -0.6)
        panel.tick_params(axis="y", length=0)
        panel.grid(axis="x")
    return figure, list(zip(axes, panels, strict=True))


def _rows_of_page(names: Sequence[str]) -> int:
    return PAGE_ROWS * (2 if _are_long(names) else 3)


def _are_long(names: Sequence[str]) -> bool:
    return max(map(len, names)) > 20


def _numbered(names: Sequence[str]) -> list[str]:
    """Long names get their number, since what makes them differ may be cut out."""
    return [f"{i}: {name}" for i, name in enumerate(names)] if _are_long(names) else list(names)


def _clipped(text: str, width: float, lines: int) -> str:
    """The text in at most so many lines of a width in inches."""
    wrapped = wrap(text, max(8, int(width / (SMALL * 0.0085))))
    return "\n".join(wrapped if len(wrapped) <= lines else [*wrapped[: lines - 1], f"{wrapped[lines - 1]} …"])


def _part_colours(count: int) -> list[tuple[float, float, float]]:
    """Colours that differ, for up to 21 parts: those of the palette, then these darker, then lighter."""
    hues = np.array([to_rgb(colour) for colour in (*PALETTE[:-2], YELLOW)])  # grey is the rest of the picture
    shades = np.concatenate([hues, [to_rgb(DARK)], 0.55 * hues, 0.5 + 0.5 * hues[1:]])
    return [(red, green, blue) for red, green, blue in shades[np.arange(count) % len(shades)].tolist()]


def _add_legend(table: ImageTable, names: Sequence[str], colours: Sequence[tuple[float, float, float]]) -> None:
    """Colours of parts under the table."""
    handles = [
        Line2D([], [], marker="s", ls="", ms=5, color=colour, label=name)
        for colour, name in zip(colours, names, strict=True)
    ]
    rows = _legend_rows(names, table.width)
    room = (0.6 + rows) * LINE + (rows - 1) * 0.03
    table.figure.set_size_inches(table.width, table.height + room)
    table.axes.set_position((0, room / (table.height + room), 1, table.height / (table.height + room)))
    table.figure.legend(
        handles=handles, loc="lower center", ncols=-(-len(handles) // rows), handletextpad=0.1, columnspacing=1.0
    )


def _legend_rows(names: Sequence[str], width: float) -> int:
    """Rows of a legend of at most so many inches, in which each column is as wide as its longest name."""
    for rows in range(-(-len(names) // LEGEND_COLUMNS), len(names)):
        columns = np.array_split([len(name) for name in names], -(-len(names) // rows))
        if sum(LEGEND_MARKER + lengths.max() * SMALL * 0.0085 for lengths in columns) <= width:
            return rows
    return len(names)


@styled
def real_and_generated(real: np.ndarray, generated: np.ndarray, columns: int = 6, width: float = PAGE) -> Figure:
    """Two grids side by side: real images and samples of the generator, both (N, H, W, 3) uint8."""
    rows = -(-max(len(real), len(generated)) // columns)
    space = 0.12
    table = ImageTable(rows, 2 * columns, width - space, header_lines=1.4)  # type: ignore[arg-type]
    for side, (title, images) in enumerate((("real images", real), ("samples of the generator", generated))):
        if side:
            table.left += space
        for i, image in enumerate(images):
            row, column = divmod(i, columns)
            table.image(row, column + side * columns, image)
        table.header(side * columns, title, span=columns, fontsize=MEDIUM)
    table.width += space
    table.figure.set_size_inches(table.width, table.height)
    table.axes.set(xlim=(0, table.width))
    return table.figure


@styled
def reconstructions(real: np.ndarray, rebuilt: np.ndarray, width: float = PAGE) -> Figure:
    """Images (N, H, W, 3) uint8 above their reconstructions."""
    left = 0.85
    table = ImageTable(2, len(real), width, left=left, caption_lines=0)
    for row, (title, images) in enumerate((("image", real), ("reconstruction", rebuilt))):
        table.label(row, title)
        for column, image in enumerate(images):
            table.image(row, column, image)
    return table.figure


def image_grid(images: np.ndarray, columns: int = 8, gap: int = 2) -> np.ndarray:
    """One picture (H', W', 3) uint8 of all images (N, H, W, 3) uint8, at their own resolution, on white."""
    n, height, width = images.shape[:3]
    rows = -(-n // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[y : y + height, x : x + width] = image
    return sheet


def save_image_grid(images: "np.ndarray | Tensor", path: Path, columns: int = 8) -> Path:
    """Write images, uint8 (N, H, W, 3) or a tensor (N, 3, H, W) in [-1, 1], as one picture at their own resolution."""
    pixels = images if isinstance(images, np.ndarray) else to_pixels(images)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image_grid(pixels, min(columns, len(pixels)))).save(path)
    return path


def _wrapped(captions: Sequence[str], width: float) -> list[str]:
    characters = int(width / (SMALL * 0.0085))
    return ["\n".join(wrap(text, max(characters, 8))) for text in captions]


def _coloured(image: np.ndarray, parts: np.ndarray, colours: Sequence[tuple[float, float, float]]) -> np.ndarray:
    grey = image.mean(2, keepdims=True).repeat(3, 2) / 255 * 0.35 + 0.6
    for mask, colour in zip(parts, colours, strict=True):
        grey[mask] = 0.25 * grey[mask] + 0.75 * np.array(colour)
    return grey
