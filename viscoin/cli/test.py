"""`test classifier|viscoin|gan`: measure trained models on test images."""

from pathlib import Path
from typing import Annotated

import typer

from viscoin.cli import common

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
    batch_size: common.TestBatchSize = 64,
    seed: common.Seed = 0,
    device: common.Device = "auto",
    out: common.Out = None,
    show: common.Show = False,
    skip_bad_files: common.SkipBadFiles = False,
) -> None:
    """Frechet distance of the generator's images, in features of f."""
    trial = common.load_for_test("gan", "--checkpoints", checkpoints, dataset, device, skip_bad_files)
    f = common.load_classifier(classifier, trial.config)
    from viscoin.demo import draw_samples
    from viscoin.testing.gan import test_gan

    with common.results_folder("test-gan", trial.images.name, out) as results:
        result = test_gan(trial.model, f.model, trial.images, len(trial.images), seed, trial.device, batch_size)
        common.print_table(f"generator {trial.path} on {trial.images.name}", result.to_dict())
        results.numbers(trial, {**result.to_dict(), "classifier": str(f.path)})
        results.figures({"samples": draw_samples(trial.model, trial.images, 3 * SHOWN, seed)}, show)
