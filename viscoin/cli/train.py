"""`train classifier|gan|viscoin`: train the parts of an ensemble, each in a run folder of its own."""

from pathlib import Path
from typing import Annotated

import typer

from viscoin.cli import common

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Train the classifier, the generator or the ensemble."
)


@app.command()
def classifier(
    dataset: common.DatasetName = None,
    epochs: common.Epochs = None,
    batch_size: common.BatchSize = None,
    learning_rate: common.LearningRate = None,
    recipe: common.RecipeName = None,
    settings: common.Settings = None,
    seed: common.RecipeSeed = None,
    device: common.Device = "auto",
    precision: common.Precision = "auto",
    out: common.Out = None,
    resume: common.Resume = False,
    skip_bad_files: common.SkipBadFiles = False,
) -> None:
    """Train the classifier f."""
    options = {
        "classifier.epochs": epochs,
        "classifier.batch_size": batch_size,
        "classifier.learning_rate": learning_rate,
        "seed": seed,
        "dataset.skip_bad_files": skip_bad_files or None,
    }
    resolved = common.resolve_recipe("classifier", dataset, recipe, settings, options, out, resume)
    from viscoin.training.classifier import train_classifier

    with common.training_run("classifier", resolved, out, resume) as run:
        typer.echo(train_classifier(resolved, run, device, precision))


@app.command()
def gan(
    dataset: common.DatasetName = None,
    kimg: Annotated[
        float | None, typer.Option("--kimg", metavar="N", help="Adversarial training, thousands of images.")
    ] = None,
    warm_start: Annotated[
        float | None,
        typer.Option("--warm-start", metavar="N", help="Warm start by reconstruction, thousands of images."),
    ] = None,
    classifier: Annotated[Path | None, common.model_option("--classifier", "Classifier f, for the warm start")] = None,
    batch_size: common.BatchSize = None,
    learning_rate: common.LearningRate = None,
    recipe: common.RecipeName = None,
    settings: common.Settings = None,
    seed: common.RecipeSeed = None,
    device: common.Device = "auto",
    precision: common.Precision = "auto",
    out: common.Out = None,
    resume: common.Resume = False,
    skip_bad_files: common.SkipBadFiles = False,
) -> None:
    """Train the generator G: an optional warm start by reconstruction, then adversarially."""
    options = {
        "gan.kimg": kimg,
        "gan.warm_start": warm_start,
        "gan.batch_size": batch_size,
        "gan.learning_rate": learning_rate,
        "seed": seed,
        "dataset.skip_bad_files": skip_bad_files or None,
    }
    resolved = common.resolve_recipe("gan", dataset, recipe, settings, options, out, resume)
    from viscoin.training.gan import train_gan

    f = common.optional_classifier(classifier, resolved)
    with common.training_run("gan", resolved, out, resume) as run:
        typer.echo(train_gan(resolved, run, f, device, precision))


@app.command()
def viscoin(
    dataset: common.DatasetName = None,
    steps: Annotated[
        int | None, typer.Option("--steps", "--epochs", min=1, metavar="N", help="Training steps (batches).")
    ] = None,
    classifier: Annotated[Path | None, common.model_option("--classifier", "Classifier f")] = None,
    gan: Annotated[Path | None, common.model_option("--gan", "Generator G")] = None,
    batch_size: common.BatchSize = None,
    learning_rate: common.LearningRate = None,
    recipe: common.RecipeName = None,
    settings: common.Settings = None,
    seed: common.RecipeSeed = None,
    device: common.Device = "auto",
    precision: common.Precision = "auto",
    out: common.Out = None,
    resume: common.Resume = False,
    skip_bad_files: common.SkipBadFiles = False,
) -> None:
    """Train the ensemble: Psi, Theta and Omega on top of a frozen classifier and a frozen generator."""
    options = {
        "viscoin.steps": steps,
        "viscoin.batch_size": batch_size,
        "viscoin.learning_rate": learning_rate,
        "seed": seed,
        "dataset.skip_bad_files": skip_bad_files or None,
    }
    resolved = common.resolve_recipe("viscoin", dataset, recipe, settings, options, out, resume)
    from viscoin.training.viscoin import train_viscoin

    f, g = common.trained_parts(classifier, gan, resolved)
    with common.training_run("viscoin", resolved, out, resume) as run:
        typer.echo(train_viscoin(resolved, run, f.model, g.model, device, precision))
