"""`concepts`: which concepts there are, where they are active and which classes they speak for."""

import json
from dataclasses import replace
from datetime import date
from typing import Annotated

import typer

from viscoin.cli import common


def concepts(
    viscoin: common.ViscoinModel = None,
    dataset: common.DatasetName = None,
    split: Annotated[str, typer.Option("--split", metavar="train|validation|test", help="Images to look at.")] = "test",
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="A random sample of so many images, 2 or more.")
    ] = None,
    pages: Annotated[
        int, typer.Option("--pages", min=0, metavar="N", help="Concepts that get a page, the most important first.")
    ] = 100,
    seed: common.Seed = 0,
    force: Annotated[bool, typer.Option("--force", help="Compute anew what is cached.")] = False,
    batch_size: common.TestBatchSize = 128,
    device: common.Device = "auto",
    out: common.Out = None,
    show: common.Show = False,
    skip_bad_files: common.SkipBadFiles = False,
) -> None:
    """Analyse the concepts of an ensemble: figures, JSON, CSV and linked pages that open from the disk."""
    trial = common.load_for_test("viscoin", "--viscoin-pickle-path", viscoin, dataset, device, skip_bad_files)
    from viscoin.analysis.concept_files import concepts_json, csv_files, summary
    from viscoin.analysis.concepts import collect_concepts
    from viscoin.analysis.gallery import view_concepts
    from viscoin.concept_report import write_concept_report
    from viscoin.datasets import load_dataset
    from viscoin.plotting import concepts as plots

    model = trial.model
    images = trial.images if split == "test" else load_dataset(trial.config.name, split, trial.config)
    trial = replace(trial, images=images)
    with common.results_folder("concepts", images.name, out) as results:
        table = collect_concepts(model, images, trial.device, batch_size, seed, limit, force)
        numbers = summary(table)
        common.print_table(f"concepts of {trial.path} on {images.name}, {split}", numbers)
        results.numbers(trial, numbers)
        source = {"model": str(trial.path), "dataset": images.name, "split": split, "seed": seed}
        content = common.without_nan({**source, **concepts_json(table, images)})
        results.text("concepts.json", json.dumps(content, indent=1) + "\n")
        for name, text in csv_files(table, images):
            results.text(name, text)
        figures = {
            "activation-per-image": plots.activation_per_image(table),
            "activation-per-concept": plots.activation_per_concept(table),
            "entropies": plots.concept_entropies(table),
            "class-concept-importance": plots.class_concept_importance(table, images.class_names),
            "concept-class-importance": plots.concept_class_importance(table, images.class_names),
            "co-activation": plots.co_activation(table),
        }
        results.figures(figures, show=False)
        views = view_concepts(model, images, table, table.order[:pages], device=trial.device)
        info = {"model": trial.path, "split": split, "date": date.today().isoformat()}
        typer.echo(write_concept_report(results.folder, table, images, views, info))
        if show:
            common.show_figures(list(figures.values()))
