"""Training of the classifier f."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn import functional as F

from viscoin.config import ClassifierConfig, Recipe
from viscoin.datasets import ImageDataset, load_dataset
from viscoin.models.classifier import Classifier, build_classifier
from viscoin.models.files import save_model
from viscoin.runs import Run
from viscoin.training.data import StepBatches
from viscoin.training.loop import check_finite, fit, load_best
from viscoin.training.runtime import fast_layout, make_fabric, seed_step


def train_classifier(recipe: Recipe, run: Run, device: str = "auto", precision: str = "auto") -> Path:
    """Train f by the recipe and keep the weights that are best on the validation images.

    Returns:
        The model file in the run's folder.
    """
    fabric = make_fabric(device, precision)
    config = recipe.classifier
    train = load_dataset(recipe.dataset.name, "train", recipe.dataset)
    validation = load_dataset(recipe.dataset.name, "validation", recipe.dataset)
    seed_step(recipe.seed, 0)
    model = build_classifier(config.backbone, len(train.class_names), recipe.dataset.resolution, config.pretrained)
    batch_size = min(config.batch_size, len(train))
    per_epoch = max(1, len(train) // batch_size)
    task = ClassifierTask(model, config, fabric, validation, config.epochs * per_epoch, per_epoch)
    batches = StepBatches(train, batch_size, recipe.seed, config.horizontal_flip, config.padding)
    fit(
        run, task, batches, config.epochs * per_epoch, seed=recipe.seed, evaluate_every=per_epoch,
        device=fabric.device, title="classifier",
    )  # fmt: skip
    load_best(run, task)
    scores = {f"validation.{key}": value for key, value in task.evaluate(0)[0].items()}
    return save_model(run.model_path, model, "classifier", recipe=recipe, class_names=train.class_names, scores=scores)


class ClassifierTask:
    """Cross-entropy on labels; the score is the accuracy on validation images."""

    def __init__(
        self, model: Classifier, config: ClassifierConfig, fabric: Fabric, validation: ImageDataset, steps: int,
        per_epoch: int,
    ) -> None:  # fmt: skip
        self.config, self.fabric, self.validation = config, fabric, validation
        self.raw = fast_layout(model)
        optimizer = _optimizer(config, self.raw)
        self.model, self.optimizer = fabric.setup(self.raw, optimizer)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: _rate(config, t, steps, per_epoch))

    def step(self, images: Tensor, labels: Tensor, step: int) -> dict[str, Tensor]:
        self.model.train()
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        check_finite({"cross-entropy": loss}, step)
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        self.optimizer.step()
        self.schedule.step()
        return {"loss": loss.detach(), "accuracy": (logits.argmax(1) == labels).float().mean()}

    @torch.no_grad()
    def evaluate(self, step: int) -> tuple[dict[str, float], float | None]:
        self.model.eval()
        correct, loss, n = 0, 0.0, 0
        for images, labels in self.validation.batches(256):
            images, labels = images.to(self.fabric.device), labels.to(self.fabric.device)
            logits = self.model(images).float()
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            correct += int((logits.argmax(1) == labels).sum())
            n += len(labels)
        # Ties in accuracy are common on small data: the lower loss decides among them.
        return {"accuracy": correct / n, "loss": loss / n}, correct / n - 1e-6 * math.tanh(loss / n)

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.raw.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.raw.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])


def _optimizer(config: ClassifierConfig, model: Classifier) -> torch.optim.Optimizer:
    parameters = model.parameters()
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, config.learning_rate, momentum=0.9, weight_decay=config.weight_decay)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, config.learning_rate, weight_decay=config.weight_decay)


def _rate(config: ClassifierConfig, step: int, steps: int, per_epoch: int) -> float:
    """Factor on the learning rate at a step."""
    if config.schedule == "step":
        return config.step_factor ** (step // (config.step_epochs * per_epoch))
    if config.schedule == "cosine":
        warm = max(1, min(100, steps // 10))
        return (
            (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
        )
    return 1.0
