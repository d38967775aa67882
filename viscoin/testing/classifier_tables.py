"""The test of a classifier as tables: CSV for other programs, Markdown for people."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from viscoin.datasets import ImageDataset
from viscoin.testing.classifier import ClassifierResult
from viscoin.testing.classifier_measures import (
    ClassifierMeasures,
    class_rows,
    most_confident_errors,
    most_confused,
)
from viscoin.testing.table import markdown_table, table_rows

COLUMNS = ("images", "recall", "precision", "f1", "auroc", "average_precision")  # of the Markdown table of classes


def class_table(measures: ClassifierMeasures) -> str:
    """CSV: every measure of each class; empty where there is none."""
    rows = class_rows(measures)
    return _csv(rows[0], [["" if value != value else value for value in row.values()] for row in rows])


def confusion_table(result: ClassifierResult) -> str:
    """CSV of counts: a row for each true class, a column for each predicted one."""
    rows = [[name, *counts] for name, counts in zip(result.class_names, result.confusion.tolist())]
    return _csv(["true class", *result.class_names], rows)


def error_rows(result: ClassifierResult, dataset: ImageDataset) -> list[dict[str, Any]]:
    """The most confident errors: index in the dataset, file if it has one, classes and their probabilities."""
    found = []
    for row in most_confident_errors(result):
        index = int(row if result.indices is None else result.indices[row])
        label, predicted = int(result.labels[row]), int(result.predicted[row])
        found.append({
            "index": index,
            "file": dataset.files[index] if dataset.files else None,
            "true": result.class_names[label],
            "predicted": result.class_names[predicted],
            "probability_of_true": float(result.probabilities[row, label]),
            "probability_of_predicted": float(result.probabilities[row, predicted]),
        })  # fmt: skip
    return found


def markdown_report(measures: ClassifierMeasures) -> str:
    """All measures with their intervals, each class, and the pairs that are confused most often."""
    names, result = measures.result.class_names, measures.result
    parts = [markdown_table(table_rows(measures.estimates, {}))]
    if measures.missing:
        parts.append(f"Classes without images, in no mean: {', '.join(measures.missing)}.\n")
    rows = [[row["class"], *(_cell(row[key]) for key in COLUMNS)] for row in class_rows(measures)]
    rows += [
        [f"*{title}*", str(result.n), *(_cell(mean(key)) for key in COLUMNS[1:])]
        for title, mean in (
            ("mean of the classes", measures.by_class.macro), ("weighted by images", measures.by_class.weighted),
        )
    ]  # fmt: skip
    parts.append(_markdown(["class", *(key.replace("_", " ") for key in COLUMNS)], rows))
    pairs = [[names[pair.true], names[pair.predicted], f"{pair.errors} of {pair.images}"] for pair in most_confused(
        result.confusion
    )]  # fmt: skip
    if pairs:
        parts.append(_markdown(["true class", "predicted class", "images"], pairs))
    return "\n".join(parts)


def _cell(value: float) -> str:
    if value != value:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _csv(header: Iterable[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
