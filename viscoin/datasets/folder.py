"""A folder of images: `root/train/<class>/*.png|jpg` with `root/test/...`, or `root/<class>/*` split by seed.

A `dataset.json` in the folder (an unpacked zip, see `zip.py`, or what `data export` writes) takes the place of class
folders; images in folders `train` and `test` beside it keep their split.
"""

import logging
from functools import cache
from pathlib import Path, PurePosixPath

import numpy as np

from viscoin.config import DatasetConfig
from viscoin.datasets.base import SPLITS, ImageDataset
from viscoin.datasets.files import draw, judge, no_images_error, read_files, select_rows, warn_about_duplicates
from viscoin.datasets.listing import INDEX, Item, Listing, Tree, list_images, make_tree, warn_once
from viscoin.datasets.masks import MaskedDataset, masks_of, stem
from viscoin.datasets.reading import Fit
from viscoin.datasets.walking import Found, walk, why_not
from viscoin.errors import Refused

logger = logging.getLogger(__name__)


def load_folder(root: Path, split: str, config: DatasetConfig, labelled: bool = True) -> ImageDataset:
    """One split of a folder of images, fitted into squares of `config.resolution` pixels.

    Without `validation` images a tenth of the training images is held out for them; without `train` and `test`
    folders the classes are split 70:10:20. Both splits are stratified and depend on `config.seed` alone.

    Args:
        labelled: whether classes are needed; without, any folder of images will do (see `load_dataset`).

    Raises:
        ValueError: no or one class, an empty class, or files that are no images (unless `config.skip_bad_files`).
    """
    return load_tree(folder_tree(root, config.skip_bad_files), root.resolve().name, split, config, labelled)


def folder_tree(root: Path, skip_bad_files: bool = False) -> Tree:
    """Images and folders below a folder, in single folders around them too; see `walking.walk` for what counts.

    Raises:
        ValueError: folders or image files that cannot be opened (which `skip_bad_files` leaves out with a warning),
            or a dataset.json that is malformed or cannot be read.
    """
    found = read_folder(root)
    tree = make_tree(root, found.files, found.folders, found.bad)
    judge_names(found, len(tree.files), root, skip_bad_files)
    return tree


def unchecked_tree(root: Path) -> Tree:
    """The same of what can be opened, without a word of the rest."""
    found = read_folder(root)
    return make_tree(root, found.files, found.folders, found.bad)


def read_folder(root: Path) -> Found:
    """What lies below a folder; ValueError when it cannot be read, or its dataset.json."""
    try:
        found = walk(root)
    except OSError as error:
        raise Refused("dataset", root, f"the folder cannot be read ({why_not(error, root)})", "allow it") from error
    for name, reason in found.bad.items():
        if PurePosixPath(name).name == INDEX:
            raise Refused(None, None, f"{root / name} cannot be read ({reason})", "repair or remove it")
    return found


def judge_names(found: Found, good: int, root: Path, skip: bool) -> None:
    """Log what was passed over, and warn of what cannot be used, with `skip`, or raise a ValueError that names it."""
    if found.leftovers:
        names = ", ".join(f"{name} ({count})" for name, count in found.leftovers.most_common(5))
        _inform_once(f"{root}: passed over what systems and programs leave beside images: {names}")
    if found.again:
        warn_once(
            f"{root}: {len(found.again)} links lead to folders that are read anyway (first: {found.again[0]}); "
            "each folder counts once"
        )
    judge({f"{root / name}": reason for name, reason in found.bad.items()}, good + len(found.bad), root, skip)


@cache
def _inform_once(text: str) -> None:
    logger.info(text)


def load_tree(tree: Tree, name: str, split: str, config: DatasetConfig, labelled: bool) -> ImageDataset:
    """One split of the images of a folder or zip; arguments and errors as for `load_folder`."""
    listing = list_images(tree, "required" if labelled else "optional", config.skip_bad_files)
    splits = {part: _drawn(listing.split(part, config.seed), getattr(config, part), config.seed) for part in SPLITS}
    # Files of any split: what cannot be used is better known before the training than at its test.
    files = list(dict.fromkeys(file for items in splits.values() for file, _ in items))
    names = {file: name for name, file in tree.files.items()}
    masks = [tree.masks.get(stem(names[file])) for file in files] if tree.masks else None
    pixels, kept = read_files(name, files, config, tree.root, masks=masks)
    rows = {files[i]: row for row, i in enumerate(kept)}
    items = [item for item in splits[split] if item[0] in rows]
    if not items:
        raise no_images_error(tree.root, split)
    if labelled:
        bad = set(files) - rows.keys()
        _check_classes(tree, listing, [item for item in listing.split(split, config.seed) if item[0] not in bad], split)
    if listing.labelled or len(listing.parts) > 1:  # else the test images are those for validation
        whole = {part: listing.split(part, config.seed) for part in SPLITS}
        warn_about_duplicates(name, {part: [file for file, _ in items] for part, items in whole.items()})
    of_split = [file for file, _ in items]
    data = (
        name,
        split,
        select_rows(pixels, np.array([rows[file] for file in of_split]), of_split),
        np.array([label for _, label in items]),
        listing.class_names,
        [str(file) for file in of_split],
    )
    masked, own = masks_of([names[file] for file in of_split], of_split, tree.masks)
    return MaskedDataset(*data, images=of_split, masks=own) if masked else ImageDataset(*data)


def load_whole(tree: Tree, name: str, config: DatasetConfig) -> ImageDataset:
    """All images of a folder or zip as one split, "all", in the order of their names; classes are not looked at.

    Raises:
        ValueError: no images, or files that cannot be used (unless `config.skip_bad_files`).
    """
    listing = list_images(tree, "none", config.skip_bad_files)
    files = [file for file, _ in listing.items]
    names = {file: name for name, file in tree.files.items()}
    masks = [tree.masks.get(stem(names[file])) for file in files] if tree.masks else None
    pixels, kept = read_files(name, files, config, tree.root, masks=masks)
    if not len(kept):
        raise ValueError(f"{tree.root} holds no images that can be read; add images")
    shown = [files[i] for i in kept]
    data = (name, "all", pixels, np.zeros(len(kept), int), listing.class_names, [str(file) for file in shown])
    masked, own = masks_of([names[file] for file in shown], shown, tree.masks)
    found = MaskedDataset(*data, images=shown, masks=own) if masked else ImageDataset(*data)
    found.labelled, found.fit = False, Fit.of(config)
    return found


def _drawn(items: list[Item], limit: int | None, seed: int) -> list[Item]:
    return [items[i] for i in draw(len(items), limit, seed)]


def _check_classes(tree: Tree, listing: Listing, items: list[Item], split: str) -> None:
    present = {label for _, label in items}
    for label, empty in enumerate(listing.class_names):
        if label not in present:
            place = f"{listing.source_of(split)}/{empty}".lstrip("/")
            raise ValueError(
                f"class {empty!r} of {tree.root} has no readable images left for split {split!r}; add images to "
                f"{tree.root / place if place in tree.folders else tree.root} "
                "(an automatic split needs at least three a class) or remove the class"
            )
