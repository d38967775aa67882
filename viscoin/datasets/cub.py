"""CUB-200-2011, photographs of 200 kinds of birds (Wah et al. 2011, Caltech technical report CNS-TR-2011-001).

    CUB_200_2011/
      images.txt               <image id> <name below images/>; ids count from 1
      image_class_labels.txt   <image id> <class id>
      train_test_split.txt     <image id> <1: training, 0: test>
      classes.txt              <class id> <name, as 001.Black_footed_Albatross>
      bounding_boxes.txt       <image id> <left> <top> <width> <height>, pixels
      parts/parts.txt          <part id> <name>
      parts/part_locs.txt      <image id> <part id> <x> <y> <1 if visible>
      attributes/image_attribute_labels.txt   <image id> <attribute id> <1 if present> <certainty id> <seconds>
    attributes.txt             <attribute id> <name>; in the archive above the folder, elsewhere also in attributes/

Parts and attributes may be missing: then the dataset is one without them.
"""

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from viscoin.config import DatasetConfig
from viscoin.datasets.base import SPLITS, ImageDataset
from viscoin.datasets.cache import cache_folder, is_cached, new_cached
from viscoin.datasets.download import Archive, dataset_root
from viscoin.datasets.files import (
    check_every_class,
    fingerprint,
    prepare_files,
    present_files,
    sizes_of,
    warn_about_duplicates,
)
from viscoin.datasets.listing import stratified
from viscoin.datasets.reading import Box, image_size, square_around
from viscoin.errors import reason_of, regular

PAGE = "https://data.caltech.edu/records/65de6-vp158"
SOURCE = Archive(
    f"{PAGE}/files/CUB_200_2011.tgz", md5="97eceeb196236b17998738112f37df78", size="1.1 GB", page=PAGE
)  # fmt: skip
CERTAINTIES = ("no answer", "not visible", "guessing", "probably", "definitely")  # by certainty id; 0 is ours
RADIUS = 0.05  # of the discs around part locations, in sides of the image
PRESENT = 8  # added to the certainty of the answer "present"

_IMAGES, _LABELS, _SPLIT, _CLASSES = (
    "images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt",
)  # fmt: skip
_BOXES, _PARTS, _LOCATIONS = "bounding_boxes.txt", "parts/parts.txt", "parts/part_locs.txt"
_ANSWERS = "attributes/image_attribute_labels.txt"
_AGAIN = "correct it, or get the data again"


@dataclass(frozen=True)
class Index:
    """All N images in the order of their ids: id, file, class (from 0), and whether it is for training."""

    root: Path
    ids: np.ndarray
    files: list[Path]
    labels: np.ndarray
    train: np.ndarray
    class_names: list[str]


class CubDataset(ImageDataset):
    """Photographs of birds, with the parts and attributes that annotators saw in them.

    An attribute counts as present if the annotator said so and did not call its part "not visible"; guesses count, and
    an attribute without an answer is absent. `certainty` says how sure the annotator was.

    A part is known by one location, not by its outline: its mask is a disc around the location, of radius 0.05 sides
    of the image. Parts that are hidden, or cut off by the square crop, have no mask.
    """

    def __init__(self, split: str, pixels: np.ndarray, index: Index, rows: np.ndarray, crops: Sequence[Box | None]):
        files = [index.files[i] for i in rows]
        super().__init__("cub", split, pixels, index.labels[rows], index.class_names, [str(file) for file in files])
        self._index, self._rows, self._paths, self._crops = index, rows, files, list(crops)
        names = _attribute_file(index.root)
        self._attributes = _by_id(names) if names and (index.root / _ANSWERS).is_file() else {}
        self.has_truth = bool(self._attributes)
        self.attribute_names = [readable_attribute(name) for name in self._attributes.values()]
        if (index.root / _PARTS).is_file() and (index.root / _LOCATIONS).is_file():
            self.part_names = [name.replace("_", " ") for name in _by_id(index.root / _PARTS).values()]

    @property
    def attributes(self) -> np.ndarray:
        return (self._answers >= PRESENT) & (self.certainty != CERTAINTIES.index("not visible"))

    @property
    def certainty(self) -> np.ndarray:
        """How sure the annotator was of each attribute, present or not: (N, A) uint8, an index of `CERTAINTIES`."""
        return self._answers % PRESENT

    @cached_property
    def _answers(self) -> np.ndarray:
        if not self.has_truth:
            raise ValueError(
                f"{self._index.root} has no attributes: {_ANSWERS} and attributes.txt are needed, both in the archive"
            )
        return read_answers(self._index, np.array(list(self._attributes)))[self._rows]

    def part_points(self, index: int) -> np.ndarray:
        """Where each part is, (P, 2) as x and y in pixels of the image; NaN where it is hidden or cut off."""
        left, top, right, bottom = self._view(index)
        box, size, corner = self.fit.place((int(right - left), int(bottom - top)), self.resolution)
        scale = np.array(size) / (box[2] - box[0], box[3] - box[1])
        x_y, visible = self._locations[index, :, :2], self._locations[index, :, 2] > 0
        points = (x_y - (left, top) - box[:2]) * scale + corner
        inside = visible & (points >= 0).all(1) & (points < self.resolution).all(1)
        return np.where(inside[:, None], points, np.nan)

    def part_masks(self, index: int) -> np.ndarray:
        centres = np.arange(self.resolution) + 0.5
        x, y = self.part_points(index).T[:, :, None, None]
        distance = np.hypot(centres[None, None, :] - x, centres[None, :, None] - y)
        return distance <= RADIUS * self.resolution

    def _view(self, index: int) -> Box:
        """The part of the photograph that the square was cut from."""
        crop = self._crops[index]
        return (0, 0, *image_size(self._paths[index])) if crop is None else crop

    @cached_property
    def _locations(self) -> np.ndarray:
        """(N, P, 3): x, y and whether it is visible."""
        root = self._index.root
        if not self.part_names:
            raise ValueError(f"{root} has no parts: {_PARTS} and {_LOCATIONS} are needed")
        table = _numbers(root / _LOCATIONS, 5, float)
        images = _positions(table[:, 0], self._index.ids, root / _LOCATIONS, _IMAGES)
        parts = _positions(table[:, 1], np.array(list(_by_id(root / _PARTS))), root / _LOCATIONS, _PARTS)
        found = np.zeros((len(self._index.ids), len(self.part_names), 3))
        found[images, parts] = table[:, 2:]
        return found[self._rows]


def load_cub(split: str, config: DatasetConfig) -> CubDataset:
    """CUB-200-2011 with its published split; validation images are a tenth of the training images, sampled by seed.

    With `config.crop_to_box` a bird fills its image: what is shown is the smallest square around its bounding box, as
    far as the photograph reaches.

    Raises:
        ValueError: files that are missing, or do not fit together; images that cannot be used.
    """
    index = read_index(dataset_root("cub", config, SOURCE, (_IMAGES, _LABELS, _SPLIT, _CLASSES, "images")))
    there = np.array(present_files(index.files, index.root / _IMAGES, config.skip_bad_files))
    parts = {part: _rows(index, there, part, config.seed) for part in SPLITS}
    for part, rows in parts.items():
        check_every_class("cub", part, index.labels[rows], index.class_names, index.root / _SPLIT)
    warn_about_duplicates("cub", {part: [index.files[i] for i in rows] for part, rows in parts.items()})
    chosen = parts[split]
    files = [index.files[i] for i in chosen]
    crops = _squares(index, chosen) if config.crop_to_box else None
    pixels, kept = prepare_files("cub", split, files, config, index.root, crops)
    return CubDataset(split, pixels, index, chosen[kept], [crops[i] if crops else None for i in kept])


def read_index(root: Path) -> Index:
    """What the tables say of the images, checked against each other.

    Raises:
        ValueError: an image without a class or a split, or a line about an image or a class that there is not.
    """
    names, classes = _by_id(root / _IMAGES), _by_id(root / _CLASSES)
    ids, numbers = np.array(sorted(names)), sorted(classes)
    labels, train = (_of_images(root / name, names) for name in (_LABELS, _SPLIT))
    _check_values(root / _LABELS, labels, set(numbers), f"a class of {_CLASSES}")
    _check_values(root / _SPLIT, train, {0, 1}, "1 (training) or 0 (test)")
    return Index(
        root,
        ids,
        [root / "images" / names[i] for i in ids],
        np.searchsorted(numbers, [labels[i] for i in ids]),
        np.array([train[i] == 1 for i in ids]),
        [re.sub(r"^\d+\.", "", classes[number]).replace("_", " ") for number in numbers],
    )


def read_answers(index: Index, attributes: np.ndarray) -> np.ndarray:
    """What annotators said of each image and attribute, (N, A) uint8: certainty, plus `PRESENT` if it is there.

    Reading the millions of lines takes seconds; the result is cached in the user's cache folder. Lines have a fifth
    field, the time taken; those of two images have a sixth before it, and neither is needed.

    Args:
        attributes: (A,) the ids of all attributes.
    """
    path = index.root / _ANSWERS
    cached = cache_folder() / "cub" / f"{fingerprint([path], f'{index.ids.tolist()}{attributes.tolist()}')}.npy"
    if not is_cached(cached):
        table = _numbers(path, 4, np.int64)
        images = _positions(table[:, 0], index.ids, path, _IMAGES)
        columns = _positions(table[:, 1], attributes, path, "attributes.txt")
        present, certainty = table[:, 2:].T
        wrong = (present < 0) | (present > 1) | (certainty < 0) | (certainty >= len(CERTAINTIES))
        if wrong.any():
            line = " ".join(map(str, table[wrong.argmax()]))
            raise ValueError(f"{path}: {line!r} … is not <image> <attribute> <0 or 1> <certainty 1 to 4>; {_AGAIN}")
        answers = np.zeros((len(index.ids), len(attributes)), np.uint8)
        answers[images, columns] = certainty + PRESENT * present
        with new_cached(cached) as partial, partial.open("wb") as stream:
            np.save(stream, answers)
    return np.load(cached)


def readable_attribute(name: str) -> str:
    """ "bill shape: curved (up or down)" of "has_bill_shape::curved_(up_or_down)"."""
    return name.removeprefix("has_").replace("::", ": ").replace("_", " ")


# --- images of a split -------------------------------------------------------------------------------------------


def _rows(index: Index, there: np.ndarray, split: str, seed: int) -> np.ndarray:
    """Those of the positions `there` that belong to a split."""
    if split == "test":
        return there[~index.train[there]]
    items = [(int(i), int(index.labels[i])) for i in there[index.train[there]]]
    return np.array([i for i, _ in stratified(items, split, {"validation": 0.1}, seed)], dtype=int)


def _squares(index: Index, rows: np.ndarray) -> list[Box | None]:
    path = index.root / _BOXES
    table = _numbers(path, 5, float)
    boxes = dict(zip(_positions(table[:, 0], index.ids, path, _IMAGES).tolist(), table[:, 1:].tolist()))
    squares: list[Box | None] = []
    for row, size in zip(rows, sizes_of([index.files[row] for row in rows])):
        if row not in boxes:
            raise ValueError(f"{path} has no box for image {index.ids[row]} ({index.files[row].name}); {_AGAIN}")
        if size is None:
            squares.append(None)
            continue
        left, top, width, height = boxes[row]
        if min(width, height) <= 0 or not (-width < left < size[0] and -height < top < size[1]):
            raise ValueError(
                f"{path}: the box {left} {top} {width} {height} of image {index.ids[row]} lies outside its "
                f"{size[0]}x{size[1]} px; {_AGAIN}"
            )
        squares.append(square_around((left, top, left + width, top + height), size))
    return squares


# --- tables ------------------------------------------------------------------------------------------------------


def _attribute_file(root: Path) -> Path | None:
    places = (root / "attributes", root, root.parent)
    return next((place / "attributes.txt" for place in places if (place / "attributes.txt").is_file()), None)


def _by_id(path: Path) -> dict[int, str]:
    """Lines "<id> <text>", sorted by id."""
    try:
        lines = [line.split(None, 1) for line in regular(path).read_text(encoding="utf-8").splitlines() if line.strip()]
        found = {int(line[0]): line[1].strip() for line in lines}
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; unpack the archive of CUB-200-2011 again") from None
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path} does not hold lines of an id and a text ({reason_of(error)}); {_AGAIN}") from error
    if len(found) < len(lines) or not found:
        raise ValueError(f"{path} {'names an id twice' if found else 'is empty'}; {_AGAIN}")
    return dict(sorted(found.items()))


def _of_images(path: Path, names: dict[int, str]) -> dict[int, int]:
    """A number for each image, no more and no less."""
    values = _by_id(path)
    for number in values:
        if number not in names:
            raise ValueError(f"{path} has a line for image {number}, which {_IMAGES} does not name; {_AGAIN}")
    for number, name in names.items():
        if number not in values:
            raise ValueError(f"{path} has no line for image {number} ({name}) of {_IMAGES}; {_AGAIN}")
    try:
        return {number: int(value) for number, value in values.items()}
    except ValueError as error:
        raise ValueError(f"{path} does not hold lines of two numbers ({reason_of(error)}); {_AGAIN}") from error


def _check_values(path: Path, values: dict[int, int], allowed: set[int], what: str) -> None:
    for image, value in values.items():
        if value not in allowed:
            raise ValueError(f"{path}: image {image} has {value}, which is not {what}; {_AGAIN}")


def _numbers(path: Path, columns: int, kind: Any) -> np.ndarray:
    """The first columns (rows, columns) of a table of numbers; rows may be longer."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an empty file, which is as good as missing rows
            table = np.loadtxt(regular(path), dtype=kind, usecols=range(columns), comments=None, ndmin=2)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; unpack the archive of CUB-200-2011 again") from None
    except ValueError as error:
        raise ValueError(f"{path} does not hold lines of {columns} numbers ({reason_of(error)}); {_AGAIN}") from error
    return table.reshape(-1, columns)


def _positions(values: np.ndarray, ids: Iterable[int] | np.ndarray, path: Path, listed_in: str) -> np.ndarray:
    """Where each value stands among the sorted ids."""
    ids = np.asarray(ids)
    places = np.searchsorted(ids, values).clip(0, len(ids) - 1)
    unknown = ids[places] != values
    if unknown.any():
        raise ValueError(f"{path} has a line for {values[unknown][0]:.0f}, which {listed_in} does not name; {_AGAIN}")
    return places
