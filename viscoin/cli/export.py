"""`export`: part of a model as ONNX, TorchScript or plain weights, for programs that know nothing of this project."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from viscoin.cli import options
from viscoin.cli.output import echo
from viscoin.cli.results import print_table

if TYPE_CHECKING:
    from viscoin.export import Exported


def export(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Model file, run folder or pickle.", show_default=False)
    ],
    to: Annotated[
        str, typer.Option("--to", metavar="onnx|torchscript|safetensors", help="Kind of file.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE",
            help="The file to write (.onnx, .pt or .safetensors); default: DATASET-PART in this folder.",
        ),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            "--part",
            metavar="classifier|concepts|decoder|generator|synthesis",
            help="classifier: images to logits. concepts, the default for an ensemble: images to logits and concepts. "
            "decoder: concepts to images. generator: z to images. synthesis: styles w+ to images.",
        ),
    ] = None,
    with_map: Annotated[
        str | None,
        typer.Option(
            "--with-map", metavar="cam|attention|rollout", help="classifier: where it looks as a second output."
        ),
    ] = None,
    noise: Annotated[
        str, typer.Option("--noise", metavar="const|none", help="Noise in drawn images: as stored in G, or none.")
    ] = "const",
    truncation: Annotated[
        float,
        typer.Option("--truncation", metavar="PSI", help="generator: 1 for all styles, towards 0 for usual ones."),
    ] = 1,
    dtype: Annotated[
        str,
        typer.Option("--dtype", metavar="float32|float16|bfloat16", help="safetensors: type of the weights."),
    ] = "float32",
    opset: Annotated[
        int | None, typer.Option("--opset", metavar="N", help="onnx: version of the operators; default: 18.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            min=0,
            metavar="X",
            help="Largest difference from PyTorch, relative to the largest value; default: 1e-4 (float16: 0.02, "
            "bfloat16: 0.1).",
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            metavar="NAME|FOLDER|ZIP",
            help="Whose test images to compare on; default: the model's, or the birds where those are not here.",
        ),
    ] = None,
    dataset_path: options.DatasetPath = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an output that exists.")] = False,
) -> None:
    """Export a model as ONNX, TorchScript or weights.

    Written for programs without this project, after comparing it with PyTorch.

    The file is opened by onnxruntime, torch.jit or safetensors and run on random inputs and on real images; where it
    differs from PyTorch by more than --tolerance, it is not kept. Its metadata say what goes in and what comes out.
    """
    from viscoin.config import DEFAULT_DATASET
    from viscoin.datasets import locate_dataset
    from viscoin.export import SUFFIXES, export_model, images_for_check, usage
    from viscoin.models.files import find_model, load_model
    from viscoin.models.portable import default_part

    dataset, dataset_path = locate_dataset(dataset, dataset_path)
    loaded = load_model(find_model("viscoin", model, DEFAULT_DATASET))
    if output is None:
        name = f"{Path(loaded.metadata['dataset']).name}-{part or default_part(loaded)}{'-map' if with_map else ''}"
        output = Path(f"{name}{SUFFIXES.get(to, '')}")
    if output.exists() and not force:
        raise ValueError(f"--output {output} exists; pass --force to replace it or choose another name")
    images, images_are = images_for_check(loaded, dataset, dataset_path)
    done = export_model(
        loaded,
        to,
        output,
        images,
        images_are=images_are,
        part=part,
        with_map=with_map,
        noise_mode=noise,
        truncation_psi=truncation,
        dtype=dtype,
        opset=opset,
        tolerance=tolerance,
    )
    _print_differences(done)
    echo(f"\n{usage(done)}\n")
    echo(done.path)


def _print_differences(done: "Exported") -> None:
    echo(f"{done.path}: {done.part.description}")
    for kind, outputs in done.differences.items():
        shown = {name: f"{one.absolute:.1e}, values up to {one.largest:.3g}" for name, one in outputs.items()}
        print_table(f"largest difference from PyTorch on {kind}", shown)
    echo(f"largest difference relative to the values: {done.largest:.1e} (tolerance: {done.tolerance:g})")
