"""`amplify`."""

import typer

from viscoin.cli import common


def amplify(viscoin: common.ViscoinModel = None) -> None:
    """."""
