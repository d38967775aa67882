"""A folder of images: `root/train/<class>/*.png|jpg` with `root/test/...`, or `root/<class>/*` split by seed.

A `dataset.json` in the folder (an unpacked zip, see `zip.py`, or what `data export` writes) takes the place of class
folders; images in folders `train` and `test` beside it keep their split.
"""

import os
from pathlib import Path

import numpy as np

from viscoin.config import DatasetConfig
from viscoin.datasets.base import SPLITS, ImageDataset
from viscoin.datasets.files import draw, no_images_error, read_files, select_rows, warn_about_duplicates
from viscoin.datasets.listing import INDEX, Item, Listing, Tree, list_images, parse_index, warn_of_unread
from viscoin.datasets.reading import EXTENSIONS, is_hidden


def load_folder(root: Path, split: str, config: DatasetConfig, labelled: bool = True) -> ImageDataset:
    """One split of a folder of images, centre-cropped to squares of `config.resolution` pixels.

    Without `validation` images a tenth of the training images is held out for them; without `train` and `test`
    folders the classes are split 70:10:20. Both splits are stratified and depend on `config.seed` alone.

    Args:
        labelled: whether classes are needed; without, any folder of images will do (see `load_dataset`).

    Raises:
        ValueError: no or one class, an empty class, or files that are no images (unless `config.skip_bad_files`).
    """
    return load_tree(folder_tree(root), root.resolve().name, split, config, labelled)


def folder_tree(root: Path) -> Tree:
    """Images and folders below a folder; what is hidden is passed over, links to folders are followed."""
    folders, paths = set(), []
    for place, inside, names in os.walk(root, followlinks=True):
        here = Path(place)
        inside[:] = [name for name in inside if not is_hidden(name) and not _leads_back(here / name)]
        folders |= {(here / name).relative_to(root).as_posix() for name in inside}
        paths += [here / name for name in names if not is_hidden(name)]
    warn_of_unread(paths, root)
    files = {path.relative_to(root).as_posix(): path for path in paths if path.suffix.lower() in EXTENSIONS}
    index = root / INDEX
    return Tree(
        root,
        {name: files[name] for name in sorted(files, key=lambda name: name.split("/"))},
        folders,
        parse_index(index.read_bytes(), str(index)) if index.is_file() else None,
    )


def _leads_back(folder: Path) -> bool:
    """Whether a link leads to a folder that it lies in."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def load_tree(tree: Tree, name: str, split: str, config: DatasetConfig, labelled: bool) -> ImageDataset:
    """One split of the images of a folder or zip; arguments and errors as for `load_folder`."""
    listing = list_images(tree, "required" if labelled else "optional", config.skip_bad_files)
    splits = {part: _drawn(listing.split(part, config.seed), getattr(config, part), config.seed) for part in SPLITS}
    # Files of any split: what cannot be used is better known before the training than at its test.
    files = list(dict.fromkeys(file for items in splits.values() for file, _ in items))
    pixels, kept = read_files(name, files, config, tree.root)
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
    return ImageDataset(
        name,
        split,
        select_rows(pixels, np.array([rows[file] for file in of_split]), of_split),
        np.array([label for _, label in items]),
        listing.class_names,
        [str(file) for file in of_split],
    )


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
