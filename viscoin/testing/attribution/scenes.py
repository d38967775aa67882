"""Images to be explained with what is known of them: masks, and what f says of scenes without parts and objects."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from viscoin.datasets.base import ImageDataset, to_images
from viscoin.datasets.birds import ATTRIBUTE_GROUPS, GROUP_PART, PARTS, class_table, delete_part, render
from viscoin.datasets.birds.dataset import BirdsDataset
from viscoin.datasets.birds.scene import REMOVABLE, Scene
from viscoin.datasets.funnybirds import FunnyBirdsDataset
from viscoin.inference.batches import progress
from viscoin.testing.attribution.parts import ABSENT, PartTruth
from viscoin.testing.attribution.types import Logits
from viscoin.testing.truth.attributes import group_of

Device = torch.device | str
SEEN = 4  # grey levels; pixels that change more when an object goes are its mask


@dataclass(frozen=True)
class Sample:
    """N images to be explained.

    Attributes:
        images: (N, 3, H, W) in [-1, 1].
        labels, predicted: (N,).
        indices: (N,) of the images in their dataset.
        object_masks: (N, H, W) bool, all that shows the class; None where it is not known.
        parts: what is known of parts that can be deleted, None where none can.
    """

    images: Tensor
    labels: np.ndarray
    predicted: np.ndarray
    indices: np.ndarray
    object_masks: np.ndarray | None = None
    parts: "PartScenes | None" = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class PartScenes:
    """The same scenes with masks of P parts and up to O background objects, and f's answers without these.

    Attributes:
        names: of the P parts.
        truth: f's answers.
        masks: (N, M + O, H, W) bool, of M pieces of parts and of the objects.
        owners: (M + O,) the part of each piece, from P on the objects.
        hidden: (N, 3, H, W), each scene without any of its parts.
    """

    names: tuple[str, ...]
    truth: PartTruth
    masks: np.ndarray
    owners: tuple[int, ...]
    hidden: Tensor

    def of_part(self, parts: np.ndarray) -> np.ndarray:
        """Masks (N, H, W) bool of one part in each scene; parts (N,)."""
        mine = np.array(self.owners) == parts[:, None]
        return np.asarray((self.masks & mine[..., None, None]).any(1))


@dataclass(frozen=True)
class Versions:
    """Pixels of one scene without each set of parts (2**P, H, W, 3) and without each object (o, H, W, 3); its masks."""

    without: np.ndarray
    objects: np.ndarray
    masks: np.ndarray
    owners: list[int]


def sample(f: Logits, dataset: ImageDataset, indices: np.ndarray, device: Device = "cpu") -> Sample:
    """Images of a dataset with what it knows of them; f is asked about every version of a scene.

    On the built-in birds each of 2**6 sets of parts is drawn without, at about 1 ms a drawing of 64 px; FunnyBirds
    come with these pictures.

    Args:
        f: on the device, in eval mode.

    Raises:
        Refused: masks are missing or do not fit (see `MaskedDataset`).
        ValueError: the picture of a change is missing.
    """
    images, labels = dataset.batch(indices)
    images = images.to(device)
    predicted = np.concatenate([answers(f, batch).argmax(1) for batch in images.split(64)])
    found = Sample(images, labels.numpy(), predicted, indices)
    versions = versions_of(dataset)
    if versions is not None:
        parts = _part_scenes(f, dataset, indices, versions, device)
        whole = _object_masks(dataset, indices)
        return Sample(images, found.labels, predicted, indices, whole, parts)
    if dataset.part_names:
        return Sample(images, found.labels, predicted, indices, _object_masks(dataset, indices))
    return found


def answers(f: Logits, images: Tensor) -> np.ndarray:
    """Logits (B, C)."""
    with torch.no_grad():
        return f(images).float().cpu().double().numpy()


def versions_of(dataset: ImageDataset) -> Callable[[int], Versions] | None:
    """What makes the versions of a scene; None for datasets whose scenes cannot be changed."""
    if isinstance(dataset, BirdsDataset):
        return lambda index: _drawn(dataset, index)
    if isinstance(dataset, FunnyBirdsDataset) and dataset.has_interventions and dataset.part_names:
        return lambda index: _given(dataset, index)
    return None


def _object_masks(dataset: ImageDataset, indices: np.ndarray) -> np.ndarray:
    return np.stack([dataset.part_masks(int(index)).any(0) for index in indices])


def _part_scenes(
    f: Logits, dataset: ImageDataset, indices: np.ndarray, versions: Callable[[int], Versions], device: Device
) -> PartScenes:
    names, table = parts_of(dataset)
    scenes, logits, without = [], [], []
    with progress(len(indices), "scenes without parts", "scene") as bar:
        for index in indices:
            scene = versions(int(index))
            found = _answers(f, np.concatenate([scene.without, scene.objects]), device)
            logits.append(found[: 2 ** len(names)])
            without.append(found[2 ** len(names) :])
            scenes.append(scene)
            bar.update()
    most = max(map(len, without))
    pieces = len(scenes[0].owners)
    masks = np.stack([_padded(scene.masks, pieces + most, False) for scene in scenes])
    owners = (*scenes[0].owners, *range(len(names), len(names) + most))
    seen = np.stack([masks[:, np.array(owners) == owner].any((1, 2, 3)) for owner in range(len(names) + most)], 1)
    objects = np.stack([_padded(found, most, np.nan) for found in without])
    truth = PartTruth(dataset.labels[indices], np.stack(logits).astype(np.float32), objects, table, seen)
    hidden = to_images(np.stack([scene.without[-1] for scene in scenes])).to(device)
    return PartScenes(names, truth, masks, owners, hidden)


def _answers(f: Logits, pixels: np.ndarray, device: Device) -> np.ndarray:
    return np.concatenate([answers(f, batch.to(device)) for batch in to_images(pixels).split(64)])


def _padded(rows: np.ndarray, length: int, value: float) -> np.ndarray:
    """Rows (n, ...) with more of one value up to the length."""
    more = np.full((length - len(rows), *rows.shape[1:]), value, rows.dtype)
    return np.concatenate([rows, more])


# --- the two worlds whose scenes can be changed --------------------------------------------------------------------


def parts_of(dataset: ImageDataset) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of P parts that can be deleted, and the variant (C, P) of each that each class has, ABSENT for none."""
    if isinstance(dataset, BirdsDataset):
        return REMOVABLE, _bird_variants(dataset.classes)
    names = tuple(dataset.part_names)
    shown = np.full((len(dataset.class_names), len(names)), ABSENT)
    columns = [[i for i, name in enumerate(dataset.attribute_names) if group_of(name) == part] for part in names]
    for label in range(len(dataset.class_names)):
        rows = dataset.attributes[dataset.labels == label]
        for part, column in enumerate(columns):
            if rows[:, column].any():
                shown[label, part] = rows[:, column].any(0).argmax()
    return names, shown


def _bird_variants(classes: int) -> np.ndarray:
    groups = [[group for group in ATTRIBUTE_GROUPS if GROUP_PART[group] == part] for part in REMOVABLE]
    table = [[tuple(bird[group] for group in of_part) for of_part in groups] for bird in class_table(classes)]
    numbers: list[dict[tuple[str, ...], int]] = [{} for _ in REMOVABLE]
    return np.array([
        [ABSENT if "none" in values else known.setdefault(values, len(known)) for known, values in zip(numbers, row)]
        for row in table
    ])  # fmt: skip


def _drawn(dataset: BirdsDataset, index: int) -> Versions:
    bird, scene, _ = dataset.item(index)
    size = dataset.resolution
    before, masks = render(bird, scene, size)
    sets = [_without(scene, [part for i, part in enumerate(REMOVABLE) if number >> i & 1]) for number in range(64)]
    pixels = np.stack([render(bird, changed, size)[0] for changed in sets])
    fewer = [_without_object(scene, number) for number in range(len(scene.background))]
    objects = _stacked([render(bird, changed, size)[0] for changed in fewer], before)
    masks = np.concatenate([masks[[PARTS.index(part) for part in REMOVABLE]], _changed(before, objects)])
    return Versions(pixels, objects, masks, list(range(len(REMOVABLE))))


def _without(scene: Scene, parts: list[str]) -> Scene:
    for part in parts:
        scene = delete_part(scene, part)
    return scene


def _without_object(scene: Scene, number: int) -> Scene:
    return replace(scene, background=scene.background[:number] + scene.background[number + 1 :])


def _given(dataset: FunnyBirdsDataset, index: int) -> Versions:
    names, before = list(dataset.part_names), np.asarray(dataset.pixels[index])
    sets = [[part for i, part in enumerate(names) if number >> i & 1] for number in range(2 ** len(names))]
    pixels = np.stack([dataset.without_parts(index, parts) if parts else before for parts in sets])
    numbers = range(dataset.background_objects(index))
    objects = _stacked([dataset.without_background_object(index, number) for number in numbers], before)
    masks, owners = dataset.piece_masks(index)
    return Versions(pixels, objects, np.concatenate([masks, _changed(before, objects)]), owners)


def _stacked(images: list[np.ndarray], like: np.ndarray) -> np.ndarray:
    return np.stack(images) if images else np.empty((0, *like.shape), like.dtype)


def _changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Pixels (o, H, W) bool in which images (o, H, W, 3) differ from one (H, W, 3)."""
    return np.asarray((np.abs(after.astype(int) - before) > SEEN).any(3))
