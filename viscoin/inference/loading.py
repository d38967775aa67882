"""A model together with what it looks at: found by name, path or bytes, checked to belong together, on a device."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from viscoin.config import DEFAULT_DATASET, DatasetConfig
from viscoin.datasets import (
    COMPOSED,
    ImageDataset,
    check_dataset_name,
    load_dataset,
    locate_dataset,
    plain_name,
    to_images,
)
from viscoin.datasets.depth import Whites
from viscoin.datasets.files import report_whites
from viscoin.datasets.masks import object_box
from viscoin.datasets.reading import CROP, BadImage, Fit, ImageFile, image_size, read_square
from viscoin.errors import Refused, regular
from viscoin.inference.classes import (
    Unlabelled,
    check_classes,
    images_for,
    images_of_classes,
    listed,
    predict_labels,
)
from viscoin.inference.devices import resolve_device
from viscoin.models.files import LoadedModel, find_model, load_model
from viscoin.models.judge import Judge

# What a model keeps to with other images than those it was trained on.
OF_THE_MODEL = ("resolution", "seed", "fit", "crop_share", "interpolation")
DONE = {
    "crop": "centre-cropped and resized", "pad": "padded and resized", "squash": "squashed",
    "object": "cut to its object and resized",
}  # fmt: skip
SEEN, ENLARGED = 0.9, 2  # share of an image, and times; what is less, or more, is said
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """A model on its device, the names of its classes, and the configuration of the data that it was made for."""

    model: Any
    path: Path
    device: torch.device
    class_names: list[str]
    config: DatasetConfig


@dataclass(frozen=True)
class SubjectWithImages(Subject):
    """A model on its device with images of the size it was made for, and of its classes.

    Attributes:
        expected: results by name, from the recipe of the model.
    """

    images: ImageDataset
    expected: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Pictures:
    """Some images to look at.

    Attributes:
        images: (B, 3, H, W) in [-1, 1].
        names: one for each, all different.
        labels: (B,), None where they are not known.
        indices: of the images in their dataset, () for files.
        prepared: how each was made a square of that size, "" where it was one; () for those of a dataset.
    """

    images: Tensor
    names: list[str]
    labels: np.ndarray | None = None
    indices: tuple[int, ...] = ()
    prepared: tuple[str, ...] = ()


# --- models ------------------------------------------------------------------------------------------------------


def load_alone(kind: str, model: Path | None, device: str = "auto", dataset: str = DEFAULT_DATASET) -> Subject:
    """The model of that kind that a path means, the newest or the shipped one of the dataset; without images.

    Raises:
        ValueError: no such model, or no such device.
    """
    where = resolve_device(device)
    loaded = load_model(find_model(kind, model, dataset), kind)
    _note_chosen(loaded)
    config = DatasetConfig.model_validate(loaded.recipe["dataset"])
    return Subject(loaded.model.to(where), loaded.path, where, loaded.class_names, config)


def _check_there(dataset: str, model: Path, parameter: str) -> None:
    """Raise Refused where the images that a model was made for are not here, as those of an imported one."""
    try:
        check_dataset_name(dataset)
    except Refused:  # it is there, and cannot be used
        raise
    except ValueError as error:
        raise Refused(
            parameter, model, f"its images, {dataset!r}, are no dataset that is here",
            "name images: `dataset`, or files where the command takes them",
        ) from error  # fmt: skip


def load_subject(
    kind: str,
    model: Path | None = None,
    dataset: str | None = None,
    dataset_path: str | None = None,
    *,
    split: str = "test",
    device: str = "auto",
    skip_bad_files: bool = False,
    parameter: str | None = None,
    class_map: Path | None = None,
    unlabelled: Unlabelled = "refused",
) -> SubjectWithImages:
    """The model of that kind that a path means, the newest or the shipped one, and the images of a split to try it on.

    Args:
        dataset: None means the dataset of the given model, else birds.
        dataset_path: see `locate_dataset`.
        parameter: what the caller calls `model`, for errors; default: the kind.
        class_map: of a folder or zip, see `classes.read_class_map`; "none": its folders are no classes.
        unlabelled: whether images without classes will do: all of a folder or zip, or the training part of a split;
            they count as what f predicts, unless that is "ignored", too.

    Raises:
        ValueError: unusable model or dataset, or the dataset has classes that the model has not (of which an
            unconditional generator knows nothing).
    """
    where = resolve_device(device)
    dataset, path = locate_dataset(dataset, dataset_path)
    if dataset is not None:
        check_dataset_name(dataset)
        dataset = plain_name(dataset)
    loaded = load_model(find_model(kind, model, dataset or DEFAULT_DATASET), kind)
    _note_chosen(loaded)
    saved, expected = loaded.recipe["dataset"], loaded.recipe.get("expected", {})
    name = dataset or (saved["name"] if model is not None else DEFAULT_DATASET)
    if dataset is None:
        _check_there(name, loaded.path, parameter or kind)
    if name != saved["name"]:
        saved, expected = {key: saved[key] for key in OF_THE_MODEL if key in saved}, {}
    if path is not None:
        saved = {**saved, "path": path}
    config = DatasetConfig.model_validate({**saved, "name": name, "skip_bad_files": skip_bad_files})
    labelled = kind != "gan" or loaded.model.c_dim > 0
    images = images_for(loaded, name, split, config, labelled, parameter or kind, class_map, unlabelled)
    subject = SubjectWithImages(
        loaded.model.to(where), loaded.path, where, loaded.class_names, config, images, expected
    )
    if not images.labelled and unlabelled != "ignored":
        predict_labels(images, subject.model, subject.class_names, where)
    return subject


def load_validation(subject: SubjectWithImages, class_map: Path | None = None) -> ImageDataset | None:
    """Validation images of the dataset that a subject has test images of; None where those have no classes."""
    if not subject.images.labelled:
        return None
    name, config = subject.config.name, subject.config
    given = None if class_map is None else str(class_map)
    return images_of_classes(name, "validation", config, subject.class_names, subject.path, given)


def _note_chosen(loaded: LoadedModel) -> None:
    """Say so where g knows some of the classes of f only."""
    known = getattr(loaded.model, "explained_classes", loaded.class_names)
    if len(known) < len(loaded.class_names):
        logger.info(
            "g explains %s of the %d of f: its probabilities are among these, those of f among all", listed(known),
            len(loaded.class_names),
        )  # fmt: skip


def load_classifier(model: Path | None, config: DatasetConfig) -> LoadedModel:
    """f of a path, else the newest or shipped one of the dataset; ValueError unless it takes its images."""
    loaded = load_model(find_model("classifier", model, config.name), "classifier")
    check_resolution(loaded, config.resolution, "classifier")
    own, given = Fit.of(DatasetConfig.model_validate(loaded.recipe["dataset"])), Fit.of(config)
    if own != given and config.name not in COMPOSED:
        logger.warning(
            "f saw its images by fit %s (crop_share %s, %s), these are by fit %s (%s, %s): set dataset.fit, "
            "dataset.crop_share and dataset.interpolation to be the same",
            own.mode, own.crop_share, own.interpolation, given.mode, given.crop_share, given.interpolation,
        )  # fmt: skip
    return loaded


def optional_classifier(model: Path | None, config: DatasetConfig, needed: bool = False) -> LoadedModel | None:
    """f where there is one that takes the images of the dataset; ValueError where one was named or is needed."""
    try:
        return load_classifier(model, config)
    except ValueError:
        if needed or model is not None:
            raise
        return None


def load_ensemble(model: Path | None, config: DatasetConfig) -> LoadedModel:
    """The ensemble of a path, else the newest or shipped one; ValueError unless it takes the images of the dataset."""
    loaded = load_model(find_model("viscoin", model, config.name), "viscoin")
    check_resolution(loaded, config.resolution, "viscoin")
    check_classes(loaded, load_dataset(config.name, "validation", config), "viscoin")
    return loaded


def find_judge(model: Path | None, dataset: ImageDataset) -> LoadedModel | None:
    """The judge of a path, else the newest or shipped one if it reads the attributes of this dataset; else None.

    Raises:
        Refused: the dataset has no attributes, or the judge that was named reads others, or images of another size.
        ValueError: there is no such file.
    """
    if not dataset.attribute_names:
        if model is not None:
            raise Refused("judge", model, f"dataset {dataset.name!r} has no attributes to be seen", "omit it")
        return None
    try:
        path = find_model("judge", model, dataset.name)
    except ValueError:
        if model is not None:
            raise
        return None
    loaded = load_model(path, "judge")
    judge: Judge = loaded.model
    differs = None
    if judge.attributes != list(dataset.attribute_names):
        differs = f"it reads {len(judge.attributes)} attributes that are not those of dataset {dataset.name!r}"
    elif judge.resolution != dataset.resolution:
        differs = f"made for {judge.resolution} px images, not for {dataset.resolution} px"
    if differs is None:
        return loaded
    if model is not None:
        raise Refused("judge", path, differs, "train one on these images with `train judge`")
    logger.warning("no judge: %s %s", path, differs)
    return None


def check_resolution(loaded: LoadedModel, resolution: int, parameter: str) -> None:
    """Raise Refused unless the model was made for images of that side."""
    own = loaded.recipe["dataset"]["resolution"]
    if own != resolution:
        raise Refused(
            parameter, loaded.path, f"made for {own} px images, not for {resolution} px",
            f"set dataset.resolution={own}, or give another model",
        )  # fmt: skip


# --- pictures ----------------------------------------------------------------------------------------------------


def load_pictures(
    kind: str,
    model: Path | None,
    files: Sequence[Path | bytes] | None,
    dataset: str | None,
    dataset_path: str | None,
    indices: Sequence[int] | None,
    count: int,
    *,
    device: str = "auto",
    seed: int = 0,
    skip_bad_files: bool = False,
    parameter: str | None = None,
    class_map: Path | None = None,
) -> tuple[Subject, Pictures]:
    """A model, and image files or test images of its dataset to look at.

    Args:
        files: images; without a dataset, none is loaded.
        indices: of test images; None draws `count` of them by the seed.

    Raises:
        Refused: both files and indices, or a wrong one.
        ValueError: as `load_subject`.
    """
    if files and indices is not None:
        raise Refused("image_indices", None, "chooses test images of a dataset", "give it or `image` files, not both")
    dataset, dataset_path = locate_dataset(dataset, dataset_path)
    if files and dataset is None:
        alone = load_alone(kind, model, device)
        return alone, read_pictures(files, alone.config.resolution, skip_bad_files, Fit.of(alone.config))
    subject = load_subject(
        kind, model, dataset, dataset_path, device=device, skip_bad_files=skip_bad_files, parameter=parameter,
        class_map=class_map, unlabelled="ignored",
    )  # fmt: skip
    if files:
        return subject, read_pictures(files, subject.config.resolution, skip_bad_files, Fit.of(subject.config))
    return subject, choose_pictures(subject, indices, count, seed)


def read_pictures(
    files: Sequence[Path | bytes], resolution: int, skip_bad_files: bool = False, fit: Fit = CROP
) -> Pictures:
    """Images from files or their bytes, fitted into squares, which is logged, with their names.

    Args:
        fit: as the images that a model was trained on were; "object" goes by alpha channels.
        skip_bad_files: leave out files that are missing or no images, with a warning.

    Raises:
        Refused: a file that is missing or no image, or all are.
    """
    given = [_Bytes(f"image {i}", file) if isinstance(file, bytes) else file for i, file in enumerate(files)]
    there = [file for file in given if isinstance(file, _Bytes) or file.is_file()]
    whites = report_whites(there, "of the given images")
    pixels, sources, prepared = [], [], []
    for number, source in enumerate(given):
        try:
            square, how = _read(source if isinstance(source, _Bytes) else regular(source), resolution, whites, fit)
            pixels.append(square)
            prepared.append(how)
            sources.append(source)
        except Refused as error:
            if not skip_bad_files or (number == len(given) - 1 and not sources):
                raise
            logger.warning("left out: %s", error)
    names: list[str] = []
    for source in sources:
        stem = source.stem
        candidates = chain([stem], (f"{stem}-{i}" for i in count(2)))
        names.append(next(name for name in candidates if name not in names))
    return Pictures(to_images(np.stack(pixels)), names, prepared=tuple(prepared))


def choose_pictures(subject: SubjectWithImages, indices: Sequence[int] | None, count: int, seed: int) -> Pictures:
    """The images of these indices, or a random sample by the seed, in the order of their indices.

    Raises:
        Refused: an index that is out of range.
    """
    data = subject.images
    chosen = choose_indices(data, indices, count, seed)
    images, labels = data.batch(chosen)
    names = [f"{Path(data.name).name}-{data.split}-{index}" for index in chosen]
    if data.files is not None:
        names = [f"{name}-{Path(data.files[index]).stem}" for name, index in zip(names, chosen, strict=True)]
    return Pictures(images, names, labels.numpy() if data.labelled else None, tuple(chosen))


def choose_indices(data: ImageDataset, indices: Sequence[int] | None, count: int, seed: int) -> list[int]:
    """The given indices once each, checked, or `count` random ones by the seed, ascending."""
    if indices is None:
        drawn = np.random.default_rng(seed).choice(len(data), size=min(count, len(data)), replace=False)
        return sorted(int(i) for i in drawn)
    check_indices(indices, len(data), "image_indices", f"{data.split} images")
    return list(dict.fromkeys(indices))


def check_indices(indices: Sequence[int], count: int, parameter: str, what: str) -> None:
    """Raise Refused unless all indices are in [0, count)."""
    for index in indices:
        if not 0 <= index < count:
            raise Refused(parameter, index, f"out of range, there are {count} {what}, counted from 0 to {count - 1}")


def part_outlines(subject: Subject, pictures: Pictures, part: str) -> np.ndarray:
    """Visible pixels (B, H, W), bool, of a part in test images.

    Raises:
        Refused: the dataset does not have masks of that part.
    """
    if not isinstance(subject, SubjectWithImages) or not pictures.indices:
        raise Refused("part", part, "image files have no part masks", "look at test images")
    data = subject.images
    if part not in data.part_names:
        known = f"choose one of: {', '.join(data.part_names)}" if data.part_names else "it has no part masks"
        raise Refused("part", part, f"dataset {data.name!r} does not know it", known)
    number = list(data.part_names).index(part)
    return np.stack([data.part_masks(index)[number] for index in pictures.indices])


@dataclass(frozen=True)
class _Bytes:
    """An image file in memory."""

    stem: str
    content: bytes

    def open(self, mode: str = "rb") -> BytesIO:
        return BytesIO(self.content)

    def __str__(self) -> str:
        return self.stem


def _lost(width: int, height: int, resolution: int, fit: Fit) -> str:
    """How little of an image is seen by a network, where that may surprise."""
    if fit.mode != "crop":
        return ""
    side = min(width, height) * (fit.crop_share or 1)
    seen = side**2 / (width * height)
    share = f", {100 * seen:.2g} % of it is seen" if seen < SEEN else ""
    return share + (f", {resolution / side:.1f} times as large" if resolution > ENLARGED * side else "")


def _read(file: "ImageFile", resolution: int, whites: Whites, fit: Fit) -> tuple[np.ndarray, str]:
    try:
        box = object_box(file) if fit.mode == "object" else None
        pixels = read_square(file, resolution, box, whites, fit)
    except BadImage as error:
        remedy = "give PNG or JPEG files" if not isinstance(file, Path) or file.exists() else "correct the path"
        raise Refused(None, None, f"{file} cannot be used as an image ({error})", remedy) from error
    width, height = image_size(file)
    how = ""
    if (width, height) != (resolution, resolution):
        how = f"{width}x{height} px: {DONE[fit.mode]} to {resolution} px{_lost(width, height, resolution, fit)}"
        logger.info("%s is %s", file, how)
    if fit.mode == "object" and box is None:
        logger.info("%s has no alpha channel with an object: it is shown whole", file)
    return pixels, how
