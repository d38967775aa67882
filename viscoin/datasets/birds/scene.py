"""Everything in a picture that is not the class: pose, light, background, occluders, missing parts.

Lengths are in units of half the picture's width, x to the right and y down, the origin in the middle;
angles are in radians, colours in [0, 1].
"""

import colorsys
from dataclasses import dataclass, replace
from functools import cache
from math import radians

import numpy as np

from viscoin.datasets.birds.variants import ATTRIBUTE_GROUPS, GROUP_PART, PARTS, Bird, class_table

Colour = tuple[float, float, float]
REMOVABLE: tuple[str, ...] = ("beak", "eye", "crest", "wing", "tail", "legs")
MISSING_SHARE = {"train": 0.5, "validation": 0.0, "test": 0.0}


@dataclass(frozen=True)
class Blob:
    """A soft ellipse: a blurred light ("disc") or a leaf ("leaf") behind or in front of the bird."""

    kind: str
    x: float
    y: float
    radius: float
    angle: float
    opacity: float
    colour: Colour


@dataclass(frozen=True)
class Scene:
    """All nuisance of one picture."""

    flip: bool = False
    rotation: float = 0.0
    scale: float = 1.0
    x: float = 0.0
    y: float = 0.0
    brightness: float = 1.0
    tint: Colour = (1.0, 1.0, 1.0)
    head_turn: float = 0.0
    tail_turn: float = 0.0
    wing_turn: float = 0.0
    leg_turn: float = 0.0
    top: Colour = (0.80, 0.85, 0.88)
    bottom: Colour = (0.62, 0.68, 0.60)
    gradient_angle: float = 0.0
    background: tuple[Blob, ...] = ()
    occluders: tuple[Blob, ...] = ()
    missing: frozenset[str] = frozenset()


def delete_part(scene: Scene, part: str) -> Scene:
    """The same scene with one part of the bird left out; ValueError for an unknown part."""
    if part not in PARTS:
        raise ValueError(f"unknown part '{part}'; choose one of: {', '.join(PARTS)}")
    return replace(scene, missing=scene.missing | {part})


def delete_background_objects(scene: Scene) -> Scene:
    """The same scene with nothing but its colours behind the bird."""
    return replace(scene, background=())


def image_attributes(bird: Bird, scene: Scene) -> np.ndarray:
    """The attributes (A,) bool that this picture shows.

    All values of a missing part are False, except that a bird whose crest is missing shows "crest: none".
    """
    shown = []
    for group, values in ATTRIBUTE_GROUPS.items():
        value = bird[group]
        if GROUP_PART[group] in scene.missing:
            value = "none" if "none" in values else ""
        shown += [v == value for v in values]
    return np.array(shown)


def sample_scene(rng: np.random.Generator, missing_share: float) -> Scene:
    """A random scene; in a share `missing_share` (0 to 1) of them one to three parts of the bird are missing."""
    if not 0.0 <= missing_share <= 1.0:
        raise ValueError(f"missing_share is {missing_share}; choose a number from 0 to 1")

    def within(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    missing = _missing(rng, missing_share)
    hue = within(0.06, 0.68)  # sand, leaves, sky
    return Scene(
        flip=bool(rng.random() < 0.5),
        rotation=radians(within(-12, 12)),
        scale=within(0.80, 1.12),
        x=within(-0.14, 0.14),
        y=within(-0.12, 0.12),
        brightness=within(0.8, 1.2),
        tint=(within(0.92, 1.08), within(0.92, 1.08), within(0.92, 1.08)),
        head_turn=radians(within(-9, 9)),
        tail_turn=radians(within(-10, 10)),
        wing_turn=radians(within(-5, 5)),
        leg_turn=radians(within(-8, 8)),
        top=_muted(rng, hue),
        bottom=_muted(rng, hue + within(-0.15, 0.15)),
        gradient_angle=within(-0.6, 0.6),
        background=tuple(_background_blob(rng) for _ in range(rng.integers(0, 5))),
        occluders=(_occluder(rng),) if rng.random() < 0.12 else (),
        missing=missing,
    )


def _missing(rng: np.random.Generator, share: float) -> frozenset[str]:
    """Parts that are missing in a random scene: what is drawn first."""
    if rng.random() >= share:
        return frozenset()
    return frozenset(REMOVABLE[i] for i in rng.permutation(len(REMOVABLE))[: rng.integers(1, 4)])


def _muted(rng: np.random.Generator, hue: float) -> Colour:
    return colorsys.hsv_to_rgb(hue % 1.0, float(rng.uniform(0.06, 0.26)), float(rng.uniform(0.55, 0.84)))


def _background_blob(rng: np.random.Generator) -> Blob:
    kind = "leaf" if rng.random() < 0.4 else "disc"
    hue = rng.uniform(0.2, 0.42) if kind == "leaf" else rng.uniform(0, 1)
    return Blob(
        kind,
        float(rng.uniform(-1, 1)),
        float(rng.uniform(-1, 1)),
        float(rng.uniform(0.14, 0.34)),
        float(rng.uniform(0, np.pi)),
        float(rng.uniform(0.35, 0.8)),
        colorsys.hsv_to_rgb(hue, float(rng.uniform(0.12, 0.4)), float(rng.uniform(0.45, 0.95))),
    )


def _occluder(rng: np.random.Generator) -> Blob:
    return Blob(
        "leaf",
        float(rng.uniform(-0.7, 0.7)),
        float(rng.uniform(-0.6, 0.7)),
        float(rng.uniform(0.22, 0.36)),
        float(rng.uniform(0, np.pi)),
        1.0,
        colorsys.hsv_to_rgb(rng.uniform(0.24, 0.38), float(rng.uniform(0.35, 0.55)), float(rng.uniform(0.35, 0.55))),
    )


def item(split: str, index: int, seed: int = 0, n_classes: int = 200) -> tuple[Bird, Scene, int]:
    """Bird, scene and class of picture `index` of a split: a pure function of its arguments."""
    rng, label = _source(split, index, seed), index % n_classes
    return class_table(n_classes)[label], sample_scene(rng, MISSING_SHARE[split]), label


def shown_attributes(split: str, index: int, seed: int = 0, n_classes: int = 200) -> np.ndarray:
    """`image_attributes` (A,) of picture `index` of a split, without the rest of its scene; not to be written to."""
    return _shown(index % n_classes, n_classes, _missing(_source(split, index, seed), MISSING_SHARE[split]))


@cache
def _shown(label: int, n_classes: int, missing: frozenset[str]) -> np.ndarray:
    return image_attributes(class_table(n_classes)[label], Scene(missing=missing))


def _source(split: str, index: int, seed: int) -> np.random.Generator:
    """Random numbers of one picture."""
    if split not in MISSING_SHARE:
        raise ValueError(f"unknown split '{split}'; choose one of: {', '.join(MISSING_SHARE)}")
    if index < 0:
        raise ValueError(f"index is {index}; choose 0 or more")
    key = np.array([seed * len(MISSING_SHARE) + list(MISSING_SHARE).index(split), index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))
