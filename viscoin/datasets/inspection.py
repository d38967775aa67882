"""What a dataset holds: images by split and class, sizes, broken files, duplicates, attributes, and what it lacks."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from viscoin.config import DatasetConfig
from viscoin.datasets import SPLITS, ImageDataset, dataset_names, load_dataset
from viscoin.datasets.diagnosis import Found, found_images, lacking, needs_of_commands, problems_of
from viscoin.datasets.files import find_duplicates, noted_files
from viscoin.datasets.fit_loss import FitLoss, measure_fit
from viscoin.datasets.reading import ImageFile, image_size
from viscoin.datasets.zip import open_zip

BINS = 20
Copies = list[tuple[str, str]]  # split and image of each copy


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Args:
        name: the dataset as it was asked for.
        resolution: side of the squares that models are given, pixels.
        counts: images of each class (C,), by split.
        sizes: width and height of each file as stored, pixels (N, 2); None for images without files of their own.
        broken: files that cannot be used, and why. They are not counted.
        duplicates: groups of images with the same bytes, or the same pixels where there are no files.
        attribute_names: names of the A attributes, none if the dataset has no such truth.
        attributes: share of the images that have each attribute (A,), by split.
        problems: what stands in the way of using it or makes results doubtful.
        commands: what each group of commands will still need, "" for nothing; {} for known datasets.
        fit_loss: what is cut away where images become square; None for images without files, and where some cannot be
            read.
    """

    name: str
    class_names: list[str]
    resolution: int
    counts: dict[str, np.ndarray]
    sizes: np.ndarray | None
    broken: dict[str, str]
    duplicates: list[Copies]
    attribute_names: list[str]
    attributes: dict[str, np.ndarray]
    part_names: list[str]
    problems: list[str] = field(default_factory=list)
    commands: dict[str, str] = field(default_factory=dict)
    fit_loss: FitLoss | None = None

    @property
    def across_splits(self) -> list[Copies]:
        """The duplicates that lie in several splits, which makes test results too good."""
        return [group for group in self.duplicates if len({split for split, _ in group}) > 1]

    def balance(self, split: str) -> dict[str, float]:
        """How evenly the images of a split are spread over the classes.

        Returns:
            images of the `smallest`, `median` and `largest` class; `largest_share` of all images, which is the
            accuracy of always naming that class; `imbalance`, largest / smallest (NaN with an empty class or split).
        """
        counts = self.counts[split]
        return {
            "smallest": int(counts.min()),
            "median": float(np.median(counts)),
            "largest": int(counts.max()),
            "largest_share": float(counts.max() / counts.sum()) if counts.sum() else float("nan"),
            "imbalance": float(counts.max() / counts.min()) if counts.min() else float("nan"),
        }

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        inside = [group for group in self.duplicates if group not in self.across_splits]
        return {
            "dataset": self.name,
            "resolution": self.resolution,
            "class_names": self.class_names,
            "images": {split: int(counts.sum()) for split, counts in self.counts.items()},
            "class_counts": {split: counts.tolist() for split, counts in self.counts.items()},
            "balance": {split: self.balance(split) for split in self.counts},
            "image_sizes": None if self.sizes is None else size_summary(self.sizes),
            "broken_files": [{"file": file, "reason": reason} for file, reason in self.broken.items()],
            "duplicates": {
                "within_splits": len(inside),
                "across_splits": len(self.across_splits),
                "groups": [[{"split": split, "image": image} for split, image in group] for group in self.duplicates],
            },
            "attributes": {
                name: {split: float(shares[i]) for split, shares in self.attributes.items()}
                for i, name in enumerate(self.attribute_names)
            },
            "parts": self.part_names,
            "problems": self.problems,
            "commands": self.commands,
            "cut_away": None if self.fit_loss is None else self.fit_loss.to_dict(),
        }


def inspect_dataset(name: str, config: DatasetConfig) -> Inspection:
    """Look at all splits of a dataset; broken files are left out and listed.

    A folder or zip that is no dataset yet is looked at all the same: `problems` says why it is none.

    Raises:
        ValueError: there is no such dataset, folder or readable zip.
    """
    config = config.model_copy(update={"skip_bad_files": True})
    is_tree = name not in dataset_names() and Path(name).exists()
    with noted_files() as broken:
        try:
            parts = {split: load_dataset(name, split, config) for split in SPLITS}
        except ValueError as error:
            if not is_tree:
                raise
            broken.clear()
            with found_images(name, config, error) as found:
                return _of_found(name, config, found, broken)
    return _of_parts(name, config, parts, dict(broken), is_tree)


def _of_parts(
    name: str, config: DatasetConfig, parts: Mapping[str, ImageDataset], broken: dict[str, str], is_tree: bool
) -> Inspection:
    first = parts["train"]
    with stored_files(name, parts) as files:
        if files is None:
            sizes, duplicates = None, same_pixels(parts)
        else:
            sizes, duplicates = stored_sizes(files), _copies_of(files)
    counts = {split: np.bincount(part.labels, minlength=len(part.class_names)) for split, part in parts.items()}
    classes, loss = lacking(first.class_names, counts, False), measure_fit(parts, sizes)
    advice = [loss.advice] if loss is not None and loss.advice else []
    return Inspection(
        name,
        first.class_names,
        first.resolution,
        counts,
        sizes,
        broken,
        duplicates,
        list(first.attribute_names) if first.has_truth else [],
        {split: part.attributes.mean(0) for split, part in parts.items()} if first.has_truth else {},
        list(first.part_names),
        problems_of(None, classes, len(broken), across(duplicates)) + advice,
        needs_of_commands(name, config, classes, len(broken)) if is_tree else {},
        loss,
    )


def _of_found(name: str, config: DatasetConfig, found: Found, broken: dict[str, str]) -> Inspection:
    names, files = found.class_names, found.files
    counts = {split: np.bincount(labels, minlength=len(names)) for split, labels in found.labels.items()}
    duplicates, classes = _copies_of(files), lacking(names, counts, found.split_by_seed)
    return Inspection(
        name,
        names,
        config.resolution,
        counts,
        stored_sizes(files) if any(files.values()) else None,
        dict(broken),
        duplicates,
        [],
        {},
        [],
        problems_of(found.error, classes, len(broken), across(duplicates)),
        needs_of_commands(name, config, classes, len(broken)),
    )


def _copies_of(files: Mapping[str, list[ImageFile]]) -> list[Copies]:
    return [[(split, str(file)) for split, file in group] for group in find_duplicates(files)]


def across(duplicates: list[Copies]) -> int:
    """How many of the groups lie in several splits."""
    return sum(len({split for split, _ in group}) > 1 for group in duplicates)


@contextmanager
def stored_files(name: str, parts: Mapping[str, ImageDataset]) -> Iterator[dict[str, list[ImageFile]] | None]:
    """The files of the images of each split, readable within the block; None for images without files of their own."""
    texts = {split: part.files for split, part in parts.items() if part.files is not None}
    if len(texts) < len(parts):
        yield None
    elif Path(name).is_file():
        with open_zip(Path(name)) as tree:
            members = {str(file): file for file in tree.files.values()}
            yield {split: [members[text] for text in files] for split, files in texts.items()}
    else:
        yield {split: [Path(text) for text in files] for split, files in texts.items()}


def stored_sizes(files: Mapping[str, list[ImageFile]]) -> np.ndarray:
    """Width and height of each file, pixels (N, 2)."""
    listed = [file for of_split in files.values() for file in of_split]
    bar = tqdm(listed, desc="reading sizes", unit="image", leave=False, disable=None)
    return np.array([image_size(file) for file in bar])


def size_summary(sizes: np.ndarray) -> dict[str, Any]:
    """Smallest, median and largest width, height and shorter side of images (N, 2), how often each size occurs."""
    sides = {"width": sizes[:, 0], "height": sizes[:, 1], "shorter_side": sizes.min(1)}
    counts, edges = np.histogram(sides["shorter_side"], bins=BINS)
    common = Counter(f"{width}x{height}" for width, height in sizes.tolist())
    return {
        **{
            name: {"smallest": int(side.min()), "median": float(np.median(side)), "largest": int(side.max())}
            for name, side in sides.items()
        },
        "most_common": dict(common.most_common(10)),
        "histogram_of_shorter_side": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def same_pixels(parts: Mapping[str, ImageDataset]) -> list[Copies]:
    """Groups of two or more images of the same pixels, named by split and index."""
    places = [(split, index) for split, part in parts.items() for index in range(len(part))]
    groups = defaultdict(list)
    for split, index in tqdm(places, desc="looking for duplicates", unit="image", leave=False, disable=None):
        pixels = parts[split].pixels[index]
        groups[hashlib.sha256(pixels.tobytes()).digest()].append((split, f"image {index}"))
    return [group for group in groups.values() if len(group) > 1]
