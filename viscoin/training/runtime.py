"""Devices, precision and seeds: everything that a run needs from Lightning Fabric."""

import hashlib
import logging
import os
import warnings
from typing import TypeVar

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from stylegan2_ada.memory import keep_freed_memory

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def make_fabric(device: str = "auto", precision: str = "auto", devices: int = 1, num_nodes: int = 1) -> Fabric:
    """Fabric on one device, or on several that each have a process.

    With several devices of one node the other processes are started here and run the same command again; on several
    nodes torchrun or SLURM starts all of them.

    Args:
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        precision: "auto" takes bfloat16 autocast where the hardware has bfloat16 arithmetic and float32 elsewhere.
        devices, num_nodes: devices (on the CPU: processes) of each node, and nodes.

    Raises:
        ValueError: unknown or absent device, unknown precision, more devices than there are.
    """
    keep_freed_memory()
    accelerator, index = check_devices(device, devices, num_nodes)
    if precision == "auto":
        precision = "bf16-mixed" if _fast_bfloat16(accelerator) else "32-true"
    if precision not in ("32-true", "bf16-mixed", "16-mixed"):
        raise ValueError(f"--precision {precision!r} is unknown; choose auto, 32-true, bf16-mixed or 16-mixed")
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    several = devices * num_nodes > 1
    with warnings.catch_warnings():
        # Outside a SLURM job, on a machine that has srun, Fabric recommends srun; that is the user's business.
        warnings.filterwarnings("ignore", message="The `srun` command is available")
        fabric = Fabric(
            accelerator=accelerator,
            devices=[index] if index is not None else devices,
            num_nodes=num_nodes,
            precision=precision,  # type: ignore[arg-type]
            strategy="ddp" if several else "auto",
        )
    fabric.launch()
    if fabric.global_rank > 0:
        for name in ("viscoin", "stylegan2_ada"):
            logging.getLogger(name).setLevel(logging.WARNING)
    return fabric


def check_devices(device: str, devices: int, num_nodes: int) -> tuple[str, int | None]:
    """Accelerator and index of a device; ValueError unless there are so many of them."""
    accelerator, index = _parse_device(device)
    if devices < 1 or num_nodes < 1:
        raise ValueError(f"--devices {devices}, --num-nodes {num_nodes}: both count from 1")
    if devices > 1 and index is not None:
        raise ValueError(f"--devices {devices}: --device {device} is one device; pass --device {accelerator}")
    there = {"cuda": torch.cuda.device_count(), "mps": 1, "cpu": os.cpu_count() or 1}[accelerator]
    if devices > there:
        unit = {"cuda": "CUDA devices", "mps": "Apple GPU", "cpu": "CPU cores"}[accelerator]
        raise ValueError(f"--devices {devices}: there are only {there} {unit} here; ask for at most {there}")
    return accelerator, index


def is_first_process() -> bool:
    """Whether this process writes files and speaks: false in those that a launcher started beside it."""
    return all(int(os.environ.get(name) or 0) == 0 for name in ("RANK", "NODE_RANK", "LOCAL_RANK", "SLURM_PROCID"))


def resolve_device(device: str = "auto") -> torch.device:
    """The torch device that `make_fabric` would use."""
    keep_freed_memory()
    accelerator, index = _parse_device(device)
    return torch.device(accelerator, index or 0) if accelerator == "cuda" else torch.device(accelerator)


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Make all random draws of a step depend on (seed, step, rank) alone, so that a resumed run repeats them."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1))


def fast_layout(module: AnyModule) -> AnyModule:
    """Channels-last weights: the layout in which CPU and GPU convolutions are fastest."""
    return module.to(memory_format=torch.channels_last)


def digest(**modules: nn.Module) -> dict[str, str]:
    """SHA-256 of the weights of each module."""
    digests = {}
    for name, module in modules.items():
        found = hashlib.sha256()
        for value in module.state_dict().values():
            found.update(value.detach().cpu().contiguous().numpy().tobytes())
        digests[name] = found.hexdigest()
    return digests


def _parse_device(device: str) -> tuple[str, int | None]:
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda", None
        return ("mps", None) if torch.backends.mps.is_available() else ("cpu", None)
    name, _, number = device.partition(":")
    if name not in ("cpu", "cuda", "mps") or (number and (name != "cuda" or not number.isdigit())):
        raise ValueError(f"--device {device!r} is unknown; choose auto, cpu, cuda, cuda:N or mps")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {device!r}: PyTorch sees no CUDA device here; use --device cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"--device {device!r}: PyTorch sees no Apple GPU here; use --device cpu")
    if name == "cuda" and number and int(number) >= torch.cuda.device_count():
        raise ValueError(f"--device {device!r}: there are {torch.cuda.device_count()} CUDA devices, counted from 0")
    return name, int(number) if number else None


def _fast_bfloat16(accelerator: str) -> bool:
    if accelerator == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if accelerator == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False
