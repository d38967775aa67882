"""Write any images as a dataset of square PNGs of one size with a dataset.json, as StyleGAN tools read it."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from viscoin.config import load_recipe, recipe_names
from viscoin.datasets import SPLITS, check_dataset_name, dataset_names, load_dataset, locate_dataset
from viscoin.datasets.files import bad_files_error, report_whites
from viscoin.datasets.folder import folder_tree
from viscoin.datasets.listing import INDEX, Need, Tree, list_images, parse_index
from viscoin.datasets.output import check_output, new_folder, png_bytes
from viscoin.datasets.reading import BadImage, read_rgb
from viscoin.datasets.zip import open_zip
from viscoin.errors import Refused
from viscoin.files import atomic_path

CROPS = ("center", "center-wide", "none")
WIDE = 3 / 4  # height divided by width
SMALLEST, LARGEST = 16, 4096  # sides, pixels
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """What was written: images of how many pixels a side, and names of the classes or None."""

    path: Path
    count: int
    resolution: int
    class_names: list[str] | None
    left_out: int
    enlarged: int

    @property
    def bytes(self) -> int:
        files = self.path.rglob("*") if self.path.is_dir() else [self.path]
        return sum(path.stat().st_size for path in files if path.is_file())


@dataclass(frozen=True)
class Source:
    """Images by number: what messages call them, how to read one (RGB), and their class or None."""

    root: Path
    names: list[str]
    read: Callable[[int], Image.Image]
    labels: list[int] | None
    class_names: list[str]


def prepare_dataset(
    source: str,
    out: Path,
    resolution: int | None = None,
    crop: str = "center",
    labels: str = "auto",
    max_images: int | None = None,
    split: str = "all",
    seed: int = 0,
    skip_bad_files: bool = False,
    force: bool = False,
) -> Prepared:
    """Write `out` with images `00000/img00000000.png`, ... and their labels in `dataset.json`.

    The same source gives the same bytes. `out` appears under its name when it is complete, never in part.

    Args:
        source: name of a dataset; folder or zip of images, of class folders, or with a dataset.json.
        out: a zip if it ends in .zip, else a folder.
        resolution: side in pixels, a power of two; None: that of the images, which must agree.
        crop: "center": the largest square in the middle; "center-wide": the largest 4:3 rectangle in the middle, with
            black above and below; "none": the images must be square.
        labels: "auto": classes where there are two or more; "none": no labels; else a file like dataset.json, with
            names relative to the source.
        max_images: largest number of images, sampled by seed.
        split: "train", "validation" or "test" as `load_dataset` splits with this seed, or "all".
        skip_bad_files: leave unreadable or unlabelled images out instead of stopping.
        force: replace an output that exists.

    Raises:
        ValueError: an argument out of range, an output that exists, or images or labels that cannot be used.
    """
    _check_choice("crop", crop, CROPS)
    _check_choice("split", split, (*SPLITS, "all"))
    if resolution is not None:
        check_side(resolution)
    check_output(out, None if source in dataset_names() else Path(source), force, INDEX)
    with _open_source(source, resolution, labels, split, seed, skip_bad_files, max_images) as images:
        chosen = list(range(len(images.names)))
        if max_images is not None and max_images < len(chosen):
            order = np.random.Generator(np.random.Philox(seed)).permutation(len(chosen))[:max_images]
            chosen = sorted(int(i) for i in order)
        with new_dataset(out) as write:
            prepared = write_images(images, chosen, write, out, resolution, crop, skip_bad_files)
    return prepared


def sample_images(dataset: Path, count: int, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Some images (N, H, W, 3) uint8 of a prepared dataset, of as many classes as possible, and their class names."""
    with open_zip(dataset) if dataset.is_file() else _open_folder(dataset) as tree:
        listing = list_images(tree, "auto")
        items = listing.items
        seen: Counter[int] = Counter()
        turns = []
        for i in np.random.default_rng(seed).permutation(len(items)):
            label = items[i][1]
            turns.append((seen[label], label, int(i)))
            seen[label] += 1
        drawn = sorted((label, i) for _, label, i in sorted(turns)[:count])
        names = [listing.class_names[label] if listing.labelled else "" for label, _ in drawn]
        return np.stack([np.asarray(read_rgb(items[i][0])) for _, i in drawn]), names


def write_images(
    images: Source,
    chosen: list[int],
    write: Callable[[str, bytes], None],
    output: Path,
    resolution: int | None,
    crop: str,
    skip: bool,
) -> Prepared:
    """Write the chosen images and dataset.json; errors of images are collected, so that all are named at once."""
    bad: dict[str, str] = {}
    labels: list[tuple[str, int]] = []
    side, first, enlarged = resolution, "", 0
    for i in tqdm(chosen, desc=f"writing {output.name}", unit="image", leave=False, disable=None):
        try:
            image = images.read(i)
        except BadImage as error:
            bad[images.names[i]] = str(error)
            continue
        own = _side(image, crop, images.names[i])
        if resolution is None and own != side:
            if side is not None:
                sides = f"{first} gives {side} px, {images.names[i]} gives {own} px"
                raise Refused("resolution", None, f"images differ in size: {sides}", "give one for all of them")
            if not _allowed(own):
                reason = f"{images.names[i]} gives {own} px a side, not a power of two"
                raise Refused("resolution", None, reason, f"give one; {_suggest(own)}")
            side, first = own, images.names[i]
        enlarged += own < (side or own)
        name = f"{len(labels) // 1000:05d}/img{len(labels):08d}.png"
        write(name, png_bytes(_square(image, side or own, crop)))
        labels.append((name, images.labels[i] if images.labels else 0))
    if bad and (not skip or not labels):
        raise bad_files_error(bad, len(chosen), images.root)
    if not labels:
        raise ValueError(f"{images.root} holds no images")
    write(INDEX, _index(labels if images.labels else None, images.class_names))
    prepared = Prepared(
        output, len(labels), side or 0, images.class_names if images.labels else None, len(bad), enlarged
    )
    _warn(prepared, bad, {label for _, label in labels})
    return prepared


def _warn(prepared: Prepared, bad: dict[str, str], present: set[int]) -> None:
    if bad:
        total = len(bad) + prepared.count
        logger.warning(f"left out {len(bad)} of {total} files that cannot be used (first: {next(iter(bad))})")
    if prepared.enlarged:
        size = prepared.resolution
        logger.warning(f"{prepared.enlarged} of {prepared.count} images are smaller than {size} px and are enlarged")
    missing = [name for i, name in enumerate(prepared.class_names or []) if i not in present]
    if missing:
        logger.warning(f"{len(missing)} classes have no images in {prepared.path}: {', '.join(missing[:5])}")


# --- pictures ----------------------------------------------------------------------------------------------------


def _side(image: Image.Image, crop: str, name: str) -> int:
    """Side of the square that an image fills without being enlarged."""
    width, height = image.size
    if crop == "none" and width != height:
        raise Refused("crop", crop, f"{name} is {width}x{height} px, not square", "choose center or center-wide")
    return min(width, round(height / WIDE)) if crop == "center-wide" else min(width, height)


def _square(image: Image.Image, side: int, crop: str) -> Image.Image:
    if crop != "center-wide":
        return ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)
    height = round(side * WIDE)
    square = Image.new("RGB", (side, side))
    square.paste(ImageOps.fit(image, (side, height), Image.Resampling.LANCZOS), (0, (side - height) // 2))
    return square


def _index(labels: list[tuple[str, int]] | None, class_names: list[str]) -> bytes:
    content = {"labels": labels} if labels is None else {"labels": labels, "class_names": class_names}
    return json.dumps(content).encode()


# --- source ------------------------------------------------------------------------------------------------------


@contextmanager
def _open_source(
    source: str, resolution: int | None, labels: str, split: str, seed: int, skip: bool, limit: int | None
) -> Iterator[Source]:
    name, place = locate_dataset(source, None)
    if name in dataset_names():
        if labels not in ("auto", "none"):
            raise Refused("labels", labels, f"dataset {name!r} has labels of its own", "choose auto or none")
        fixed: dict[str, object] = {"dataset.seed": seed, "dataset.path": place, "dataset.skip_bad_files": skip}
        yield _named(name, resolution, labels, split, limit, fixed)
        return
    check_dataset_name(source)
    path = Path(source)
    with open_zip(path) if path.is_file() else _open_folder(path, skip) as tree:
        yield _listed(tree, labels, split, seed, skip)


@contextmanager
def _open_folder(path: Path, skip: bool = False) -> Iterator[Tree]:
    yield folder_tree(path, skip)


def _listed(tree: Tree, labels: str, split: str, seed: int, skip: bool) -> Source:
    need: Need = "none" if labels == "none" else "auto"
    if labels not in ("auto", "none"):
        if not Path(labels).is_file():
            raise Refused("labels", labels, "neither auto nor none, and there is no such file")
        tree, need = replace(tree, index=parse_index(Path(labels).read_bytes(), labels)), "required"
    listing = list_images(tree, need, skip)
    items = listing.items if split == "all" else listing.split(split, seed)
    whites = report_whites([file for file, _ in items], f"images of {tree.root}")
    return Source(
        tree.root,
        [str(file) for file, _ in items],
        lambda i: read_rgb(items[i][0], whites=whites),
        [label for _, label in items] if listing.labelled else None,
        listing.class_names,
    )


def _named(
    name: str, resolution: int | None, labels: str, split: str, limit: int | None, fixed: dict[str, object]
) -> Source:
    changes: dict[str, object] = {"dataset.name": name, **fixed}
    if resolution is not None:
        changes["dataset.resolution"] = resolution
    if split != "all" and limit is not None:
        changes[f"dataset.{split}"] = limit
    config = load_recipe(name if name in recipe_names() else "birds", changes).dataset
    parts = [load_dataset(name, part, config) for part in (SPLITS if split == "all" else (split,))]
    places = [(part, i) for part in parts for i in range(len(part))]

    def read(number: int) -> Image.Image:
        part, i = places[number]
        return Image.fromarray(np.asarray(part.pixels[i]))

    numbers = [int(label) for part in parts for label in part.labels]
    names = [f"{part.split} image {i} of {name}" for part, i in places]
    return Source(Path(name), names, read, None if labels == "none" else numbers, parts[0].class_names)


# --- output and arguments ------------------------------------------------------------------------------------------


@contextmanager
def new_dataset(output: Path) -> Iterator[Callable[[str, bytes], None]]:
    """A function that adds a file to a zip or folder, which takes its place when the block ends well."""
    if output.suffix.lower() == ".zip":
        output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(output) as partial, ZipFile(partial, "w") as archive:
            yield lambda name, data: archive.writestr(_entry(name), data)
        return
    with new_folder(output) as folder:

        def write(name: str, data: bytes) -> None:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

        yield write


def _entry(name: str) -> ZipInfo:
    """Without times and systems, so that the same images give the same bytes."""
    entry = ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.compress_type = ZIP_STORED  # PNGs are compressed already
    entry.create_system, entry.external_attr = 3, 0o644 << 16  # Unix, rw-r--r--
    return entry


def _check_choice(parameter: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise Refused(parameter, value, "unknown", f"choose {', '.join(choices)}")


def check_side(resolution: int) -> None:
    """Raise Refused unless StyleGAN tools can use images of that side."""
    if not _allowed(resolution):
        raise Refused("resolution", resolution, "not a power of two", _suggest(resolution))


def _allowed(side: int) -> bool:
    return SMALLEST <= side <= LARGEST and side & (side - 1) == 0


def _suggest(side: int) -> str:
    lower = 1 << (min(max(side, SMALLEST), LARGEST).bit_length() - 1)
    near = sorted({lower, min(2 * lower, LARGEST)} if lower < side < LARGEST else {lower})
    return f"nearest is {' or '.join(map(str, near))}"
