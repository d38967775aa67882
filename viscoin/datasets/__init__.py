"""Datasets by name, or a folder of images wherever a name does."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from viscoin.config import DatasetConfig
from viscoin.datasets.base import SPLITS, ImageDataset, to_images, to_pixels

__all__ = ["SPLITS", "ImageDataset", "dataset_names", "load_dataset", "to_images", "to_pixels"]

LOADERS = {"birds": "viscoin.datasets.birds.dataset:load_birds"}


def dataset_names() -> list[str]:
    """Names that `load_dataset` knows; a path to a folder of images works too."""
    return sorted(LOADERS)


def load_dataset(name_or_path: str, split: str, config: DatasetConfig) -> ImageDataset:
    """One split of a dataset.

    Args:
        name_or_path: a name of `dataset_names()`, or a folder `root/<class>/*.png|jpg` (see `folder.py`).
        split: "train", "validation" or "test".
        config: resolution, counts and seed.

    Raises:
        ValueError: unknown name, split or an unusable folder.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    if name_or_path in LOADERS:
        module, function = LOADERS[name_or_path].split(":")
        loader: Callable[[str, DatasetConfig], ImageDataset] = getattr(import_module(module), function)
        return loader(split, config)
    check_dataset_name(name_or_path)
    from viscoin.datasets.folder import load_folder

    return load_folder(Path(name_or_path), split, config)


def check_dataset_name(name_or_path: str) -> None:
    """Raise ValueError unless the dataset is known or a folder of that path exists."""
    if name_or_path not in LOADERS and not Path(name_or_path).is_dir():
        raise ValueError(
            f"unknown dataset {name_or_path!r}; known are {', '.join(dataset_names())}, "
            "or the path of a folder with one folder of images per class"
        )
