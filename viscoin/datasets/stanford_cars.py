"""Stanford Cars, photographs of 196 makes and models of cars (Krause et al., 3dRR 2013).

    cars_train/00001.jpg ..., cars_test/00001.jpg ...
    devkit/cars_meta.mat                class_names
    devkit/cars_train_annos.mat         annotations: bbox_x1, bbox_y1, bbox_x2, bbox_y2, class, fname
    cars_test_annos_withlabels.mat      the same; devkit/cars_test_annos.mat has no class

Classes and pixels count from 1. All .mat files may lie beside the images or in `devkit`, and the images in
cars_train/cars_train, as some archives unpack them. The other published layout, of the same images, is read too:

    car_ims/000001.jpg ...
    cars_annos.mat                      class_names, and annotations with relative_im_path and test instead of fname
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat

from viscoin.config import DatasetConfig
from viscoin.datasets.base import ImageDataset
from viscoin.datasets.download import Kaggle, dataset_root, folder_with
from viscoin.datasets.files import (
    check_every_class,
    prepare_files,
    present_files,
    sizes_of,
    warn_about_duplicates,
)
from viscoin.datasets.listing import stratified
from viscoin.datasets.reading import Box, square_around
from viscoin.errors import reason_of

SOURCE = Kaggle("rickyyyyyyy/torchvision-stanford-cars", size="2 GB")
META, TRAIN, TEST = "cars_meta.mat", "cars_train_annos.mat", "cars_test_annos_withlabels.mat"
BLIND = "cars_test_annos.mat"  # the test annotations without classes
FOLDER, ALL = "car_ims", "cars_annos.mat"  # the other layout
PLACES = ("devkit", "", "car_devkit/devkit", "car_devkit")
EDGES = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
_AGAIN = f"get it again, as from {SOURCE.page}"


@dataclass(frozen=True)
class Cars:
    """N images: files, classes (N,) counted from 0, and boxes (N, 4), left, top, right and bottom in pixels from 0."""

    index: Path
    files: list[Path]
    labels: np.ndarray
    boxes: np.ndarray

    def take(self, rows: Sequence[int] | np.ndarray) -> "Cars":
        """Some of the images."""
        chosen = np.asarray(rows, dtype=int)
        return Cars(self.index, [self.files[i] for i in chosen], self.labels[chosen], self.boxes[chosen])


def load_stanford_cars(split: str, config: DatasetConfig) -> ImageDataset:
    """One split of Stanford Cars; validation images are a tenth of the training images, sampled by `config.seed`.

    With `config.crop_to_box` a car fills its image: what is shown is the smallest square around its bounding box, as
    far as the photograph reaches.

    Raises:
        ValueError: files that are missing, or do not fit together; images that cannot be used.
    """
    root = _root(dataset_root("stanford_cars", config, SOURCE))
    names, given = _read_single(root) if (root / FOLDER).is_dir() else _read_devkit(root)
    for part, cars in given.items():
        given[part] = cars.take(present_files(cars.files, cars.index, config.skip_bad_files))
        check_every_class("stanford_cars", part, given[part].labels, names, cars.index)
    warn_about_duplicates("stanford_cars", {part: cars.files for part, cars in given.items()})
    cars = _split(given, split, config.seed)
    check_every_class("stanford_cars", split, cars.labels, names, cars.index)
    crops = _squares(cars) if config.crop_to_box else None
    pixels, kept = prepare_files("stanford_cars", split, cars.files, config, root, crops)
    shown = cars.take(kept)
    return ImageDataset("stanford_cars", split, pixels, shown.labels, names, [str(file) for file in shown.files])


def _squares(cars: Cars) -> list[Box | None]:
    sizes = sizes_of(cars.files)
    return [square_around(box, size) if size else None for box, size in zip(cars.boxes.tolist(), sizes)]


def _split(given: dict[str, Cars], split: str, seed: int) -> Cars:
    if split == "test":
        return given["test"]
    items = list(enumerate(given["train"].labels.tolist()))
    return given["train"].take([row for row, _ in stratified(items, split, {"validation": 0.1}, seed)])


def _root(folder: Path) -> Path:
    try:
        return folder_with("stanford_cars", folder, (FOLDER, ALL))
    except ValueError:
        return folder_with("stanford_cars", folder, ("cars_train", "cars_test"))


# --- annotations -----------------------------------------------------------------------------------------------------


def _read_devkit(root: Path) -> tuple[list[str], dict[str, Cars]]:
    """Names of the classes, and the images of "train" and "test"."""
    paths = {"train": _mat_file(root, TRAIN), "test": _mat_file(root, TEST)}
    meta = _mat_file(root, META)
    names = _class_names(meta)
    return names, {
        part: _cars(path, _annotations(path), "fname", _image_folder(root / f"cars_{part}"), names)
        for part, path in paths.items()
    }


def _read_single(root: Path) -> tuple[list[str], dict[str, Cars]]:
    """The same of the layout with one folder of images."""
    path = root / ALL
    names, rows = _class_names(path), _annotations(path)
    cars = _cars(path, rows, "relative_im_path", root, names)
    test = np.array([_number(path, row, "test") for row in rows])
    return names, {"train": cars.take(np.flatnonzero(test == 0)), "test": cars.take(np.flatnonzero(test != 0))}


def _mat_file(root: Path, name: str) -> Path:
    for place in PLACES:
        if (root / place / name).is_file():
            return root / place / name
    raise ValueError(f"{root / 'devkit' / name} is missing{_why(root, name)}; get it from {SOURCE.page}")


def _why(root: Path, name: str) -> str:
    if name == TEST and any((root / place / BLIND).is_file() for place in PLACES):
        return f" ({BLIND} is there, but says nothing of classes)"
    if (root / ALL).is_file():
        return f" ({ALL} is there, but names images of the folder {FOLDER}, which have other numbers)"
    return ""


def _image_folder(folder: Path) -> Path:
    """`cars_train`, or `cars_train/cars_train`."""
    return folder / folder.name if (folder / folder.name).is_dir() else folder


def _class_names(path: Path) -> list[str]:
    names = [str(name) for name in np.atleast_1d(_read_mat(path, "class_names"))]
    if len(names) < 2:
        raise ValueError(f"{path} has {len(names)} class names, at least two are needed; {_AGAIN}")
    return names


def _annotations(path: Path) -> np.ndarray:
    rows = np.atleast_1d(_read_mat(path, "annotations"))
    if rows.dtype.names is None or not len(rows):
        raise ValueError(f"{path} holds no annotations; {_AGAIN}")
    return rows


def _cars(path: Path, rows: np.ndarray, key: str, folder: Path, names: list[str]) -> Cars:
    """Images in `folder` that annotations name in their field `key`."""
    labels = np.array([_number(path, row, "class") for row in rows]) - 1
    edges = np.array([[_number(path, row, edge) for edge in EDGES] for row in rows])
    files = [str(_field(path, row, key)) for row in rows]
    for file, label, (left, top, right, bottom) in zip(files, labels, edges):
        if not 0 <= label < len(names):
            raise ValueError(f"{path}: {file} is of class {label + 1}, but there are {len(names)} classes; {_AGAIN}")
        if left > right or top > bottom:
            raise ValueError(f"{path}: the box of {file} ends at {right} {bottom}, before {left} {top}; {_AGAIN}")
    # Pixels are counted from 1, and the last ones belong to the box.
    return Cars(path, [folder / file for file in files], labels, edges - [1, 1, 0, 0])


def _number(path: Path, row: Any, field: str) -> int:
    value = _field(path, row, field)
    if np.size(value) != 1 or np.asarray(value).dtype.kind not in "buif" or not np.isfinite(value):
        raise ValueError(f"{path} has {value!r:.60} as {field!r} of an image, which is no number; {_AGAIN}")
    return int(value)


def _field(path: Path, row: Any, field: str) -> Any:
    if field not in row.dtype.names:
        raise ValueError(f"{path} has no {field!r} in its annotations, only {', '.join(row.dtype.names)}; {_AGAIN}")
    return row[field]


def _read_mat(path: Path, key: str) -> Any:
    try:
        content = loadmat(path, variable_names=[key], squeeze_me=True)
    except Exception as error:  # whatever it makes of a damaged file
        raise ValueError(f"{path} cannot be read as a .mat file ({reason_of(error)}); {_AGAIN}") from error
    if key not in content:
        raise ValueError(f"{path} holds no {key!r}; {_AGAIN}")
    return content[key]
