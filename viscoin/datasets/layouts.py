"""Which published dataset a folder holds, from the names of the files that its archives have."""

import os
from collections.abc import Iterator
from pathlib import Path

from viscoin.datasets.walking import is_leftover

# Files, and folders with a "/", by which a dataset is known; what else it needs, its reader will say.
LAYOUTS = (
    ("cub", ("images.txt", "image_class_labels.txt", "images/")),
    ("celeba_hq", ("CelebAMask-HQ-attribute-anno.txt",)),
    ("funnybirds", ("parts.json", "classes.json", "dataset_train.json")),
    ("stanford_cars", ("car_ims/", "cars_annos.mat")),
    ("stanford_cars", ("cars_train/", "cars_test/")),
    ("pneumonia", ("train/NORMAL/", "train/PNEUMONIA/", "test/NORMAL/", "test/PNEUMONIA/")),
    ("cifar10", ("batches.meta", "data_batch_1")),
    ("cifar100", ("meta", "train", "test")),
    ("mnist", ("MNIST/raw/",)),  # not its files alone: other datasets call theirs the same
)


def known_layout(root: Path) -> str | None:
    """Name of the published dataset that a folder, or a single folder in it, holds; None for any other path."""
    for folder in _single_folders(root):
        for name, holds in LAYOUTS:
            if all(_holds(folder, held) for held in holds):
                return name
    return None


def _holds(folder: Path, held: str) -> bool:
    return os.path.isdir(folder / held) if held.endswith("/") else os.path.isfile(folder / held)


def _single_folders(root: Path, levels: int = 2) -> Iterator[Path]:
    """A folder, the only one in it, and so on, as archives unpack into a folder of their own name."""
    for _ in range(levels + 1):
        if not os.path.isdir(root):
            return
        yield root
        try:
            with os.scandir(root) as entries:
                inner = [entry for entry in entries if not is_leftover(entry.name) and entry.is_dir()]
        except OSError:  # whoever reads the folder will tell
            return
        if len(inner) != 1:
            return
        root = Path(inner[0].path)
