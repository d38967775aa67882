"""The concepts of a dataset as rows, JSON and CSV."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from viscoin.analysis.concepts import ConceptTable
from viscoin.datasets import ImageDataset

MOST = 8  # images and correlated concepts that are listed of each concept


def summary(table: ConceptTable) -> dict[str, Any]:
    """Numbers of the whole table."""
    return {
        "images": len(table.labels),
        "concepts": len(table.dead),
        "never_active": int(table.dead.sum()),
        "active_per_image": float(np.median(table.active_per_image)),
        "concepts_per_class": float(table.concepts_per_class.mean()),
        "mean_entropy": None if table.dead.all() else float(np.nanmean(table.entropy)),
    }


def concept_rows(
    table: ConceptTable, class_names: Sequence[str], names: Mapping[int, str] | None = None
) -> list[dict[str, Any]]:
    """One row of plain values for each concept, by index; None where there is no value.

    `votes_for` is the class of the largest weight, `class` the one for which the concept is most relevant, which also
    depends on how active it is.
    """
    relevance = np.nan_to_num(table.class_concept_importance)
    return [
        {
            "concept": k,
            "name": (names or {}).get(k, f"concept {k}"),
            "importance": float(table.importance[k]),
            "class": class_names[int(relevance[:, k].argmax())] if table.importance[k] > 0 else None,
            "votes_for": class_names[int(table.weight[:, k].argmax())] if table.weight[:, k].max() > 0 else None,
            "mean_activation": float(table.mean_activation[k]),
            "max_activation": float(table.activations[:, k].max()),
            "active_share": float(table.active_share[k]),
            "entropy": None if np.isnan(table.entropy[k]) else float(table.entropy[k]),
        }
        for k in range(len(table.dead))
    ]


def class_rows(table: ConceptTable, class_names: Sequence[str], labelled: bool = True) -> list[dict[str, Any]]:
    """One row for each class; accuracies are None without images of it, and for images without labels."""
    predictions = {"f_accuracy": table.f_probabilities.argmax(1), "g_accuracy": table.predicted}
    rows: list[dict[str, Any]] = []
    for c, name in enumerate(class_names):
        own = table.labels == c
        known = labelled and own.any()
        right = {key: float((found[own] == c).mean()) if known else None for key, found in predictions.items()}
        rows.append({"class": name, "images": int(own.sum()), "predicted": int((table.predicted == c).sum()), **right})
    return rows


def concepts_json(table: ConceptTable, dataset: ImageDataset, names: Mapping[int, str] | None = None) -> dict[str, Any]:
    """Everything that is known of concepts and classes, except for the two large matrices, which are CSV."""
    classes = dataset.class_names
    concepts = concept_rows(table, classes, names)
    for row in concepts:
        k = row["concept"]
        row["votes"] = dict(zip(classes, table.weight[:, k].tolist()))
        row["relevance"] = dict(zip(classes, table.class_concept_importance[:, k].tolist()))
        row["correlated"] = [{"concept": other, "correlation": r} for other, r in correlated(table, k)]
        best = np.argsort(-table.activations[:, k], kind="stable")[:MOST]
        row["images"] = [
            {
                "index": int(table.indices[i]),
                **({} if dataset.files is None else {"file": dataset.files[table.indices[i]]}),
                "class": classes[table.labels[i]],
                "activation": float(value),
            }
            for i in best
            if (value := table.activations[i, k]) > 0
        ]
    return {"summary": summary(table), "concepts": concepts, "classes": class_rows(table, classes, dataset.labelled)}


def correlated(table: ConceptTable, concept: int, most: int = MOST) -> list[tuple[int, float]]:
    """The concepts that fire most with this one, with their correlations, which are positive."""
    r = np.nan_to_num(table.co_activation[concept])
    r[concept] = 0
    return [(int(k), float(r[k])) for k in np.argsort(-r, kind="stable")[:most] if r[k] > 0]


def csv_files(
    table: ConceptTable, dataset: ImageDataset, names: Mapping[int, str] | None = None
) -> Iterator[tuple[str, str]]:
    """Names and contents of the CSV files; an empty cell means no value."""
    classes, k = dataset.class_names, len(table.dead)
    rows = concept_rows(table, classes, names)
    yield "concepts.csv", _text([list(rows[0]), *(list(row.values()) for row in rows)])
    for name, matrix in (("class-concept-importance", table.class_concept_importance), ("votes", table.weight)):
        yield f"{name}.csv", _text([["class", *range(k)], *([c, *row] for c, row in zip(classes, _cells(matrix)))])
    correlations = _cells(table.co_activation)
    yield "co-activation.csv", _text([["concept", *range(k)], *([i, *row] for i, row in enumerate(correlations))])
    found = zip(
        table.indices, table.labels, table.f_probabilities.argmax(1), table.predicted, _cells(table.activations)
    )
    files = dataset.files
    header = ["image", *([] if files is None else ["file"]), "class", "f", "g", *range(k)]
    lines = (
        [i, *([] if files is None else [files[i]]), classes[c], classes[f], classes[g], *row]
        for i, c, f, g, row in found
    )
    yield "activations.csv", _text([header, *lines])


def _cells(matrix: np.ndarray) -> list[list[str]]:
    """Six digits, the precision of float32."""
    return [["" if value != value else f"{value:.6g}" for value in row] for row in matrix.tolist()]


def _text(rows: Sequence[Sequence[Any]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()
