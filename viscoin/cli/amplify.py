"""`amplify`: multiply, set or swap concepts and look at the new images."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from viscoin.cli import options
from viscoin.cli.output import echo
from viscoin.cli.results import results_folder
from viscoin.errors import Refused

if TYPE_CHECKING:
    from viscoin.analysis.amplification_study import AmplificationStudy
    from viscoin.analysis.surgery import Surgery
    from viscoin.cli.results import Results
    from viscoin.inference.loading import Pictures, Subject

IMAGES = 3


def amplify(
    viscoin: options.ViscoinModel = None,
    dataset: options.DatasetName = None,
    dataset_path: options.DatasetPath = None,
    class_map: options.ClassMap = None,
    concept_threshold: options.ConceptThreshold = None,
    concept_top_k: options.ConceptTopK = None,
    concept_indices: options.ConceptIndices = None,
    image_indices: options.ImageIndices = None,
    image: options.Images = None,
    multipliers: Annotated[
        list[str] | None,
        typer.Option("--multipliers", metavar="X,Y", help="Multipliers, 0 or more; default: 0,0.5,1,1.5,2."),
    ] = None,
    one_by_one: Annotated[
        bool, typer.Option("--one-by-one", help="A row for each concept or swap, instead of all of an image together.")
    ] = False,
    set_concept: Annotated[
        list[str] | None,
        typer.Option(
            "--set-concept",
            metavar="K=VALUE",
            help="Set a concept instead, 1 for what it usually is where it is there, 0 to remove it; repeatable.",
        ),
    ] = None,
    swap: Annotated[
        list[str] | None,
        typer.Option(
            "--swap",
            metavar="OFF:ON",
            help="Swap a concept for another instead, as far as can be read back; repeatable.",
        ),
    ] = None,
    concept_names: options.ConceptNames = None,
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
    """Turn concepts down, up or on, or swap them.

    Choose concepts to multiply by a threshold, a top k or their indices; --set-concept and --swap name theirs.
    """
    operating = bool(set_concept or swap)
    if operating:
        _check_alone(
            concept_threshold=concept_threshold, concept_top_k=concept_top_k, concept_indices=concept_indices,
            multipliers=multipliers, curve=curve or None, gif=gif, mp4=mp4, export=export,
        )  # fmt: skip
    factors = _parse_multipliers(multipliers)
    _check_figures(factors, gif, mp4)
    from viscoin.inference.loading import load_pictures
    from viscoin.naming.names import read_names

    subject, pictures = load_pictures(
        "viscoin", viscoin, image, dataset, dataset_path, options.parse_indices(image_indices, "image_indices"), IMAGES,
        device=device, seed=seed, skip_bad_files=skip_bad_files, class_map=class_map,
    )  # fmt: skip
    named = {} if concept_names is None else read_names(concept_names, subject.model.n_concepts)
    with results_folder("amplify", subject.config.name, out) as results:
        if operating:
            surgery = _parse_surgery(set_concept or [], swap or [], named)
            _operate(results, subject, pictures, surgery, named, one_by_one, batch_size, seed, show)
            return
        indices = options.parse_indices(concept_indices, "concept_indices")
        study = _multiply(
            results, subject, pictures, (concept_threshold, concept_top_k, indices), factors, named, show,
            one_by_one=one_by_one, control=control, curve=curve, batch_size=batch_size, seed=seed,
        )  # fmt: skip
        if export is not None:
            from viscoin.analysis.amplification_files import export_images

            class_names, labels = subject.model.class_names, study.pictures.labels
            echo(export_images(export, study.results, study.pictures.names, class_names, labels))
        _sweep(study, max(factors), gif, mp4)


def _multiply(
    results: "Results",
    subject: "Subject",
    pictures: "Pictures",
    choice: tuple[float | None, int | None, list[int] | None],
    factors: list[float],
    concept_names: dict[int, str],
    show: bool,
    **options: Any,
) -> "AmplificationStudy":
    """Amplify chosen concepts, and write figures and numbers."""
    from viscoin.analysis.amplification_study import Choice, study_amplification
    from viscoin.plotting.amplification import amplification_figure, curve_figure

    study = study_amplification(subject, pictures, Choice(*choice), factors, **options)
    found, labels = study.results, study.pictures.labels
    drawn = amplification_figure(
        found["chosen"], subject.model.class_names, labels, control=found.get("random"), concept_names=concept_names,
        image_names=study.pictures.names, unreliable=study.unreliable,
    )  # fmt: skip
    figures = {"amplification": drawn}
    if study.curves:
        span = study.curves["chosen"].reliable_range
        echo(f"reliable multipliers: {'none' if span is None else f'{span[0]:g} to {span[1]:g}'}")
        figures["amplification-curve"] = curve_figure(study.curves["chosen"], study.curves.get("random"))
    if study.warning:
        echo(f"warning: {study.warning}", err=True)
    results.figures(figures, show)
    results.json("results.json", {"model": str(subject.path), "dataset": subject.config.name, **study.to_dict()})
    return study


def _operate(
    results: "Results",
    subject: "Subject",
    pictures: "Pictures",
    surgery: "Surgery",
    concept_names: dict[int, str],
    one_by_one: bool,
    batch_size: int,
    seed: int,
    show: bool,
) -> None:
    """Set and swap concepts, and write figure and numbers."""
    from viscoin.analysis.surgery import study_surgery
    from viscoin.plotting.surgery import surgery_figure

    study = study_surgery(subject, pictures, surgery, one_by_one=one_by_one, batch_size=batch_size, seed=seed)
    figure = surgery_figure(
        study.result, subject.model.class_names, pictures.labels, concept_names=concept_names,
        image_names=pictures.names,
    )  # fmt: skip
    results.figures({"surgery": figure}, show)
    results.json("results.json", {"model": str(subject.path), "dataset": subject.config.name, **study.to_dict()})


def _check_alone(**others: Any) -> None:
    """Raise Refused for options that say nothing of concepts that are set or swapped."""
    for name, value in others.items():
        if value is not None:
            raise Refused(name, None, "is for multiplied concepts", "leave it out, or `set_concept` and `swap`")


def _check_figures(factors: Sequence[float], gif: Path | None, mp4: Path | None) -> None:
    from viscoin.plotting.amplification import MOST_FACTORS
    from viscoin.plotting.sweep import check_suffix

    if len(factors) > MOST_FACTORS:
        raise Refused("multipliers", None, f"{len(factors)} do not fit on a page", f"give at most {MOST_FACTORS}")
    for parameter, path in (("gif", gif), ("mp4", mp4)):
        if path is not None:
            check_suffix(path, parameter, f".{parameter}")


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
    from viscoin.analysis.amplification import FACTORS

    if values is None:
        return list(FACTORS)
    factors = []
    for text in options.split_list(values):
        try:
            factor = float(text)
        except ValueError:
            factor = math.nan
        if not 0 <= factor < math.inf:
            raise Refused("multipliers", text, "expected numbers of 0 or more, separated by commas, as in 0,1,2")
        factors.append(factor)
    return list(dict.fromkeys(factors))


def _parse_surgery(values: Sequence[str], swaps: Sequence[str], names: Mapping[int, str]) -> "Surgery":
    """What is asked for by K=VALUE and OFF:ON, concepts by number or name."""
    from viscoin.analysis.surgery import Surgery

    wanted: dict[int, float] = {}
    for text in options.split_list(values):
        concept, sign, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not sign or not 0 <= value < math.inf:
            reason = "expected a concept and a value of 0 or more, as in 12=1, where 1 is its 90 % quantile"
            raise Refused("set_concept", text, reason)
        k = _concept(concept, names, "set_concept")
        if k in wanted:
            raise Refused("set_concept", text, f"concept {k} is given twice", "give it once")
        wanted[k] = value
    pairs = []
    for text in options.split_list(swaps):
        parts = text.split(":")
        if len(parts) != 2:
            raise Refused("swap", text, "expected the concept to turn off and the one to turn on, as in 3:12")
        pairs.append((_concept(parts[0], names, "swap"), _concept(parts[1], names, "swap")))
    return Surgery(wanted, pairs)


def _concept(text: str, names: Mapping[int, str], parameter: str) -> int:
    """The concept of a number, or of a name that one concept has."""
    text = text.strip()
    if text.isdecimal():
        return int(text)
    found = [k for k, name in names.items() if name == text]
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(map(str, found))
        raise Refused(parameter, text, f"concepts {listed} have this name", "give the number of one")
    known = "no concept has this name" if names else "it is no number, and names need `concept_names`"
    raise Refused(parameter, text, known, "give the number of a concept, from 0")
