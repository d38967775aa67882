"""Draws a bird in a scene: one picture and the visible pixels of each part.

Parts are smooth outlines in bird coordinates (the bird looks to the right; 1 is half the picture's width at scale 1),
moved by one affine map per joint, rasterised at four times the resolution and averaged to coverage.
Colour, light and feathers are functions of position evaluated at the picture's own resolution.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from viscoin.datasets.birds.scene import Blob, Scene
from viscoin.datasets.birds.variants import PARTS, Bird

_SUPER = 4
_SHIFT = 4
_FULL = 240  # a multiple of _SUPER**2, so that averages are whole numbers on every platform

_BODY = {"blue": (70, 126, 192), "rust": (190, 86, 48), "gold": (236, 188, 66), "green": (98, 150, 66)}
_WING = {"charcoal": (60, 62, 74), "cream": (238, 228, 202), "plum": (136, 68, 132)}
_BEAK = {"orange": (242, 150, 34), "black": (48, 45, 52)}
_LEGS = {"orange": (228, 122, 40), "black": (52, 48, 54)}
_IRIS = {"dark": (40, 30, 28), "red": (214, 40, 34), "white": (246, 244, 236)}
_CREST = (176, 38, 52)
_DARK = (46, 44, 54)
_PALE = (246, 236, 212)

_NECK, _RUMP, _SHOULDER, _HIP = (0.24, -0.14), (-0.42, 0.10), (0.16, 0.04), (-0.02, 0.36)


def _smooth(points: Sequence[tuple[float, float]], steps: int = 6) -> np.ndarray:
    """Closed Catmull-Rom curve (N * steps, 2) through the points."""
    p = np.asarray(points, dtype=np.float64)
    before, after, next_after = np.roll(p, 1, 0), np.roll(p, -1, 0), np.roll(p, -2, 0)
    t = (np.arange(steps) / steps)[None, :, None]
    p, before, after, next_after = (q[:, None] for q in (p, before, after, next_after))
    curve = 2 * p + (after - before) * t + (2 * before - 5 * p + 4 * after - next_after) * t**2
    return (0.5 * (curve + (3 * p - before - 3 * after + next_after) * t**3)).reshape(-1, 2)


def _ellipse(x: float, y: float, a: float, b: float, angle: float = 0.0, n: int = 28) -> np.ndarray:
    t = 2 * np.pi * np.arange(n) / n
    c, s = np.cos(angle), np.sin(angle)
    u, v = a * np.cos(t), b * np.sin(t)
    return np.stack([x + c * u - s * v, y + s * u + c * v], axis=-1)


def _strip(points: Sequence[tuple[float, float]], half_width: Sequence[float]) -> np.ndarray:
    """A band around a polyline, `half_width` wide on each side of each point."""
    p, w = np.asarray(points, dtype=np.float64), np.asarray(half_width)[:, None]
    along = np.gradient(p, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    across = np.stack([-along[:, 1], along[:, 0]], axis=-1)
    return np.concatenate([p + w * across, (p - w * across)[::-1]])


def _leg(x: float, foot: float) -> list[np.ndarray]:
    return [
        _strip([(x - 0.01, 0.34), (x, 0.44), (x + 0.01, foot - 0.02)], [0.075, 0.042, 0.036]),
        _smooth([(x - 0.10, foot + 0.035), (x - 0.03, foot - 0.03), (x + 0.05, foot - 0.03), (x + 0.17, foot + 0.03),
                 (x + 0.09, foot + 0.035), (x + 0.03, foot + 0.02), (x - 0.04, foot + 0.045)]),
    ]


_BODY_SHAPE = _smooth([(0.30, -0.28), (0.45, -0.08), (0.47, 0.13), (0.36, 0.34), (0.14, 0.46), (-0.12, 0.45),
                       (-0.34, 0.33), (-0.52, 0.19), (-0.56, 0.08), (-0.40, -0.03), (-0.16, -0.14), (0.08, -0.30)])
_HEAD_SHAPE = _smooth([(0.62, -0.36), (0.56, -0.19), (0.40, -0.10), (0.20, -0.13), (0.07, -0.27), (0.09, -0.47),
                       (0.24, -0.61), (0.42, -0.62), (0.56, -0.53)])
_WING_SHAPE = _smooth([(0.27, 0.04), (0.21, 0.21), (0.02, 0.33), (-0.24, 0.35), (-0.50, 0.31), (-0.64, 0.27),
                       (-0.42, 0.12), (-0.14, -0.04), (0.12, -0.12)])
_BEAK_SHAPES = {
    "hooked": [_smooth([(0.52, -0.50), (0.66, -0.51), (0.78, -0.42), (0.825, -0.27), (0.79, -0.15), (0.745, -0.24),
                        (0.67, -0.27), (0.52, -0.23)])],
    "thin": [_strip([(0.52, -0.37), (0.70, -0.36), (0.83, -0.335), (0.94, -0.30)], [0.072, 0.048, 0.034, 0.020])],
    "cone": [_smooth([(0.50, -0.53), (0.64, -0.49), (0.80, -0.36), (0.66, -0.25), (0.50, -0.19)])],
}
_CREST_SHAPES = {
    "spiky": [np.array([(0.50, -0.54), (0.50, -0.86), (0.38, -0.66), (0.26, -0.90), (0.21, -0.64), (0.00, -0.78),
                        (0.09, -0.55), (-0.08, -0.52), (0.08, -0.36), (0.30, -0.45)])],
    "plumed": [_smooth([(0.54, -0.54), (0.47, -0.72), (0.30, -0.84), (0.06, -0.89), (-0.20, -0.86), (-0.34, -0.74),
                        (-0.20, -0.73), (-0.08, -0.66), (0.00, -0.52), (0.10, -0.34), (0.34, -0.46)])],
}
_TAIL_SHAPES = {
    "fan": [_smooth([(-0.38, 0.00), (-0.62, -0.10), (-0.82, -0.19), (-0.91, -0.02), (-0.93, 0.16), (-0.86, 0.33),
                     (-0.76, 0.42), (-0.58, 0.30), (-0.38, 0.24)])],
    "forked": [np.concatenate([_smooth([(-0.36, 0.03), (-0.62, -0.04), (-0.96, -0.22), (-0.70, 0.12),
                                        (-0.94, 0.46), (-0.60, 0.28), (-0.36, 0.22)], 4)])],
    "long": [_smooth([(-0.38, 0.02), (-0.66, 0.10), (-0.92, 0.24), (-0.97, 0.32), (-0.91, 0.38), (-0.66, 0.31),
                      (-0.38, 0.24)])],
}
_LEG_SHAPES = {"short": _leg(-0.10, 0.63) + _leg(0.12, 0.63), "long": _leg(-0.10, 0.86) + _leg(0.12, 0.86)}

_CAP = [_smooth([(0.66, -0.46), (0.48, -0.47), (0.30, -0.45), (0.02, -0.34), (0.00, -0.60), (0.30, -0.75), (0.62, -0.64)])]
_STRIPE = [_strip([(0.68, -0.38), (0.42, -0.38), (0.20, -0.32), (0.00, -0.20)], [0.070, 0.080, 0.075, 0.060])]
_BROW = [_strip([(0.64, -0.49), (0.42, -0.51), (0.20, -0.46), (0.02, -0.34)], [0.030, 0.042, 0.042, 0.030])]
_PALE_BREAST = [_smooth([(0.52, -0.10), (0.55, 0.20), (0.40, 0.48), (0.10, 0.60), (-0.16, 0.52), (0.00, 0.38),
                         (0.24, 0.26), (0.33, 0.06), (0.38, -0.08)])]
_BREAST_BAND = [_strip([(0.08, -0.12), (0.22, 0.01), (0.38, 0.05), (0.56, 0.01)], [0.070, 0.075, 0.080, 0.085])]
_BARS = [_strip([(x + 0.06, -0.16), (x + 0.015, -0.03), (x, 0.10), (x + 0.01, 0.23), (x + 0.05, 0.36)], [0.040] * 5)
         for x in (0.09, -0.09, -0.27)]
_SPOTS = [_ellipse(x, y, 0.062, 0.046, 2.8, n=18) for x, y in
          [(0.16, 0.00), (0.09, 0.16), (-0.01, 0.02), (-0.07, 0.23), (-0.16, 0.10), (-0.25, 0.24), (-0.40, 0.23)]]
_EYE_AT = (0.42, -0.38)


@dataclass
class _Layer:
    """Coverage (h, w) of a shape and where it lies in the picture."""

    alpha: np.ndarray
    where: tuple[slice, slice]


class _Easel:
    """The picture being drawn, (size, size, 3) float32 in 0..255, and the part that owns each pixel."""

    def __init__(self, size: int, scene: Scene) -> None:
        self.size = size
        self.x, self.y = _grid(size)
        half = size / 2
        c, s = np.cos(scene.rotation) * scene.scale, np.sin(scene.rotation) * scene.scale
        mirror = -1.0 if scene.flip else 1.0
        self.matrix = half * np.array([[mirror * c, -mirror * s, scene.x + 1], [s, c, scene.y + 1]])
        linear = self.matrix[:, :2] / half
        inverse = np.linalg.inv(linear).astype(np.float32)
        dx, dy = self.x - np.float32(scene.x), self.y - np.float32(scene.y)
        self.u = inverse[0, 0] * dx + inverse[0, 1] * dy
        self.v = inverse[1, 0] * dx + inverse[1, 1] * dy
        self.image = np.empty((size, size, 3), np.float32)
        self.owner = np.full((size, size), -1, np.int8)
        self.tint = np.array(scene.tint, np.float32)

    def cover(self, shapes: Sequence[np.ndarray], turn: float = 0.0, joint: tuple[float, float] = (0, 0)) -> _Layer | None:
        """Coverage of shapes turned about a joint; None if nothing of them is inside the picture."""
        matrix = self.matrix @ _turned(turn, joint)
        moved = [p @ matrix[:, :2].T + matrix[:, 2] for p in shapes]
        everything = np.concatenate(moved) if len(moved) > 1 else moved[0]
        x0, y0 = np.maximum(np.floor(everything.min(0)).astype(int) - 1, 0)
        x1, y1 = np.minimum(np.ceil(everything.max(0)).astype(int) + 1, self.size)
        if x0 >= x1 or y0 >= y1:
            return None
        mask = np.zeros(((y1 - y0) * _SUPER, (x1 - x0) * _SUPER), np.uint8)
        for p in moved:
            q = ((p - (x0, y0)) * _SUPER - 0.5) * (1 << _SHIFT)
            cv2.fillPoly(mask, [np.rint(q).astype(np.int32)], _FULL, cv2.LINE_8, _SHIFT)
        small = cv2.resize(mask, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)
        return _Layer(small.astype(np.float32) / _FULL, (slice(y0, y1), slice(x0, x1)))

    def paint(self, layer: _Layer, colour: np.ndarray) -> None:
        region = self.image[layer.where]
        region += layer.alpha[..., None] * (colour - region)

    def claim(self, layer: _Layer, part: int) -> None:
        self.owner[layer.where][layer.alpha > 0.5] = part

    def soft(self, layer: _Layer, width: float) -> np.ndarray:
        """0 at the outline of a layer to 1 inside, rising over about `width`."""
        sigma = max(width * self.size / 2, 0.3)
        blurred = cv2.GaussianBlur(layer.alpha, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
        return np.clip(2 * blurred - 1, 0, 1)


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    line = ((np.arange(size) + 0.5) * 2 / size - 1).astype(np.float32)
    return np.ascontiguousarray(np.broadcast_to(line, (size, size))), np.ascontiguousarray(
        np.broadcast_to(line[:, None], (size, size)))


def _turned(angle: float, joint: tuple[float, float]) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    x, y = joint
    return np.array([[c, -s, x - c * x + s * y], [s, c, y - s * x - c * y], [0, 0, 1]])


def _step(x: np.ndarray) -> np.ndarray:
    """Smooth step from 0 at x <= 0 to 1 at x >= 1."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _feathers(u: np.ndarray, v: np.ndarray, length: float, width: float) -> np.ndarray:
    """Staggered rows of scallops running down and back, about [-1, 1]; smooth, so that small pictures do not alias."""
    rows = (u * np.float32(-0.80) + v * np.float32(0.60)) / np.float32(length)
    columns = (u * np.float32(0.60) + v * np.float32(0.80)) / np.float32(width)
    phase = rows + np.float32(0.32) * np.cos(columns * np.float32(2 * np.pi)) * np.cos(rows * np.float32(np.pi))
    wave = phase * np.float32(2 * np.pi)
    return np.float32(0.75) * np.cos(wave) + np.float32(0.25) * np.sin(2 * wave)


def _draw_part(easel: _Easel, name: str, layer: _Layer | None, colour: np.ndarray, light: float = 0.22,
               rim: float = 0.45, texture: np.ndarray | None = None) -> None:
    """Paint a part: base colour (3,) or (h, w, 3), light from above, a darker outline, texture (h, w) around 0."""
    if layer is None:
        return
    v = easel.v[layer.where]
    inside = layer.alpha > 0.5
    if not inside.any():
        return
    low, high = _extent(v, inside)
    shade = 1 + light * (1 - 2 * np.clip((v - low) / (high - low), 0, 1))
    shade *= 1 - rim + rim * easel.soft(layer, 0.045)
    if texture is not None:
        shade += texture
    easel.paint(layer, np.minimum(colour * shade[..., None], 255) * easel.tint)
    easel.claim(layer, PARTS.index(name))


def _extent(v: np.ndarray, inside: np.ndarray) -> tuple[float, float]:
    chosen = v[inside]
    low, high = float(chosen.min()), float(chosen.max())
    return low, max(high, low + 1e-3)


def _overlay(easel: _Easel, colour: np.ndarray, base: _Layer, shapes: Sequence[np.ndarray], paint: Sequence[float],
             turn: float = 0.0, joint: tuple[float, float] = (0, 0), opacity: float = 1.0) -> None:
    """Mix `paint` into the colour field (h, w, 3) of a base layer where the shapes lie."""
    mark = easel.cover(shapes, turn, joint)
    if mark is None:
        return
    full = np.zeros((easel.size, easel.size), np.float32)
    full[mark.where] = mark.alpha * opacity
    colour += full[base.where][..., None] * (np.asarray(paint, np.float32) - colour)


def _field(layer: _Layer, colour: Sequence[float]) -> np.ndarray:
    return np.broadcast_to(np.asarray(colour, np.float32), (*layer.alpha.shape, 3)).copy()


def _background(easel: _Easel, scene: Scene) -> None:
    c, s = np.float32(np.cos(scene.gradient_angle)), np.float32(np.sin(scene.gradient_angle))
    t = _step((easel.y * c + easel.x * s + 1) / 2)[..., None]
    top, bottom = (np.array(colour, np.float32) * 255 for colour in (scene.top, scene.bottom))
    easel.image[:] = top + t * (bottom - top)
    for blob in scene.background:
        _blob(easel, blob, softness=0.6)


def _blob(easel: _Easel, blob: Blob, softness: float) -> np.ndarray:
    """Paint a disc or a leaf; returns its opacity (size, size)."""
    c, s = np.float32(np.cos(blob.angle)), np.float32(np.sin(blob.angle))
    dx, dy = easel.x - np.float32(blob.x), easel.y - np.float32(blob.y)
    along, across = (c * dx + s * dy) / np.float32(blob.radius), (c * dy - s * dx) / np.float32(blob.radius)
    colour = 255 * np.array(blob.colour, np.float32)
    if blob.kind == "leaf":
        distance = np.abs(along) ** 1.5 + np.abs(across) / np.float32(0.45)
        vein = np.float32(1) + np.float32(0.25) * np.exp(-((across / np.float32(0.09)) ** 2))
        paint = colour * (vein * (1 - np.float32(0.15) * np.sign(across) * np.minimum(np.abs(across) * 20, 1)))[..., None]
    else:
        distance, paint = np.sqrt(along**2 + across**2), colour
    opacity = np.float32(blob.opacity) * _step((1 - distance) / np.float32(softness))
    easel.image += opacity[..., None] * (paint - easel.image)
    return opacity


def render(bird: Bird, scene: Scene, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Draw a bird.

    Returns the picture, uint8 (size, size, 3) RGB, and the part masks, bool (parts, size, size): the visible pixels of
    each of `PARTS`, disjoint. Raises ValueError if size is below 8.
    """
    if size < 8:
        raise ValueError(f"size is {size}; choose at least 8 pixels")
    easel = _Easel(size, scene)
    _background(easel, scene)
    for part, draw in _DRAW.items():
        if part not in scene.missing:
            draw(easel, bird, scene)
    for blob in scene.occluders:
        opacity = _blob(easel, blob, softness=max(0.12, 5.0 / size))
        easel.owner[opacity > 0.5] = -1
    image = np.clip(easel.image * np.float32(scene.brightness) + np.float32(0.5), 0, 255).astype(np.uint8)
    return image, easel.owner[None] == np.arange(len(PARTS), dtype=np.int8)[:, None, None]


def _colours(bird: Bird) -> np.ndarray:
    return np.array(_BODY[bird["body colour"]], np.float32)


def _draw_tail(easel: _Easel, bird: Bird, scene: Scene) -> None:
    layer = easel.cover(_TAIL_SHAPES[bird["tail"]], scene.tail_turn, _RUMP)
    if layer is None:
        return
    u, v = easel.u[layer.where], easel.v[layer.where]
    fan = np.arctan2(v - np.float32(0.12), np.float32(-0.30) - u)
    texture = np.float32(0.10) * np.cos(fan * np.float32(24)) - np.float32(0.35) * _step((-u - np.float32(0.70)) / np.float32(0.2))
    _draw_part(easel, "tail", layer, _colours(bird) * np.float32(0.72), texture=texture, light=0.12)


def _draw_legs(easel: _Easel, bird: Bird, scene: Scene) -> None:
    layer = easel.cover(_LEG_SHAPES[bird["legs"]], scene.leg_turn, _HIP)
    _draw_part(easel, "legs", layer, np.array(_LEGS[bird["leg colour"]], np.float32), light=0.1, rim=0.25)


def _draw_body(easel: _Easel, bird: Bird, scene: Scene) -> None:
    layer = easel.cover([_BODY_SHAPE])
    if layer is None:
        return
    colour = _field(layer, _colours(bird))
    if bird["breast"] == "pale":
        _overlay(easel, colour, layer, _PALE_BREAST, _PALE)
    elif bird["breast"] == "banded":
        _overlay(easel, colour, layer, _BREAST_BAND, _DARK)
    texture = np.float32(0.06) * _feathers(easel.u[layer.where], easel.v[layer.where], 0.13, 0.20)
    _draw_part(easel, "body", layer, colour, light=0.24, rim=0.38, texture=texture)


def _draw_crest(easel: _Easel, bird: Bird, scene: Scene) -> None:
    if bird["crest"] == "none":
        return
    layer = easel.cover(_CREST_SHAPES[bird["crest"]], scene.head_turn, _NECK)
    if layer is None:
        return
    u, v = easel.u[layer.where], easel.v[layer.where]
    rays = np.arctan2(v + np.float32(0.35), u - np.float32(0.30))
    _draw_part(easel, "crest", layer, np.array(_CREST, np.float32), texture=np.float32(0.12) * np.cos(rays * 16))


def _draw_head(easel: _Easel, bird: Bird, scene: Scene) -> None:
    layer = easel.cover([_HEAD_SHAPE], scene.head_turn, _NECK)
    if layer is None:
        return
    colour = _field(layer, _colours(bird) * np.float32(1.06))
    if bird["head"] == "capped":
        _overlay(easel, colour, layer, _CAP, _DARK, scene.head_turn, _NECK)
    elif bird["head"] == "striped":
        _overlay(easel, colour, layer, _BROW, _PALE, scene.head_turn, _NECK)
        _overlay(easel, colour, layer, _STRIPE, _DARK, scene.head_turn, _NECK)
    texture = np.float32(0.04) * _feathers(easel.u[layer.where], easel.v[layer.where], 0.12, 0.17)
    _draw_part(easel, "head", layer, colour, texture=texture, rim=0.24)


def _draw_beak(easel: _Easel, bird: Bird, scene: Scene) -> None:
    layer = easel.cover(_BEAK_SHAPES[bird["beak"]], scene.head_turn, _NECK)
    _draw_part(easel, "beak", layer, np.array(_BEAK[bird["beak colour"]], np.float32), light=0.25, rim=0.35)


def _draw_eye(easel: _Easel, bird: Bird, scene: Scene) -> None:
    ring = easel.cover([_ellipse(*_EYE_AT, 0.098, 0.098)], scene.head_turn, _NECK)
    if ring is None:
        return
    outline = (250, 240, 215) if bird["eye"] == "dark" else (34, 28, 32)
    easel.paint(ring, np.array(outline, np.float32))
    easel.claim(ring, PARTS.index("eye"))
    x, y = _EYE_AT
    for shape, paint in (((x, y, 0.074, 0.074), _IRIS[bird["eye"]]), ((x, y, 0.042, 0.042), (20, 18, 22)),
                         ((x + 0.025, y - 0.03, 0.022, 0.022), (255, 255, 255))):
        spot = easel.cover([_ellipse(*shape)], scene.head_turn, _NECK)
        if spot is not None:
            easel.paint(spot, np.array(paint, np.float32))


def _draw_wing(easel: _Easel, bird: Bird, scene: Scene) -> None:
    layer = easel.cover([_WING_SHAPE], scene.wing_turn, _SHOULDER)
    if layer is None:
        return
    colour = _field(layer, _WING[bird["wing colour"]])
    paint = _DARK if bird["wing colour"] == "cream" else _PALE
    if bird["wing"] == "barred":
        _overlay(easel, colour, layer, _BARS, paint, scene.wing_turn, _SHOULDER)
    elif bird["wing"] == "spotted":
        _overlay(easel, colour, layer, _SPOTS, paint, scene.wing_turn, _SHOULDER)
    u, v = easel.u[layer.where], easel.v[layer.where]
    flight = _step((-u - np.float32(0.10)) / np.float32(0.3))
    fan = np.arctan2(v + np.float32(0.10), np.float32(0.55) - u)
    texture = np.float32(0.10) * flight * np.cos(fan * 34) + np.float32(0.06) * (1 - flight) * _feathers(u, v, 0.13, 0.18)
    _draw_part(easel, "wing", layer, colour, texture=texture, rim=0.5, light=0.18)


_DRAW = {"tail": _draw_tail, "legs": _draw_legs, "body": _draw_body, "crest": _draw_crest, "beak": _draw_beak,
         "head": _draw_head, "eye": _draw_eye, "wing": _draw_wing}
