"""Figures of the augmentations of generator training."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from viscoin.plotting.style import MEDIUM, PAGE, ImageTable, styled


@styled
def augmentation_table(
    real: np.ndarray, augmented: Mapping[str, Sequence[np.ndarray]], strengths: Sequence[str], width: float = PAGE
) -> Figure:
    """The images (N, H, W, 3) uint8 above a row for each preset, which holds them once for each strength.

    Args:
        augmented: name of a preset -> its images (N, H, W, 3), one such array for each strength.
        strengths: headings of the blocks, such as "p = 1".
    """
    space, columns = 0.12, len(real)
    rows = {"images": [real] * len(strengths), **augmented}
    table = ImageTable(len(rows), columns * len(strengths), width - space, left=0.6, header_lines=1.4)  # type: ignore[arg-type]
    for block, title in enumerate(strengths):
        if block:
            table.left += space
        table.header(block * columns, title, span=columns, fontsize=MEDIUM)
        for row, images in enumerate(rows.values()):
            for column, image in enumerate(images[block]):
                table.image(row, column + block * columns, image)
    for row, name in enumerate(rows):
        table.label(row, name)
    table.width += space
    table.figure.set_size_inches(table.width, table.height)
    table.axes.set(xlim=(0, table.width))
    return table.figure
