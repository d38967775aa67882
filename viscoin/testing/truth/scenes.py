"""The same scene with one thing changed: a part deleted, a variant swapped, everything behind the bird removed."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stylegan2_ada.together import collect, own
from viscoin.datasets.base import ImageDataset, to_images
from viscoin.datasets.birds import (
    ATTRIBUTE_GROUPS,
    GROUP_PART,
    PARTS,
    attribute_names,
    delete_background_objects,
    delete_part,
    image_attributes,
    render,
    swap_variant,
)
from viscoin.datasets.birds.dataset import BirdsDataset
from viscoin.datasets.funnybirds import FunnyBirdsDataset
from viscoin.inference.batches import batches, progress, random_ranks
from viscoin.testing.baselines import ConceptFunctions
from viscoin.testing.truth.attributes import group_of

GROUPS = tuple(ATTRIBUTE_GROUPS)

# Scenes of datasets that show the same scene with something changed.
Scenes = BirdsDataset | FunnyBirdsDataset


@dataclass(frozen=True)
class World:
    """What scenes are made of: A attributes by name, P parts, and which of these each of G attribute groups belongs to.

    `swaps` says whether variants can be swapped and backgrounds emptied, beside the deletion of parts.
    """

    attributes: tuple[str, ...]
    parts: tuple[str, ...]
    group_part: Mapping[str, str]
    swaps: bool = True

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(self.group_part)

    def part_of(self, attribute: str) -> str:
        return self.group_part[group_of(attribute)]


BIRDS = World(tuple(attribute_names()), PARTS, GROUP_PART)


def world_of(dataset: ImageDataset) -> World | None:
    """The world of a dataset, or None if nothing in its scenes can be changed."""
    if isinstance(dataset, BirdsDataset):
        return BIRDS
    if isinstance(dataset, FunnyBirdsDataset) and dataset.has_interventions:
        parts = tuple(dict.fromkeys(map(group_of, dataset.attribute_names)))
        return World(tuple(dataset.attribute_names), parts, {part: part for part in parts}, swaps=False)
    return None


@dataclass(frozen=True)
class Interventions:
    """What was done to N images, for P parts, G attribute groups and A attributes.

    Attributes:
        indices: (N,) of the images in their dataset.
        shown: (N, A) bool, attributes before.
        visible: (N, P) bool, parts of which a pixel is seen, before.
        swapped_to: (N, G) column of the attribute that the swap of each group made true.
        swap_visible: (N, G) bool: a pixel of the group's part is seen, before or after the swap.
        objects: (N,) bool: there is an object behind the bird.
        world: what the scenes are made of; without swaps `swap_visible` and `objects` are False.
    """

    indices: np.ndarray
    shown: np.ndarray
    visible: np.ndarray
    swapped_to: np.ndarray
    swap_visible: np.ndarray
    objects: np.ndarray
    world: World = BIRDS


@dataclass(frozen=True)
class Responses:
    """Activations of a concept function before (N, K) and after deleting each part (N, P, K), swapping each group
    (N, G, K) and deleting all background objects (N, K); as before where there are no swaps."""

    before: np.ndarray
    deleted: np.ndarray
    swapped: np.ndarray
    plain: np.ndarray


def intervene(
    functions: ConceptFunctions, dataset: Scenes, indices: np.ndarray, batch_size: int = 128, seed: int = 0
) -> tuple[Interventions, dict[str, Responses]]:
    """Delete every part, swap every group to another random value, and delete the background objects.

    Swaps depend on the seed and the image alone. Rendering takes about 20 ms an image of 64 px. FunnyBirds come with
    pictures of the deletions, and nothing else.

    Raises:
        ValueError: nothing in these scenes can be changed, or the picture of a change is missing.
    """
    world = world_of(dataset)
    if world is None:
        raise ValueError(f"{dataset.split} images of {dataset.name} have no interventions, test images do")
    versions = _deletions if isinstance(dataset, FunnyBirdsDataset) else _versions
    per_scene = 2 + len(world.parts) + (len(world.groups) if world.swaps else 0)

    def seen(scenes: np.ndarray) -> tuple[list[dict[str, np.ndarray]], dict[str, np.ndarray]]:
        drawn = [versions(dataset, int(index), seed) for index in scenes]  # type: ignore[arg-type]
        activations = functions(to_images(np.concatenate([pixels for pixels, _ in drawn])))
        bar.update(len(scenes))
        return [facts for _, facts in drawn], {
            name: part.reshape(len(scenes), per_scene, -1) for name, part in activations.items()
        }

    mine = own(batches(indices, max(1, batch_size // per_scene)))
    with progress(sum(map(len, mine)), "interventions", "scene") as bar:
        parts = collect(seen(scenes) for scenes in mine)
    rows, found = [row for facts, _ in parts for row in facts], [activations for _, activations in parts]
    facts = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    joined = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    return Interventions(indices, **facts, world=world), {name: _split(part, world) for name, part in joined.items()}


def _versions(dataset: BirdsDataset, index: int, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Pixels (2 + P + G, H, W, 3) of a scene before and after every intervention, and what they show."""
    bird, scene, _ = dataset.item(index)
    size, columns = dataset.resolution, attribute_names()
    before, masks = render(bird, scene, size)
    visible = np.asarray(masks.any((1, 2)))
    pixels = [before, render(bird, delete_background_objects(scene), size)[0]]
    pixels += [render(bird, delete_part(scene, part), size)[0] for part in PARTS]
    swapped_to, swap_visible = [], []
    for group, rank in zip(GROUPS, random_ranks(seed, index, len(GROUPS)), strict=True):
        others = [value for value in ATTRIBUTE_GROUPS[group] if value != bird[group]]
        value, part = others[rank % len(others)], PARTS.index(GROUP_PART[group])
        after, masks_after = render(swap_variant(bird, group, value), scene, size)
        pixels.append(after)
        swapped_to.append(columns.index(f"{group}: {value}"))
        swap_visible.append(visible[part] or masks_after[part].any())
    facts: dict[str, np.ndarray] = {
        "shown": image_attributes(bird, scene),
        "visible": visible,
        "swapped_to": np.array(swapped_to),
        "swap_visible": np.array(swap_visible),
        "objects": np.array(bool(scene.background)),
    }
    return np.stack(pixels), facts


def _deletions(dataset: FunnyBirdsDataset, index: int, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The same as `_versions`, without swaps: (2 + P, H, W, 3). A part is seen if the image changes without it."""
    parts = dict.fromkeys(map(group_of, dataset.attribute_names))
    before = np.asarray(dataset.pixels[index])
    deleted = np.stack([dataset.without_parts(index, [part]) for part in parts])
    facts = {
        "shown": dataset.attributes[index],
        "visible": (deleted != before).any((1, 2, 3)),
        "swapped_to": np.full(len(parts), -1),
        "swap_visible": np.zeros(len(parts), bool),
        "objects": np.array(False),
    }
    return np.concatenate([before[None], before[None], deleted]), facts


def _split(activations: np.ndarray, world: World) -> Responses:
    """(N, 2 + P + G, K) in the order of `_versions`."""
    before, parts = activations[:, 0], 2 + len(world.parts)
    swapped = activations[:, parts:] if world.swaps else np.repeat(before[:, None], len(world.groups), 1)
    return Responses(before, activations[:, 2:parts], swapped, activations[:, 1])
