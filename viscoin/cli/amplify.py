"""`amplify`: multiply the activation of chosen concepts and look at the new images."""

from typing import Annotated

import typer

from viscoin.cli import common

IMAGES = 6


def amplify(
    viscoin: common.ViscoinModel = None,
    dataset: common.DatasetName = None,
    concept_threshold: common.ConceptThreshold = None,
    concept_top_k: common.ConceptTopK = None,
    concept_indices: common.ConceptIndices = None,
    image_indices: common.ImageIndices = None,
    one_by_one: Annotated[
        bool, typer.Option("--one-by-one", help="A row for each concept, instead of all of an image together.")
    ] = False,
    seed: common.Seed = 0,
    device: common.Device = "auto",
    out: common.Out = None,
    show: common.Show = False,
    skip_bad_files: common.SkipBadFiles = False,
) -> None:
    """Amplify concepts: give a threshold, a top k or their indices."""
    trial = common.load_for_test("viscoin", "--viscoin-pickle-path", viscoin, dataset, device, skip_bad_files)
    from viscoin.analysis import amplification
    from viscoin.plotting.amplification import amplification_figure

    model, images = trial.model, trial.images
    chosen = common.choose_images(image_indices, images, IMAGES, seed)
    indices = common.parse_indices(concept_indices, "--concept-indices", model.n_concepts, "concepts")
    with common.results_folder("amplify", images.name, out) as results:
        batch, labels = images.batch(chosen)
        relevance = amplification.image_relevance(model, batch, trial.device)
        selection = amplification.select_concepts(relevance, concept_threshold, concept_top_k, indices)
        if one_by_one:
            labels = labels[selection.nonzero()[:, 0]]
            batch, selection = amplification.one_by_one(batch, selection)
        result = amplification.amplify_images(model, batch, selection, device=trial.device)
        results.figures({"amplification": amplification_figure(result, images.class_names, labels.numpy())}, show)
