"""Chest X-rays of children with and without pneumonia (Kermany et al. 2018), split anew: its own split is bad.

Of its 5,856 images 16 are for validation, and its test images have other shares of the classes than those for
training. All of them are therefore split 80:10:10, by class, and by patient as far as file names identify them.
"""

import re
from pathlib import Path

import numpy as np

from viscoin.config import DatasetConfig
from viscoin.datasets.base import SPLITS, ImageDataset
from viscoin.datasets.download import Kaggle, dataset_root
from viscoin.datasets.files import check_every_class, prepare_files, warn_about_duplicates
from viscoin.datasets.folder import judge_names, read_folder
from viscoin.datasets.listing import stratified_groups
from viscoin.datasets.walking import is_image

SOURCE = Kaggle("paultimothymooney/chest-xray-pneumonia", size="1.2 GB")
CLASS_NAMES = ["normal", "bacteria", "virus"]
FOLDERS = ("train", "val", "test")
HOLDS = ("train/NORMAL", "train/PNEUMONIA", "test/NORMAL", "test/PNEUMONIA")
SHARES = {"validation": 0.1, "test": 0.1}
# person12_virus_34.jpeg; NORMAL2-IM-0123-0001-0002.jpeg; BACTERIA-1008087-0001.jpeg, as the first publication has them
PATIENT = re.compile(r"(person\d+)_|((?:normal2-)?im-\d+)-|(?:normal|bacteria|virus)-(\d+)-", re.IGNORECASE)


def load_pneumonia(split: str, config: DatasetConfig) -> ImageDataset:
    """Chest X-rays of the classes normal, bacteria and virus, grey, as RGB.

    Raises:
        ValueError: the files are unavailable or broken, or the class of one is unknown.
    """
    root = dataset_root("pneumonia", config, SOURCE, HOLDS)
    items = [(file, _label(file)) for file in _images(root, config.skip_bad_files)]
    groups = [patient(file) for file, _ in items]
    parts = {part: stratified_groups(items, groups, part, SHARES, config.seed) for part in SPLITS}
    warn_about_duplicates("pneumonia", {part: [file for file, _ in of_part] for part, of_part in parts.items()})
    files = [file for file, _ in parts[split]]
    labels = np.array([label for _, label in parts[split]])
    check_every_class("pneumonia", split, labels, CLASS_NAMES, root)
    pixels, kept = prepare_files("pneumonia", split, files, config, root)
    return ImageDataset("pneumonia", split, pixels, labels[kept], CLASS_NAMES, [str(files[i]) for i in kept])


def _images(root: Path, skip: bool) -> list[Path]:
    """All images of the three folders, whose splits are not kept.

    Raises:
        ValueError: folders or images that cannot be opened, and are not to be skipped.
    """
    images: list[Path] = []
    for folder in FOLDERS:
        if not (root / folder).is_dir():
            continue
        found = read_folder(root / folder)
        here = [path for name, path in found.files.items() if name.count("/") == 1 and is_image(name)]
        judge_names(found, len(here), root / folder, skip)
        images += sorted(here)
    return images


def _label(file: Path) -> int:
    if file.parent.name == "NORMAL":
        return 0
    for kind in CLASS_NAMES[1:]:
        if kind in file.name.lower():
            return CLASS_NAMES.index(kind)
    raise ValueError(f"{file}: its name has neither 'bacteria' nor 'virus' in it; correct the name or remove the file")


def patient(file: Path) -> str:
    """The patient, from the file name; else the image counts as a patient of its own."""
    found = PATIENT.match(file.name)
    return next(group.lower() for group in found.groups() if group) if found else str(file)
