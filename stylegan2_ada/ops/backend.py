"""Which implementation an operation takes: plain PyTorch (the reference) or the compiled CUDA kernels.

The kernels are built ahead of time (`build.py`); here they are only looked for, once per process, when the first CUDA
tensor arrives. Under torch.compile the answer is a constant of the trace, so there is no graph break.
"""

import functools
import hashlib
import logging
import platform
from pathlib import Path

import torch
from platformdirs import user_cache_path

IMPLEMENTATIONS = ("auto", "reference", "cuda")
BUILD_COMMAND = "viscoin ops build"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SOURCES = Path(__file__).with_name("cuda")

logger = logging.getLogger("stylegan2_ada")


def use_kernels(impl: str, x: torch.Tensor) -> bool:
    """Whether the CUDA kernels are to work on x.

    Args:
        impl: "reference"; "cuda"; or "auto", which takes the kernels for CUDA tensors where they are built and fit
            the device, and otherwise the reference, after one line in the log per process. float64 on CUDA always
            takes the reference.

    Raises:
        ValueError: an unknown name, or "cuda" where the kernels cannot run.
    """
    if impl == "reference" or (impl == "auto" and (x.device.type != "cuda" or x.dtype not in DTYPES)):
        return False
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl is {impl!r}; choose auto, reference or cuda")
    if x.device.type == "cuda" and x.dtype not in DTYPES:
        raise ValueError(f'impl is "cuda", whose kernels take float32, float16 and bfloat16, not {x.dtype}')
    reason = _obstacle(x.device.type, x.device.index)
    if reason and impl == "cuda":
        raise ValueError(f'impl is "cuda", but {reason}')
    if reason:
        _say_once(reason)
    return not reason


@torch.compiler.assume_constant_result
def _obstacle(kind: str, index: int | None) -> str:
    return obstacle(kind, index)


@torch.compiler.assume_constant_result
def _say_once(reason: str) -> None:
    _log_once(reason)


@functools.cache
def _log_once(reason: str) -> None:
    logger.warning("The operations run in plain PyTorch: %s", reason)


@functools.cache
def obstacle(kind: str, index: int | None) -> str:
    """Why the kernels cannot run on that device, with the remedy; an empty string if they can."""
    if kind != "cuda":
        missing = load_kernels()
        return f"the tensor is on {kind}" + (f" and {missing}" if missing else "; move it to a CUDA device")
    if reason := load_kernels():
        return reason
    index = torch.cuda.current_device() if index is None else index
    if torch.ops.stylegan2_ada.kernels_fit(index):
        return ""
    major, minor = torch.cuda.get_device_capability(index)
    return (
        f"{torch.cuda.get_device_name(index)} has compute capability {major}.{minor}, and the kernels are compiled for "
        f"{torch.ops.stylegan2_ada.compiled_for()}; run `{BUILD_COMMAND} --arch {major}.{minor}`"
    )


@functools.cache
def load_kernels() -> str:
    """Load the compiled kernels; why that is impossible, with the remedy, or an empty string if they are loaded."""
    path = library_path()
    if not path.is_file():
        return f"the CUDA kernels are not built for PyTorch {torch.__version__}; run `{BUILD_COMMAND}`"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"{path} cannot be loaded ({str(error) or type(error).__name__}); run `{BUILD_COMMAND}`"
    return ""


def library_path() -> Path:
    """Where the kernels for these sources, this PyTorch and its CUDA lie, whether they are built or not."""
    digest = hashlib.sha256("\n".join([torch.__version__, str(torch.version.cuda), platform.machine()]).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + source.read_bytes())
    return user_cache_path("stylegan2_ada", appauthor=False) / f"kernels-{digest.hexdigest()[:16]}.so"
