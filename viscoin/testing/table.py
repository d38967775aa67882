"""Measures with their intervals as a table, for the terminal and for a paper."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from viscoin.statistics.bootstrap import Estimate

TITLES = {
    r"classifier\.accuracy": "accuracy of f",
    r"classifier\.top5": "top-5 accuracy of f",
    r"classifier\.balanced_accuracy": "balanced accuracy (mean recall of the classes)",
    r"classifier\.precision": "precision, mean of the classes",
    r"classifier\.f1": "F1, mean of the classes",
    r"classifier\.auroc": "AUROC, mean of the classes",
    r"classifier\.average_precision": "average precision, mean of the classes",
    r"classifier\.expected_calibration_error": "expected calibration error",
    r"classifier\.negative_log_likelihood": "negative log-likelihood, nats",
    r"classifier\.brier_score": "Brier score, 0 to 2",
    r"ensemble\.accuracy": "accuracy of g",
    r"ensemble\.agreement": "agreement of g with f",
    r"classifier\.accuracy_on_reconstructions": "accuracy of f on reconstructions",
    r"ensemble\.accuracy_on_reconstructions": "accuracy of g on its own reconstructions",
    r"reconstruction\.l1": "reconstruction: L1",
    r"reconstruction\.mse": "reconstruction: MSE",
    r"reconstruction\.perceptual": "reconstruction: perceptual ({perceptual})",
    r"reconstruction\.fid": "reconstruction: FID ({features})",
    r"faithfulness\.(.+)\.relevant": "faithfulness, concepts with r > \\1 removed",
    r"faithfulness\.(.+)\.random": "faithfulness, as many random ones as r > \\1",
    r"faithfulness\.(.+)\.removed": "number of concepts with r > \\1",
    r"surrogate\.theta\.mae": "SURF, error of logits: Theta",
    r"surrogate\.constant\.mae": "SURF, error of logits: no concepts",
    r"surrogate\.concepts\.mae": "SURF, error of logits: linear in concepts",
    r"surrogate\.theta\.emd": "SURF, error of probabilities: Theta",
    r"surrogate\.constant\.emd": "SURF, error of probabilities: no concepts",
    r"surrogate\.concepts\.emd": "SURF, error of probabilities: linear in concepts",
    r"consistency\.(.+)": "consistency, lambda \\1",
    r"kept_concepts\.relevance\.(\d+)": "accuracy of g, top \\1 of the concepts kept",
    r"kept_concepts\.relevance\.area_log2": "area over log2 N, most relevant kept",
    r"kept_concepts\.activation\.area_log2": "area over log2 N, most active kept",
    r"kept_concepts\.random\.area_log2": "area over log2 N, random ones kept",
    r"concepts\.per_class": "concepts per class with mean r > 0.5",
    r"concepts\.dead": "dead concepts",
    r"attributes\.concepts\.auroc": "attributes: AUROC of the best concept",
    r"attributes\.concepts\.found": "attributes: share with AUROC > 0.9",
    r"attributes\.concepts\.purity": "attributes: purity of their concepts",
    r"attributes\.concepts\.deletion": "part deleted: its concept falls",
    r"attributes\.concepts\.deletion_other": "other part deleted: it falls",
    r"attributes\.concepts\.swap": "variant swapped: its concept follows",
    r"attributes\.concepts\.swap_other": "other variant swapped: it moves that way",
    r"attributes\.concepts\.background": "background deleted: it does not move",
    r"attributes\.concepts\.pointing": "heatmap: highest point in the part",
    r"attributes\.concepts\.mass": "heatmap: share in the part",
    r"attributes\.concepts\.area": "heatmap: chance of both",
    r"attributes\.concepts\.edit_iou": "amplified: overlap of change and part",
    r"attributes\.concepts\.edit_iou_chance": "amplified: chance of it",
    r"attributes\.concepts\.edit_inside": "amplified: share of change in the part",
    r"dose_response\.slope": "one concept x0 to x2: slope read back, 1 as asked",
    r"dose_response\.slope_control": "one concept x0 to x2: slope, another one instead",
    r"dose_response\.rise": "one concept x0 to x2: rise read back, in scales",
    r"dose_response\.off_target": "one concept x0 to x2: change of others, in scales",
    r"dose_response\.monotone_to_one": "one concept x0 to x1: rises at both steps, chance 0.5",
    r"dose_response\.monotone": "one concept x0 to x2: rises at all steps",
    r"dose_response\.judge\.auroc_real": "judge: AUROC on real images",
    r"dose_response\.judge\.auroc_rebuilt": "judge: AUROC on reconstructions",
    r"dose_response\.judge\.(x[\d.]+)": "judge: P(attribute) with its concept \\1",
    r"dose_response\.judge\.rise": "judge: rise x0 to x2",
    r"dose_response\.judge\.rise_control": "judge: rise, another concept instead",
    r"dose_response\.judge\.gone": "judge: attribute gone at x0",
    r"dose_response\.judge\.monotone_to_one": "judge: rises at both steps x0 to x1, chance 0.5",
    r"dose_response\.judge\.monotone": "judge: rises at all steps x0 to x2",
    r"dose_response\.judge\.off_target": "judge: change of other attributes, x0 to x2",
    r"surgery\.seen": "attribute swapped: judge sees the new value",
    r"surgery\.before": "attribute swapped: it saw it before",
    r"surgery\.off_target": "attribute swapped: change of other attributes",
    r"surgery\.length": "attribute swapped: length by read-back",
    r"surgery\.group\.(.+)": "attribute swapped: seen, \\1",
}
HEADER = ("measure", "value", "95 % interval", "n", "expected")
# Columns of the table of concepts and rivals: title, and the estimate's name around that of the concept function.
RIVALS = (
    ("found", "attributes.{}.found"),
    ("AUROC", "attributes.{}.auroc"),
    ("own part", "attributes.{}.deletion"),
    ("other part", "attributes.{}.deletion_other"),
    ("swap", "attributes.{}.swap"),
    ("other swap", "attributes.{}.swap_other"),
    ("purity", "attributes.{}.purity"),
    ("SURF logits", "surrogate.{}.mae"),
    ("SURF prob.", "surrogate.{}.emd"),
)


def table_rows(
    estimates: Mapping[str, Estimate], numbers: Mapping[str, Any], expected: Mapping[str, float] | None = None
) -> list[tuple[str, ...]]:
    """Title, value, interval and n of each estimate that has a title, and what was expected if that is given.

    Args:
        numbers: sections as in `ViscoinMeasures.to_dict()`, for the names of the networks that images are compared by.
        expected: results of a recipe by the names of the estimates.
    """
    rows: list[tuple[str, ...]] = []
    used = numbers.get("reconstruction", {})
    names = {"perceptual": used.get("perceptual_name"), "features": used.get("fid_features")}
    for key, estimate in estimates.items():
        title = next((re.sub(pattern, text, key) for pattern, text in TITLES.items() if re.fullmatch(pattern, key)), "")
        if title:
            ends = "–" if estimate.low != estimate.low else f"[{_number(estimate.low)}, {_number(estimate.high)}]"
            n = f"{estimate.n} {estimate.unit}"
            row = (title.format_map(names), _number(estimate.value), ends, n)
            rows.append((*row, _number(expected[key]) if key in expected else "–") if expected else row)
    return rows


def rival_table(estimates: Mapping[str, Estimate]) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """A row of values for the concepts and for each rival, in their order, and the header above them.

    Columns are shares; the two of SURF are errors. A measure that was taken of none of them has no column.
    """
    names = list(dict.fromkeys(key.split(".")[1] for key in estimates if key.startswith(("attributes.", "surrogate."))))
    columns = [column for column in RIVALS if any(column[1].format(name) in estimates for name in names)]
    rows = []
    for name in names:
        found = [estimates.get(key.format(name)) for _, key in columns]
        rows.append((name, *("–" if value is None else f"{value.value:.2f}" for value in found)))
    return rows, ("concepts and rivals", *(title for title, _ in columns))


def text_table(rows: Iterable[tuple[str, ...]], header: tuple[str, ...] = HEADER) -> str:
    """Aligned columns."""
    table = _with_header(rows, header)
    widths = [max(map(len, column)) for column in zip(*table)]
    return "\n".join(
        f"  {row[0]:<{widths[0]}}  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:]))
        for row in table
    )


def markdown_table(rows: Iterable[tuple[str, ...]], header: tuple[str, ...] = HEADER) -> str:
    """The same in Markdown."""
    titles, *body = _with_header(rows, header)
    table = [titles, ("---", *("---:" for _ in titles[1:])), *((row[0].strip(), *row[1:]) for row in body)]
    return "\n".join(f"| {' | '.join(row)} |" for row in table) + "\n"


def _with_header(rows: Iterable[tuple[str, ...]], header: tuple[str, ...]) -> list[tuple[str, ...]]:
    body = list(rows)
    return [header[: len(body[0]) if body else 4], *body]


def _number(value: float) -> str:
    if value != value:
        return "–"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.1f}"
