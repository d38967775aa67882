"""A tour of the Python API on the built-in birds: about two minutes on two cores, nothing to download.

What it draws lies in runs/example afterwards. The same on the command line: python main.py --help
"""

import time
from pathlib import Path

from viscoin.analysis.amplification import amplify_images, image_relevance, select_concepts
from viscoin.analysis.concepts import collect_concepts
from viscoin.attribution.heatmaps import concept_heatmaps
from viscoin.config import load_recipe
from viscoin.datasets import load_dataset
from viscoin.models.files import ASSETS, load_model
from viscoin.plotting.amplification import amplification_figure
from viscoin.plotting.data import contact_sheet
from viscoin.plotting.heatmaps import heatmap_figure
from viscoin.plotting.style import save_figure
from viscoin.runs.run import Run
from viscoin.testing.classifier import test_classifier
from viscoin.testing.ensemble import test_ensemble
from viscoin.training.viscoin import train_viscoin

OUT = Path("runs/example")


def main() -> None:
    # The data: drawn birds. Images are float32 in [-1, 1]; everything about them is known.
    short = {"dataset.train": 2000, "dataset.validation": 200, "viscoin.steps": 150, "viscoin.warmup_steps": 15}
    recipe = load_recipe("birds", short)
    birds = load_dataset("birds", "test", recipe.dataset)
    images, labels = birds.batch(range(8))
    names = [birds.class_names[label] for label in labels]
    save_figure(contact_sheet(birds.pixels[:8], names, columns=4), OUT / "birds.png")
    print(f"a batch {tuple(images.shape)} of {names[0]!r} and others, attributes {birds.attributes.shape}")

    # The classifier f, which is to be explained, and the generator G, which will draw the explanations.
    f = load_model(ASSETS / "birds" / "classifier.safetensors").model
    generator = load_model(ASSETS / "birds" / "gan.safetensors").model
    print(f"accuracy of f: {test_classifier(f, birds, limit=500).accuracy:.3f}")

    # A fresh ensemble on top of both, trained for a moment: Psi, Theta and Omega learn, f and G stay as they are.
    run = Run.create("viscoin", recipe, OUT / f"{time.strftime('%Y%m%d-%H%M%S')}")
    fresh = load_model(train_viscoin(recipe, run, f, generator)).model

    # The same after a long training, as shipped with the project.
    ensemble = load_model(ASSETS / "birds" / "viscoin.safetensors").model
    for name, model in (("fresh", fresh), ("shipped", ensemble)):
        result = test_ensemble(model, birds, limit=200, faithfulness_limit=50).to_dict()
        print(f"{name} ensemble: {result['ensemble']}, l1 {result['reconstruction']['l1']:.3f}")

    # What happens inside, step by step.
    code = ensemble.encode(images)  # f and Psi: logits of f, concept maps Phi and support Phi'
    phi = ensemble.activations(code.concept_maps)  # (B, K), the concept activations
    scores = ensemble.explain(code.concept_maps)  # Theta: logits of g
    relevance = ensemble.relevance(phi, scores.argmax(1))  # (B, K) in [-1, 1]
    rebuilt = ensemble.decode(code.concept_maps, code.support)  # Omega and G: the image again
    print(f"{names[0]!r}: concepts {relevance[0].topk(3).indices.tolist()} matter most; drawn again: {rebuilt.shape}")

    # Which concepts there are; multiply the three most relevant of each image, and see where they are.
    table = collect_concepts(ensemble, birds, limit=500)
    print(f"{phi.shape[1]} concepts, {table.dead.sum()} never active")
    selection = select_concepts(image_relevance(ensemble, images), top_k=3)
    amplified = amplify_images(ensemble, images, selection)
    save_figure(amplification_figure(amplified, birds.class_names, labels.numpy()), OUT / "amplification.png")
    save_figure(
        heatmap_figure(concept_heatmaps(ensemble, images), birds.class_names, labels.numpy()), OUT / "heatmaps.png"
    )
    print(f"figures in {OUT}: birds.png, amplification.png, heatmaps.png")


if __name__ == "__main__":  # drawing many birds starts worker processes, which import this file
    main()
