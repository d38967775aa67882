"""Put trained models into viscoin/assets/: half-precision weights, test scores and recipe; pictures into docs/images/.

    python scripts/ship_models.py RUN_OF_F RUN_OF_G RUN_OF_ENSEMBLE RUN_OF_JUDGE

or some of them; the others stay. The scores are measured on the stored (half-precision) weights.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import nn

from viscoin.datasets import load_dataset, to_pixels
from viscoin.inference.batches import evaluation
from viscoin.kinds import CHAIN
from viscoin.models.files import ASSETS, load_model, save_model
from viscoin.plotting.data import real_and_generated
from viscoin.plotting.style import save_figure
from viscoin.plotting.training import training_figure
from viscoin.runs.metrics import read_log
from viscoin.runs.run import Run
from viscoin.statistics.measures import auroc
from viscoin.testing.classifier import test_classifier
from viscoin.testing.ensemble import test_ensemble
from viscoin.testing.gan import samples, test_gan
from viscoin.testing.truth import test_attributes, untrained
from viscoin.training.gan_transfer import partners_path, read_partners, save_partners

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "images"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder; it says itself of which kind")
    found = {run.kind: run for run in map(Run, parser.parse_args().runs)}
    if not set(found) <= {*CHAIN, "judge"}:
        parser.error(f"these are runs of {', '.join(map(str, found))}; give some of {', '.join(CHAIN)} and judge")
    torch.manual_seed(0)
    folder = ASSETS / next(iter(found.values())).recipe.dataset.name
    folder.mkdir(parents=True, exist_ok=True)
    runs = {kind: found[kind] for kind in CHAIN if kind in found}
    scores = measure(runs, folder) if runs else {}
    if "judge" in found:
        scores["judge"] = measure_judge(found["judge"], folder)
    for kind, run in found.items():
        store(run, kind, folder, scores[kind])
        shutil.copy(run.recipe_path, folder / f"{kind}-recipe.yaml")
    for kind, run in runs.items():
        save_figure(training_figure([read_log(run.path)]), PICTURES / f"{kind}-training.png")
    path = folder / "scores.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | scores, indent=2) + "\n")
    total = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    print(f"{folder}: {total / 1e6:.1f} MB of models")


def store(run: Run, kind: str, folder: Path, scores: dict[str, float]) -> nn.Module:
    """Save the run's model with half-precision weights and return it as it will be loaded."""
    loaded = load_model(run.path, kind)
    path = folder / f"{kind}.safetensors"
    save_model(
        path, loaded.model, kind,
        recipe=run.recipe, class_names=loaded.class_names, scores=scores, dtype=torch.float16,
    )  # fmt: skip
    if there := read_partners(partners_path(run.model_path)):
        save_partners(partners_path(path), there, run.recipe, torch.float16)
    return load_model(path, kind).model


def measure(runs: dict[str, Run], folder: Path) -> dict[str, dict[str, float]]:
    """Flat test scores of each model, as stored; those without a run were stored before."""
    models = {
        kind: store(runs[kind], kind, folder, {}) if kind in runs else load_model(folder / f"{kind}.safetensors").model
        for kind in CHAIN
    }
    config = next(iter(runs.values())).recipe.dataset
    validation, test = (load_dataset(config.name, split, config) for split in ("validation", "test"))
    f, generator, ensemble = (models[kind] for kind in CHAIN)
    with evaluation(generator, "cpu"):
        generated = torch.cat(list(samples(generator, test, 36, 0, "cpu", 36)))
    save_figure(real_and_generated(test.pixels[:36], to_pixels(generated)), PICTURES / "real-and-generated.png")
    attributes = {"mean_auroc": test_attributes(ensemble, validation, test).mean_auroc}
    attributes["mean_auroc_untrained"] = test_attributes(untrained(ensemble), validation, test).mean_auroc
    tested = test_ensemble(ensemble, test).to_dict() | {"attributes": attributes}
    return {
        "classifier": flat(test_classifier(f, test).to_dict()),
        "gan": flat(test_gan(generator, f, test).to_dict()),
        "viscoin": flat(tested),
    }


def measure_judge(run: Run, folder: Path) -> dict[str, float]:
    """AUROC of the judge on test images, as stored."""
    judge, config = store(run, "judge", folder, {}), run.recipe.dataset
    test = load_dataset(config.name, "test", config)
    with evaluation(judge, "cpu"):
        logits = torch.cat([judge(images) for images, _ in test.batches(256)]).numpy()
    areas = np.diagonal(auroc(logits, test.attributes))
    return {"auroc": float(np.nanmean(areas)), "least_auroc": float(np.nanmin(areas)), "n": len(test)}


def flat(values: dict, prefix: str = "") -> dict[str, float]:
    """Numbers by dotted names."""
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, int | float):
            found[f"{prefix}{key}"] = value
    return found


if __name__ == "__main__":
    main()
