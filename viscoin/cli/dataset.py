"""`dataset`: prepare images for training: one size, square, with labels, in one zip or folder."""

from pathlib import Path
from typing import Annotated

import typer

from viscoin.cli import options
from viscoin.cli.results import print_table

PREVIEW = 28  # images


def dataset(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A known dataset, or a folder or zip: of class folders, of images, or with a dataset.json.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", metavar="FILE.zip|FOLDER", help="What to write.", show_default=False)
    ],
    resolution: Annotated[
        int | None,
        typer.Option("--resolution", min=1, metavar="N", help="Side in pixels, a power of two; default: the images'."),
    ] = None,
    crop: Annotated[
        str,
        typer.Option(
            "--crop",
            metavar="center|center-wide|none",
            help="Middle square, middle 4:3 with black bars, or none: images must be square.",
        ),
    ] = "center",
    labels: Annotated[
        str,
        typer.Option(
            "--labels",
            metavar="auto|none|FILE",
            help="Classes where there are any, no labels, or labels from a file like dataset.json.",
        ),
    ] = "auto",
    max_images: Annotated[
        int | None, typer.Option("--max-images", min=1, metavar="N", help="At most so many, drawn by --seed.")
    ] = None,
    split: Annotated[
        str, typer.Option("--split", metavar="train|validation|test|all", help="Which images to take.")
    ] = "all",
    seed: options.Seed = 0,
    preview: Annotated[
        Path | None, typer.Option("--preview", metavar="FILE.png", help="Draw some of the images with their classes.")
    ] = None,
    skip_bad_files: options.SkipBadFiles = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an output that exists.")] = False,
) -> None:
    """Prepare images for training: square PNGs of one size with labels, as StyleGAN tools read and write them."""
    from viscoin.datasets.prepare import prepare_dataset, sample_images

    if preview is not None and preview.suffix.lower() != ".png":
        raise ValueError(f"--preview {preview}: must end in .png")
    done = prepare_dataset(source, output, resolution, crop, labels, max_images, split, seed, skip_bad_files, force)
    print_table(
        str(done.path),
        {
            "images": done.count,
            "classes": len(done.class_names) if done.class_names else "none",
            "resolution": f"{done.resolution}x{done.resolution}",
            "size": f"{done.bytes / 1e6:.1f} MB",
        },
    )
    if preview is not None:
        from viscoin.plotting.data import contact_sheet
        from viscoin.plotting.style import save_figure

        typer.echo(save_figure(contact_sheet(*sample_images(done.path, PREVIEW, seed)), preview))
