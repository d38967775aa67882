"""The explanation of one image as a page that opens from the disk and needs nothing else."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from viscoin.analysis.explanation import Explanation
from viscoin.analysis.explanation_change import Change
from viscoin.analysis.explanation_concepts import Vote
from viscoin.analysis.explanation_patches import GRID, HiddenPatches
from viscoin.analysis.explanation_places import Place
from viscoin.analysis.explanation_trust import HALF, SURE
from viscoin.errors import Refused, reason_of
from viscoin.files import atomic_path
from viscoin.plotting.attribution import painted, palette
from viscoin.reports.attribution_page import FINE, picture
from viscoin.reports.demo_page import template_environment

PARTS = {
    "prediction": "The answer", "maps": "Where it looks", "concepts": "Concepts", "drawing": "The drawn image",
    "patches": "Hidden patches",
}  # fmt: skip
MARKS = {"good": "✓", "fair": "~", "poor": "!", "not measured": "?"}
HELD = 0.8  # share of a concept that may be left where its map is hidden, of what is left elsewhere
NBSP = "\N{NO-BREAK SPACE}"


def write_explanation_page(path: Path, found: Explanation, info: Mapping[str, Any]) -> Path:
    """Write the page of one image.

    Args:
        info: `model`, `kind` ("classifier" or "ensemble"), `command` and `date`, shown as they are.

    Raises:
        Refused: it cannot be written.
    """
    environment = template_environment()
    environment.filters |= {"signed": signed, "share": share, "code": code}
    text = environment.get_template("explain.html.j2").render(**page_values(found), info=info)
    return _write(path, text)


def write_index(path: Path, pages: Sequence[tuple[str, Explanation]], info: Mapping[str, Any]) -> Path:
    """Write a list of several pages, each with its image and answer.

    Args:
        pages: file name and explanation.

    Raises:
        Refused: it cannot be written.
    """
    environment = template_environment()
    environment.filters |= {"share": share}
    rows = [
        {
            "page": name, "name": one.name, "pixels": picture(one.pixels), "answer": one.class_names[one.predicted],
            "probability": float(one.probabilities[one.predicted]), "right": _right(one),
        }
        for name, one in pages
    ]  # fmt: skip
    fine = all(len(one.pixels) <= FINE for _, one in pages)
    return _write(path, environment.get_template("explain-index.html.j2").render(rows=rows, info=info, fine=fine))


def _write(path: Path, text: str) -> Path:
    try:
        with atomic_path(path) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Refused("out", path, f"cannot write there ({reason_of(error)})", "choose another folder") from error
    return path


def page_values(found: Explanation) -> dict[str, Any]:
    """What the template is given."""
    names = found.class_names
    votes = found.votes
    largest = max((abs(vote.vote) for vote in votes.leading), default=1.0) if votes else 1.0
    apart = max((abs(vote.difference) for vote in votes.between), default=1.0) if votes else 1.0
    return {
        "found": found,
        "pixels": picture(found.pixels),
        "fine": len(found.pixels) <= FINE,
        "predicted": names[found.predicted],
        "runner_up": names[found.runner_up],
        "sure": surely(float(found.probabilities[found.predicted])),
        "voted": None if votes is None else (names[votes.predicted], names[votes.runner_up]),
        "truth": None if found.label is None else names[found.label],
        "right": _right(found),
        "classes": [(names[c], float(found.probabilities[c])) for c in found.ranked],
        "maps": [_place(found, place) for place in found.places.maps] if found.places else [],
        "contrast": _place(found, found.places.contrast) if found.places and found.places.contrast else None,
        "leading": [_vote(found, vote, vote.vote / largest) for vote in votes.leading] if votes else [],
        "between": [_vote(found, vote, vote.difference / apart) for vote in votes.between] if votes else [],
        "off": None if votes is None else _switched_off(found),
        "patches": _patches(found.patches, names),
        "change": None if found.change is None else _change(found, found.change),
        "trust": [{**vars(one), "title": PARTS[one.about], "mark": MARKS[one.level]} for one in found.trust],
        "scales": {"signed": _scale(True), "plain": _scale(False)},
    }


def surely(probability: float) -> str:
    """How the answer begins, by how sure f is of it."""
    return "This is" if probability >= SURE else "This is probably" if probability >= HALF else "This may be"


def _right(found: Explanation) -> bool | None:
    return None if found.label is None else found.label == found.predicted


def _scale(diverging: bool) -> str:
    return picture(palette(diverging)(np.linspace(0, 1, FINE))[None, :, :3])


def _place(found: Explanation, place: Place) -> dict[str, Any]:
    drawn = painted(found.pixels, place.heat / place.limit, place.signed)
    return {
        "title": place.title, "picture": picture(drawn), "signed": place.signed, "smoothed": place.smoothed,
        "kept": None if np.isnan(place.kept) else place.kept, "random": place.kept_at_random,
        "where": where(place.point, len(found.pixels)),
    }  # fmt: skip


def where(point: tuple[int, int] | None, side: int) -> str:
    """A place in words, for those who do not see the picture."""
    if point is None:
        return "nowhere"
    column, row = (min(2, 3 * value // side) for value in point)
    vertical, horizontal = ("at the top", "in the middle", "at the bottom")[row], ("left", "", "right")[column]
    return f"{vertical} {horizontal}".strip()


def _vote(found: Explanation, vote: Vote, size: float) -> dict[str, Any]:
    y, x = np.unravel_index(int(vote.heat.argmax()), vote.heat.shape)
    point = (int(x), int(y)) if vote.heat.any() else None
    return {
        "vote": vote, "size": size, "picture": picture(painted(found.pixels, vote.heat, False)),
        "where": where(point, len(found.pixels)),
        "strength": None if np.isnan(vote.usual) or not vote.usual > 0 else vote.activation / vote.usual,
        "crops": [{"pixels": picture(crop.pixels), "name": crop.name} for crop in vote.crops],
        "placed": None if np.isnan(vote.kept) else vote.kept < HELD * vote.kept_at_random,
    }  # fmt: skip


def _switched_off(found: Explanation) -> dict[str, Any]:
    if found.votes is None:
        raise ValueError("no votes")
    off = found.votes.switched_off
    titles = [_called(found, k) for k in off.concepts]
    return {
        "titles": titles, "changes": off.changes, "becomes": found.class_names[off.becomes], "share": off.probability,
        "of": found.class_names[found.votes.g_predicted],
    }  # fmt: skip


def _called(found: Explanation, concept: int) -> str:
    name = found.concept_names.get(concept)
    return f"{name} ({concept})" if name else f"concept {concept}"


def _patches(patches: HiddenPatches, names: Sequence[str]) -> dict[str, Any]:
    return {
        "picture": picture(framed(patches.image, patches.hidden)), "count": patches.count, "all": GRID * GRID,
        "changes": patches.changes, "becomes": names[patches.becomes],
        "share": float(patches.probabilities[patches.becomes]),
    }  # fmt: skip


def framed(pixels: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """The image (H, W, 3) uint8, enlarged if it is small, with an outline around the hidden patches (G, G) bool."""
    side = len(pixels)
    times = max(1, -(-2 * FINE // side))
    large = pixels.repeat(times, 0).repeat(times, 1)
    places = np.arange(len(large)) * len(hidden) // len(large)
    mask = hidden[places][:, places]
    edge = np.zeros_like(mask)
    width = max(1, len(large) // 200)
    for axis in (0, 1):
        for step in (-width, width):
            shifted = np.roll(mask, step, axis)
            border = slice(0, width) if step > 0 else slice(-width, None)
            shifted[(border, slice(None)) if axis == 0 else (slice(None), border)] = False
            edge |= mask & ~shifted
    drawn = large.copy()
    drawn[edge] = (230, 70, 40)
    return drawn


def _change(found: Explanation, change: Change) -> dict[str, Any]:
    heat = change.heat / max(float(change.heat.max()), 1e-6)
    names = found.class_names
    return {
        "words": change.describe(found.concept_names), "changes": change.changes, "faithful": change.faithful,
        "reconstruction": picture(change.reconstruction), "edited": picture(change.edited),
        "difference": picture(palette(False)(heat)[..., :3]),
        "before": names[int(change.before.argmax())], "before_share": float(change.before.max()),
        "becomes": names[change.becomes], "becomes_share": float(change.after[change.becomes]),
    }  # fmt: skip


def code(text: str) -> Markup:
    """A sentence with what stands in backticks as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def signed(value: float) -> str:
    """+1.25, −0.40."""
    return f"{value:+.2f}".replace("-", "−")


def share(value: float) -> str:
    """0.974 -> "97 %", with words for what is nearly all or nothing."""
    if 0.995 <= value < 1.005:
        return f"over 99{NBSP}%"
    return f"under 1{NBSP}%" if value < 0.005 else f"{100 * value:.0f}{NBSP}%"
