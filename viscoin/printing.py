"""Text of others, such as names of files, made safe to be shown; and warnings, said once."""

import logging
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

LAYOUT = "\n\t"


def printable(text: str) -> str:
    """The text with whatever would command a terminal, or cannot be encoded, written as an escape: "\\x1b[31m".

    These are control characters other than line feeds and tabs, marks that turn the direction of writing, and the
    bytes of file names that are no UTF-8.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(letter) if _commands(letter) else letter for letter in text)


def _commands(letter: str) -> bool:
    if letter in LAYOUT:
        return False
    return unicodedata.category(letter) in ("Cc", "Cs") or unicodedata.bidirectional(letter) in (
        "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI",
    )  # fmt: skip


def _escaped(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # a byte, as Python hands on names that are no UTF-8
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")


@contextmanager
def said_once(logger: str) -> Iterator[None]:
    """Within the block, the logger of that name says nothing twice."""
    said: set[str] = set()

    def unsaid(record: logging.LogRecord) -> bool:
        known = record.getMessage() in said
        said.add(record.getMessage())
        return not known

    logging.getLogger(logger).addFilter(unsaid)
    try:
        yield
    finally:
        logging.getLogger(logger).removeFilter(unsaid)
