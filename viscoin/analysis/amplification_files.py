"""The single images of an amplification as files, with a table of what each is."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from viscoin.analysis.amplification import AmplificationResult
from viscoin.errors import Refused, reason_of
from viscoin.files import atomic_path

COLUMNS = ("file", "image", "kind", "multiplier", "concepts", "label", "target", "f_target", "g_target", "f", "g")


def export_images(
    folder: Path,
    results: Mapping[str, AmplificationResult],
    names: Sequence[str],
    class_names: Sequence[str],
    labels: np.ndarray | None = None,
) -> Path:
    """Write every original, generated image and change map as PNG, and `images.csv`, a line for each of them.

    Change maps are 8-bit grey, 255 for a change from black to white. Columns of the table: `kind` (original, a key of
    `results`, or that with "-change"), `target` (class that g predicts for the original) with its probabilities by f
    and g, and the classes that `f` and `g` predict for this image.

    Args:
        results: amplifications of the same B images, by kind.
        names: (B,) unique; the files begin with them.
        labels: (B,) true classes, if known.

    Returns:
        The path of images.csv.

    Raises:
        ValueError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lines = [
            line
            for number, (kind, result) in enumerate(results.items())
            for row, name in enumerate(names)
            for line in _write_row(folder, result, row, name, kind, class_names, original=number == 0)
        ]
        known = {} if labels is None else {name: class_names[label] for name, label in zip(names, labels, strict=True)}
        with atomic_path(folder / "images.csv") as partial, partial.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, COLUMNS)
            table.writeheader()
            table.writerows({**line, "label": known.get(line["image"], "")} for line in lines)
    except OSError as error:
        raise Refused("folder", folder, f"cannot write there ({reason_of(error)})", "choose another folder") from error
    return folder / "images.csv"


def _write_row(
    folder: Path,
    result: AmplificationResult,
    row: int,
    name: str,
    kind: str,
    class_names: Sequence[str],
    original: bool,
) -> Iterator[dict[str, Any]]:
    target, concepts = result.predicted[row], " ".join(map(str, result.concepts(row)))

    def line(file: str, what: str, position: int, multiplier: str) -> dict[str, Any]:
        f, g = result.f_classes[row, position], result.g_classes[row, position]
        return {
            "file": file,
            "image": name,
            "kind": what,
            "multiplier": multiplier,
            "concepts": concepts if multiplier else "",
            "target": class_names[target],
            "f_target": f"{f[target]:.6f}",
            "g_target": f"{g[target]:.6f}",
            "f": class_names[f.argmax()],
            "g": class_names[g.argmax()],
        }

    if original:
        yield line(_save(folder, f"{name}-original", result.originals[row]), "original", 0, "")
    for i, factor in enumerate(result.factors):
        stem = f"{name}-{kind}-x{factor:g}"
        grey = np.round(result.changes[row, i] * 255).astype(np.uint8)
        yield line(_save(folder, stem, result.images[row, i]), kind, i + 1, f"{factor:g}")
        yield line(_save(folder, f"{stem}-change", grey), f"{kind}-change", i + 1, f"{factor:g}")


def _save(folder: Path, stem: str, pixels: np.ndarray) -> str:
    Image.fromarray(pixels).save(folder / f"{stem}.png")
    return f"{stem}.png"
