"""What stands between an image and a backbone: resizing to its own input size, and normalisation by mean and std."""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from viscoin.errors import Refused

RESAMPLINGS = ("bicubic", "bilinear")  # those with a gradient and without aliasing


def resized(images: Tensor, side: int, interpolation: str) -> Tensor:
    """Images (B, 3, H, W) -> (B, 3, side, side), differentiable, without aliasing as Pillow does it; not clamped."""
    return F.interpolate(images, (side, side), mode=interpolation, align_corners=False, antialias=True)


def check_normalisation(mean: Sequence[float], std: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of three channels in [0, 1].

    Raises:
        Refused: other counts, or values of another scale, such as 0 to 255.
    """
    for key, values in (("mean", mean), ("std", std)):
        shown = ", ".join(f"{value:g}" for value in values)
        if len(values) != 3 or not all(math.isfinite(value) for value in values):
            raise Refused(key, shown, "expected three numbers, of red, green and blue")
        if any(value > 1 for value in values):
            divided = ", ".join(f"{value / 255:.4g}" for value in values)
            raise Refused(key, shown, "is not of pixels in [0, 1]", f"of pixels from 0 to 255 it would be {divided}")
        if any(value < 0 or (key == "std" and value == 0) for value in values):
            raise Refused(key, shown, f"is {'negative' if key == 'mean' else 'not above 0'}")
    return tuple(map(float, mean)), tuple(map(float, std))


def check_resampling(interpolation: str | None, usual: str | None) -> str:
    """The interpolation to resize by: the given one, else the usual one of a backbone where it has a gradient.

    Raises:
        Refused: the given one is none of `RESAMPLINGS`.
    """
    if interpolation is None:
        return usual if usual in RESAMPLINGS else RESAMPLINGS[0]
    if interpolation not in RESAMPLINGS:
        raise Refused("interpolation", interpolation, "unknown", f"choose {' or '.join(RESAMPLINGS)}")
    return interpolation


def set_norm_eps(model: nn.Module, eps: float) -> None:
    """Set the constant that keeps all normalisation layers from dividing by zero; libraries differ in it."""
    for module in model.modules():
        if "Norm" in type(module).__name__ and isinstance(getattr(module, "eps", None), float):
            module.eps = eps  # type: ignore[assignment]
