"""Options that several commands share, and the steps between options and library calls."""

import inspect
import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from viscoin.processes import is_first_process

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

    from viscoin.config import DatasetConfig, Recipe
    from viscoin.datasets import ImageDataset
    from viscoin.models.classifier import Classifier
    from viscoin.models.files import LoadedModel
    from viscoin.runs.run import Run

DEFAULT_DATASET = "birds"

DatasetName = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        metavar="NAME|FOLDER|ZIP",
        help="A known dataset, a folder with one folder per class, or a zip of images.",
    ),
]
DatasetPath = Annotated[
    str | None,
    typer.Option(
        "--dataset-path",
        metavar="FOLDER",
        help="Where the files of a known --dataset lie, if not in the cache; alone it is the same as --dataset.",
    ),
]
Attribute = Annotated[
    str | None,
    typer.Option("--attribute", metavar="NAME", help="Attribute that is the class of celeba_hq; default: Young."),
]
DatasetOfRun = Annotated[
    str | None,
    typer.Option("--dataset", "--dataset-path", metavar="NAME|FOLDER|ZIP", help="The dataset of the newest run."),
]
RecipeName = Annotated[
    str | None,
    typer.Option("--recipe", metavar="NAME|FILE", help="Recipe to start from; default: the dataset's own, or folder."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change any key of the recipe, as in --set gan.r1_gamma=2; repeatable."
    ),
]
BatchSize = Annotated[int | None, typer.Option("--batch-size", min=1, metavar="N", help="Images in a batch.")]
TestBatchSize = Annotated[int, typer.Option("--batch-size", min=1, metavar="N", help="Images in a batch.")]
Epochs = Annotated[int | None, typer.Option("--epochs", min=1, metavar="N", help="Passes over the training images.")]
LearningRate = Annotated[
    float | None, typer.Option("--learning-rate", metavar="RATE", help="Step size of the optimizer.")
]
RecipeSeed = Annotated[
    int | None, typer.Option("--seed", min=0, metavar="N", help="Seed of everything drawn at random.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Seed of everything drawn at random.")]
Accumulate = Annotated[
    int | None,
    typer.Option(
        "--accumulate", min=1, metavar="N", help="Let a batch go through the networks in N parts, to save memory."
    ),
]
AllowChanges = Annotated[
    bool, typer.Option("--allow-changes", help="Go on with a run although the recipe is not the one it began with.")
]
Device = Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda|cuda:N|mps", help="Where to compute.")]
Precision = Annotated[str, typer.Option("--precision", metavar="auto|32-true|bf16-mixed|16-mixed", help="Arithmetic.")]
# The options of `with_runtime`, by the names of the fields of `Runtime`: their defaults and declarations.
RUNTIME: Mapping[str, tuple[Any, Any]] = {
    "device": ("auto", Device),
    "devices": (
        1,
        Annotated[int, typer.Option("--devices", min=1, metavar="N", help="Devices of a node; on the CPU: processes.")],
    ),
    "num_nodes": (
        1,
        Annotated[
            int, typer.Option("--num-nodes", min=1, metavar="N", help="Nodes, on which torchrun or SLURM starts this.")
        ],
    ),
    "strategy": (
        "auto",
        Annotated[
            str,
            typer.Option("--strategy", metavar="auto|ddp|ddp-gloo|ddp-nccl", help="How processes exchange gradients."),
        ],
    ),
    "precision": ("auto", Precision),
    "compile": (False, Annotated[bool, typer.Option("--compile", help="Translate the networks by torch.compile.")]),
}
Out = Annotated[
    Path | None, typer.Option("--out", metavar="FOLDER", help="Where results go; default: a new folder in runs/.")
]
OutOfRun = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="FOLDER", help="The run's folder; one begun by the same command goes on. Default: a new one."
    ),
]
Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        metavar="tensorboard|mlflow|wandb|none",
        envvar="VISCOIN_TRACK",
        help="Let others follow the run; several by commas. Default: those that follow it already, or none.",
    ),
]
Show = Annotated[bool, typer.Option("--show", help="Open the figures in a window as well.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run of --out, or with the newest one.")]
SkipBadFiles = Annotated[
    bool, typer.Option("--skip-bad-files", help="Leave unreadable images out instead of stopping.")
]
ImageIndices = Annotated[
    list[str] | None,
    typer.Option("--image-indices", metavar="I,J,…", help="Test images to take; default: some drawn by --seed."),
]
ConceptIndices = Annotated[
    list[str] | None, typer.Option("--concept-indices", metavar="K,L,…", help="Concepts to take, counted from 0.")
]
ConceptTopK = Annotated[
    int | None,
    typer.Option("--concept-top-k", min=1, metavar="N", help="Take the K most relevant concepts of each image."),
]
ConceptThreshold = Annotated[
    float | None,
    typer.Option("--concept-threshold", metavar="R", help="Take the concepts of relevance above this, in [-1, 1]."),
]
VISCOIN_HELP = "Ensemble: model file, run folder or pickle; default: newest run, else shipped."
ViscoinModel = Annotated[
    Path | None, typer.Option("--viscoin-pickle-path", "--checkpoints", metavar="MODEL", help=VISCOIN_HELP)
]


def model_option(name: str, what: str) -> Any:
    """Declaration of an option that names a model."""
    return typer.Option(
        name, metavar="MODEL", help=f"{what}: model file, run folder or pickle; default: newest run, else shipped."
    )


def with_runtime(command: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's parameter `runtime` by the options of `RUNTIME`; the command is given one `Runtime`.

    A default of the parameter, a dictionary, says which options have other defaults than those of `Runtime`.
    """

    @wraps(command)
    def run(**values: Any) -> None:
        from viscoin.training.runtime import Runtime

        runtime = Runtime(**{name: values.pop(name) for name in RUNTIME})
        command(**values, runtime=runtime)

    signature = inspect.signature(command)
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name != "runtime":
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        own = {} if parameter.default is inspect.Parameter.empty else parameter.default
        parameters += [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=own.get(name, default), annotation=option)
            for name, (default, option) in RUNTIME.items()
        ]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del run.__wrapped__  # type: ignore[attr-defined]  # whose signature would be taken instead
    return run


def announce(path: Path) -> None:
    """Print where the results are; once, however many processes made them."""
    if is_first_process():
        typer.echo(path)


def resolve_recipe(
    kind: str,
    dataset: str | None,
    recipe: str | None,
    settings: Sequence[str] | None,
    options: Mapping[str, Any],
    out: Path | None = None,
    resume: bool = False,
    defaults: Mapping[str, Any] | None = None,
    dataset_path: str | None = None,
) -> "Recipe":
    """The recipe that the options of a `train` command mean.

    It starts from the resumed run's own recipe, else from `recipe`, else from that of the dataset (birds).
    `options` are dotted keys, which win over `settings`, which win over `defaults`; an option of None is not given.
    """
    from viscoin.config import load_recipe, override_recipe
    from viscoin.datasets import check_dataset_name, default_recipe, prepared_resolution
    from viscoin.runs.run import Run, newest_run

    overrides: dict[str, Any] = {}
    if dataset_path is not None:
        own = load_recipe(recipe).dataset.name if recipe is not None else None
        dataset, overrides["dataset.path"] = place_of_data(dataset, dataset_path, own)
    if dataset is not None:
        check_dataset_name(dataset)
        dataset = _plain_name(dataset)
        overrides["dataset.name"] = dataset
        if recipe is None and not resume and (side := prepared_resolution(dataset)):
            overrides["dataset.resolution"] = side
    overrides |= dict(defaults or {}) | dict(_parse_setting(text) for text in settings or [])
    overrides |= {key: value for key, value in options.items() if value is not None}
    if resume:
        run = Run(out) if out else newest_run(kind, dataset or DEFAULT_DATASET)
        if run is None or not run.recipe_path.is_file():
            place = out or f"runs/ for dataset {dataset or DEFAULT_DATASET!r}"
            raise ValueError(f"--resume: there is no {kind} run in {place}; start one without --resume")
        if run.kind != kind:
            raise ValueError(f"--resume: {run.path} is a {run.kind} run, not a {kind} run")
        if recipe is None:
            return override_recipe(run.recipe, overrides)
    resolved = load_recipe(recipe or default_recipe(overrides.get("dataset.name", DEFAULT_DATASET)), overrides)
    check_dataset_name(resolved.dataset.name)
    if options.get("dataset.attribute") is not None and resolved.dataset.name != "celeba_hq":
        raise ValueError(f"--attribute: it chooses the classes of celeba_hq, not of dataset {resolved.dataset.name!r}")
    return resolved


def _parse_setting(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise ValueError(f"--set {text!r}: expected KEY=VALUE, as in --set viscoin.steps=500")
    return key.strip(), value.strip()


@contextmanager
def training_run(
    kind: str,
    recipe: "Recipe",
    out: Path | None,
    resume: bool,
    allow_changes: bool = False,
    track: Sequence[str] | None = None,
) -> Iterator["Run"]:
    """The run to train in, locked; a new folder vanishes again when the training fails before its first step.

    `track` names the trackers that follow it; by default those that did before.
    Processes that a launcher started beside the first one learn later which run it is.
    """
    from viscoin.runs.run import RUNS, Run
    from viscoin.runs.tracking import parse_trackers, tracked

    if not is_first_process():
        yield Run(out or RUNS)
        return
    trackers = parse_trackers(track) if track else None
    existed = out is not None and out.exists()
    with Run.opened(kind, recipe, out, resume, allow_changes) as run:
        typer.echo(f"run folder: {run.path}", err=True)
        try:
            with tracked(run, trackers):
                yield run
        except BaseException:
            if not (run.goes_on or run.metrics_path.exists() or any(run.checkpoints.iterdir())):
                run.recipe_path.unlink(missing_ok=True)
                if not existed:
                    shutil.rmtree(run.path, ignore_errors=True)
            raise


def check_resolution(loaded: "LoadedModel", option: str, resolution: int) -> None:
    """Raise ValueError unless the model was made for images of that side."""
    own = loaded.recipe["dataset"]["resolution"]
    if own != resolution:
        raise ValueError(
            f"{option} {loaded.path} was made for {own} px images, not for {resolution} px; "
            f"pass --set dataset.resolution={own} or another model"
        )


def check_classes(loaded: "LoadedModel", option: str, dataset: "ImageDataset") -> None:
    """Raise ValueError unless model and dataset have the same classes in the same order."""
    if list(loaded.class_names) != list(dataset.class_names):
        raise ValueError(
            f"{option} {loaded.path} knows {_listed(loaded.class_names)}, but dataset {dataset.name!r} has "
            f"{_listed(dataset.class_names)}; give a model and a --dataset that belong together"
        )


def _listed(names: Sequence[str], most: int = 30) -> str:
    return f"{len(names)} classes ({', '.join(names[:most])}{', …' if len(names) > most else ''})"


@dataclass(frozen=True)
class Trial:
    """A model on its device, test images of the size it was made for, and their configuration for the other splits."""

    model: Any
    path: Path
    device: "torch.device"
    images: "ImageDataset"
    config: "DatasetConfig"
    expected: Mapping[str, float] = field(default_factory=dict)  # results by name, from the recipe of the model


def load_for_test(
    kind: str,
    option: str,
    value: Path | None,
    dataset: str | None,
    device: str,
    skip_bad_files: bool = False,
    dataset_path: str | None = None,
    split: str = "test",
) -> Trial:
    """The model that an option means and the images of a split to try it on.

    Args:
        dataset: as given; None means the dataset of the given model, else birds.

    Raises:
        ValueError: model and dataset have different classes (of which an unconditional generator knows nothing).
    """
    from viscoin.config import DatasetConfig
    from viscoin.datasets import check_dataset_name, load_dataset
    from viscoin.inference.devices import resolve_device
    from viscoin.models.files import find_model, load_model

    where = resolve_device(device)
    dataset, path = place_of_data(dataset, dataset_path)
    if dataset is not None:
        check_dataset_name(dataset)
        dataset = _plain_name(dataset)
    loaded = load_model(find_model(kind, value, dataset or DEFAULT_DATASET), kind)
    saved, expected = loaded.recipe["dataset"], loaded.recipe.get("expected", {})
    name = dataset or (saved["name"] if value is not None else DEFAULT_DATASET)
    check_dataset_name(name)
    if name != saved["name"]:
        saved, expected = {"resolution": saved["resolution"], "seed": saved["seed"]}, {}
    if path is not None:
        saved = {**saved, "path": path}
    config = DatasetConfig.model_validate({**saved, "name": name, "skip_bad_files": skip_bad_files})
    labelled = kind != "gan" or loaded.model.c_dim > 0
    images = load_dataset(name, split, config, labelled)
    if labelled:
        check_classes(loaded, option, images)
    return Trial(loaded.model.to(where), loaded.path, where, images, config, expected)


def place_of_data(
    dataset: str | None, dataset_path: str | None, own: str | None = None
) -> tuple[str | None, str | None]:
    """Dataset and folder of its files that `--dataset` and `--dataset-path` mean.

    Args:
        own: the dataset that is meant without `--dataset`; without that one as well, the folder is the dataset.

    Raises:
        ValueError: a folder for a dataset that has no files of its own, or that is a folder itself.
    """
    from viscoin.datasets import DRAWN, dataset_names

    if dataset_path is None:
        return dataset, None
    if dataset is None and (own is None or own in DRAWN or own not in dataset_names()):
        return dataset_path, None
    if dataset in DRAWN:
        raise ValueError(f"--dataset-path {dataset_path}: dataset {dataset!r} is drawn and has no files; leave one out")
    if dataset is not None and dataset not in dataset_names():
        raise ValueError(
            f"--dataset-path {dataset_path}: it says where the files of a known dataset lie "
            f"({', '.join(name for name in dataset_names() if name not in DRAWN)}), which --dataset {dataset} is not; "
            "leave one of them out"
        )
    return dataset, dataset_path


def _plain_name(dataset: str) -> str:
    """One spelling for each folder: `data`, `data/` and `./data` are the same dataset."""
    from viscoin.datasets import dataset_names

    return dataset if dataset in dataset_names() else str(Path(dataset))


def trained_parts(classifier: Path | None, gan: Path | None, recipe: "Recipe") -> tuple["LoadedModel", "LoadedModel"]:
    """f and G to train an ensemble on; ValueError unless they fit the recipe's dataset and resolution."""
    from viscoin.datasets import load_dataset
    from viscoin.models.files import find_model, load_model

    dataset = recipe.dataset
    f = load_classifier(classifier, dataset)
    g = load_model(find_model("gan", gan, dataset.name), "gan")
    check_resolution(g, "--gan", dataset.resolution)
    check_classes(f, "--classifier", load_dataset(dataset.name, "validation", dataset))
    return f, g


def optional_classifier(value: Path | None, recipe: "Recipe") -> "Classifier | None":
    """f for the warm start of G: the given one, else the newest or shipped one if it takes such images, else none."""
    try:
        return load_classifier(value, recipe.dataset).model
    except ValueError:
        if value is not None:
            raise
        return None


def load_classifier(value: Path | None, dataset: "DatasetConfig") -> "LoadedModel":
    """f of `--classifier`, else the newest or shipped one of the dataset; ValueError unless it takes its images."""
    from viscoin.models.files import find_model, load_model

    loaded = load_model(find_model("classifier", value, dataset.name), "classifier")
    check_resolution(loaded, "--classifier", dataset.resolution)
    return loaded


def load_ensemble(value: Path | None, dataset: "DatasetConfig") -> "LoadedModel":
    """The ensemble that an option means, else the newest or shipped one; ValueError unless it takes these images."""
    from viscoin.datasets import load_dataset
    from viscoin.models.files import find_model, load_model

    loaded = load_model(find_model("viscoin", value, dataset.name), "viscoin")
    check_resolution(loaded, "--viscoin-pickle-path", dataset.resolution)
    check_classes(loaded, "--viscoin-pickle-path", load_dataset(dataset.name, "validation", dataset))
    return loaded


def parse_indices(values: Sequence[str] | None, option: str, count: int, what: str) -> list[int] | None:
    """Indices of a repeatable, comma-separated option; None when it was not given.

    Raises:
        ValueError: not a number, or outside [0, count).
    """
    if not values:
        return None
    indices = []
    for text in (part.strip() for value in values for part in value.split(",")):
        if not text.lstrip("-").isdigit():
            raise ValueError(f"{option} {text!r}: expected numbers from 0 to {count - 1}, separated by commas")
        if not 0 <= int(text) < count:
            raise ValueError(f"{option} {text}: out of range, there are {count} {what}, counted from 0 to {count - 1}")
        indices.append(int(text))
    return indices


def choose_images(values: Sequence[str] | None, dataset: "ImageDataset", count: int, seed: int) -> list[int]:
    """The images of `--image-indices`, or some drawn at random by the seed."""
    import numpy as np

    given = parse_indices(values, "--image-indices", len(dataset), f"{dataset.split} images")
    if given is not None:
        return given
    drawn = np.random.default_rng(seed).choice(len(dataset), size=min(count, len(dataset)), replace=False)
    return sorted(int(i) for i in drawn)


@dataclass
class Results:
    """A folder that takes the figures and numbers of one command."""

    folder: Path

    def figures(self, figures: Mapping[str, "Figure"], show: bool) -> None:
        """Save every figure as PNG, say where, and open windows if wanted."""
        from viscoin.plotting.style import save_figure

        for name, figure in figures.items():
            typer.echo(save_figure(figure, self.folder / f"{name}.png"))
        if show:
            show_figures(list(figures.values()))

    def text(self, name: str, content: str) -> None:
        """Write a text file and say where."""
        path = self.folder / name
        path.write_text(content, encoding="utf-8")
        typer.echo(path)

    def numbers(self, trial: Trial, values: Mapping[str, Any]) -> None:
        """Write results.json, with the model and the data that were measured, and say where."""
        from viscoin.files import atomic_path

        header = {"model": str(trial.path), "dataset": trial.config.name, "split": trial.images.split}
        path = self.folder / "results.json"
        with atomic_path(path) as partial:
            partial.write_text(json.dumps(without_nan({**header, **values}), indent=2) + "\n")
        typer.echo(path)


@contextmanager
def results_folder(command: str, dataset: str, out: Path | None) -> Iterator[Results]:
    """The folder for the results of a command, by default `runs/<dataset>-<command>-<time>`; none after a failure.

    Raises:
        ValueError: it cannot be written.
    """
    folder = out or Path("runs") / f"{Path(dataset).name}-{command}-{datetime.now():%Y%m%d-%H%M%S}"
    existed = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {folder}: cannot write there ({error.strerror}); choose another folder") from error
    try:
        yield Results(folder)
    except BaseException:
        if not existed and not any(folder.iterdir()):
            folder.rmdir()
        raise


def without_nan(values: Any) -> Any:
    """The same with None for every NaN, which JSON does not know."""
    if isinstance(values, Mapping):
        return {key: without_nan(value) for key, value in values.items()}
    if isinstance(values, list):
        return [without_nan(value) for value in values]
    return None if isinstance(values, float) and values != values else values


def show_figures(figures: Sequence["Figure"]) -> None:
    """Open the figures in windows and wait until they are closed."""
    import matplotlib.pyplot as plt
    from matplotlib.backends import BackendFilter, backend_registry

    from viscoin.plotting.style import figure_bytes

    if plt.get_backend().lower() not in backend_registry.list_builtin(BackendFilter.INTERACTIVE):
        typer.echo("--show: no window can be opened here; look at the files instead", err=True)
        return
    for figure in figures:
        window = plt.figure(figsize=figure.get_size_inches())
        axes = window.add_axes((0, 0, 1, 1))
        axes.imshow(plt.imread(io.BytesIO(figure_bytes(figure))))
        axes.axis("off")
    plt.show()


def print_table(title: str, values: Mapping[str, Any]) -> None:
    """Two aligned columns, name and value; sections as dotted names, lists left out."""
    rows = {name: value for name, value in _flat(values) if not isinstance(value, list)}
    width = max(len(name) for name in rows)
    typer.echo(title)
    for name, value in rows.items():
        typer.echo(f"  {name:<{width}}  {f'{value:.4f}' if isinstance(value, float) else value}")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
