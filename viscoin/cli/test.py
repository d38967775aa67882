"""`test classifier|viscoin|gan`: measure trained models on test images, by any number of processes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from viscoin.cli import common
from viscoin.cli.app import Command, group
from viscoin.cli.processes import IN_FLOAT32, processes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from viscoin.config import DatasetConfig
    from viscoin.models.files import LoadedModel
    from viscoin.statistics.bootstrap import Estimate
    from viscoin.testing.ensemble import Perceptual
    from viscoin.testing.image_features import FeatureNetwork
    from viscoin.testing.viscoin import ViscoinMeasures
    from viscoin.training.runtime import Runtime

app = group(help="Test the classifier, the ensemble or the generator.")

SHOWN = 12  # images in figures of reconstructions and samples

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
@common.with_runtime
def classifier(
    checkpoints: Annotated[Path | None, common.model_option("--checkpoints", "Classifier f")] = None,
    dataset: common.DatasetName = None,
    dataset_path: common.DatasetPath = None,
    split: Annotated[str, typer.Option("--split", metavar="validation|test", help="Images to test on.")] = "test",
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="A random sample of so many images.")
    ] = None,
    batch_size: common.TestBatchSize = 128,
    seed: common.Seed = 0,
    runtime: "Runtime" = IN_FLOAT32,
    out: common.Out = None,
    show: common.Show = False,
    skip_bad_files: common.SkipBadFiles = False,
) -> None:
    """Accuracy, errors, curves and calibration of the classifier f, overall and for each class."""
    if split not in ("validation", "test"):
        raise ValueError(f"--split {split!r}: expected validation or test")
    from viscoin.plotting.classifier import classifier_figures
    from viscoin.testing.classifier import test_classifier
    from viscoin.testing.classifier_measures import measure_classifier
    from viscoin.testing.classifier_tables import class_table, confusion_table, error_rows, markdown_report
    from viscoin.testing.table import table_rows, text_table

    with processes(runtime) as process:
        trial = process.load("classifier", "--checkpoints", checkpoints, dataset, skip_bad_files, dataset_path, split)
        images = trial.images
        with process.results_folder("test-classifier", images.name, out) as results:
            result = test_classifier(trial.model, images, trial.device, batch_size, seed, limit)
            if results is None:
                return
            found = measure_classifier(result, seed)
            typer.echo(f"classifier {trial.path} on {result.n} {split} images of {images.name}, seed {seed}")
            typer.echo(text_table(table_rows(found.estimates, {})))
            if found.missing:
                typer.echo(f"  no images of {_some(found.missing)}; no mean counts such classes")
            numbers = {**found.to_dict(), "most_confident_errors": error_rows(result, images)}
            results.numbers(trial, {"precision": process.precision, **numbers})
            results.text("per-class.csv", class_table(found))
            results.text("confusion.csv", confusion_table(result))
            results.text("measures.md", markdown_report(found))
            results.figures(classifier_figures(found, images), show)


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more classes" if len(names) > most else "")


@app.command(cls=Command)
@common.with_runtime
def viscoin(
    checkpoints: common.ViscoinModel = None,
    dataset: common.DatasetName = None,
    dataset_path: common.DatasetPath = None,
    measures: Annotated[
        str | None,
        typer.Option(
            "--measures",
            metavar="LIST",
            help="Some of accuracy,reconstruction,fid,faithfulness,consistency,kept,concepts,truth (kept: accuracy of "
            "g with the top N concepts; truth: where the dataset has it); default: all that can be had.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="A random sample of so many test images.")
    ] = None,
    fast: Annotated[
        bool,
        typer.Option("--fast", help="Sample: 200 images, 50 scenes; consistency of 8 concepts with 40 images each."),
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
    features: Features = "auto",
    inception_weights: InceptionWeights = None,
    perceptual: PerceptualDistance = "auto",
    batch_size: common.TestBatchSize = 64,
    seed: common.Seed = 0,
    runtime: "Runtime" = IN_FLOAT32,
    out: common.Out = None,
    show: common.Show = False,
    skip_bad_files: common.SkipBadFiles = False,
) -> None:
    """Every measure of the ensemble, with 95 % intervals."""
    from dataclasses import replace

    from viscoin.datasets import load_dataset
    from viscoin.testing.table import markdown_table, table_rows, text_table
    from viscoin.testing.viscoin import FAST, FULL, measure_viscoin, with_seed

    sizes = {
        "limit": limit, "consistency_concepts": consistency_concepts, "consistency_images": consistency_images,
    }  # fmt: skip
    extent = replace(FAST if fast else FULL, **{name: size for name, size in sizes.items() if size is not None})
    with processes(runtime) as process:
        trial = process.load("viscoin", "--checkpoints", checkpoints, dataset, skip_bad_files, dataset_path)
        model, images, config = trial.model, trial.images, trial.config
        network, distance = process.in_turn(lambda: _comparisons(trial, features, inception_weights, perceptual))
        validation = None
        if images.has_truth:
            validation = process.in_turn(lambda: load_dataset(config.name, "validation", config))
        with process.results_folder("test-viscoin", images.name, out) as results:
            result = measure_viscoin(
                model, images, validation, _listed(measures), extent, device=trial.device, batch_size=batch_size,
                seed=seed, perceptual=distance, features=network,
            )  # fmt: skip
            if results is None:
                return
            estimates, numbers = result.estimates(), result.to_dict()
            rows, n = table_rows(estimates, numbers, trial.expected), result.ensemble.n
            typer.echo(f"ensemble {trial.path} on {n} {images.split} images of {images.name}, seed {seed}")
            typer.echo(text_table(rows))
            numbers |= {"precision": process.precision, "estimates": with_seed(estimates, seed)}
            results.numbers(trial, numbers)
            results.text("measures.md", markdown_table(rows))
            results.figures(_ensemble_figures(trial, result, estimates, seed), show)


def _comparisons(
    trial: common.Trial, features: str, inception_weights: Path | None, perceptual: str
) -> "tuple[FeatureNetwork, tuple[Perceptual, str] | None]":
    """The network of the FID, and the perceptual distance; None means that on the maps of f, which are there anyway."""
    from viscoin.models.perceptual import find_perceptual
    from viscoin.testing.image_features import find_features

    f = trial.model.classifier
    network, found = find_features(features, f, inception_weights), find_perceptual(perceptual, f, trial.device)
    if found is None or found[1] == "classifier":
        return network, None
    distance, name = found
    return network, (lambda rebuilt, images, *maps: distance(rebuilt, images), name)


def _ensemble_figures(
    trial: common.Trial, result: "ViscoinMeasures", estimates: "dict[str, Estimate]", seed: int
) -> "dict[str, Figure]":
    from viscoin.plotting import evaluation
    from viscoin.plotting.truth import truth_figures
    from viscoin.reports.pictures import draw_reconstructions

    tested, shown = result.ensemble, common.choose_images(None, trial.images, SHOWN, seed)
    figures = {}
    if "accuracy" in result.wanted:
        figures["accuracy"] = evaluation.accuracy_figure(result.to_dict(), estimates)
        figures["confusion"] = evaluation.confusion_figure(tested.confusion, tested.class_names)
    if "reconstruction" in result.wanted:
        figures["reconstructions"] = draw_reconstructions(trial.model, trial.images, shown, trial.device)
    if "faithfulness" in result.wanted:
        figures["faithfulness"] = evaluation.faithfulness_figure(tested.faithfulness)
    if "kept" in result.wanted:
        figures["kept-concepts"] = evaluation.kept_concepts_figure(tested.sufficiency, estimates)
    if result.consistency is not None:
        figures["consistency"] = evaluation.consistency_figure(result.consistency)
    if result.truth is not None:
        figures |= truth_figures(result.truth)
    return figures


def _listed(names: str | None) -> list[str] | None:
    return [name.strip() for name in names.split(",")] if names else None


@app.command(cls=Command)
@common.with_runtime
def gan(
    checkpoints: Annotated[Path | None, common.model_option("--checkpoints", "Generator G")] = None,
    classifier: Annotated[Path | None, common.model_option("--classifier", "Classifier f, for its features")] = None,
    dataset: common.DatasetName = None,
    dataset_path: common.DatasetPath = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            "--metrics",
            metavar="LIST",
            help="Some of fid,kid,pr,is,ppl,ppl-full (pr: precision and recall); default: all that can be had.",
        ),
    ] = None,
    features: Features = "auto",
    inception_weights: InceptionWeights = None,
    perceptual: PerceptualDistance = "auto",
    samples: Annotated[
        int | None, typer.Option("--samples", min=1, metavar="N", help="Samples; default: as many as test images.")
    ] = None,
    truncation: Annotated[
        float, typer.Option("--truncation", min=0, max=1, metavar="PSI", help="Truncation of the samples; 1: none.")
    ] = 1,
    kid_subset: Annotated[
        int, typer.Option("--kid-subset", min=2, metavar="N", help="Images in each of KID's subsets.")
    ] = 1000,
    batch_size: common.TestBatchSize = 64,
    seed: common.Seed = 0,
    runtime: "Runtime" = IN_FLOAT32,
    out: common.Out = None,
    show: common.Show = False,
    skip_bad_files: common.SkipBadFiles = False,
) -> None:
    """FID, KID, precision and recall, IS and path length of the generator."""
    from viscoin.models.perceptual import find_perceptual
    from viscoin.plotting.evaluation import feature_plane_figure
    from viscoin.reports.pictures import draw_samples
    from viscoin.testing.gan import measure_gan
    from viscoin.testing.image_features import find_features

    wanted = _listed(metrics)
    with processes(runtime) as process:
        trial = process.load("gan", "--checkpoints", checkpoints, dataset, skip_bad_files, dataset_path)
        f = _classifier_if_any(classifier, trial.config, needed="classifier" in (features, perceptual))
        model, images = f.model if f else None, trial.images
        network = process.in_turn(lambda: find_features(features, model, inception_weights))
        distance = process.in_turn(lambda: find_perceptual(perceptual, model, trial.device))
        with process.results_folder("test-gan", images.name, out) as results:
            result = measure_gan(
                trial.model, images, network, samples or len(images), wanted, perceptual=distance,
                truncation=truncation, kid_subset=kid_subset, seed=seed, device=trial.device, batch_size=batch_size,
            )  # fmt: skip
            if results is None:
                return
            numbers = {**result.to_dict(), "precision": process.precision}
            common.print_table(f"generator {trial.path} on {images.name}", result.to_dict())
            results.numbers(trial, {**numbers, "classifier": str(f.path) if f else None})
            figures = {"samples": draw_samples(trial.model, images, 3 * SHOWN, seed)}
            if result.plane is not None:
                figures["features"] = feature_plane_figure(*result.plane, network.name, result.values)
            results.figures(figures, show)


def _classifier_if_any(value: Path | None, config: "DatasetConfig", needed: bool) -> "LoadedModel | None":
    try:
        return common.load_classifier(value, config)
    except ValueError:
        if needed or value is not None:
            raise
        return None
