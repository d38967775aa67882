"""`from-pickle`: the way back from `to-pickle`, a model file from a pickle of plain tensors."""

from pathlib import Path
from typing import Annotated

import typer

from viscoin.cli.output import echo


def from_pickle(
    pickle: Annotated[Path, typer.Argument(metavar="PICKLE", help="A pickle written by to-pickle.")],
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="The model file to write (.safetensors).")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output file.")] = False,
) -> None:
    """Convert a pickle of to-pickle back to a model file.

    The same weights and metadata, bit for bit.
    """
    from viscoin.models.files import read_model, write_file

    if output.suffix != ".safetensors":
        raise ValueError(f"--output {output}: a model file must end in .safetensors; to-pickle writes pickles")
    if output.exists() and not force:
        raise ValueError(f"--output {output} exists; pass --force to overwrite it or choose another name")
    write_file(output, *read_model(pickle))
    echo(output)
