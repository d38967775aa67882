"""`concept-heatmaps`."""

import typer

from viscoin.cli import common


def concept_heatmaps(viscoin: common.ViscoinModel = None) -> None:
    """."""
