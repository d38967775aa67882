"""Outlines of the birds' parts, in bird coordinates.

The bird looks to the right, the origin lies in the middle of the picture, x runs to the right and y down, and 1 is half
the picture's width at scale 1. Each outline is an (N, 2) float64 array; a part may have several.
"""

from collections.abc import Sequence

import numpy as np


def _points(text: str) -> np.ndarray:
    """Points (N, 2) written as "x,y x,y ..."."""
    return np.array([[float(number) for number in pair.split(",")] for pair in text.split()])


def _smooth(text: str, steps: int = 6) -> np.ndarray:
    """Closed Catmull-Rom curve (N * steps, 2) through the points."""
    p = _points(text)
    before, after, next_after = np.roll(p, 1, 0), np.roll(p, -1, 0), np.roll(p, -2, 0)
    t = (np.arange(steps) / steps)[None, :, None]
    p, before, after, next_after = (q[:, None] for q in (p, before, after, next_after))
    curve = 2 * p + (after - before) * t + (2 * before - 5 * p + 4 * after - next_after) * t**2
    return (0.5 * (curve + (3 * p - before - 3 * after + next_after) * t**3)).reshape(-1, 2)


def _strip(points: np.ndarray, half_width: Sequence[float]) -> np.ndarray:
    """A band around a polyline, `half_width` wide on each side of each point."""
    w = np.asarray(half_width)[:, None]
    along = np.gradient(points, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    across = np.stack([-along[:, 1], along[:, 0]], axis=-1)
    return np.concatenate([points + w * across, (points - w * across)[::-1]])


def _ellipse(x: float, y: float, a: float, b: float, angle: float = 0.0, n: int = 28) -> np.ndarray:
    t = 2 * np.pi * np.arange(n) / n
    c, s = np.cos(angle), np.sin(angle)
    u, v = a * np.cos(t), b * np.sin(t)
    return np.stack([x + c * u - s * v, y + s * u + c * v], axis=-1)


def _leg(x: float, ground: float) -> list[np.ndarray]:
    shank = np.array([(x - 0.01, 0.34), (x, 0.44), (x + 0.01, ground - 0.02)])
    toes = _smooth("-0.10,0.035 -0.03,-0.03 0.05,-0.03 0.17,0.03 0.09,0.035 0.03,0.02 -0.04,0.045")
    return [_strip(shank, [0.075, 0.042, 0.036]), toes + np.array([x, ground])]


def _bar(x: float) -> np.ndarray:
    return _strip(_points("0.06,-0.16 0.015,-0.03 0.00,0.10 0.01,0.23 0.05,0.36") + np.array([x, 0.0]), [0.040] * 5)


# Where the moving parts are joined to the body.
NECK, RUMP, SHOULDER, HIP = (0.24, -0.14), (-0.42, 0.10), (0.16, 0.04), (-0.02, 0.36)

BODY = [
    _smooth(
        "0.30,-0.28 0.45,-0.08 0.47,0.13 0.36,0.34 0.14,0.46 -0.12,0.45 "
        "-0.34,0.33 -0.52,0.19 -0.56,0.08 -0.40,-0.03 -0.16,-0.14 0.08,-0.30"
    )
]
HEAD = [_smooth("0.62,-0.36 0.56,-0.19 0.40,-0.10 0.20,-0.13 0.07,-0.27 0.09,-0.47 0.24,-0.61 0.42,-0.62 0.56,-0.53")]
WING = [_smooth("0.27,0.04 0.21,0.21 0.02,0.33 -0.24,0.35 -0.50,0.31 -0.64,0.27 -0.42,0.12 -0.14,-0.04 0.12,-0.12")]
BEAK = {
    "hooked": [_smooth("0.52,-0.50 0.66,-0.51 0.78,-0.42 0.825,-0.27 0.79,-0.15 0.745,-0.24 0.67,-0.27 0.52,-0.23")],
    "thin": [_strip(_points("0.52,-0.37 0.70,-0.36 0.83,-0.335 0.94,-0.30"), [0.072, 0.048, 0.034, 0.020])],
    "cone": [_smooth("0.50,-0.53 0.64,-0.49 0.80,-0.36 0.66,-0.25 0.50,-0.19")],
}
CREST = {
    "none": [],
    "spiky": [
        _points(
            "0.50,-0.54 0.50,-0.86 0.38,-0.66 0.26,-0.90 0.21,-0.64 "
            "0.00,-0.78 0.09,-0.55 -0.08,-0.52 0.08,-0.36 0.30,-0.45"
        )
    ],
    "plumed": [
        _smooth(
            "0.54,-0.54 0.47,-0.72 0.30,-0.84 0.06,-0.89 -0.20,-0.86 -0.34,-0.74 "
            "-0.20,-0.73 -0.08,-0.66 0.00,-0.52 0.10,-0.34 0.34,-0.46"
        )
    ],
}
TAIL = {
    "fan": [
        _smooth("-0.38,0.00 -0.62,-0.10 -0.82,-0.19 -0.91,-0.02 -0.93,0.16 -0.86,0.33 -0.76,0.42 -0.58,0.30 -0.38,0.24")
    ],
    "forked": [_smooth("-0.36,0.03 -0.62,-0.04 -0.96,-0.22 -0.70,0.12 -0.94,0.46 -0.60,0.28 -0.36,0.22", steps=4)],
    "long": [_smooth("-0.38,0.02 -0.66,0.10 -0.92,0.24 -0.97,0.32 -0.91,0.38 -0.66,0.31 -0.38,0.24")],
}
LEGS = {"short": _leg(-0.10, 0.63) + _leg(0.12, 0.63), "long": _leg(-0.10, 0.86) + _leg(0.12, 0.86)}

PALE_BREAST = [_smooth("0.52,-0.10 0.55,0.20 0.40,0.48 0.10,0.60 -0.16,0.52 0.00,0.38 0.24,0.26 0.33,0.06 0.38,-0.08")]
BREAST_BAND = [_strip(_points("0.08,-0.12 0.22,0.01 0.38,0.05 0.56,0.01"), [0.070, 0.075, 0.080, 0.085])]
CAP = [_smooth("0.66,-0.46 0.48,-0.47 0.30,-0.45 0.02,-0.34 0.00,-0.60 0.30,-0.75 0.62,-0.64")]
EYE_STRIPE = [_strip(_points("0.68,-0.38 0.42,-0.38 0.20,-0.32 0.00,-0.20"), [0.070, 0.080, 0.075, 0.060])]
BROW = [_strip(_points("0.64,-0.49 0.42,-0.51 0.20,-0.46 0.02,-0.34"), [0.030, 0.042, 0.042, 0.030])]
BARS = [_bar(0.09), _bar(-0.09), _bar(-0.27)]
SPOTS = [
    _ellipse(x, y, 0.062, 0.046, 2.8, n=18)
    for x, y in _points("0.16,0.00 0.09,0.16 -0.01,0.02 -0.07,0.23 -0.16,0.10 -0.25,0.24 -0.40,0.23")
]
EYE = [_ellipse(0.42, -0.38, 0.098, 0.098)]
IRIS = [_ellipse(0.42, -0.38, 0.074, 0.074)]
PUPIL = [_ellipse(0.42, -0.38, 0.042, 0.042)]
GLINT = [_ellipse(0.445, -0.41, 0.022, 0.022)]
