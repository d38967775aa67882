"""FunnyBirds, rendered birds of which every part is known and can be removed (Hesse et al., ICCV 2023, 2308.06248).

    FunnyBirds/
      parts.json               part -> its variants: {"tail": [{"model": "tail01.glb", "color": "red"}, ...], ...}
      classes.json             [{"class_idx": 0, "parts": {"tail": 3, ...}}, ...]: the variant of each part
      dataset_train.json, dataset_test.json    the parameters of each image, in order: class_idx, tail_model, ...
      train/<class>/<number>.png, test/...     number: place in the list, six digits
      train_part_map/<class>/<number>.png, test_part_map/...    the same, with parts in colours of their own
      test_interventions/<class>/<number>/body_<parts that are left, sorted, joined by _>.png
      test_interventions/<class>/<number>/background_interventions/<k>.png    without the k-th background object

Half of the training images lack some parts, as "placeholder" among their parameters says. Part maps and interventions
may be missing: then the dataset is one without them.
"""

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from viscoin.config import DatasetConfig
from viscoin.datasets.base import SPLITS, ImageDataset
from viscoin.datasets.download import Archive, dataset_root
from viscoin.datasets.files import check_every_class, prepare_files, present_files, warn_about_duplicates
from viscoin.datasets.listing import stratified
from viscoin.datasets.reading import UNREADABLE, BadImage, read_square
from viscoin.errors import reason_of, regular

# No checksum of it is known to be published.
SOURCE = Archive(
    "https://download.visinf.tu-darmstadt.de/data/funnybirds/FunnyBirds.zip",
    size="1.6 GB",
    page="https://github.com/visinf/funnybirds-framework",
)
# Colours of the part maps; eyes, feet and wings have one for each of the two.
COLOURS = {
    "beak": ((255, 255, 0),),
    "eye": ((255, 255, 253), (255, 255, 254)),
    "foot": ((255, 0, 1), (255, 0, 2)),
    "tail": ((0, 0, 255),),
    "wing": ((0, 255, 1), (0, 255, 2)),
}
REMOVED = ("placeholder", "", None)  # what parameters say of a part that is not there
_AGAIN = "correct it, or get the data again"

Parameters = dict[str, Any]


@dataclass(frozen=True)
class Scenes:
    """What the tables say: variants of each part, names of the classes, and the parameters of each image of a list."""

    root: Path
    variants: dict[str, list[dict[str, str]]]
    class_names: list[str]
    parameters: list[Parameters]
    source: str  # "train" or "test": the list and the folders of these images

    @property
    def labels(self) -> np.ndarray:
        return np.array([scene["class_idx"] for scene in self.parameters], dtype=int)

    def file(self, number: int, kind: str = "") -> Path:
        """The image of a scene, its part map (kind "_part_map"), or the folder of its interventions."""
        name = f"{number:06}" if kind == "_interventions" else f"{number:06}.png"
        return self.root / f"{self.source}{kind}" / str(self.parameters[number]["class_idx"]) / name


class FunnyBirdsDataset(ImageDataset):
    """Rendered birds with the variants of their parts as attributes.

    An attribute is present if the image was rendered with that variant, be it hidden from view or not. A mask holds
    the pixels that have a colour of the part in the part map, without those blended at its edges.
    """

    has_truth = True

    def __init__(self, split: str, pixels: np.ndarray, scenes: Scenes, numbers: np.ndarray) -> None:
        files = [str(scenes.file(int(i))) for i in numbers]
        super().__init__("funnybirds", split, pixels, scenes.labels[numbers], scenes.class_names, files)
        self._scenes, self._numbers = scenes, numbers
        self.attribute_names = attribute_names(scenes.variants)
        if (scenes.root / f"{scenes.source}_part_map").is_dir():
            self.part_names = [part for part in scenes.variants if part in COLOURS]
        self.has_interventions = (scenes.root / f"{scenes.source}_interventions").is_dir()

    def parameters(self, index: int) -> Parameters:
        """All that the image was rendered from: class, camera, light, parts and background objects."""
        return self._scenes.parameters[int(self._numbers[index])]

    @cached_property
    def attributes(self) -> np.ndarray:  # type: ignore[override]
        return np.stack([self._attributes(i) for i in range(len(self))])

    def part_masks(self, index: int) -> np.ndarray:
        drawn = self._part_map(index)
        return np.stack([_any_of(drawn, COLOURS[part]) for part in self.part_names])

    def piece_masks(self, index: int) -> tuple[np.ndarray, list[int]]:
        """Masks (M, H, W) bool of each wing, foot and eye by itself, and the place in `part_names` of each."""
        drawn = self._part_map(index)
        pieces = [(colour, i) for i, part in enumerate(self.part_names) for colour in COLOURS[part]]
        return np.stack([_any_of(drawn, [colour]) for colour, _ in pieces]), [owner for _, owner in pieces]

    def _part_map(self, index: int) -> np.ndarray:
        if not self.part_names:
            raise ValueError(f"{self._scenes.root} has no {self._scenes.source}_part_map; unpack the archive again")
        path = self._scenes.file(int(self._numbers[index]), "_part_map")
        try:
            with Image.open(regular(path)) as image:
                colours = image.convert("RGB")  # drops alpha, as the colours are exact
        except UNREADABLE as error:
            raise ValueError(
                f"{path} is no readable part map ({reason_of(error)}); unpack the archive again"
            ) from error
        return np.asarray(self.fit.apply(colours, self.resolution, Image.Resampling.NEAREST, "black"))

    def without_parts(self, index: int, parts: Collection[str]) -> np.ndarray:
        """The same scene rendered without some parts of the bird: uint8 (H, W, 3).

        Raises:
            ValueError: no such part, or no such image among the data (only test images have interventions).
        """
        for part in parts:
            if part not in self._scenes.variants:
                raise ValueError(f"unknown part {part!r}; choose some of {', '.join(self._scenes.variants)}")
        left = sorted(part for part in self._scenes.variants if part not in parts)
        return self._intervention(index, f"body_{'_'.join(left)}.png")

    def without_background_object(self, index: int, number: int) -> np.ndarray:
        """The same scene without one of its `background_objects`, counted from 0: uint8 (H, W, 3); errors as above."""
        if not 0 <= number < self.background_objects(index):
            raise ValueError(
                f"image {index} of {self.name} has {self.background_objects(index)} background objects, counted from "
                f"0, not {number}"
            )
        return self._intervention(index, f"background_interventions/{number}.png")

    def background_objects(self, index: int) -> int:
        """How many objects stand behind the bird, or elsewhere in the scene."""
        return len([kind for kind in str(self.parameters(index).get("bg_objects", "")).split(",") if kind.strip()])

    def _intervention(self, index: int, name: str) -> np.ndarray:
        path = self._scenes.file(int(self._numbers[index]), "_interventions") / name
        if not path.is_file():
            why = "" if self.has_interventions else f"; {self.split} images have no interventions, test images do"
            raise ValueError(f"{path} is not there{why}")
        try:
            return read_square(path, self.resolution, fit=self.fit)
        except BadImage as error:
            raise ValueError(f"{path} cannot be used: {error}; unpack the archive again") from error

    def _attributes(self, index: int) -> np.ndarray:
        scene, found = self.parameters(index), []
        for part, variants in self._scenes.variants.items():
            shown = {key: scene.get(f"{part}_{key}") for key in variants[0]}
            if shown not in variants and not all(value in REMOVED for value in shown.values()):
                raise ValueError(
                    f"{_list_of(self._scenes)}: image {self._numbers[index]} has a {part} {shown}, which parts.json "
                    f"does not list; {_AGAIN}"
                )
            found += [variant == shown for variant in variants]
        return np.array(found)


def load_funnybirds(split: str, config: DatasetConfig) -> FunnyBirdsDataset:
    """FunnyBirds with its published split; validation images are a tenth of the training images, sampled by seed.

    Raises:
        ValueError: files that are missing, or do not fit together; images that cannot be used.
    """
    root = dataset_root("funnybirds", config, SOURCE, (*_tables("train"), "dataset_test.json", "train", "test"))
    lists = {source: read_scenes(root, source) for source in ("train", "test")}
    given = {source: _present(of_source, config.skip_bad_files) for source, of_source in lists.items()}
    sources = {part: "test" if part == "test" else "train" for part in SPLITS}
    parts = {part: _numbers(lists[source], given[source], part, config.seed) for part, source in sources.items()}
    warn_about_duplicates(
        "funnybirds", {part: [lists[sources[part]].file(i) for i in numbers] for part, numbers in parts.items()}
    )
    scenes, numbers = lists[sources[split]], parts[split]
    check_every_class("funnybirds", split, scenes.labels[numbers], scenes.class_names, _list_of(scenes))
    pixels, kept = prepare_files("funnybirds", split, [scenes.file(i) for i in numbers], config, root)
    return FunnyBirdsDataset(split, pixels, scenes, numbers[kept])


def _present(scenes: Scenes, skip: bool) -> list[int]:
    """Numbers of the images whose files are there."""
    return present_files([scenes.file(i) for i in range(len(scenes.parameters))], _list_of(scenes), skip)


def _numbers(scenes: Scenes, given: Sequence[int], split: str, seed: int) -> np.ndarray:
    """Those of the images that belong to a split."""
    labels = scenes.labels
    items = [(number, int(labels[number])) for number in given]
    chosen = items if split == "test" else stratified(items, split, {"validation": 0.1}, seed)
    return np.array([number for number, _ in chosen], dtype=int)


def read_scenes(root: Path, source: str) -> Scenes:
    """The tables of the training or test images, checked against each other.

    Raises:
        ValueError: not of the form above, or an image of a class that there is not.
    """
    variants, classes, parameters = (_json(root / name) for name in _tables(source))
    _check_parts(variants, root / "parts.json")
    _check_classes(classes, root / "classes.json")
    scenes = Scenes(root, variants, [f"bird {number:02}" for number in range(len(classes))], parameters, source)
    if not isinstance(parameters, list) or not parameters:
        raise ValueError(f"{_list_of(scenes)} does not hold a list of images; {_AGAIN}")
    for number, scene in enumerate(parameters):
        label = scene.get("class_idx") if isinstance(scene, dict) else None
        if not isinstance(label, int) or not 0 <= label < len(classes):
            raise ValueError(
                f"{_list_of(scenes)}: image {number} has class_idx {label!r}, which is none of the {len(classes)} "
                f"classes of classes.json; {_AGAIN}"
            )
    return scenes


def attribute_names(variants: dict[str, list[dict[str, str]]]) -> list[str]:
    """One name a variant, as "tail: 2, red": the number of its model, and what else its variants differ in."""
    names = []
    for part, of_part in variants.items():
        telling = [key for key in of_part[0] if len({variant[key] for variant in of_part}) > 1]
        names += [f"{part}: {', '.join(_short(variant[key]) for key in telling)}" for variant in of_part]
    return names


def _short(value: str) -> str:
    number = re.fullmatch(r"[a-z_]*?0*(\d+)\.glb", value)
    return number[1] if number else value


def _any_of(image: np.ndarray, colours: Collection[tuple[int, int, int]]) -> np.ndarray:
    """Pixels (H, W) bool of exactly one of the colours."""
    return np.any([(image == np.array(colour, np.uint8)).all(-1) for colour in colours], axis=0)


# --- files -------------------------------------------------------------------------------------------------------


def _tables(source: str) -> tuple[str, str, str]:
    return "parts.json", "classes.json", f"dataset_{source}.json"


def _list_of(scenes: Scenes) -> Path:
    return scenes.root / f"dataset_{scenes.source}.json"


def _json(path: Path) -> Any:
    try:
        return json.loads(regular(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; unpack the archive of FunnyBirds again") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({reason_of(error)}); {_AGAIN}") from error


def _check_parts(variants: Any, path: Path) -> None:
    def usable(of_part: Any) -> bool:
        return (
            isinstance(of_part, list)
            and bool(of_part)
            and all(isinstance(variant, dict) and set(variant) == set(of_part[0]) for variant in of_part)
            and all(isinstance(value, str) for variant in of_part for value in variant.values())
        )

    if not isinstance(variants, dict) or not variants or not all(usable(of_part) for of_part in variants.values()):
        raise ValueError(f'{path} is not of the form {{"tail": [{{"model": "tail01.glb", ...}}, ...], ...}}; {_AGAIN}')


def _check_classes(classes: Any, path: Path) -> None:
    numbers = (
        [entry.get("class_idx") for entry in classes if isinstance(entry, dict)] if isinstance(classes, list) else []
    )
    if not numbers or numbers != list(range(len(classes))):
        raise ValueError(f"{path} does not list classes with class_idx 0, 1, 2, ...; {_AGAIN}")
