"""Devices, precision and seeds: everything that a run needs from Lightning Fabric."""

import logging
import os
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from subprocess import Popen
from typing import Any, TypeVar, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from torch import nn

from stylegan2_ada.memory import keep_freed_memory
from viscoin.config import Recipe
from viscoin.datasets import ImageDataset, load_dataset
from viscoin.errors import Refused
from viscoin.inference.devices import check_devices
from viscoin.runs.run import Run
from viscoin.training.slurm import fabric_plugins

AnyModule = TypeVar("AnyModule", bound=nn.Module)

PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")
STRATEGIES = ("auto", "ddp", "ddp-gloo", "ddp-nccl")
GRACE = 20  # seconds in which processes end by themselves when one of them is gone
WELL = (None, 0, 129, 130, 138, 143)  # exit codes: still there, done, or stopped by a signal, as the others then are
PATIENCE = timedelta(hours=2)  # of processes that wait for another one, which may test or read images alone


@dataclass(frozen=True)
class Runtime:
    """Where and how to compute: what the options of the same names mean.

    Attributes:
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        precision: "auto" takes bfloat16 autocast where the hardware has bfloat16 arithmetic and float32 elsewhere.
        devices, num_nodes: devices (on the CPU: processes) of each node, and nodes.
        strategy: how processes talk: "auto", or "ddp" with the backend of choice, "ddp-gloo" or "ddp-nccl".
        compile: let `torch.compile` translate the networks.
    """

    device: str = "auto"
    precision: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    compile: bool = False

    @property
    def processes(self) -> int:
        return self.devices * self.num_nodes


@cache
def make_fabric(runtime: Runtime = Runtime()) -> Fabric:
    """Fabric on one device, or on several that each have a process; the same one for the same runtime.

    With several devices of one node the other processes are started here and run the same command again; on several
    nodes torchrun or SLURM starts all of them.

    Raises:
        ValueError: unknown or absent device, unknown precision or strategy, more devices than there are, or processes
            that a launcher started in another number than `devices` and `num_nodes` say.
    """
    keep_freed_memory()
    accelerator, index = check_runtime(runtime)
    precision = runtime.precision
    if precision == "auto":
        precision = "bf16-mixed" if _fast_bfloat16(accelerator) else "32-true"
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    backend = runtime.strategy.partition("-")[2] or ("nccl" if accelerator == "cuda" else "gloo")
    distributed = runtime.processes > 1 or runtime.strategy != "auto"
    with warnings.catch_warnings():
        # Outside a SLURM job, on a machine that has srun, Fabric recommends srun; that is the user's business.
        warnings.filterwarnings("ignore", message="The `srun` command is available")
        fabric = Fabric(
            accelerator=accelerator,
            devices=[index] if index is not None else runtime.devices,
            num_nodes=runtime.num_nodes,
            precision=precision,  # type: ignore[arg-type]
            plugins=fabric_plugins(runtime.devices, runtime.num_nodes),
            strategy=DDPStrategy(process_group_backend=backend, timeout=PATIENCE) if distributed else "auto",
        )
    fabric.launch()
    _watch(getattr(fabric.strategy.launcher, "procs", []))
    if fabric.local_rank > 0:
        _watch_parent()
    return fabric


def _watch(children: Sequence[Popen[bytes]]) -> None:
    """End this process with a word where one that it started dies, if its own exchange with that does not end it.

    Fabric watches them, too, but kills everything at once and says nothing.
    """

    def wait() -> None:
        codes = _wait_for_failure(children)
        time.sleep(GRACE)
        for child in children:
            child.kill()
        print(f"Error: another process of this training is gone ({codes}); the same command goes on", file=sys.stderr)
        os._exit(os.EX_TEMPFAIL)

    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            thread._run = lambda: True  # type: ignore[attr-defined]  # its work is done
    if children:
        threading.Thread(target=wait, daemon=True, name="children").start()


def _wait_for_failure(children: Sequence[Popen[bytes]]) -> str:
    """The exit codes of those that failed, once one has."""
    while not (codes := [str(code) for child in children if (code := child.poll()) not in WELL]):
        time.sleep(0.5)
    return ", ".join(codes)


def _watch_parent() -> None:
    """End this process where the one that started it dies: an exchange between GPUs may notice nothing."""
    parent = os.getppid()

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        time.sleep(GRACE)
        os._exit(os.EX_TEMPFAIL)

    threading.Thread(target=wait, daemon=True, name="parent").start()


def check_runtime(runtime: Runtime) -> tuple[str, int | None]:
    """Accelerator and index of the device of a runtime, if available here.

    Raises:
        ValueError: as `make_fabric`.
    """
    if runtime.precision not in PRECISIONS:
        raise Refused("precision", runtime.precision, "unknown", f"choose {_either(PRECISIONS)}")
    if runtime.strategy not in STRATEGIES:
        raise Refused("strategy", runtime.strategy, "unknown", f"choose {_either(STRATEGIES)}")
    accelerator, index = check_devices(runtime.device, runtime.devices, runtime.num_nodes)
    if runtime.strategy == "ddp-nccl" and accelerator != "cuda":
        raise Refused("strategy", "ddp-nccl", f"needs CUDA devices, `device` is {accelerator}", "use ddp-gloo here")
    if runtime.precision == "16-mixed" and accelerator == "cpu":
        raise Refused("precision", "16-mixed", "needs a GPU", "use 32-true or bf16-mixed here")
    if runtime.compile and accelerator == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        reason = "needs a C++ compiler (g++ or clang++) on the CPU"
        raise Refused("compile", None, reason, "install one or leave it out")
    launched = os.environ.get("WORLD_SIZE") if "LOCAL_RANK" in os.environ else None
    if launched is not None and int(launched) != runtime.processes:
        wanted = f"`devices` {runtime.devices} times `num_nodes` {runtime.num_nodes} is {runtime.processes}"
        raise Refused(None, None, f"a launcher started {launched} processes, but {wanted}", "make them agree")
    return accelerator, index


def _either(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def launch(runtime: Runtime, run: Run) -> tuple[Fabric, Run]:
    """Fabric, and the run that the first process made, in all processes."""
    fabric = make_fabric(runtime)
    path = Path(fabric.broadcast(str(run.path)))
    return fabric, run if fabric.global_rank == 0 else Run(path)


def load_splits(fabric: Fabric, recipe: Recipe) -> tuple[ImageDataset, ImageDataset]:
    """Images to train and to validate on; one process of each node prepares them for the others."""
    with fabric.rank_zero_first(local=True):
        train, validation = (
            load_dataset(recipe.dataset.name, split, recipe.dataset) for split in ("train", "validation")
        )
    return train, validation


def setup_optimizer(fabric: Fabric, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimiser as Fabric's precision needs it."""
    return cast(torch.optim.Optimizer, fabric.setup_optimizers(optimizer))


def scaler_state(fabric: Fabric) -> dict[str, Any]:
    """The loss scale of float16 arithmetic; empty in others."""
    return fabric.strategy.precision.state_dict()


def load_scaler(fabric: Fabric, state: Mapping[str, Any]) -> None:
    """Take the loss scale of a checkpoint, if it has one: it may come from a training in another precision."""
    if state:
        fabric.strategy.precision.load_state_dict(dict(state))


def check_shares(kind: str, runtime: Runtime, accumulate: int, **counts: int) -> None:
    """Refuse counts of images in a step that cannot be shared out.

    Raises:
        ValueError: a count that does not divide by the processes times the parts that each makes of its share.
    """
    divisor = runtime.processes * accumulate
    for name, count in counts.items():
        if count % divisor:
            parts = f" times {accumulate} parts (`{kind}.accumulate`)" if accumulate > 1 else ""
            raise Refused(
                f"{kind}.{name}", count,
                f"does not divide by {runtime.processes} devices (`devices`, `num_nodes`){parts}",
                f"choose a multiple of {divisor}",
            )  # fmt: skip


def whole_batch(batch_size: int, images: int, divisor: int) -> int:
    """The batch size, or what few images allow, such that it divides.

    Raises:
        ValueError: fewer images than that.
    """
    size = min(batch_size, images)
    size -= size % divisor
    if not size:
        raise ValueError(f"{images} training images are too few for {divisor} shares; use fewer devices or parts")
    return size


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Make all random numbers of a step depend on (seed, step, rank) alone, so that a resumed run repeats them."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1))


def fast_layout(module: AnyModule) -> AnyModule:
    """Channels-last weights: the layout in which CPU and GPU convolutions are fastest."""
    return module.to(memory_format=torch.channels_last)


def _fast_bfloat16(accelerator: str) -> bool:
    if accelerator == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if accelerator == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False
