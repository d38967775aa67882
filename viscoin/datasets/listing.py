"""Which images a folder or a zip holds, of which classes, and how they are split: from names alone."""

import json
import logging
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Literal, TypeVar

import numpy as np

from viscoin.datasets.base import SPLITS
from viscoin.datasets.masks import FOLDER, split_masks
from viscoin.datasets.reading import UNREAD, UNREADABLE, ImageFile
from viscoin.datasets.walking import INDEX, SPLIT_FOLDERS, composed, is_image
from viscoin.errors import Refused
from viscoin.texts import decode

UNLABELLED = ["image"]  # class names of images without classes
SHARES = {"validation": 0.1, "test": 0.2}
Need = Literal["required", "auto", "optional", "none"]
Item = tuple[ImageFile, int]
Labelled = TypeVar("Labelled", bound=tuple[Any, int])
logger = logging.getLogger(__name__)


class NoLabels(Refused):
    """There are no labels."""


class UnusableLabels(Refused):
    """There are labels, but not one class for each image."""


@dataclass(frozen=True)
class Index:
    """What a dataset.json says: labels by file name, None when it has none, and names of the classes."""

    source: str
    labels: dict[str, Any] | None
    class_names: list[str] | None


@dataclass(frozen=True)
class Tree:
    """Image files of a folder or zip by their names relative to `root` ("cat/1.png"), and all folders likewise.

    Names are composed (NFC), whatever form they have on disk, so that "Möwe" is one class everywhere. `masks` are the
    files of a folder `masks/` by the names of their images without suffix (see `masks.py`).
    """

    root: Path
    files: dict[str, ImageFile]
    folders: set[str]
    index: Index | None
    masks: dict[str, ImageFile] = field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """Images with labels.

    `parts` has the key "" for images that are split by seed, or "train", "test" and maybe "validation".
    """

    parts: dict[str, list[Item]]
    class_names: list[str]
    labelled: bool

    @property
    def items(self) -> list[Item]:
        return [item for part in self.parts.values() for item in part]

    def source_of(self, split: str) -> str:
        """The part that the images of a split come from."""
        return split if split in self.parts else "train" if "train" in self.parts else ""

    def split(self, split: str, seed: int) -> list[Item]:
        """The images of a split: as given, or sampled by seed, stratified by class.

        Without `validation` images a tenth of the training images is held out. Without given parts images with
        labels are split 70:10:20 into train, validation and test; those without 90:10, and test equals validation,
        since a generator needs all the images that it can get.
        """
        part = self.parts[self.source_of(split)]
        if split in self.parts and (split != "train" or "validation" in self.parts):
            return part
        if "train" in self.parts or not self.labelled:
            return stratified(part, "train" if split == "train" else "validation", {"validation": 0.1}, seed)
        return stratified(part, split, SHARES, seed)


def make_tree(
    place: Path, files: Mapping[str, ImageFile], folders: Iterable[str], unusable: Iterable[str] = ()
) -> Tree:
    """The images among the files of a folder or zip; single folders around everything are looked through.

    Args:
        files: all that lies in it, images or not, by composed names relative to `place`.
        folders: names of folders likewise; those that `files` lie in are added.
        unusable: names of files and folders that are left out; labels of dataset.json for them are left out, too.

    Raises:
        ValueError: a dataset.json that is malformed or cannot be read.
    """
    warn_of_unread(map(PurePosixPath, files), place)
    images = sorted((name for name in files if is_image(name)), key=lambda name: name.split("/"))
    all_folders = _with_parents([*folders, *(posixpath.dirname(name) for name in images)])
    around = _folder_around(files, images, all_folders)
    index = files.get(f"{around}{INDEX}")
    named = {name.removeprefix(around): files[name] for name in images if name.startswith(around)}
    pictures, masks = split_masks(named)
    below = {name.removeprefix(around) for name in all_folders if name.startswith(around)} - {""}
    return Tree(
        place / around,
        pictures,
        {name for name in below if not masks or name.partition("/")[0] != FOLDER},
        None if index is None else _read_index(index, {name.removeprefix(around) for name in unusable}),
        masks,
    )


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _with_parents(folders: Iterable[str]) -> set[str]:
    """The folders and all that they lie in."""
    found: set[str] = set()
    for folder in folders:
        while folder and folder not in found:
            found.add(folder)
            folder = posixpath.dirname(folder)
    return found


def _folder_around(files: Mapping[str, Any], images: Sequence[str], folders: Set[str]) -> str:
    """ "data/" when all images lie in folders inside `data`, as archivers pack a folder; "" otherwise.

    Folders beside `data` may hold other files, such as annotations; an empty one may be a class that lost its images.
    A folder "train" alone is not looked through, since "test" is missing.
    """
    around = ""
    while True:
        inside = {name.removeprefix(around).partition("/")[0] for name in images if name.startswith(around)}
        if len(inside) != 1 or f"{around}{INDEX}" in files or SPLIT_FOLDERS.get(min(inside).lower()) == "train":
            return around
        deeper = f"{around}{inside.pop()}/"
        holds_folders = any(name.startswith(deeper) for name in folders)
        if deeper.rstrip("/") not in folders or not (holds_folders or f"{deeper}{INDEX}" in files):
            return around
        others = {name for name in folders if name.startswith(around) and "/" not in name.removeprefix(around)}
        others -= {deeper.rstrip("/"), around.rstrip("/")}
        if not all(_holds_no_photographs(files, other) for other in others):
            return around
        around = deeper


def _holds_no_photographs(files: Iterable[str], folder: str) -> bool:
    """Whether a folder holds files, but none that looks like a photograph."""
    suffixes = {_suffix(name) for name in files if name.startswith(f"{folder}/")}
    return bool(suffixes) and not suffixes & UNREAD


def _read_index(file: ImageFile, unusable: Set[str]) -> Index:
    try:
        with file.open("rb") as stream:
            text = stream.read()
    except UNREADABLE as error:
        raise ValueError(f"{file} cannot be read ({error}); repair it, or make it again") from error
    index = parse_index(text, str(file))
    if not index.labels or not unusable:
        return index
    lost = {name for name in index.labels if not unusable.isdisjoint(_with_parents([name]))}
    return replace(index, labels={name: label for name, label in index.labels.items() if name not in lost})


def list_images(tree: Tree, need: Need = "required", skip_unlabelled: bool = False) -> Listing:
    """Images with their classes from dataset.json where there is one, else from folders named like classes.

    Args:
        need: "required": every image must have a class, of two or more; "auto": no labels at all will do as well;
            "optional": so will unusable labels, and classes of one or two images; "none": labels are not looked at.
            Without labels all images are of one class, called "image".
        skip_unlabelled: leave images out that have no label where others do.

    Raises:
        ValueError: no labels, unusable ones, labels of unknown files, or classes that only test images have.
    """
    tree = _with_usual_names(tree)
    if need == "none":
        return _unlabelled(tree)
    try:
        listing = _by_index(tree, tree.index, skip_unlabelled) if tree.index else _by_folder(tree)
        if need != "required" and len({label for _, label in listing.items}) < 2:
            raise NoLabels(None, None, "fewer than two classes")
        if need == "optional":
            _check_large_enough(listing)
        return listing
    except NoLabels:
        if need == "required":
            raise
    except UnusableLabels as error:
        if need != "optional":
            raise
        warn_once(f"labels are not used: {error}")
    return _unlabelled(tree)


def parse_index(text: bytes, source: str) -> Index:
    """Content of a dataset.json: {"labels": [["00000/img00000000.png", 6], ...] or null, "class_names": [...]}.

    `class_names` is ours; other readers ignore it, and other writers leave it out.

    Raises:
        ValueError: not of that form.
    """
    try:
        content = json.loads(decode(text), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is not valid JSON ({error})") from error
    if not isinstance(content, dict) or "labels" not in content:
        raise ValueError(f'{source} must hold {{"labels": [["file name", class number], ...]}} or {{"labels": null}}')
    labels, names = content["labels"], content.get("class_names")
    if labels is not None:
        if not isinstance(labels, list):
            raise ValueError(f'{source}: "labels" must be a list of [file name, class number] or null')
        for entry in labels:
            if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)):
                raise ValueError(f"{source}: label {entry!r:.60} is not of the form [file name, class number]")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(f'{source}: "class_names" must be a list of texts')
    names = None if names is None else [composed(name) for name in names]
    if names is not None and len(set(names)) < len(names):
        raise ValueError(f'{source}: "class_names" holds {_first_repeated(names)!r} twice')
    return Index(source, _labels_by_name(labels or (), source) or None, names)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError(f"the key {_first_repeated([key for key, _ in pairs])!r} stands twice in it")
    return content


def _labels_by_name(entries: Iterable[tuple[str, Any]], source: str) -> dict[str, Any]:
    by_name: dict[str, Any] = {}
    for name, label in entries:
        plain = plain_name(name)
        if plain in by_name and by_name[plain] != label:
            raise Refused(
                None, None, f"{source} has two labels for {name!r}: {by_name[plain]!r:.40} and {label!r:.40}",
                "remove the wrong one",
            )  # fmt: skip
        by_name[plain] = label
    return by_name


def plain_name(name: str) -> str:
    """One spelling of a name in a zip or dataset.json: composed, with "/" between folders, relative to the top."""
    return posixpath.normpath("/" + composed(name).replace("\\", "/")).lstrip("/")


@cache
def warn_once(text: str) -> None:
    logger.warning(text)


def warn_of_unread(files: Iterable[PurePath], root: Path) -> None:
    """Warn, with count, of photographs in formats that are not read, such as those of phones."""
    kinds = Counter(file.suffix.lower() for file in files if file.suffix.lower() in UNREAD)
    if kinds:
        warn_once(
            f"{root}: left out {sum(kinds.values())} images of kinds that are not read ({', '.join(sorted(kinds))}); "
            "convert them to .jpg or .png to use them"
        )


def _first_repeated(names: list[str]) -> str:
    return next(name for i, name in enumerate(names) if name in names[:i])


def _by_index(tree: Tree, index: Index, skip_unlabelled: bool) -> Listing:
    if not index.labels:
        raise NoLabels(
            None, None, f"{index.source} has no labels",
            "add them there, put the images of each class into a folder of its own, or prepare the dataset with "
            "`labels` FILE",
        )  # fmt: skip
    labels = index.labels
    for name in labels:
        if name not in tree.files:
            raise ValueError(f"{index.source} has a label for {name!r}, which is not among the images of {tree.root}")
    for name, label in labels.items():
        if isinstance(label, bool) or not isinstance(label, int) or label < 0:
            raise UnusableLabels(
                None, None,
                f"{index.source}: the label of {name!r} is {label!r:.40}, not a class number counted from 0",
                "prepare the dataset with `labels` none to do without",
            )  # fmt: skip
    if min(labels.values()) > 0 and max(labels.values()) >= len(index.class_names or ()):
        raise UnusableLabels(
            None, None, f"{index.source}: no image has class number 0, the smallest is {min(labels.values())}",
            "class numbers count from 0: subtract that from each of them",
        )  # fmt: skip
    count = max(labels.values()) + 1
    if count > len(index.class_names or labels):
        what = "class names" if index.class_names else "labelled images"
        found = f"{len(index.class_names or labels)} {what}"
        raise UnusableLabels(
            None, None, f"{index.source} has class numbers up to {count - 1}, but only {found}",
            "class numbers count from 0: correct them there",
        )  # fmt: skip
    missing = [name for name in tree.files if name not in labels]
    if missing and not skip_unlabelled:
        raise UnusableLabels(
            None, None,
            f"{index.source} has no label for {len(missing)} of {len(tree.files)} images (first: {missing[0]})",
            "add them, or pass `skip_bad_files` to leave these images out",
        )  # fmt: skip
    if missing:
        warn_once(f"left out {len(missing)} of {len(tree.files)} images of {tree.root} without a label")
    names = index.class_names or [str(number) for number in range(count)]
    _check_several(names, tree.root)
    items = [(name, (tree.files[name], labels[name])) for name in tree.files if name in labels]
    parts = {split: [item for name, item in items if name.startswith(f"{split}/")] for split in SPLITS}
    given = parts["train"] and parts["test"] and sum(map(len, parts.values())) == len(items)
    kept = {split: of_part for split, of_part in parts.items() if of_part}
    return Listing(kept if given else {"": [item for _, item in items]}, names, True)


def _by_folder(tree: Tree) -> Listing:
    bases = _bases(tree)
    base = tree.root / bases[0]
    names = _classes(tree, bases[0])
    if not names:
        expected = f"expected {base}/<class>/*.png or *.jpg, or labels in {INDEX}"
        raise NoLabels(None, None, f"{base} holds no class folders; {expected}")
    _check_several(names, base, any(inner.startswith(f"{names[0]}/") for inner in tree.folders))
    for part in bases[1:]:
        extra = [found for found in _classes(tree, part) if found not in names]
        if extra:
            raise ValueError(f"{tree.root / part} holds classes that {base} has not: {', '.join(extra)}")
    numbers = {name: number for number, name in enumerate(names)}
    parts: dict[str, list[Item]] = {part: [] for part in bases}
    for part in bases:
        for name, file in _below(tree, part):
            folder, inside, _ = name.partition("/")
            if inside:
                parts[part].append((file, numbers[folder]))
        parts[part].sort(key=lambda item: item[1])
    strays = len(tree.files) - sum(map(len, parts.values()))
    if strays and any(parts.values()):
        warn_once(f"left out {strays} images of {tree.root} that lie beside the class folders")
    return Listing(parts, names, True)


def _unlabelled(tree: Tree) -> Listing:
    bases = [""] if tree.index else _bases(tree)
    return Listing({part: [(file, 0) for _, file in _below(tree, part)] for part in bases}, UNLABELLED, False)


def _check_several(names: list[str], where: Path, has_folders: bool = False) -> None:
    if len(names) == 1:
        hint = f"; if the folders in it are the classes, give {where / names[0]}" if has_folders else ""
        raise NoLabels(
            None, None, f"{where} holds one class only ({names[0]!r}); a classifier needs at least two{hint}"
        )


def _check_large_enough(listing: Listing) -> None:
    """UnusableLabels when some class has too few images to be split; a classifier cannot be trained on them."""
    counts = Counter(label for _, label in listing.items)
    label, count = min(counts.items(), key=lambda item: item[1])
    if "" in listing.parts and count < 3:
        raise UnusableLabels(
            None, None, f"class {listing.class_names[label]!r} has {count} images, too few to be split"
        )


def _bases(tree: Tree) -> list[str]:
    """The folders of given splits, "train" first; [""] when there are none."""
    if "train" not in tree.folders:
        return [""]
    if "test" not in tree.folders:
        rename = ", rename 'validation' (or 'val') to 'test'" if "validation" in tree.folders else ""
        raise ValueError(
            f"{tree.root} has a folder 'train' but no folder 'test'; add it{rename}, or put the classes directly in it"
        )
    return [split for split in SPLITS if split in tree.folders]


def _with_usual_names(tree: Tree) -> Tree:
    """The same with the folders of given splits called train, validation and test, where they are Train, val, ..."""
    called: dict[str, str] = {}
    for folder in sorted(tree.folders):
        if split := SPLIT_FOLDERS.get(folder.lower()):
            called[split] = split if split in tree.folders else folder
    if "train" not in called or len(called) == 1 or all(split == folder for split, folder in called.items()):
        return tree
    usual = {folder: split for split, folder in called.items()}

    def renamed(name: str) -> str:
        first, slash, rest = name.partition("/")
        return f"{usual.get(first, first)}{slash}{rest}"

    files = {renamed(name): file for name, file in tree.files.items()}
    index = tree.index
    if index is not None and index.labels:
        index = replace(index, labels={renamed(name): label for name, label in index.labels.items()})
    return replace(tree, files=files, folders={renamed(name) for name in tree.folders}, index=index)


def _classes(tree: Tree, base: str) -> list[str]:
    prefix = f"{base}/" if base else ""
    inside = (name.removeprefix(prefix) for name in tree.folders if name.startswith(prefix))
    return sorted(name for name in inside if name and "/" not in name)


def _below(tree: Tree, base: str) -> Iterable[tuple[str, ImageFile]]:
    prefix = f"{base}/" if base else ""
    return ((name.removeprefix(prefix), file) for name, file in tree.files.items() if name.startswith(prefix))


def stratified(items: Sequence[Labelled], split: str, shares: Mapping[str, float], seed: int) -> list[Labelled]:
    """One split of items that are sampled by seed, class by class.

    Args:
        items: pairs of anything and a class index.
        split: a key of `shares`, or "train" for what the other splits leave.
        shares: part of each class that a split gets, at least one item: {"validation": 0.1, "test": 0.2}.

    Returns:
        the items in order of class and, within it, as given.
    """
    classes: dict[int, list[Labelled]] = defaultdict(list)
    for item in items:
        classes[item[1]].append(item)
    kept = []
    for label, of_class in sorted(classes.items()):
        order = np.random.Generator(np.random.Philox(key=[seed, label])).permutation(len(of_class))
        start = 0
        parts = {}
        for name, share in shares.items():
            count = max(1, round(share * len(of_class)))
            parts[name] = order[start : start + count]
            start += count
        parts["train"] = order[start:]
        kept += [of_class[i] for i in sorted(parts[split])]
    return kept


def stratified_groups(
    items: Sequence[Labelled], groups: Sequence[str], split: str, shares: Mapping[str, float], seed: int
) -> list[Labelled]:
    """As `stratified`, but items of the same group, such as images of one person, are never in two splits.

    A group counts for the class that most of its items have. Each split but "train" takes groups until it has its
    share of the items of that class, so that it may get a few more.
    """
    members: dict[str, list[int]] = {}
    for position, group in enumerate(groups):
        members.setdefault(group, []).append(position)
    by_class: dict[int, list[list[int]]] = {}
    for positions in members.values():
        label = Counter(items[i][1] for i in positions).most_common(1)[0][0]
        by_class.setdefault(label, []).append(positions)
    kept: list[int] = []
    for label, of_class in by_class.items():
        total = sum(len(positions) for positions in of_class)
        order = np.random.Generator(np.random.Philox(key=[seed, label])).permutation(len(of_class))
        waiting = iter(of_class[i] for i in order)
        for name, share in shares.items():
            taken: list[int] = []
            while len(taken) < share * total and (positions := next(waiting, [])):
                taken += positions
            kept += taken if name == split else []
        kept += [i for positions in waiting for i in positions] if split == "train" else []
    return [items[i] for i in sorted(kept)]
