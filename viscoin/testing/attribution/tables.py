"""Scores of methods as tables: the most telling ones for the terminal, and all of them for a file."""

import csv
import io
from collections.abc import Iterator

from viscoin.testing.attribution.scores import SCORES
from viscoin.testing.attribution.study import CONTROLS, ORACLE, AttributionScores, Row

# Columns of the tables on the terminal: score and short title.
COLUMNS = {
    "truth": {
        "parts.com": "Com", "parts.sd": "SD", "parts.ts": "TS", "parts.mean": "mean", "object.pointing": "pointing",
        "object.mass": "mass", "object.rank": "rank", "decisive.pointing": "decisive", "segments.ap": "AP",
        "segments.best_iou": "IoU",
    },
    "faithfulness": {
        "gap.grey": "gap grey", "gap.blur": "gap blur", "gap.render": "gap render", "road.gap": "ROAD gap",
        "infidelity.unexplained": "unexplained", "stability.max_sensitivity": "max-sens.",
        "randomisation.spearman": "randomised", "complexity.gini": "Gini",
    },
}  # fmt: skip
# What the terminal shows beside these, and figures do not: the part scores, repaired and as published.
PARTS = {
    f"{kind}.{key}": f"{title}{mark}"
    for key, title in {
        "csdc": "CSDC", "pc": "PC", "dc": "DC", "d": "D", "com": "Com", "sd": "SD", "ts": "TS", "mean": "mean",
    }.items()
    for kind, mark in (("parts", ""), ("published", " (p)"))
}  # fmt: skip
BELOW = "*"  # beside what is not better than `edges`
CSV = (
    "method",
    "score",
    "title",
    "better",
    "value",
    "low",
    "high",
    "n",
    "unit",
    "chance",
    "above_edges",
    "beats_edges",
)

Table = tuple[list[tuple[str, ...]], tuple[str, ...]]


def method_tables(result: AttributionScores) -> dict[str, Table]:
    """A row for each method, by table; columns that no method has are left out.

    Values that do not beat `edges` by more than the interval of the difference have a star; arrows of the header say
    which direction is better. The table `parts` has all part scores, those with (p) as published.
    """
    tables: dict[str, Table] = {}
    for name, columns in {**COLUMNS, "parts": PARTS}.items():
        known = [key for key in columns if any(key in row.estimates for row in result.rows.values())]
        header = ("method", *(f"{columns[key]}{_arrow(key)}" for key in known))
        rows = [(row.name, *(_cell(row, key) for key in known)) for row in ordered(result)]
        if known:
            tables[name] = rows, header
    return tables


def sentences(result: AttributionScores) -> list[str]:
    """What tables do not say: intervals, methods no better than edges, and what was left out and why."""
    found = [_of_classifier(result), *result.notes]
    found.append(f"{BELOW} not better than edges: the 95 % interval of the difference, over the same images, holds 0")
    shown = {key for columns in COLUMNS.values() for key in columns}
    best = []
    for row in _compared(result):
        failed = [key for key in row.not_above_edges() if key in shown]
        compared = len([key for key in row.above_edges if key in shown])
        if failed:
            found.append(f"{row.name} does not beat edges in {len(failed)} of {compared}: {', '.join(failed)}")
        else:
            best.append(row.name)
    if _compared(result):
        found.append(f"better than edges in every score of these tables: {', '.join(best) or 'no method'}")
    found += [f"{name} has no row: {reason}" for name, reason in result.failed.items()]
    return found + list(_left_out(result))


def scores_csv(result: AttributionScores) -> str:
    """Every score of every method with interval, n, chance, and how much it is above edges."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV)
    for row in ordered(result):
        for key, estimate in row.estimates.items():
            score, above = SCORES[key], row.above_edges.get(key)
            beats = row.beats_edges(key)
            writer.writerow([
                row.name, key, score.title, {1: "more", -1: "less", 0: ""}[score.better],
                *(f"{value:.6g}" for value in (estimate.value, estimate.low, estimate.high)), estimate.n, estimate.unit,
                f"{row.chance[key]:.6g}" if key in row.chance else "", "" if above is None else f"{above.value:.6g}",
                "" if beats is None else str(beats).lower(),
            ])  # fmt: skip
    return stream.getvalue()


def ordered(result: AttributionScores) -> list[Row]:
    """Methods first, then the oracle and the controls."""
    last = {ORACLE: 1, **dict.fromkeys(CONTROLS, 2)}
    return sorted(result.rows.values(), key=lambda row: last.get(row.name, 0))


def _compared(result: AttributionScores) -> list[Row]:
    """Methods that were compared with `edges`."""
    return [row for row in ordered(result) if row.above_edges and row.name not in (*CONTROLS, ORACLE)]


def _arrow(key: str) -> str:
    return {1: " ↑", -1: " ↓", 0: ""}[SCORES[key].better]


def _cell(row: Row, key: str) -> str:
    estimate = row.estimates.get(key)
    if estimate is None:
        return "–"
    return f"{estimate.value:.3f}{BELOW if row.beats_edges(key) is False else ''}"


def _of_classifier(result: AttributionScores) -> str:
    accuracy, independence = (result.classifier.get(key) for key in ("accuracy", "background_independence"))
    of_f = "" if accuracy is None else f"accuracy of f {accuracy} on "
    text = f"{of_f}{result.n} images; thresholds chosen on {result.n_known} others"
    return text if independence is None else f"{text}; background independence of f {independence}"


def _left_out(result: AttributionScores) -> Iterator[str]:
    """A sentence for each reason, with the methods that it is about."""
    methods: dict[tuple[str, str], list[str]] = {}
    for row in result.rows.values():
        for what, reason in row.left_out.items():
            methods.setdefault((what, reason), []).append(row.name)
    for (what, reason), names in methods.items():
        who = "every method" if len(names) == len(result.rows) else ", ".join(names)
        yield f"left out {what} of {who}: {reason}"
