"""Devices by the names that the command line and the service use."""

import os

import torch

from stylegan2_ada.memory import keep_freed_memory


def check_devices(device: str, devices: int, num_nodes: int) -> tuple[str, int | None]:
    """Accelerator and index of a device; ValueError unless there are enough of them."""
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


def resolve_device(device: str = "auto") -> torch.device:
    """The torch device that `make_fabric` would use."""
    keep_freed_memory()
    accelerator, index = _parse_device(device)
    return torch.device(accelerator, index or 0) if accelerator == "cuda" else torch.device(accelerator)


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
