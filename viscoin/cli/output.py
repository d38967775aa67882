"""What commands print: text of others made harmless, and JSON alone where it was asked for."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import typer

from viscoin.files import without_nan
from viscoin.printing import printable

_json_alone: ContextVar[bool] = ContextVar("json_alone", default=False)


def echo(text: object = "", err: bool = False, nl: bool = True) -> None:
    """Print a line; on standard error where standard output is for JSON alone."""
    typer.echo(printable(str(text)), err=err or _json_alone.get(), nl=nl)


@contextmanager
def json_alone(wanted: bool) -> Iterator[None]:
    """Within the block, standard output takes nothing but what `print_json` prints."""
    token = _json_alone.set(wanted)
    try:
        yield
    finally:
        _json_alone.reset(token)


def print_json(values: Mapping[str, Any]) -> None:
    """Print the result of a command, where JSON was asked for; nothing otherwise."""
    if _json_alone.get():
        typer.echo(json.dumps(without_nan(values), indent=2))
