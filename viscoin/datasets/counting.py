"""Grids in which one kind of cell is counted: what a classifier must look at is known, cell by cell.

After the toy task and the visual question answering of Vision DiffMask (Nalmpantis et al. 2023, arXiv 2304.06391).
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from PIL import Image

from viscoin.config import DatasetConfig
from viscoin.datasets.base import SPLITS, ImageDataset, cached_pixels
from viscoin.datasets.reading import square
from viscoin.errors import Refused

COLOURS = ("blue", "green", "cyan", "red", "magenta", "yellow")
RGB = np.array([[0, 0, 1], [0, 1, 0], [0, 1, 1], [1, 0, 0], [1, 0, 1], [1, 1, 0]], np.uint8) * 255
CELL = 16  # pixels of a side, the patch of a ViT
COUNTS = {"toy-count": {"train": 18_000, "validation": 1_000, "test": 1_000},
          "cifar10-qa": {"train": 9_000, "validation": 500, "test": 500}}  # fmt: skip


class CountingDataset(ImageDataset):
    """Grids of cells; the class is the number of those that are counted, and their pixels are the one part.

    Recolouring a counted cell changes the class, recolouring another one to any other colour does not: the truth of an
    explanation is 1 on counted cells and 0 elsewhere, empty for class 0.

    Args:
        counted: (N, g, g) bool, which cells are.
    """

    part_names = ("counted",)

    def __init__(self, name: str, split: str, pixels: np.ndarray, counted: np.ndarray) -> None:
        classes = [str(number) for number in range(counted[0].size + 1)]
        super().__init__(name, split, pixels, counted.sum((1, 2)), classes)
        self.counted = counted

    def part_masks(self, index: int) -> np.ndarray:
        """Pixels of the counted cells, (1, H, W) bool."""
        grid = self.counted.shape[1]
        cell = (np.arange(self.resolution) + 0.5) * grid / self.resolution
        rows = cell.astype(int)
        return self.counted[index][None, rows[:, None], rows]


def load_toy_count(split: str, config: DatasetConfig) -> CountingDataset:
    """Coloured squares of 16 px, of six colours; the class is how many have the colour `config.counted_class`.

    Image i of a split depends on (seed, split, i), the grid and the counted colour alone.

    Raises:
        Refused: no such colour, or a resolution that is not that of the grid.
    """
    side, grid = config.resolution, config.grid_size
    if side != CELL * grid:
        raise Refused(
            "dataset.resolution", side, f"toy-count draws a grid of {grid} x {grid} cells of {CELL} px",
            f"set dataset.resolution={CELL * grid}, or dataset.grid_size to another grid",
        )  # fmt: skip
    cells = np.stack([kinds for _, kinds in _grids("toy-count", split, config, _colour_pools(config), COLOURS)])
    pixels = cached_pixels(
        f"toy-count/{split}-{len(cells)}x{side}px-{_key(config)}", len(cells), side,
        lambda: (RGB[kinds].repeat(CELL, 0).repeat(CELL, 1) for kinds in cells), f"drawing toy-count {split}",
    )  # fmt: skip
    return CountingDataset("toy-count", split, pixels, cells == config.counted_class)


def load_cifar10_qa(split: str, config: DatasetConfig) -> CountingDataset:
    """Grids of CIFAR-10 photographs; the class is how many show class `config.counted_class` (3: cats).

    Photographs come from the same split of `cifar10`; grid i of a split depends on (seed, split, i), the grid and the
    counted class alone.

    Raises:
        Refused: no such class.
        ValueError: the files of CIFAR-10 are unavailable, or differ from the published ones.
    """
    from viscoin.datasets.torchvision_sets import load_cifar10

    changes = {"name": "cifar10", "resolution": 32, "train": None, "validation": None, "test": None, "crop_share": None}
    photographs = load_cifar10(split, config.model_copy(update=changes))
    wanted = photographs.labels == config.counted_class
    pools = np.flatnonzero(wanted), np.flatnonzero(~wanted)
    grids = list(_grids("cifar10-qa", split, config, pools, photographs.class_names))
    content = hashlib.sha256(photographs.labels.tobytes() + photographs.pixels[:8].tobytes()).hexdigest()[:8]
    pixels = cached_pixels(
        f"cifar10-qa/{split}-{len(grids)}x{config.resolution}px-{_key(config)}-{content}",
        len(grids), config.resolution, partial(_composed, grids, photographs.pixels, config.resolution),
        f"composing cifar10-qa {split}",
    )  # fmt: skip
    return CountingDataset("cifar10-qa", split, pixels, np.stack([counted for counted, _ in grids]))


def _key(config: DatasetConfig) -> str:
    return f"grid{config.grid_size}-counted{config.counted_class}-seed{config.seed}"


def _colour_pools(config: DatasetConfig) -> tuple[np.ndarray, np.ndarray]:
    colours = np.arange(len(COLOURS))
    return colours[colours == config.counted_class], colours[colours != config.counted_class]


def _grids(
    name: str,
    split: str,
    config: DatasetConfig,
    pools: tuple[np.ndarray, np.ndarray],
    kinds: Sequence[str],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Which cells are counted, (g, g) bool, and what is in each, (g, g) numbers of the pools of counted and others."""
    if config.counted_class >= len(kinds):
        raise Refused(
            "dataset.counted_class", config.counted_class, f"{name} has no such class",
            f"choose from {', '.join(f'{number} ({kind})' for number, kind in enumerate(kinds))}",
        )  # fmt: skip
    size = config.grid_size**2
    for index in range(getattr(config, split) or COUNTS[name][split]):
        seeds = np.random.SeedSequence([config.seed, SPLITS.index(split), index])
        generator = np.random.Generator(np.random.Philox(seeds))
        count = int(generator.integers(size + 1))
        drawn = [generator.choice(pool, number) for pool, number in zip(pools, (count, size - count), strict=True)]
        order = generator.permutation(size)
        shape = (config.grid_size, config.grid_size)
        yield (order < count).reshape(shape), np.concatenate(drawn)[order].reshape(shape)


def _composed(grids: list[tuple[np.ndarray, np.ndarray]], photographs: np.ndarray, side: int) -> Iterator[np.ndarray]:
    for _, places in grids:
        rows = [np.concatenate(list(photographs[row]), axis=1) for row in places]
        yield square(Image.fromarray(np.concatenate(rows, axis=0)), side)
