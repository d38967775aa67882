"""Datasets by name, or a folder or zip of images wherever a name does."""

import logging
import os
import stat
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path

from viscoin.config import DatasetConfig
from viscoin.datasets.base import SPLITS, ImageDataset, to_images, to_pixels
from viscoin.datasets.layouts import known_layout
from viscoin.datasets.reading import Fit
from viscoin.datasets.walking import why_not
from viscoin.errors import Refused, not_a_file

__all__ = ["SPLITS", "ImageDataset", "dataset_names", "load_dataset", "load_unlabelled", "to_images", "to_pixels"]

LOADERS = {
    "birds": "viscoin.datasets.birds.dataset:load_birds",
    "cub": "viscoin.datasets.cub:load_cub",
    "funnybirds": "viscoin.datasets.funnybirds:load_funnybirds",
    "celeba_hq": "viscoin.datasets.celeba_hq:load_celeba_hq",
    "stanford_cars": "viscoin.datasets.stanford_cars:load_stanford_cars",
    "cifar10": "viscoin.datasets.torchvision_sets:load_cifar10",
    "cifar100": "viscoin.datasets.torchvision_sets:load_cifar100",
    "mnist": "viscoin.datasets.torchvision_sets:load_mnist",
    "pneumonia": "viscoin.datasets.pneumonia:load_pneumonia",
    "toy-count": "viscoin.datasets.counting:load_toy_count",
    "cifar10-qa": "viscoin.datasets.counting:load_cifar10_qa",
}
DRAWN = {"birds", "toy-count"}  # datasets without files
COMPOSED = {*DRAWN, "cifar10-qa"}  # squares of which nothing may be left out
# As Vision DiffMask's command line names them; a folder of such a name is a folder.
SPELLINGS = {"MNIST": "mnist", "CIFAR10": "cifar10", "CIFAR10_QA": "cifar10-qa", "toy": "toy-count"}
logger = logging.getLogger(__name__)


def dataset_names() -> list[str]:
    """Names that `load_dataset` knows; a path to a folder or zip of images works too."""
    return sorted(LOADERS)


def default_recipe(name_or_path: str) -> str:
    """Name of the recipe that a dataset starts from: its own, or `folder` for a folder or zip."""
    return name_or_path if name_or_path in LOADERS else "folder"


def load_dataset(name_or_path: str, split: str, config: DatasetConfig, labelled: bool = True) -> ImageDataset:
    """One split of a dataset.

    Args:
        name_or_path: a name of `dataset_names()`, a folder `root/<class>/*.png|jpg` (see `folder.py`), or a zip as
            `prepare.py` and the StyleGAN tools write it (see `zip.py`).
        split: "train", "validation" or "test".
        config: resolution, counts and seed.
        labelled: whether classes are needed. Without, any images will do, however they are laid out. Two classes or
            more are kept where there are any, and so is their split of 70:10:20, so that a generator never sees the
            test images of its classifier. Where there are none, or too small ones to be split, `class_names` is
            ["image"], all labels are 0, and the split is 90:10 by seed into train and validation; test equals
            validation then, since a generator needs all the images that it can get.

    Raises:
        ValueError: unknown name, split or an unusable folder or zip.
    """
    data = _load(name_or_path, split, config, labelled)
    data.fit = Fit.of(config)
    return data


def _load(name_or_path: str, split: str, config: DatasetConfig, labelled: bool) -> ImageDataset:
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    if name_or_path in LOADERS:
        _check_fit(name_or_path, config)
        module, function = LOADERS[name_or_path].split(":")
        loader: Callable[[str, DatasetConfig], ImageDataset] = getattr(import_module(module), function)
        return loader(split, config)
    check_dataset_name(name_or_path)
    path = Path(name_or_path)
    if path.is_file():
        from viscoin.datasets.zip import load_zip

        return load_zip(path, split, config, labelled)
    from viscoin.datasets.folder import load_folder
    from viscoin.datasets.listing import warn_once

    if known := known_layout(path):
        warn_once(
            f"{path} is read as a folder of class folders, though it has the files of dataset {known}; for its own "
            f"classes and splits give `dataset` {known} and `dataset_path` {path}"
        )
    return load_folder(path, split, config, labelled)


def load_unlabelled(path: Path, config: DatasetConfig) -> ImageDataset:
    """All images of a folder or zip, whatever its folders are called; see `folder.load_whole`.

    Raises:
        ValueError: no images, or files that cannot be used (unless `config.skip_bad_files`).
    """
    from viscoin.datasets.folder import folder_tree, load_whole
    from viscoin.datasets.zip import open_zip

    if path.is_dir():
        return load_whole(folder_tree(path, config.skip_bad_files), path.resolve().name, config)
    with open_zip(path) as tree:
        return load_whole(tree, path.stem, config)


def _check_fit(name: str, config: DatasetConfig) -> None:
    """Raise Refused where a known dataset cannot be shown in that way."""
    if config.fit == "object":
        boxes = "set `dataset.crop_to_box` and fit pad" if name in ("cub", "stanford_cars") else "choose another fit"
        raise Refused("dataset.fit", "object", f"dataset {name!r} has no masks or alpha channels to fit", boxes)
    if name in COMPOSED and Fit.of(config).cuts_squares:
        raise Refused(
            "dataset.crop_share", config.crop_share, f"images of {name!r} are made square, and no part may be cut away",
            "set it to null, or fit to pad",
        )  # fmt: skip


def check_dataset_name(name_or_path: str) -> None:
    """Raise ValueError unless the dataset is known or a folder or zip of that path exists."""
    if name_or_path in LOADERS:
        return
    path = Path(name_or_path)
    try:
        mode = os.stat(name_or_path.encode()).st_mode
    except UnicodeEncodeError as error:
        raise Refused("dataset", ascii(name_or_path), "its path is no UTF-8", "rename it") from error
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and os.path.lexists(path):
            raise Refused("dataset", path, f"cannot be opened: {why_not(error, path)}", "correct the path") from error
        if isinstance(error, PermissionError):
            raise Refused("dataset", path, "cannot be opened: a folder above it may not be entered") from error
        mode = 0
    if stat.S_ISDIR(mode) or (stat.S_ISREG(mode) and path.suffix.lower() == ".zip"):
        return
    if reason := not_a_file(mode):
        raise Refused("dataset", path, reason, "give a folder or a zip of images")
    raise ValueError(
        f"unknown dataset {name_or_path!r}; known are {', '.join(dataset_names())}, "
        "or the path of a folder with one folder of images per class, or of a .zip of images"
    )


def prepared_resolution(name_or_path: str) -> int | None:
    """Side of the images of a zip or folder that `prepare_dataset` (or the public tool) has made; else None.

    Such images are squares of one size, and a `dataset.json` lies beside them.
    """
    path = Path(name_or_path)
    if name_or_path in LOADERS or not path.exists():
        return None
    from viscoin.datasets.folder import unchecked_tree
    from viscoin.datasets.reading import UNREADABLE, image_size
    from viscoin.datasets.zip import open_zip

    try:
        with nullcontext(unchecked_tree(path)) if path.is_dir() else open_zip(path) as tree:
            if tree.index is None or not tree.files:
                return None
            width, height = image_size(next(iter(tree.files.values())))
    except UNREADABLE:  # whoever loads the images will name the file
        return None
    return width if width == height else None


def locate_dataset(
    dataset: str | None, dataset_path: str | None, own: str | None = None
) -> tuple[str | None, str | None]:
    """Name of the dataset, and folder of its files, that `dataset` and `dataset_path` mean together.

    A folder that holds a published dataset, as its archives unpack, means that dataset.

    Args:
        own: the dataset that is meant without `dataset`; without that one as well, the folder is the dataset.

    Raises:
        Refused: a folder for a dataset that has no files of its own, or that is a folder itself.
    """
    if dataset in SPELLINGS and not Path(dataset).exists():
        dataset = SPELLINGS[dataset]
    if dataset_path is None or (dataset is None and (own is None or own in DRAWN or own not in dataset_names())):
        return _recognised(dataset_path or dataset)
    if dataset in DRAWN:
        raise Refused("dataset_path", dataset_path, f"dataset {dataset!r} is drawn and has no files", "omit one")
    if dataset is not None and dataset not in dataset_names():
        known = ", ".join(name for name in dataset_names() if name not in DRAWN)
        raise Refused(
            "dataset_path", dataset_path,
            f"it locates the files of a known dataset ({known}), which `dataset` {dataset} is not", "omit one of them",
        )  # fmt: skip
    return dataset, dataset_path


def _recognised(dataset: str | None) -> tuple[str | None, str | None]:
    """The name and folder of the published dataset that a folder holds; else what was given, and no folder."""
    if dataset is None or dataset in LOADERS or (known := known_layout(Path(dataset))) is None:
        return dataset, None
    logger.info(f"{dataset} holds the files of dataset {known}, and is read as that")
    return known, dataset


def dataset_of_runs(dataset: str) -> str:
    """What runs on a dataset that was given by its name, folder or zip are found by."""
    return plain_name(_recognised(dataset)[0] or dataset)


def plain_name(dataset: str) -> str:
    """One spelling for each folder: `data`, `data/` and `./data` are the same dataset."""
    return dataset if dataset in dataset_names() else str(Path(dataset))
