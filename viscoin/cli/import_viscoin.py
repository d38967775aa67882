"""`import-viscoin`: a model file from a checkpoint of older VisCoIN code, without running anything in it."""

from pathlib import Path
from typing import Annotated

import typer

from viscoin.cli.output import echo
from viscoin.cli.results import print_table


def import_viscoin(
    source: Annotated[Path, typer.Argument(metavar="OLD", help="The older checkpoint (.pth or .pkl).")],
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="The model file to write (.safetensors).")],
    classifier: Annotated[
        Path | None,
        typer.Option("--classifier", metavar="MODEL", help="The classifier f, for a checkpoint without one."),
    ] = None,
    classes: Annotated[
        Path | None, typer.Option("--classes", metavar="FILE", help="Class names in order, one per line.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            metavar="NAME|FOLDER|ZIP",
            help="Dataset to record in the file; gives the class names if it needs no download.",
        ),
    ] = None,
    coarse_layer: Annotated[
        int | None,
        typer.Option("--coarse-layer", min=0, metavar="N", help="First style that concepts control; default: 2."),
    ] = None,
    mid_layer: Annotated[
        int | None,
        typer.Option(
            "--mid-layer",
            min=0,
            metavar="N",
            help="Last style that concepts control; default: 10, or the last but one if there are fewer.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output file.")] = False,
) -> None:
    """Convert a checkpoint of older VisCoIN code.

    The result is a model file. Nothing in the checkpoint is executed. It must hold the state dicts of
    concept_extractor, explainer and gan; that of a classifier, if any, has the names of the transformers library.
    """
    from viscoin.legacy.importing import import_checkpoint

    imported = import_checkpoint(source, output, classifier, classes, dataset, coarse_layer, mid_layer, force)
    print_table(imported.source, imported.facts)
    if imported.kind == "parts":
        echo(f"{source} holds no classifier, so this is no whole ensemble; --classifier MODEL adds one", err=True)
    echo(imported.path)
