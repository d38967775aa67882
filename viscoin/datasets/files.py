"""Image files of a dataset: which can be used, their squares on a memory map, and duplicates among them."""

import hashlib
import json
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from viscoin.config import DatasetConfig
from viscoin.datasets import depth, masks, reading
from viscoin.datasets.base import cached_pixels
from viscoin.datasets.cache import cache_folder, discard, file_state, is_cached, new_cached
from viscoin.datasets.depth import Whites, described, joined, whites_of
from viscoin.datasets.listing import warn_once
from viscoin.datasets.masks import object_box
from viscoin.datasets.reading import (
    UNREADABLE,
    BadImage,
    Box,
    Fit,
    ImageFile,
    has_several,
    image_size,
    read_region,
    square,
    stored_extent,
)
from viscoin.errors import Refused

Crops = Sequence[Box | None]
Masks = Sequence[ImageFile | None]
Place = tuple[str, ImageFile]  # split and file
FORMAT = b"3"  # of what is remembered of files
DARK = 16  # of 255; an image without a brighter pixel shows nothing
T = TypeVar("T")
R = TypeVar("R")
_noted: ContextVar[dict[str, str] | None] = ContextVar("noted", default=None)


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
    """Squares of the image files of one split, read once and then cached in the user's cache folder.

    Args:
        name: what the dataset is called in messages.
        split: "train", "validation" or "test"; `config` may limit how many of its images are sampled, by its seed.
        files: all files of the split, in the order of the dataset.
        root: the folder of the dataset, for messages.
        crops: a box to cut out of each image first, None for the whole image.

    Raises:
        ValueError: no files, or files that cannot be used (which `config.skip_bad_files` leaves out with a warning).
    """
    drawn = draw(len(files), getattr(config, split), config.seed)
    boxes = None if crops is None else [crops[i] for i in drawn]
    pixels, kept = read_files(f"{name} {split}", [files[i] for i in drawn], config, root, boxes)
    if not len(kept):
        raise no_images_error(root, split)
    return Prepared(pixels, drawn[kept])


def draw(count: int, limit: int | None, seed: int) -> np.ndarray:
    """Increasing positions of at most `limit` of `count` images, sampled by seed."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(np.random.Generator(np.random.Philox(seed)).permutation(count)[:limit])


def no_images_error(root: Path, split: str) -> ValueError:
    return ValueError(f"{root} has no readable images for split {split!r}; add images")


def read_files(
    what: str,
    files: Sequence[ImageFile],
    config: DatasetConfig,
    root: Path,
    crops: Crops | None = None,
    masks: Masks | None = None,
) -> Prepared:
    """Squares of all these files; each is decoded once, whether it can be used or not, and by all cores.

    Small and black images are warned of, and what had to be assumed of those of more than 8 bits (see `depth`): white
    is one value for all these files. Arguments and errors are those of `prepare_files`; `what` is read, for the
    progress bar, and `masks` are files of masks, for `config.fit` "object"; without, these are the alpha channels.
    """
    boxes: Crops = [None] * len(files) if crops is None else crops
    side, fit = config.resolution, Fit.of(config)
    shapes: Masks = masks if masks is not None and fit.mode == "object" else [None] * len(files)
    seen = [*files, *(mask for mask in shapes if mask is not None)]
    digest = fingerprint(seen, f"{side}{list(boxes) if crops else ''}{fit}")
    findings = cache_folder() / "folder" / f"{digest}.json"

    def squares() -> Iterator[np.ndarray]:
        whites, assumed = find_whites(files, f"images of {root}")
        found = []
        jobs = zip(files, boxes, shapes, strict=True)
        for pixels, *finding in in_threads(lambda job: _read(*job, side, whites, fit), jobs):
            found.append(finding)
            yield pixels
        _remember(findings, {"files": found, "assumed": assumed})  # before the pixels get their name

    if not is_cached(findings):
        discard(findings.with_suffix(".npy"))
    pixels = cached_pixels(f"folder/{digest}", len(files), side, squares, f"reading {what}")
    known = json.loads(findings.read_text())
    reasons, small, dark, whole = zip(*known["files"]) if len(files) else ((), (), (), ())
    _warn(known["assumed"], small, [file for file, black in zip(files, dark) if black], root, side)
    _warn_of_whole([file for file, all_of_it in zip(files, whole) if all_of_it], len(files), root)
    judge({file: reason for file, reason in zip(files, reasons) if reason}, len(files), root, config.skip_bad_files)
    kept = np.array([i for i, reason in enumerate(reasons) if not reason], dtype=int)
    return Prepared(select_rows(pixels, kept, [files[i] for i in kept], digest), kept)


def select_rows(pixels: np.ndarray, rows: np.ndarray, files: Sequence[ImageFile], origin: str = "") -> np.ndarray:
    """Some of the images on a memory map, on a memory map again: a copy, unless they lie side by side.

    Args:
        rows: (n,) positions in `pixels`, increasing.
        files: (n,) where these images come from, by which the copy is found again.
        origin: what else distinguishes these pixels from others of the same files and size.
    """
    if not len(rows):
        return pixels[:0]
    if rows[-1] - rows[0] + 1 == len(rows):
        return pixels[rows[0] : rows[-1] + 1]
    side = pixels.shape[1]
    key = f"folder/{fingerprint(files, f'copy {side} {origin}')}"
    return cached_pixels(key, len(rows), side, lambda: (pixels[i] for i in rows), "copying images")


def find_whites(files: Sequence[ImageFile], what: str) -> tuple[Whites, list[str]]:
    """What is white in images of more than 8 bits, by kind, and what had to be assumed for it (see `depth`).

    That files hold more pictures than the first is said there, too.

    Args:
        what: these files in messages, as in "images of photos".
    """
    bar = tqdm(files, desc="looking for pixels of more than 8 bits", unit="image", leave=False, disable=None)
    looked = list(in_threads(lambda file: (stored_extent(file), has_several(file)), bar))
    extents = joined(found for found, _ in looked if found is not None)
    texts = [described(found, f"{found.files} {what}") for found in extents]
    several = [file for file, (_, more) in zip(files, looked) if more]
    if several:
        texts.append(
            f"{len(several)} {what} are files of several pictures, of which the first is used (first: {several[0]}); "
            "save the others as files of their own"
        )
    return whites_of(extents), [text for text in texts if text]


def report_whites(files: Sequence[ImageFile], what: str) -> Whites:
    """What is white in images of more than 8 bits, with a warning of what had to be assumed."""
    whites, assumed = find_whites(files, what)
    for text in assumed:
        warn_once(text)
    return whites


def _warn(assumed: Iterable[str], small: Sequence[bool], dark: Sequence[ImageFile], root: Path, side: int) -> None:
    for text in assumed:
        warn_once(text)
    if sum(small):
        warn_once(f"{root}: {sum(small)} of {len(small)} images are smaller than {side} px and are enlarged")
    if dark:
        warn_once(
            f"{root}: {len(dark)} of {len(small)} images are black: no pixel is brighter than {DARK - 1} of 255 "
            f"(first: {dark[0]})"
        )


def _warn_of_whole(whole: Sequence[ImageFile], count: int, root: Path) -> None:
    if whole:
        warn_once(
            f"{root}: {len(whole)} of {count} images have no mask or alpha channel with an object, and are shown whole "
            f"(first: {whole[0]})"
        )


def _read(
    file: ImageFile, box: Box | None, mask: ImageFile | None, side: int, whites: Whites, fit: Fit
) -> tuple[np.ndarray, str | None, bool, bool, bool]:
    """The square of a file, what is wrong with the file, whether it had to be enlarged, whether it is black, and
    whether it is shown whole, as there is no object to fit."""
    try:
        if fit.mode == "object":
            box = object_box(file, mask)
        image = read_region(file, side, box, whites, fit)
        pixels = square(image, side, fit)
    except BadImage as error:
        return np.zeros((side, side, 3), np.uint8), str(error), False, False, False
    return pixels, None, fit.enlarges(image.size, side), bool(pixels.max() < DARK), fit.mode == "object" and box is None


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map` by as many threads as there are cores, in order; unlike theirs it holds only a few results at a time.

    Pillow decodes and resamples outside of Python's lock, so that threads do keep all cores busy.
    """
    threads = cores()
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 4 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def judge(bad: Mapping[ImageFile, str] | Mapping[str, str], count: int, root: Path, skip: bool) -> None:
    """Warn of files that cannot be used, with `skip`, or raise a ValueError that names them."""
    _note({str(file): reason for file, reason in bad.items()})
    if bad and not skip:
        raise bad_files_error({str(file): reason for file, reason in bad.items()}, count, root)
    if bad:
        warn_once(f"left out {len(bad)} of {count} files that cannot be used (first: {next(iter(bad))})")


@contextmanager
def noted_files() -> Iterator[dict[str, str]]:
    """Files that turn out to be missing or no usable images within the block, and why."""
    found: dict[str, str] = {}
    token = _noted.set(found)
    try:
        yield found
    finally:
        _noted.reset(token)


def _note(bad: Mapping[str, str]) -> None:
    if (noted := _noted.get()) is not None:
        noted.update(bad)


def bad_files_error(bad: dict[str, str], count: int, root: Path) -> Refused:
    """The error that names unusable files: `bad` has the reason of each, out of `count` files in `root`."""
    listed = "; ".join(f"{file} ({reason})" for file, reason in list(bad.items())[:5])
    found = f"{len(bad)} of {count} files in {root} cannot be used: {listed}{' …' if len(bad) > 5 else ''}"
    return Refused(None, None, found, "repair or remove them, or pass `skip_bad_files`")


def find_duplicates(files_by_split: Mapping[str, Sequence[ImageFile]]) -> list[list[Place]]:
    """Groups of two or more files with the same bytes, each with its split; remembered in the cache.

    Only files of equal size are read.
    """
    places = [(split, file) for split, files in files_by_split.items() for file in files]
    files = [file for _, file in places]
    cached = cache_folder() / "folder" / f"{fingerprint(files, 'duplicates')}.json"
    if not is_cached(cached):
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
        try:
            contents[size, hashlib.sha256(_content(files[i])).digest()].append(i)
        except UNREADABLE:  # a broken member of a zip; reading its pixels will report it
            continue
    return sorted(group for group in contents.values() if len(group) > 1)


def _content(file: ImageFile) -> bytes:
    with file.open("rb") as stream:
        return stream.read()


def _size(file: ImageFile) -> int:
    return file.stat().st_size if isinstance(file, Path) else getattr(file, "size", -1)


def _remember(cached: Path, content: object) -> None:
    with new_cached(cached) as partial:
        partial.write_text(json.dumps(content))


def fingerprint(files: Sequence[ImageFile], purpose: str) -> str:
    """Digest of files (by place and state), of what is made of them, and of the code that reads them."""
    code = b"".join(Path(module.__file__ or "").read_bytes() for module in (reading, depth, masks))
    digest = hashlib.sha256(code + FORMAT + purpose.encode())
    for file in files:
        digest.update(_stamp(file).encode(errors="surrogateescape"))  # names that are no UTF-8
    return digest.hexdigest()[:24]


def _stamp(file: ImageFile) -> str:
    """Text that changes when the file does."""
    if not isinstance(file, Path):
        return repr(file)
    return f"{file.resolve()}|{file_state(file)}"


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


def sizes_of(files: Sequence[ImageFile]) -> list[tuple[int, int] | None]:
    """Width and height of each image as stored; None for a broken file, which reading the pixels will report."""

    def size(file: ImageFile) -> tuple[int, int] | None:
        try:
            return image_size(file)
        except UNREADABLE:
            return None

    return [size(file) for file in files]


def present_files(files: Sequence[Path], index: Path, skip: bool) -> list[int]:
    """Positions of the files that are there, of those that an index file names.

    Raises:
        ValueError: files are missing and not to be skipped (with a warning), or all are.
    """
    there = [position for position, file in enumerate(files) if os.path.isfile(file)]
    if len(there) < len(files):
        found = set(there)
        missing = [file for position, file in enumerate(files) if position not in found]
        _note({str(file): "missing" for file in missing})
        count = f"{len(missing)} of {len(files)} images that {index} names are missing (first: {missing[0]})"
        remedy = "unpack the archive again, or put them there"
        if not there:
            raise Refused(None, None, count, remedy)
        if not skip:
            raise Refused(None, None, count, f"{remedy}, or pass `skip_bad_files` to leave them out")
        warn_once(f"left out: {count}")
    return there
