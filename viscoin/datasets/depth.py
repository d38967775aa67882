"""Pixels that need more than 8 bits: which value of theirs is white.

A file says how wide its values are stored, not how many of these bits its camera fills: 12 bits in 16 are common, and
floating-point values have no largest one at all. So white is one value for all images of a dataset of the same kind
(16 bits, 32 bits, floating point, ...), as the depth belongs to the camera: a rule for each image would brighten the
dark ones. Black is always 0.

    integers         2^n - 1, with the smallest even n >= 8 that holds the largest value of all these images
    floating point   1 if no value is above it (5 % for what resampling adds), else as for integers

Tags of a TIFF that name a largest value (MaxSampleValue, SMaxSampleValue) count as if a pixel had it. What is taken for
white is reported unless it is the largest value that the kind can hold. Images with values below 0 or that are no
numbers are refused: nothing says where black lies.
"""

import math
from collections.abc import Iterable, Mapping
from typing import IO, NamedTuple

import numpy as np
from PIL import Image

FLOATING = "floating-point"
OVERSHOOT = 1.05  # of floating-point values
BITS, PHOTOMETRIC, MAX_SAMPLE, SAMPLE_FORMAT, S_MAX_SAMPLE = 258, 262, 281, 339, 341  # tags of TIFF
STRIP = 2**22  # values that are scaled at once
Whites = Mapping[str, float]  # by kind


class Unclear(ValueError):
    """Values of which nothing says what is black and what is white."""


class Deep(NamedTuple):
    """Values (H, W) or (H, W, 3 or 4) that need more than 8 bits.

    `kind` is what messages call them, `limit` the largest value that the kind can hold (infinite for floating point),
    `declared` the largest value that the file names (0 for none).
    """

    values: np.ndarray
    kind: str
    limit: float
    declared: float


class Extent(NamedTuple):
    """How far the values of one file, or of several of one kind, go up."""

    kind: str
    limit: float
    top: float
    files: int = 1


def deep_values(image: Image.Image, stream: IO[bytes]) -> Deep | None:
    """The values of an opened image, None where 8 bits hold them all.

    Raises:
        Unclear: there are negative values, or some that are no numbers.
    """
    tags: Mapping[int, object] = getattr(image, "tag_v2", {})
    signed = _first(tags.get(SAMPLE_FORMAT)) == 2
    if image.mode[0] in "IF" or (signed and image.mode == "L"):
        bits = int(_first(tags.get(BITS)) or 16)
        values = _array(image)
        if image.mode == "L":
            values = values.view(np.int8)
        elif image.mode == "I" and bits == 32 and not signed:
            values = values.view(np.uint32)
    elif is_deep(image) and (read := _by_opencv(stream)) is not None:
        opaque = image.mode in ("RGB", "RGBX") and "transparency" not in image.info
        bits, values = 8 * read.itemsize, read[..., :3] if opaque else read
    else:
        return None
    kind, limit = f"{bits}-bit{' signed' if signed else ''}", float(2 ** (bits - signed) - 1)
    if values.dtype.kind == "f":
        kind, limit = FLOATING, math.inf
    _check(values)
    declared = max(_first(tags.get(tag)) for tag in (MAX_SAMPLE, S_MAX_SAMPLE))
    declared = declared if 0 < declared <= min(limit, 2.0**32) else 0
    if _first(tags.get(PHOTOMETRIC), 1) == 0 and math.isfinite(limit):  # white is 0
        values = (declared or limit) - np.minimum(values, declared or limit)
    if values.ndim == 2 and (clear := image.info.get("transparency")) is not None:  # the grey that is transparent
        values = np.stack([values] * 3 + [np.where(values == clear, 0, limit).astype(values.dtype)], -1)
    return Deep(values, kind, limit, declared)


def _first(value: object, default: float = 0) -> float:
    if isinstance(value, tuple):
        value = value[0] if value else None
    return default if value is None else float(value)  # type: ignore[arg-type]


def is_deep(image: Image.Image) -> bool:
    """Whether Pillow leaves out the lower half of 16 bits, as it does of colours."""
    return image.mode in ("RGB", "RGBA", "RGBX", "LA") and ";16" in raw_mode(image)


def raw_mode(image: Image.Image) -> str:
    """How an image that is not loaded yet is stored, as Pillow calls it: "L;4", "RGB;16B"; "" if nothing says so."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0].args if tiles else ""
    raw = arguments if isinstance(arguments, str) else (arguments or [""])[0]
    return raw if isinstance(raw, str) else ""


def _array(image: Image.Image) -> np.ndarray:
    """Its values (H, W), copied in strips, as numpy would hold them three times meanwhile."""
    image.load()  # before the size is asked for, which turning the image may change
    values = np.empty(image.size[::-1], np.asarray(image.crop((0, 0, 1, 1))).dtype)
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        values[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return values


def _by_opencv(stream: IO[bytes]) -> np.ndarray | None:
    import cv2  # for the few who have such images

    stream.seek(0)
    values = cv2.imdecode(np.frombuffer(stream.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.ndim < 3:
        return None
    return values[..., ::-1] if values.shape[2] == 3 else values[..., [2, 1, 0, 3]]


def _check(values: np.ndarray) -> None:
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise Unclear("it holds values that are no numbers or infinite; give images of 8 or 16 bits without sign")
    if low < min(0.0, -(OVERSHOOT - 1) * float(high)) or (values.dtype.kind != "f" and low < 0):
        raise Unclear(
            f"its values go from {low:g} to {high:g}, and nothing says which of them is black; "
            "convert it to 8 or 16 bits without sign"
        )


def extent(deep: Deep) -> Extent:
    colours = deep.values[..., :3] if deep.values.ndim == 3 else deep.values
    return Extent(deep.kind, deep.limit, max(float(colours.max()), deep.declared))


def joined(extents: Iterable[Extent]) -> list[Extent]:
    """One for each kind."""
    kinds: dict[str, Extent] = {}
    for one in extents:
        known = kinds.get(one.kind, one._replace(files=0))
        kinds[one.kind] = known._replace(
            limit=max(one.limit, known.limit), top=max(one.top, known.top), files=known.files + one.files
        )
    return list(kinds.values())


def white_of(found: Extent) -> float:
    """The value that is shown as white, by the rule of this module."""
    if found.kind == FLOATING and found.top <= OVERSHOOT:
        return 1.0
    bits = max(8, math.ceil(found.top).bit_length())
    return min(float(2 ** (bits + bits % 2) - 1), found.limit)


def whites_of(extents: Iterable[Extent]) -> dict[str, float]:
    return {found.kind: white_of(found) for found in joined(extents)}


def described(found: Extent, what: str) -> str | None:
    """What had to be assumed of images that `what` names; None where their kind says all."""
    white = white_of(found)
    if white == found.limit:
        return None
    bits = "" if found.kind == FLOATING and white == 1 else f" ({int(white).bit_length()} bits)"
    return (
        f"{what}: the largest of the {found.kind} values is {found.top:.6g}, so that {white:g}{bits} is taken for "
        "white; if that is too bright or too dark, convert to 8 bits yourself"
    )


def to_8_bits(deep: Deep, whites: Whites | None = None) -> Image.Image:
    """The image in 8 bits a colour: L, RGB or RGBA.

    Args:
        whites: what is white, by kind; for a kind that is not in it the image alone decides.
    """
    white = (whites or {}).get(deep.kind) or white_of(extent(deep))
    values = deep.values
    scaled = np.empty(values.shape, np.uint8)
    factors = np.full(values.shape[2:] or (1,), 255 / white)
    if factors.size == 4 and values[..., 3].max() > white:
        factors[3] = 255 / deep.limit
    rows = max(1, STRIP // (values[0].size or 1))
    for top in range(0, len(values), rows):
        part = values[top : top + rows]
        scaled[top : top + rows] = np.clip(part * (factors if part.ndim == 3 else factors[0]), 0, 255).round()
    return Image.fromarray(scaled)
