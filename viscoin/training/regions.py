"""Where in images a penalty looks: boxes, a part, the background, a mask, or boxes of images that somebody marked."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from viscoin.datasets import ImageDataset
from viscoin.datasets.masks import read_mask
from viscoin.errors import Refused, reason_of
from viscoin.penalties import BACKGROUND, Box, is_file, read_boxes
from viscoin.runs.kept import kept_path
from viscoin.runs.run import Run

MASK_BYTES = 64 * 2**20  # of masks that are remembered, packed
MOST_IMAGES = 2**31  # of a split that is not known when its marks are read


@dataclass(frozen=True)
class Region:
    """A region of the images of one training.

    Attributes:
        text: as it was asked for.
        boxes: of all images, (left, top, right, bottom) in shares of the side.
        part: number of a part of the dataset; -1 is what no part covers.
        picture: (H, W) bool, of all images.
        marked: by split and index, boxes of the images that somebody marked; the others have none.
    """

    text: str
    boxes: tuple[Box, ...] = ()
    part: int | None = None
    picture: np.ndarray | None = None
    marked: Mapping[str, Mapping[int, tuple[Box, ...]]] = field(default_factory=dict)

    def marked_of(self, dataset: ImageDataset) -> np.ndarray | None:
        """Indices of the marked images of a split; None where all images have the region."""
        return np.array(sorted(self.marked.get(dataset.split, {})), dtype=np.int64) if self.marked else None

    def mask(self, dataset: ImageDataset, index: int) -> np.ndarray:
        """The region (H, W) bool of an image; errors as of the dataset's masks."""
        if self.part is not None:
            parts = dataset.part_masks(index)
            return np.asarray(~parts.any(0) if self.part < 0 else parts[self.part])
        if self.picture is not None:
            return self.picture
        boxes = self.marked.get(dataset.split, {}).get(index, ()) if self.marked else self.boxes
        return draw_boxes(boxes, dataset.resolution)


class Masks:
    """Masks of a region over one dataset; those that cost a look at a file or a scene are remembered."""

    def __init__(self, region: Region, dataset: ImageDataset) -> None:
        self.region, self.dataset = region, dataset
        size = dataset.resolution**2 // 8 + 1
        self._packed = lru_cache(maxsize=max(64, MASK_BYTES // size))(self._pack)
        self._same = None if region.part is not None or region.marked else region.mask(dataset, 0)

    def __call__(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """(B, H, W) bool of some images."""
        side = self.dataset.resolution
        if self._same is not None:
            return np.broadcast_to(self._same, (len(indices), side, side))
        packed = np.array([self._packed(int(index)) for index in indices], dtype=np.uint8)
        return np.unpackbits(packed, axis=1, count=side * side).reshape(-1, side, side).astype(bool)

    def _pack(self, index: int) -> np.ndarray:
        return np.packbits(self.region.mask(self.dataset, index))


def draw_boxes(boxes: Sequence[Box], side: int) -> np.ndarray:
    """(side, side) bool: the pixels whose middle lies in a box."""
    middles, drawn = (np.arange(side) + 0.5) / side, np.zeros((side, side), dtype=bool)
    for left, top, right, bottom in boxes:
        drawn |= ((middles >= top) & (middles < bottom))[:, None] & ((middles >= left) & (middles < right))
    return drawn


def region_names(dataset: ImageDataset) -> list[str]:
    """Regions that a dataset knows by name."""
    return [BACKGROUND, *dataset.part_names] if dataset.part_names else []


def find_region(text: str, dataset: ImageDataset, run: Run, new: bool = False) -> Region:
    """What a region means in a training.

    Args:
        dataset: its training images.
        run: keeps the files that regions name.
        new: whether a file may be one that the run does not keep yet.

    Raises:
        Refused: it is no part of this dataset, smaller than a pixel, or a file that does not fit.
    """
    if boxes := read_boxes(text):
        return _drawn(Region(text, boxes), dataset)
    if is_file(text):
        path = kept_path(run, text, new)
        return (_marked if path.suffix == ".json" else _picture)(text, path, dataset)
    names = region_names(dataset)
    if text not in names:
        known = f"choose one of: {', '.join(names)}; or give boxes"
        none = f"dataset {dataset.name!r} has no part masks"
        raise Refused("region", text, "there is no such part" if names else none, known if names else "give boxes")
    part = names.index(text) - 1
    dataset.part_masks(0)  # what is wrong with its masks is to be said now
    return Region(text, part=part)


def _drawn(region: Region, dataset: ImageDataset) -> Region:
    if not region.mask(dataset, 0).any():
        side = dataset.resolution
        raise Refused("region", region.text, f"it covers no pixel of {side}x{side}", "give a larger one")
    return region


def _picture(text: str, path: Path, dataset: ImageDataset) -> Region:
    whole = Image.fromarray(read_mask(path).astype(np.uint8) * 255)
    side = dataset.resolution
    return _drawn(Region(text, picture=np.asarray(whole.resize((side, side), Image.Resampling.BOX)) > 127), dataset)


def _marked(text: str, path: Path, dataset: ImageDataset) -> Region:
    """Of a JSON object: image -> box or boxes, or such an object for each split."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not found:
            raise ValueError("it holds no object of images")
        splits = found if found.keys() <= {"train", "validation"} else {"train": found}
        marked = {
            split: {_index(name, dataset if split == "train" else None): _boxes(boxes) for name, boxes in some.items()}
            for split, some in splits.items()
        }
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Refused(
            "region", text, f"it is no file of marked images ({reason_of(error, 200)})",
            'write {"0": [0, 0, 0.25, 0.25], ...}, with numbers or files of training images',
        ) from error  # fmt: skip
    if not marked.get("train"):
        raise Refused("region", text, "no training image is marked in it", "mark some")
    return Region(text, marked=marked)


def _index(name: str, dataset: ImageDataset | None) -> int:
    """Number of an image that is named by it, or by its file."""
    if name.isdecimal():
        if int(name) >= (MOST_IMAGES if dataset is None else len(dataset)):
            raise ValueError(f"image {name:.40}: there are {'not so many' if dataset is None else len(dataset)}")
        return int(name)
    files = (dataset.files if dataset is not None else None) or []
    ends = [i for i, file in enumerate(files) if file == name or file.endswith(f"/{name}")]
    if len(ends) != 1:
        raise ValueError(f"{name!r:.80} is {'no training image' if not ends else 'the name of several images'}")
    return ends[0]


def _boxes(value: object) -> tuple[Box, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{value!r:.60} is no box")
    boxes = value if isinstance(value[0], list) else [value]
    return tuple(box for one in boxes for box in read_boxes(",".join(str(float(side)) for side in one)))
