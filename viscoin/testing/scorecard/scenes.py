"""The scenes that all maps are asked about, and in each the part in question."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from viscoin.datasets.base import ImageDataset, to_images
from viscoin.datasets.birds import delete_background_objects, delete_part, image_attributes, render
from viscoin.datasets.birds.dataset import BirdsDataset
from viscoin.datasets.birds.scene import REMOVABLE
from viscoin.datasets.funnybirds import FunnyBirdsDataset
from viscoin.errors import Refused
from viscoin.inference.batches import TooFewImages, choose_images, evaluation, progress
from viscoin.testing.truth.localisation import grown
from viscoin.testing.truth.scenes import Scenes, World, world_of

SCENES = 100


@dataclass(frozen=True)
class Version:
    """One scene: pixels (H, W, 3) whole, without the objects behind the bird (or None), and without each part that is
    seen, whose visible pixels are `masks` (H, W) bool; which attributes (A,) it shows."""

    whole: np.ndarray
    plain: np.ndarray | None
    without: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    shown: np.ndarray


@dataclass(frozen=True)
class Cases:
    """N scenes, each with the part in question.

    Attributes:
        indices: (N,) of the scenes in their dataset.
        images, without, plain: (N, 3, H, W) in [-1, 1]: whole, without the part, without the objects behind the bird.
        objects: (N,) bool: there are such objects.
        masks, grown: (N, H, W) bool: visible pixels of the part, and the same grown by a sixteenth of the side.
        parts: (N,) names.
        targets: (N,) the class that f predicts of the whole scene.
        falls: (N,) by how much the deletion lowers f's logit of this class, less the mean of all logits.
        shown: (N, A) bool, attributes of the whole scene.
        skipped: scenes in which no part's deletion lowers the logit.
        world: what scenes are made of.
    """

    indices: np.ndarray
    images: Tensor
    without: Tensor
    plain: Tensor
    objects: np.ndarray
    masks: np.ndarray
    grown: np.ndarray
    parts: list[str]
    targets: np.ndarray
    falls: np.ndarray
    shown: np.ndarray
    skipped: int
    world: World

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def counts(self) -> dict[str, int]:
        """In how many scenes each part is in question."""
        return dict(Counter(self.parts).most_common())


def choose_cases(
    classifier: nn.Module,
    dataset: ImageDataset,
    scenes: int = SCENES,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Cases:
    """A random sample of scenes, and of each the part whose deletion lowers f's logit of the predicted class most.

    Logits are taken less their mean, which no softmax sees. Of the built-in birds, parts are those that are left out of
    training birds too, so that f knows their absence.

    Raises:
        Refused: nothing in these scenes can be deleted.
        TooFewImages: fewer than two scenes have a part that f needs.
    """
    world = world_of(dataset)
    if world is None or not dataset.part_names:
        raise Refused(
            "dataset", dataset.name, "its scenes cannot be rendered without a part", "take birds or funnybirds"
        )
    chosen = choose_images(len(dataset), scenes, seed)
    found = []
    with evaluation(classifier, device), progress(len(chosen), "scenes", "scene") as bar:
        for index in chosen:
            version = _version(dataset, int(index))  # type: ignore[arg-type]
            found.append((int(index), version, *_in_question(classifier, version, device)))
            bar.update()
    kept = [(index, version, part, target, lost) for index, version, part, target, lost in found if part is not None]
    if len(kept) < 2:
        raise TooFewImages(f"{len(kept)} of {len(chosen)} scenes have a part that f needs; take more scenes")
    indices, versions, parts, targets, falls = zip(*kept)
    masks = np.stack([version.masks[part] for version, part in zip(versions, parts)])
    return Cases(
        indices=np.array(indices),
        images=to_images(np.stack([version.whole for version in versions])),
        without=to_images(np.stack([version.without[part] for version, part in zip(versions, parts)])),
        plain=to_images(np.stack([v.whole if v.plain is None else v.plain for v in versions])),
        objects=np.array([version.plain is not None for version in versions]),
        masks=masks,
        grown=np.stack([grown(mask) for mask in masks]),
        parts=list(parts),
        targets=np.array(targets),
        falls=np.array(falls),
        shown=np.stack([version.shown for version in versions]),
        skipped=len(found) - len(kept),
        world=world,
    )


def _in_question(classifier: nn.Module, version: Version, device: torch.device | str) -> tuple[str | None, int, float]:
    """The part that f needs most (None if it needs none), the class that f predicts, and how far its logit falls."""
    pixels = np.stack([version.whole, *version.without.values()])
    logits = classifier(to_images(pixels).to(device)).float().cpu().numpy()
    target = int(logits[0].argmax())
    centred = logits[:, target] - logits.mean(1)
    falls = centred[0] - centred[1:]
    if not len(falls) or falls.max() <= 0:
        return None, target, 0.0
    return list(version.without)[int(falls.argmax())], target, float(falls.max())


def _version(dataset: Scenes, index: int) -> Version:
    return _bird(dataset, index) if isinstance(dataset, BirdsDataset) else _funny_bird(dataset, index)


def _bird(dataset: BirdsDataset, index: int) -> Version:
    bird, scene, _ = dataset.item(index)
    size = dataset.resolution
    whole, masks = render(bird, scene, size)
    seen = {part: mask for part, mask in zip(dataset.part_names, masks) if part in REMOVABLE and mask.any()}
    return Version(
        whole,
        render(bird, delete_background_objects(scene), size)[0] if scene.background else None,
        {part: render(bird, delete_part(scene, part), size)[0] for part in seen},
        seen,
        image_attributes(bird, scene),
    )


def _funny_bird(dataset: FunnyBirdsDataset, index: int) -> Version:
    """Of objects behind the bird the first one is deleted: there are no published pictures without all of them."""
    masks = dict(zip(dataset.part_names, dataset.part_masks(index)))
    seen = {part: mask for part, mask in masks.items() if mask.any()}
    without = {part: dataset.without_parts(index, [part]) for part in seen}
    plain = dataset.without_background_object(index, 0) if dataset.background_objects(index) else None
    return Version(np.asarray(dataset.pixels[index]), plain, without, seen, dataset.attributes[index])
