"""The birds as a dataset: rendered once, cached as a memory map, with attributes, part masks and interventions."""

import hashlib
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from viscoin.config import DatasetConfig
from viscoin.datasets.base import ImageDataset, cached_pixels
from viscoin.datasets.birds import (
    PARTS,
    Bird,
    Scene,
    attribute_names,
    class_names,
    item,
    render,
    shown_attributes,
)

COUNTS = {"train": 40_000, "validation": 1_000, "test": 2_000}
DEFAULT_CLASSES = 1000  # f of 200 needs not all parts to tell them apart (docs/ground-truth.md)


class BirdsDataset(ImageDataset):
    """Birds with known truth; image i of a split depends on (seed, split, i) alone, its class is i mod classes."""

    has_truth = True
    part_names = PARTS

    def __init__(self, split: str, pixels: np.ndarray, classes: int, seed: int) -> None:
        labels = np.arange(len(pixels)) % classes
        super().__init__("birds", split, pixels, labels, class_names(classes))
        self.classes, self.seed = classes, seed
        self.attribute_names = attribute_names()

    def item(self, index: int) -> tuple[Bird, Scene, int]:
        """Bird, scene and class of an image: what interventions start from."""
        return item(self.split, index, self.seed, self.classes)

    @cached_property
    def attributes(self) -> np.ndarray:  # type: ignore[override]
        return np.stack([shown_attributes(self.split, i, self.seed, self.classes) for i in range(len(self))])

    def part_masks(self, index: int) -> np.ndarray:
        bird, scene, _ = self.item(index)
        return render(bird, scene, self.resolution)[1]


def load_birds(split: str, config: DatasetConfig) -> BirdsDataset:
    """Birds of one split; rendered on first use (about 1 ms an image), then read from the user's cache folder."""
    count = getattr(config, split) or COUNTS[split]
    classes = config.classes or DEFAULT_CLASSES
    pixels = cached_pixels(
        f"birds/{split}-{count}x{config.resolution}px-{classes}classes-seed{config.seed}-{_renderer_version()}",
        count,
        config.resolution,
        partial(_rows, split, count, config.seed, classes, config.resolution),
        f"drawing birds ({split})",
    )
    return BirdsDataset(split, pixels, classes, config.seed)


def _rows(split: str, count: int, seed: int, classes: int, resolution: int) -> Iterator[np.ndarray]:
    for index in range(count):
        bird, scene, _ = item(split, index, seed, classes)
        yield render(bird, scene, resolution)[0]


def _renderer_version() -> str:
    """Digest of the rendering code, so that cached pictures never outlive it."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.name not in ("dataset.py", "__init__.py"):
            digest.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:12]
