"""The scorecard as texts: a table for programs, one for people, and a page that needs nothing else."""

import base64
import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from viscoin.plotting.scorecard import KINDS, ordered, scene_strip, strip, title_of
from viscoin.reports.demo_page import template_environment
from viscoin.testing.scorecard.questions import QUESTIONS
from viscoin.testing.scorecard.result import Answer, Row, Scorecard

COLUMNS = ("value", "low", "high", "n", "chance", "above_chance", "above_edges")


def csv_text(card: Scorecard) -> str:
    """A line for each row and question; empty where a comparison was not made."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("row", "kind", "method", "function", "k", "seconds", "question", *COLUMNS))
    writer.writerows(_lines(card))
    return file.getvalue()


def _lines(card: Scorecard) -> Iterator[tuple[Any, ...]]:
    for row in ordered(card.rows):
        head = (title_of(row), row.kind, row.method, row.function or "", row.k or "", f"{row.seconds:.4g}")
        for question, answer in row.answers.items():
            found = answer.estimate
            numbers = (f"{number:.6g}" for number in (found.value, found.low, found.high))
            above = ("" if known is None else int(known) for known in (answer.above_chance, answer.above_edges))
            yield (*head, question, *numbers, found.n, f"{answer.chance:.6g}", *above)


def table_of(card: Scorecard) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """Rows of texts, and the header above them: for each question the value with the half width of its interval.

    A star where it is above chance and above the edges of the image. n: scenes that the map was asked about.
    """
    rows = [
        (title_of(row), KINDS[row.kind][0], *(_cell(row.answers.get(question)) for question in QUESTIONS), str(_n(row)))
        for row in ordered(card.rows)
    ]
    return rows, ("map", "of", *(question.title for question in QUESTIONS.values()), "n")


def _n(row: Row) -> int:
    return max(answer.estimate.n for answer in row.answers.values())


def _cell(answer: Answer | None) -> str:
    if answer is None:
        return "–"
    found = answer.estimate
    return f"{_fixed(found.value)} ± {_fixed((found.high - found.low) / 2)}{'*' if is_good(answer) else ''}"


def _fixed(value: float) -> str:
    """Two digits; never -0.00."""
    return f"{round(value, 2) + 0.0:.2f}"


def is_good(answer: Answer) -> bool:
    """Above chance, and above the edges of the image, each by an interval of the difference; never of controls."""
    return bool(answer.above_chance and answer.above_edges)


def page_text(card: Scorecard, info: Mapping[str, Any]) -> str:
    """One page with the table and a picture of each row, all in one file.

    Args:
        info: `model`, `dataset`, `split`, `date`, as they are shown.
    """
    shown = max({row.example.case for row in card.rows}, key=lambda case: _showing(card, case))
    environment = template_environment()
    environment.filters |= {"fixed": _fixed}
    return environment.get_template("scorecard.html.j2").render(
        info=info,
        card=card,
        questions=QUESTIONS,
        rows=[_values(card, row) for row in ordered(card.rows)],
        scene=_data_uri(scene_strip(card, shown)),
        part=card.cases.parts[shown],
        explained={row.example.explains for row in card.rows if row.function is None and row.example.case == shown},
        pixelated=card.cases.images.shape[-1] <= 128,
    )


def _showing(card: Scorecard, case: int) -> int:
    return sum(row.example.case == case for row in card.rows)


def _values(card: Scorecard, row: Row) -> dict[str, Any]:
    answers = {name: row.answers.get(name) for name in QUESTIONS}
    return {
        "title": title_of(row),
        "kind": KINDS[row.kind][0],
        "colour": KINDS[row.kind][1],
        "answers": answers,
        "good": {name: answer is not None and is_good(answer) for name, answer in answers.items()},
        "seconds": row.seconds,
        "explains": row.example.explains,
        "concept": row.function is not None,
        "picture": _data_uri(strip(card, row.example)),
    }


def _data_uri(pixels: np.ndarray) -> Markup:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return Markup(f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}")
