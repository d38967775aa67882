"""Write a dataset for other tools: a tree of class folders, the zip of StyleGAN tools, the layout of FiftyOne.

    folder     train/<class>/000012.png, validation/..., test/..., and dataset.json with classes, labels and splits for
               our own reader, which thereby gets back what was written
    zip        00000/img00000012.png and dataset.json; the format has no place for splits
    fiftyone   data/train-000012.png and labels.json {"classes": [...], "labels": {"train-000012": class index}}; with
               attributes {"label": class index, "attributes": {"split": "train", "body colour: blue": true, ...}},
               as documented for fiftyone.types.FiftyOneImageClassificationDataset

Images are the squares that models are given, as PNG; numbers are those of the images in their split.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from viscoin.config import DatasetConfig
from viscoin.datasets import SPLITS, ImageDataset, dataset_names, load_dataset
from viscoin.datasets.listing import INDEX, warn_once
from viscoin.datasets.output import check_output, png_bytes
from viscoin.datasets.prepare import Source, check_side, new_dataset, write_images
from viscoin.datasets.splitting import class_folders
from viscoin.errors import Refused

FORMATS = ("folder", "zip", "fiftyone")
LABELS, ATTRIBUTES = "labels.json", "attributes.csv"
Write = Callable[[str, bytes], None]


@dataclass(frozen=True)
class Exported:
    """What was written: images of each split and names of the classes."""

    path: Path
    counts: dict[str, int]
    class_names: list[str]
    resolution: int


@dataclass(frozen=True)
class Chosen:
    """The images of a split that are written, by index."""

    images: ImageDataset
    indices: np.ndarray

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Index and class of each."""
        return iter(zip(self.indices.tolist(), self.images.labels[self.indices].tolist(), strict=True))

    @cached_property
    def attributes(self) -> np.ndarray:
        """Of all images of the split, (N, A) bool; worked out once."""
        return self.images.attributes

    def png(self, index: int) -> bytes:
        return png_bytes(Image.fromarray(np.ascontiguousarray(self.images.pixels[index])))


def export_dataset(
    name: str,
    config: DatasetConfig,
    out: Path,
    kind: str = "folder",
    split: str = "all",
    limit: int | None = None,
    attributes: bool = False,
    seed: int = 0,
    force: bool = False,
) -> Exported:
    """Write the images of a dataset, as squares of `config.resolution` pixels, for other tools.

    `out` appears under its name when it is complete, never in part.

    Args:
        kind: one of `FORMATS`.
        split: "train", "validation", "test" or "all".
        limit: largest number of images of each split, sampled by seed from as many classes as possible.
        attributes: write the attributes as well: into labels.json, or beside class folders as attributes.csv.
        force: replace an output that exists.

    Raises:
        ValueError: an argument that does not fit, an output that exists, or a dataset that cannot be loaded.
    """
    if kind not in FORMATS:
        raise Refused("kind", kind, "unknown format", f"choose {', '.join(FORMATS)}")
    if split not in (*SPLITS, "all"):
        raise Refused("split", split, "unknown split", f"choose {', '.join((*SPLITS, 'all'))}")
    _check_place(out, kind, name, config, force)
    if kind == "zip":
        check_side(config.resolution)
        if attributes:
            raise Refused("attributes", None, "the zip has no room for them", "use `kind` fiftyone or folder")
    parts = [load_dataset(name, part, config) for part in (SPLITS if split == "all" else (split,))]
    if attributes and not parts[0].has_truth:
        raise Refused("attributes", None, f"dataset {parts[0].name!r} has no attributes", "leave them out")
    chosen = [Chosen(part, in_turns(part.labels, limit, seed)) for part in parts]
    writer = {"folder": _write_folder, "zip": _write_zip, "fiftyone": _write_fiftyone}[kind]
    with new_dataset(out) as write:
        writer(name, chosen, write, out, attributes)
    return Exported(
        out, {part.images.split: len(part.indices) for part in chosen}, parts[0].class_names, config.resolution
    )


def _check_place(out: Path, kind: str, name: str, config: DatasetConfig, force: bool) -> None:
    if (kind == "zip") != (out.suffix.lower() == ".zip"):
        raise Refused(
            "out", out, f"a name {'that ends in' if kind == 'zip' else 'without'} .zip is needed for `kind` {kind}"
        )
    source = config.path if name in dataset_names() else name
    marker = LABELS if kind == "fiftyone" else INDEX
    check_output(out, None if source is None else Path(source), force, marker)


def in_turns(labels: np.ndarray, limit: int | None, seed: int) -> np.ndarray:
    """Increasing positions of at most `limit` images: one of each class, then a second one of each, and so on."""
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    seen: Counter[int] = Counter()
    turns = []
    for place, i in enumerate(np.random.default_rng(seed).permutation(len(labels)).tolist()):
        turns.append((seen[labels[i]], place, i))
        seen[labels[i]] += 1
    return np.sort([i for _, _, i in sorted(turns)[:limit]])


def _write_folder(name: str, parts: list[Chosen], write: Write, output: Path, attributes: bool) -> None:
    folders = class_folders(parts[0].images.class_names)
    labels: list[tuple[str, int]] = []
    rows: list[list[Any]] = []
    for part, index, label in _progress(parts, output):
        file = f"{part.images.split}/{folders[label]}/{index:06d}.png"
        write(file, part.png(index))
        labels.append((file, label))
        if attributes:
            rows.append([file, *part.attributes[index].astype(int).tolist()])
    write(INDEX, json.dumps({"labels": labels, "class_names": parts[0].images.class_names}).encode())
    if attributes:
        write(ATTRIBUTES, _csv([["file", *parts[0].images.attribute_names], *rows]))
    for part in parts:
        _warn_of_empty_classes(part, output)


def _write_fiftyone(name: str, parts: list[Chosen], write: Write, output: Path, attributes: bool) -> None:
    labels: dict[str, Any] = {}
    names = [attribute.replace(".", " ") for attribute in parts[0].images.attribute_names]  # a dot has a meaning there
    for part, index, label in _progress(parts, output):
        key = f"{part.images.split}-{index:06d}"
        write(f"data/{key}.png", part.png(index))
        labels[key] = label
        if attributes:
            truth = dict(zip(names, part.attributes[index].tolist(), strict=True))
            labels[key] = {"label": label, "attributes": {"split": part.images.split, **truth}}
    write(LABELS, json.dumps({"classes": parts[0].images.class_names, "labels": labels}, indent=1).encode())


def _write_zip(name: str, parts: list[Chosen], write: Write, output: Path, attributes: bool) -> None:
    places = [(part, index, label) for part in parts for index, label in part]

    def read(number: int) -> Image.Image:
        part, index, _ = places[number]
        return Image.fromarray(np.ascontiguousarray(part.images.pixels[index]))

    images = Source(
        Path(name),
        [f"{part.images.split} image {index} of {name}" for part, index, _ in places],
        read,
        [label for _, _, label in places],
        parts[0].images.class_names,
    )
    side = parts[0].images.resolution
    write_images(images, list(range(len(places))), write, output, side, "center", skip=False)


def _progress(parts: list[Chosen], output: Path) -> Iterator[tuple[Chosen, int, int]]:
    places = [(part, index, label) for part in parts for index, label in part]
    return iter(tqdm(places, desc=f"writing {output.name}", unit="image", leave=False, disable=None))


def _warn_of_empty_classes(part: Chosen, output: Path) -> None:
    labels = part.images.labels[part.indices]
    empty = len(part.images.class_names) - len(np.unique(labels))
    if empty:
        warn_once(f"{output}: {empty} classes have no {part.images.split} images; a larger limit would give them some")


def _csv(rows: list[list[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
