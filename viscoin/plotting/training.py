"""Figures of training curves."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from viscoin.analysis.logs import Log, smooth, split_name
from viscoin.plotting.style import BLUE, GREY, MEDIUM, PAGE, VERMILION, new_figure, styled, wrap

COLOURS = {"train": BLUE, "validation": VERMILION, "test": VERMILION, "": GREY}
DASHES = ("-", "--", ":", "-.")


@styled
def training_figure(
    logs: Sequence[Log],
    names: Sequence[str] | None = None,
    smoothing: float = 0.0,
    log_scale: bool = False,
    columns: int = 4,
    width: float = PAGE,
) -> Figure:
    """One panel for each measure; training and held-out values share it, runs differ by the dashes of their lines.

    Args:
        logs: one or several runs.
        names: the measures to draw, all by default; those that no log has are left out.
        smoothing: weight of the past in [0, 1); the values themselves stay as a faint line.
        log_scale: logarithmic values.
    """
    found = list(dict.fromkeys(name for log in logs for name in log.measures))
    measures = found if names is None else [name for name in names if name in found]
    if not measures:
        raise ValueError(f"no measure to draw; the logs hold {', '.join(found)}")
    columns = min(columns, len(measures))
    rows = -(-len(measures) // columns)
    figure = new_figure(width * min(1, columns / 3), 0.25 + 1.25 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(measures) :]:
        axes.set_visible(False)
    splits: dict[str, None] = {}
    for axes, measure in zip(grid.flat, measures):
        splits |= _panel(axes, measure, logs, smoothing, log_scale)
    figure.supxlabel("step", fontsize=MEDIUM)
    _legend(figure, splits, logs)
    return figure


def _panel(axes: Axes, measure: str, logs: Sequence[Log], smoothing: float, log_scale: bool) -> dict[str, None]:
    splits: dict[str, None] = {}
    for dashes, log in zip(DASHES * len(logs), logs):
        for name, (steps, values) in log.series.items():
            split, rest = split_name(name)
            if rest != measure:
                continue
            splits[split] = None
            marker = {"marker": ".", "ms": 3} if len(steps) < 30 else {}
            if smoothing and split != "validation" and len(values) >= 30:
                axes.plot(steps, values, color=COLOURS[split], alpha=0.25, lw=0.6)
                values = smooth(values, smoothing)
            axes.plot(steps, values, dashes, color=COLOURS[split], **marker)  # type: ignore[arg-type]
    axes.set_title("\n".join(wrap(measure.replace("_", " "), 22)))
    axes.grid(axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    if log_scale:
        axes.set_yscale("log")
    return splits


def _legend(figure: Figure, splits: dict[str, None], logs: Sequence[Log]) -> None:
    handles = [Line2D([], [], color=COLOURS[split], label=split) for split in splits if split]
    if len(logs) > 1:
        handles += [
            Line2D([], [], color=GREY, ls=dashes, label=log.source.parent.name or str(log.source))
            for dashes, log in zip(DASHES * len(logs), logs)
        ]
    if len(handles) > 1:
        figure.legend(handles=handles, loc="outside upper left", ncols=4 if len(logs) == 1 else 2)


def _thousands(value: float, _: object) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"
