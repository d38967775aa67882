"""`test classifier|viscoin|gan`: measure trained models on test images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from viscoin.cli import common

if TYPE_CHECKING:
    from viscoin.config import DatasetConfig
    from viscoin.models.files import LoadedModel

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Test the classifier, the ensemble or the generator."
)
SHOWN = 12  # images in figures of reconstructions and samples


@app.command()
def classifier(
    checkpoints: Annotated[Path | None, common.model_option("--checkpoints", "Classifier f")] = None,
    dataset: common.DatasetName = None,
    batch_size: common.TestBatchSize = 128,
    device: common.Device = "auto",
    out: common.Out = None,
    show: common.Show = False,
    skip_bad_files: common.SkipBadFiles = False,
) -> None:
    """Accuracy of the classifier f on test images."""
    trial = common.load_for_test("classifier", "--checkpoints", checkpoints, dataset, device, skip_bad_files)
    from viscoin.plotting.evaluation import confusion_figure
    from viscoin.testing.classifier import test_classifier

    with common.results_folder("test-classifier", trial.images.name, out) as results:
        result = test_classifier(trial.model, trial.images, trial.device, batch_size)
        common.print_table(f"classifier {trial.path} on {trial.images.name}", result.to_dict())
        by_class = dict(zip(result.class_names, result.per_class_accuracy.tolist(), strict=True))
        results.numbers(trial, {**result.to_dict(), "accuracy_by_class": by_class})
        results.figures({"confusion": confusion_figure(result.confusion, result.class_names)}, show)


@app.command()
def viscoin(
    checkpoints: common.ViscoinModel = None,
    dataset: common.DatasetName = None,
    batch_size: common.TestBatchSize = 64,
    seed: common.Seed = 0,
    device: common.Device = "auto",
    out: common.Out = None,
    show: common.Show = False,
    skip_bad_files: common.SkipBadFiles = False,
) -> None:
    """Accuracy, reconstruction, faithfulness and attributes of the ensemble."""
    trial = common.load_for_test("viscoin", "--checkpoints", checkpoints, dataset, device, skip_bad_files)
    from viscoin.datasets import load_dataset
    from viscoin.demo import draw_reconstructions
    from viscoin.plotting import evaluation
    from viscoin.testing.ensemble import test_ensemble
    from viscoin.testing.truth import test_attributes, untrained

    model, images = trial.model, trial.images
    with common.results_folder("test-viscoin", images.name, out) as results:
        result = test_ensemble(model, images, trial.device, batch_size, seed)
        numbers = result.to_dict()
        figures = {
            "accuracy": evaluation.accuracy_figure(numbers),
            "faithfulness": evaluation.faithfulness_figure(result.faithfulness),
            "confusion": evaluation.confusion_figure(result.confusion, result.class_names),
            "reconstructions": draw_reconstructions(
                model, images, common.choose_images(None, images, SHOWN, seed), trial.device
            ),
        }
        if images.has_truth:
            validation = load_dataset(trial.config.name, "validation", trial.config)
            scores = [
                test_attributes(m, validation, images, trial.device, batch_size)
                for m in (model, untrained(model, seed))
            ]
            numbers["attributes"] = {**scores[0].to_dict(), "mean_auroc_untrained": scores[1].mean_auroc}
            figures["attributes"] = evaluation.attribute_figure(scores[0], scores[1])
        common.print_table(f"ensemble {trial.path} on {images.name}", numbers)
        results.numbers(trial, numbers)
        results.figures(figures, show)


@app.command()
def gan(
    checkpoints: Annotated[Path | None, common.model_option("--checkpoints", "Generator G")] = None,
    classifier: Annotated[Path | None, common.model_option("--classifier", "Classifier f, for its features")] = None,
    dataset: common.DatasetName = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            "--metrics",
            metavar="LIST",
            help="Some of fid,kid,pr,is,ppl,ppl-full (pr: precision and recall); default: all that can be had.",
        ),
    ] = None,
    features: Annotated[
        str,
        typer.Option(
            "--features",
            metavar="auto|inception|classifier|timm:NAME",
            help="Network to compare images by; auto: Inception if its weights are on disk, else f.",
        ),
    ] = "auto",
    inception_weights: Annotated[
        Path | None,
        typer.Option(
            "--inception-weights",
            metavar="FILE",
            envvar="VISCOIN_INCEPTION_WEIGHTS",
            help="Inception weights of torch-fidelity; default: torch's hub folder, else a download (96 MB).",
        ),
    ] = None,
    perceptual: Annotated[
        str,
        typer.Option(
            "--perceptual",
            metavar="auto|lpips|classifier",
            help="Distance of the path length; auto: LPIPS if its VGG weights are on disk, else features of f.",
        ),
    ] = "auto",
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
    device: common.Device = "auto",
    out: common.Out = None,
    show: common.Show = False,
    skip_bad_files: common.SkipBadFiles = False,
) -> None:
    """FID, KID, precision and recall, IS and path length of the generator."""
    trial = common.load_for_test("gan", "--checkpoints", checkpoints, dataset, device, skip_bad_files)
    f = _classifier_if_any(classifier, trial.config, needed="classifier" in (features, perceptual))
    from viscoin.demo import draw_samples
    from viscoin.plotting.evaluation import feature_plane_figure
    from viscoin.testing.gan import measure_gan
    from viscoin.testing.image_features import find_features, find_perceptual

    model = f.model if f else None
    network = find_features(features, model, inception_weights)
    distance = find_perceptual(perceptual, model, trial.device)
    wanted = [name.strip() for name in metrics.split(",")] if metrics else None
    with common.results_folder("test-gan", trial.images.name, out) as results:
        result = measure_gan(
            trial.model, trial.images, network, samples or len(trial.images), wanted, perceptual=distance,
            truncation=truncation, kid_subset=kid_subset, seed=seed, device=trial.device, batch_size=batch_size,
        )  # fmt: skip
        common.print_table(f"generator {trial.path} on {trial.images.name}", result.to_dict())
        results.numbers(trial, {**result.to_dict(), "classifier": str(f.path) if f else None})
        figures = {"samples": draw_samples(trial.model, trial.images, 3 * SHOWN, seed)}
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
