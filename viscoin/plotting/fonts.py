"""Fonts of this system for letters that the usual one lacks, such as Chinese class names."""

import logging
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager, get_font
from matplotlib.text import Text

from viscoin.printing import printable

USUAL = "DejaVu Sans"  # comes with matplotlib
logger = logging.getLogger(__name__)


def fit_fonts(figure: Figure) -> None:
    """Have every text of a figure drawn by fonts that have its letters, and write out what commands a terminal.

    Warns once of letters that no font here has; they are drawn as boxes.
    """
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    for text in texts:
        shown = printable(text.get_text())
        if shown != text.get_text():
            text.set_text(shown)
    strange = {letter for text in texts for letter in text.get_text() if not letter.isascii()} - _letters(_usual())
    strange = {letter for letter in strange if unicodedata.category(letter)[0] not in "CZM"}
    if not strange:
        return
    families, missing = _families(frozenset(strange))
    for text in texts:
        if strange & set(text.get_text()):
            text.set_fontfamily([USUAL, *families])
    if missing:
        _warn(missing)


@contextmanager
def quiet() -> Iterator[None]:
    """Without matplotlib's own warnings of letters, one for each with lines of its source, and of weights of fonts."""
    manager = logging.getLogger("matplotlib.font_manager")
    level = manager.level
    manager.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
            yield
    finally:
        manager.setLevel(level)


@cache
def _families(letters: frozenset[str]) -> tuple[list[str], str]:
    """Families that together have most of the letters, and the letters that none has."""
    families, wanted = [], set(letters)
    fonts = {
        font.name: font.fname
        for font in fontManager.ttflist
        if font.style == "normal" and not font.name.lstrip(".").startswith("Last")  # Resort, whose letters are boxes
    }
    while wanted:
        name = max(sorted(fonts), key=lambda name: len(wanted & _letters(fonts[name])), default=None)
        if name is None or not wanted & _letters(fonts[name]):
            break
        families.append(name)
        wanted -= _letters(fonts[name])
    return families, "".join(sorted(wanted))


@cache
def _letters(path: str) -> frozenset[str]:
    """All letters of a font; none of one that cannot be drawn at any size."""
    try:
        font = get_font(path)
        return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()
    except (OSError, RuntimeError, ValueError):
        return frozenset()


def _usual() -> str:
    return str(fontManager.findfont(FontProperties(family=USUAL)))


@cache
def _warn(letters: str) -> None:
    some = letters if len(letters) <= 10 else f"{letters[:10]} …"
    logger.warning("no font of this system has the letters %s: figures show boxes; install one, as Noto Sans CJK", some)
