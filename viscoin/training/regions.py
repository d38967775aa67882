"""Where in images a penalty looks: boxes, a part, the background, a mask, or what somebody marked on single images."""

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
MOST_SIDE = 2048  # of a mask in a file of marked images, pixels


@dataclass(frozen=True)
class Mark:
    """What is marked on one image: all that its boxes or its mask cover.

    Attributes:
        boxes: (left, top, right, bottom) in shares of the side.
        size: (height, width) of the mask in pixels; it is stretched over the image.
        counts: lengths of runs of the mask, outside and inside in turn, column by column: COCO's uncompressed run
            lengths; none without a mask.
    """

    boxes: tuple[Box, ...] = ()
    size: tuple[int, int] = (0, 0)
    counts: tuple[int, ...] = ()

    def draw(self, side: int) -> np.ndarray:
        """The marked pixels, (side, side) bool."""
        drawn = draw_boxes(self.boxes, side)
        if not self.counts:
            return drawn
        inside = np.repeat(np.arange(len(self.counts)) % 2 == 1, self.counts).reshape(self.size[::-1]).T
        return drawn | stretched(inside, side)


@dataclass(frozen=True)
class Region:
    """A region of the images of one training.

    Attributes:
        text: as it was asked for.
        boxes: of all images, (left, top, right, bottom) in shares of the side.
        part: number of a part of the dataset; -1 is what no part covers.
        picture: (H, W) bool, of all images.
        marked: by split and index, the images that somebody marked; the others have no region.
    """

    text: str
    boxes: tuple[Box, ...] = ()
    part: int | None = None
    picture: np.ndarray | None = None
    marked: Mapping[str, Mapping[int, Mark]] = field(default_factory=dict)

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
        mark = self.marked.get(dataset.split, {}).get(index, Mark()) if self.marked else Mark(self.boxes)
        return mark.draw(dataset.resolution)


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


def stretched(mask: np.ndarray, side: int) -> np.ndarray:
    """A mask (H, W) bool over a square of so many pixels: those of which it covers the larger part."""
    whole = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(whole.resize((side, side), Image.Resampling.BOX)) > 127


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
    return _drawn(Region(text, picture=stretched(read_mask(path), dataset.resolution)), dataset)


def _marked(text: str, path: Path, dataset: ImageDataset) -> Region:
    try:
        marked = read_marks(json.loads(path.read_text(encoding="utf-8")), dataset)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Refused(
            "region", text, f"it is no file of marked images ({reason_of(error, 200)})",
            'write {"0": [0, 0, 0.25, 0.25], ...}, with numbers or files of training images',
        ) from error  # fmt: skip
    if not marked.get("train"):
        raise Refused("region", text, "no training image is marked in it", "mark some")
    return Region(text, marked=marked)


# --- files of marked images ---------------------------------------------------------------------------------------


def read_marks(
    found: object, train: ImageDataset, validation: ImageDataset | None = None
) -> dict[str, dict[int, Mark]]:
    """Marks by split and index, of an object image -> mark, or of such an object for each split.

    A mark is a box, a list of boxes, or `{"boxes": [...], "mask": {"size": [H, W], "counts": [...]}}`, of which one
    may be missing.

    Args:
        train, validation: the images; without validation images, their number is not checked.

    Raises:
        ValueError, TypeError, AttributeError: it is no such object, names an image that is not there, or marks what
            is not in it.
    """
    if not isinstance(found, dict) or not found:
        raise ValueError("it holds no object of images")
    splits = found if found.keys() <= {"train", "validation"} else {"train": found}
    datasets = {"train": train, "validation": validation}
    return {
        split: {_index(name, split, datasets[split]): _mark(name, mark) for name, mark in some.items()}
        for split, some in splits.items()
    }


def _index(name: str, split: str, dataset: ImageDataset | None) -> int:
    """Number of an image that is named by it, or by its file."""
    if name.isdecimal() and name.isascii():
        if len(name) > 10 or int(name) >= (MOST_IMAGES if dataset is None else len(dataset)):
            raise ValueError(f"image {name:.40}: there are {'not so many' if dataset is None else len(dataset)}")
        return int(name)
    files = (dataset.files if dataset is not None else None) or []
    ends = [i for i, file in enumerate(files) if file == name or file.endswith(f"/{name}")]
    if len(ends) != 1:
        article = "training" if split == "train" else split
        raise ValueError(f"{name!r:.80} is {f'no {article} image' if not ends else 'the name of several images'}")
    return ends[0]


def _mark(name: str, value: object) -> Mark:
    if not isinstance(value, dict):
        return Mark(_boxes(value))
    if odd := value.keys() - {"boxes", "mask"}:
        raise ValueError(f"image {name:.40}: a mark takes no {min(odd)!r:.40}; give boxes, mask or both")
    boxes = _boxes(value["boxes"]) if value.get("boxes") else ()
    mark = _masked(name, boxes, value["mask"]) if value.get("mask") else Mark(boxes)
    if not mark.boxes and not mark.counts:
        raise ValueError(f"image {name:.40}: nothing is marked on it; give boxes, mask or both")
    return mark


def _masked(name: str, boxes: tuple[Box, ...], mask: object) -> Mark:
    if not isinstance(mask, dict) or mask.keys() != {"size", "counts"}:
        raise ValueError(f"image {name:.40}: a mask has size and counts, and nothing else")
    size, counts = mask["size"], mask["counts"]
    for key, numbers in (("size", size), ("counts", counts)):
        if not isinstance(numbers, list) or any(type(one) is not int or one < 0 for one in numbers):
            raise ValueError(f"image {name:.40}: {key} of a mask is a list of numbers from 0 on")
    if len(size) != 2 or not all(1 <= side <= MOST_SIDE for side in size):
        raise ValueError(f"image {name:.40}: size of a mask is [height, width], each from 1 to {MOST_SIDE}")
    if sum(counts) != size[0] * size[1]:
        raise ValueError(f"image {name:.40}: counts of a mask have the sum {size[0]} x {size[1]}, not {sum(counts)}")
    if not any(counts[1::2]):
        raise ValueError(f"image {name:.40}: its mask is empty")
    return Mark(boxes, (size[0], size[1]), tuple(counts))


def _boxes(value: object) -> tuple[Box, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{value!r:.60} is no box")
    boxes = value if isinstance(value[0], list) else [value]
    return tuple(box for one in boxes for box in read_boxes(",".join(str(float(side)) for side in one)))
