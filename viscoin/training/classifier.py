"""Training of the classifier f."""

import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from stylegan2_ada.distributed import (
    average_gradients,
    gather_objects,
    mean_over_processes,
    rank,
    share_batch_norm,
    world_size,
)
from stylegan2_ada.optimizer import set_rate
from viscoin.config import ClassifierConfig, Recipe
from viscoin.datasets import ImageDataset
from viscoin.errors import Refused
from viscoin.models.class_maps import last_map
from viscoin.models.classifier import Classifier, build_classifier, resolve_backbone
from viscoin.models.files import save_model
from viscoin.models.foreign.starting import read_start, start_classifier
from viscoin.runs.control import commands_told
from viscoin.runs.run import Run, epoch_path
from viscoin.statistics.measures import confusion
from viscoin.training.checkpoints import load_best
from viscoin.training.data import StepBatches, batch_workers
from viscoin.training.failures import recoverable
from viscoin.training.features import FeatureDataset, with_features
from viscoin.training.freezing import freeze
from viscoin.training.loop import check_finite, fit
from viscoin.training.penalties import OfClassifier
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
from viscoin.training.transforms import Transforms

logger = logging.getLogger(__name__)


@recoverable
def train_classifier(recipe: Recipe, run: Run, runtime: Runtime = Runtime()) -> Path:  # noqa: B008  it is frozen
    """Train f by the recipe and keep the weights that are best on the validation images.

    Returns:
        The model file in the run's folder; its metadata say by which measure the weights were chosen.

    Raises:
        ValueError: unknown backbone or stage, more layers to train than there are, images too small for the backbone,
            balanced class weights where a class has no training images, or a batch that cannot be shared out.
    """
    config = recipe.classifier
    check_shares("classifier", runtime, batch_size=config.batch_size, accumulate=config.accumulate)
    resolve_backbone(config.backbone)  # a misspelt name must not cost the preparation of the images
    if config.weights is not None and not Path(config.weights).exists():
        raise Refused("classifier.weights", config.weights, "there is no such file")
    fabric, run = launch(runtime, run)
    train, validation = load_splits(fabric, recipe)
    weights = balanced_weights(train) if config.class_weights == "balanced" else None
    seed_step(recipe.seed, 0)
    model = _starting(config, len(train.class_names), recipe.dataset.resolution)
    zero_last_layer(model)
    if config.train_layers != "all" and not config.pretrained and config.weights is None:
        logger.warning("classifier.pretrained is false: layers that do not train stay random")
    batch_size = whole_batch(config.batch_size, len(train), runtime.processes * config.accumulate)
    per_epoch = max(1, len(train) // batch_size)
    features = None if config.penalties else with_features(model, config, (train, validation), fabric.device)
    penalties = OfClassifier(model, config, train, validation, recipe.seed, run, features is None)
    if features is not None:
        train, validation = features
        logger.info("the body runs once for each image: only the last layer trains, and no image is changed")
    task = ClassifierTask(
        model,
        config,
        fabric,
        validation,
        config.epochs * per_epoch,
        per_epoch,
        weights,
        runtime.compile,
        penalties,
    )
    batches = StepBatches(
        train, batch_size, recipe.seed, config.horizontal_flip, config.padding, fabric.global_rank, fabric.world_size,
        transforms=Transforms.of(config), workers=batch_workers(fabric.device), penalties=penalties,
    )  # fmt: skip
    fit(
        run, task, batches, config.epochs * per_epoch, seed=recipe.seed, evaluate_every=per_epoch,
        device=fabric.device, title="classifier", patience=config.early_stopping,
        on_evaluate=partial(_keep, run, task, recipe, train.class_names),
    )  # fmt: skip
    step = load_best(run, task)
    scores = {f"validation.{key}": value for key, value in task.evaluate(0)[0].items()}
    measure = f"validation.{config.best_metric}"
    selected = run.has_checkpoint("best")  # else these are the last weights, by no measure
    if fabric.global_rank == 0:
        save_model(
            run.model_path, model, "classifier", recipe=recipe, class_names=train.class_names, scores=scores,
            selection={"metric": measure, "value": scores[measure], "step": step} if selected else None,
            commands=commands_told(run.path),
        )  # fmt: skip
    fabric.barrier()
    return run.model_path


def _starting(config: ClassifierConfig, n_classes: int, resolution: int) -> Classifier:
    """The classifier before its training."""
    if config.weights is None:
        return build_classifier(
            config.backbone, n_classes, resolution, config.pretrained, config.cut, config.input_size
        )
    start = read_start(Path(config.weights), config.backbone)
    logger.info("starting from the weights of %s, of %s; the last layer is new", config.weights, start.backbone)
    return start_classifier(start, n_classes, resolution, config.cut, config.input_size)


def _keep(run: Run, task: "ClassifierTask", recipe: Recipe, class_names: Sequence[str], step: int) -> None:
    """Keep the model of this epoch beside the checkpoints, where the recipe asks for it."""
    every, (epoch, rest) = task.config.keep_every, divmod(step, task.per_epoch)
    if every is None or epoch % every or rest:
        return
    scores = {name: value for name, value in run.metrics()[-1].items() if name.startswith("validation.")}
    save_model(
        epoch_path(run, epoch), task.model, "classifier", recipe=recipe, class_names=class_names, scores=scores,
        selection={"metric": "epoch", "value": epoch, "step": step},
    )  # fmt: skip


def zero_last_layer(model: Classifier) -> None:
    """Start with all classes alike.

    A random last layer makes pretrained features pay for it first, and leaves noise in the directions that classes do
    not need, which the pursuit would have to tell from concepts.
    """
    layers = model.model.get_classifier()
    for layer in layers if isinstance(layers, tuple) else (layers,):  # a distilled DeiT has two
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)


def balanced_weights(dataset: ImageDataset) -> Tensor:
    """Weights (C,) of the classes in the loss, N / (C n_c), by which all classes count the same.

    Raises:
        ValueError: a class without images has no such weight.
    """
    counts = np.bincount(dataset.labels, minlength=len(dataset.class_names))
    missing = [name for name, count in zip(dataset.class_names, counts) if not count]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise Refused(
            "classifier.class_weights", "balanced",
            f"dataset {dataset.name!r} has no {dataset.split} images of {', '.join(missing[:5])}{more}",
            "add some, take the class out, or choose none",
        )  # fmt: skip
    return torch.from_numpy(len(dataset) / (len(counts) * counts)).float()


class ClassifierTask(SingleModel):
    """Cross-entropy on labels; the score is the accuracy, or another measure, on validation images."""

    model: Classifier

    def __init__(
        self, model: Classifier, config: ClassifierConfig, fabric: Fabric, validation: ImageDataset, steps: int,
        per_epoch: int, class_weights: Tensor | None = None, compiled: bool = False,
        penalties: OfClassifier | None = None,
    ) -> None:  # fmt: skip
        self.penalties = penalties
        self.config, self.fabric, self.validation = config, fabric, validation
        self.class_weights = None if class_weights is None else class_weights.to(fabric.device)
        self.steps, self.per_epoch = steps, per_epoch
        self.model = fast_layout(model).to(fabric.device)
        self.frozen = freeze(model, config.train_layers, config.freeze_norm)
        share_batch_norm(model)
        self.answer: nn.Module = validation.layer if isinstance(validation, FeatureDataset) else model
        self.forward = torch.compile(self.answer) if compiled else self.answer
        self.optimizer = setup_optimizer(fabric, _optimizer(config, model))

    @property
    def steerable(self) -> tuple[str, ...]:
        """Keys of `classifier` that may change while it trains."""
        own = ("learning_rate", "weight_decay", "label_smoothing", "early_stopping", "keep_every")
        sgd, drops = self.config.optimizer == "sgd", self.config.schedule == "step"
        return own + ("momentum",) * sgd + ("step_epochs", "step_factor") * drops

    def apply(self, values: Mapping[str, Any]) -> None:
        super().apply(values)
        if self.penalties is not None and "penalties" in values:
            self.penalties.use(values["penalties"])

    def step(self, images: Tensor, labels: Tensor, step: int) -> dict[str, Tensor]:
        self.model.train()
        for module in self.frozen:
            module.eval()
        set_rate(self.optimizer, self.config.learning_rate * _rate(self.config, step, self.steps, self.per_epoch))
        self.optimizer.zero_grad()
        total = right = torch.zeros((), device=images.device)
        logged: dict[str, Tensor] = {}
        size = mean_over_processes(self._size(labels))
        count = self.config.accumulate
        costs = None if self.penalties is None else self.penalties.costs(labels)
        for part, truth in zip(images.tensor_split(count), labels.tensor_split(count), strict=True):
            logits, sums = self._look(part, truth)
            loss = self._cross_entropy(logits, truth) / size
            terms = {key: (weight, value / len(images)) for key, (weight, value) in sums.items()}
            terms |= {} if costs is None else costs.terms(logits, truth)
            weighted = {key: weight * value for key, (weight, value) in terms.items()}
            check_finite({"cross-entropy": loss, **weighted}, step)
            self.fabric.backward(sum(weighted.values(), loss))
            logged |= {key: logged.get(key, 0) + value.detach() for key, (_, value) in terms.items()}
            likeliest = truth if truth.ndim == 1 else truth.argmax(1)  # mixup gives probabilities
            total, right = total + loss.detach(), right + (logits.argmax(1) == likeliest).sum()
        average_gradients(self.model.parameters())
        self.optimizer.step()
        logged = logged if costs is None else costs.logged(logged)
        return {"loss": total, "accuracy": right / len(images), **logged}

    def _look(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, tuple[float, Tensor]]]:
        """Logits, and the terms of penalties: weight, and sum over the images.

        Args:
            images: (B, 3 + R, H, W), with the regions that penalties ask for.
        """
        penalties = self.penalties
        with self.fabric.autocast():
            if penalties is None or not penalties.regional():
                return self.forward(images).float(), {}
            logits, last = last_map(self.model, images[:, :3])
        return logits.float(), penalties.terms(last, self.model.last_layer.weight, labels, images[:, 3:])

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum over the images."""
        smoothing = self.config.label_smoothing
        return F.cross_entropy(logits, labels, self.class_weights, label_smoothing=smoothing, reduction="sum")

    def _size(self, labels: Tensor) -> Tensor:
        """What divides that sum: the number of images, or the sum of the weights of their classes."""
        if self.class_weights is not None and labels.ndim == 1:
            return self.class_weights[labels].sum()
        return torch.tensor(float(len(labels)), device=labels.device)

    @torch.no_grad()
    def evaluate(self, step: int) -> tuple[dict[str, float], float | None]:
        self.model.eval()
        dataset, measure, classes = self.validation, self.config.best_metric, len(self.validation.class_names)
        counts, loss = np.zeros((classes, classes), dtype=int), 0.0
        for images, labels in dataset.batches(256, np.arange(len(dataset))[rank() :: world_size()]):
            images, labels = images.to(self.fabric.device), labels.to(self.fabric.device)
            with self.fabric.autocast():
                logits = self.answer(images).float()
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            counts += confusion(logits.argmax(1).cpu().numpy(), labels.cpu().numpy(), classes)
        shares = gather_objects((counts, loss))
        counts, loss = np.sum([share[0] for share in shares], 0), sum(share[1] for share in shares)
        results = {"accuracy": int(counts.trace()) / len(dataset), "loss": loss / len(dataset)}
        if measure not in results:
            results[measure] = class_average(counts, measure)
        if self.penalties is not None and self.penalties.wanted:
            results |= self.penalties.measure(self._looked, self.fabric.device)
        # Ties are common on small data: the lower loss decides among them.
        score = -results["loss"] if measure == "loss" else results[measure] - 1e-6 * math.tanh(results["loss"])
        return results, score

    def _looked(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and the map that the last layer reads."""
        with self.fabric.autocast():
            logits, last = last_map(self.model, images)
        return logits.float(), last


def class_average(counts: np.ndarray, measure: str) -> float:
    """Balanced accuracy ("balanced_accuracy": mean recall) or macro F1 ("f1") of a confusion matrix (C, C).

    Rows are true classes. Classes without images (for F1: without images and predictions) are left out.
    """
    truth, right = counts.sum(1), counts.diagonal()
    whole = truth if measure == "balanced_accuracy" else (truth + counts.sum(0)) / 2
    return float((right[whole > 0] / whole[whole > 0]).mean())


def _optimizer(config: ClassifierConfig, model: Classifier) -> torch.optim.Optimizer:
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    if config.optimizer == "sgd":
        momentum, decay = config.momentum, config.weight_decay
        return torch.optim.SGD(parameters, config.learning_rate, momentum, weight_decay=decay)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "radam": torch.optim.RAdam}
    return kinds[config.optimizer](parameters, config.learning_rate, weight_decay=config.weight_decay)


def _rate(config: ClassifierConfig, step: int, steps: int, per_epoch: int) -> float:
    """Factor on the learning rate at a step."""
    warm = _warm_up(config, steps, per_epoch)
    if step < warm or config.schedule == "cosine":
        return warm_cosine(step, steps, warm)
    if config.schedule == "step":
        return config.step_factor ** (step // (config.step_epochs * per_epoch))
    return 1.0


def _warm_up(config: ClassifierConfig, steps: int, per_epoch: int) -> int:
    """Steps of linearly rising rate at the start."""
    if config.warmup_epochs is not None:
        return round(config.warmup_epochs * per_epoch)
    return max(1, min(100, steps // 10)) if config.schedule == "cosine" else 0
