"""What every dataset offers: square uint8 images on a memory map, labels, and truth where it has any."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from viscoin.datasets.cache import cache_folder, is_cached, new_cached, reserve
from viscoin.datasets.reading import CROP, Box, Fit

if TYPE_CHECKING:  # what needs no tensors, as counting images, does without torch
    from torch import Tensor

__all__ = ["SPLITS", "ImageDataset", "cache_folder", "cached_pixels", "to_images", "to_pixels"]

SPLITS = ("train", "validation", "test")


class ImageDataset:
    """Images and labels of one split; an item is (float32 image (3, H, W) in [-1, 1], int label).

    Args:
        name: what the dataset is called in files and figures.
        split: "train", "validation" or "test".
        pixels: (N, H, W, 3) uint8, usually a memory map, so that nothing grows while images are served.
        labels: (N,) class indices.
        class_names: one name per class.
        files: the file of each image, as text; None for images that are rendered or stored in one array.
    """

    has_truth = False
    attribute_names: Sequence[str] = ()
    part_names: Sequence[str] = ()
    labelled = True  # whether labels are given, and not f's own predictions
    fit: Fit = CROP  # how files of any shape became its squares

    def __init__(
        self,
        name: str,
        split: str,
        pixels: np.ndarray,
        labels: np.ndarray,
        class_names: Sequence[str],
        files: Sequence[str] | None = None,
    ) -> None:
        self.name, self.split, self.pixels = name, split, pixels
        self.labels = np.asarray(labels, dtype=np.int64)
        self.class_names = list(class_names)
        self.files = None if files is None else list(files)
        self.resolution = int(pixels.shape[1])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> "tuple[Tensor, int]":
        images, labels = self.batch([index])
        return images[0], int(labels[0])

    def batch(self, indices: Sequence[int] | np.ndarray) -> "tuple[Tensor, Tensor]":
        """Images (B, 3, H, W) in [-1, 1], channels last in memory, and labels (B,) of the given items."""
        import torch

        indices = np.asarray(indices, dtype=np.int64)
        return to_images(self.pixels[indices]), torch.from_numpy(self.labels[indices])

    def batches(self, size: int, indices: np.ndarray | None = None) -> "Iterator[tuple[Tensor, Tensor]]":
        """All items, or the given ones, in order and in batches; the last one may be short."""
        indices = np.arange(len(self)) if indices is None else indices
        for start in range(0, len(indices), size):
            yield self.batch(indices[start : start + size])

    @property
    def attributes(self) -> np.ndarray:
        """Ground truth (N, A) bool, columns named by `attribute_names`."""
        raise ValueError(f"dataset {self.name!r} has no ground-truth attributes")

    def object_box(self, index: int) -> Box | None:
        """What of its file an image was made of, where that is known to be less than all of it."""
        return None

    def part_masks(self, index: int) -> np.ndarray:
        """Visible pixels of each part, (P, H, W) bool, in the order of `part_names`."""
        raise ValueError(f"dataset {self.name!r} has no part masks")


def to_images(pixels: np.ndarray) -> "Tensor":
    """uint8 (B, H, W, 3) in [0, 255] -> float32 (B, 3, H, W) in [-1, 1]."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def to_pixels(images: "Tensor") -> np.ndarray:
    """float (B, 3, H, W), clamped to [-1, 1] -> uint8 (B, H, W, 3); the inverse of `to_images`."""
    import torch

    pixels = images.detach().float().clamp(-1, 1).add(1).mul(127.5).round()
    return pixels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def cached_pixels(
    key: str, count: int, resolution: int, rows: Callable[[], Iterator[np.ndarray]], title: str
) -> np.ndarray:
    """Memory map (count, H, W, 3) uint8 of images that are made once and cached under `key`.

    `rows` yields uint8 (H, W, 3) images. The file appears under its name only when complete; its room is reserved.

    Raises:
        Refused: the cache cannot be written, or the disk is full.
    """
    path = cache_folder() / f"{key}.npy"
    if not is_cached(path):
        shape = (count, resolution, resolution, 3)
        with new_cached(path) as partial:
            store = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
            reserve(partial)
            for i, row in enumerate(tqdm(rows(), total=count, desc=title, unit="image", leave=False, disable=None)):
                store[i] = row
            store.flush()
            del store
    return np.load(path, mmap_mode="r")
