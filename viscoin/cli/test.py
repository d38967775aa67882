"""`test classifier|viscoin|gan`: measure trained models on test images, by any number of processes."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from viscoin.cli import options
from viscoin.cli.app import Command, group
from viscoin.cli.output import echo, json_alone
from viscoin.cli.processes import IN_FLOAT32, processes
from viscoin.cli.results import Results, print_table, some

if TYPE_CHECKING:
    from viscoin.training.runtime import Runtime

app = group(help="Test the classifier, the ensemble or the generator.")

Features = Annotated[
    str,
    typer.Option(
        "--features",
        metavar="auto|inception|classifier|timm:NAME",
        help="Network to compare images by; auto: Inception if its weights are on disk, else f.",
    ),
]
InceptionWeights = Annotated[
    Path | None,
    typer.Option(
        "--inception-weights",
        metavar="FILE",
        envvar="VISCOIN_INCEPTION_WEIGHTS",
        help="Inception weights of torch-fidelity; default: torch's hub folder, else a download (96 MB).",
    ),
]
PerceptualDistance = Annotated[
    str,
    typer.Option(
        "--perceptual",
        metavar="auto|lpips|classifier",
        help="Perceptual distance; auto: LPIPS if its VGG weights are on disk, else features of f.",
    ),
]


@app.command(cls=Command)
@options.with_runtime
def classifier(
    checkpoints: Annotated[Path | None, options.model_option("--checkpoints", "Classifier f")] = None,
    dataset: options.DatasetName = None,
    dataset_path: options.DatasetPath = None,
    class_map: options.ClassMap = None,
    split: Annotated[str, typer.Option("--split", metavar="validation|test", help="Images to test on.")] = "test",
    limit: Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="Sample N images at random.")] = None,
    batch_size: options.TestBatchSize = 128,
    seed: options.Seed = 0,
    runtime: "Runtime" = IN_FLOAT32,
    out: options.Out = None,
    show: options.Show = False,
    as_json: options.AsJson = False,
    skip_bad_files: options.SkipBadFiles = False,
) -> None:
    """Accuracy, errors and calibration of the classifier.

    Overall and for each class, with curves and 95 % intervals.
    """
    if split not in ("validation", "test"):
        raise ValueError(f"--split {split!r}: expected validation or test")
    from viscoin.plotting.classifier import classifier_figures
    from viscoin.testing.classifier import test_classifier
    from viscoin.testing.classifier_measures import measure_classifier
    from viscoin.testing.classifier_tables import class_table, confusion_table, error_rows, markdown_report
    from viscoin.testing.table import table_rows, text_table

    with json_alone(as_json), processes(runtime) as process:
        subject = process.load(
            "classifier", checkpoints, dataset=dataset, dataset_path=dataset_path, split=split,
            skip_bad_files=skip_bad_files, parameter="checkpoints", class_map=class_map,
        )  # fmt: skip
        images = subject.images
        with process.results_folder("test-classifier", images.name, out) as results:
            result = test_classifier(subject.model, images, subject.device, batch_size, seed, limit)
            if results is None:
                return
            found = measure_classifier(result, seed)
            echo(f"classifier {subject.path} on {result.n} {split} images of {images.name}, seed {seed}")
            echo(text_table(table_rows(found.estimates, {})))
            if found.missing:
                echo(f"  no images of {some(found.missing)}; no mean counts such classes")
            numbers = {**found.to_dict(), "most_confident_errors": error_rows(result, images)}
            results.numbers(subject, {"precision": process.precision, **numbers})
            results.text("per-class.csv", class_table(found))
            results.text("confusion.csv", confusion_table(result))
            results.text("measures.md", markdown_report(found))
            results.figures(classifier_figures(found, images), show)


@app.command(cls=Command)
@options.with_runtime
def viscoin(
    checkpoints: options.ViscoinModel = None,
    dataset: options.DatasetName = None,
    dataset_path: options.DatasetPath = None,
    class_map: options.ClassMap = None,
    measures: Annotated[
        str | None,
        typer.Option(
            "--measures",
            metavar="LIST",
            help="Some of accuracy,reconstruction,fid,faithfulness,surrogate,consistency,kept,concepts,drawing,truth "
            "(surrogate: SURF; kept: accuracy of g with the top N concepts; drawing: single concepts drawn, seen by f "
            "and by --judge; truth: where the dataset has it); default: all available.",
        ),
    ] = None,
    rivals: Annotated[
        str | None,
        typer.Option(
            "--rivals",
            metavar="all|none|LIST",
            help="What surrogate and truth compare the concepts with: some of pursuit,random,sae,nmf,ica,pca,"
            "channels_k,channels,untrained; default: all.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="Sample N test images at random.")
    ] = None,
    fast: Annotated[
        bool,
        typer.Option(
            "--fast", help="Sample: 200 images, 50 scenes, 60 drawn; consistency of 8 concepts, 40 images each."
        ),
    ] = False,
    consistency_concepts: Annotated[
        int | None,
        typer.Option(
            "--consistency-concepts",
            min=1,
            metavar="N",
            help="Random concepts to measure consistency on; K or more: all, as published; default: 64.",
        ),
    ] = None,
    consistency_images: Annotated[
        int | None,
        typer.Option(
            "--consistency-images",
            min=20,
            metavar="N",
            help="Most activating images of each; default: 100, as published.",
        ),
    ] = None,
    judge: Annotated[Path | None, options.model_option("--judge", "Judge of attributes")] = None,
    features: Features = "auto",
    inception_weights: InceptionWeights = None,
    perceptual: PerceptualDistance = "auto",
    batch_size: options.TestBatchSize = 64,
    seed: options.Seed = 0,
    runtime: "Runtime" = IN_FLOAT32,
    out: options.Out = None,
    show: options.Show = False,
    as_json: options.AsJson = False,
    skip_bad_files: options.SkipBadFiles = False,
) -> None:
    """Every measure of the ensemble, with intervals."""
    from dataclasses import replace

    from viscoin.inference.loading import find_judge, load_validation
    from viscoin.reports.pictures import ensemble_figures
    from viscoin.testing.table import HEADER, rival_table, table_rows
    from viscoin.testing.viscoin import COMPARED, FAST, FULL, find_comparisons, measure_viscoin, with_seed

    wanted = options.listed(measures)
    sizes = {
        "limit": limit, "consistency_concepts": consistency_concepts, "consistency_images": consistency_images,
    }  # fmt: skip
    extent = replace(FAST if fast else FULL, **{name: size for name, size in sizes.items() if size is not None})
    with json_alone(as_json), processes(runtime) as process:
        subject = process.load(
            "viscoin", checkpoints, dataset=dataset, dataset_path=dataset_path, skip_bad_files=skip_bad_files,
            parameter="checkpoints", class_map=class_map, unlabelled="whole",
        )  # fmt: skip
        model, images = subject.model, subject.images
        network, distance = process.in_turn(
            lambda: find_comparisons(model.classifier, features, inception_weights, perceptual, subject.device)
        )
        needed = wanted is None or {*wanted} & {*COMPARED, "drawing"}
        validation = process.in_turn(lambda: load_validation(subject, class_map)) if needed else None
        jury = find_judge(judge, images)
        with process.results_folder("test-viscoin", images.name, out) as results:
            result = measure_viscoin(
                model, images, validation, wanted, extent, device=subject.device,
                batch_size=batch_size, seed=seed, perceptual=distance, features=network,
                rivals=options.listed(rivals), judge=jury.model if jury else None,
            )  # fmt: skip
            if results is None:
                return
            estimates, numbers = result.estimates(), result.to_dict()
            rows, n = table_rows(estimates, numbers, subject.expected), result.ensemble.n
            echo(f"ensemble {subject.path} on {n} {images.split} images of {images.name}, seed {seed}")
            numbers |= {"precision": process.precision, "judge": str(jury.path) if jury else None}
            results.numbers(subject, numbers | {"estimates": with_seed(estimates, seed)})
            _show_tables(results, {"measures": (rows, HEADER), "rivals": rival_table(estimates)})
            results.figures(ensemble_figures(subject, result, estimates, seed), show)


def _show_tables(results: Results, tables: Mapping[str, tuple[list[tuple[str, ...]], tuple[str, ...]]]) -> None:
    """Print and write the tables that have rows, each by its name with its header."""
    from viscoin.testing.table import markdown_table, text_table

    for name, (rows, header) in tables.items():
        if rows:
            echo(text_table(rows, header))
            results.text(f"{name}.md", markdown_table(rows, header))


@app.command(cls=Command)
@options.with_runtime
def gan(
    checkpoints: Annotated[Path | None, options.model_option("--checkpoints", "Generator G")] = None,
    classifier: Annotated[Path | None, options.model_option("--classifier", "Classifier f, for its features")] = None,
    dataset: options.DatasetName = None,
    dataset_path: options.DatasetPath = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            "--metrics",
            metavar="LIST",
            help="Some of fid,kid,pr,is,ppl,ppl-full (pr: precision and recall); default: all available.",
        ),
    ] = None,
    features: Features = "auto",
    inception_weights: InceptionWeights = None,
    perceptual: PerceptualDistance = "auto",
    samples: Annotated[
        int | None, typer.Option("--samples", min=1, metavar="N", help="Samples; default: the number of test images.")
    ] = None,
    truncation: Annotated[
        float, typer.Option("--truncation", min=0, max=1, metavar="PSI", help="Truncation of the samples; 1: none.")
    ] = 1,
    kid_subset: Annotated[
        int, typer.Option("--kid-subset", min=2, metavar="N", help="Images in each of KID's subsets.")
    ] = 1000,
    batch_size: options.TestBatchSize = 64,
    seed: options.Seed = 0,
    runtime: "Runtime" = IN_FLOAT32,
    out: options.Out = None,
    show: options.Show = False,
    as_json: options.AsJson = False,
    skip_bad_files: options.SkipBadFiles = False,
) -> None:
    """FID, KID, precision, recall and more of the generator."""
    from viscoin.inference.loading import optional_classifier
    from viscoin.models.perceptual import find_perceptual
    from viscoin.reports.pictures import gan_figures
    from viscoin.testing.gan import measure_gan
    from viscoin.testing.image_features import find_features

    wanted = options.listed(metrics)
    with json_alone(as_json), processes(runtime) as process:
        subject = process.load(
            "gan", checkpoints, dataset=dataset, dataset_path=dataset_path, skip_bad_files=skip_bad_files,
            parameter="checkpoints",
        )  # fmt: skip
        f = optional_classifier(classifier, subject.config, needed="classifier" in (features, perceptual))
        model, images = f.model if f else None, subject.images
        network = process.in_turn(lambda: find_features(features, model, inception_weights))
        distance = process.in_turn(lambda: find_perceptual(perceptual, model, subject.device))
        with process.results_folder("test-gan", images.name, out) as results:
            result = measure_gan(
                subject.model, images, network, samples or len(images), wanted, perceptual=distance,
                truncation=truncation, kid_subset=kid_subset, seed=seed, device=subject.device, batch_size=batch_size,
            )  # fmt: skip
            if results is None:
                return
            numbers = {**result.to_dict(), "precision": process.precision}
            print_table(f"generator {subject.path} on {images.name}", result.to_dict())
            results.numbers(subject, {**numbers, "classifier": str(f.path) if f else None})
            results.figures(gan_figures(subject, result, network.name, seed), show)
