"""`amplify`: multiply the activation of chosen concepts and look at the new images."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from viscoin.cli import common

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from viscoin.analysis.amplification_curve import LambdaCurve
    from viscoin.models.ensemble import VisCoIN

IMAGES, SWEEP_IMAGES = 3, 6


def amplify(
    viscoin: common.ViscoinModel = None,
    dataset: common.DatasetName = None,
    dataset_path: common.DatasetPath = None,
    concept_threshold: common.ConceptThreshold = None,
    concept_top_k: common.ConceptTopK = None,
    concept_indices: common.ConceptIndices = None,
    image_indices: common.ImageIndices = None,
    image: Annotated[
        list[Path] | None,
        typer.Option("--image", metavar="FILE", help="Any image file instead of test images; repeatable."),
    ] = None,
    multipliers: Annotated[
        list[str] | None,
        typer.Option("--multipliers", metavar="X,Y", help="What to multiply with, 0 or more; default: 0,1,2,4."),
    ] = None,
    one_by_one: Annotated[
        bool, typer.Option("--one-by-one", help="A row for each concept, instead of all of an image together.")
    ] = False,
    control: Annotated[
        bool, typer.Option("--control/--no-control", help="Show the same for as many random concepts.")
    ] = True,
    curve: Annotated[
        bool, typer.Option("--curve", help="Draw what happens between the multipliers, and how far it can be trusted.")
    ] = False,
    gif: Annotated[Path | None, typer.Option("--gif", metavar="FILE", help="Write a smooth sweep as GIF.")] = None,
    mp4: Annotated[Path | None, typer.Option("--mp4", metavar="FILE", help="Write a smooth sweep as video.")] = None,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="FOLDER", help="Write the single images, with a table.")
    ] = None,
    batch_size: common.TestBatchSize = 64,
    seed: common.Seed = 0,
    device: common.Device = "auto",
    out: common.Out = None,
    show: common.Show = False,
    skip_bad_files: common.SkipBadFiles = False,
) -> None:
    """Amplify concepts: give a threshold, a top k or their indices."""
    factors = _parse_multipliers(multipliers)
    if image and image_indices:
        raise ValueError("--image-indices chooses test images of a dataset; give it or --image files, not both")
    _check_files(gif, mp4)
    dataset, dataset_path = common.place_of_data(dataset, dataset_path)
    if image and dataset is None and not curve:
        subject = _load_alone(viscoin, device)
    else:
        subject = _load_with_data(viscoin, dataset, dataset_path, device, skip_bad_files)
    from viscoin.analysis import amplification
    from viscoin.plotting.amplification import MOST_FACTORS, amplification_figure, curve_figure

    if len(factors) > MOST_FACTORS:
        raise ValueError(f"--multipliers: {len(factors)} do not fit on a page; give at most {MOST_FACTORS}")
    model, where = subject.model, subject.device
    indices = common.parse_indices(concept_indices, "--concept-indices", model.n_concepts, "concepts")
    batch, labels, names = _read_images(subject, image, image_indices, seed)
    with common.results_folder("amplify", subject.dataset, out) as results:
        relevance = amplification.image_relevance(model, batch, where)
        selection = amplification.select_concepts(relevance, concept_threshold, concept_top_k, indices)
        if one_by_one:
            rows, concepts = selection.nonzero(as_tuple=True)
            if not len(rows):
                raise ValueError("--one-by-one: no concept is chosen in any image; choose by a lower threshold")
            names = [f"{names[row]}-concept-{concept}" for row, concept in zip(rows.tolist(), concepts.tolist())]
            labels = None if labels is None else labels[rows.numpy()]
            batch, selection = amplification.one_by_one(batch, selection)
        selections = {"chosen": selection}
        if control:
            phi = amplification.image_activations(model, batch, where)
            selections["random"] = amplification.random_selection(phi, selection, seed)
        found = {
            kind: amplification.amplify_images(model, batch, chosen, factors, where, batch_size)
            for kind, chosen in selections.items()
        }
        figures = {
            "amplification": amplification_figure(
                found["chosen"], model.class_names, labels, control=found.get("random")
            )
        }
        numbers: dict[str, Any] = {"seed": seed, "multipliers": factors, "images": names}
        if labels is not None:
            numbers["labels"] = [model.class_names[label] for label in labels]
        numbers |= {kind: result.to_dict(model.class_names) for kind, result in found.items()}
        if curve:
            curves = _curves(subject, batch, selections, max(factors), batch_size, seed)
            figures["amplification-curve"] = curve_figure(curves["chosen"], curves.get("random"))
            numbers["curve"] = {kind: one.to_dict() for kind, one in curves.items()}
        results.figures(figures, show)
        header = {"model": str(subject.path), "dataset": subject.dataset}
        results.text("results.json", json.dumps(common.without_nan({**header, **numbers}), indent=2) + "\n")
        if export is not None:
            from viscoin.analysis.amplification_files import export_images

            typer.echo(export_images(export, found, names, model.class_names, labels))
        if gif is not None or mp4 is not None:
            _sweep(subject, batch, selection, max(factors), gif, mp4)


@dataclass(frozen=True)
class _Subject:
    """An ensemble on its device, and the data it belongs to where they are needed."""

    model: "VisCoIN"
    path: Path
    device: "torch.device"
    dataset: str
    trial: common.Trial | None = None


def _load_alone(viscoin: Path | None, device: str) -> _Subject:
    """Images from files need no dataset."""
    from viscoin.inference.devices import resolve_device
    from viscoin.models.files import find_model, load_model

    where = resolve_device(device)
    loaded = load_model(find_model("viscoin", viscoin, common.DEFAULT_DATASET), "viscoin")
    return _Subject(loaded.model.to(where), loaded.path, where, loaded.recipe["dataset"]["name"])


def _load_with_data(
    viscoin: Path | None, dataset: str | None, dataset_path: str | None, device: str, skip_bad_files: bool
) -> _Subject:
    trial = common.load_for_test(
        "viscoin", "--viscoin-pickle-path", viscoin, dataset, device, skip_bad_files, dataset_path
    )
    return _Subject(trial.model, trial.path, trial.device, trial.config.name, trial)


def _read_images(
    subject: _Subject, files: Sequence[Path] | None, indices: Sequence[str] | None, seed: int
) -> tuple["Tensor", "np.ndarray | None", list[str]]:
    """Images (B, 3, H, W) in [-1, 1], labels (B,) if they are known, and a name for each."""
    if files:
        from viscoin.analysis.projection import read_targets

        images, names = read_targets(files, subject.model.classifier.resolution)
        return images, None, names
    if subject.trial is None:
        raise ValueError("there are no images; give --image or --dataset")
    data = subject.trial.images
    chosen = list(dict.fromkeys(common.choose_images(indices, data, IMAGES, seed)))
    images, labels = data.batch(chosen)
    return images, labels.numpy(), [f"{Path(data.name).name}-{data.split}-{index}" for index in chosen]


def _parse_multipliers(values: Sequence[str] | None) -> list[float]:
    """Multipliers of a repeatable, comma-separated option.

    Raises:
        ValueError: not a number, negative, or not finite.
    """
    if not values:
        return [0.0, 1.0, 2.0, 4.0]
    factors = []
    for text in (part.strip() for value in values for part in value.split(",")):
        try:
            factor = float(text)
        except ValueError:
            factor = math.nan
        if not 0 <= factor < math.inf:
            raise ValueError(f"--multipliers {text!r}: expected numbers of 0 or more, separated by commas, as in 0,1,2")
        factors.append(factor)
    return list(dict.fromkeys(factors))


def _check_files(gif: Path | None, mp4: Path | None) -> None:
    """Complain of bad file names before anything is computed."""
    from viscoin.plotting.sweep import check_suffix

    for option, path in (("--gif", gif), ("--mp4", mp4)):
        if path is not None:
            check_suffix(path, option, option.replace("--", "."))


def _curves(
    subject: _Subject, images: "Tensor", selections: Mapping[str, "Tensor"], largest: float, batch_size: int, seed: int
) -> dict[str, "LambdaCurve"]:
    """The lambda curve of each kind of selection that names a concept; says how far the chosen ones are reliable."""
    from viscoin.analysis import amplification_curve
    from viscoin.datasets import load_dataset

    if subject.trial is None:
        raise ValueError("--curve needs the dataset of the model; give --dataset")
    config, model, device = subject.trial.config, subject.model, subject.device
    validation = load_dataset(config.name, "validation", config)
    reference = amplification_curve.usual_reconstructions(model, validation, device, batch_size, seed)
    factors = amplification_curve.curve_factors(largest)
    curves = {
        kind: amplification_curve.lambda_curve(model, images, selection, reference, factors, device, batch_size)
        for kind, selection in selections.items()
        if kind == "chosen" or selection.any()
    }
    span = curves["chosen"].reliable_range
    typer.echo(f"reliable multipliers: {'none' if span is None else f'{span[0]:g} to {span[1]:g}'}")
    return curves


def _sweep(
    subject: _Subject, images: "Tensor", selection: "Tensor", largest: float, gif: Path | None, mp4: Path | None
) -> None:
    from viscoin.analysis.amplification import amplify_images
    from viscoin.plotting import sweep

    part = slice(SWEEP_IMAGES)
    if len(images) > SWEEP_IMAGES:
        typer.echo(f"the sweep shows the first {SWEEP_IMAGES} of {len(images)} rows", err=True)
    factors = sweep.sweep_factors(largest)
    frames = sweep.sweep_frames(
        amplify_images(subject.model, images[part], selection[part], factors, device=subject.device)
    )
    for path, save in ((gif, sweep.save_gif), (mp4, sweep.save_mp4)):
        if path is not None:
            typer.echo(save(path, frames))
