"""Figures of training curves."""

import logging
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from viscoin.plotting.style import BLUE, GREEN, GREY, MEDIUM, PAGE, PALETTE, SMALL, VERMILION, new_figure, styled, wrap
from viscoin.runs.metrics import Log, run_names, smooth, split_name

COLOURS = {"train": BLUE, "validation": VERMILION, "test": GREEN, "": GREY}
DASHES = {"train": "-", "validation": "--", "test": ":", "": "-"}
FEW = 30  # points, which are marked and not smoothed
MOST_PANELS = 60  # that a figure has room for
LARGEST = 1e30  # beyond it, a value is the trace of a fault, and no axis can hold it
logger = logging.getLogger(__name__)


@styled
def training_figure(
    logs: Sequence[Log],
    names: Sequence[str] | None = None,
    smoothing: float = 0.0,
    log_scale: bool = False,
    columns: int = 4,
    width: float = PAGE,
) -> Figure:
    """One panel for each measure; training and held-out values share it.

    Of one run, colours separate training from held-out values; of several, colours separate runs and dashes the rest.

    Args:
        logs: one run, or as many as there are colours (8).
        names: the measures to plot, all by default; those that no log has are left out.
        smoothing: weight of the past in [0, 1); the values themselves stay as a faint line.
        log_scale: logarithmic values, wherever there are positive ones.

    Raises:
        ValueError: nothing to plot, or too many runs.
    """
    if len(logs) > len(PALETTE):
        raise ValueError(f"{len(logs)} runs are too many for one figure; choose up to {len(PALETTE)}")
    found = list(dict.fromkeys(name for log in logs for name in log.measures))
    measures = found if names is None else [name for name in names if name in found]
    if not measures:
        raise ValueError(f"no measure to draw; the logs hold {', '.join(found)}")
    if len(measures) > MOST_PANELS:
        logger.warning(
            "the figure shows the first %d of %d measures; choose others by name", MOST_PANELS, len(measures)
        )
        measures = measures[:MOST_PANELS]
    columns = min(columns, len(measures))
    rows = -(-len(measures) // columns)
    figure = new_figure(width * min(1, columns / 3), 0.25 + 1.25 * rows + _legend_height(logs))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(measures) :]:
        axes.set_visible(False)
    splits: dict[str, None] = {}
    for axes, measure in zip(grid.flat, measures):
        splits |= _panel(axes, measure, logs, smoothing, log_scale)
        axes.set_xlim(_steps(logs, measures))
    figure.supxlabel("step", fontsize=MEDIUM)
    _legend(figure, list(splits), logs)
    return figure


def _steps(logs: Sequence[Log], measures: Sequence[str]) -> tuple[float, float]:
    """One range for all panels, so that they can be compared."""
    steps = [log.series[name][0] for log in logs for name in log.series if split_name(name)[1] in measures]
    low, high = min(float(part.min()) for part in steps), max(float(part.max()) for part in steps)
    margin = 0.03 * (high - low) or 0.5
    return low - margin, high + margin


def _panel(axes: Axes, measure: str, logs: Sequence[Log], smoothing: float, log_scale: bool) -> dict[str, None]:
    splits: dict[str, None] = {}
    positive = False
    for i, log in enumerate(logs):
        for name, (steps, values) in log.series.items():
            split, rest = split_name(name)
            if rest != measure:
                continue
            if (absurd := np.abs(values) > LARGEST).any():
                logger.warning(
                    "%s of %s: %d values beyond 1e30 are left out of the figure", name, log.source, absurd.sum()
                )
                values = np.where(absurd, np.nan, values)
            splits[split] = None
            positive |= bool((values > 0).any())
            colour, dashes = (PALETTE[i], DASHES[split]) if len(logs) > 1 else (COLOURS[split], "-")
            marker = {"marker": ".", "ms": 3} if len(steps) < FEW else {}
            if smoothing and split != "validation" and len(values) >= FEW:
                axes.plot(steps, values, color=colour, alpha=0.35, lw=0.7)
                values = smooth(values, smoothing)
            axes.plot(steps, values, dashes, color=colour, **marker)  # type: ignore[arg-type]
    axes.set_title("\n".join(wrap(measure.replace("_", " "), 22)))
    axes.grid(axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    if log_scale and positive:
        _log_axis(axes)
    return splits


def _log_axis(axes: Axes) -> None:
    """Labels at powers of ten, or at the numbers between them where there are too few of those."""
    axes.set_yscale("log", nonpositive="mask")
    low, high = axes.get_ylim()
    decades = np.log10(high / low)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2 else (1.0, 2.0, 5.0), numticks=6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    if decades < 0.4:
        axes.yaxis.set_major_locator(MaxNLocator(3))


def _legend_height(logs: Sequence[Log]) -> float:
    return 0.0 if len(logs) == 1 else 0.13 * -(-(len(logs) + 2) // 2)


def _legend(figure: Figure, splits: Sequence[str], logs: Sequence[Log]) -> None:
    several = len(logs) > 1
    handles = []
    if several:
        names = run_names([log.source for log in logs])
        handles += [Line2D([], [], color=colour, label=name) for colour, name in zip(PALETTE, names)]
    handles += [
        Line2D([], [], color=GREY if several else COLOURS[split], ls=DASHES[split] if several else "-", label=split)
        for split in splits
        if split
    ]
    if len(handles) > 1:
        figure.legend(handles=handles, loc="outside upper left", ncols=2 if several else 4, fontsize=SMALL)


def _thousands(value: float, _: object) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"
