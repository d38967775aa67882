"""Options that several commands share: declarations, and two decorators that add whole groups of them."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from viscoin.errors import Refused

Command = Callable[..., None]

DatasetName = Annotated[
    str | None,
    typer.Option(
        "--dataset", metavar="NAME|FOLDER|ZIP", help="A known dataset, a folder with one folder per class, or a zip."
    ),
]
DatasetPath = Annotated[
    str | None,
    typer.Option(
        "--dataset-path",
        metavar="FOLDER",
        help="Files of a known --dataset, if not in the cache; alone the same as --dataset.",
    ),
]
DatasetOfRun = Annotated[
    str | None,
    typer.Option("--dataset", "--dataset-path", metavar="NAME|FOLDER|ZIP", help="The dataset of the newest run."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set any key of the recipe, as in gan.r1_gamma=2; repeatable."),
]
BatchSize = Annotated[int | None, typer.Option("--batch-size", min=1, metavar="N", help="Images in a batch.")]
TestBatchSize = Annotated[int, typer.Option("--batch-size", min=1, metavar="N", help="Images in a batch.")]
Epochs = Annotated[int | None, typer.Option("--epochs", min=1, metavar="N", help="Passes over the training images.")]
LearningRate = Annotated[float | None, typer.Option("--learning-rate", metavar="RATE", help="Learning rate.")]
Accumulate = Annotated[
    int | None,
    typer.Option("--accumulate", min=1, metavar="N", help="Accumulate gradients over N micro-batches, to save memory."),
]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, metavar="N", help="Random seed.")]
Device = Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda|cuda:N|mps", help="Where to compute.")]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="FOLDER", help="Folder for the results; default: a new one in runs/.")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the numbers as JSON alone; what people read goes to standard error.")
]
Show = Annotated[bool, typer.Option("--show", help="Open the figures in a window as well.")]
Backbone = Annotated[
    str | None,
    typer.Option("--backbone", metavar="NAME", help="A timm model, as in resnet50, vit_tiny or viscoin_resnet10."),
]
Classes = Annotated[
    str | None,
    typer.Option("--classes", metavar="A,B|FILE", help="Classes of f that g explains, or a file; default: all."),
]
ClassMap = Annotated[
    Path | None,
    typer.Option(
        "--class-map",
        metavar="FILE|none",
        help="CSV or JSON: folder of a dataset, class of the model; none: folders are no classes.",
    ),
]
SkipBadFiles = Annotated[bool, typer.Option("--skip-bad-files", help="Skip unreadable images instead of stopping.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]
ImageIndices = Annotated[
    list[str] | None,
    typer.Option("--image-indices", metavar="I,J,…", help="Test images by index; default: a sample by --seed."),
]
Images = Annotated[
    list[Path] | None,
    typer.Option("--image", metavar="FILE", help="An image file instead of test images; repeatable."),
]
Plugins = Annotated[
    list[Path] | None,
    typer.Option("--plugin", metavar="FILE", help="Python file with attribution methods, which is run; repeatable."),
]
DiffMaskModel = Annotated[
    Path | None,
    typer.Option("--diffmask", metavar="MODEL", help="DiffMask of f, as one more method: model file or run folder."),
]
ConceptIndices = Annotated[
    list[str] | None, typer.Option("--concept-indices", metavar="K,L,…", help="Concepts by index, from 0.")
]
ConceptTopK = Annotated[
    int | None,
    typer.Option("--concept-top-k", min=1, metavar="N", help="The N most relevant concepts of each image."),
]
ConceptThreshold = Annotated[
    float | None,
    typer.Option("--concept-threshold", metavar="R", help="Concepts with relevance above R, in [-1, 1]."),
]
ConceptNames = Annotated[
    Path | None,
    typer.Option("--concept-names", metavar="FILE", help="names.csv of concepts --names, to label concepts."),
]
MODEL_HELP = "model file, run folder or pickle; default: newest run, else shipped."
VISCOIN_HELP = f"Ensemble: {MODEL_HELP}"
ViscoinModel = Annotated[
    Path | None, typer.Option("--viscoin-pickle-path", "--checkpoints", metavar="MODEL", help=VISCOIN_HELP)
]


def split_list(values: Iterable[str]) -> list[str]:
    """The parts of a repeatable, comma-separated option."""
    return [part.strip() for value in values for part in value.split(",")]


def listed(text: str | None) -> list[str] | None:
    """The parts of a comma-separated option; None when it was not given."""
    return split_list([text]) if text else None


def parse_indices(values: list[str] | None, parameter: str) -> list[int] | None:
    """Indices of a repeatable, comma-separated option; None when it was not given."""
    if not values:
        return None
    texts = split_list(values)
    for text in texts:
        if not text.lstrip("-").isdigit():
            raise Refused(parameter, text, "expected numbers from 0, separated by commas")
    return [int(text) for text in texts]


def model_option(name: str, what: str, *other_names: str) -> Any:
    """Declaration of an option that names a model."""
    return typer.Option(name, *other_names, metavar="MODEL", help=f"{what}: {MODEL_HELP}")


# The options of `with_runtime`, by the names of the fields of `Runtime`: their defaults and declarations.
RUNTIME: Mapping[str, tuple[Any, Any]] = {
    "device": ("auto", Device),
    "devices": (
        1,
        Annotated[int, typer.Option("--devices", min=1, metavar="N", help="GPUs of a node; on the CPU: processes.")],
    ),
    "num_nodes": (
        1,
        Annotated[int, typer.Option("--num-nodes", min=1, metavar="N", help="Nodes; torchrun or SLURM starts them.")],
    ),
    "strategy": (
        "auto",
        Annotated[
            str,
            typer.Option("--strategy", metavar="auto|ddp|ddp-gloo|ddp-nccl", help="How processes exchange gradients."),
        ],
    ),
    "precision": (
        "auto",
        Annotated[
            str,
            typer.Option("--precision", metavar="auto|32-true|bf16-mixed|16-mixed", help="Numerical precision."),
        ],
    ),
    "compile": (False, Annotated[bool, typer.Option("--compile", help="Compile the networks with torch.compile.")]),
}

# The options of `with_run`, by the names of the fields of `RunOptions`.
RUN: Mapping[str, tuple[Any, Any]] = {
    "dataset": (None, DatasetName),
    "dataset_path": (None, DatasetPath),
    "attribute": (
        None,
        Annotated[
            str | None,
            typer.Option("--attribute", metavar="NAME", help="Class attribute of celeba_hq; default: Young."),
        ],
    ),
    "recipe": (
        None,
        Annotated[
            str | None,
            typer.Option("--recipe", metavar="NAME|FILE", help="Recipe; default: the dataset's own, or folder."),
        ],
    ),
    "settings": (None, Settings),
    "seed": (
        None,
        Annotated[
            int | None,
            typer.Option("--seed", min=0, max=2**32 - 1, metavar="N", help="Random seed; default: the recipe's."),
        ],
    ),
    "out": (
        None,
        Annotated[
            Path | None,
            typer.Option(
                "--out", metavar="FOLDER", help="The run's folder; the same command resumes it. Default: in runs/."
            ),
        ],
    ),
    "resume": (
        False,
        Annotated[bool, typer.Option("--resume", help="Resume the run in --out, or the newest one.")],
    ),
    "allow_changes": (
        False,
        Annotated[bool, typer.Option("--allow-changes", help="Resume even if the recipe has changed.")],
    ),
    "replay": (
        None,
        Annotated[
            Path | None,
            typer.Option(
                "--replay", metavar="RUN", help="Repeat the commands that steered RUN, each at its step, by its recipe."
            ),
        ],
    ),
    "track": (
        None,
        Annotated[
            list[str] | None,
            typer.Option(
                "--track",
                metavar="tensorboard|mlflow|wandb|none",
                envvar="VISCOIN_TRACK",
                help="Experiment trackers, comma-separated; default: those of the resumed run.",
            ),
        ],
    ),
    "skip_bad_files": (False, SkipBadFiles),
}


def with_runtime(command: Command) -> Command:
    """Replace a command's parameter `runtime` by the options of `RUNTIME`; the command is given one `Runtime`.

    A default of the parameter, a dictionary, says which options have other defaults than those of `Runtime`.
    """

    def collected(values: dict[str, Any]) -> Any:
        from viscoin.training.runtime import Runtime

        return Runtime(**values)

    return _with_group(command, "runtime", RUNTIME, collected)


def with_run(command: Command | None = None, *, without: Iterable[str] = ()) -> Any:
    """Replace a command's parameter `run` by the options of `RUN`; the command is given one `RunOptions`.

    Args:
        without: options that this command does not have.
    """
    options = {name: option for name, option in RUN.items() if name not in without}

    def collected(values: dict[str, Any]) -> Any:
        from viscoin.training.pipeline import RunOptions

        return RunOptions(**values)

    def decorate(command: Command) -> Command:
        return _with_group(command, "run", options, collected)

    return decorate if command is None else decorate(command)


def _with_group(
    command: Command, group: str, options: Mapping[str, tuple[Any, Any]], collect: Callable[[dict[str, Any]], Any]
) -> Command:
    """The command with one parameter replaced by several; what they are given is collected into one object."""

    @wraps(command)
    def run(**values: Any) -> None:
        own = {name: values.pop(name) for name in options}
        command(**values, **{group: collect(own)})

    signature = inspect.signature(command)
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name != group:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        changed = {} if parameter.default is inspect.Parameter.empty else parameter.default
        parameters += [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=changed.get(name, default), annotation=option
            )
            for name, (default, option) in options.items()
        ]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del run.__wrapped__  # type: ignore[attr-defined]  # whose signature would be taken instead
    return run
