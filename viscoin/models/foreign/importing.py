"""Model files of classifiers that others have trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from viscoin.config import Recipe, parse_recipe
from viscoin.errors import Refused, reason_of
from viscoin.models.classifier import Classifier
from viscoin.models.files import save_model
from viscoin.models.foreign.class_names import IMAGENET, find_class_names
from viscoin.models.foreign.fitting import Fitted, fit_checkpoint
from viscoin.models.foreign.hub import fetch_checkpoint, is_hub_name
from viscoin.models.foreign.module import WRAP, check_equal, load_module
from viscoin.models.foreign.pipeline import FoundPipeline, Pipeline, find_pipeline
from viscoin.models.foreign.reading import Checkpoint, of_state, read_checkpoint
from viscoin.models.importing import Imported, check_model_output
from viscoin.models.preprocessing import RESAMPLINGS


def import_classifier(
    checkpoint: str | None,
    output: Path,
    backbone: str | None = None,
    classes: str | None = None,
    *,
    module: str | None = None,
    by_order: bool = False,
    preprocessing: Pipeline = Pipeline(),  # noqa: B008  it is frozen
    resolution: int | None = None,
    dataset: str | None = None,
    options: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Imported:
    """Write a checkpoint of timm, torchvision or transformers as a model file of kind "classifier".

    Args:
        checkpoint: see `read_checkpoint`; or a name of timm's hub, which is downloaded, as in "resnet18.a1_in1k".
            None: the weights come from `module`.
        output: the model file.
        backbone, by_order, options: see `fit_checkpoint`.
        classes: see `find_class_names`.
        module: "FILE.py:function" that returns the network, which must be one of timm's; its code is run.
        preprocessing: of images, as far as it is to differ from what the checkpoint, or else its library, says.
        resolution: side of the images that the classifier takes, which it resizes to its own input size; None: that
            size itself.
        dataset: name, folder or zip to note in the file as what it was trained on.
        force: overwrite an output that exists.

    Raises:
        ValueError: arguments or files that cannot be used, or a checkpoint of no known backbone, or of another one.
    """
    check_model_output("output", output, force)
    found, network = _source(checkpoint, module)
    try:
        fitted = fit_checkpoint(found, backbone, by_order, options)
    except Refused as error:
        if module is None:
            raise
        remedy = f"if timm has this network, name its `backbone`; if not, {WRAP}"
        raise Refused("module", module, error.reason, remedy) from error
    names = find_class_names(classes, found.config, fitted.n_classes)
    pipeline = find_pipeline(found, fitted, preprocessing)
    model = build(found, fitted, pipeline.pipeline, resolution, options)
    if module is not None and network is not None:
        check_equal(module, network, model)
    name = dataset or (IMAGENET if classes == IMAGENET else found.path.stem)
    recipe = _recipe(model, pipeline.pipeline, name)
    origin = f"{found.path.name}, imported as {fitted.backbone} of timm"
    save_model(output, model, "classifier", recipe=recipe, class_names=names, origin=origin)
    return Imported(output, "classifier", str(found.path), _facts(found, fitted, pipeline, model, recipe))


def _source(checkpoint: str | None, module: str | None) -> tuple[Checkpoint, nn.Module | None]:
    """The weights, and the network that they are of where it is in memory."""
    if checkpoint is None and module is None:
        raise Refused("checkpoint", None, "there is nothing to import", "give a file, a name of the hub or `module`")
    if checkpoint is not None and module is not None:
        raise Refused("module", module, "returns a network with its weights", "leave the checkpoint out")
    if module is not None:
        network = load_module(module)
        return of_state(Path(module), network.state_dict()), network
    name = str(checkpoint)
    return (fetch_checkpoint(name) if is_hub_name(name) else read_checkpoint(Path(name))), None


def build(
    checkpoint: Checkpoint,
    fitted: Fitted,
    pipeline: Pipeline,
    resolution: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Classifier:
    """The classifier of a checkpoint, in eval mode.

    Raises:
        Refused: its weights do not fit the backbone at this size.
    """
    side = pipeline.input_size or 224
    interpolation = pipeline.interpolation if pipeline.interpolation in RESAMPLINGS else None
    model = Classifier(
        fitted.backbone, fitted.n_classes, resolution or side, input_size=side, mean=pipeline.mean,
        std=pipeline.std, interpolation=interpolation, norm_eps=fitted.norm_eps, options=options,
    )  # fmt: skip
    try:
        model.model.load_state_dict(dict(fitted.tensors))
    except RuntimeError as error:
        raise Refused("checkpoint", checkpoint.path, f"does not fit {fitted.backbone}: {reason_of(error)}") from error
    broken = [name for name, tensor in fitted.tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise Refused("checkpoint", checkpoint.path, f"{len(broken)} tensors are not finite, first {broken[0]}")
    return model.eval()


def _recipe(model: Classifier, pipeline: Pipeline, dataset: str) -> Recipe:
    """How files are prepared for it, and its backbone; the rest as recipes have it."""
    data = {
        "name": dataset, "resolution": model.resolution, "fit": pipeline.fit, "crop_share": pipeline.crop_share,
        "interpolation": pipeline.interpolation,
    }  # fmt: skip
    network = {"backbone": model.architecture["backbone"], "pretrained": False, "input_size": model.input_size}
    return parse_recipe({"dataset": data, "classifier": network}, dataset)


def _facts(
    checkpoint: Checkpoint, fitted: Fitted, found: FoundPipeline, model: Classifier, recipe: Recipe
) -> dict[str, Any]:
    pipeline, count = found.pipeline, sum(parameter.numel() for parameter in model.parameters())
    names = fitted.dialect.title if fitted.dialect else "others, taken by their order"
    share = f", {pipeline.crop_share:.4g} of the side" if pipeline.crop_share not in (None, 1) else ""
    size = f"{model.input_size} px"
    if model.resolution != model.input_size:
        size += f", resized from images of {model.resolution} px"
    return {
        "backbone": fitted.backbone,
        **({"fits as well": ", ".join(fitted.also)} if fitted.also else {}),
        "names": names + (f", in {checkpoint.place!r}" if checkpoint.place else ""),
        "classes": fitted.n_classes,
        "parameters": f"{count / 1e6:.1f} million",
        "input": size,
        "mean": ", ".join(f"{value:.4g}" for value in model.mean),
        "std": ", ".join(f"{value:.4g}" for value in model.std),
        "files": f"{recipe.dataset.fit}{share}, {recipe.dataset.interpolation}",
        "taken from": found.source,
    }
