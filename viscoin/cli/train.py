"""`train classifier|gan|viscoin|all|concept2clip|judge|diffmask`: train models, each in a run folder of its own."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from viscoin.cli import options
from viscoin.cli.app import Command, group
from viscoin.cli.output import echo
from viscoin.cli.results import announce, open_first
from viscoin.errors import Refused

if TYPE_CHECKING:
    from viscoin.training.pipeline import RunOptions
    from viscoin.training.runtime import Runtime

app = group(help="Train f, G, the ensemble, or all of them.")


def _train(
    kind: str,
    run: "RunOptions",
    runtime: "Runtime",
    keys: dict[str, Any],
    models: dict[str, Path | None] | None = None,
    others: dict[str, Any] | None = None,
) -> None:
    """Train one model; `keys` of its own section of the recipe, where they were given, and `others` by dotted key."""
    from viscoin.training import pipeline

    given = {f"{kind}.{key}": value for key, value in keys.items()} | (others or {})
    recipe = pipeline.resolve_for_models(kind, run, given, models or {})
    path = pipeline.train(kind, recipe, run, models or {}, runtime)
    announce(path)
    open_first(path.parent)


@app.command(cls=Command)
@options.with_runtime
@options.with_run
def classifier(
    *,
    backbone: options.Backbone = None,
    pretrained: Annotated[
        bool | None,
        typer.Option("--pretrained/--no-pretrained", help="Start from published weights.", show_default=False),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            metavar="FILE",
            help="Start from this checkpoint of timm, torchvision or transformers, or a model file.",
        ),
    ] = None,
    train_layers: Annotated[
        str | None,
        typer.Option(
            "--train-layers",
            metavar="all|head|last:N|STAGE",
            help="Layers to train: all, the last layer, it and the last N blocks, or stages such as layer4.",
        ),
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option("--optimizer", metavar="adamw|adam|radam|sgd", help="Optimizer.")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option("--schedule", metavar="cosine|step|constant", help="Learning-rate schedule.")
    ] = None,
    class_weights: Annotated[
        str | None,
        typer.Option("--class-weights", metavar="balanced|none", help="Weight classes by inverse frequency."),
    ] = None,
    early_stopping: Annotated[
        int | None,
        typer.Option("--early-stopping", min=1, metavar="N", help="Stop after N epochs without improvement."),
    ] = None,
    best_metric: Annotated[
        str | None,
        typer.Option(
            "--best-metric",
            metavar="accuracy|balanced_accuracy|f1|loss",
            help="Validation measure by which the best model is kept.",
        ),
    ] = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    accumulate: options.Accumulate = None,
    learning_rate: options.LearningRate = None,
    run: "RunOptions",
    runtime: "Runtime",
) -> None:
    """Train the classifier f."""
    if weights is not None and backbone is None:
        from viscoin.models.foreign.starting import read_start

        backbone = read_start(weights).backbone
    keys = {
        "weights": weights and str(weights),
        "backbone": backbone, "pretrained": pretrained, "train_layers": train_layers,
        "optimizer": optimizer and optimizer.lower(), "schedule": schedule, "class_weights": class_weights,
        "early_stopping": early_stopping, "best_metric": best_metric, "epochs": epochs, "batch_size": batch_size,
        "accumulate": accumulate, "learning_rate": learning_rate,
    }  # fmt: skip
    _train("classifier", run, runtime, keys)


@app.command(cls=Command)
@options.with_runtime
@options.with_run
def gan(
    *,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="NAME",
            help="auto, stylegan2, paper256, paper512, paper1024, cifar or birds64; other options override it.",
        ),
    ] = None,
    kimg: Annotated[
        float | None, typer.Option("--kimg", metavar="N", help="Adversarial training, thousands of images.")
    ] = None,
    warm_start: Annotated[
        float | None,
        typer.Option("--warm-start", metavar="N", help="Warm start by reconstruction, thousands of images."),
    ] = None,
    classifier: Annotated[
        Path | None, options.model_option("--classifier", "Classifier f, for the warm start and for matching")
    ] = None,
    conditional: Annotated[
        bool, typer.Option("--conditional", help="Condition G and D on the classes of the dataset.")
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
            help="blit, geom, color, filter, noise, cutout, bg, bgc, bgcf, bgcfn or bgcfnc.",
        ),
    ] = None,
    p: Annotated[
        float | None, typer.Option("--p", min=0, max=1, metavar="P", help="Probability for --augment fixed.")
    ] = None,
    target: Annotated[
        float | None, typer.Option("--target", min=0, max=1, metavar="R", help="Target of --augment ada; 0.6.")
    ] = None,
    transfer: Annotated[
        Path | None,
        typer.Option("--transfer", metavar="MODEL", help="Start from a published .pkl, a run folder or a model."),
    ] = None,
    freeze_d: Annotated[
        int | None,
        typer.Option("--freeze-d", min=0, metavar="N", help="Freeze the N layers of D nearest to the image."),
    ] = None,
    batch_size: options.BatchSize = None,
    accumulate: options.Accumulate = None,
    learning_rate: options.LearningRate = None,
    run: "RunOptions",
    runtime: "Runtime",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print recipe, parameters and layer shapes; train nothing.")
    ] = False,
) -> None:
    """Train the generator G, by reconstruction first."""
    keys = {
        "kimg": kimg, "warm_start": warm_start, "conditional": conditional or None, "horizontal_flip": mirror,
        "augment": augment, "augment_preset": augment_preset, "augment_p": p, "ada_target": target,
        "freeze_d": freeze_d, "batch_size": batch_size, "accumulate": accumulate, "learning_rate": learning_rate,
    }  # fmt: skip
    from viscoin.training import pipeline
    from viscoin.training.gan import check_gan, describe_gan

    recipe = pipeline.resolve_gan_recipe(
        run, {f"gan.{key}": value for key, value in keys.items()}, preset, transfer, runtime
    )
    check_gan(recipe, runtime)
    if dry_run:
        echo(f"{recipe.to_yaml()}\n{describe_gan(recipe)}")
        return
    path = pipeline.train("gan", recipe, run, {"classifier": classifier}, runtime)
    announce(path)
    open_first(path.parent)


@app.command(cls=Command)
@options.with_runtime
@options.with_run
def viscoin(
    *,
    steps: Annotated[
        int | None, typer.Option("--steps", "--epochs", min=0, metavar="N", help="Training steps (batches).")
    ] = None,
    classifier: Annotated[Path | None, options.model_option("--classifier", "Classifier f")] = None,
    gan: Annotated[Path | None, options.model_option("--gan", "Generator G")] = None,
    without_generator: Annotated[
        bool, typer.Option("--without-generator", help="Psi and Theta alone: concepts that cannot be drawn.")
    ] = False,
    initialisation: Annotated[
        str | None,
        typer.Option(
            "--initialisation",
            metavar="random|channels|pursuit",
            help="How concepts start; pursuit with --without-generator and --steps 0 takes seconds.",
        ),
    ] = None,
    classes: options.Classes = None,
    class_map: options.ClassMap = None,
    batch_size: options.BatchSize = None,
    accumulate: options.Accumulate = None,
    learning_rate: options.LearningRate = None,
    run: "RunOptions",
    runtime: "Runtime",
) -> None:
    """Train Psi, Theta and Omega on top of f and G."""
    from viscoin.inference.classes import IGNORED, read_names

    if class_map == Path(IGNORED):
        class_map = Path("ignored")
    keys = {
        "classes": classes and read_names(classes), "class_map": class_map and str(class_map),
        "steps": steps, "batch_size": batch_size, "accumulate": accumulate, "learning_rate": learning_rate,
        "without_generator": without_generator or None, "initialisation": initialisation,
    }  # fmt: skip
    _train("viscoin", run, runtime, keys, {"classifier": classifier, "gan": gan})


@app.command("all", cls=Command)
@options.with_runtime
@options.with_run(without=("replay",))
def everything(*, backbone: options.Backbone = None, run: "RunOptions", runtime: "Runtime") -> None:
    """Train f, G and the ensemble, one after the other.

    All by one recipe. --out is the folder of the three runs.
    """
    from viscoin.training import pipeline

    for path in pipeline.train_all(run, runtime, {"classifier.backbone": backbone}):
        announce(path)
    open_first(path.parent)


@app.command(cls=Command)
@options.with_runtime
@options.with_run
def concept2clip(
    *,
    viscoin: options.ViscoinModel = None,
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
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    learning_rate: options.LearningRate = None,
    run: "RunOptions",
    runtime: "Runtime",
) -> None:
    """Train the adapter that names concepts by CLIP.

    It maps concept activations to CLIP embeddings, by which `concepts --names` names concepts.
    """
    keys = {
        "model": clip_model, "pretrained": pretrained, "epochs": epochs, "batch_size": batch_size,
        "learning_rate": learning_rate,
    }  # fmt: skip
    _train("concept2clip", run, runtime, keys, {"viscoin": viscoin})


@app.command(cls=Command)
@options.with_runtime
@options.with_run
def judge(
    *,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    learning_rate: options.LearningRate = None,
    run: "RunOptions",
    runtime: "Runtime",
) -> None:
    """Train the judge that tests of edited images ask.

    It reads attributes off images, knows real ones alone, and is used in no loss.
    """
    _train("judge", run, runtime, {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate})


@app.command(cls=Command, context_settings={"token_normalize_func": lambda name: name.replace("_", "-")})
@options.with_runtime
@options.with_run
def diffmask(
    *,
    classifier: Annotated[
        Path | None, options.model_option("--classifier", "Classifier f, a plain ViT", "--from-pretrained")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", "--num-epochs", min=1, metavar="N", help="Passes over the images.")
    ] = None,
    batch_size: options.BatchSize = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", "--lr", metavar="RATE", help="Learning rate of the gates.")
    ] = None,
    lr_placeholder: Annotated[
        float | None, typer.Option("--lr-placeholder", metavar="RATE", help="Learning rate of the placeholder.")
    ] = None,
    lr_alpha: Annotated[
        float | None, typer.Option("--lr-alpha", metavar="RATE", help="Learning rate of the multipliers.")
    ] = None,
    alpha: Annotated[float | None, typer.Option("--alpha", metavar="A", help="Where the multipliers start.")] = None,
    eps: Annotated[
        float | None, typer.Option("--eps", metavar="NATS", help="Tolerated KL from the prediction of f.")
    ] = None,
    sparsity: Annotated[
        str | None, typer.Option("--sparsity", metavar="expected|log", help="What gets small; log: as published code.")
    ] = None,
    placeholder: Annotated[
        str | None, typer.Option("--placeholder", metavar="learned|zeros|fixed", help="What replaces a patch.")
    ] = None,
    no_placeholder: Annotated[bool, typer.Option("--no-placeholder", help="The same as --placeholder zeros.")] = False,
    mul_activation: Annotated[
        float | None, typer.Option("--mul-activation", metavar="A", help="Range of the gates' logits.")
    ] = None,
    add_activation: Annotated[
        float | None, typer.Option("--add-activation", metavar="A", help="Where the gates' logits start; 8 is open.")
    ] = None,
    weighted_layer_distribution: Annotated[
        bool, typer.Option("--weighted-layer-distribution", help="Sample layers less often that are good already.")
    ] = False,
    diffmask_checkpoint: Annotated[
        str | None,
        typer.Option("--diffmask-checkpoint", metavar="MODEL", help="A DiffMask of the same f to start from."),
    ] = None,
    sample_images: Annotated[
        int | None, typer.Option("--sample-images", min=1, metavar="N", help="Images of each split in the figures.")
    ] = None,
    log_every_n_steps: Annotated[
        int | None, typer.Option("--log-every-n-steps", min=1, metavar="N", help="Steps between validations.")
    ] = None,
    grid_size: Annotated[
        int | None, typer.Option("--grid-size", min=1, metavar="N", help="Cells a side of toy-count and cifar10-qa.")
    ] = None,
    class_idx: Annotated[
        int | None, typer.Option("--class-idx", min=0, metavar="N", help="What these datasets count.")
    ] = None,
    add_noise: Annotated[bool, typer.Option("--add-noise", help="The same as --set classifier.noise=1.")] = False,
    add_rotation: Annotated[
        bool, typer.Option("--add-rotation", help="The same as --set classifier.rotation=20.")
    ] = False,
    add_blur: Annotated[bool, typer.Option("--add-blur", help="The same as --set classifier.blur=2.")] = False,
    data_dir: Annotated[
        str | None, typer.Option("--data-dir", metavar="FOLDER", help="The same as --dataset-path.")
    ] = None,
    base_model: Annotated[
        str, typer.Option("--base-model", metavar="ViT", help="What f is; DiffMask explains no other networks.")
    ] = "ViT",
    enable_progress_bar: Annotated[
        bool, typer.Option("--enable-progress-bar", help="Without effect: terminals have one, logs have lines instead.")
    ] = False,
    num_workers: Annotated[
        int | None, typer.Option("--num-workers", min=0, metavar="N", help="Threads that prepare batches.")
    ] = None,
    run: "RunOptions",
    runtime: "Runtime",
) -> None:
    """Train masks of the patches that f needs.

    DiffMask learns for a plain ViT which patches can be replaced by one vector without changing what it says.
    """
    if base_model != "ViT":
        raise Refused("base_model", base_model, "DiffMask explains plain vision transformers", "choose ViT")
    keys = {
        "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "lr_placeholder": lr_placeholder,
        "lr_alpha": lr_alpha, "alpha": alpha, "eps": eps, "sparsity": sparsity,
        "placeholder": placeholder or ("zeros" if no_placeholder else None), "mul_activation": mul_activation,
        "add_activation": add_activation, "weighted_layer_distribution": weighted_layer_distribution or None,
        "checkpoint": diffmask_checkpoint, "sample_images": sample_images, "log_every_n_steps": log_every_n_steps,
        "num_workers": num_workers,
    }  # fmt: skip
    data = {
        "dataset.grid_size": grid_size, "dataset.counted_class": class_idx,
        "classifier.noise": 1.0 if add_noise else None, "classifier.rotation": 20.0 if add_rotation else None,
        "classifier.blur": 2.0 if add_blur else None,
    }  # fmt: skip
    run = run if data_dir is None else replace(run, dataset_path=data_dir)
    _train("diffmask", run, runtime, keys, {"classifier": classifier}, data)
