"""The files that the images of a dataset were made from, for pictures that are finer than what models see."""

from pathlib import Path

import numpy as np

from viscoin.datasets.base import ImageDataset
from viscoin.datasets.reading import BadImage, read_region, square


def original(dataset: ImageDataset, index: int, side: int) -> np.ndarray:
    """Image `index` as uint8 (S, S, 3), cut from its file: S at most `side`, and what the file and `side` allow.

    The image of the dataset itself, of its own resolution, where there is no file, or where the same square of the file
    is not that image, as for bounding boxes.
    """
    pixels = np.asarray(dataset.pixels[index])
    if dataset.files is None or not Path(dataset.files[index]).is_file():
        return pixels
    try:
        image = read_region(Path(dataset.files[index]), side, dataset.object_box(index), fit=dataset.fit)
    except BadImage:
        return pixels
    finest = min(side, *image.size)
    if finest <= dataset.resolution or not _alike(square(image, dataset.resolution, dataset.fit), pixels):
        return pixels
    return square(image, finest, dataset.fit)


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two pictures differ by no more than two ways of reducing a picture do."""
    return bool(np.abs(one.astype(int) - other).mean() < 4)
