"""Figures of the scorecard."""

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from viscoin.plotting.heatmaps import overlay
from viscoin.plotting.style import (
    BLUE,
    DARK,
    GREY,
    HEAT,
    LIGHT,
    ORANGE,
    PAGE,
    SKY,
    SMALL,
    VERMILION,
    new_figure,
    styled,
)
from viscoin.plotting.truth import FUNCTIONS
from viscoin.testing.scorecard.questions import QUESTIONS
from viscoin.testing.scorecard.result import Example, Row, Scorecard

# What each kind explains, for people, and its colour.
KINDS = {
    "class": ("map of a class", BLUE),
    "plugin": ("map of a class, plugin", ORANGE),
    "concept": ("map of a concept", VERMILION),
    "control": ("control", GREY),
}
ROW = 0.17  # inches
TITLES = {
    "points": "points at\nthe part", "mass": "mass in\nthe part", "falls": "falls with\nthe part",
    "stays": "stays without\nbackground", "stable": "stable under\nnoise",
}  # fmt: skip


def title_of(row: Row) -> str:
    """What a row is called: its method, and of concepts first whose they are."""
    if row.function is None:
        return row.method
    name = "VisCoIN concepts" if row.function == "concepts" else FUNCTIONS[row.function][0].format(k=row.k)
    return f"{name}: {row.method}"


def ordered(rows: list[Row]) -> list[Row]:
    """Rows by kind, those that point best first."""
    kinds = list(KINDS)
    return sorted(rows, key=lambda row: (kinds.index(row.kind), -row.answers["points"].estimate.value))


@styled
def scorecard_figure(card: Scorecard, width: float = PAGE) -> Figure:
    """A panel for each question, a row for each map: value, 95 % interval, and chance as a tick."""
    rows = ordered(card.rows)
    questions = [name for name in QUESTIONS if any(name in row.answers for row in rows)]
    figure = new_figure(width, 0.95 + ROW * len(rows))
    panels = figure.subplots(1, len(questions), sharey=True, squeeze=False)[0]
    for axes, question in zip(panels, questions, strict=True):
        answers = [row.answers[question] for row in rows if question in row.answers]
        least = min(min(answer.estimate.low, answer.chance) for answer in answers)
        for place, row in enumerate(rows):
            if answer := row.answers.get(question):
                value, colour = answer.estimate, KINDS[row.kind][1]
                axes.hlines(place, value.low, value.high, color=colour, lw=1.2)
                axes.plot(answer.chance, place, "|", color=DARK, ms=6, mew=0.8)
                axes.plot(value.value, place, "o", color=colour, ms=3.2)
        for place in range(1, len(rows)):
            if rows[place].kind != rows[place - 1].kind:
                axes.axhline(place - 0.5, color=LIGHT, lw=0.8)
        axes.set_title(TITLES[question], fontsize=SMALL)
        axes.set(xlim=(min(-0.02, least - 0.04), 1.04), ylim=(len(rows) - 0.4, -0.6))
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.grid(axis="x")
        axes.set_yticks(range(len(rows)), [title_of(row) for row in rows])
        axes.tick_params(axis="y", length=0)
    figure.legend(*_key(rows), loc="outside lower right", ncols=5, borderaxespad=0.2, handletextpad=0.3)
    return figure


def _key(rows: list[Row]) -> tuple[list[Artist], list[str]]:
    there = {row.kind for row in rows}
    keys: dict[str, Artist] = {
        text: Line2D([], [], color=colour, marker="o", ms=3.2, lw=1.2)
        for kind, (text, colour) in KINDS.items() if kind in there
    }  # fmt: skip
    keys["chance"] = Line2D([], [], color=DARK, marker="|", ms=6, mew=0.8, lw=0)
    return list(keys.values()), list(keys)


def strip(card: Scorecard, example: Example) -> np.ndarray:
    """The maps of a row over its scene, uint8 (H, 3 W + gaps, 3): whole, without the part, without the background.

    What is below zero is not shown; all three have one scale, so that a map that fades is seen to.
    """
    cases, heat = card.cases, np.maximum(np.nan_to_num(example.maps), 0)
    heat = heat / max(float(heat.max()), 1e-12)
    scenes = [_pixels(images[example.case].numpy()) for images in (cases.images, cases.without, cases.plain)]
    colours = mpl.colormaps[HEAT]
    covered = [_outlined(overlay(scene, of, colours), cases.masks[example.case]) for scene, of in zip(scenes, heat)]
    return _beside([np.round(255 * picture).astype(np.uint8) for picture in covered])


def scene_strip(card: Scorecard, case: int) -> np.ndarray:
    """The three scenes of a case, laid out as `strip`, the part in question outlined."""
    cases = card.cases
    scenes = [_pixels(images[case].numpy()) / 255 for images in (cases.images, cases.without, cases.plain)]
    return _beside([np.round(255 * _outlined(scene, cases.masks[case])).astype(np.uint8) for scene in scenes])


def _pixels(image: np.ndarray) -> np.ndarray:
    """(3, H, W) in [-1, 1] -> (H, W, 3) uint8."""
    return np.round((image.transpose(1, 2, 0) + 1) * 127.5).clip(0, 255).astype(np.uint8)


def _outlined(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) in [0, 1] with the pixels around a mask in sky blue."""
    around = np.zeros_like(mask)
    for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
        around |= np.roll(mask, step, axis)
    drawn = picture.copy()
    drawn[around & ~mask] = mpl.colors.to_rgb(SKY)
    return drawn


def _beside(pictures: list[np.ndarray]) -> np.ndarray:
    gap = np.full((len(pictures[0]), 2, 3), 255, np.uint8)
    return np.concatenate([pictures[0], gap, pictures[1], gap, pictures[2]], 1)
