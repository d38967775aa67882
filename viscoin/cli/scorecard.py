"""`scorecard`: maps of classes and of concepts, asked the same questions."""

from pathlib import Path
from typing import Annotated

import typer

from viscoin.cli import options
from viscoin.cli.output import echo, json_alone
from viscoin.cli.results import results_folder
from viscoin.errors import Refused


def scorecard(
    viscoin: options.ViscoinModel = None,
    classifier: Annotated[
        Path | None,
        typer.Option("--classifier", metavar="MODEL", help="A classifier f alone, without concepts, instead."),
    ] = None,
    dataset: options.DatasetName = None,
    dataset_path: options.DatasetPath = None,
    methods: Annotated[
        str | None,
        typer.Option("--methods", metavar="all|LIST", help="Methods of class maps; default: those that are quick."),
    ] = None,
    plugin: options.Plugins = None,
    rivals: Annotated[
        str | None,
        typer.Option(
            "--rivals",
            metavar="all|none|LIST",
            help="Concepts beside the ensemble's own, as in test viscoin.",
        ),
    ] = None,
    scenes: Annotated[int, typer.Option("--scenes", min=2, metavar="N", help="Test scenes, sampled at random.")] = 100,
    batch_size: options.TestBatchSize = 32,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    out: options.Out = None,
    show: options.Show = False,
    as_json: options.AsJson = False,
    skip_bad_files: options.SkipBadFiles = False,
) -> None:
    """Score maps of classes and of concepts on known scenes.

    Does a map point at the part, fall when the part goes, stay when the background goes, and stand noise? On data whose
    scenes can be rendered with one thing deleted: birds and funnybirds.
    """
    if classifier is not None and viscoin is not None:
        raise Refused("classifier", classifier, "an ensemble has one already", "give one of them")
    from datetime import date

    from viscoin.attribution.plugins import load_plugins
    from viscoin.datasets import load_dataset
    from viscoin.inference.loading import load_subject
    from viscoin.plotting.scorecard import scorecard_figure
    from viscoin.reports.scorecard_page import csv_text, page_text, table_of
    from viscoin.testing.baselines import choose_rivals
    from viscoin.testing.scorecard import test_scorecard
    from viscoin.testing.scorecard.subjects import choose_methods
    from viscoin.testing.table import markdown_table, text_table

    load_plugins(plugin or ())
    chosen, others = choose_methods(options.listed(methods)), choose_rivals(options.listed(rivals))
    with json_alone(as_json):
        subject = load_subject(
            "viscoin" if classifier is None else "classifier", classifier or viscoin, dataset, dataset_path,
            device=device, skip_bad_files=skip_bad_files,
        )  # fmt: skip
        config = subject.config
        validation = load_dataset(config.name, "validation", config) if classifier is None else None
        with results_folder("scorecard", config.name, out) as results:
            card = test_scorecard(
                subject.model, subject.images, validation, chosen, others, scenes, subject.device, batch_size, seed
            )
            rows, header = table_of(card)
            echo(text_table(rows, header))
            info = {"model": subject.path.name, "dataset": config.name, "split": subject.images.split}
            results.text("index.html", page_text(card, {**info, "date": date.today().isoformat()}))
            results.text("scorecard.csv", csv_text(card))
            results.text("scorecard.md", markdown_table(rows, header))
            results.numbers(subject, card.to_dict())
            results.figures({"scorecard": scorecard_figure(card)}, show)
