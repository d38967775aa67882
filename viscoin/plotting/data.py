"""Figures of data: contact sheets, part masks, real beside generated images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from torch import Tensor

from viscoin.datasets import to_pixels
from viscoin.plotting.style import LINE, MEDIUM, PAGE, PALETTE, SMALL, YELLOW, ImageTable, styled, wrap


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
    palette = (*PALETTE[:-1], YELLOW)  # grey is the rest of the picture
    colours = [to_rgb(palette[i % len(palette)]) for i in range(len(part_names))]
    for column, (image, parts) in enumerate(zip(images, masks, strict=True)):
        table.image(0, column, image)
        table.image(1, column, _coloured(image, parts, colours))
    handles = [
        Line2D([], [], marker="s", ls="", ms=5, color=colour, label=name)
        for colour, name in zip(colours, part_names, strict=True)
    ]
    room = 1.6 * LINE
    table.figure.set_size_inches(table.width, table.height + room)
    table.axes.set_position((0, room / (table.height + room), 1, table.height / (table.height + room)))
    table.figure.legend(handles=handles, loc="lower center", ncols=len(handles), handletextpad=0.1, columnspacing=1.0)
    return table.figure


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


def save_image_grid(images: np.ndarray | Tensor, path: Path, columns: int = 8) -> Path:
    """Write images, uint8 (N, H, W, 3) or a tensor (N, 3, H, W) in [-1, 1], as one picture at their own resolution."""
    pixels = to_pixels(images) if isinstance(images, Tensor) else images
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
