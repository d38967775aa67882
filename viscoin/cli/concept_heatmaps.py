"""`concept-heatmaps`: where in an image a concept is."""

from viscoin.cli import common

IMAGES, CONCEPTS = 6, 4


def concept_heatmaps(
    viscoin: common.ViscoinModel = None,
    dataset: common.DatasetName = None,
    concept_top_k: common.ConceptTopK = None,
    concept_indices: common.ConceptIndices = None,
    image_indices: common.ImageIndices = None,
    seed: common.Seed = 0,
    device: common.Device = "auto",
    out: common.Out = None,
    show: common.Show = False,
    skip_bad_files: common.SkipBadFiles = False,
) -> None:
    """Show where concepts are in test images, by default the four most relevant of each."""
    trial = common.load_for_test("viscoin", "--viscoin-pickle-path", viscoin, dataset, device, skip_bad_files)
    import torch

    from viscoin.analysis import heatmaps
    from viscoin.plotting.heatmaps import heatmap_figure

    model, images = trial.model, trial.images
    if concept_top_k is not None and concept_indices:
        raise ValueError("give one of --concept-top-k and --concept-indices, not both")
    if concept_top_k is not None and concept_top_k > model.n_concepts:
        raise ValueError(
            f"--concept-top-k {concept_top_k} is out of range; the ensemble has {model.n_concepts} concepts"
        )
    chosen = common.choose_images(image_indices, images, IMAGES, seed)
    indices = common.parse_indices(concept_indices, "--concept-indices", model.n_concepts, "concepts")
    with common.results_folder("concept-heatmaps", images.name, out) as results:
        batch, labels = images.batch(chosen)
        concepts = None if indices is None else torch.tensor([indices] * len(batch))
        result = heatmaps.concept_heatmaps(model, batch, concepts, concept_top_k or CONCEPTS, device=trial.device)
        results.figures({"concept-heatmaps": heatmap_figure(result, images.class_names, labels.numpy())}, show)
