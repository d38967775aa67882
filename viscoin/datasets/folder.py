"""A folder of images: `root/train/<class>/*.png|jpg` with `root/test/...`, or `root/<class>/*` split by seed.

A `dataset.json` in the folder (an unpacked zip, see `zip.py`) takes the place of class folders.
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from viscoin.config import DatasetConfig
from viscoin.datasets import reading
from viscoin.datasets.base import ImageDataset, cache_folder, cached_pixels
from viscoin.datasets.listing import INDEX, Item, Listing, Tree, list_images, parse_index, warn_once
from viscoin.datasets.reading import EXTENSIONS, BadImage, ImageFile, image_size, read_rgb, read_square
from viscoin.runs import atomic_path


def load_folder(root: Path, split: str, config: DatasetConfig, labelled: bool = True) -> ImageDataset:
    """One split of a folder of images, centre-cropped to squares of `config.resolution` pixels.

    Without `validation` images a tenth of the training images is kept aside for them; without `train` and `test`
    folders the classes are split 70:10:20. Both splits are stratified and depend on `config.seed` alone.

    Args:
        labelled: whether classes are needed; without, any folder of images will do (see `load_dataset`).

    Raises:
        ValueError: no or one class, an empty class, or files that are no images (unless `config.skip_bad_files`).
    """
    return load_tree(folder_tree(root), root.resolve().name, split, config, labelled)


def folder_tree(root: Path) -> Tree:
    """Images and folders below a folder; what is hidden is passed over, links to folders are followed."""
    files: dict[str, ImageFile] = {}
    folders = set()
    for place, inside, names in os.walk(root, followlinks=True):
        here = Path(place)
        inside[:] = [name for name in inside if not name.startswith(".") and not _leads_back(here / name)]
        folders |= {(here / name).relative_to(root).as_posix() for name in inside}
        for path in (here / name for name in names if not name.startswith(".")):
            if path.suffix.lower() in EXTENSIONS:
                files[path.relative_to(root).as_posix()] = path
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
    bad = _bad_files(tree.root, listing, config.skip_bad_files)
    items = [item for item in listing.split(split, config.seed) if item[0] not in bad]
    if not items:
        raise ValueError(f"{tree.root} has no readable images for split {split!r}; add images")
    if labelled:
        _check_classes(tree, listing, items, split)
    limit = getattr(config, split)
    if limit is not None and limit < len(items):
        order = np.random.Generator(np.random.Philox(config.seed)).permutation(len(items))[:limit]
        items = [items[i] for i in sorted(order)]
    small = sum(min(image_size(file)) < config.resolution for file, _ in items)
    if small:
        counts = f"{small} of {len(items)} images are smaller than {config.resolution} px"
        warn_once(f"{tree.root} ({split}): {counts} and are enlarged")
    pixels = cached_pixels(
        f"folder/{_fingerprint(items, config.resolution)}",
        len(items),
        config.resolution,
        lambda: (read_square(file, config.resolution) for file, _ in items),
        f"reading {name} {split}",
    )
    return ImageDataset(name, split, pixels, np.array([label for _, label in items]), listing.class_names)


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


def _bad_files(root: Path, listing: Listing, skip: bool) -> set[ImageFile]:
    """Files of any split that cannot be used: better known before the training than at its test."""
    files = listing.items
    bad = {file: reason for (file, _), reason in zip(files, _defects(files), strict=True) if reason}
    if bad and not skip:
        raise bad_files_error({str(file): reason for file, reason in bad.items()}, len(files), root)
    if bad:
        warn_once(f"left out {len(bad)} of {len(files)} files that cannot be used (first: {next(iter(bad))})")
    return set(bad)


def bad_files_error(bad: dict[str, str], count: int, root: Path) -> ValueError:
    """The error that names unusable files: `bad` has the reason of each, out of `count` files in `root`."""
    listed = "; ".join(f"{file} ({reason})" for file, reason in list(bad.items())[:5])
    return ValueError(
        f"{len(bad)} of {count} files in {root} cannot be used: {listed}{' …' if len(bad) > 5 else ''}. "
        "Repair or remove them, or pass --skip-bad-files"
    )


def _defects(items: list[Item]) -> list[str | None]:
    """What is wrong with each file; remembered in the cache, since finding out means decoding all images."""
    cached = cache_folder() / "folder" / f"{_fingerprint(items, 0)}.json"
    if not cached.is_file():
        bar = tqdm(items, desc="checking images", unit="image", leave=False, disable=None)
        reasons = [_defect(file) for file, _ in bar]
        cached.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(cached) as partial:
            partial.write_text(json.dumps(reasons))
    return json.loads(cached.read_text())


def _defect(file: ImageFile) -> str | None:
    try:
        read_rgb(file)
    except BadImage as error:
        return str(error)
    return None


def _fingerprint(items: list[Item], resolution: int) -> str:
    """Digest of the files and of the code that reads them."""
    digest = hashlib.sha256(Path(reading.__file__).read_bytes() + str(resolution).encode())
    for file, _ in items:
        digest.update(_stamp(file).encode())
    return digest.hexdigest()[:24]


def _stamp(file: ImageFile) -> str:
    """Text that changes when the file does."""
    if not isinstance(file, Path):
        return repr(file)
    stat = file.stat()
    return f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
