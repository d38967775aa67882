"""One look for all figures: journal widths, readable sizes, colours that colour-blind readers can distinguish."""

import io
import textwrap
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

from viscoin.errors import reason_of
from viscoin.files import atomic_path
from viscoin.plotting.fonts import fit_fonts, quiet

COLUMN, PAGE = 3.4, 7.0  # inches: one journal column, a full page width
SMALL, MEDIUM = 7, 8  # font sizes, points
LINE = 0.125  # height of a line of small text, inches

# Okabe & Ito 2008
BLUE, VERMILION, GREEN, ORANGE, SKY, PINK, YELLOW = (
    "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#F0E442",
)  # fmt: skip
PURPLE, BROWN = "#5D3A9B", "#8C6D1F"  # where those do not go round
GREY, LIGHT, DARK = "#8C8C8C", "#D9D9D9", "#333333"
PALETTE = (BLUE, VERMILION, GREEN, ORANGE, SKY, PINK, DARK, GREY)
SEQUENTIAL, DIVERGING, HEAT = "Blues", "RdBu_r", "inferno"

STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": MEDIUM,
    "axes.titlesize": MEDIUM,
    "axes.labelsize": MEDIUM,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": DARK,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=PALETTE),
    "grid.color": LIGHT,
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.2,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
    "text.parse_math": False,  # a class called "$5 or $10" is no formula
    "svg.fonttype": "none",
}

P = ParamSpec("P")


def middle_cut(name: str, most: int) -> str:
    """Shortened to the limit of characters by leaving out the middle."""
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[: most - 1 - half].rstrip()}…{name[-half:].lstrip()}"


def wrap(text: str, characters: int) -> list[str]:
    """Lines of limited length; hyphenated words stay whole where they fit, and else break at their hyphens."""
    words = [word if len(word) <= characters else word.replace("-", "- ") for word in text.split(" ")]
    return textwrap.wrap(" ".join(words), characters, break_on_hyphens=False) or [""]


def styled(function: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw a figure in this style, whatever the user's matplotlib settings are."""

    @wraps(function)
    def draw(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(STYLE)
            with quiet():
                return function(*args, **kwargs)

    return draw


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches, without any global state."""
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure, whole or not at all; the suffix says the format.

    Raises:
        ValueError: the place cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fit_fonts(figure)
        with mpl.rc_context(STYLE), quiet(), atomic_path(path) as partial:
            figure.savefig(partial, format=path.suffix.removeprefix("."))
    except OSError as error:
        raise ValueError(f"cannot write figure {path} ({reason_of(error)}); choose another folder") from error
    return path


def figure_bytes(figure: Figure, kind: str = "png") -> bytes:
    """The figure as a file in memory, to be put into a report."""
    buffer = io.BytesIO()
    fit_fonts(figure)
    with mpl.rc_context(STYLE), quiet():
        figure.savefig(buffer, format=kind)
    return buffer.getvalue()


class ImageTable:
    """Rows and columns of images with captions, laid out in inches on a figure of exact size.

    Args:
        rows, columns: of images.
        width: of the figure, inches.
        left: margin for row labels, inches.
        right: margin for a colour bar, inches.
        header_lines, caption_lines: lines of text above the table and under each image.
        aspect: height of an image divided by its width.
    """

    GAP = 0.05

    def __init__(
        self,
        rows: int,
        columns: int,
        width: float = PAGE,
        left: float = 0.0,
        right: float = 0.0,
        header_lines: int = 0,
        caption_lines: int = 0,
        aspect: float = 1.0,
        largest: float = 1.3,
    ) -> None:
        room = (width - left - right - self.GAP * (columns + 1)) / columns
        self.side = min(room, largest)
        self.left, self.top = left + self.GAP, self.GAP + header_lines * LINE
        self.row_height = self.side * aspect + caption_lines * LINE + self.GAP * (1.6 if caption_lines else 1)
        self.width = left + right + columns * (self.side + self.GAP) + self.GAP
        self.height, self.aspect = self.top + rows * self.row_height + self.GAP, aspect
        self.figure = Figure(figsize=(self.width, self.height))
        self.axes: Axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.axis("off")
        self.axes.set(xlim=(0, self.width), ylim=(self.height, 0))

    def corner(self, row: int, column: int) -> tuple[float, float]:
        """Left and upper edge of a cell, inches."""
        return self.left + column * (self.side + self.GAP), self.top + row * self.row_height

    def image(self, row: int, column: int, pixels: np.ndarray, **options: Any) -> None:
        """Draw an image (H, W, 3) or (H, W) into a cell."""
        x, y = self.corner(row, column)
        extent = (x, x + self.side, y + self.side * self.aspect, y)
        smooth = "nearest" if pixels.shape[0] <= 128 else "antialiased"
        self.axes.imshow(pixels, **{"extent": extent, "interpolation": smooth, "aspect": "auto", **options})
        self.axes.set(xlim=(0, self.width), ylim=(self.height, 0))

    def caption(self, row: int, column: int, text: str, **options: Any) -> None:
        x, y = self.corner(row, column)
        y += self.side * self.aspect + 0.02
        options = {"ha": "center", "va": "top", "fontsize": SMALL, "color": DARK, "linespacing": 1.15, **options}
        self.axes.text(x + self.side / 2, y, text, **options)

    def header(self, column: int, text: str, span: int = 1, **options: Any) -> None:
        x, _ = self.corner(0, column)
        middle = x + (span * (self.side + self.GAP) - self.GAP) / 2
        options = {"ha": "center", "va": "bottom", "fontsize": SMALL, "linespacing": 1.15, **options}
        self.axes.text(middle, self.top - 0.03, text, **options)

    def label(self, row: int, text: str, **options: Any) -> None:
        """Text in the left margin, beside the middle of the image."""
        y = self.corner(row, 0)[1] + self.side * self.aspect / 2
        options = {"ha": "left", "va": "center", "fontsize": SMALL, "linespacing": 1.2, **options}
        self.axes.text(self.GAP, y, text, **options)

    def frame(self, row: int, column: int, colour: str) -> None:
        x, y = self.corner(row, column)
        height = self.side * self.aspect
        self.axes.add_patch(mpl.patches.Rectangle((x, y), self.side, height, fill=False, ec=colour, lw=1.5))
