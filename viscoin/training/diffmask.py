"""Training of DiffMask on a frozen ViT: as few patches as possible, as long as f says the same."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torchvision.utils import save_image

from stylegan2_ada.distributed import (
    average_gradients,
    gather_objects,
    mean_over_processes,
    rank,
    world_size,
)
from stylegan2_ada.optimizer import Lookahead, load_optimizer, set_rate
from viscoin.config import ClassifierConfig, DiffMaskConfig, Recipe
from viscoin.datasets import ImageDataset
from viscoin.errors import Refused
from viscoin.files import atomic_path
from viscoin.inference.batches import choose_images
from viscoin.models.classifier import Classifier
from viscoin.models.diffmask import DiffMask, Masked, kl_divergence
from viscoin.models.files import save_model
from viscoin.models.tokens import PatchTokens
from viscoin.runs.control import commands_told
from viscoin.runs.run import Run
from viscoin.training.checkpoints import load_best
from viscoin.training.data import StepBatches, batch_workers
from viscoin.training.diffmask_start import build_diffmask
from viscoin.training.failures import recoverable
from viscoin.training.loop import check_finite, fit
from viscoin.training.runtime import (
    Runtime,
    check_shares,
    fast_layout,
    launch,
    load_scaler,
    load_splits,
    scaler_state,
    seed_step,
    setup_optimizer,
    whole_batch,
)
from viscoin.training.single import changed
from viscoin.training.transforms import Transforms

logger = logging.getLogger(__name__)

VALIDATION_IMAGES = 1000
MOST_KL, LEAST_AGREEMENT = 0.8, 0.75  # of masks that are good enough for their size to count
LARGEST_ALPHA = 200.0
KEEP, GOOD_AGREEMENT, GOOD_KEPT, WELL_KNOWN, RARELY = 0.9, 0.75, 0.1, 100, 0.1  # of the weighted layer distribution


@recoverable
def train_diffmask(
    recipe: Recipe,
    run: Run,
    classifier: Classifier,
    runtime: Runtime = Runtime(),  # noqa: B008  it is frozen
) -> Path:
    """Train gates and placeholder by the recipe; masks of sample images go to the run's `figures/`.

    Images are changed as `classifier.*` says (flips, crops, rotation, noise, blur), as those that f was trained on.

    Returns:
        The model file in the run's folder, with the weights that keep the smallest share of the patches among those
        whose masks keep f's predictions (KL at most 0.8, agreement at least 0.75, on validation images).

    Raises:
        Refused: f is no plain ViT, or the start weights are of another f.
        ValueError: a batch that cannot be shared out, or a loss that is not finite.
    """
    config = recipe.diffmask
    check_shares("diffmask", runtime, 1, batch_size=config.batch_size)
    tokens = PatchTokens(classifier)
    fabric, run = launch(runtime, run)
    train, validation = load_splits(fabric, recipe)
    seed_step(recipe.seed, 0)
    model = build_diffmask(config, tokens, train)
    batch_size = whole_batch(config.batch_size, len(train), runtime.processes)
    task = DiffMaskTask(model, tokens, config, fabric, validation, runtime.compile)
    batches = StepBatches(
        train, batch_size, recipe.seed, recipe.classifier.horizontal_flip, recipe.classifier.padding,
        fabric.global_rank, fabric.world_size, transforms=_transforms(recipe.classifier),
        workers=batch_workers(fabric.device) if config.num_workers is None else config.num_workers,
    )  # fmt: skip
    steps = config.epochs * max(1, len(train) // batch_size)
    fit(
        run, task, batches, steps, seed=recipe.seed, evaluate_every=config.log_every_n_steps, device=fabric.device,
        title="diffmask", on_evaluate=_draws(task, run, (train, validation), recipe), shared_draws=True,
        patience=config.early_stopping,
    )  # fmt: skip
    step = load_best(run, task)
    results, _ = task.evaluate(0)
    if fabric.global_rank == 0:
        _report(results)
        save_model(
            run.model_path, model, "diffmask", recipe=recipe, class_names=train.class_names,
            scores={f"validation.{key}": value for key, value in results.items()},
            selection={"metric": "validation.kept", "value": results["kept"], "step": step},
            commands=commands_told(run.path),
        )  # fmt: skip
    fabric.barrier()
    return run.model_path


def _transforms(config: ClassifierConfig) -> Transforms | None:
    """Those of f's training images, but for mixup: a blend of two images has no one prediction to keep."""
    transforms = Transforms.of(config)
    return None if transforms is None else replace(transforms, mixup=0.0)


def _report(results: Mapping[str, float]) -> None:
    if score(results) < 0:
        logger.warning(
            "no masks of this training keep f's predictions (KL %.3g, at most %g; agreement %.3g, at least %g); train "
            "longer, or with a lower diffmask.eps",
            results["kl"], MOST_KL, results["agreement"], LEAST_AGREEMENT,
        )  # fmt: skip


# --- the task -----------------------------------------------------------------------------------------------------


class DiffMaskTask:
    """alpha_k (KL(f(x) || f(masked)) - eps) + sparsity, minimised over gates and placeholder, maximised over alpha_k.

    At each step the gates of the layers from 0 to one that is drawn are sampled. The score is `score`.
    """

    def __init__(
        self, model: DiffMask, tokens: PatchTokens, config: DiffMaskConfig, fabric: Fabric, validation: ImageDataset,
        compiled: bool = False,
    ) -> None:  # fmt: skip
        self.config, self.fabric, self.validation, self.tokens = config, fabric, validation, tokens
        self.model = model.to(fabric.device)
        # in eval mode: dropout of f would be taken for what masks do
        fast_layout(tokens.classifier).to(fabric.device).eval().requires_grad_(False)
        groups: list[dict[str, Any]] = [{"params": list(model.gates.parameters()), "lr": config.learning_rate}]
        if model.placeholder.requires_grad:
            groups.append({"params": [model.placeholder], "lr": config.lr_placeholder})
        self.trained = [weight for group in groups for weight in group["params"]]
        self.optimizer = Lookahead(setup_optimizer(fabric, torch.optim.Adam(groups)))
        self.ascent = torch.optim.Adam(model.alphas.parameters(), config.lr_alpha, maximize=True)
        # of each layer: steps in which it was drawn, and running means of agreement and of the share kept
        self.running = torch.stack([torch.zeros(model.layers), *torch.ones(2, model.layers)])
        if compiled:
            for block in tokens.blocks.children():
                block.compile()

    @property
    def steerable(self) -> tuple[str, ...]:
        """Keys of `diffmask` that may change while it trains."""
        placeholder = ("lr_placeholder",) * self.model.placeholder.requires_grad
        return ("learning_rate", *placeholder, "lr_alpha", "eps", "early_stopping")

    def apply(self, values: Mapping[str, Any]) -> None:
        """Train by these values from the next step on."""
        self.config = changed(self.config, values)
        set_rate(self.ascent, self.config.lr_alpha)

    def step(self, images: Tensor, labels: Tensor, step: int) -> dict[str, Tensor]:
        self._warm_up(step)
        layer = self._draw_layer()
        with torch.no_grad(), self.fabric.autocast():
            logits, states = self.tokens.states(images)
        logits = logits.float()
        mask, log_open = self.model.sample(states[: layer + 1], self._uniforms(len(images), states.shape[2], layer))
        with self.fabric.autocast():
            masked = self.tokens.logits(self.model.replace(states[0], mask)).float()
        divergence = kl_divergence(logits, masked).mean()
        excess, alpha = divergence - self.config.eps, self.model.alphas[layer]
        loss = alpha.detach() * excess + sparsity(log_open, self.config.sparsity).mean()
        check_finite({"KL": divergence, "loss": loss}, step)
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        average_gradients(self.trained)
        self.optimizer.step()
        ascend(self.ascent, alpha, mean_over_processes(excess.detach()))
        kept = log_open.detach().exp().mean()
        agreement = (masked.argmax(1) == logits.argmax(1)).float().mean()
        self._note(layer, agreement, kept)
        return {
            "loss": loss.detach(), "kl": divergence.detach(), "kept": kept, "agreement": agreement,
            f"alpha.{layer}": alpha.detach().clone(),
        }  # fmt: skip

    def _warm_up(self, step: int) -> None:
        factor = min(1.0, (step + 1) / max(1, self.config.warmup_steps))
        rates = (self.config.learning_rate, self.config.lr_placeholder)  # the second one only where it is learned
        for group, rate in zip(self.optimizer.param_groups, rates, strict=False):
            group["lr"] = rate * factor

    def _draw_layer(self) -> int:
        """The same one in all processes, which sample the same random numbers."""
        weights = torch.ones(self.model.layers)
        if self.config.weighted_layer_distribution:
            drawn, agreement, kept = self.running
            weights[(agreement > GOOD_AGREEMENT) & (kept < GOOD_KEPT) & (drawn > WELL_KNOWN)] = RARELY
        return int(torch.multinomial(weights, 1))

    def _uniforms(self, images: int, patches: int, layer: int) -> Tensor:
        """Those of this process among those of the whole batch, so that the step is the same on any number of them."""
        shape = (images * world_size(), patches, layer + 1)
        return torch.rand(shape, device=self.fabric.device)[rank() :: world_size()]

    def _note(self, layer: int, agreement: Tensor, kept: Tensor) -> None:
        now = mean_over_processes(torch.stack([agreement, kept])).cpu()
        self.running[0, layer] += 1
        self.running[1:, layer] = KEEP * self.running[1:, layer] + (1 - KEEP) * now

    def explain(self, images: Tensor) -> Masked:
        """Final masks of images (B, 3, H, W) in [-1, 1], and what f says with them."""
        with torch.no_grad(), self.fabric.autocast():
            return self.model.explain(self.tokens, images.to(self.fabric.device))

    def layers(self, images: Tensor) -> Tensor:
        """Masks (L + 2, B, N) of images (B, 3, H, W) by the gates of the layers up to each; the last are the final."""
        with torch.no_grad(), self.fabric.autocast():
            _, states = self.tokens.states(images.to(self.fabric.device))
            return self.model.log_open(states).cumsum(-1).exp().movedim(-1, 0)

    def evaluate(self, step: int) -> tuple[dict[str, float], float | None]:
        totals, n = torch.zeros(4, dtype=torch.float64), 0
        chosen = choose_images(len(self.validation), VALIDATION_IMAGES, seed=0)[rank() :: world_size()]
        for images, labels in self.validation.batches(125, chosen):
            found, labels = self.explain(images), labels.to(self.fabric.device)
            answers = found.masked_logits.argmax(1)
            right = answers == found.logits.argmax(1), answers == labels
            totals += torch.stack([found.kl.sum(), found.kept.sum(), *(part.sum() for part in right)]).double().cpu()
            n += len(labels)
        totals, n = map(sum, zip(*gather_objects((totals, n))))  # type: ignore[assignment]
        results = dict(zip(("kl", "kept", "agreement", "accuracy"), (totals / n).tolist(), strict=True))
        return results, score(results)

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ascent": self.ascent.state_dict(),
            "running": self.running.clone(),
            "scaler": scaler_state(self.fabric),
            "classifier": self.model.classifier,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["classifier"] != self.model.classifier:
            raise Refused(
                None, None,
                f"this run was started with a classifier of digest {state['classifier'][:16]}, and this one has "
                f"{self.model.classifier[:16]}",
                "give the same one (`classifier`), or start a new run",
            )  # fmt: skip
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        load_optimizer(self.ascent, state["ascent"])
        self.running.copy_(state["running"])
        load_scaler(self.fabric, state.get("scaler", {}))


def sparsity(log_open: Tensor, measure: str) -> Tensor:
    """Per image, (B,), of log P(kept) of its patches (B, N): the expected share that is kept, or the mean log."""
    return (log_open.exp() if measure == "expected" else log_open).mean(1)


def ascend(optimizer: torch.optim.Optimizer, alpha: torch.nn.Parameter, excess: Tensor) -> None:
    """Move one multiplier up where the divergence exceeds what is tolerated, else down; it stays in [0, 200].

    Args:
        optimizer: of the multipliers, which maximises; those without a gradient stay as they are.
        excess: KL - eps, which is the derivative of the loss by the multiplier.
    """
    alpha.grad = excess.to(alpha)
    optimizer.step()
    alpha.grad = None
    alpha.data.clamp_(0, LARGEST_ALPHA)


def score(results: Mapping[str, float]) -> float:
    """1 - the share kept, of masks that keep f's predictions; of others, below 0, how far they are from that."""
    lacking = max(0.0, results["kl"] - MOST_KL) + max(0.0, LEAST_AGREEMENT - results["agreement"])
    return -lacking if lacking else 1 - results["kept"]


# --- sample images ------------------------------------------------------------------------------------------------


def _draws(task: DiffMaskTask, run: Run, splits: tuple[ImageDataset, ...], recipe: Recipe) -> Callable[[int], None]:
    """What draws the masks of sample images of each split after each validation, and writes down what they do.

    `masks-STEP.png` has rows of images, masks and masked images; `layers-STEP.png` images and masks up to each layer.
    """
    chosen = [(data, choose_images(len(data), recipe.diffmask.sample_images, recipe.seed)) for data in splits]
    images, labels = (torch.cat(parts) for parts in zip(*(data.batch(indices) for data, indices in chosen)))
    sources = [(data.split, int(index)) for data, indices in chosen for index in indices]
    names = splits[0].class_names

    def draw(step: int) -> None:
        found = task.explain(images)
        masks, *layers = (_pictured(task.tokens, one, images) for one in (found.mask, *task.layers(images)))
        for name, rows in (("layers", [2 * one - 1 for one in layers]), ("masks", [2 * masks - 1, images * masks])):
            with atomic_path(run.figures / f"{name}-{step:06d}.png") as partial:
                pictures = torch.cat([images, *rows])
                save_image(pictures, partial, "PNG", nrow=len(images), normalize=True, value_range=(-1, 1))
        about = [
            {"split": split, "index": index, "class": names[label], "predicted": names[predicted],
             "predicted_with_mask": names[masked], "kl": kl, "kept": kept}
            for (split, index), label, predicted, masked, kl, kept in zip(
                sources, labels.tolist(), found.logits.argmax(1).tolist(), found.masked_logits.argmax(1).tolist(),
                found.kl.tolist(), found.kept.tolist(), strict=True,
            )
        ]  # fmt: skip
        with atomic_path(run.figures / f"masks-{step:06d}.json") as partial:
            partial.write_text(json.dumps(about, indent=1) + "\n")

    return draw


def _pictured(tokens: PatchTokens, mask: Tensor, images: Tensor) -> Tensor:
    """A mask (B, N) as grey images."""
    return tokens.enlarge(mask.float().cpu(), images.shape[-1])[:, None].expand_as(images)
