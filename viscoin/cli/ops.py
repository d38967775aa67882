"""`ops build|check`: the CUDA kernels of the generator's operations."""

from pathlib import Path
from typing import Annotated

import typer

from viscoin.cli import options
from viscoin.cli.app import Command, group
from viscoin.cli.output import echo

app = group(help="Build or check the optional CUDA kernels.")


@app.command(cls=Command)
def build(
    arch: Annotated[
        str | None,
        typer.Option(
            "--arch",
            metavar="LIST",
            help="Compute capabilities, as in '8.6;9.0+PTX'; default: those of the GPUs, or all common ones.",
        ),
    ] = None,
    cuda_home: Annotated[
        Path | None,
        typer.Option("--cuda-home", metavar="FOLDER", help="CUDA toolkit; default: $CUDA_HOME, or that of nvcc."),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show what the compilers say.")] = False,
) -> None:
    """Compile the CUDA kernels, once.

    Needs nvcc, g++ and ninja, but no GPU. Without the kernels everything still works.
    """
    from stylegan2_ada.ops.build import build_kernels

    built = build_kernels(arch, cuda_home, verbose)
    echo(f"{built.path}\nfor {built.architectures}, with {built.cuda_home}, in {built.seconds:.0f} s")


@app.command(cls=Command)
def check(device: options.Device = "auto") -> None:
    """Compare the CUDA kernels with plain PyTorch.

    In numbers and in speed; exit code 1 if they differ.
    """
    from stylegan2_ada.ops.backend import obstacle
    from stylegan2_ada.ops.check import compare_operations
    from viscoin.inference.devices import resolve_device

    where = resolve_device(device)
    reason = (
        obstacle(where.type, where.index) if where.type == "cuda" else f"the kernels need CUDA, and this is {where}"
    )
    if reason:
        echo(f"The operations run in plain PyTorch: {reason}.")
        echo("This is its speed, and a check of the registered operators, on the CPU.")
    echo(f"{'operation':15} {'type':9} {'layout':14} {'pass':8}  max error  PyTorch ms  kernel ms  speed-up")
    agree = True
    for row in compare_operations(where):
        layout, direction = ("contiguous", "channels-last")[row.channels_last], ("forward", "backward")[row.backward]
        speed = f"{'-':>9} {'-':>9}"
        if row.kernel_ms is not None:
            speed = f"{row.kernel_ms:9.3f} {row.reference_ms / row.kernel_ms:8.1f}x"
        echo(
            f"{row.operation:15} {str(row.dtype).removeprefix('torch.'):9} {layout:14} {direction:8} "
            f"{row.error:10.1e} {row.reference_ms:11.3f}  {speed}{'' if row.agrees else '  DIFFERS'}"
        )
        agree &= row.agrees
    echo("All agree." if agree else "Some differ: please report this table.")
    if not agree:
        raise typer.Exit(1)
