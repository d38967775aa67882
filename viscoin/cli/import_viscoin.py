"""`import-viscoin`: a model file from a checkpoint of older VisCoIN code, without running anything in it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from viscoin.cli.results import print_table

if TYPE_CHECKING:
    from viscoin.config import Recipe


def import_viscoin(
    source: Annotated[Path, typer.Argument(metavar="OLD", help="The older checkpoint (.pth or .pkl).")],
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="The model file to write (.safetensors).")],
    classifier: Annotated[
        Path | None,
        typer.Option("--classifier", metavar="MODEL", help="The classifier f, for a checkpoint that holds none."),
    ] = None,
    classes: Annotated[
        Path | None, typer.Option("--classes", metavar="FILE", help="Names of the classes, one a line, in order.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset", metavar="NAME|FOLDER|ZIP", help="Dataset to note; names the classes where it is here."
        ),
    ] = None,
    coarse_layer: Annotated[
        int | None, typer.Option("--coarse-layer", min=0, metavar="N", help="First style of concepts; default: 2.")
    ] = None,
    mid_layer: Annotated[
        int | None,
        typer.Option("--mid-layer", min=0, metavar="N", help="Last style of concepts; default: 10, but not the last."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output file.")] = False,
) -> None:
    """Convert a checkpoint of older VisCoIN code to a model file; nothing in it runs.

    It must hold state dicts of concept_extractor, explainer and gan, and of a classifier in the names of transformers.
    """
    if output.suffix != ".safetensors":
        raise ValueError(f"--output {output}: a model file must end in .safetensors")
    if output.exists() and not force:
        raise ValueError(f"--output {output} exists; pass --force to overwrite it or choose another name")
    from viscoin.legacy.checkpoint import read_checkpoint
    from viscoin.legacy.ensemble import build_ensemble, count_classes
    from viscoin.models.ensemble import VisCoIN
    from viscoin.models.files import find_model, load_model, save_model

    checkpoint = read_checkpoint(source)
    count = count_classes(checkpoint)
    given = None
    if classifier is not None:
        if "classifier" in checkpoint.parts:
            raise ValueError(f"--classifier {classifier}: {source} holds a classifier already; leave it out")
        given = load_model(find_model("classifier", classifier, ""), "classifier")
    names, noted = _class_names(count, classes, dataset, given.class_names if given else None)
    model = build_ensemble(checkpoint, names, given.model if given else None, coarse_layer, mid_layer)
    whole = isinstance(model, VisCoIN)
    name = dataset or (given.recipe["dataset"]["name"] if given else source.stem)
    recipe = _recipe(model.architecture if whole else model.architecture["architecture"], name, count)
    save_model(output, model, "viscoin" if whole else "parts", recipe=recipe, class_names=names, origin=source.name)
    print_table(str(source), _facts(recipe, model, noted, checkpoint.dropped))
    if not whole:
        typer.echo(f"{source} holds no classifier, so this is no whole ensemble; --classifier MODEL adds one", err=True)
    typer.echo(output)


def _class_names(
    count: int, classes: Path | None, dataset: str | None, given: list[str] | None
) -> tuple[list[str], str]:
    """Names for that many classes, and where they come from."""
    if classes is not None:
        try:
            names = [line.strip() for line in classes.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--classes {classes}: cannot be read as text ({error})") from error
        option = f"--classes {classes}"
    elif given is not None:
        names, option = given, "--classifier"
    elif dataset is not None and (found := _names_of_dataset(dataset, count)):
        names, option = found, f"--dataset {dataset}"
    else:
        return [f"class {i}" for i in range(count)], "none in the file: class 0, class 1, …; --classes FILE names them"
    if len(names) != count or len(set(names)) != count:
        raise ValueError(f"{option} has {len(set(names))} different names; the checkpoint knows {count} classes")
    return names, f"from {option}"


def _names_of_dataset(dataset: str, count: int) -> list[str] | None:
    from viscoin.config import DatasetConfig
    from viscoin.datasets import DRAWN, load_dataset

    if dataset not in DRAWN and not Path(dataset).exists():  # no download for the sake of names
        return None
    config = DatasetConfig(name=dataset, resolution=16, classes=max(2, count), test=1)
    return list(load_dataset(dataset, "test", config).class_names)


def _recipe(architecture: dict[str, Any], dataset: str, count: int) -> "Recipe":
    """A recipe with the ensemble's own settings, as far as recipes know them, and the defaults for the rest."""
    from viscoin.config import GanConfig, parse_recipe
    from viscoin.datasets import DRAWN

    generated = {"classes": count} if dataset in DRAWN else {}
    synthesis = architecture["generator"]["synthesis"]
    sections: dict[str, Any] = {
        "dataset": {"name": dataset, "resolution": synthesis["img_resolution"], **generated},
        "gan": {key: value for key, value in synthesis.items() if key in GanConfig.model_fields},
        "viscoin": {key: architecture[key] for key in ("n_concepts", "latent_channels", "dropout", "weight_norm")}
        | {key: architecture["generator"][key] for key in ("coarse_layer", "mid_layer")},
    }
    if "classifier" in architecture:
        sections["classifier"] = {"backbone": architecture["classifier"]["backbone"]}
    return parse_recipe(sections, dataset)


def _facts(recipe: "Recipe", model: Any, names: str, dropped: tuple[str, ...]) -> dict[str, Any]:
    count = sum(parameter.numel() for parameter in model.parameters())
    v, whole = recipe.viscoin, hasattr(model, "classifier")
    return {
        "classifier": recipe.classifier.backbone if whole else "none",
        "classes": model.explainer.n_classes,
        "class names": names,
        "concepts": v.n_concepts,
        "images": f"{recipe.dataset.resolution} px, as the generator draws them",
        **({"normalisation": "mean and deviation of timm's weights, inside the classifier"} if whole else {}),
        "styles of concepts": f"{v.coarse_layer} to {v.mid_layer} of {model.generator.mapping.num_ws}, not in the file",
        "parameters": f"{count / 1e6:.1f} million",
        "left out": ", ".join(dropped) or "none",
    }
