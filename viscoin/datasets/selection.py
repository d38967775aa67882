"""Which images of which classes to look at."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from viscoin.config import DatasetConfig
from viscoin.datasets import ImageDataset, load_dataset
from viscoin.datasets.walking import composed
from viscoin.errors import Refused

IN_ROW, FEW_CLASSES = 7, 40  # images of each class by default, of up to so many classes; else one


@dataclass(frozen=True)
class Selection:
    """Some images of some classes of a split.

    Attributes:
        class_names: of the classes that have images.
        images: for each of them (n, H, W, 3) uint8.
        masks: for each of them (n, P, H, W) bool, None without parts.
        part_names: names of the P parts.
        empty: classes that were wanted but have no images in the split.
    """

    split: str
    class_names: list[str]
    images: list[np.ndarray]
    masks: list[np.ndarray] | None
    part_names: Sequence[str]
    empty: list[str]


def select_images(
    config: DatasetConfig,
    split: str = "train",
    classes: Sequence[str] | None = None,
    count: int | None = None,
    parts: bool = False,
    seed: int = 0,
) -> Selection:
    """Some images of each class, the same for each seed.

    Args:
        classes: by name or number, see `parse_classes`; None means all.
        count: images of each class; None means seven, or one where there are many classes.
        parts: with the masks of their parts.

    Raises:
        ValueError: a dataset that cannot be loaded, unknown classes, none that has images, or no part masks.
    """
    images = load_dataset(config.name, split, config)
    if parts and not images.part_names:
        raise Refused("parts", None, f"dataset {images.name!r} has no part masks", "omit it")
    numbers = parse_classes(classes, images.class_names)
    per_class = count or (IN_ROW if len(numbers) <= FEW_CLASSES else 1)
    sampled = {number: sample_class(images, number, per_class, seed) for number in numbers}
    shown = [number for number in numbers if len(sampled[number])]
    if not shown:
        raise Refused("classes", None, f"none of them has {split} images", "choose others or another `split`")
    return Selection(
        split,
        [images.class_names[number] for number in shown],
        [images.pixels[sampled[number]] for number in shown],
        [np.stack([images.part_masks(i) for i in sampled[number]]) for number in shown] if parts else None,
        images.part_names if parts else (),
        [images.class_names[number] for number in numbers if number not in shown],
    )


def sample_class(images: ImageDataset, label: int, count: int, seed: int) -> np.ndarray:
    """Increasing indices of at most `count` images of a class, the same for each seed."""
    of_class = np.flatnonzero(images.labels == label)
    return np.sort(np.random.default_rng([seed, label]).permutation(of_class)[:count])


def parse_classes(values: Sequence[str] | None, names: Sequence[str]) -> list[int]:
    """Class numbers.

    Args:
        values: names (which may contain commas) or numbers from 0, also several separated by commas; None means all.

    Raises:
        Refused: an unknown class.
    """
    if not values:
        return list(range(len(names)))
    numbers = []
    for value in map(composed, values):
        for text in [value] if value in names else [part.strip() for part in value.split(",")]:
            if text in names:
                numbers.append(list(names).index(text))
            elif text.isdigit() and int(text) < len(names):
                numbers.append(int(text))
            else:
                raise Refused("classes", text, "unknown class", _hint(text, names))
    return list(dict.fromkeys(numbers))


def _hint(text: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(text, names, n=1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    return f"{meant}choose a name or a number from 0 to {len(names) - 1} among the {len(names)} classes"
