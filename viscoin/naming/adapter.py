"""Training of the adapter from concept activations to the embeddings of a scorer."""

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn import functional as F

from stylegan2_ada.distributed import average_gradients, gather
from stylegan2_ada.optimizer import load_optimizer, set_rate
from stylegan2_ada.together import collect, once, one_first, together
from viscoin.analysis.concepts import collect_concepts
from viscoin.config import Concept2ClipConfig, Recipe
from viscoin.datasets import ImageDataset
from viscoin.datasets.cache import cache_folder, is_cached, keep
from viscoin.errors import Refused
from viscoin.inference.batches import evaluation, own_batches
from viscoin.models.concept2clip import Concept2Clip
from viscoin.models.digests import digest
from viscoin.models.ensemble import VisCoIN
from viscoin.models.files import save_model
from viscoin.models.scorers import AttributeScorer, Scorer, fit_probe, load_clip, probe_features
from viscoin.runs.run import Run
from viscoin.statistics.measures import auroc
from viscoin.training.checkpoints import load_best
from viscoin.training.data import StepBatches
from viscoin.training.failures import recoverable
from viscoin.training.loop import check_finite, fit
from viscoin.training.runtime import (
    Runtime,
    check_shares,
    launch,
    load_splits,
    seed_step,
    setup_optimizer,
    whole_batch,
)

logger = logging.getLogger(__name__)

IMAGES_IN_A_BATCH = 128  # of what is computed once: concepts and embeddings


class Pairs:
    """Concept activations (N, K) and the embeddings (N, D) of the same images: a dataset for `StepBatches`."""

    def __init__(self, phi: np.ndarray, embeddings: np.ndarray) -> None:
        self.phi, self.embeddings = torch.from_numpy(phi).float(), torch.from_numpy(embeddings).float()

    def __len__(self) -> int:
        return len(self.phi)

    def batch(self, indices: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """phi (B, K) and embeddings (B, D) of the given images."""
        return self.phi[indices], self.embeddings[indices]


@recoverable
def train_concept2clip(
    recipe: Recipe,
    run: Run,
    ensemble: VisCoIN,
    runtime: Runtime = Runtime(),  # noqa: B008  it is frozen
) -> Path:
    """Train the adapter by the recipe; concepts and embeddings of the images are computed once and cached.

    Returns:
        The model file in the run's folder.

    Raises:
        ValueError: a dataset without attributes where the text-free scorer is asked for, or a CLIP model that cannot
            be had.
    """
    config = recipe.concept2clip
    check_shares("concept2clip", runtime, 1, batch_size=config.batch_size)
    fabric, run = launch(runtime, run)
    train, validation = load_splits(fabric, recipe)
    with together():
        scorer, space, scores = _scorer(config, ensemble, train, validation, fabric.device)
        pairs, held_out = (_pairs(ensemble, scorer, dataset, fabric.device) for dataset in (train, validation))
    seed_step(recipe.seed, 0)
    model = build_adapter(config, pairs, space, ensemble_digest(ensemble))
    if isinstance(scorer, AttributeScorer) and model.probe is not None:
        model.probe.load_state_dict(scorer.probe.state_dict())
    batch_size = whole_batch(config.batch_size, len(pairs), runtime.processes)
    per_epoch = max(1, len(pairs) // batch_size)
    task = AdapterTask(model, config, fabric, held_out, config.epochs * per_epoch, runtime.compile)
    share: dict[str, Any] = {"rank": fabric.global_rank, "world_size": fabric.world_size}
    batches = StepBatches(pairs, batch_size, recipe.seed, **share)  # type: ignore[arg-type]
    fit(
        run, task, batches, config.epochs * per_epoch, seed=recipe.seed, evaluate_every=5 * per_epoch,
        device=fabric.device, title="concept2clip", shared_draws=True,
    )  # fmt: skip
    load_best(run, task)
    scores |= {f"validation.{key}": value for key, value in task.evaluate(0)[0].items()}
    names, origin = ensemble.class_names, f"embedding space: {scorer.name}"
    if fabric.global_rank == 0:
        save_model(
            run.model_path, model, "concept2clip", recipe=recipe, class_names=names, scores=scores, origin=origin
        )
    fabric.barrier()
    return run.model_path


def build_adapter(config: Concept2ClipConfig, pairs: Pairs, space: Mapping[str, Any], ensemble: str) -> Concept2Clip:
    """An adapter that takes activations in their own units and starts at the mean embedding."""
    sizes = pairs.phi.shape[1], pairs.embeddings.shape[1], config.hidden
    model = Concept2Clip(*sizes, config.dropout, space, ensemble)
    model.mean.copy_(pairs.phi.mean(0))
    spread = pairs.phi.std(0)
    # A concept that hardly ever fires must not be blown up to the size of the others.
    model.scale.copy_(spread.clamp_min(0.01 * float(spread.max())).clamp_min(1e-6))
    last: Any = model.layers[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(pairs.embeddings.mean(0))
    return model


class AdapterTask:
    """1 - cosine plus squared error between predicted and true embeddings; the score is the cosine on validation."""

    def __init__(
        self, model: Concept2Clip, config: Concept2ClipConfig, fabric: Fabric, validation: Pairs, steps: int,
        compiled: bool = False,
    ) -> None:  # fmt: skip
        self.config, self.fabric, self.validation, self.steps = config, fabric, validation, steps
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, config.learning_rate, weight_decay=config.weight_decay)
        self.trained, self.optimizer = weights, setup_optimizer(fabric, optimizer)
        self.model = model.to(fabric.device)
        if compiled:
            model.compile()

    def step(self, images: Tensor, labels: Tensor, step: int) -> dict[str, Tensor]:
        """`images` are activations (B, K), `labels` embeddings (B, D)."""
        self.model.train()
        set_rate(self.optimizer, self.config.learning_rate * 0.5 * (1 + math.cos(math.pi * step / self.steps)))
        with self.fabric.autocast():
            predicted = self.model(gather(images)).float()  # as a whole, so that the same concepts are hidden
        labels = gather(labels)
        cosine = F.cosine_similarity(predicted, labels).mean()
        error = (predicted - labels).square().sum(1).mean()
        loss = 1 - cosine + self.config.squared_error * error
        check_finite({"cosine": cosine, "squared error": error}, step)
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        average_gradients(self.trained)
        self.optimizer.step()
        return {"loss": loss.detach(), "cosine": cosine.detach()}

    @torch.no_grad()
    def evaluate(self, step: int) -> tuple[dict[str, float], float | None]:
        self.model.eval()
        predicted = self.model(self.validation.phi.to(self.fabric.device)).float().cpu()
        truth = self.validation.embeddings
        cosine = float(F.cosine_similarity(predicted, truth).mean())
        mean = float(F.cosine_similarity(truth.mean(0, keepdim=True), truth).mean())
        return {"cosine": cosine, "cosine_of_mean": mean}, cosine

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        load_optimizer(self.optimizer, state["optimizer"])


def ensemble_digest(ensemble: VisCoIN) -> str:
    """Digest of all that concept activations depend on: the weights of f and Psi."""
    parts = digest(classifier=ensemble.classifier, concept_extractor=ensemble.concept_extractor)
    return " ".join(value[:16] for value in parts.values())


def image_embeddings(scorer: Scorer, dataset: ImageDataset, indices: np.ndarray, device: torch.device) -> np.ndarray:
    """Embeddings (N, D) of these images, from the user's cache folder where they are known already.

    They are found by the contents of the images and by the weights of the scorer, never by a name.
    """

    def kept_in() -> tuple[Path, bool]:
        key = hashlib.sha256(f"{scorer.name} {len(indices)} {_weights(scorer)}".encode())
        for start in range(0, len(indices), 1024):
            key.update(dataset.pixels[indices[start : start + 1024]].tobytes())
        path = cache_folder() / "embeddings" / f"{key.hexdigest()[:24]}.npy"
        return path, is_cached(path)

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.save(file, embeddings)

    path, known = once(kept_in)
    if known:
        return once(lambda: np.load(path))
    with evaluation(scorer, device):  # type: ignore[arg-type]
        batches = own_batches(dataset, indices, IMAGES_IN_A_BATCH, device, f"embeddings by {scorer.name}")
        embeddings = np.concatenate(
            collect(scorer.image_embeddings(images).float().cpu().numpy() for images, _ in batches)
        )
    once(lambda: keep(path, write))
    return embeddings


def _weights(scorer: Scorer) -> str:
    return digest(scorer=scorer)["scorer"]  # type: ignore[arg-type]


def _pairs(ensemble: VisCoIN, scorer: Scorer, dataset: ImageDataset, device: torch.device) -> Pairs:
    table = collect_concepts(ensemble, dataset, device, IMAGES_IN_A_BATCH)
    return Pairs(table.activations, image_embeddings(scorer, dataset, table.indices, device))


def _scorer(
    config: Concept2ClipConfig, ensemble: VisCoIN, train: ImageDataset, validation: ImageDataset, device: torch.device
) -> tuple[Scorer, dict[str, Any], dict[str, float]]:
    """The scorer of the recipe, what rebuilds its space, and how well it reads the truth where it is fitted to that."""
    if config.model != "attributes":
        clip = one_first(lambda: load_clip(config.model, config.pretrained or ""))  # it may be downloaded
        logger.info("embedding space: %s", clip.name)
        return clip, {"model": config.model, "pretrained": config.pretrained}, {}
    if not len(train.attribute_names):
        raise Refused(
            None, None, f"dataset {train.name!r} has no attributes for the text-free scorer",
            "name a CLIP model, such as `concept2clip.model` ViT-B-32 and `concept2clip.pretrained` openai",
        )  # fmt: skip
    logger.info(
        "embedding space: one axis for each of %d attributes of %s, read off f's features by a linear probe; this is "
        "no CLIP and knows no other words (concept2clip.model and concept2clip.pretrained name one)",
        len(train.attribute_names), train.name,
    )  # fmt: skip
    probe = fit_probe(_features(ensemble, train, device), torch.from_numpy(train.attributes)).to(device)
    with torch.inference_mode():
        read = probe(_features(ensemble, validation, device).to(device)).cpu().numpy()
    areas = np.diagonal(auroc(read, validation.attributes))
    scores = {"probe_auroc": float(np.nanmean(areas)), "probe_auroc_least": float(np.nanmin(areas))}
    space = {"model": "attributes", "names": list(train.attribute_names), "features": probe.in_features}
    scorer = AttributeScorer(ensemble.classifier, train.attribute_names, probe)
    return scorer, space, {f"validation.{key}": value for key, value in scores.items()}


def _features(ensemble: VisCoIN, dataset: ImageDataset, device: torch.device) -> Tensor:
    with evaluation(ensemble, device):
        batches = own_batches(dataset, np.arange(len(dataset)), IMAGES_IN_A_BATCH, device, "features for the probe")
        return torch.cat(collect(probe_features(ensemble.classifier, images).cpu() for images, _ in batches))
