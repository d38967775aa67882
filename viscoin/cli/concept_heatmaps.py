"""`concept-heatmaps`: where in an image a concept is."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from viscoin.cli import common

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from viscoin.datasets import ImageDataset
    from viscoin.models.ensemble import VisCoIN

IMAGES, CONCEPTS = 6, 4
MOST_IMAGES, MOST_CONCEPTS = 6, 8  # that fit on a page

METHOD_HELP = "hirescam|gradcam|layercam|integrated-gradients|occlusion|grid|change; occlusion is slow."
STAGE_HELP = "Feature map for the first three methods: of f, 0 is the finest; psi; or all multiplied. Default: 0."


def concept_heatmaps(
    viscoin: common.ViscoinModel = None,
    dataset: common.DatasetName = None,
    dataset_path: common.DatasetPath = None,
    concept_top_k: common.ConceptTopK = None,
    concept_indices: common.ConceptIndices = None,
    image_indices: common.ImageIndices = None,
    image: Annotated[
        list[Path] | None,
        typer.Option("--image", metavar="FILE", help="Any image file instead of test images; repeatable."),
    ] = None,
    method: Annotated[str, typer.Option("--method", metavar="NAME", help=METHOD_HELP)] = "hirescam",
    stage: Annotated[str | None, typer.Option("--stage", metavar="0|1|2|psi|all", help=STAGE_HELP)] = None,
    part: Annotated[
        str | None, typer.Option("--part", metavar="NAME", help="Outline this part, where the dataset knows its mask.")
    ] = None,
    concept_names: Annotated[
        Path | None,
        typer.Option(
            "--concept-names", metavar="FILE", help="names.csv of concepts --names, to write beside the maps."
        ),
    ] = None,
    seed: common.Seed = 0,
    device: common.Device = "auto",
    out: common.Out = None,
    show: common.Show = False,
    skip_bad_files: common.SkipBadFiles = False,
) -> None:
    """Show where concepts are in images, by default the four most relevant of each."""
    if concept_top_k is not None and concept_indices:
        raise ValueError("give one of --concept-top-k and --concept-indices, not both")
    dataset, dataset_path = common.place_of_data(dataset, dataset_path)
    if image and (image_indices or dataset or part):
        raise ValueError("--image-indices, --dataset and --part are for test images; give them or --image, not both")
    subject = (
        _files(viscoin, image, device)
        if image
        else _test_images(viscoin, dataset, dataset_path, image_indices, part, seed, device, skip_bad_files)
    )
    import torch

    from viscoin.attribution import heatmaps
    from viscoin.plotting.heatmaps import heatmap_figure

    model = subject.model
    indices = common.parse_indices(concept_indices, "--concept-indices", model.n_concepts, "concepts")
    count = len(indices) if indices else concept_top_k or CONCEPTS
    if count > model.n_concepts:
        raise ValueError(f"--concept-top-k {count} is out of range; the ensemble has {model.n_concepts} concepts")
    if count > MOST_CONCEPTS:
        raise ValueError(f"{count} concepts do not fit on a page; give at most {MOST_CONCEPTS}")
    stages = None if stage is None else _parse_stage(stage)
    names = None if concept_names is None else _read_names(concept_names)
    with common.results_folder("concept-heatmaps", subject.dataset, out) as results:
        concepts = None if indices is None else torch.tensor([indices] * len(subject.images))
        found = heatmaps.concept_heatmaps(model, subject.images, concepts, count, stages, subject.device, method)
        figure = heatmap_figure(
            found, model.class_names, subject.labels, concept_names=names, outlines=subject.outlines
        )
        results.figures({"concept-heatmaps": figure}, show)
        rows = found.to_dict(model.class_names, None if subject.labels is None else subject.labels.tolist())
        named = [{"image": name, **row} for name, row in zip(subject.names, rows, strict=True)]
        numbers = {"model": str(subject.path), "dataset": subject.dataset, "method": found.method}
        content = {**numbers, "stages": list(found.stages), "images": named}
        results.text("results.json", json.dumps(common.without_nan(content), indent=2) + "\n")


@dataclass(frozen=True)
class _Subject:
    """An ensemble on its device, images (B, 3, H, W), and labels (B,) and outlines (B, H, W) where they are known."""

    model: "VisCoIN"
    path: Path
    device: "torch.device"
    dataset: str
    images: "Tensor"
    names: list[str]
    labels: "np.ndarray | None" = None
    outlines: "np.ndarray | None" = None

    def __post_init__(self) -> None:
        if len(self.images) > MOST_IMAGES:
            raise ValueError(f"{len(self.images)} images do not fit on a page; give at most {MOST_IMAGES}")


def _files(viscoin: Path | None, files: Sequence[Path], device: str) -> _Subject:
    """Images from files, which need no dataset."""
    from viscoin.analysis.projection import read_targets
    from viscoin.inference.devices import resolve_device
    from viscoin.models.files import find_model, load_model

    where = resolve_device(device)
    loaded = load_model(find_model("viscoin", viscoin, common.DEFAULT_DATASET), "viscoin")
    images, names = read_targets(files, loaded.model.classifier.resolution)
    dataset = loaded.recipe["dataset"]["name"]
    return _Subject(loaded.model.to(where), loaded.path, where, dataset, images, names)


def _test_images(
    viscoin: Path | None,
    dataset: str | None,
    dataset_path: str | None,
    image_indices: Sequence[str] | None,
    part: str | None,
    seed: int,
    device: str,
    skip_bad_files: bool,
) -> _Subject:
    trial = common.load_for_test(
        "viscoin", "--viscoin-pickle-path", viscoin, dataset, device, skip_bad_files, dataset_path
    )
    data = trial.images
    chosen = common.choose_images(image_indices, data, IMAGES, seed)
    batch, labels = data.batch(chosen)
    outlines = None if part is None else _outlines(data, chosen, part)
    names = [f"{Path(data.name).name}-{data.split}-{index}" for index in chosen]
    return _Subject(trial.model, trial.path, trial.device, trial.config.name, batch, names, labels.numpy(), outlines)


def _outlines(data: "ImageDataset", indices: Sequence[int], part: str) -> "np.ndarray":
    import numpy as np

    if part not in data.part_names:
        known = f"choose one of: {', '.join(data.part_names)}" if data.part_names else "it has no part masks"
        raise ValueError(f"--part {part!r}: dataset {data.name!r} does not know it; {known}")
    number = list(data.part_names).index(part)
    return np.stack([data.part_masks(index)[number] for index in indices])


def _parse_stage(text: str) -> tuple[int | str, ...]:
    from viscoin.attribution.targets import STAGES

    stages = {str(stage): (stage,) for stage in STAGES} | {"all": STAGES}
    if text not in stages:
        raise ValueError(f"--stage {text!r} is unknown; choose one of: {', '.join(stages)} (0 is the finest)")
    return stages[text]


def _read_names(path: Path) -> dict[int, str]:
    """Concept -> name, of the concepts that have one."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            table = csv.DictReader(file)
            if not {"concept", "name"} <= set(table.fieldnames or ()):
                raise ValueError("columns")
            return {int(row["concept"]): row["name"] for row in table if row["name"]}
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "expected the columns concept and name"
        raise ValueError(f"--concept-names {path}: cannot be read ({reason}); give names.csv of concepts") from error
