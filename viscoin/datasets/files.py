"""Image files of a dataset: which can be used, their squares on a memory map, and duplicates among them."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from viscoin.config import DatasetConfig
from viscoin.datasets import reading
from viscoin.datasets.base import cache_folder, cached_pixels
from viscoin.datasets.listing import warn_once
from viscoin.datasets.reading import BadImage, Box, ImageFile, image_size, read_rgb, read_square
from viscoin.runs import atomic_path

Crops = Sequence[Box | None]
Place = tuple[str, ImageFile]  # split and file


class Prepared(NamedTuple):
    """Images of a split.

    `pixels` is a memory map (n, H, W, 3) uint8; `kept` (n,) holds the positions of these images among the files that
    were asked for, increasing.
    """

    pixels: np.ndarray
    kept: np.ndarray


def prepare_files(
    name: str,
    split: str,
    files: Sequence[ImageFile],
    config: DatasetConfig,
    root: Path,
    crops: Crops | None = None,
) -> Prepared:
    """Squares of the image files of one split, read once and then kept in the user's cache folder.

    Args:
        name: what the dataset is called in messages.
        split: "train", "validation" or "test"; `config` may limit how many of its images are drawn, by its seed.
        files: all files of the split, in the order of the dataset.
        root: the folder of the dataset, for messages.
        crops: a box to cut out of each image first, None for the whole image.

    Raises:
        ValueError: no files, or files that cannot be used (which `config.skip_bad_files` leaves out with a warning).
    """
    bad = unusable_files(root, files, config.skip_bad_files)
    good = [position for position, file in enumerate(files) if file not in bad]
    if not good:
        raise ValueError(f"{root} has no readable images for split {split!r}; add images")
    drawn = draw(len(good), getattr(config, split), config.seed)
    kept = np.array([good[i] for i in drawn])
    chosen = [files[i] for i in kept]
    boxes = [crops[i] for i in kept] if crops is not None else None
    return Prepared(square_pixels(name, split, chosen, config.resolution, root, boxes), kept)


def draw(count: int, limit: int | None, seed: int) -> np.ndarray:
    """Increasing positions of at most `limit` of `count` images, drawn by seed."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(np.random.Generator(np.random.Philox(seed)).permutation(count)[:limit])


def square_pixels(
    name: str, split: str, files: Sequence[ImageFile], resolution: int, root: Path, crops: Crops | None = None
) -> np.ndarray:
    """Memory map (n, H, W, 3) uint8 of readable files, centre-cropped to squares; small ones are warned of."""
    boxes: Crops = [None] * len(files) if crops is None else crops
    small = sum(_side(file, box) < resolution for file, box in zip(files, boxes, strict=True))
    if small:
        counts = f"{small} of {len(files)} images are smaller than {resolution} px"
        warn_once(f"{root} ({split}): {counts} and are enlarged")
    return cached_pixels(
        f"folder/{fingerprint(files, f'{resolution}{list(boxes) if crops else str()}')}",
        len(files),
        resolution,
        lambda: (read_square(file, resolution, box) for file, box in zip(files, boxes)),
        f"reading {name} {split}",
    )


def _side(file: ImageFile, box: Box | None) -> float:
    return min(image_size(file)) if box is None else min(box[2] - box[0], box[3] - box[1])


def unusable_files(root: Path, files: Sequence[ImageFile], skip: bool) -> set[ImageFile]:
    """Files that are no usable images: warned of with `skip`, else a ValueError that names them."""
    bad = {file: reason for file, reason in zip(files, _defects(files), strict=True) if reason}
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


def _defects(files: Sequence[ImageFile]) -> list[str | None]:
    """What is wrong with each file; remembered in the cache, since finding out means decoding all images."""
    cached = cache_folder() / "folder" / f"{fingerprint(files, '0')}.json"
    if not cached.is_file():
        bar = tqdm(files, desc="checking images", unit="image", leave=False, disable=None)
        _remember(cached, [_defect(file) for file in bar])
    return json.loads(cached.read_text())


def _defect(file: ImageFile) -> str | None:
    try:
        read_rgb(file)
    except BadImage as error:
        return str(error)
    return None


def find_duplicates(files_by_split: Mapping[str, Sequence[ImageFile]]) -> list[list[Place]]:
    """Groups of two or more files with the same bytes, each with its split; remembered in the cache.

    Only files of equal size are read.
    """
    places = [(split, file) for split, files in files_by_split.items() for file in files]
    files = [file for _, file in places]
    cached = cache_folder() / "folder" / f"{fingerprint(files, 'duplicates')}.json"
    if not cached.is_file():
        _remember(cached, _equal_files(files))
    return [[places[i] for i in group] for group in json.loads(cached.read_text())]


def warn_about_duplicates(name: str, files_by_split: Mapping[str, Sequence[ImageFile]]) -> None:
    """Warn, with count and one example, of images that lie in several splits: they make test results too good."""
    groups = [group for group in find_duplicates(files_by_split) if len({split for split, _ in group}) > 1]
    if groups:
        example = " = ".join(f"{file} ({split})" for split, file in dict(groups[0]).items())
        images = "image lies" if len(groups) == 1 else "images lie"
        warn_once(
            f"{name}: {len(groups)} {images} in several splits, which makes results on them too good "
            f"(first: {example}); remove the copies"
        )


def _equal_files(files: Sequence[ImageFile]) -> list[list[int]]:
    """Groups of positions of files with the same bytes."""
    sizes = defaultdict(list)
    for position, file in enumerate(files):
        sizes[_size(file)].append(position)
    contents = defaultdict(list)
    candidates = [(size, i) for size, group in sizes.items() if len(group) > 1 for i in group]
    for size, i in tqdm(candidates, desc="looking for duplicates", unit="image", leave=False, disable=None):
        with files[i].open("rb") as stream:
            contents[size, hashlib.sha256(stream.read()).digest()].append(i)
    return sorted(group for group in contents.values() if len(group) > 1)


def _size(file: ImageFile) -> int:
    return file.stat().st_size if isinstance(file, Path) else getattr(file, "size", -1)


def _remember(cached: Path, content: object) -> None:
    cached.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(cached) as partial:
        partial.write_text(json.dumps(content))


def fingerprint(files: Sequence[ImageFile], purpose: str) -> str:
    """Digest of files (by place, size and time), of what is made of them, and of the code that reads them."""
    digest = hashlib.sha256(Path(reading.__file__).read_bytes() + purpose.encode())
    for file in files:
        digest.update(_stamp(file).encode())
    return digest.hexdigest()[:24]


def _stamp(file: ImageFile) -> str:
    """Text that changes when the file does."""
    if not isinstance(file, Path):
        return repr(file)
    stat = file.stat()
    return f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"


def check_every_class(
    name: str, split: str, labels: Sequence[int] | np.ndarray, class_names: Sequence[str], where: Path | str
) -> None:
    """Raise ValueError unless every class has images in the split (before any limit) and every label has a class.

    Args:
        where: the file or folder that says which images there are.
    """
    present = {int(label) for label in labels}
    for label in sorted(present):
        if not 0 <= label < len(class_names):
            raise ValueError(
                f"{where}: class number {label} (counted from 0) is outside the list of {len(class_names)} classes of "
                f"{name}; correct it there, or get the data again"
            )
    for label, empty in enumerate(class_names):
        if label not in present:
            raise ValueError(
                f"{name}: class {empty!r} has no images for split {split!r} in {where}; "
                "add images, or get the data again if it should have some"
            )


def present_files(files: Sequence[Path], index: Path, skip: bool) -> list[int]:
    """Positions of the files that are there, of those that an index file names.

    Raises:
        ValueError: files are missing and not to be skipped (with a warning), or all are.
    """
    there = [position for position, file in enumerate(files) if file.is_file()]
    if len(there) < len(files):
        missing = next(file for file in files if not file.is_file())
        count = f"{len(files) - len(there)} of {len(files)} images that {index} names are missing (first: {missing})"
        if not there:
            raise ValueError(f"{count}; put them there")
        if not skip:
            raise ValueError(f"{count}; put them there, or pass --skip-bad-files to leave them out")
        warn_once(f"left out: {count}")
    return there
