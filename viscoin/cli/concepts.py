"""`concepts`: which concepts there are, where they are active and which classes they speak for."""

import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from viscoin.cli import common
from viscoin.cli.processes import IN_FLOAT32, Process, processes

if TYPE_CHECKING:
    from viscoin.training.runtime import Runtime


@common.with_runtime
def concepts(
    viscoin: common.ViscoinModel = None,
    dataset: common.DatasetName = None,
    dataset_path: common.DatasetPath = None,
    split: Annotated[str, typer.Option("--split", metavar="train|validation|test", help="Images to look at.")] = "test",
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="A random sample of so many images, 2 or more.")
    ] = None,
    pages: Annotated[
        int, typer.Option("--pages", min=0, metavar="N", help="Concepts that get a page, the most important first.")
    ] = 100,
    names: Annotated[
        str | None,
        typer.Option(
            "--names",
            metavar="FILE|auto",
            help="Name concepts by a file with a caption a line; auto: by the attributes of the dataset.",
        ),
    ] = None,
    concept2clip: Annotated[Path | None, common.model_option("--concept2clip", "Adapter for --names")] = None,
    seed: common.Seed = 0,
    force: Annotated[bool, typer.Option("--force", help="Compute anew what is cached.")] = False,
    batch_size: common.TestBatchSize = 128,
    runtime: "Runtime" = IN_FLOAT32,
    out: common.Out = None,
    show: common.Show = False,
    skip_bad_files: common.SkipBadFiles = False,
) -> None:
    """Analyse the concepts of an ensemble: figures, JSON, CSV and linked pages that open from the disk."""
    from viscoin.analysis.concept_files import concepts_json, csv_files, summary
    from viscoin.analysis.concepts import collect_concepts
    from viscoin.analysis.gallery import view_concepts
    from viscoin.datasets import load_dataset
    from viscoin.plotting import concepts as plots
    from viscoin.reports.concept_pages import write_concept_report

    with processes(runtime) as process:
        trial = process.load("viscoin", "--viscoin-pickle-path", viscoin, dataset, skip_bad_files, dataset_path)
        model, config = trial.model, trial.config
        images = trial.images
        if split != "test":
            images = process.in_turn(lambda: load_dataset(config.name, split, config))
        trial = replace(trial, images=images)
        with process.results_folder("concepts", images.name, out) as results:
            table = collect_concepts(model, images, trial.device, batch_size, seed, limit, force)
            wanted = names is not None or concept2clip is not None
            named = _name(process, trial, names or "auto", concept2clip, batch_size, results) if wanted else None
            views = view_concepts(model, images, table, table.order[:pages], device=trial.device)
            if results is None:
                return
            numbers = {**summary(table), "precision": process.precision}
            common.print_table(f"concepts of {trial.path} on {images.name}, {split}", numbers)
            results.numbers(trial, numbers)
            source = {"model": str(trial.path), "dataset": images.name, "split": split, "seed": seed}
            content = common.without_nan({**source, **concepts_json(table, images, named)})
            results.text("concepts.json", json.dumps(content, indent=1) + "\n")
            for name, text in csv_files(table, images, named):
                results.text(name, text)
            figures = {
                "activation-per-image": plots.activation_per_image(table),
                "activation-per-concept": plots.activation_per_concept(table),
                "entropies": plots.concept_entropies(table),
                "class-concept-importance": plots.class_concept_importance(table, images.class_names, names=named),
                "concept-class-importance": plots.concept_class_importance(table, images.class_names, names=named),
                "co-activation": plots.co_activation(table, named),
            }
            results.figures(figures, show=False)
            info = {"model": trial.path, "split": split, "date": date.today().isoformat()}
            typer.echo(write_concept_report(results.folder, table, images, views, info, names=named))
            if show:
                common.show_figures(list(figures.values()))


def _name(
    process: Process,
    trial: common.Trial,
    captions: str,
    concept2clip: Path | None,
    batch_size: int,
    results: common.Results | None,
) -> dict[int, str]:
    """Names of the concepts that have one, found in float32.

    The first process writes what they rest on, and prints how many are right where that shows.
    """
    from viscoin.datasets import load_dataset
    from viscoin.inference.execution import exact
    from viscoin.models.files import find_model, load_model
    from viscoin.naming.names import grade_on, name_concepts, names_csv

    config, split = trial.config, "validation" if trial.images.split != "validation" else "train"
    adapter = load_model(find_model("concept2clip", concept2clip, config.name), "concept2clip").model
    naming = process.in_turn(lambda: load_dataset(config.name, split, config))
    with exact():
        found = name_concepts(
            trial.model, adapter, naming, trial.images, captions, device=trial.device, batch_size=batch_size
        )
        grades = grade_on(trial.images, found, trial.model, trial.device, batch_size)
    named = {name.concept: name.name for name in found if name.name is not None}
    if results is None:
        return named
    typer.echo(f"names: {len(named)} of {len(found)} concepts have one, the others no clear one (names.csv says why)")
    if grades is not None:
        common.print_table(f"names against the attributes of {trial.images.name}", grades.to_dict())
        content = json.dumps(common.without_nan(grades.to_dict()), indent=2)
        results.text("names.json", content + "\n")
    results.text("names.csv", names_csv(found))
    return named
