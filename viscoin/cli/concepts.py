"""`concepts`: which concepts there are, where they are active and which classes they speak for."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from viscoin.cli import common

if TYPE_CHECKING:
    from viscoin.analysis.concepts import ConceptTable


def concepts(
    viscoin: common.ViscoinModel = None,
    dataset: common.DatasetName = None,
    force: Annotated[bool, typer.Option("--force", help="Compute anew what is cached.")] = False,
    batch_size: common.TestBatchSize = 128,
    device: common.Device = "auto",
    out: common.Out = None,
    show: common.Show = False,
    skip_bad_files: common.SkipBadFiles = False,
) -> None:
    """Analyse the concepts of an ensemble on test images."""
    trial = common.load_for_test("viscoin", "--viscoin-pickle-path", viscoin, dataset, device, skip_bad_files)
    from viscoin.analysis.concepts import collect_concepts
    from viscoin.plotting import concepts as plots

    with common.results_folder("concepts", trial.images.name, out) as results:
        table = collect_concepts(trial.model, trial.images, trial.device, batch_size, force=force)
        numbers = _summary(table)
        common.print_table(f"concepts of {trial.path} on {trial.images.name}", numbers)
        results.numbers(trial, numbers)
        results.figures(
            {
                "activation-per-image": plots.activation_per_image(table),
                "activation-per-concept": plots.activation_per_concept(table),
                "entropies": plots.concept_entropies(table),
                "class-concept-importance": plots.class_concept_importance(table, trial.images.class_names),
                "concept-class-importance": plots.concept_class_importance(table, trial.images.class_names),
            },
            show,
        )


def _summary(table: "ConceptTable") -> dict[str, Any]:
    import numpy as np

    columns = {
        "mean_activation": table.mean_activation,
        "active_share": table.active_share,
        "entropy": table.entropy,
    }
    return {
        "images": len(table.labels),
        "concepts": len(table.dead),
        "never_active": int(table.dead.sum()),
        "active_per_image": float(np.median(table.active_per_image)),
        "concepts_per_class": float(table.concepts_per_class.mean()),
        "mean_entropy": float(np.nanmean(table.entropy)) if not table.dead.all() else None,
        **{name: [None if np.isnan(v) else float(v) for v in values] for name, values in columns.items()},
    }
