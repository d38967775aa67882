"""`project`: find the style vectors whose image is like a given one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from viscoin.cli import common

if TYPE_CHECKING:
    from viscoin.models.classifier import Classifier

IMAGES = 4


def project(
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="IMAGE", help="Image files; default: test images of a dataset.")
    ] = None,
    gan: Annotated[Path | None, common.model_option("--gan", "Generator G")] = None,
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
            help="What shall become small; auto: LPIPS if its weights can be had, else features of f.",
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
    classifier: Annotated[Path | None, common.model_option("--classifier", "Classifier f, for its features")] = None,
    class_name: Annotated[
        str | None,
        typer.Option("--class", metavar="NAME|INDEX", help="Class to start at, if G knows classes; default: labels."),
    ] = None,
    dataset: common.DatasetName = None,
    dataset_path: common.DatasetPath = None,
    image_indices: common.ImageIndices = None,
    batch_size: common.TestBatchSize = 8,
    seed: common.Seed = 0,
    device: common.Device = "auto",
    out: common.Out = None,
    show: common.Show = False,
    skip_bad_files: common.SkipBadFiles = False,
) -> None:
    """Find the style vectors whose image is like a given one; saves pair, latent and progress of each."""
    if images and image_indices:
        raise ValueError("--image-indices chooses test images of a dataset; give it or IMAGE files, not both")
    from viscoin.analysis import projection
    from viscoin.inference.devices import resolve_device
    from viscoin.models.files import find_model, load_model
    from viscoin.plotting.projection import progress_figure

    search = projection.Search(space, steps, learning_rate, pixel_weight, seed)
    where = resolve_device(device)
    dataset, dataset_path = common.place_of_data(dataset, dataset_path)
    if images:
        loaded = load_model(find_model("gan", gan, dataset or common.DEFAULT_DATASET), "gan")
        targets, names = projection.read_targets(images, loaded.model.img_resolution)
        labels = None
    else:
        trial = common.load_for_test("gan", "--gan", gan, dataset, device, skip_bad_files, dataset_path)
        loaded = load_model(trial.path, "gan")
        chosen = common.choose_images(image_indices, trial.images, IMAGES, seed)
        targets, labels = trial.images.batch(chosen)
        names = [f"{trial.images.name}-{trial.images.split}-{index}" for index in chosen]
    conditions = projection.class_conditions(loaded, class_name, labels, len(targets))

    def find_classifier() -> "Classifier":
        return load_model(find_model("classifier", classifier, loaded.metadata["dataset"]), "classifier").model

    measured = projection.choose_distance(distance, find_classifier, where)
    with common.results_folder("project", loaded.metadata["dataset"], out) as results:
        found = projection.project_images(
            loaded.model.to(where), targets, names, measured, search,
            conditions=conditions, generator_name=str(loaded.path), batch_size=batch_size,
        )  # fmt: skip
        common.print_table(f"{len(found)} images in {loaded.path}, mean scores", projection.mean_scores(found))
        for path in projection.save_projections(results.folder, found):
            typer.echo(path)
        results.figures({f"{one.name}-progress": progress_figure(one) for one in found}, show)
