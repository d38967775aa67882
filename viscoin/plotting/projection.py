"""Figures of projections: the way from the mean style to an image."""

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from viscoin.analysis.projection import ProjectedImage
from viscoin.plotting.style import BLUE, LIGHT, PAGE, SMALL, VERMILION, ImageTable, styled

CURVE = 1.25  # height of the curve with its labels, inches


@styled
def progress_figure(result: ProjectedImage, width: float = PAGE) -> Figure:
    """Target, start, steps on the way and end with their distances, above the curve of the distance."""
    count = len(result.snapshots)
    table = ImageTable(1, count + 1, width, header_lines=1, caption_lines=1)
    table.header(0, "target")
    table.image(0, 0, result.target)
    table.caption(0, 0, result.distance_title)
    for i, (step, value) in enumerate(zip(result.snapshot_steps, result.snapshot_distances, strict=True)):
        table.header(i + 1, _title(step, i == count - 1))
        table.image(0, i + 1, result.snapshots[i])
        table.caption(0, i + 1, f"{value:.3f}")
    _curve(table, result)
    return table.figure


def _title(step: int, last: bool) -> str:
    if step == 0:
        return "mean style"
    return f"end, step {step}" if last else f"step {step}"


def _curve(table: ImageTable, result: ProjectedImage) -> None:
    height = table.height + CURVE
    table.figure.set_size_inches(table.width, height)
    table.axes.set_position((0, CURVE / height, 1, table.height / height))
    left, bottom, right, top = 0.55, 0.36, 0.15, 0.08
    axes = table.figure.add_axes(
        (
            left / table.width,
            bottom / height,
            (table.width - left - right) / table.width,
            (CURVE - bottom - top) / height,
        )
    )
    axes.plot(
        range(len(result.distances)),
        result.distances,
        color=BLUE,
        lw=0.8,
        label="in the search, with noise on the style",
    )
    axes.plot(
        result.snapshot_steps,
        result.snapshot_distances,
        "o",
        color=VERMILION,
        ms=3.5,
        clip_on=False,
        label="of the pictures above",
    )
    axes.set_yscale("log")
    wide = result.distances.max() > 30 * result.distances.min()
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1,) if wide else (1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", color=LIGHT)
    axes.set_xlim(0, len(result.distances))
    axes.set_xlabel("step")
    axes.set_ylabel(result.distance_title)
    axes.legend(loc="upper right", fontsize=SMALL)
