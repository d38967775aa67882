"""A network that a function of the user's returns: its weights, and whether we compute what it does."""

import torch
from torch import Tensor, nn

from viscoin.errors import Refused, reason_of
from viscoin.models.classifier import Classifier
from viscoin.models.wrapped import check_steady, load_function

TOLERANCE = 1e-4  # relative to the largest logit
WRAP = "wrap it in Python: Classifier.wrap(module, layers=..., mean=..., std=...)"


def load_module(place: str) -> nn.Module:
    """The module that "FILE.py:function" returns, on the CPU in eval mode; the file is run, which is logged.

    Raises:
        Refused: no such file or function, whatever they raise, or what is returned is no module.
    """
    module = load_function(place)
    if not isinstance(module, nn.Module):
        reason = f"returns {type(module).__name__}, no torch.nn.Module"
        raise Refused("module", place, reason, "return the network itself")
    return module.cpu().float().eval()


def check_equal(place: str, module: nn.Module, model: Classifier) -> None:
    """Raise Refused unless both give the same logits for normalised images, the module at each call."""
    side = model.input_size
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))

    def logits(given: Tensor) -> Tensor:
        found = module(given)
        return getattr(found, "logits", found)  # as networks of transformers wrap them

    try:
        with torch.no_grad():
            wanted = logits(images)
            if not isinstance(wanted, Tensor):
                raise TypeError(f"it gives a {type(wanted).__name__}, no logits")
            check_steady(logits, images, wanted)
            found = model.model(images)
    except Refused:
        raise
    except Exception as error:  # of the user's code
        raise Refused("module", place, f"cannot take images of {side} px: {reason_of(error)}", WRAP) from error
    difference = float((found - wanted).abs().max()) if found.shape == wanted.shape else float("inf")
    if not difference <= TOLERANCE * max(1.0, float(wanted.abs().max())):
        raise Refused(
            "module", place,
            f"computes something else than {model.architecture['backbone']} of timm with the same weights (its logits "
            f"differ by {difference:.2g})", WRAP,
        )  # fmt: skip
