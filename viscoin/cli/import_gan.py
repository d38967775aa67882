"""`import-gan`: a model file from a published network pickle, without running anything in it."""

from pathlib import Path
from typing import Annotated

import typer

from viscoin.cli.output import echo
from viscoin.cli.results import print_table


def import_gan(
    source: Annotated[
        str | None,
        typer.Argument(metavar="PICKLE|NAME|URL", help="A file, a published name (see --list) or an address."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="The model file to write (.safetensors).")
    ] = None,
    network: Annotated[
        str, typer.Option("--network", metavar="G_ema|G", help="The averaged generator, or the one in training.")
    ] = "G_ema",
    discriminator: Annotated[
        Path | None, typer.Option("--discriminator", metavar="FILE", help="Write the discriminator to this file.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", metavar="NAME", help="Dataset to record in the file; default: the source's name."),
    ] = None,
    sha256: Annotated[
        str | None, typer.Option("--sha256", metavar="HEX", help="Checksum that the pickle must have.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite output files.")] = False,
    show_list: Annotated[bool, typer.Option("--list", help="List the published networks that have names.")] = False,
) -> None:
    """Convert a published StyleGAN2-ADA pickle.

    The result is a model file. Nothing in the pickle is executed.
    """
    if show_list:
        return _print_list()
    if source is None or output is None:
        raise ValueError("give a network pickle and --output, as in: import-gan ffhq256 --output g.safetensors")
    from viscoin.models.importing import import_generator

    for imported in import_generator(source, output, network, discriminator, dataset, sha256, force):
        print_table(imported.source, imported.facts)
        echo(imported.path)


def _print_list() -> None:
    from viscoin.models.published import LICENCE, PUBLISHED

    for name, network in PUBLISHED.items():
        echo(f"{name:<12} {network.resolution:>4} px  {network.megabytes} MB  {network.training}")
        echo(f"{'':<12} {network.address}")
        echo(f"{'':<12} SHA-256: {network.sha256 or 'not published; that of the first download counts'}")
    echo(f"All: {LICENCE}.")
