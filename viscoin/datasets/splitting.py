"""Splits as files: which image is of which class and split, as a CSV and as a tree of folders."""

import csv
import math
import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import numpy as np
from tqdm import tqdm

from viscoin.config import DatasetConfig
from viscoin.datasets import SPLITS, check_dataset_name, dataset_names, load_dataset
from viscoin.datasets.folder import folder_tree
from viscoin.datasets.listing import list_images, stratified, stratified_groups, warn_once
from viscoin.datasets.output import check_output, new_folder
from viscoin.datasets.walking import composed, free_name
from viscoin.datasets.zip import open_zip
from viscoin.errors import Refused, reason_of
from viscoin.files import atomic_path
from viscoin.texts import read_table

CSV_NAME = "split.csv"
TREES = ("none", "link", "copy")
COLUMNS = ("file", "class", "split")
# What images of one dataset have in common, by file: they must not be in several splits.
GROUPS = {"pneumonia": "viscoin.datasets.pneumonia:patient"}


@dataclass(frozen=True)
class Row:
    """An image: its file below the folder of the dataset, as text; class index; split; and its path on disk."""

    file: str
    label: int
    split: str
    path: Path | None


@dataclass(frozen=True)
class Split:
    """All images of a dataset with their splits. `root` is the folder that the file names are relative to."""

    name: str
    root: Path | None
    class_names: list[str]
    rows: list[Row]

    def counts(self) -> dict[str, np.ndarray]:
        """Images of each class (C,), by split."""
        labels = {split: [row.label for row in self.rows if row.split == split] for split in SPLITS}
        return {
            split: np.bincount(np.array(of_split, dtype=int), minlength=len(self.class_names))
            for split, of_split in labels.items()
        }


@dataclass(frozen=True)
class Written:
    """A split that was written to `folder`: its split.csv and, unless `tree` is "none", a folder dataset."""

    split: Split
    folder: Path
    tree: str


def split_dataset(
    config: DatasetConfig,
    out: Path,
    shares: str | None = None,
    source: Path | None = None,
    tree: str | None = None,
    seed: int = 0,
    force: bool = False,
) -> Written:
    """Write the split of a dataset, its own or a new one, as `out/split.csv` and as a folder dataset.

    `out` appears under its name when it is complete, never in part.

    Args:
        shares: of train, validation and test, as in "80:10:10", to split all images anew by `seed`.
        source: a split.csv to follow instead.
        tree: "link" or "copy" for `out/<split>/<class>/<image>`, "none" for the CSV alone; None means links where
            the split is new and the images are files.
        force: replace an output that exists.

    Raises:
        ValueError: arguments that do not fit, an output that exists, or a dataset that cannot be loaded or split.
    """
    if shares and source:
        raise Refused(None, None, "`shares` and `source` exclude each other", "give one of them")
    if tree not in (None, *TREES):
        raise Refused("tree", tree, "unknown", f"choose {', '.join(TREES)}")
    parsed = parse_shares(shares) if shares else None
    location = config.path if config.name in dataset_names() else config.name
    check_output(out, Path(location) if location else None, force, CSV_NAME)
    if out.suffix.lower() == ".zip":
        raise Refused("out", out, "a split is written as a folder", "give a name without .zip")
    split = own_split(config.name, config)
    if parsed:
        split = drawn_split(split, parsed, seed)
    elif source:
        split = read_split(source, split)
    if tree is None:
        tree = "link" if (shares or source) and all(row.path for row in split.rows) else "none"
    if tree == "none":
        with new_folder(out) as partial:
            write_csv(split, partial / CSV_NAME)
    else:
        write_tree(split, out, tree)
    return Written(split, out, tree)


def own_split(name: str, config: DatasetConfig) -> Split:
    """The split that training and tests use.

    Of a folder or zip only names are looked at. Images without files are named as `data NAME export` would name them.
    """
    if name not in dataset_names():
        return _split_of_tree(name, config)
    rows = []
    parts = {split: load_dataset(name, split, config) for split in SPLITS}
    texts = [text for part in parts.values() for text in part.files or ()]
    root = Path(os.path.commonpath([Path(text).resolve().parent for text in texts])) if texts else None
    for split, part in parts.items():
        folders = class_folders(part.class_names)
        for i, label in enumerate(part.labels.tolist()):
            if part.files is None or root is None:
                rows.append(Row(f"{split}/{folders[label]}/{i:06d}.png", label, split, None))
            else:
                path = Path(part.files[i]).resolve()
                rows.append(Row(path.relative_to(root).as_posix(), label, split, path))
    return Split(name, root, parts["train"].class_names, rows)


def _split_of_tree(name: str, config: DatasetConfig) -> Split:
    check_dataset_name(name)
    root = Path(name)
    with open_zip(root) if root.is_file() else nullcontext(folder_tree(root, config.skip_bad_files)) as tree:
        listing = list_images(tree, "required", config.skip_bad_files)
        names = {str(file): name for name, file in tree.files.items()}
        rows = [
            Row(names[str(file)], label, split, file if isinstance(file, Path) else None)
            for split in SPLITS
            for file, label in listing.split(split, config.seed)
        ]
    return Split(name, tree.root, listing.class_names, rows)


def parse_shares(text: str) -> dict[str, float]:
    """ "80:10:10" -> parts of train, validation and test, which sum to 1.

    Raises:
        Refused: not three positive numbers.
    """
    try:
        shares = [float(part) for part in text.split(":")]
    except ValueError:
        shares = []
    if len(shares) != len(SPLITS) or not all(math.isfinite(share) and share > 0 for share in shares):
        expected = "expected three positive numbers for train, validation and test"
        raise Refused("shares", text, expected, "as in 80:10:10")
    return {split: share / sum(shares) for split, share in zip(SPLITS, shares, strict=True)}


def drawn_split(split: Split, shares: dict[str, float], seed: int) -> Split:
    """All images split anew by seed, class by class; images that belong together stay in one split.

    Raises:
        ValueError: a class has too few images to be in each split.
    """
    rows = sorted(split.rows, key=lambda row: (row.label, row.file))
    items = [(i, row.label) for i, row in enumerate(rows)]
    taken = {name: share for name, share in shares.items() if name != "train"}
    group = _group_of(split.name)
    chosen: dict[int, str] = {}
    for name in SPLITS:
        if group is None:
            kept = stratified(items, name, taken, seed)
        else:
            groups = [group(row.path) if row.path else row.file for row in rows]
            kept = stratified_groups(items, groups, name, taken, seed)
        chosen |= {i: name for i, _ in kept}
    drawn = replace(split, rows=[replace(row, split=chosen[i]) for i, row in enumerate(rows)])
    check_classes(drawn, "shares", ":".join(f"{100 * share:.4g}" for share in shares.values()))
    return drawn


def _group_of(name: str):  # type: ignore[no-untyped-def]
    if name not in GROUPS:
        return None
    module, function = GROUPS[name].split(":")
    return getattr(import_module(module), function)


def check_classes(split: Split, parameter: str, value: str | Path) -> None:
    """Raise Refused unless every class has images in every split."""
    for name, counts in split.counts().items():
        if not counts.all():
            empty = split.class_names[int(np.argmin(counts))]
            raise Refused(
                parameter, value, f"class {empty!r} would have no {name} images",
                "give it more images (three at least), leave the class out, or choose other shares",
            )  # fmt: skip


def read_split(source: Path, split: Split) -> Split:
    """The images of `split` with classes and splits from a CSV of the columns file, class and split.

    Images that the file does not name are left out with a warning.

    Raises:
        ValueError: not such a file, an image that the dataset has not, an unknown class or split, an image named
            twice, or a class without images in one of the splits; the line is named.
    """
    known = {composed(row.file): row for row in split.rows}
    numbers = {composed(name): number for number, name in enumerate(split.class_names)}
    rows: dict[str, Row] = {}
    for line, entry in read_table(source, COLUMNS, "source", f"give a {CSV_NAME} of data split"):
        where = f"line {line}: "
        file, label, part = (composed(entry[column]) for column in COLUMNS)
        if file not in known:
            reason = f"{where}{file!r} is not among the images of {split.name}"
            raise Refused("source", source, reason, "correct or remove the line")
        if label not in numbers:
            reason = f"{where}{label!r} is no class of {split.name}"
            raise Refused("source", source, reason, f"its classes are {_some(numbers)}")
        if part not in SPLITS:
            raise Refused("source", source, f"{where}unknown split {part!r}", f"choose {', '.join(SPLITS)}")
        if file in rows:
            raise Refused(
                "source", source, f"{where}{file!r} stands in an earlier line too", "an image is in one split only"
            )
        rows[file] = replace(known[file], label=numbers[label], split=part)
    if len(rows) < len(known):
        first = next(file for file in known if file not in rows)
        left = f"left out {len(known) - len(rows)} of {len(known)} images of {split.name}"
        warn_once(f"{left} that {source} does not name (first: {first})")
    read = replace(split, rows=list(rows.values()))
    check_classes(read, "source", source)
    return read


def _some(names: Iterable[str], most: int = 10) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (", …" if len(listed) > most else "")


def write_csv(split: Split, path: Path) -> Path:
    """Write the split as a CSV of the columns file, class and split; the file appears when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows((row.file, split.class_names[row.label], row.split) for row in split.rows)
    return path


def write_tree(split: Split, output: Path, tree: str = "link") -> Path:
    """Write `output/<split>/<class>/<image>`, for `tree` "link" or "copy" of the images, and `output/split.csv`.

    `output` is then a folder dataset; it appears when it is complete.

    Raises:
        ValueError: the images are no files on disk, or the system makes no links.
    """
    if any(row.path is None for row in split.rows):
        raise Refused(
            "tree", tree, f"the images of {split.name} are no files on disk",
            "choose none for the CSV alone, or unpack or export the dataset first",
        )  # fmt: skip
    folders = class_folders(split.class_names)
    renamed = [(name, folder) for name, folder in zip(split.class_names, folders) if name != folder]
    if renamed:
        name, folder = renamed[0]
        warn_once(
            f"{output}: {len(renamed)} of {len(folders)} classes get another name, as folders need it "
            f"(first: {folder!r} for {name!r})"
        )
    used: set[str] = set()
    with new_folder(output) as partial:
        for name in SPLITS:
            for folder in folders:
                (partial / name / folder).mkdir(parents=True)
        for row in tqdm(split.rows, desc=f"writing {output.name}", unit="image", leave=False, disable=None):
            path = row.path or Path()
            file = free_name(f"{row.split}/{folders[row.label]}/{path.name}", used, str.lower)
            used.add(file.lower())
            _place(path, partial / file, tree)
        write_csv(split, partial / CSV_NAME)
    return output


def _place(path: Path, target: Path, tree: str) -> None:
    if tree == "copy":
        shutil.copy2(path, target)
        return
    try:
        target.symlink_to(path.resolve())
    except OSError as error:
        raise Refused("tree", tree, f"cannot make links here ({reason_of(error)})", "choose copy") from error


def class_folders(class_names: Sequence[str]) -> list[str]:
    """A name for the folder of each class: the class name, without what file systems do not take."""
    plain = [_without_marks(name) for name in class_names]
    folders: list[str] = []
    used, wanted = set[str](), {name.lower() for name in plain}
    for number, name in enumerate(plain):
        folder = name
        while folder.lower() in used or (folder != name and folder.lower() in wanted):
            folder = f"{name}~{number}"
            number += 1
        folders.append(folder)
        used.add(folder.lower())
    return folders


def _without_marks(name: str) -> str:
    return "".join("-" if c in '/\\:*?"<>|' or ord(c) < 32 else c for c in name).strip(" .")[:120] or "class"
