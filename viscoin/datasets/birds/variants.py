"""What a bird can look like: attribute groups, classes as choices of variants, and their names.

A class is one value for each attribute group. Only value combinations that satisfy a checksum are used
as classes (the body colour is the sum of the other values modulo 4), so that changing a single group never leads from
one class to another: any two classes differ in at least two groups.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np

PARTS: tuple[str, ...] = ("body", "head", "beak", "eye", "crest", "wing", "tail", "legs")

ATTRIBUTE_GROUPS: dict[str, tuple[str, ...]] = {
    "body colour": ("blue", "rust", "gold", "green"),
    "breast": ("plain", "pale", "banded"),
    "head": ("plain", "striped", "capped"),
    "crest": ("none", "spiky", "plumed"),
    "beak": ("hooked", "thin", "cone"),
    "beak colour": ("orange", "black"),
    "eye": ("dark", "red", "white"),
    "wing": ("plain", "barred", "spotted"),
    "wing colour": ("charcoal", "cream", "plum"),
    "tail": ("fan", "forked", "long"),
    "legs": ("short", "long"),
    "leg colour": ("orange", "black"),
}

GROUP_PART: dict[str, str] = {
    "body colour": "body",
    "breast": "body",
    "head": "head",
    "crest": "crest",
    "beak": "beak",
    "beak colour": "beak",
    "eye": "eye",
    "wing": "wing",
    "wing colour": "wing",
    "tail": "tail",
    "legs": "legs",
    "leg colour": "legs",
}

# Pairs of groups in which the two classes of a fine pair differ; every group here is a small part.
_FINE_PAIRS = (("beak", "eye"), ("breast", "eye"), ("head", "eye"), ("beak colour", "eye"))

_NAME_WORDS: dict[str, tuple[str, ...]] = {
    "tail": ("fan-tailed", "fork-tailed", "long-tailed"),
    "wing": ("plain-winged", "bar-winged", "spot-winged"),
    "head": ("bare-faced", "eye-striped", "capped"),
    "eye": ("dark-eyed", "red-eyed", "white-eyed"),
    "crest": ("crestless", "spike-crested", "plume-crested"),
    "wing colour": ("dusky", "creamy", "plum"),
    "breast": ("plain-breasted", "pale-breasted", "banded"),
    "beak colour": ("bright-billed", "dark-billed"),
    "legs": ("short-legged", "long-legged"),
    "leg colour": ("orange-legged", "black-legged"),
    "body colour": ATTRIBUTE_GROUPS["body colour"],
    "beak": ("hookbill", "needlebill", "finch"),
}


@dataclass(frozen=True)
class Bird:
    """One value for each attribute group, in the order of `ATTRIBUTE_GROUPS`.

    Raises ValueError if a value is missing or unknown.
    """

    values: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.values) != len(ATTRIBUTE_GROUPS):
            raise ValueError(
                f"a bird needs {len(ATTRIBUTE_GROUPS)} values ({', '.join(ATTRIBUTE_GROUPS)}), "
                f"got {len(self.values)}: {self.values}"
            )
        for group, value in zip(ATTRIBUTE_GROUPS, self.values, strict=True):
            _check_value(group, value)

    @classmethod
    def from_variants(cls, variants: Mapping[str, str]) -> "Bird":
        """The bird with these variants, e.g. ``{"beak": "hooked", ...}``; groups left out take their first value."""
        for group in variants:
            _check_group(group)
        return cls(tuple(variants.get(group, values[0]) for group, values in ATTRIBUTE_GROUPS.items()))

    @property
    def variants(self) -> dict[str, str]:
        """Attribute group -> value."""
        return dict(zip(ATTRIBUTE_GROUPS, self.values, strict=True))

    def __getitem__(self, group: str) -> str:
        return self.values[_GROUP_INDEX[group]]


_GROUP_INDEX = {group: i for i, group in enumerate(ATTRIBUTE_GROUPS)}
_SIZES = np.array([len(values) for values in ATTRIBUTE_GROUPS.values()])
MAX_CLASSES = prod(int(s) for s in _SIZES[1:])


def _check_group(group: str) -> None:
    if group not in ATTRIBUTE_GROUPS:
        raise ValueError(f"unknown attribute group '{group}'; choose one of: {', '.join(ATTRIBUTE_GROUPS)}")


def _check_value(group: str, value: str) -> None:
    if value not in ATTRIBUTE_GROUPS[group]:
        raise ValueError(f"unknown {group} '{value}'; choose one of: {', '.join(ATTRIBUTE_GROUPS[group])}")


def swap_variant(bird: Bird, group: str, value: str) -> Bird:
    """The same bird with another variant of one part; ValueError for an unknown group or value."""
    return Bird.from_variants({**bird.variants, group: value})


def attribute_names() -> list[str]:
    """One readable name for each (group, value), e.g. "beak: hooked"."""
    return [f"{group}: {value}" for group, values in ATTRIBUTE_GROUPS.items() for value in values]


def attributes(bird: Bird) -> np.ndarray:
    """The bird's attributes (A,) bool, in the order of `attribute_names`."""
    return np.array([bird[group] == value for group, values in ATTRIBUTE_GROUPS.items() for value in values])


def _close_code(codes: np.ndarray) -> np.ndarray:
    """Set the checksum column (body colour) of codes (..., groups); any two rows then differ in two columns or more."""
    codes = codes.copy()
    codes[..., 0] = codes[..., 1:].sum(-1) % _SIZES[0]
    return codes


def _all_codes(order: np.ndarray) -> np.ndarray:
    codes = np.stack(np.unravel_index(order, tuple(_SIZES[1:])), axis=-1)
    return _close_code(np.concatenate([np.zeros((len(order), 1), codes.dtype), codes], axis=1))


def _partner(code: np.ndarray, groups: tuple[str, str], rng: np.random.Generator) -> np.ndarray | None:
    """A code that differs from `code` in exactly these two groups, or None."""
    a, b = (_GROUP_INDEX[g] for g in groups)
    found = []
    for i in range(_SIZES[a]):
        for j in range(_SIZES[b]):
            other = code.copy()
            other[a], other[b] = i, j
            if i != code[a] and j != code[b] and _close_code(other)[0] == other[0]:
                found.append(other)
    return found[rng.integers(len(found))] if found else None


@lru_cache(maxsize=32)
def _class_table(n_classes: int, seed: int) -> tuple[Bird, ...]:
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, 0x6269726473], dtype=np.uint64)))
    queue = iter(_all_codes(rng.permutation(MAX_CLASSES)))
    pool = [next(queue) for _ in range(256)]
    counts = np.zeros((len(_SIZES), int(_SIZES.max())), np.int64)
    rows: list[np.ndarray] = []
    used: set[bytes] = set()
    columns = np.arange(len(_SIZES))

    def add(code: np.ndarray) -> None:
        rows.append(code)
        used.add(code.tobytes())
        counts[columns, code] += 1

    while len(rows) < n_classes:
        # The candidate whose values have been used least keeps every value shared by several classes.
        usage = (counts * _SIZES[:, None])[columns, np.stack(pool)]
        code = pool.pop(int(np.argmin((usage**2).sum(-1))))
        following = next(queue, None)
        if following is not None:
            pool.append(following)
        if code.tobytes() in used:
            continue
        add(code)
        if len(rows) % 3 == 1 and len(rows) < n_classes:
            partner = _partner(code, _FINE_PAIRS[len(rows) // 3 % len(_FINE_PAIRS)], rng)
            if partner is not None and partner.tobytes() not in used:
                add(partner)
    groups = list(ATTRIBUTE_GROUPS.values())
    return tuple(Bird(tuple(groups[g][v] for g, v in enumerate(row))) for row in rows)


def class_table(n_classes: int = 200, seed: int = 0) -> list[Bird]:
    """The classes: deterministic choices of variants.

    Values are shared evenly among the classes, any two classes differ in at least two groups, and about one class in
    three has a partner that differs from it in two small parts only.
    Raises ValueError if `n_classes` is below 2 or above the combinatorial limit `MAX_CLASSES`.
    """
    if not 2 <= n_classes <= MAX_CLASSES:
        raise ValueError(
            f"n_classes is {n_classes}; choose from 2 to {MAX_CLASSES} (the number of birds "
            "that differ pairwise in at least two attributes)"
        )
    return list(_class_table(n_classes, seed))


def class_names(n_classes: int = 200) -> list[str]:
    """Unique names such as "red-eyed green hookbill", as short as the class table allows."""
    birds = class_table(n_classes)
    shown = [{"body colour", "beak"} for _ in birds]
    for extra in ("crest", "tail", "eye", "wing", "legs", "head", "beak colour", "wing colour", "breast", "leg colour"):
        names = [_name(bird, groups) for bird, groups in zip(birds, shown, strict=True)]
        taken: dict[str, int] = {}
        for name in names:
            taken[name] = taken.get(name, 0) + 1
        if len(taken) == len(birds):
            break
        for name, groups in zip(names, shown, strict=True):
            if taken[name] > 1:
                groups.add(extra)
    return [_name(bird, groups) for bird, groups in zip(birds, shown, strict=True)]


def _name(bird: Bird, groups: set[str]) -> str:
    words = (_NAME_WORDS[g][ATTRIBUTE_GROUPS[g].index(bird[g])] for g in _NAME_WORDS if g in groups)
    return " ".join(words)
