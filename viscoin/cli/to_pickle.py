"""`to-pickle`: one pickle of plain tensors from a model file."""

from pathlib import Path
from typing import Annotated

import typer

from viscoin.cli import options
from viscoin.cli.output import echo


def to_pickle(
    checkpoints: Annotated[
        Path | None, typer.Option("--checkpoints", metavar="MODEL", help=options.VISCOIN_HELP)
    ] = None,
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="The pickle to write.")] = Path(
        "viscoin.pkl"
    ),
    dataset: options.DatasetOfRun = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output file.")] = False,
) -> None:
    """Convert a model file to a pickle of plain tensors.

    Every option that names a model takes it as well.
    """
    from viscoin.config import DEFAULT_DATASET
    from viscoin.datasets import dataset_of_runs
    from viscoin.models.files import find_model, read_model, write_file

    if output.suffix == ".safetensors":
        raise ValueError(
            f"--output {output}: a pickle must not end in .safetensors; call it {output.with_suffix('.pkl')}"
        )
    if output.exists() and not force:
        raise ValueError(f"--output {output} exists; pass --force to overwrite it or choose another name")
    path = find_model("viscoin", checkpoints, dataset_of_runs(dataset or DEFAULT_DATASET))
    write_file(output, *read_model(path))
    echo(output)
