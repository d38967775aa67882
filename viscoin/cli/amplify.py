"""`amplify`: multiply the activation of chosen concepts and look at the new images."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from viscoin.cli import options
from viscoin.cli.output import echo
from viscoin.cli.results import results_folder
from viscoin.errors import Refused

if TYPE_CHECKING:
    from viscoin.analysis.amplification_study import AmplificationStudy

IMAGES = 3


def amplify(
    viscoin: options.ViscoinModel = None,
    dataset: options.DatasetName = None,
    dataset_path: options.DatasetPath = None,
    concept_threshold: options.ConceptThreshold = None,
    concept_top_k: options.ConceptTopK = None,
    concept_indices: options.ConceptIndices = None,
    image_indices: options.ImageIndices = None,
    image: options.Images = None,
    multipliers: Annotated[
        list[str] | None,
        typer.Option("--multipliers", metavar="X,Y", help="Multipliers, 0 or more; default: 0,1,2,4."),
    ] = None,
    one_by_one: Annotated[
        bool, typer.Option("--one-by-one", help="A row for each concept, instead of all of an image together.")
    ] = False,
    control: Annotated[
        bool, typer.Option("--control/--no-control", help="Show the same number of random concepts as well.")
    ] = True,
    curve: Annotated[
        bool, typer.Option("--curve", help="Plot the effect between the multipliers, and its reliable range.")
    ] = False,
    gif: Annotated[Path | None, typer.Option("--gif", metavar="FILE", help="Write a smooth sweep as GIF.")] = None,
    mp4: Annotated[Path | None, typer.Option("--mp4", metavar="FILE", help="Write a smooth sweep as video.")] = None,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="FOLDER", help="Write the single images, with a table.")
    ] = None,
    batch_size: options.TestBatchSize = 64,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    out: options.Out = None,
    show: options.Show = False,
    skip_bad_files: options.SkipBadFiles = False,
) -> None:
    """Turn concepts down or up and generate the images.

    Choose concepts by a threshold, a top k or their indices.
    """
    factors = _parse_multipliers(multipliers)
    from viscoin.analysis.amplification_study import Choice, study_amplification
    from viscoin.inference.loading import load_pictures
    from viscoin.plotting.amplification import MOST_FACTORS, amplification_figure, curve_figure
    from viscoin.plotting.sweep import check_suffix

    if len(factors) > MOST_FACTORS:
        raise Refused("multipliers", None, f"{len(factors)} do not fit on a page", f"give at most {MOST_FACTORS}")
    for parameter, path in (("gif", gif), ("mp4", mp4)):
        if path is not None:
            check_suffix(path, parameter, f".{parameter}")
    subject, pictures = load_pictures(
        "viscoin", viscoin, image, dataset, dataset_path, options.parse_indices(image_indices, "image_indices"), IMAGES,
        device=device, seed=seed, skip_bad_files=skip_bad_files,
    )  # fmt: skip
    names = subject.model.class_names
    indices = options.parse_indices(concept_indices, "concept_indices")
    with results_folder("amplify", subject.config.name, out) as results:
        study = study_amplification(
            subject, pictures, Choice(concept_threshold, concept_top_k, indices), factors,
            one_by_one=one_by_one, control=control, curve=curve, batch_size=batch_size, seed=seed,
        )  # fmt: skip
        found, labels = study.results, study.pictures.labels
        drawn = amplification_figure(
            found["chosen"], names, labels, control=found.get("random"), image_names=study.pictures.names
        )
        figures = {"amplification": drawn}
        if curve:
            span = study.curves["chosen"].reliable_range
            echo(f"reliable multipliers: {'none' if span is None else f'{span[0]:g} to {span[1]:g}'}")
            figures["amplification-curve"] = curve_figure(study.curves["chosen"], study.curves.get("random"))
        results.figures(figures, show)
        header = {"model": str(subject.path), "dataset": subject.config.name}
        results.json("results.json", {**header, **study.to_dict()})
        if export is not None:
            from viscoin.analysis.amplification_files import export_images

            echo(export_images(export, found, study.pictures.names, names, labels))
        _sweep(study, max(factors), gif, mp4)


def _sweep(study: "AmplificationStudy", largest: float, gif: Path | None, mp4: Path | None) -> None:
    """Write the moving pictures that were asked for."""
    from viscoin.analysis.amplification_study import SWEEP_ROWS
    from viscoin.plotting import sweep

    if gif is None and mp4 is None:
        return
    if (rows := len(study.pictures.images)) > SWEEP_ROWS:
        echo(f"the sweep shows the first {SWEEP_ROWS} of {rows} rows", err=True)
    frames = sweep.sweep_frames(study.sweep(sweep.sweep_factors(largest)))
    for path, save in ((gif, sweep.save_gif), (mp4, sweep.save_mp4)):
        if path is not None:
            echo(save(path, frames))


def _parse_multipliers(values: Sequence[str] | None) -> list[float]:
    """Multipliers of a repeatable, comma-separated option."""
    factors = []
    for text in options.split_list(values or ["0,1,2,4"]):
        try:
            factor = float(text)
        except ValueError:
            factor = math.nan
        if not 0 <= factor < math.inf:
            raise Refused("multipliers", text, "expected numbers of 0 or more, separated by commas, as in 0,1,2")
        factors.append(factor)
    return list(dict.fromkeys(factors))
