"""`concepts`."""

import typer

from viscoin.cli import common


def concepts(viscoin: common.ViscoinModel = None) -> None:
    """."""
