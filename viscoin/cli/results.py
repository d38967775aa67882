"""What commands print and write: tables, figures, numbers, and the folder that takes them."""

import io
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from viscoin.cli.output import echo, print_json
from viscoin.errors import Refused, reason_of
from viscoin.files import atomic_path, without_nan
from viscoin.processes import is_first_process

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from viscoin.inference.loading import SubjectWithImages

PAGES = ("index.html", "report.html")


def announce(path: Path) -> None:
    """Print where the results are; once, however many processes made them."""
    if is_first_process():
        echo(path)


def open_first(folder: Path) -> None:
    """Print, as the last line and beside the results, what to look at first in the folder of a run."""
    if is_first_process():
        echo(f"open first: {_most_telling(folder)}", err=True)


def _most_telling(folder: Path) -> str:
    """The newest figure; where there is none, how to draw the curves."""
    from viscoin.program import program_name
    from viscoin.runs.run import Run

    figures = sorted(folder.glob("figures/*.png"), key=lambda path: path.stat().st_mtime)
    if figures:
        return str(figures[-1])
    run = Run(folder)
    if run.kind == "viscoin" and not run.metrics_path.exists():  # nothing trained, so there are no curves
        return f"{program_name()} concepts --checkpoints {shlex.quote(str(folder))}"
    return f"{program_name()} logs --logs-path {shlex.quote(str(folder))}"


@dataclass
class Results:
    """A folder that takes the figures and numbers of one command.

    Attributes:
        shown: the first figure that was saved.
    """

    folder: Path
    shown: Path | None = None

    def figures(self, figures: Mapping[str, "Figure"], show: bool) -> None:
        """Save every figure as PNG, say where, and open windows if wanted."""
        from viscoin.plotting.style import save_figure

        for name, figure in figures.items():
            path = save_figure(figure, self.folder / f"{name}.png")
            self.shown = self.shown or path
            echo(path)
        if show:
            show_figures(list(figures.values()))

    def text(self, name: str, content: str) -> None:
        """Write a text file and say where."""
        path = self.folder / name
        path.write_text(content, encoding="utf-8")
        echo(path)

    def json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write a JSON file, whole or not at all, and say where."""
        path = self.folder / name
        with atomic_path(path) as partial:
            partial.write_text(json.dumps(without_nan(values), indent=2) + "\n", encoding="utf-8")
        echo(path)

    def numbers(self, subject: "SubjectWithImages", values: Mapping[str, Any]) -> None:
        """Write results.json, with the model and the data that were measured, and say where; print it for --json."""
        header = {"model": str(subject.path), "dataset": subject.config.name, "split": subject.images.split}
        self.json("results.json", {**header, **values})
        print_json({**header, **values})


@contextmanager
def results_folder(command: str, dataset: str, out: Path | None) -> Iterator[Results]:
    """The folder for the results of a command, by default `runs/<dataset>-<command>-<time>`; none after a failure.

    Raises:
        Refused: it cannot be written.
    """
    from viscoin.runs.run import drop_folder, new_folder

    existed = out is not None and out.exists()
    if out is None:
        folder = new_folder(f"{Path(dataset).name}-{command}")
    else:
        folder = out
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Refused("out", out, f"cannot write there ({reason_of(error)})", "choose another folder") from error
    results = Results(folder)
    try:
        yield results
    except BaseException:
        if not existed and not any(folder.glob("*")):
            drop_folder(folder) if out is None else folder.rmdir()
        raise
    page = next((page for name in PAGES if (page := folder / name).is_file()), results.shown)
    if page is not None:
        echo(f"open first: {page}", err=True)


def show_figures(figures: Sequence["Figure"]) -> None:
    """Open the figures in windows and wait until they are closed."""
    import matplotlib.pyplot as plt
    from matplotlib.backends import BackendFilter, backend_registry

    from viscoin.plotting.style import figure_bytes

    if plt.get_backend().lower() not in backend_registry.list_builtin(BackendFilter.INTERACTIVE):
        echo("--show: no window can be opened here; look at the files instead", err=True)
        return
    for figure in figures:
        window = plt.figure(figsize=figure.get_size_inches())
        axes = window.add_axes((0, 0, 1, 1))
        axes.imshow(plt.imread(io.BytesIO(figure_bytes(figure))))
        axes.axis("off")
    plt.show()


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def print_table(title: str, values: Mapping[str, Any]) -> None:
    """Two aligned columns, name and value; sections as dotted names, lists left out."""
    rows = {name: value for name, value in _flat(values) if not isinstance(value, list)}
    width = max(len(name) for name in rows)
    echo(title)
    for name, value in rows.items():
        echo(f"  {name:<{width}}  {f'{value:.4f}' if isinstance(value, float) else value}")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
