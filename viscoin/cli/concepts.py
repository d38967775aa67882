"""`concepts`: which concepts there are, where they are active and which classes they speak for."""

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from viscoin.cli import options
from viscoin.cli.output import echo, json_alone
from viscoin.cli.processes import IN_FLOAT32, Process, processes
from viscoin.cli.results import Results, print_table, show_figures

if TYPE_CHECKING:
    from viscoin.inference.loading import SubjectWithImages
    from viscoin.training.runtime import Runtime


@options.with_runtime
def concepts(
    viscoin: options.ViscoinModel = None,
    dataset: options.DatasetName = None,
    dataset_path: options.DatasetPath = None,
    class_map: options.ClassMap = None,
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
    concept2clip: Annotated[Path | None, options.model_option("--concept2clip", "Adapter for --names")] = None,
    seed: options.Seed = 0,
    force: Annotated[bool, typer.Option("--force", help="Compute anew what is cached.")] = False,
    batch_size: options.TestBatchSize = 128,
    runtime: "Runtime" = IN_FLOAT32,
    out: options.Out = None,
    show: options.Show = False,
    as_json: options.AsJson = False,
    skip_bad_files: options.SkipBadFiles = False,
) -> None:
    """Analyse which concepts there are and what they mean.

    Figures, JSON, CSV and linked pages that open from the disk.
    """
    from viscoin.analysis.concept_files import concepts_json, csv_files, summary
    from viscoin.analysis.concepts import collect_concepts
    from viscoin.analysis.gallery import view_concepts
    from viscoin.analysis.quality import measure_quality
    from viscoin.plotting.concepts import concept_figures
    from viscoin.reports.concept_pages import write_concept_report

    with json_alone(as_json), processes(runtime) as process:
        subject = process.load(
            "viscoin", viscoin, dataset=dataset, dataset_path=dataset_path, split=split, skip_bad_files=skip_bad_files,
            class_map=class_map, unlabelled="whole",
        )  # fmt: skip
        model, images = subject.model, subject.images
        with process.results_folder("concepts", images.name, out) as results:
            table = collect_concepts(model, images, subject.device, batch_size, seed, limit, force)
            wanted = names is not None or concept2clip is not None
            named = _name(process, subject, names or "auto", concept2clip, batch_size, results) if wanted else None
            quality = measure_quality(model, images, table, subject.device, batch_size, seed)
            views = view_concepts(model, images, table, table.order[:pages], device=subject.device)
            if results is None:
                return
            numbers = {**summary(table), **quality.to_dict(), "precision": process.precision}
            print_table(f"concepts of {subject.path} on {images.name}, {split}", numbers)
            for warning in quality.warnings:
                echo(f"warning: {warning}", err=True)
            results.numbers(subject, numbers)
            source = {"model": str(subject.path), "dataset": images.name, "split": split, "seed": seed}
            results.json("concepts.json", {**source, **concepts_json(table, images, named)})
            for name, text in csv_files(table, images, named):
                results.text(name, text)
            figures = concept_figures(table, images.class_names, named)
            results.figures(figures, show=False)
            info = {"model": subject.path, "split": split, "date": date.today().isoformat()}
            echo(write_concept_report(results.folder, table, images, views, info, quality, names=named))
            if show:
                show_figures(list(figures.values()))


def _name(
    process: Process,
    subject: "SubjectWithImages",
    captions: str,
    concept2clip: Path | None,
    batch_size: int,
    results: Results | None,
) -> dict[int, str]:
    """Names of the concepts that have one; the first process writes what they rest on and how many are right."""
    from viscoin.naming.names import name_and_grade, names_csv

    found, grades = name_and_grade(subject, concept2clip, captions, batch_size, process.in_turn)
    named = {name.concept: name.name for name in found if name.name is not None}
    if results is None:
        return named
    echo(f"names: {len(named)} of {len(found)} concepts have one, the others no clear one (names.csv says why)")
    if grades is not None:
        print_table(f"names against the attributes of {subject.images.name}", grades.to_dict())
        results.json("names.json", grades.to_dict())
    results.text("names.csv", names_csv(found))
    return named
