"""Text and tables that people write, with whatever program: one reader for all of them.

Text is UTF-8, with or without a byte order mark, or UTF-16 with one, as Excel's "Unicode text" has. Tables have a
header and are separated by commas, by semicolons or by tabs, as Excel writes them in different countries. No other
encoding is guessed, since letters would change in silence.
"""

import codecs
import csv
import io
from collections.abc import Sequence
from pathlib import Path

from viscoin.errors import Refused, reason_of, regular

MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before that of UTF-16, with which it begins
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
SEPARATORS = ",;\t"
REMEDY = "save it as UTF-8"


class NotText(ValueError):
    """Bytes that are no text in a known encoding; says where and what to do."""


def decode(content: bytes) -> str:
    """Text of bytes, without the byte order mark and with "\\n" at the end of lines.

    Raises:
        NotText: neither UTF-8 nor UTF-16.
    """
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise NotText(f"line {line} is not {encoding.removesuffix('-sig').upper()}; {REMEDY}") from error
    if "\0" in text:
        raise NotText(f"it is UTF-16 without a byte order mark, or no text at all; {REMEDY}")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_text(path: Path) -> str:
    """Text of a file; see `decode`.

    Raises:
        OSError: it cannot be read.
        NotText: neither UTF-8 nor UTF-16.
    """
    return decode(regular(path).read_bytes())


def read_lines(path: Path, parameter: str | None) -> list[str]:
    """Lines of a text file, without spaces around them; empty ones are kept, as their number counts.

    Raises:
        Refused: cannot be read as text; names `parameter`.
    """
    return [line.strip() for line in _text(path, parameter).split("\n")]


def read_table(
    path: Path, columns: Sequence[str], parameter: str | None, remedy: str = ""
) -> list[tuple[int, dict[str, str]]]:
    """Rows of a table with a header, each with the number of its line, by column; without rows that are empty.

    Case and spaces of the header do not matter; other columns are left out; missing cells are "".

    Raises:
        Refused: cannot be read as text, without one of `columns`, or with quotes that are never closed.
    """
    text = _text(path, parameter)
    first, separator = separator_of(text)
    lines = csv.reader(io.StringIO(text), delimiter=separator, strict=True)
    try:
        rows = [(lines.line_num, cells) for cells in lines]
    except csv.Error as error:
        raise Refused(parameter, path, f"line {lines.line_num} is no row of a table ({error})", remedy) from error
    header = [cell.strip().lower() for cell in rows[first][1]] if first < len(rows) else []
    missing = [column for column in columns if column not in header]
    if missing:
        found = f"; its first line holds {', '.join(filter(None, header)) or 'nothing'}"[:200]
        raise Refused(parameter, path, f"expected the columns {', '.join(columns)}{found}", remedy)
    positions = {column: header.index(column) for column in columns}
    return [
        (number, {column: cells[i] if i < len(cells) else "" for column, i in positions.items()})
        for number, cells in rows[first + 1 :]
        if any(cell.strip() for cell in cells)
    ]


def separator_of(text: str) -> tuple[int, str]:
    """The row of the header, and what separates the columns: "sep=;" of Excel, or what the header has most of."""
    first = text.partition("\n")[0]
    if first.lower().startswith("sep=") and len(first) == 5:
        return 1, first[4]
    return 0, max(SEPARATORS, key=first.count)


def _text(path: Path, parameter: str | None) -> str:
    try:
        return read_text(path)
    except OSError as error:
        raise Refused(parameter, path, f"cannot be read ({reason_of(error)})") from error
    except NotText as error:
        raise Refused(parameter, path, f"cannot be read as UTF-8 or UTF-16 text: {error}") from error
