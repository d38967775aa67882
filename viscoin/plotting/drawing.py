"""Figures of what is seen when single concepts are drawn weaker and stronger, and attributes are swapped."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from viscoin.plotting.style import BLUE, COLUMN, DARK, GREY, LIGHT, PAGE, SMALL, new_figure, styled
from viscoin.statistics.bootstrap import Estimate
from viscoin.testing.drawing.readback import MULTIPLIERS

GROUP = "surgery.group."


def drawing_figures(estimates: Mapping[str, Estimate]) -> dict[str, Figure]:
    """Every figure that there are numbers for, by file name.

    Args:
        estimates: `ViscoinMeasures.estimates()`.
    """
    figures = {}
    if "dose_response.x0" in estimates:
        figures["dose-response"] = dose_figure(estimates)
    if "surgery.seen" in estimates:
        figures["surgery"] = surgery_figure(estimates)
    return figures


@styled
def dose_figure(estimates: Mapping[str, Estimate], width: float = PAGE) -> Figure:
    """What is seen of a concept at each multiplier, with 95 % intervals: by f and Psi, and by the judge if there is
    one. The control multiplies another concept of the same image."""
    judged = "dose_response.judge.x0" in estimates
    figure = new_figure(width if judged else COLUMN, 2.3)
    panels = figure.subplots(1, 1 + judged, squeeze=False)[0]
    panels[0].plot([0, 2], [0, 2], color=DARK, lw=0.8, ls=":", label="as asked")
    _doses(panels[0], estimates, "dose_response.")
    panels[0].set(ylabel="activation read back (1: image)", title="read by f and Ψ")
    panels[0].legend(loc="upper left")
    if judged:
        _doses(panels[1], estimates, "dose_response.judge.")
        panels[1].set(ylim=(-0.02, 1.02), ylabel="P(attribute of the concept)", title="seen by the judge")
        panels[1].legend(loc="lower right")
    for axes in panels:
        axes.set_xticks(MULTIPLIERS, [f"×{factor:g}" for factor in MULTIPLIERS])
        axes.set_xlabel("concept multiplied by")
        axes.grid(axis="y")
    return figure


def _doses(axes: Axes, estimates: Mapping[str, Estimate], prefix: str) -> None:
    for ending, label, colour, line in (("", "its concept", BLUE, "-"), ("_control", "another concept", GREY, "--")):
        found = [estimates.get(f"{prefix}x{factor:g}{ending}") for factor in MULTIPLIERS]
        known = [estimate for estimate in found if estimate is not None]
        if len(known) == len(MULTIPLIERS):
            axes.fill_between(
                MULTIPLIERS, [e.low for e in known], [e.high for e in known], color=colour, alpha=0.2, lw=0
            )
            axes.plot(MULTIPLIERS, [e.value for e in known], color=colour, ls=line, marker="o", ms=3, label=label)


@styled
def surgery_figure(estimates: Mapping[str, Estimate], width: float = COLUMN) -> Figure:
    """Share of swaps whose new value the judge sees, of all and by group of attributes, with 95 % intervals."""
    groups = sorted((key for key in estimates if key.startswith(GROUP)), key=lambda key: -estimates[key].value)
    rows = [("all", estimates["surgery.seen"]), *((key.removeprefix(GROUP), estimates[key]) for key in groups)]
    figure = new_figure(width, 0.85 + 0.2 * len(rows))
    axes = figure.subplots()
    places = np.arange(len(rows))
    axes.barh(
        places, [e.value for _, e in rows], height=0.7, color=[BLUE, *["#7FB8D8"] * len(groups)],
    )  # fmt: skip
    axes.hlines(places, [e.low for _, e in rows], [e.high for _, e in rows], color=DARK, lw=0.9)
    before = estimates["surgery.before"].value
    axes.axvline(before, color=DARK, lw=0.8, ls=":", label=f"seen before the swap, {before:.2f}")
    _numbers(axes, [e for _, e in rows])
    axes.set_yticks(places, [name for name, _ in rows])
    axes.set(xlim=(0, 1), ylim=(len(rows) - 0.45, -0.55), xlabel="swaps whose new value the judge sees")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=LIGHT)
    figure.legend(loc="outside upper left", borderaxespad=0.2)
    return figure


def _numbers(axes: Axes, estimates: Sequence[Estimate]) -> None:
    """Value and number of swaps, right of each bar."""
    for place, estimate in enumerate(estimates):
        axes.annotate(
            f"{estimate.value:.2f} of {estimate.n}", (1, place), (4, 0), xycoords=("axes fraction", "data"),
            textcoords="offset points", va="center", fontsize=SMALL, color=GREY, annotation_clip=False,
        )  # fmt: skip
