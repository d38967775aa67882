"""`test classifier|viscoin|gan`: measure trained models on test images."""

from pathlib import Path
from typing import Annotated

import typer

from viscoin.cli import common

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Test the classifier, the ensemble or the generator."
)


@app.command()
def classifier(
    checkpoints: Annotated[Path | None, common.model_option("--checkpoints", "Classifier f")] = None,
    dataset: common.DatasetName = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, metavar="N", help="Images in a batch.")] = 128,
    device: common.Device = "auto",
    out: common.Out = None,
    show: common.Show = False,
    skip_bad_files: common.SkipBadFiles = False,
) -> None:
    """Accuracy of the classifier f on test images, over all and by class."""


@app.command()
def viscoin(
    checkpoints: common.ViscoinModel = None,
    dataset: common.DatasetName = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, metavar="N", help="Images in a batch.")] = 128,
    seed: common.Seed = None,
    device: common.Device = "auto",
    out: common.Out = None,
    show: common.Show = False,
    skip_bad_files: common.SkipBadFiles = False,
) -> None:
    """Accuracy, agreement, reconstruction, faithfulness and, where there is truth, attributes of the ensemble."""


@app.command()
def gan(
    checkpoints: Annotated[Path | None, common.model_option("--checkpoints", "Generator G")] = None,
    classifier: Annotated[
        Path | None, common.model_option("--classifier", "Classifier f, which gives the features")
    ] = None,
    dataset: common.DatasetName = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, metavar="N", help="Images in a batch.")] = 128,
    seed: common.Seed = None,
    device: common.Device = "auto",
    out: common.Out = None,
    show: common.Show = False,
    skip_bad_files: common.SkipBadFiles = False,
) -> None:
    """Frechet distance between test images and samples of the generator G, in features of f."""
