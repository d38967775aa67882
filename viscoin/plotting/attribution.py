"""Figures of attribution: methods below one another, images beside one another, one colour scale for each method."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure

from viscoin.analysis.attribution import AttributionStudy, scale_end
from viscoin.analysis.attribution_checkpoints import CheckpointStudy
from viscoin.analysis.questions import Views
from viscoin.errors import Refused
from viscoin.plotting.style import (
    DARK,
    DIVERGING,
    GREEN,
    HEAT,
    LINE,
    PAGE,
    SMALL,
    VERMILION,
    ImageTable,
    middle_cut,
    styled,
    wrap,
)

MOST_VIEWS = 8  # columns that fit on a page
MOST_METHODS = 8  # columns, where checkpoints are rows
HEIGHT = 9.0  # inches of a page that figures may take
LABEL, BAR = 1.15, 0.6  # inches on the left for the methods, on the right for the colour bars
LARGEST = 1.1  # side of a map, inches
CHARACTER = 0.059  # width of a small letter, inches
MOST_LINES = {1: 5, 2: 4, 3: 3}  # of the name of a class, where a column names so many; 2 where it names more


def check_views(images: int, scores: int, parameter: str = "image_indices") -> None:
    """Raise Refused unless that many images with that many scores each fit on a page."""
    if images * scores > MOST_VIEWS:
        each = f" with {scores} scores each" if scores > 1 else ""
        raise Refused(
            parameter, None, f"{images} images{each} do not fit on a page", f"give at most {MOST_VIEWS // scores}"
        )


def check_methods(methods: int) -> None:
    """Raise Refused unless that many methods fit beside one another."""
    if methods > MOST_METHODS:
        raise Refused("method", None, f"{methods} do not fit on a page", f"give at most {MOST_METHODS}")


def attribution_figures(
    study: AttributionStudy, overlay: bool = True, groups: Mapping[str, int] | None = None, width: float = PAGE
) -> list[Figure]:
    """As many pages as the methods need; see `attribution_figure`."""
    methods = list(study.results)
    side = (width - LABEL - BAR) / len(study.views)
    room = max(1, int((HEIGHT - 1) / (min(side, LARGEST) + ImageTable.GAP)) - 1)
    return [
        attribution_figure(study, methods[start : start + room], overlay, groups, width)
        for start in range(0, len(methods), room)
    ]


@styled
def attribution_figure(
    study: AttributionStudy,
    methods: Sequence[str] | None = None,
    overlay: bool = True,
    groups: Mapping[str, int] | None = None,
    width: float = PAGE,
) -> Figure:
    """A column for each view, with its classes and their probabilities on top; a row for each method.

    All maps of a row have the colour scale of the bar beside it: red for, blue against where a method is signed, from
    dark to light where its maps are >= 0.

    Args:
        methods: some of the study's; default: all.
        overlay: draw maps over the image in grey, strongest where they are; else alone.
        groups: names of neighbouring columns, and how many those are: "right" and "wrong" are framed in green and red.
    """
    methods, views = list(study.results) if methods is None else methods, study.views
    side = min((width - LABEL - BAR) / len(views) - ImageTable.GAP, LARGEST)
    columns = [describe_view(views, view, int(side / CHARACTER)) for view in range(len(views))]
    lines = max(map(len, columns)) + (1 if groups else 0)
    table = ImageTable(len(methods) + 1, len(views), width, LABEL, BAR, header_lines=lines, largest=LARGEST)
    table.label(0, "\n".join(["explained:", *wrap(views.question, 20)]))
    for view, text in enumerate(columns):
        x = table.corner(0, view)[0] + table.side / 2
        top = table.top - 0.03 - LINE * max(map(len, columns))
        table.axes.text(x, top, "\n".join(text), ha="center", va="top", fontsize=SMALL, linespacing=1.15, color=DARK)
        table.image(0, view, views.images[view])
    for row, method in enumerate(methods, 1):
        table.label(row, "\n".join([*wrap(study.title(method), 20), *wrap(study.place(method), 20)]))
        limit, signed = study.limit(method), study.results[method].signed
        for view, heat in enumerate(study.results[method].maps.numpy()):
            table.image(row, view, painted(views.images[view], heat / limit, signed, overlay))
        colour_bar(table, row, signed, f"{limit:.2g}", study.clipped(method))
    _groups(table, groups or {})
    return table.figure


def describe_view(views: Views, view: int, characters: int) -> list[str]:
    """Lines on an image: its name, its classes with their probabilities, and what is explained of it."""
    predicted, target = int(views.predicted[view]), int(views.targets[view])
    label = None if views.labels is None else int(views.labels[view])
    found = [("true, predicted" if label == predicted else "predicted", predicted)]
    if label is not None and label != predicted:
        found.insert(0, ("true", label))
    if views.of_classes and target != predicted:
        found.append(("explained", target))
    if views.against is not None:
        found.append(("against", int(views.against[view])))
    lines = [middle_cut(views.names[view], characters)]
    for role, index in found:
        share = _percent(float(views.probabilities[view, index]))
        lines += wrap(f"{role} {share}", characters)
        lines += _cut(views.class_names[index], characters, MOST_LINES.get(len(found), 2))
    return lines if views.of_classes else [*lines, *_cut(views.score_names[target], characters, 2)]


def _percent(probability: float) -> str:
    shown = f"{100 * probability:.0f}" if 0.01 <= probability <= 0.99 else "<1" if probability < 0.5 else ">99"
    return f"{shown}\N{NO-BREAK SPACE}%"


def _cut(name: str, characters: int, most: int) -> list[str]:
    """Lines of a name; where they are too many, words are left out at the end."""
    lines = wrap(name, max(8, characters))
    if len(lines) <= most:
        return lines
    last = lines[most - 1]
    shorter = last if len(last) < max(8, characters) else last.rpartition(" ")[0] or last[:-1]
    return [*lines[: most - 1], f"{shorter}…"]


def palette(signed: bool) -> Colormap:
    """Diverging around 0 for signed maps, sequential for others."""
    return mpl.colormaps[DIVERGING if signed else HEAT]


def painted(image: np.ndarray, heat: np.ndarray, signed: bool, overlay: bool = True) -> np.ndarray:
    """A map (H, W) in units of its colour scale as RGB (H, W, 3) in [0, 1]; over the image (H, W, 3) uint8, in grey.

    Beyond the end of the scale it has the colour of its end.
    """
    heat = heat.clip(-1 if signed else 0, 1)
    colours = palette(signed)((heat + 1) / 2 if signed else heat)[..., :3]
    if not overlay:
        return np.asarray(colours)
    grey = image.mean(2, keepdims=True).repeat(3, 2) / 255
    opacity = 0.15 + 0.7 * np.sqrt(np.abs(heat))[..., None]
    return np.asarray((1 - opacity) * grey + opacity * colours)


def colour_bar(table: ImageTable, row: int, signed: bool, limit: str, clipped: bool = False) -> None:
    """The scale of a row at its right: from 0, or between both signs, to its end, with a point if more is beyond."""
    y = table.corner(row, 0)[1] + 0.06
    height, left = table.side - 0.12, table.width - BAR + 0.08
    place = (left / table.width, 1 - (y + height) / table.height, 0.08 / table.width, height / table.height)
    axes = table.figure.add_axes(place)
    scale = ScalarMappable(Normalize(-1 if signed else 0, 1), palette(signed))
    extend = ("both" if signed else "max") if clipped else "neither"
    bar = table.figure.colorbar(scale, cax=axes, ticks=[-1, 0, 1] if signed else [0, 1], extend=extend)
    bar.ax.set_yticklabels([f"−{limit}", "0", limit] if signed else ["0", limit], fontsize=SMALL)
    bar.ax.tick_params(length=1.5, pad=1.5)
    bar.outline.set_visible(False)  # type: ignore[operator]


def _groups(table: ImageTable, groups: Mapping[str, int]) -> None:
    """The name of each group of columns on top of it, and a frame around its images."""
    start = 0
    for name, count in groups.items():
        if not count:
            continue
        colour = {"right": GREEN, "wrong": VERMILION}.get(name, DARK)
        left, right = table.corner(0, start)[0], table.corner(0, start + count - 1)[0] + table.side
        table.axes.text(
            (left + right) / 2, 0.03, f"{name} predictions", ha="center", va="top", fontsize=SMALL, color=colour
        )
        for column in range(start, start + count):
            table.frame(0, column, colour)
        start += count


@styled
def checkpoint_figure(study: CheckpointStudy, view: int, width: float = PAGE) -> Figure:
    """One image: a row for each state of the classifier, with what it predicts; a column for each method.

    Each map has its own colour scale, as logits grow during a training; its strongest few pixels are beyond the end.
    """
    first = study.studies[0]
    methods = list(first.results)
    side = min((width - LABEL - BAR - 0.2) / (len(methods) + 1) - ImageTable.GAP, LARGEST)
    titles = [_cut(first.title(method), int(side / CHARACTER), 2) for method in methods]
    rows = len(study.names)
    table = ImageTable(
        rows, len(methods) + 1, width, LABEL + 0.2, BAR, header_lines=max(map(len, titles)), largest=LARGEST
    )
    for column, title in enumerate([["image"], *titles]):
        table.header(column, "\n".join(title))
    for row, one in enumerate(study.studies):
        table.label(row, "\n".join(_state(study, row, view)))
        table.image(row, 0, first.views.images[view])
        for column, method in enumerate(methods, 1):
            if method in one.results:
                heat = one.results[method].maps[view].numpy()
                drawn = painted(first.views.images[view], heat / scale_end(heat), one.results[method].signed)
                table.image(row, column, drawn)
    kinds = sorted({first.results[method].signed for method in methods})
    for row, signed in enumerate(kinds[:rows]):
        colour_bar(table, row, signed, "max", clipped=True)
    return table.figure


def _state(study: CheckpointStudy, row: int, view: int) -> list[str]:
    """Lines on a state: its name and accuracy, the class it predicts, and which is explained if it is another."""
    views, score, characters = study.studies[row].views, study.accuracies[row], 23
    lines = [middle_cut(study.names[row], characters)]
    lines += [] if score is None else [f"accuracy {100 * score:.1f} %"]
    predicted, target = int(views.predicted[view]), int(views.targets[view])
    right = "" if views.labels is None else ", right" if predicted == views.labels[view] else ", wrong"
    lines += [f"predicted {_percent(float(views.probabilities[view, predicted]))}{right}"]
    lines += _cut(views.class_names[predicted], characters, 3)
    if target != predicted:
        lines += [f"explained {_percent(float(views.probabilities[view, target]))}"]
        lines += _cut(views.class_names[target], characters, 2)
    return lines
