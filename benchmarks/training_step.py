"""A training step of the ensemble on random images, and what its parts take."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import Work, duration, flops, synchronize

if TYPE_CHECKING:
    from viscoin.training.data import StepBatches
    from viscoin.training.viscoin_task import ViscoinTask

# Recipes whose ensembles are measured. Float16 blocks of G, which GPUs get, are left out, so that float32 means it.
ENSEMBLES = {"256": "birds256"}
OVERRIDES = {"gan.num_fp16_res": 0, "viscoin.perceptual_loss": "classifier"}
PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed"}
WARM_UP = 4  # steps until the memory and the compiled code are there
NETWORKS = ("f", "Psi, Theta", "Omega, G", "perceptual")
OUTSIDE = ("data", "losses", "optimiser", "rest")


class StepCase(NamedTuple):
    """One way to take a step."""

    size: str
    dtype: str
    mode: str  # eager or compiled
    processes: int


def make_task(case: StepCase, kind: str) -> "tuple[ViscoinTask, StepBatches]":
    """The task of a recipe with random weights, and batches of random images."""
    # Imported here, so that the memory of a step goes on counting that of the libraries it needs.
    from viscoin.config import load_recipe
    from viscoin.datasets import ImageDataset
    from viscoin.models.classifier import Classifier
    from viscoin.models.perceptual import Lpips
    from viscoin.training.data import StepBatches, batch_workers
    from viscoin.training.gan import build_generator
    from viscoin.training.runtime import Runtime, make_fabric
    from viscoin.training.viscoin import build_ensemble
    from viscoin.training.viscoin_task import ViscoinTask

    name, threads = ENSEMBLES.get(case.size, case.size), torch.get_num_threads()
    recipe = load_recipe(name, OVERRIDES)
    fabric = make_fabric(Runtime(kind, PRECISIONS[case.dtype], case.processes))
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    names, size = [str(i) for i in range(recipe.dataset.classes or 20)], recipe.dataset.resolution
    f = Classifier(recipe.classifier.backbone, len(names), size)
    g = build_generator(recipe.gan, size)
    g.mapping.w_avg.normal_()
    ensemble = build_ensemble(recipe.viscoin, f, g, names)
    pixels = np.random.default_rng(0).integers(0, 256, (1024, size, size, 3), dtype=np.uint8)
    images = ImageDataset("noise", "train", pixels, np.zeros(len(pixels)), names)
    task = ViscoinTask(ensemble, g, recipe.viscoin, fabric, images, case.mode == "compiled")
    if load_recipe(name).viscoin.perceptual_loss == "lpips":  # random weights take as long as the published ones
        task.perceptual = Lpips(fabric.device, pretrained=False)
    return task, StepBatches(
        images, recipe.viscoin.batch_size, 0, recipe.viscoin.horizontal_flip, rank=fabric.global_rank,
        world_size=fabric.world_size, workers=batch_workers(fabric.device),
    )  # fmt: skip


class TrainingStep:
    """A training step on random images, data included; in each process its share of the batch."""

    def __init__(self, case: StepCase, kind: str) -> None:
        self.case, self.kind = case, kind
        self.task, self.batches = make_task(case, kind)
        self.images, self.number = self.task.config.batch_size, self.task.config.warmup_steps
        begin = time.perf_counter()
        self.run()
        self.first_seconds = time.perf_counter() - begin
        for _ in range(WARM_UP - 1):
            self.run()

    def run(self) -> None:
        """Take the next step."""
        self.number += 1
        images, labels = self.batches(self.number)
        device = self.task.fabric.device
        self.task.step(images.to(device), labels.to(device), self.number)

    def flops(self) -> int:
        """Those of a step, as torch counts them."""
        with torch.compiler.set_stance("force_eager"):  # compiled code hides from the counter
            return flops(Work(self.run, self.images))

    def measure(self, seconds: float, clock: Callable[[], float]) -> dict[str, Any]:
        """Seconds and flops of a step, and of its parts."""

        def now() -> float:
            synchronize(self.kind)
            return clock()

        return {
            "images": self.images,
            "first_seconds": self.first_seconds,
            "flops": self.flops(),
            "seconds": duration(Work(self.run, self.images), self.kind, seconds, clock),
            "parts": Split(self, now).of_steps(seconds),
        }


class Split:
    """What the parts of a step take. Networks are wrapped, and hooks on what they give tell where the backward pass is.

    The backward pass visits the networks in reverse order, one after the other; where it is in one of the losses, what
    follows a network counts for that network until the next one, which is little.
    """

    def __init__(self, step: TrainingStep, read: Callable[[], float]) -> None:
        self.step, self.read = step, read
        self.totals: dict[str, float] = defaultdict(float)
        self.part, self.at = "rest", 0.0

    def of_steps(self, seconds: float) -> dict[str, float]:
        """Mean seconds of each part over as many steps as take so long."""
        count = 0
        with ExitStack() as stack:
            for owner, name, part in self._places():
                timed = self._timed(getattr(owner, name), part, backward=name != "backward")
                stack.enter_context(patch.object(owner, name, timed))
            self.at = self.read()
            while sum(self.totals.values()) < seconds or count < 2:
                self.step.run()
                self._switch("rest")
                count += 1
        return {part: total / count for part, total in self.totals.items()}

    def _places(self) -> Iterator[tuple[Any, str, str]]:
        task = self.step.task
        ensemble = task.ensemble
        for module, part in (
            (ensemble.concept_extractor, "Psi, Theta"),
            (ensemble.explainer, "Psi, Theta"),
            (ensemble.generator.mapping, "Omega, G"),
            (ensemble.generator.synthesis, "Omega, G"),
            (task.sampler, "Omega, G"),
        ):
            yield module, "forward" if module._compiled_call_impl is None else "_compiled_call_impl", part
        yield ensemble.classifier, "features", "f"
        yield task, "perceptual", "perceptual"
        yield task, "_terms", "losses"
        yield task.fabric, "backward", "losses backward"
        yield task.optimizer, "step", "optimiser"
        yield self.step, "batches", "data"

    def _timed(self, function: Callable[..., Any], part: str, backward: bool) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            before = self.part
            self._switch(part)
            out = function(*arguments, **options)
            for tensor in _tensors(out) if backward else []:
                if tensor.requires_grad:
                    tensor.register_hook(lambda _: self._switch(f"{part} backward"))
            self._switch(before)
            return out

        return timed

    def _switch(self, part: str) -> None:
        now = self.read()
        self.totals[self.part] += now - self.at
        self.part, self.at = part, now


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


def step_parts() -> list[str]:
    """In the order of a step."""
    backward = [f"{part} backward" for part in ("losses", *reversed(NETWORKS))]
    return ["data", *NETWORKS, "losses", *backward, "optimiser", "rest"]
