"""The report of the demo: numbers and pictures put into one HTML file that needs nothing else."""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from viscoin.files import atomic_path
from viscoin.plotting.style import figure_bytes, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "A classifier of birds, explained by concepts"


def write_report(
    out: Path,
    numbers: Mapping[str, Any],
    figures: Mapping[str, "Figure"],
    strips: Sequence[tuple[int, Path]],
    info: Mapping[str, Any],
) -> Path:
    """Write figures/*.png, report.json and report.html; the reports appear last, each whole or not at all.

    Args:
        numbers: what was measured, in sections, for report.json.
        figures: by the names that the template uses.
        strips: step and PNG file of reconstructions during the training.
        info: what else the template names; goes into report.json as `settings`.
    """
    pictures: dict[str, Figure | Path] = {**figures, **{f"strip{step}": path for step, path in strips}}
    values = {
        "title": TITLE,
        "numbers": numbers,
        "rows": summary_rows(numbers),
        "strips": [step for step, _ in strips],
        "info": info,
    }
    html = render_report(values, pictures)
    for name, figure in figures.items():
        save_figure(figure, out / "figures" / f"{name}.png")
    texts = {"report.json": json.dumps({**numbers, "settings": info}, indent=2) + "\n", "report.html": html}
    for name, text in texts.items():
        with atomic_path(out / name) as partial:
            partial.write_text(text, encoding="utf-8")
    return out / "report.html"


def summary_rows(numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the first table: what it is, the two values, target or control, and whether the target is met."""
    fresh, f = numbers["fresh"], numbers["classifier"]["accuracy"]
    gan, faith, attributes = numbers["gan"], numbers["faithfulness"]["0.2"], numbers["attributes"]
    mine, its = numbers["ensemble"], fresh["ensemble"]
    rebuilt, its_rebuilt = numbers["reconstruction"], fresh["reconstruction"]
    rows: list[dict[str, Any]] = []

    def add(
        what: str,
        show: Callable[[float], str],
        value: float,
        other: float | None,
        control: str,
        met: bool | None = None,
    ) -> None:
        shown = "–" if other is None else show(other)
        rows.append({"what": what, "shipped": show(value), "fresh": shown, "control": control, "met": met})

    add("accuracy of the classifier f", percent, f, _accuracy(fresh), "target: at least 97 %", f >= 0.97)
    for what, key, least, note in (
        ("accuracy of the ensemble g", "accuracy", f - 0.01, ", one point below f"),
        ("agreement of g with f", "agreement", 0.97, ""),
        ("accuracy of g on its own reconstructions", "accuracy_on_reconstructions", 0.8, ""),
    ):
        target = f"target: at least {percent(least)}{note}"
        add(what, percent, mine[key], its[key], target, mine[key] >= least)
    for key, what in (("l1", "L1"), ("mse", "MSE")):
        control = f"control: {number(rebuilt[f'{key}_control'])} for the mean image"
        add(f"reconstruction, {what}", number, rebuilt[key], its_rebuilt[key], control)
    add("reconstruction, perceptual distance", number, rebuilt["perceptual"], its_rebuilt["perceptual"], "")
    control = f"control: {number(gan['fid_control'])} for as many real training images"
    add("reconstructions, FID in features of f", number, rebuilt["fid"], its_rebuilt["fid"], control)
    add("samples of G, FID in features of f", number, gan["fid"], fresh.get("gan", {}).get("fid"), control)
    add(
        "faithfulness: fall when relevant concepts are removed",
        number,
        faith["relevant"],
        fresh["faithfulness"]["0.2"]["relevant"],
        f"target: at least 5 times {number(faith['random'])}, the fall for random concepts",
        faith["relevant"] >= 5 * faith["random"] and faith["relevant"] > 0,
    )
    add(
        "attributes: mean AUROC of the best concept",
        number,
        attributes["mean_auroc"],
        None,
        f"target: at least 0.85; control: {number(attributes['mean_auroc_untrained'])} untrained",
        attributes["mean_auroc"] >= 0.85,
    )
    return rows


def _accuracy(fresh: Mapping[str, Any]) -> float | None:
    return fresh["classifier"]["accuracy"] if "classifier" in fresh else None


def render_report(values: Mapping[str, Any], pictures: Mapping[str, "Figure | Path"]) -> str:
    """HTML text of the report.

    Args:
        values: what the template `report.html.j2` names; a missing one raises `jinja2.UndefinedError`.
        pictures: figures, or paths of PNG files, by the name that the template uses.
    """
    sources = {name: Markup(embedded(picture)) for name, picture in pictures.items()}
    return template_environment().get_template("report.html.j2").render(**values, pictures=sources)


def template_environment() -> Environment:
    """The templates of this package: everything escaped, missing values are errors."""
    environment = Environment(
        loader=PackageLoader("viscoin"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": number, "duration": duration}
    return environment


def embedded(picture: "Figure | Path") -> str:
    """The picture as a data URI (PNG)."""
    content = picture.read_bytes() if isinstance(picture, Path) else figure_bytes(picture)
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def percent(value: float) -> str:
    """0.9742 -> "97.4 %"; what is not known is NaN."""
    return "not known" if value != value else f"{100 * value:.1f} %"


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """75.2 -> "1 min 15 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
