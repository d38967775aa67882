"""Images of folders under the classes of a model: some of them, others by a map, or none at all."""

import csv
import difflib
import io
import json
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from viscoin.config import DatasetConfig
from viscoin.datasets import ImageDataset, dataset_names, load_dataset, load_unlabelled
from viscoin.datasets.folder import unchecked_tree
from viscoin.datasets.listing import NoLabels, list_images
from viscoin.datasets.walking import composed
from viscoin.datasets.zip import open_zip
from viscoin.errors import Refused
from viscoin.inference.batches import evaluation, image_batches
from viscoin.models.files import LoadedModel
from viscoin.texts import NotText, read_lines, read_text, separator_of

IGNORED = "none"  # in place of a class map: the folders say nothing
BATCH = 32
Unlabelled = Literal["refused", "ignored", "whole", "parts"]
logger = logging.getLogger(__name__)


def read_names(text: str) -> list[str]:
    """Names of classes, separated by commas; or those of a file, one a line."""
    if Path(text).is_file():
        return [composed(name) for name in read_lines(Path(text), "classes") if name]
    return [composed(name.strip()) for name in text.split(",") if name.strip()]


def read_class_map(path: Path) -> dict[str, str]:
    """Names of folders -> names of classes, from a JSON object, or a CSV of two columns with or without a header.

    Raises:
        Refused: missing, neither of both, or a folder that stands there twice.
    """
    try:
        text = read_text(path)
    except (OSError, NotText) as error:
        raise Refused("class_map", path, "cannot be read as text", "give a CSV or JSON file") from error
    pairs = _json_pairs(path, text) if text.lstrip().startswith("{") else _csv_pairs(path, text)
    names = [name for name, _ in pairs]
    if not pairs:
        raise Refused("class_map", path, "is empty", "write a folder and a class a line, as in `poodles,dog`")
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise Refused("class_map", path, f"names folder {twice!r} twice", "remove one line")
    return dict(pairs)


def _json_pairs(path: Path, text: str) -> list[tuple[str, str]]:
    try:
        found = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        raise Refused("class_map", path, f"is no valid JSON ({error})") from error
    if not all(isinstance(name, str) and isinstance(target, str) for name, target in found):
        raise Refused("class_map", path, "does not hold an object of texts", 'write {"poodles": "dog", ...}')
    return [(composed(name), composed(target)) for name, target in found]


def _csv_pairs(path: Path, text: str) -> list[tuple[str, str]]:
    start, separator = separator_of(text.strip())
    text = text.strip().split("\n", start)[start]
    rows = [
        [cell.strip() for cell in row]
        for row in csv.reader(io.StringIO(text), delimiter=separator)
        if any(map(str.strip, row))
    ]
    for number, row in enumerate(rows, 1):
        if len(row) != 2:
            raise Refused("class_map", path, f"row {number} is no folder and class: {', '.join(row)!r:.80}")
    if rows and [cell.lower() for cell in rows[0]] in (["folder", "class"], ["name", "class"]):
        rows = rows[1:]
    return [(composed(name), composed(target)) for name, target in rows]


def images_for(
    loaded: LoadedModel, name: str, split: str, config: DatasetConfig, labelled: bool, parameter: str,
    class_map: Path | None, unlabelled: Unlabelled,
) -> ImageDataset:  # fmt: skip
    """Images for a model, whose labels are of its classes; arguments and errors as `loading.load_subject`."""
    foreign = name not in dataset_names()
    ignored = class_map is not None and str(class_map) == IGNORED
    if class_map is not None and not foreign:
        raise Refused("class_map", class_map, f"dataset {name!r} has classes of its own", "omit it")
    if ignored and unlabelled == "refused":
        raise Refused("class_map", IGNORED, "images without classes have no accuracy to measure", "give a file")
    if foreign and unlabelled != "refused" and (ignored or is_unlabelled(Path(name))):
        parts = unlabelled == "parts"
        images = load_dataset(name, "train", config, labelled=False) if parts else load_unlabelled(Path(name), config)
        images.labelled, images.class_names = False, list(loaded.class_names)
        counted = "it is not known what they show" if unlabelled == "ignored" else "they count as what f predicts"
        logger.warning("%s: %d images without classes; %s, and no accuracy is given", name, len(images), counted)
        return images
    images = load_dataset(name, split, config, labelled)
    if not labelled:
        return images
    if foreign:
        match_classes(images, loaded.class_names, loaded.path, parameter, class_map)
    else:
        check_classes(loaded, images, parameter)
    return images


def images_of_classes(
    name: str, split: str, config: DatasetConfig, known: Sequence[str], source: Path | None = None,
    class_map: str | None = None,
) -> ImageDataset:  # fmt: skip
    """A split to learn on what f says, under the classes that f knows.

    Images of a folder or zip without classes, or with a `class_map` of "ignored", stay unlabelled. Other folders may
    have some of the classes of f; those of a known dataset must be f's own.

    Args:
        known: class names of f, whose file is `source`.
        class_map: file of `read_class_map`, or "ignored" (in a recipe, "none" is nothing).

    Raises:
        Refused: images of other classes than f knows.
    """
    foreign, ignored = name not in dataset_names(), class_map == "ignored"
    if class_map is not None and not foreign:
        raise Refused("class_map", class_map, f"dataset {name!r} has classes of its own", "omit it")
    if foreign and (ignored or is_unlabelled(Path(name))):
        images = load_dataset(name, split, config, labelled=False)
        images.labelled, images.class_names = False, list(known)
        logger.info("%s: %d %s images without classes; no accuracy is given", name, len(images), split)
        return images
    images = load_dataset(name, split, config)
    if foreign:
        match_classes(images, known, source, "classifier", None if class_map is None else Path(class_map))
    else:
        check_names(images, known, source, "classifier")
    return images


def check_classes(loaded: LoadedModel, dataset: ImageDataset, parameter: str) -> None:
    """Raise Refused unless model and dataset have the same classes in the same order."""
    check_names(dataset, loaded.class_names, loaded.path, parameter)


def check_names(dataset: ImageDataset, known: Sequence[str], source: Path | None, parameter: str) -> None:
    """Raise Refused unless a dataset has the classes of a model, whose file is `source`, in the same order."""
    if list(map(composed, known)) != list(map(composed, dataset.class_names)):
        raise Refused(
            parameter, source,
            f"the model knows {listed(known)}, but dataset {dataset.name!r} has {listed(dataset.class_names)}",
            "give a model and a `dataset` that belong together",
        )  # fmt: skip


def is_unlabelled(path: Path) -> bool:
    """Whether a folder or zip has no class folders, or only one, and no list of labels."""
    with nullcontext(unchecked_tree(path)) if path.is_dir() else open_zip(path) as tree:
        try:
            list_images(tree, "required", skip_unlabelled=True)
        except NoLabels:
            return bool(tree.files)
        except ValueError:  # whoever loads the images will say it
            return False
    return False


def match_classes(
    data: ImageDataset, known: Sequence[str], source: Path | None, parameter: str, class_map: Path | None = None
) -> None:
    """Give the images of a dataset the numbers and names of the classes of a model.

    Args:
        known: the classes of the model, whose file is `source` and which the caller calls `parameter`.
        class_map: file of `read_class_map`; folders that it does not name are called as classes are.

    Raises:
        Refused: a folder is no class of the model, or the map names a class that is none.
    """
    names = {composed(name): number for number, name in enumerate(known)}
    given = {} if class_map is None else read_class_map(class_map)
    for target in given.values():
        if target not in names:
            near = difflib.get_close_matches(target, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it knows {listed(known)}"
            model = "the model" if source is None else f"the model {source}"
            raise Refused("class_map", class_map, f"{target!r} is no class of {model}", hint)
    own = [composed(name) for name in data.class_names]
    targets = [given.get(name, name) for name in own]
    if unknown := [name for name, target in zip(own, targets, strict=True) if target not in names]:
        reason = f"the model knows {listed(known)}, but dataset {data.name!r} has {listed(data.class_names)}"
        if class_map is not None:
            raise Refused("class_map", class_map, f"says nothing of {listed(unknown)}; {reason}", "add them")
        remedy = "give a model and a `dataset` that belong together, or a `class_map`"
        raise Refused(parameter, source, reason, remedy)
    numbers = np.array([names[target] for target in targets], dtype=np.int64)
    if len(set(numbers.tolist())) < len(known):
        logger.info(
            "%s has images of %d of the %d classes of the model, which chooses among all of them",
            data.name, len(set(numbers.tolist())), len(known),
        )  # fmt: skip
    data.labels, data.class_names = numbers[data.labels], list(known)


def predict_labels(data: ImageDataset, model: nn.Module, known: Sequence[str], device: torch.device) -> None:
    """Let the images of an unlabelled dataset count as what f predicts, which is said.

    Args:
        model: a classifier, or an ensemble with one.
    """
    f = getattr(model, "classifier", model).to(device)
    found = np.zeros(len(data), np.int64)
    with evaluation(f, device):
        for images, indices in image_batches(data, np.arange(len(data)), BATCH, device, "predictions"):
            found[indices] = f(images).argmax(1).cpu().numpy()
    data.labels, data.class_names = found, list(known)


def listed(names: Sequence[str], most: int = 30) -> str:
    """How many classes, and which."""
    return f"{len(names)} classes ({', '.join(names[:most])}{', …' if len(names) > most else ''})"
