"""The operations of StyleGAN2, each one public function."""

from . import operators as _operators  # noqa: F401 - registers them with torch.library
from .bias_act import bias_act
from .modulated_conv2d import modulated_conv2d, synthesis_tail
from .resampled_conv2d import resampled_conv2d
from .upfirdn2d import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d

__all__ = [
    "bias_act",
    "downsample2d",
    "filter2d",
    "modulated_conv2d",
    "resampled_conv2d",
    "setup_filter",
    "synthesis_tail",
    "upfirdn2d",
    "upsample2d",
]
