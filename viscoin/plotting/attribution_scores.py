"""Figures of how true heatmaps are: methods against scores, and curves of what hiding pixels does."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from viscoin.plotting.style import DARK, GREY, LIGHT, LINE, PAGE, PALETTE, SMALL, new_figure, styled
from viscoin.testing.attribution.scores import BASELINES, SCORES
from viscoin.testing.attribution.study import CONTROLS, ORACLE, AttributionScores, Row
from viscoin.testing.attribution.tables import BELOW, COLUMNS, ordered

CURVES = 7  # methods with a colour of their own, beside which the others are grey
WORST, BEST = 0.04, 0.75  # of the colour map, so that numbers can be read on it
DARK_SHADE = 0.45  # above which grey numbers would not be read


def attribution_figures(result: AttributionScores) -> dict[str, Figure]:
    """Every figure that the result has numbers for, by file name."""
    figures = {"attribution-scores": scores_figure(result)}
    if any(f"deletion.{name}" in row.curves for row in result.rows.values() for name in BASELINES):
        figures["attribution-curves"] = curves_figure(result)
    return figures


@styled
def scores_figure(result: AttributionScores, width: float = PAGE) -> Figure:
    """Methods x scores: values, the darker the better within a column; grey ones do not beat `edges`.

    Oracle and controls stand below a line, and are coloured on the same scale.
    """
    rows, columns = ordered(result), _columns(result)
    figure = new_figure(width, 1.0 + 1.35 * LINE * len(rows))
    axes = figure.subplots()
    shades = np.stack([_shades([row.estimates.get(key) for row in rows], SCORES[key].better) for key in columns], 1)
    axes.imshow(shades, cmap="Greens", vmin=0, vmax=1, aspect="auto")
    for y, row in enumerate(rows):
        for x, key in enumerate(columns):
            _number(axes, x, y, row, key, pale=not shades[y, x] > DARK_SHADE)
    titles = {key: title for group in COLUMNS.values() for key, title in group.items()}
    axes.set_xticks(range(len(columns)), [f"{titles[key]}{_arrow(key)}" for key in columns], rotation=55, ha="left")
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    methods = len([row for row in rows if row.name not in (*CONTROLS, ORACLE)])
    if 0 < methods < len(rows):
        axes.axhline(methods - 0.5, color=DARK, lw=0.8)
    axes.set_xlabel(
        f"{result.n} images; {BELOW} and grey: not better than edges (95 % interval of the difference); darker: better",
        fontsize=SMALL,
    )
    return figure


def _columns(result: AttributionScores) -> list[str]:
    every = [key for group in COLUMNS.values() for key in group]
    return [key for key in every if any(key in row.estimates for row in result.rows.values())]


def _shades(estimates: Sequence[object], better: int) -> np.ndarray:
    """Shade (n,) of each value in its column, NaN where there is none or no direction is better."""
    values = np.array([getattr(estimate, "value", np.nan) for estimate in estimates], dtype=float) * (better or 1)
    known = values[~np.isnan(values)]
    if not better or not len(known) or np.ptp(known) == 0:
        return np.where(np.isnan(values), np.nan, WORST)
    return WORST + (BEST - WORST) * (values - known.min()) / np.ptp(known)


def _number(axes: Axes, x: int, y: int, row: Row, key: str, pale: bool) -> None:
    estimate = row.estimates.get(key)
    if estimate is None:
        axes.text(x, y, "–", ha="center", va="center", fontsize=SMALL, color=GREY)
        return
    below = row.beats_edges(key) is False
    text = f"{estimate.value:.2f}{BELOW if below else ''}"
    colour = (GREY if pale else LIGHT) if below else DARK
    axes.text(x, y, text, ha="center", va="center", fontsize=SMALL, color=colour)


def _arrow(key: str) -> str:
    return {1: " ↑", -1: " ↓", 0: ""}[SCORES[key].better]


@styled
def curves_figure(result: AttributionScores, width: float = PAGE) -> Figure:
    """Probability of the predicted class while pixels are hidden, most or least important first, by what hides them."""
    names = [name for name in BASELINES if any(f"deletion.{name}" in row.curves for row in result.rows.values())]
    figure = new_figure(width, 2.6)
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    looks = _looks(result)
    for axes, name in zip(panels, names, strict=True):
        for row in reversed(ordered(result)):
            if f"deletion.{name}" in row.curves:
                _curve(axes, row, name, looks[row.name])
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="share hidden")
        axes.set_title(f"hidden by: {name}", fontsize=SMALL)
    panels[0].set_ylabel("p(predicted class)")
    lines = [mpl.lines.Line2D([], [], **looks[row.name]) for row in ordered(result)]
    figure.legend(
        lines, [row.name for row in ordered(result)], loc="outside lower center", ncols=6, columnspacing=1.0,
        title="solid: most important first, dashed: least", title_fontsize=SMALL,
    )  # fmt: skip
    return figure


def _curve(axes: Axes, row: Row, name: str, look: Mapping[str, object]) -> None:
    most, least = row.curves[f"deletion.{name}"], row.curves[f"insertion.{name}"][::-1]
    places = np.linspace(0, 1, len(most))
    axes.plot(places, most, **look)  # type: ignore[arg-type]
    axes.plot(places, least, **{**look, "ls": "--"})  # type: ignore[arg-type]


def _gap(row: Row) -> float:
    """Insertion - deletion by the last of the baselines, the truest."""
    found = [row.estimates[f"gap.{name}"].value for name in BASELINES if f"gap.{name}" in row.estimates]
    return found[-1] if found else -np.inf


def _looks(result: AttributionScores) -> dict[str, dict[str, Any]]:
    """Colours of the methods with the largest gaps, the oracle and the controls; thin grey for the rest."""
    looks: dict[str, dict[str, Any]] = {row.name: {"color": LIGHT, "lw": 0.7} for row in result.rows.values()}
    by_gap = sorted(result.rows.values(), key=_gap, reverse=True)
    first = [row.name for row in by_gap if row.name not in (*CONTROLS, ORACLE)][: CURVES - 1]
    looks |= {name: {"color": colour, "lw": 1.1} for name, colour in zip(first, PALETTE)}
    for name, width in zip((ORACLE, *CONTROLS), (1.4, 0.8, 0.8, 1.1)):
        if name in looks:
            looks[name] = {"color": DARK if name in (ORACLE, "edges") else GREY, "lw": width}
    return looks
