"""Figures of a sweep: how its trials went, and what the parameters have to do with it."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from viscoin.plotting.style import (
    BLUE,
    COLUMN,
    DARK,
    GREY,
    LINE,
    MEDIUM,
    PAGE,
    SMALL,
    VERMILION,
    new_figure,
    styled,
    wrap,
)
from viscoin.sweep.results import SweepResult, TrialResult
from viscoin.sweep.space import Parameter, Value, show

LOOKS = {
    "finished": {"marker": "o", "color": BLUE, "ms": 4, "mew": 0.5, "mec": "white"},
    "pruned": {"marker": "x", "color": GREY, "ms": 4, "mew": 1.0},
    "failed": {"marker": "^", "color": DARK, "ms": 4, "mew": 0.0},
    "best": {"marker": "o", "color": "none", "ms": 8, "mew": 1.2, "mec": VERMILION},
}
COURSES = {"best": VERMILION, "finished": BLUE, "pruned": GREY}
WIDE = 50.0  # ratio of the largest to the smallest value from which an axis is logarithmic
FEW = 8  # values of a range that are plotted as choices
NAME = 26  # characters of a name of a parameter that have room


def study_figures(result: SweepResult) -> dict[str, Figure]:
    """Every figure that the trials give rise to, by file name."""
    figures = {}
    if any(_values(trial) for trial in result.trials if trial.value is not None):
        figures["history"] = history_figure(result)
        figures["parameters"] = parameters_figure(result)
    if any(len(trial.course) > 1 and _values(trial) for trial in result.trials if trial.state in COURSES):
        figures["courses"] = courses_figure(result)
    if len(result.importances) > 1:
        figures["importances"] = importances_figure(result)
    return figures


@styled
def history_figure(result: SweepResult, width: float = COLUMN) -> Figure:
    """The value of each trial by its number, and the best one so far."""
    figure = new_figure(width, 2.3)
    axes = figure.subplots()
    numbers, best = _best_so_far(result)
    if len(numbers):
        last = max(trial.number for trial in result.trials)
        axes.step([*numbers, last], [*best, best[-1]], where="post", color=BLUE, lw=1.0, label="best so far")
    _draw_trials(axes, result, [trial.number for trial in result.trials])
    _scale_values(axes, result)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set(xlabel="trial", ylabel=_measure(result))
    axes.grid(axis="y")
    figure.legend(loc="outside upper left", ncols=3, columnspacing=1.0, handletextpad=0.3)
    return figure


@styled
def parameters_figure(result: SweepResult, width: float = PAGE, columns: int = 4) -> Figure:
    """The value of each trial by each parameter: one panel for each, the most important ones first."""
    space = result.settings.space
    names = sorted(space, key=lambda name: -result.importances.get(name, 0.0))
    columns = min(columns, len(names))
    rows = -(-len(names) // columns)
    figure = new_figure(max(width * columns / 4, COLUMN), 0.3 + 1.75 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    for axes, name in zip(grid.flat, names):
        positions = _scale_parameter(axes, space[name], [trial.parameters.get(name) for trial in result.trials])
        _draw_trials(axes, result, positions)
        axes.set_xlabel("\n".join(wrap(_label(result, name), NAME)))
        axes.grid(axis="y")
    _scale_values(grid[0, 0], result)
    figure.supylabel(_measure(result), fontsize=MEDIUM)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4, columnspacing=1.0, handletextpad=0.3)
    return figure


@styled
def courses_figure(result: SweepResult, width: float = COLUMN) -> Figure:
    """The value at each evaluation during the trials; a pruned one ends early."""
    figure = new_figure(width, 2.3)
    axes = figure.subplots()
    seen: set[str] = set()
    for trial in sorted(result.trials, key=lambda trial: trial is result.best):
        kind = "best" if trial is result.best else trial.state
        colour = COURSES.get(kind)
        if not trial.course or colour is None:
            continue
        evaluations = np.arange(1, len(trial.course) + 1)
        label = f"best (trial {trial.number})" if kind == "best" else f"{'_' * (kind in seen)}{kind}"
        seen.add(kind)
        thick, alpha = (1.6, 1.0) if kind == "best" else (0.8, 0.7)
        axes.plot(evaluations, trial.course, color=colour, lw=thick, alpha=alpha, label=label)
        if kind == "pruned":
            axes.plot(evaluations[-1], trial.course[-1], "x", color=GREY, ms=4, mew=1.0)
    _scale_values(axes, result)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set(xlabel="evaluation", ylabel=_measure(result))
    axes.grid(axis="y")
    figure.legend(loc="outside upper left", ncols=3, columnspacing=1.0, handletextpad=0.5)
    return figure


@styled
def importances_figure(result: SweepResult, width: float = COLUMN) -> Figure:
    """Shares of the parameters in the variance of the value (fANOVA, Hutter et al. 2014), the largest first."""
    items = sorted(result.importances.items(), key=lambda item: -item[1])
    figure = new_figure(width, 0.55 + max(len(items), 2) * 1.6 * LINE)
    axes = figure.subplots()
    places, shares = np.arange(len(items)), [share for _, share in items]
    axes.barh(places, shares, height=0.65, color=BLUE)
    for place, share in enumerate(shares):
        axes.text(share + 0.01, place, f"{share:.2f}", va="center", fontsize=SMALL, color=DARK)
    axes.set_yticks(places, [_label(result, name) for name, _ in items])
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, max(shares) * 1.15), ylim=(len(items) - 0.4, -0.6))
    axes.set_xlabel(f"share in the variance of {result.settings.metric.removeprefix('validation.').replace('_', ' ')}")
    return figure


def _draw_trials(axes: Axes, result: SweepResult, positions: Sequence[float]) -> None:
    """A mark for each trial with a value, and one at the foot of the axes for each failed trial."""
    placed = list(zip(result.trials, positions))
    for state in ("finished", "pruned"):
        chosen = [(x, trial.value) for trial, x in placed if trial.state == state and trial.value is not None]
        if chosen:
            axes.plot(*zip(*chosen), ls="", label=state, **LOOKS[state])  # type: ignore[arg-type]
    failed = [x for trial, x in placed if trial.state == "failed"]
    if failed:
        foot, where = np.zeros(len(failed)), axes.get_xaxis_transform()
        axes.plot(failed, foot, ls="", label="failed", transform=where, clip_on=False, **LOOKS["failed"])  # type: ignore[arg-type]
    best = [(x, trial.value) for trial, x in placed if trial is result.best]
    if best:
        axes.plot(*zip(*best), ls="", label="best", **LOOKS["best"])  # type: ignore[arg-type]


def _best_so_far(result: SweepResult) -> tuple[list[int], list[float]]:
    finished = [trial for trial in result.trials if trial.state == "finished"]
    values = [float(trial.value or 0.0) for trial in finished]
    best = np.maximum.accumulate if result.settings.direction == "maximize" else np.minimum.accumulate
    return [trial.number for trial in finished], list(best(values)) if values else []


def _scale_values(axes: Axes, result: SweepResult) -> None:
    """A logarithmic axis for values of very different size."""
    values = [value for trial in result.trials for value in _values(trial)]
    if min(values) > 0 and max(values) / min(values) > WIDE:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())


def _values(trial: TrialResult) -> list[float]:
    """Numbers of a trial that figures show, without infinite ones."""
    found = [*trial.course, *([] if trial.value is None else [trial.value])]
    return [value for value in found if np.isfinite(value)]


def _scale_parameter(axes: Axes, parameter: Parameter, values: Sequence[Value]) -> list[float]:
    """Prepare the axis of a parameter; returns where the values lie on it."""
    choices = parameter.grid or []
    if parameter.choices or 0 < len(choices) <= FEW:
        names = [show(choice) for choice in choices]
        upright = sum(map(len, names)) <= 20
        axes.set_xticks(range(len(names)), names, rotation=0 if upright else 40, ha="center" if upright else "right")
        axes.set_xlim(-0.6, len(names) - 0.4)
        shifts = np.linspace(-0.2, 0.2, 5)  # trials of the same choice side by side
        places = [_place(value, parameter) for value in values]
        return [place + shifts[i % len(shifts)] for i, place in enumerate(places)]
    low, high = float(parameter.low), float(parameter.high)
    if parameter.log:
        axes.set_xscale("log")
        margin = (high / low) ** 0.05
        axes.set_xlim(low / margin, high * margin)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 30 else (1.0, 2.0, 5.0), numticks=5))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        margin = 0.05 * (high - low)
        axes.set_xlim(low - margin, high + margin)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=isinstance(parameter.low, int)))
    return [float(value) if isinstance(value, int | float) else np.nan for value in values]


def _place(value: Value, parameter: Parameter) -> float:
    """Where a value stands among those that the parameter may take."""
    if parameter.step and isinstance(value, int | float):
        return round((value - parameter.low) / parameter.step)  # Optuna's 0.15000000000000002 is 0.15
    return parameter.choices.index(value) if value in parameter.choices else np.nan


def _label(result: SweepResult, key: str) -> str:
    return key.removeprefix(f"{result.settings.kind}.").replace("_", " ")


def _measure(result: SweepResult) -> str:
    measure = result.settings.metric.removeprefix("validation.").replace("_", " ")
    return f"validation {measure}"
