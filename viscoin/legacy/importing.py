"""Model files from checkpoints of older VisCoIN code, without running anything in them."""

from pathlib import Path
from typing import Any

from viscoin.config import DatasetConfig, GanConfig, Recipe, parse_recipe
from viscoin.datasets import DRAWN, load_dataset, locate_dataset
from viscoin.errors import Refused
from viscoin.legacy.checkpoint import read_checkpoint
from viscoin.legacy.ensemble import build_ensemble, count_classes
from viscoin.models.ensemble import VisCoIN
from viscoin.models.files import LoadedModel, find_model, load_model, save_model
from viscoin.models.importing import Imported, check_model_output
from viscoin.texts import read_lines


def import_checkpoint(
    source: Path,
    output: Path,
    classifier: Path | None = None,
    classes: Path | None = None,
    dataset: str | None = None,
    coarse_layer: int | None = None,
    mid_layer: int | None = None,
    force: bool = False,
) -> Imported:
    """Convert a checkpoint to a model file of kind "viscoin", or "parts" where there is no classifier.

    Args:
        source: .pth or .pkl with state dicts of concept_extractor, explainer and gan, perhaps of a classifier.
        classifier: the classifier f, for a checkpoint that holds none.
        classes: names of the classes, one a line, in order.
        dataset: name, folder or zip to note in the file; names the classes where no download is needed for that.
        coarse_layer, mid_layer: first and last style that concepts control; see `build_ensemble`.
        force: overwrite an output that exists.

    Raises:
        ValueError: arguments or files that cannot be used, or weights that do not fit.
    """
    check_model_output("output", output, force)
    dataset, place = locate_dataset(dataset, None)
    checkpoint = read_checkpoint(source)
    given = None
    if classifier is not None:
        if "classifier" in checkpoint.parts:
            raise Refused("classifier", classifier, f"{source} holds a classifier already", "omit it")
        given = load_model(find_model("classifier", classifier, ""), "classifier")
    count = count_classes(checkpoint)
    names, origin = _class_names(count, classes, dataset, place, given)
    model = build_ensemble(checkpoint, names, given.model if given else None, coarse_layer, mid_layer)
    whole = isinstance(model, VisCoIN)
    name = dataset or (given.recipe["dataset"]["name"] if given else source.stem)
    recipe = _recipe(model.architecture if whole else model.architecture["architecture"], name, count)
    kind = "viscoin" if whole else "parts"
    save_model(output, model, kind, recipe=recipe, class_names=names, origin=source.name)
    return Imported(output, kind, str(source), _facts(recipe, model, origin, checkpoint.dropped))


def _class_names(
    count: int, classes: Path | None, dataset: str | None, place: str | None, classifier: LoadedModel | None
) -> tuple[list[str], str]:
    """That many names, and where they come from."""
    if classes is not None:
        parameter, value, names = "classes", str(classes), _lines(classes)
    elif classifier is not None:
        parameter, value, names = "classifier", str(classifier.path), classifier.class_names
    elif dataset is not None and (found := _names_of_dataset(dataset, place, count)):
        parameter, value, names = "dataset", dataset, found
    else:
        return [f"class {i}" for i in range(count)], "none in the file: class 0, class 1, …"
    if len(names) != count or len(set(names)) != count:
        raise Refused(parameter, value, f"has {len(set(names))} different names; the checkpoint has {count} classes")
    return names, f"from {parameter} {value}"


def _lines(path: Path) -> list[str]:
    return [line for line in read_lines(path, "classes") if line]


def _names_of_dataset(dataset: str, place: str | None, count: int) -> list[str] | None:
    if dataset not in DRAWN and not Path(place or dataset).exists():  # no download for the sake of names
        return None
    config = DatasetConfig(name=dataset, path=place, resolution=16, classes=max(2, count), test=1)
    return list(load_dataset(dataset, "test", config).class_names)


def _recipe(architecture: dict[str, Any], dataset: str, count: int) -> Recipe:
    """A recipe with the ensemble's own settings, as far as recipes know them, and the defaults for the rest."""
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


def _facts(recipe: Recipe, model: Any, names: str, dropped: tuple[str, ...]) -> dict[str, Any]:
    count = sum(parameter.numel() for parameter in model.parameters())
    v, whole = recipe.viscoin, hasattr(model, "classifier")
    return {
        "classifier": recipe.classifier.backbone if whole else "none",
        "classes": model.explainer.n_classes,
        "class names": names,
        "concepts": v.n_concepts,
        "images": f"{recipe.dataset.resolution} px, as the generator draws them",
        **({"normalisation": "mean and std of timm's weights, inside the classifier"} if whole else {}),
        "styles of concepts": f"{v.coarse_layer} to {v.mid_layer} of {model.generator.mapping.num_ws}, not in the file",
        "parameters": f"{count / 1e6:.1f} million",
        "left out": ", ".join(dropped) or "none",
    }
