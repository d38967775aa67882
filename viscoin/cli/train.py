"""`train classifier|gan|viscoin|all|concept2clip`: train the parts of an ensemble, each in a run folder of its own."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from viscoin.cli import common
from viscoin.cli.app import Command, group

if TYPE_CHECKING:
    from viscoin.training.runtime import Runtime

app = group(help="Train the classifier, the generator or the ensemble.")


@app.command(cls=Command)
@common.with_runtime
def classifier(
    *,
    dataset: common.DatasetName = None,
    dataset_path: common.DatasetPath = None,
    attribute: common.Attribute = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone", metavar="NAME", help="A model of timm, such as resnet50, vit_tiny or viscoin_resnet10."
        ),
    ] = None,
    pretrained: Annotated[
        bool | None,
        typer.Option("--pretrained/--no-pretrained", help="Start from published weights.", show_default=False),
    ] = None,
    train_layers: Annotated[
        str | None,
        typer.Option(
            "--train-layers",
            metavar="all|head|last:N|STAGE",
            help="What trains: everything, the last layer, it and the last N blocks, or stages such as layer4.",
        ),
    ] = None,
    optimizer: Annotated[str | None, typer.Option("--optimizer", metavar="adamw|adam|sgd", help="Optimizer.")] = None,
    schedule: Annotated[
        str | None, typer.Option("--schedule", metavar="cosine|step|constant", help="Course of the learning rate.")
    ] = None,
    class_weights: Annotated[
        str | None,
        typer.Option("--class-weights", metavar="balanced|none", help="Let rare classes count as much as common ones."),
    ] = None,
    early_stopping: Annotated[
        int | None,
        typer.Option("--early-stopping", min=1, metavar="N", help="Stop after N epochs without a better model."),
    ] = None,
    best_metric: Annotated[
        str | None,
        typer.Option(
            "--best-metric",
            metavar="accuracy|balanced_accuracy|f1|loss",
            help="Measure on validation images by which the best model is kept.",
        ),
    ] = None,
    epochs: common.Epochs = None,
    batch_size: common.BatchSize = None,
    accumulate: common.Accumulate = None,
    learning_rate: common.LearningRate = None,
    recipe: common.RecipeName = None,
    settings: common.Settings = None,
    seed: common.RecipeSeed = None,
    runtime: "Runtime",
    out: common.OutOfRun = None,
    resume: common.Resume = False,
    allow_changes: common.AllowChanges = False,
    track: common.Track = None,
    skip_bad_files: common.SkipBadFiles = False,
) -> None:
    """Train the classifier f."""
    options = {
        "classifier.backbone": backbone,
        "classifier.pretrained": pretrained,
        "classifier.train_layers": train_layers,
        "classifier.optimizer": optimizer,
        "classifier.schedule": schedule,
        "classifier.class_weights": class_weights,
        "classifier.early_stopping": early_stopping,
        "classifier.best_metric": best_metric,
        "classifier.epochs": epochs,
        "classifier.batch_size": batch_size,
        "classifier.accumulate": accumulate,
        "classifier.learning_rate": learning_rate,
        "seed": seed,
        "dataset.attribute": attribute,
        "dataset.skip_bad_files": skip_bad_files or None,
    }
    resolved = common.resolve_recipe(
        "classifier", dataset, recipe, settings, options, out, resume, dataset_path=dataset_path
    )
    from viscoin.training.classifier import train_classifier

    with common.training_run("classifier", resolved, out, resume, allow_changes, track) as run:
        common.announce(train_classifier(resolved, run, runtime))


@app.command(cls=Command)
@common.with_runtime
def gan(
    *,
    dataset: common.DatasetName = None,
    dataset_path: common.DatasetPath = None,
    attribute: common.Attribute = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="NAME",
            help="Ready settings: auto, stylegan2, paper256, paper512, paper1024, cifar, birds64; other options win.",
        ),
    ] = None,
    kimg: Annotated[
        float | None, typer.Option("--kimg", metavar="N", help="Adversarial training, thousands of images.")
    ] = None,
    warm_start: Annotated[
        float | None,
        typer.Option("--warm-start", metavar="N", help="Warm start by reconstruction, thousands of images."),
    ] = None,
    classifier: Annotated[Path | None, common.model_option("--classifier", "Classifier f, for the warm start")] = None,
    conditional: Annotated[
        bool, typer.Option("--conditional", help="Let G and D know the classes of the dataset.")
    ] = False,
    mirror: Annotated[
        bool | None, typer.Option("--mirror/--no-mirror", help="Mirror half of the real images.", show_default=False)
    ] = None,
    augment: Annotated[
        str | None, typer.Option("--augment", metavar="off|fixed|ada", help="Augment all images that D sees.")
    ] = None,
    augment_preset: Annotated[
        str | None,
        typer.Option(
            "--augment-preset",
            metavar="NAME",
            help="What to augment by: blit, geom, color, filter, noise, cutout, bg, bgc, bgcf, bgcfn or bgcfnc.",
        ),
    ] = None,
    p: Annotated[
        float | None, typer.Option("--p", min=0, max=1, metavar="P", help="Strength of --augment fixed.")
    ] = None,
    target: Annotated[
        float | None, typer.Option("--target", min=0, max=1, metavar="R", help="What --augment ada aims at; 0.6.")
    ] = None,
    transfer: Annotated[
        Path | None,
        typer.Option(
            "--transfer", metavar="MODEL", help="Start from the weights of a published .pkl, a run folder or a model."
        ),
    ] = None,
    freeze_d: Annotated[
        int | None,
        typer.Option("--freeze-d", min=0, metavar="N", help="Layers of D nearest to the image that do not train."),
    ] = None,
    batch_size: common.BatchSize = None,
    accumulate: common.Accumulate = None,
    learning_rate: common.LearningRate = None,
    recipe: common.RecipeName = None,
    settings: common.Settings = None,
    seed: common.RecipeSeed = None,
    runtime: "Runtime",
    out: common.OutOfRun = None,
    resume: common.Resume = False,
    allow_changes: common.AllowChanges = False,
    track: common.Track = None,
    skip_bad_files: common.SkipBadFiles = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print recipe, parameters and layer shapes, and train nothing.")
    ] = False,
) -> None:
    """Train the generator G: an optional warm start by reconstruction, then adversarially."""
    options = {
        "gan.kimg": kimg,
        "gan.warm_start": warm_start,
        "gan.conditional": conditional or None,
        "gan.horizontal_flip": mirror,
        "gan.augment": augment,
        "gan.augment_preset": augment_preset,
        "gan.augment_p": p,
        "gan.ada_target": target,
        "gan.freeze_d": freeze_d,
        "gan.batch_size": batch_size,
        "gan.accumulate": accumulate,
        "gan.learning_rate": learning_rate,
        "seed": seed,
        "dataset.attribute": attribute,
        "dataset.skip_bad_files": skip_bad_files or None,
    }
    defaults = _transferred(transfer)
    if preset is not None:
        from viscoin.presets import gan_preset

        # What a preset holds may depend on the resolution, which the other options decide.
        given = common.resolve_recipe("gan", dataset, recipe, settings, {}, out, resume, None, dataset_path)
        resolution = given.dataset.resolution
        values = gan_preset(preset, resolution, runtime.processes)
        defaults = {f"gan.{key}": value for key, value in values.items()} | defaults
    resolved = common.resolve_recipe("gan", dataset, recipe, settings, options, out, resume, defaults, dataset_path)
    from viscoin.training.gan import check_gan, describe_gan, train_gan

    check_gan(resolved, runtime)
    if dry_run:
        typer.echo(f"{resolved.to_yaml()}\n{describe_gan(resolved)}")
        return
    f = common.optional_classifier(classifier, resolved)
    with common.training_run("gan", resolved, out, resume, allow_changes, track) as run:
        path = train_gan(resolved, run, f, runtime)
    common.announce(path)


def _transferred(source: Path | None) -> dict[str, Any]:
    """Keys of the recipe for a start from other weights: the average need not ramp up, and ada reacts faster."""
    return {} if source is None else {"gan.transfer": str(source), "gan.ema_rampup": None, "gan.ada_kimg": 100.0}


@app.command(cls=Command)
@common.with_runtime
def viscoin(
    *,
    dataset: common.DatasetName = None,
    dataset_path: common.DatasetPath = None,
    attribute: common.Attribute = None,
    steps: Annotated[
        int | None, typer.Option("--steps", "--epochs", min=1, metavar="N", help="Training steps (batches).")
    ] = None,
    classifier: Annotated[Path | None, common.model_option("--classifier", "Classifier f")] = None,
    gan: Annotated[Path | None, common.model_option("--gan", "Generator G")] = None,
    batch_size: common.BatchSize = None,
    accumulate: common.Accumulate = None,
    learning_rate: common.LearningRate = None,
    recipe: common.RecipeName = None,
    settings: common.Settings = None,
    seed: common.RecipeSeed = None,
    runtime: "Runtime",
    out: common.OutOfRun = None,
    resume: common.Resume = False,
    allow_changes: common.AllowChanges = False,
    track: common.Track = None,
    skip_bad_files: common.SkipBadFiles = False,
) -> None:
    """Train the ensemble: Psi, Theta and Omega on top of a frozen classifier and a frozen generator."""
    options = {
        "viscoin.steps": steps,
        "viscoin.batch_size": batch_size,
        "viscoin.accumulate": accumulate,
        "viscoin.learning_rate": learning_rate,
        "seed": seed,
        "dataset.attribute": attribute,
        "dataset.skip_bad_files": skip_bad_files or None,
    }
    resolved = common.resolve_recipe(
        "viscoin", dataset, recipe, settings, options, out, resume, dataset_path=dataset_path
    )
    from viscoin.training.viscoin import train_viscoin

    f, g = common.trained_parts(classifier, gan, resolved)
    with common.training_run("viscoin", resolved, out, resume, allow_changes, track) as run:
        common.announce(train_viscoin(resolved, run, f.model, g.model, runtime))


@app.command("all", cls=Command)
@common.with_runtime
def everything(
    *,
    dataset: common.DatasetName = None,
    dataset_path: common.DatasetPath = None,
    attribute: common.Attribute = None,
    recipe: common.RecipeName = None,
    settings: common.Settings = None,
    seed: common.RecipeSeed = None,
    runtime: "Runtime",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FOLDER", help="A folder for the three runs; begun by the same command, they go on."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the last `train all` stopped.")] = False,
    allow_changes: common.AllowChanges = False,
    track: common.Track = None,
    skip_bad_files: common.SkipBadFiles = False,
) -> None:
    """Train the classifier, the generator and the ensemble by one recipe, one after the other."""
    options = {"seed": seed, "dataset.attribute": attribute, "dataset.skip_bad_files": skip_bad_files or None}
    resolved = common.resolve_recipe("viscoin", dataset, recipe, settings, options, dataset_path=dataset_path)
    from viscoin.runs.run import Run, newest_run
    from viscoin.training.classifier import train_classifier
    from viscoin.training.gan import check_gan, train_gan
    from viscoin.training.viscoin import train_viscoin

    check_gan(resolved, runtime)
    paths: dict[str, Path] = {}
    started = ""
    for kind in ("classifier", "gan", "viscoin"):
        found = newest_run(kind, resolved.dataset.name) if resume and out is None else None
        goes_on = found is not None and found.header["created"] >= started  # not one that belongs to an earlier f
        place = found.path if found and goes_on else out and out / kind
        with common.training_run(kind, resolved, place, goes_on, allow_changes, track) as run:
            if kind == "classifier":
                paths[kind] = train_classifier(resolved, run, runtime)
            else:
                f = common.load_classifier(paths["classifier"], resolved.dataset).model
                if kind == "gan":
                    paths[kind] = train_gan(resolved, run, f, runtime)
                else:
                    g = common.trained_parts(paths["classifier"], paths["gan"], resolved)[1].model
                    paths[kind] = train_viscoin(resolved, run, f, g, runtime)
        started = Run(paths[kind].parent).header["created"]
        common.announce(paths[kind])


@app.command(cls=Command)
@common.with_runtime
def concept2clip(
    *,
    dataset: common.DatasetName = None,
    dataset_path: common.DatasetPath = None,
    viscoin: common.ViscoinModel = None,
    clip_model: Annotated[
        str | None,
        typer.Option(
            "--clip-model",
            metavar="NAME|FILE|attributes",
            help="Model of open_clip, by name or JSON file; attributes: the scorer without text, for birds.",
        ),
    ] = None,
    pretrained: Annotated[
        str | None,
        typer.Option("--pretrained", metavar="TAG|FILE", help="Weights of --clip-model; a tag is downloaded."),
    ] = None,
    epochs: common.Epochs = None,
    batch_size: common.BatchSize = None,
    learning_rate: common.LearningRate = None,
    recipe: common.RecipeName = None,
    settings: common.Settings = None,
    seed: common.RecipeSeed = None,
    runtime: "Runtime",
    out: common.OutOfRun = None,
    resume: common.Resume = False,
    allow_changes: common.AllowChanges = False,
    track: common.Track = None,
    skip_bad_files: common.SkipBadFiles = False,
) -> None:
    """Train the adapter from concept activations to CLIP embeddings, by which `concepts --names` names concepts."""
    options = {
        "concept2clip.model": clip_model,
        "concept2clip.pretrained": pretrained,
        "concept2clip.epochs": epochs,
        "concept2clip.batch_size": batch_size,
        "concept2clip.learning_rate": learning_rate,
        "seed": seed,
        "dataset.skip_bad_files": skip_bad_files or None,
    }
    resolved = common.resolve_recipe(
        "concept2clip", dataset, recipe, settings, options, out, resume, dataset_path=dataset_path
    )
    from viscoin.naming.adapter import train_concept2clip

    ensemble = common.load_ensemble(viscoin, resolved.dataset)
    with common.training_run("concept2clip", resolved, out, resume, allow_changes, track) as run:
        common.announce(train_concept2clip(resolved, run, ensemble.model, runtime))
