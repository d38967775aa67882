"""`explain`: one image, and all that can be said about what a classifier makes of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from viscoin.cli import options
from viscoin.cli.output import echo, json_alone, print_json
from viscoin.cli.results import Results, results_folder
from viscoin.errors import Refused

if TYPE_CHECKING:
    from viscoin.analysis.explanation import Explanation
    from viscoin.inference.loading import Subject

USUAL = 2  # test images, where none are named


def explain(
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="[IMAGE]...", help="Image files; default: test images.")
    ] = None,
    classifier: Annotated[
        Path | None, options.model_option("--classifier", "Classifier f alone, explained without concepts")
    ] = None,
    viscoin: Annotated[Path | None, options.model_option("--viscoin", "Ensemble, to explain its f by concepts")] = None,
    dataset: options.DatasetName = None,
    dataset_path: options.DatasetPath = None,
    class_map: options.ClassMap = None,
    image_indices: options.ImageIndices = None,
    concept_names: options.ConceptNames = None,
    measured: Annotated[
        Path | None,
        typer.Option(
            "--measured", metavar="FILE", help="results.json of `test attribution` of this model, to choose methods by."
        ),
    ] = None,
    batch_size: options.TestBatchSize = 32,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    out: options.Out = None,
    as_json: options.AsJson = False,
    skip_bad_files: options.SkipBadFiles = False,
) -> None:
    """Explain what a classifier says of an image.

    A page and a JSON file for each image: the answer, where f looks, which concepts vote for it and against the
    runner-up, what would change its mind, and how far to trust all that.
    """
    if classifier is not None and viscoin is not None:
        raise Refused("classifier", None, "an ensemble has its own classifier", "give `classifier` or `viscoin`")
    if classifier is not None and concept_names is not None:
        raise Refused("concept_names", None, "a classifier has no concepts", "give `viscoin`, or leave it out")
    from viscoin.analysis.explanation import prepare
    from viscoin.attribution.measured import read_measured
    from viscoin.inference.loading import load_pictures
    from viscoin.models.files import has_model, read_file
    from viscoin.naming.names import read_names

    kind = "viscoin" if classifier is None else "classifier"
    if classifier is None and viscoin is None and not has_model("viscoin", dataset):
        kind = "classifier"
    known = None if measured is None else read_measured(measured)
    with json_alone(as_json):
        subject, pictures = load_pictures(
            kind, viscoin or classifier, images, dataset, dataset_path,
            options.parse_indices(image_indices, "image_indices"), USUAL, device=device, seed=seed,
            skip_bad_files=skip_bad_files, parameter=kind, class_map=class_map,
        )  # fmt: skip
        names = None if concept_names is None else read_names(concept_names, subject.model.n_concepts)
        scores = read_file(subject.path)[1].get("scores", {})
        explainer = prepare(subject, scores, measured=known, names=names, batch_size=batch_size, seed=seed)
        with results_folder("explain", subject.config.name, out) as results:
            found = [_write(results, subject, one, kind) for one in explainer.explain(pictures)]
            _index(results, subject, kind, found)
        print_json({"model": str(subject.path), "explanations": [one.to_dict() for one in found]})


def _write(results: Results, subject: "Subject", found: "Explanation", kind: str) -> "Explanation":
    """Page and numbers of one image."""
    from viscoin.reports.explanation_page import write_explanation_page

    results.json(f"{found.name}.json", {"model": str(subject.path), **found.to_dict()})
    page = write_explanation_page(results.folder / f"{found.name}.html", found, _info(subject, kind))
    results.shown = results.shown or page
    echo(page)
    echo(f"{found.name}: {found.class_names[found.predicted]} ({100 * found.probabilities[found.predicted]:.1f} %)")
    return found


def _index(results: Results, subject: "Subject", kind: str, found: "list[Explanation]") -> None:
    from viscoin.reports.explanation_page import write_index

    if len(found) > 1:
        pages = [(f"{one.name}.html", one) for one in found]
        echo(write_index(results.folder / "index.html", pages, _info(subject, kind)))


def _info(subject: "Subject", kind: str) -> dict[str, str]:
    from datetime import date

    from viscoin.program import program_name

    called = {"viscoin": "ensemble", "classifier": "classifier"}[kind]
    return {
        "model": subject.path.name, "kind": called, "date": date.today().isoformat(),
        "command": f"{program_name()} explain",
    }  # fmt: skip
