"""`test attribution`: are heatmaps true?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from viscoin.cli import options
from viscoin.cli.output import echo, json_alone
from viscoin.cli.results import Results, results_folder
from viscoin.errors import Refused

if TYPE_CHECKING:
    from viscoin.testing.attribution.command import Outcome

PROTOCOLS = ("viscoin", "vision-diffmask")
SCORES_HELP = (
    "Some of parts,places,segments,hiding,road,infidelity,completeness,stability,randomisation,complexity; default: "
    "all that the images have truth for."
)


def attribution(
    checkpoints: Annotated[Path | None, options.model_option("--checkpoints", "Classifier f")] = None,
    dataset: options.DatasetName = None,
    dataset_path: options.DatasetPath = None,
    class_map: options.ClassMap = None,
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods", metavar="LIST", help="Methods of `attribute`; default: all that hold for f and are not slow."
        ),
    ] = None,
    diffmask: options.DiffMaskModel = None,
    scores: Annotated[str | None, typer.Option("--scores", metavar="LIST", help=SCORES_HELP)] = None,
    protocol: Annotated[
        str,
        typer.Option(
            "--protocol",
            metavar="viscoin|vision-diffmask",
            help="vision-diffmask: the comparison of that paper instead, on the first 50 test images.",
        ),
    ] = "viscoin",
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="Sample N test images at random; default: 200.")
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Sample: 40 images, 8 for the scores that take long.")] = False,
    cost: Annotated[bool, typer.Option("--cost", help="Measure seconds and memory an image as well.")] = False,
    plugin: options.Plugins = None,
    baseline: Annotated[
        str, typer.Option("--baseline", metavar="grey|blur|noise", help="What methods compare the image with.")
    ] = "blur",
    batch_size: options.TestBatchSize = 32,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    out: options.Out = None,
    show: options.Show = False,
    as_json: options.AsJson = False,
    skip_bad_files: options.SkipBadFiles = False,
) -> None:
    """Which heatmaps are true: every score of every method.

    Against known causes where scenes can be changed, against masks where there are any, and by hiding pixels anywhere;
    beside maps that know nothing of the model.
    """
    if protocol not in PROTOCOLS:
        raise Refused("protocol", protocol, "unknown protocol", f"choose {' or '.join(PROTOCOLS)}")
    given = {"scores": scores is not None, "limit": limit is not None, "fast": fast, "cost": cost}
    if protocol != PROTOCOLS[0] and any(given.values()):
        name = next(name for name, there in given.items() if there)
        raise Refused(name, None, f"does not go with `protocol` {protocol}", "that is the same 50 images for everybody")
    from viscoin.attribution.plugins import load_plugins
    from viscoin.inference.loading import load_subject
    from viscoin.plotting.attribution_scores import attribution_figures
    from viscoin.testing.attribution.command import extent_of, run_attribution

    load_plugins(plugin or ())
    with json_alone(as_json):
        subject = load_subject(
            "classifier", checkpoints, dataset, dataset_path, device=device, skip_bad_files=skip_bad_files,
            parameter="checkpoints", class_map=class_map, unlabelled="parts",
        )  # fmt: skip
        with results_folder("test-attribution", subject.images.name, out) as results:
            outcome = run_attribution(
                subject, options.listed(methods), diffmask, options.listed(scores), extent_of(limit, fast),
                protocol=protocol, cost=cost, baseline=baseline, batch_size=batch_size, seed=seed,
            )  # fmt: skip
            images = subject.images
            echo(f"classifier {subject.path} on {images.split} images of {images.name}, seed {seed}")
            _show(results, outcome)
            results.numbers(subject, outcome.numbers)
            if outcome.scores is not None:
                results.figures(attribution_figures(outcome.scores), show)


def _show(results: Results, outcome: "Outcome") -> None:
    """Print and write tables and what they do not say."""
    from viscoin.testing.table import markdown_table, text_table

    for name, (rows, header) in outcome.tables.items():
        echo(text_table(rows, header))
        results.text(f"{name}.md", markdown_table(rows, header))
    for sentence in outcome.sentences:
        echo(f"  {sentence}")
    for name, content in outcome.files.items():
        results.text(name, content)
