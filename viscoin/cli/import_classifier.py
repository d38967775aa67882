"""`import-classifier`: a model file from a checkpoint of timm, torchvision or transformers, read as data."""

from pathlib import Path
from typing import Annotated

import typer

from viscoin.cli import options
from viscoin.cli.output import echo
from viscoin.cli.results import print_table
from viscoin.errors import Refused


def import_classifier(
    checkpoint: Annotated[
        str | None,
        typer.Argument(metavar="CHECKPOINT", help="A .pt, .pth, .ckpt or .safetensors, or a name of timm's hub."),
    ] = None,
    *,
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="The model file to write (.safetensors).")],
    module: Annotated[
        str | None,
        typer.Option(
            "--module",
            metavar="FILE.py:FUNCTION",
            help="Instead of a checkpoint: a function of yours that returns the network. Your code is run.",
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            "--classes",
            metavar="FILE|imagenet",
            help="Class names in the order of the logits, one per line, or JSON; default: the checkpoint's own.",
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option("--backbone", metavar="NAME", help="A timm model; default: guessed from names and shapes."),
    ] = None,
    by_order: Annotated[
        bool, typer.Option("--by-order", help="Take the tensors in their order, whatever their names.")
    ] = False,
    mean: Annotated[
        str | None, typer.Option("--mean", metavar="R,G,B", help="Mean of the channels, of pixels in [0, 1].")
    ] = None,
    std: Annotated[
        str | None, typer.Option("--std", metavar="R,G,B", help="Standard deviation of the channels in [0, 1].")
    ] = None,
    input_size: Annotated[
        int | None, typer.Option("--input-size", metavar="PX", help="Side of the images that the network takes.")
    ] = None,
    fit: Annotated[
        str | None, typer.Option("--fit", metavar="crop|squash|pad|object", help="How image files become square.")
    ] = None,
    crop_share: Annotated[
        float | None,
        typer.Option("--crop-share", metavar="SHARE", help="Share of the shorter side that the network sees."),
    ] = None,
    interpolation: Annotated[
        str | None,
        typer.Option(
            "--interpolation", metavar="bicubic|bilinear|lanczos|nearest", help="How image files are resized."
        ),
    ] = None,
    resolution: Annotated[
        int | None,
        typer.Option(
            "--resolution",
            min=16,
            max=4096,
            metavar="PX",
            help="Side of the images it is given, which it resizes, such as a generator's; default: the input size.",
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", metavar="NAME|FOLDER|ZIP", help="Dataset to record in the file.")
    ] = None,
    check: Annotated[
        str | None,
        typer.Option(
            "--check", metavar="FOLDER|ZIP", help="Measure the accuracy on these images, a folder for each class."
        ),
    ] = None,
    class_map: Annotated[
        Path | None,
        typer.Option("--class-map", metavar="FILE", help="CSV or JSON: folder name, class name; for --check."),
    ] = None,
    device: options.Device = "auto",
    skip_bad_files: options.SkipBadFiles = False,
    force: options.Force = False,
) -> None:
    """Import a classifier that you have.

    The result is a model file that carries the network, its class names and how its images are prepared. Nothing in
    a checkpoint is executed. Names of timm, torchvision and transformers are understood.
    """
    from viscoin.datasets import check_dataset_name
    from viscoin.inference.devices import resolve_device
    from viscoin.models.foreign.importing import import_classifier as convert
    from viscoin.models.foreign.pipeline import Pipeline

    resolve_device(device)
    if check is not None:
        check_dataset_name(check)
    elif class_map is not None:
        raise Refused("class_map", class_map, "translates the folders of `check`", "give both, or neither")
    given = Pipeline(
        input_size, _three(mean, "mean"), _three(std, "std"), fit and fit.lower(), crop_share, interpolation
    )
    imported = convert(
        checkpoint, output, backbone, classes, module=module, by_order=by_order, preprocessing=given,
        resolution=resolution, dataset=dataset, force=force,
    )  # fmt: skip
    print_table(imported.source, imported.facts)
    echo(imported.path)
    if check is not None:
        from viscoin.models.files import add_scores
        from viscoin.testing.imported import accuracy_on_folder

        try:
            found = accuracy_on_folder(imported.path, check, class_map, device, skip_bad_files)
        except ValueError:
            echo(f"{imported.path} is written; only the check failed", err=True)
            raise
        add_scores(imported.path, {"accuracy": found.value, "n": found.n})
        echo(f"accuracy on {found.n} images of {check}: {found}")


def _three(text: str | None, parameter: str) -> tuple[float, ...] | None:
    """Numbers separated by commas; one stands for all channels."""
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise Refused(parameter, text, "expected three numbers, as in 0.485,0.456,0.406") from error
    return values * 3 if len(values) == 1 else values
