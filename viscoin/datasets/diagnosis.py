"""What stands in the way of using a folder or zip, all of it at once, and which commands that concerns."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from viscoin.config import DatasetConfig
from viscoin.datasets import SPLITS, load_dataset
from viscoin.datasets.files import draw, read_files
from viscoin.datasets.folder import folder_tree
from viscoin.datasets.listing import Listing, Tree, list_images
from viscoin.datasets.reading import ImageFile
from viscoin.datasets.splitting import drawn_split, own_split, parse_shares
from viscoin.datasets.walking import is_image, is_leftover, readable
from viscoin.datasets.zip import open_zip

SOME = 10  # names of classes in one line
FEWEST = 3  # images of a class that is split automatically
WITH_CLASSES = "train classifier, train viscoin, train all, test"
WITHOUT = "train gan, test gan"
SPLITTING, PREPARING = "data split with new `shares`", "data prepare"


@dataclass(frozen=True)
class Found:
    """Images of a folder or zip that is no dataset yet.

    `files` are those that can be used, by split, or under "images" where nothing says how they are split; `labels`
    their classes (or folders) in the same order. `error` is why it is no dataset, None where single classes are.
    """

    class_names: list[str]
    files: dict[str, list[ImageFile]]
    labels: dict[str, list[int]]
    split_by_seed: bool
    error: str | None


@contextmanager
def found_images(name: str, config: DatasetConfig, error: ValueError) -> Iterator[Found]:
    """All images of a folder or zip that cannot be loaded for that reason, readable within the block."""
    with _tree(Path(name)) as (tree, damage):
        listing, reason = _listing(tree)
        if listing is None:
            found = _by_folders(tree, damage or reason or str(error))
        else:
            items = {split: listing.split(split, config.seed) for split in SPLITS}
            drawn = {
                split: [of[i] for i in draw(len(of), getattr(config, split), config.seed)]
                for split, of in items.items()
            }
            found = Found(
                listing.class_names,
                {split: [file for file, _ in of] for split, of in drawn.items()},
                {split: [label for _, label in of] for split, of in drawn.items()},
                "" in listing.parts,
                None,
            )
        yield _readable(found, name, config, tree.root)


@contextmanager
def _tree(path: Path) -> Iterator[tuple[Tree, str | None]]:
    """Images of a folder or zip, and what is wrong with its list of labels, if that stops the usual reader."""
    if path.is_file():
        with open_zip(path) as tree:
            yield tree, None
        return
    try:
        tree, damage = folder_tree(path), None
    except ValueError as error:
        tree, damage = _plain_tree(path), str(error)
    yield tree, damage


def _plain_tree(root: Path) -> Tree:
    """Images of a folder by their names alone."""
    files: dict[str, ImageFile] = {}
    for place, inside, names in os.walk(root):
        inside[:] = sorted(name for name in inside if not is_leftover(name))
        paths = [Path(place, name) for name in sorted(names) if not is_leftover(name)]
        images = [path for path in paths if is_image(path.name)]
        files |= {readable(path.relative_to(root).as_posix()): path for path in images}
    return Tree(root, files, set(), None)


def _listing(tree: Tree) -> tuple[Listing | None, str | None]:
    try:
        return list_images(tree, "required", skip_unlabelled=True), None
    except ValueError as error:
        return None, str(error)


def _by_folders(tree: Tree, reason: str) -> Found:
    folders = [str(PurePosixPath(name).parent) for name in tree.files]
    names = sorted(set(folders)) or ["."]
    labels = [names.index(folder) for folder in folders]
    return Found(names, {"images": list(tree.files.values())}, {"images": labels}, False, reason)


def _readable(found: Found, name: str, config: DatasetConfig, root: Path) -> Found:
    files = list(dict.fromkeys(file for of_split in found.files.values() for file in of_split))
    if not files:
        return replace(found, error=found.error or f"{root} holds no images")
    kept = {files[i] for i in read_files(name, files, config, root).kept}
    rows = {split: [i for i, file in enumerate(of) if file in kept] for split, of in found.files.items()}
    return replace(
        found,
        files={split: [found.files[split][i] for i in of] for split, of in rows.items()},
        labels={split: [found.labels[split][i] for i in of] for split, of in rows.items()},
    )


def lacking(class_names: Sequence[str], counts: Mapping[str, np.ndarray], split_by_seed: bool) -> list[str]:
    """Which classes have too few images, in one line for each way of having too few."""
    if set(counts) != set(SPLITS):
        return []
    total = np.sum(list(counts.values()), axis=0)
    few = total < (FEWEST if split_by_seed else 0)
    found = []
    if few.any():
        listed = some([f"{class_names[i]!r} ({total[i]})" for i in np.flatnonzero(few).tolist()])
        found.append(f"classes with fewer than the {FEWEST} images that an automatic split needs: {listed}")
    for split, of_split in counts.items():
        if empty := [repr(class_names[i]) for i in np.flatnonzero((of_split == 0) & ~few).tolist()]:
            found.append(f"classes without images in {split}: {some(empty)}")
    return found


def problems_of(error: str | None, classes: Sequence[str], broken: int, copies: int) -> list[str]:
    """Everything that stands in the way or makes results doubtful, worst first.

    Args:
        error: why it is no dataset at all.
        classes: what `lacking` has found.
        broken: number of files that cannot be used.
        copies: number of images that lie in several splits.
    """
    found = [] if error is None else [error]
    found += [f"{text}; add images, or remove these classes" for text in classes]
    if broken:
        found.append(f"files that cannot be used: {broken}; repair or remove them, or pass `skip_bad_files`")
    if copies:
        found.append(f"images in several splits, which makes results too good: {copies}; remove the copies")
    return found


def some(names: Sequence[str]) -> str:
    return ", ".join(names[:SOME]) + (f" and {len(names) - SOME} more" if len(names) > SOME else "")


def needs_of_commands(name: str, config: DatasetConfig, classes: Sequence[str], broken: int) -> dict[str, str]:
    """What each group of commands will still need of a folder or zip, "" for nothing: found by trying.

    Arguments are those of `problems_of`.
    """
    tries: dict[str, Callable[[], object]] = {
        WITH_CLASSES: lambda: [load_dataset(name, split, config) for split in SPLITS],
        WITHOUT: lambda: [load_dataset(name, split, config, labelled=False) for split in SPLITS],
        SPLITTING: lambda: drawn_split(own_split(name, config), parse_shares("80:10:10"), config.seed),
        PREPARING: lambda: _prepared(Path(name)),
    }
    needs = {command: _missing(work) for command, work in tries.items()}
    for command in (WITH_CLASSES, SPLITTING):
        needs[command] = needs[command] and ("; ".join(classes) or needs[command])
    skipping = f"`skip_bad_files`, or files that can be used in place of {broken}" if broken else ""
    return {command: need or skipping for command, need in needs.items()}


def _prepared(path: Path) -> None:
    with _tree(path) as (tree, damage):
        if damage or not tree.files:
            raise ValueError(damage or f"{path} holds no images")
        list_images(tree, "auto", skip_unlabelled=True)


def _missing(work: Callable[[], object]) -> str:
    try:
        work()
    except ValueError as error:
        return str(error)
    return ""


def describe_diagnosis(problems: Sequence[str], commands: Mapping[str, str]) -> str:
    """Problems and needs as lines of text."""
    lines = [f"problems                {len(problems)}", *(f"  {problem}" for problem in problems)]
    width = max(map(len, commands), default=0)
    needs = [f"  {command:<{width}}  {(need and f'needs: {need}') or 'ready'}" for command, need in commands.items()]
    return "\n".join([*lines, *(["commands", *needs] if needs else [])])
