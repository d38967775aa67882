"""Training of the judge on the attributes of real images."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn import functional as F

from stylegan2_ada.distributed import average_gradients, gather_objects, rank, share_batch_norm, world_size
from stylegan2_ada.optimizer import set_rate
from viscoin.config import JudgeConfig, Recipe
from viscoin.datasets import ImageDataset
from viscoin.errors import Refused
from viscoin.models.files import save_model
from viscoin.models.judge import Judge
from viscoin.runs.control import commands_told
from viscoin.runs.run import Run
from viscoin.statistics.measures import auroc
from viscoin.training.checkpoints import load_best
from viscoin.training.data import StepBatches, batch_workers
from viscoin.training.failures import recoverable
from viscoin.training.loop import check_finite, fit
from viscoin.training.runtime import (
    Runtime,
    check_shares,
    fast_layout,
    launch,
    load_splits,
    seed_step,
    setup_optimizer,
    whole_batch,
)
from viscoin.training.single import SingleModel, warm_cosine

NOISE = 0.06  # standard deviation of that of noisy images, in units of [-1, 1]
WARM_UP = 0.1  # share of the steps of rising rate


class Attributed:
    """Images of a dataset with their attributes for labels: a dataset for `StepBatches`."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset, self.resolution, self.class_names = dataset, dataset.resolution, dataset.class_names
        self.attributes = torch.from_numpy(dataset.attributes).float()

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, indices: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) in [-1, 1] and attributes (B, A), 0 or 1, of the given items."""
        return self.dataset.batch(indices)[0], self.attributes[indices]


@recoverable
def train_judge(recipe: Recipe, run: Run, runtime: Runtime = Runtime()) -> Path:  # noqa: B008  it is frozen
    """Train the judge by the recipe and keep the weights with the best mean AUROC on validation images.

    Returns:
        The model file in the run's folder.

    Raises:
        Refused: the dataset has no attributes, or a batch that cannot be shared out.
    """
    config = recipe.judge
    check_shares("judge", runtime, 1, batch_size=config.batch_size)
    fabric, run = launch(runtime, run)
    train, validation = load_splits(fabric, recipe)
    if not train.attribute_names:
        raise Refused(
            "dataset", train.name, "it has no attributes that a judge could learn", "choose one with them, as birds"
        )
    seed_step(recipe.seed, 0)
    model = Judge(train.attribute_names, recipe.dataset.resolution)
    batch_size = whole_batch(config.batch_size, len(train), runtime.processes)
    per_epoch = max(1, len(train) // batch_size)
    task = JudgeTask(model, config, fabric, validation, config.epochs * per_epoch, runtime.compile)
    batches = StepBatches(
        Attributed(train), batch_size, recipe.seed, config.horizontal_flip,  # type: ignore[arg-type]
        rank=fabric.global_rank, world_size=fabric.world_size, workers=batch_workers(fabric.device),
    )  # fmt: skip
    fit(
        run, task, batches, config.epochs * per_epoch, seed=recipe.seed, evaluate_every=per_epoch,
        device=fabric.device, title="judge", patience=config.early_stopping,
    )  # fmt: skip
    load_best(run, task)
    scores = {f"validation.{key}": value for key, value in task.evaluate(0)[0].items()}
    if fabric.global_rank == 0:
        save_model(
            run.model_path, model, "judge", recipe=recipe, class_names=train.class_names, scores=scores,
            commands=commands_told(run.path),
        )  # fmt: skip
    fabric.barrier()
    return run.model_path


class JudgeTask(SingleModel):
    """Binary cross-entropy of every attribute; the score is their mean AUROC on validation images."""

    def __init__(
        self, model: Judge, config: JudgeConfig, fabric: Fabric, validation: ImageDataset, steps: int,
        compiled: bool = False,
    ) -> None:  # fmt: skip
        self.config, self.fabric, self.validation, self.steps = config, fabric, validation, steps
        self.model = fast_layout(model).to(fabric.device)
        share_batch_norm(model)
        self.forward = torch.compile(model) if compiled else model
        optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)
        self.optimizer = setup_optimizer(fabric, optimizer)

    @property
    def steerable(self) -> tuple[str, ...]:
        """Keys of `judge` that may change while it trains."""
        return ("learning_rate", "weight_decay", "blurred", "noisy", "early_stopping")

    def step(self, images: Tensor, labels: Tensor, step: int) -> dict[str, Tensor]:
        """`labels` are attributes (B, A), 0 or 1."""
        self.model.train()
        set_rate(
            self.optimizer,
            self.config.learning_rate * warm_cosine(step, self.steps, max(1, round(WARM_UP * self.steps))),
        )
        with self.fabric.autocast():
            logits = self.forward(spoiled(images, self.config.blurred, self.config.noisy)).float()
        loss = F.binary_cross_entropy_with_logits(logits, labels)
        check_finite({"cross-entropy": loss}, step)
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        average_gradients(self.model.parameters())
        self.optimizer.step()
        return {"loss": loss.detach(), "accuracy": ((logits > 0) == (labels > 0)).float().mean()}

    @torch.no_grad()
    def evaluate(self, step: int) -> tuple[dict[str, float], float | None]:
        self.model.eval()
        mine = np.arange(len(self.validation))[rank() :: world_size()]
        found = np.empty((len(mine), len(self.validation.attribute_names)), np.float32)
        for start in range(0, len(mine), 256):
            images, _ = self.validation.batch(mine[start : start + 256])
            with self.fabric.autocast():
                found[start : start + 256] = self.model(images.to(self.fabric.device)).float().cpu().numpy()
        logits = np.empty((len(self.validation), found.shape[1]), np.float32)
        for rows, part in gather_objects((mine, found)):
            logits[rows] = part
        truth = self.validation.attributes
        areas = np.diagonal(auroc(logits, truth))
        loss = float(F.binary_cross_entropy_with_logits(torch.from_numpy(logits), torch.from_numpy(truth).float()))
        results = {"auroc": float(np.nanmean(areas)), "least_auroc": float(np.nanmin(areas)), "loss": loss}
        return results, results["auroc"] - 1e-6 * math.tanh(loss)


def spoiled(images: Tensor, blurred: float, noisy: float) -> Tensor:
    """Images (B, 3, H, W), a random share `blurred` of them averaged over 3x3 pixels, and `noisy` with noise.

    Generated images have softer edges and other noise than real ones; the judge must not mind.
    """
    soft, rough = torch.rand(2, len(images), 1, 1, 1, device=images.device)
    images = torch.where(soft < blurred, F.avg_pool2d(images, 3, 1, 1, count_include_pad=False), images)
    return torch.where(rough < noisy, images + NOISE * torch.randn_like(images), images)
