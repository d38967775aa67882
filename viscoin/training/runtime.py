"""Devices, precision and seeds: everything that a run needs from Lightning Fabric."""

import logging
import warnings
from typing import TypeVar

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def make_fabric(device: str = "auto", precision: str = "auto") -> Fabric:
    """Fabric on one device.

    Args:
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        precision: "auto" takes bfloat16 autocast where the hardware has bfloat16 arithmetic and float32 elsewhere.

    Raises:
        ValueError: unknown or absent device, unknown precision.
    """
    accelerator, index = _parse_device(device)
    if precision == "auto":
        precision = "bf16-mixed" if _fast_bfloat16(accelerator) else "32-true"
    if precision not in ("32-true", "bf16-mixed", "16-mixed"):
        raise ValueError(f"--precision {precision!r} is unknown; choose auto, 32-true, bf16-mixed or 16-mixed")
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    devices = [index] if index is not None else 1
    with warnings.catch_warnings():
        # Outside a SLURM job, on a machine that has srun, Fabric recommends srun; that is the user's business.
        warnings.filterwarnings("ignore", message="The `srun` command is available")
        fabric = Fabric(accelerator=accelerator, devices=devices, precision=precision)  # type: ignore[arg-type]
    fabric.launch()
    return fabric


def resolve_device(device: str = "auto") -> torch.device:
    """The torch device that `make_fabric` would use."""
    accelerator, index = _parse_device(device)
    return torch.device(accelerator, index or 0) if accelerator == "cuda" else torch.device(accelerator)


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Make all random draws of a step depend on (seed, step, rank) alone, so that a resumed run repeats them."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1))


def fast_layout(module: AnyModule) -> AnyModule:
    """Channels-last weights: the layout in which CPU and GPU convolutions are fastest."""
    return module.to(memory_format=torch.channels_last)


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
