"""Draws a bird in a scene: one picture and the visible pixels of each part.

Each outline of `shapes` is moved by one affine map per joint, rasterised at four times the resolution and averaged to
coverage. Colour, light and feathers are functions of position, evaluated at the picture's own resolution.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from viscoin.datasets.birds import shapes
from viscoin.datasets.birds.scene import Blob, Scene
from viscoin.datasets.birds.variants import PARTS, Bird

_SUPER = 4
_SHIFT = 4
_FULL = 240  # a multiple of _SUPER**2, so that averages of coverage are whole numbers on every platform

RGB = tuple[int, int, int]
_BODY: dict[str, RGB] = {"blue": (70, 126, 192), "rust": (190, 86, 48), "gold": (236, 188, 66), "green": (98, 150, 66)}
_WING: dict[str, RGB] = {"charcoal": (60, 62, 74), "cream": (238, 228, 202), "plum": (136, 68, 132)}
_BEAK: dict[str, RGB] = {"orange": (242, 150, 34), "black": (48, 45, 52)}
_LEGS: dict[str, RGB] = {"orange": (228, 122, 40), "black": (52, 48, 54)}
_IRIS: dict[str, RGB] = {"dark": (40, 30, 28), "red": (214, 40, 34), "white": (246, 244, 236)}
_EYE_RING: dict[str, RGB] = {"dark": (250, 240, 215), "red": (34, 28, 32), "white": (34, 28, 32)}
_CREST: RGB = (176, 38, 52)
_DARK: RGB = (46, 44, 54)
_PALE: RGB = (246, 236, 212)


class _Layer(NamedTuple):
    """Coverage (h, w) of a shape, where it lies in the picture, and the bird coordinates (h, w) there."""

    alpha: np.ndarray
    where: tuple[slice, slice]
    u: np.ndarray
    v: np.ndarray


class _Easel:
    """The picture being drawn, float32 (size, size, 3) in 0..255, and the part that owns each pixel (-1: none)."""

    def __init__(self, size: int, scene: Scene) -> None:
        self.size = size
        self.x, self.y = _grid(size)
        self.image = np.empty((size, size, 3), np.float32)
        self.owner = np.full((size, size), -1, np.int8)
        self.tint = np.array(scene.tint, np.float32)

        c, s = np.cos(scene.rotation) * scene.scale, np.sin(scene.rotation) * scene.scale
        mirror = -1.0 if scene.flip else 1.0
        pose = size / 2 * np.array([[mirror * c, -mirror * s, scene.x + 1], [s, c, scene.y + 1]])
        self.joints = {
            "body": pose,
            "head": pose @ _turn(scene.head_turn, shapes.NECK),
            "tail": pose @ _turn(scene.tail_turn, shapes.RUMP),
            "wing": pose @ _turn(scene.wing_turn, shapes.SHOULDER),
            "legs": pose @ _turn(scene.leg_turn, shapes.HIP),
        }
        inverse = np.linalg.inv(pose[:, :2] / (size / 2)).astype(np.float32)
        dx, dy = self.x - np.float32(scene.x), self.y - np.float32(scene.y)
        self.u = inverse[0, 0] * dx + inverse[0, 1] * dy
        self.v = inverse[1, 0] * dx + inverse[1, 1] * dy

    def cover(self, outlines: Sequence[np.ndarray], joint: str) -> _Layer | None:
        """Coverage of outlines that move with a joint; None if nothing of them is inside the picture."""
        matrix = self.joints[joint]
        moved = [p @ matrix[:, :2].T + matrix[:, 2] for p in outlines]
        if not moved:
            return None
        everything = np.concatenate(moved)
        x0, y0 = np.maximum(np.floor(everything.min(0)).astype(int) - 1, 0)
        x1, y1 = np.minimum(np.ceil(everything.max(0)).astype(int) + 1, self.size)
        if x0 >= x1 or y0 >= y1:
            return None
        mask = np.zeros(((y1 - y0) * _SUPER, (x1 - x0) * _SUPER), np.uint8)
        for p in moved:
            fixed_point = np.rint(((p - (x0, y0)) * _SUPER - 0.5) * (1 << _SHIFT)).astype(np.int32)
            cv2.fillPoly(mask, [fixed_point], _FULL, cv2.LINE_8, _SHIFT)
        average = cv2.resize(mask, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)
        where = (slice(y0, y1), slice(x0, x1))
        return _Layer(average.astype(np.float32) / _FULL, where, self.u[where], self.v[where])

    def paint(self, layer: _Layer, colour: np.ndarray) -> None:
        region = self.image[layer.where]
        region += layer.alpha[..., None] * (colour - region)

    def claim(self, layer: _Layer, part: str) -> None:
        self.owner[layer.where][layer.alpha > 0.5] = PARTS.index(part)

    def stain(self, colour: np.ndarray, base: _Layer, outlines: Sequence[np.ndarray], joint: str, paint: RGB) -> None:
        """Mix `paint` into the colours (h, w, 3) of a base layer where the outlines lie."""
        mark = self.cover(outlines, joint)
        if mark is None:
            return
        coverage = np.zeros((self.size, self.size), np.float32)
        coverage[mark.where] = mark.alpha
        colour += coverage[base.where][..., None] * (np.array(paint, np.float32) - colour)

    def draw(
        self,
        part: str,
        layer: _Layer,
        colour: np.ndarray,
        texture: np.ndarray | float = 0.0,
        light: float = 0.22,
        rim: float = 0.45,
    ) -> None:
        """Paint and claim a part: colours (h, w, 3), texture (h, w) around 0, light from above, a darker rim."""
        inside = layer.v[layer.alpha > 0.5]
        if not inside.size:
            return
        top, height = inside.min(), max(np.ptp(inside), np.float32(1e-3))
        shade = 1 + light * (1 - 2 * np.clip((layer.v - top) / height, 0, 1))
        sigma = max(0.045 * self.size / 2, 0.3)
        blurred = cv2.GaussianBlur(layer.alpha, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
        shade *= 1 - rim + rim * np.clip(2 * blurred - 1, 0, 1)
        shade += texture
        self.paint(layer, np.minimum(colour * shade[..., None], 255) * self.tint)
        self.claim(layer, part)


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Picture coordinates (size, size) of the pixel centres, in [-1, 1]."""
    line = ((np.arange(size) + 0.5) * 2 / size - 1).astype(np.float32)
    x, y = np.meshgrid(line, line)
    return x, y


def _turn(angle: float, pivot: tuple[float, float]) -> np.ndarray:
    """Rotation about a point as a matrix (3, 3)."""
    c, s = np.cos(angle), np.sin(angle)
    x, y = pivot
    return np.array([[c, -s, x - c * x + s * y], [s, c, y - s * x - c * y], [0, 0, 1]])


def _step(x: np.ndarray) -> np.ndarray:
    """Smooth step from 0 at x <= 0 to 1 at x >= 1."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _feathers(layer: _Layer, length: float, width: float) -> np.ndarray:
    """Staggered rows of scallops running down and back, about [-1, 1]; smooth, so that small pictures do not alias."""
    rows = (layer.u * -0.80 + layer.v * 0.60) / length
    columns = (layer.u * 0.60 + layer.v * 0.80) / width
    wave = (rows + 0.32 * np.cos(columns * (2 * np.pi)) * np.cos(rows * np.pi)) * (2 * np.pi)
    return 0.75 * np.cos(wave) + 0.25 * np.sin(2 * wave)


def _plain(layer: _Layer, colour: RGB, factor: float = 1.0) -> np.ndarray:
    """One colour everywhere in a layer, (h, w, 3)."""
    return np.broadcast_to(np.array(colour, np.float32) * np.float32(factor), (*layer.alpha.shape, 3)).copy()


def _draw_background(easel: _Easel, scene: Scene) -> None:
    c, s = np.float32(np.cos(scene.gradient_angle)), np.float32(np.sin(scene.gradient_angle))
    t = _step((easel.y * c + easel.x * s + 1) / 2)[..., None]
    top, bottom = (np.array(colour, np.float32) * 255 for colour in (scene.top, scene.bottom))
    easel.image[:] = top + t * (bottom - top)
    for blob in scene.background:
        _draw_blob(easel, blob, softness=0.6)


def _draw_blob(easel: _Easel, blob: Blob, softness: float) -> np.ndarray:
    """Paint a disc or a leaf whose edge is `softness` of its radius wide; returns its opacity (size, size)."""
    c, s = np.float32(np.cos(blob.angle)), np.float32(np.sin(blob.angle))
    dx, dy = easel.x - np.float32(blob.x), easel.y - np.float32(blob.y)
    along, across = (c * dx + s * dy) / np.float32(blob.radius), (c * dy - s * dx) / np.float32(blob.radius)
    colour = 255 * np.array(blob.colour, np.float32)
    if blob.kind == "leaf":
        distance = np.abs(along) ** 1.5 + np.abs(across) / 0.45
        vein = 1 + 0.25 * np.exp(-((across / 0.09) ** 2))
        halves = 1 - 0.15 * np.sign(across) * np.minimum(np.abs(across) * 20, 1)
        colour = colour * (vein * halves)[..., None]
    else:
        distance = np.sqrt(along**2 + across**2)
    opacity = np.float32(blob.opacity) * _step((1 - distance) / softness)
    easel.image += opacity[..., None] * (colour - easel.image)
    return opacity


def _draw_tail(easel: _Easel, bird: Bird) -> None:
    layer = easel.cover(shapes.TAIL[bird["tail"]], "tail")
    if layer is None:
        return
    barbs = 0.10 * np.cos(np.arctan2(layer.v - 0.12, -0.30 - layer.u) * 24)
    dark_end = 0.35 * _step((-layer.u - 0.70) / 0.2)
    easel.draw("tail", layer, _plain(layer, _BODY[bird["body colour"]], 0.72), barbs - dark_end, light=0.12)


def _draw_legs(easel: _Easel, bird: Bird) -> None:
    layer = easel.cover(shapes.LEGS[bird["legs"]], "legs")
    if layer is not None:
        easel.draw("legs", layer, _plain(layer, _LEGS[bird["leg colour"]]), light=0.1, rim=0.25)


def _draw_body(easel: _Easel, bird: Bird) -> None:
    layer = easel.cover(shapes.BODY, "body")
    if layer is None:
        return
    colour = _plain(layer, _BODY[bird["body colour"]])
    if bird["breast"] == "pale":
        easel.stain(colour, layer, shapes.PALE_BREAST, "body", _PALE)
    elif bird["breast"] == "banded":
        easel.stain(colour, layer, shapes.BREAST_BAND, "body", _DARK)
    easel.draw("body", layer, colour, 0.06 * _feathers(layer, 0.13, 0.20), light=0.24, rim=0.38)


def _draw_crest(easel: _Easel, bird: Bird) -> None:
    layer = easel.cover(shapes.CREST[bird["crest"]], "head")
    if layer is None:
        return
    rays = 0.12 * np.cos(np.arctan2(layer.v + 0.35, layer.u - 0.30) * 16)
    easel.draw("crest", layer, _plain(layer, _CREST), rays)


def _draw_beak(easel: _Easel, bird: Bird) -> None:
    layer = easel.cover(shapes.BEAK[bird["beak"]], "head")
    if layer is not None:
        easel.draw("beak", layer, _plain(layer, _BEAK[bird["beak colour"]]), light=0.25, rim=0.35)


def _draw_head(easel: _Easel, bird: Bird) -> None:
    layer = easel.cover(shapes.HEAD, "head")
    if layer is None:
        return
    colour = _plain(layer, _BODY[bird["body colour"]], 1.06)
    if bird["head"] == "capped":
        easel.stain(colour, layer, shapes.CAP, "head", _DARK)
    elif bird["head"] == "striped":
        easel.stain(colour, layer, shapes.BROW, "head", _PALE)
        easel.stain(colour, layer, shapes.EYE_STRIPE, "head", _DARK)
    easel.draw("head", layer, colour, 0.04 * _feathers(layer, 0.12, 0.17), rim=0.24)


def _draw_eye(easel: _Easel, bird: Bird) -> None:
    layer = easel.cover(shapes.EYE, "head")
    if layer is None:
        return
    easel.paint(layer, np.array(_EYE_RING[bird["eye"]], np.float32))
    easel.claim(layer, "eye")
    circles = ((shapes.IRIS, _IRIS[bird["eye"]]), (shapes.PUPIL, (20, 18, 22)), (shapes.GLINT, (255, 255, 255)))
    for outlines, colour in circles:
        circle = easel.cover(outlines, "head")
        if circle is not None:
            easel.paint(circle, np.array(colour, np.float32))


def _draw_wing(easel: _Easel, bird: Bird) -> None:
    layer = easel.cover(shapes.WING, "wing")
    if layer is None:
        return
    colour = _plain(layer, _WING[bird["wing colour"]])
    contrast = _DARK if bird["wing colour"] == "cream" else _PALE
    if bird["wing"] != "plain":
        easel.stain(colour, layer, shapes.BARS if bird["wing"] == "barred" else shapes.SPOTS, "wing", contrast)
    flight = _step((-layer.u - 0.10) / 0.3)
    barbs = 0.10 * np.cos(np.arctan2(layer.v + 0.10, 0.55 - layer.u) * 34)
    texture = flight * barbs + (1 - flight) * 0.06 * _feathers(layer, 0.13, 0.18)
    easel.draw("wing", layer, colour, texture, light=0.18, rim=0.5)


# From back to front.
_DRAW = {
    "tail": _draw_tail,
    "legs": _draw_legs,
    "body": _draw_body,
    "crest": _draw_crest,
    "beak": _draw_beak,
    "head": _draw_head,
    "eye": _draw_eye,
    "wing": _draw_wing,
}


def render(bird: Bird, scene: Scene, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Draw a bird: a pure function of its arguments.

    Returns the picture, uint8 (size, size, 3) RGB, and the part masks, bool (8, size, size): the visible pixels of
    each of `PARTS`; no pixel belongs to two parts. Raises ValueError if size is below 8.
    """
    if size < 8:
        raise ValueError(f"size is {size}; choose at least 8 pixels")
    easel = _Easel(size, scene)
    _draw_background(easel, scene)
    for part, draw in _DRAW.items():
        if part not in scene.missing:
            draw(easel, bird)
    for blob in scene.occluders:
        opacity = _draw_blob(easel, blob, softness=max(0.12, 5.0 / size))
        easel.owner[opacity > 0.5] = -1
    image = np.clip(easel.image * np.float32(scene.brightness) + 0.5, 0, 255).astype(np.uint8)
    return image, easel.owner == np.arange(len(PARTS), dtype=np.int8)[:, None, None]
