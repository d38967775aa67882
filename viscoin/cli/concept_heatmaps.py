"""`concept-heatmaps`: where in an image a concept is."""

from typing import Annotated

import typer

from viscoin.cli import options
from viscoin.cli.results import results_folder
from viscoin.errors import Refused

IMAGES, CONCEPTS = 6, 4

METHOD_HELP = "hirescam|gradcam|layercam|integrated-gradients|occlusion|grid|change; occlusion is slow."
STAGE_HELP = "Feature map for the first three: of f, 0 is the finest; psi; or all multiplied. Default: 0."


def concept_heatmaps(
    viscoin: options.ViscoinModel = None,
    dataset: options.DatasetName = None,
    dataset_path: options.DatasetPath = None,
    class_map: options.ClassMap = None,
    concept_top_k: options.ConceptTopK = None,
    concept_indices: options.ConceptIndices = None,
    image_indices: options.ImageIndices = None,
    image: options.Images = None,
    method: Annotated[str, typer.Option("--method", metavar="NAME", help=METHOD_HELP)] = "hirescam",
    stage: Annotated[str | None, typer.Option("--stage", metavar="0|1|2|psi|all", help=STAGE_HELP)] = None,
    part: Annotated[
        str | None, typer.Option("--part", metavar="NAME", help="Outline this part, where the dataset has masks.")
    ] = None,
    concept_names: options.ConceptNames = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    out: options.Out = None,
    show: options.Show = False,
    skip_bad_files: options.SkipBadFiles = False,
) -> None:
    """Show where concepts are in images.

    By default the four most relevant of each image.
    """
    indices = options.parse_indices(concept_indices, "concept_indices")
    if concept_top_k is not None and indices:
        raise Refused("concept_top_k", None, "cannot be combined with `concept_indices`", "give one of them")
    if image and (dataset or part):
        raise Refused("image", None, "`dataset` and `part` are for test images", "give them or `image`, not both")
    import torch

    from viscoin.attribution import heatmaps
    from viscoin.inference.loading import load_pictures, part_outlines
    from viscoin.naming.names import read_names
    from viscoin.plotting.heatmaps import check_page, heatmap_figure

    subject, pictures = load_pictures(
        "viscoin", viscoin, image, dataset, dataset_path, options.parse_indices(image_indices, "image_indices"), IMAGES,
        device=device, seed=seed, skip_bad_files=skip_bad_files, class_map=class_map,
    )  # fmt: skip
    count = len(indices) if indices else concept_top_k or CONCEPTS
    if count > (known := subject.model.n_concepts):
        raise Refused("concept_top_k", count, f"out of range; the ensemble has {known} concepts")
    check_page(len(pictures.images), count)
    classes, labels = subject.model.class_names, pictures.labels
    outlines = None if part is None else part_outlines(subject, pictures, part)
    named = None if concept_names is None else read_names(concept_names, known)
    with results_folder("concept-heatmaps", subject.config.name, out) as results:
        found = heatmaps.concept_heatmaps(
            subject.model, pictures.images, None if indices is None else torch.tensor([indices] * len(pictures.images)),
            count, None if stage is None else heatmaps.parse_stages(stage), subject.device, method,
        )  # fmt: skip
        figure = heatmap_figure(
            found, classes, labels, concept_names=named, outlines=outlines, image_names=pictures.names
        )
        results.figures({"concept-heatmaps": figure}, show)
        rows = found.to_dict(classes, None if labels is None else labels.tolist())
        images = [{"image": name, **row} for name, row in zip(pictures.names, rows, strict=True)]
        header = {"model": str(subject.path), "dataset": subject.config.name}
        details = {"method": found.method, "stages": list(found.stages), "images": images}
        results.json("results.json", {**header, **details})
