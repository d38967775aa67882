"""One page to flip through methods on the same images; it opens from the disk and needs nothing else."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from viscoin.analysis.attribution import AttributionStudy
from viscoin.attribution import METHODS
from viscoin.errors import Refused, reason_of
from viscoin.files import atomic_path
from viscoin.plotting.attribution import painted, palette
from viscoin.reports.demo_page import template_environment

FINE = 128  # side up to which single pixels are shown, pixels; larger images are stored as JPEG
QUALITY = 88


def write_attribution_page(
    path: Path, study: AttributionStudy, info: Mapping[str, Any], groups: Mapping[str, int] | None = None
) -> Path:
    """Write a page with all images, maps and overlays inside, and a choice among the methods.

    Args:
        info: `model`, `dataset` (None for files) and `of` (f, g or concepts), shown as they are.
        groups: names of neighbouring views, and how many those are.

    Raises:
        Refused: it cannot be written.
    """
    views = study.views
    names = [name for name, count in (groups or {}).items() for _ in range(count)] or [""] * len(views)
    rows = [
        {**row, "group": group, "pixels": picture(views.images[view]), "maps": _maps(study, view)}
        for view, (row, group) in enumerate(zip(views.to_dict(), names, strict=True))
    ]
    values = {
        "info": info, "question": views.question, "views": rows, "methods": _methods(study),
        "left_out": {METHODS[name].title: reason for name, reason in study.left_out.items()},
        "fine": views.images.shape[1] <= FINE,
    }  # fmt: skip
    text = template_environment().get_template("attribution.html.j2").render(**values)
    try:
        with atomic_path(path) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Refused("out", path, f"cannot write there ({reason_of(error)})", "choose another folder") from error
    return path


def picture(pixels: np.ndarray) -> str:
    """An image (H, W, 3), uint8 or in [0, 1], as a data URI."""
    if pixels.dtype != np.uint8:
        pixels = np.round(pixels * 255).astype(np.uint8)
    kind, buffer = ("png" if len(pixels) <= FINE else "jpeg"), io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind.upper(), **({"quality": QUALITY} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _maps(study: AttributionStudy, view: int) -> list[dict[str, str]]:
    """For each method its map over the image, and alone."""
    found, image = [], study.views.images[view]
    for method, result in study.results.items():
        heat = result.maps[view].numpy() / study.limit(method)
        drawn = {name: painted(image, heat, result.signed, name == "overlay") for name in ("overlay", "map")}
        found.append({name: picture(pixels) for name, pixels in drawn.items()})
    return found


def _methods(study: AttributionStudy) -> list[dict[str, Any]]:
    numbers = study.to_dict()["methods"]
    return [
        {
            **numbers[method], "family": METHODS[method].family, "place": study.place(method),
            "scale": picture(palette(result.signed)(np.linspace(0, 1, FINE))[None, :, :3]),
            "options": {name: value for name, value in result.options.items() if isinstance(value, str | int | float)},
            "largest_gap": None if result.gap is None else float(result.gap.abs().max()),
        }
        for method, result in study.results.items()
    ]  # fmt: skip
