"""`project`: find the style vectors whose image is like a given one."""

from pathlib import Path
from typing import Annotated

import typer

from viscoin.cli import options
from viscoin.cli.output import echo
from viscoin.cli.results import print_table, results_folder

IMAGES = 4


def project(
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="IMAGE", help="Image files; default: test images of a dataset.")
    ] = None,
    gan: Annotated[Path | None, options.model_option("--gan", "Generator G")] = None,
    space: Annotated[
        str, typer.Option("--space", metavar="w|w+", help="One style for all layers, or one for each: nearer, freer.")
    ] = "w",
    steps: Annotated[int, typer.Option("--steps", min=1, metavar="N", help="Steps of the search.")] = 500,
    learning_rate: Annotated[
        float, typer.Option("--learning-rate", metavar="RATE", help="Largest step size of the optimizer.")
    ] = 0.05,
    distance: Annotated[
        str,
        typer.Option(
            "--distance",
            metavar="auto|lpips|classifier",
            help="Distance to minimise; auto: LPIPS if its weights are available, else features of f.",
        ),
    ] = "auto",
    pixel_weight: Annotated[
        float | None,
        typer.Option(
            "--pixel-weight",
            min=0,
            metavar="X",
            help="Add X times the mean squared difference; default: 10 with features of f, else 0.",
        ),
    ] = None,
    classifier: Annotated[Path | None, options.model_option("--classifier", "Classifier f, for its features")] = None,
    class_name: Annotated[
        str | None,
        typer.Option("--class", metavar="NAME|INDEX", help="Class to start at, if G knows classes; default: labels."),
    ] = None,
    dataset: options.DatasetName = None,
    dataset_path: options.DatasetPath = None,
    image_indices: options.ImageIndices = None,
    batch_size: options.TestBatchSize = 8,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    out: options.Out = None,
    show: options.Show = False,
    skip_bad_files: options.SkipBadFiles = False,
) -> None:
    """Find the styles whose image is like a given one.

    Saves pair, latent and progress of each image."""
    import torch

    from viscoin.analysis import projection
    from viscoin.inference.loading import load_alone, load_pictures
    from viscoin.plotting.projection import progress_figure

    search = projection.Search(space, steps, learning_rate, pixel_weight, seed)
    subject, pictures = load_pictures(
        "gan", gan, images, dataset, dataset_path, options.parse_indices(image_indices, "image_indices"), IMAGES,
        device=device, seed=seed, skip_bad_files=skip_bad_files,
    )  # fmt: skip
    labels = None if pictures.labels is None else torch.from_numpy(pictures.labels)
    conditions = projection.class_conditions(subject, class_name, labels, len(pictures.images))
    name = subject.config.name
    measured = projection.choose_distance(
        distance, lambda: load_alone("classifier", classifier, device, dataset=name).model, subject.device
    )
    with results_folder("project", name, out) as results:
        found = projection.project_images(
            subject.model, pictures.images, pictures.names, measured, search,
            conditions=conditions, generator_name=str(subject.path), batch_size=batch_size,
        )  # fmt: skip
        print_table(f"{len(found)} images in {subject.path}, mean scores", projection.mean_scores(found))
        for path in projection.save_projections(results.folder, found):
            echo(path)
        results.figures({f"{one.name}-progress": progress_figure(one) for one in found}, show)
