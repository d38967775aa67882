"""Text of others is shown without effect."""

import logging

import pytest

from viscoin.printing import printable, said_once


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("Ü 猫 🐦 $5", "Ü 猫 🐦 $5"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("over\rwritten", "over\\rwritten"),
        ("\x9b31m", "\\x9b31m"),  # the one-byte form of the same command
        ("\x07\x00\x7f", "\\x07\\x00\\x7f"),
        ("gpj.\u202eexe", "gpj.\\u202eexe"),
        ("caf\udce9", "caf\\xe9"),
        ("\ud800", "\\ud800"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
    printable(text).encode()


def test_a_logger_says_nothing_twice_within_the_block(caplog: pytest.LogCaptureFixture) -> None:
    with said_once("spoken"):
        for layer in ("a", "a", "b"):
            logging.getLogger("spoken").warning("below 0 at %s", layer)
        logging.getLogger("another").warning("below 0 at a")
    logging.getLogger("spoken").warning("below 0 at %s", "a")
    assert [record.getMessage()[-1] for record in caplog.records] == ["a", "b", "a", "a"]
