"""Inspections and splits as text: tables with aligned columns."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from viscoin.datasets.inspection import Copies, Inspection, size_summary
from viscoin.datasets.splitting import Split

EXAMPLES = 5  # of broken files and of duplicates
BALANCE = {
    "smallest": "images of the smallest class",
    "median": "images of the median class",
    "largest": "images of the largest class",
    "largest_share": "share of the largest class",
    "imbalance": "largest / smallest class",
}


def describe_inspection(found: Inspection) -> str:
    """Images by class and split, attributes, balance, sizes, broken files, duplicates and parts."""
    blocks = [_counts(found.class_names, found.counts)]
    if found.attribute_names:
        rows = [
            [name, *(f"{shares[i]:.3f}" for shares in found.attributes.values())]
            for i, name in enumerate(found.attribute_names)
        ]
        blocks.append(_columns(["attribute, share of images", *found.attributes], rows))
    return "\n\n".join([*blocks, "\n".join([_balance(found), *_facts(found)])])


def describe_split(split: Split) -> str:
    """Images by class and split, and the share of each split."""
    counts = split.counts()
    sums = {name: int(values.sum()) for name, values in counts.items()}
    total = sum(sums.values())
    shares = ", ".join(f"{name} {count} ({count / total:.1%})" for name, count in sums.items())
    return f"{_counts(split.class_names, counts)}\n{total} images: {shares}"


def _balance(found: Inspection) -> str:
    splits = list(found.counts)
    balance = [found.balance(split) for split in splits]
    rows = [["images", *(str(int(counts.sum())) for counts in found.counts.values())]]
    rows += [[title, *(f"{values[key]:.4g}" for values in balance)] for key, title in BALANCE.items()]
    return _columns([f"{found.name}: {len(found.class_names)} classes", *splits], rows)


def _facts(found: Inspection) -> Iterator[str]:
    across = found.across_splits
    within = [group for group in found.duplicates if group not in across]
    yield f"image sizes as stored   {_sizes(found.sizes)}"
    yield f"model input             {found.resolution}x{found.resolution} px"
    if found.fit_loss is not None:
        title = f"cut away by fit {found.fit_loss.fit.mode}"
        yield f"{title:<23} {found.fit_loss.describe()}"
    yield f"broken files            {len(found.broken)}"
    yield from (f"  {file}: {reason}" for file, reason in list(found.broken.items())[:EXAMPLES])
    yield f"duplicates              {len(within)} within splits, {len(across)} across splits"
    yield from (f"  {_copies(group)}" for group in (across + within)[:EXAMPLES])
    if found.part_names:
        yield f"part masks              {', '.join(found.part_names)}"


def _copies(group: Copies, most: int = 4) -> str:
    """Some of the copies of an image, one of each split before any other."""
    of_each = [
        next(place for place in group if place[0] == split) for split in dict.fromkeys(split for split, _ in group)
    ]
    shown = [*of_each, *(place for place in group if place not in of_each)][:most]
    more = f" and {len(group) - most} more" if len(group) > most else ""
    return " = ".join(f"{image} ({split})" for split, image in shown) + more


def _sizes(sizes: np.ndarray | None) -> str:
    if sizes is None:
        return "the images have no files of their own"
    summary = size_summary(sizes)
    smallest, median, largest = (
        "x".join(f"{summary[side][which]:g}" for side in ("width", "height"))
        for which in ("smallest", "median", "largest")
    )
    if smallest == largest:
        return f"all {smallest} px"
    common, count = next(iter(summary["most_common"].items()))
    return f"{smallest} to {largest} px, median {median}; most common {common} ({count} of {len(sizes)})"


def _counts(class_names: Sequence[str], counts: Mapping[str, np.ndarray]) -> str:
    rows = [[str(i), name, *(str(values[i]) for values in counts.values())] for i, name in enumerate(class_names)]
    return _columns(["", "class", *counts], rows, texts=2)


def _columns(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """Aligned columns: the first ones are texts, the others numbers."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [f"{cell:<{w}}" if i < texts else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
