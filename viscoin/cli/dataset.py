"""`dataset`: the older name of `data SOURCE prepare`, hidden from the help; to be removed after one release."""

from pathlib import Path
from typing import Annotated

import typer

from viscoin.cli import options
from viscoin.cli.data import Crop, Labels, MaxImages, Preview, prepare
from viscoin.cli.output import echo


def dataset(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A known dataset, a folder, or a zip of images.")],
    out: Annotated[Path, typer.Option("--output", metavar="FILE.zip|FOLDER", help="Where to write.")],
    resolution: Annotated[int | None, typer.Option("--resolution", min=1, metavar="N", help="Side in pixels.")] = None,
    crop: Crop = "center",
    labels: Labels = "auto",
    max_images: MaxImages = None,
    split: Annotated[
        str, typer.Option("--split", metavar="train|validation|test|all", help="Which images to use.")
    ] = "all",
    seed: options.Seed = 0,
    preview: Preview = None,
    skip_bad_files: options.SkipBadFiles = False,
    force: options.Force = False,
) -> None:
    """Older name of: data SOURCE prepare --out FILE.zip"""
    echo(f"dataset is now: data {source} prepare --out {out}", err=True)
    prepare(source, out, resolution, crop, labels, max_images, split, seed, preview, skip_bad_files, force)
