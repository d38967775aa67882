"""DeepLIFT by Captum (extra `attribution`), with checks that it means what it says for the model."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from viscoin.attribution.gradients import TOLERANCE, check_relu, score_change
from viscoin.attribution.question import DoesNotHold, Found, Question
from viscoin.errors import Refused


class _Score(nn.Module):
    """The explained score as a network that Captum can hook: images (N, 3, H, W), rows (N,) -> (N,)."""

    def __init__(self, question: Question) -> None:
        super().__init__()
        self.model, self.question = question.target.model, question

    def forward(self, images: Tensor, rows: Tensor) -> Tensor:
        return self.question.score(images, rows)


def deeplift(question: Question) -> Found:
    """DeepLIFT's rescale rule, summed over colours (Shrikumar et al. 2017, arXiv 1704.02685, Eqs. 6 to 8).

    Captum replaces ReLU and pooling that are modules, and takes the gradient for all else, without a word; such
    networks are refused, and so is any map that does not add up to the change of the score.
    """
    captum = load_captum()
    check_relu(question, reused=False)
    for module in question.target.model.modules():  # of a twin
        if isinstance(module, nn.ReLU):
            module.inplace = False
    start = question.start()
    question.passes.backwards += len(start)
    with torch.enable_grad():
        images = question.images.detach().requires_grad_()
        method = captum.DeepLift(_Score(question))
        found = method.attribute(images, start, additional_forward_args=(question.every,)).detach()
    heat, change = found.sum(1), score_change(question, start)
    gap = heat.sum((1, 2)) - change
    wrong = gap.abs() > TOLERANCE * change.abs().clamp(min=1)
    if wrong.any():
        which = int(wrong.nonzero()[0, 0])
        total, wanted = float(heat[which].sum()), float(change[which])
        raise DoesNotHold(f"its map adds up to {total:.3g}, not to the change of the score, {wanted:.3g}")
    return Found(heat, gap)


def load_captum() -> Any:
    """Captum's methods.

    Raises:
        Refused: it is not installed.
    """
    try:
        import captum.attr
    except ImportError as error:
        raise Refused(
            "method", "deeplift", "captum is not installed", "run: pip install viscoin[attribution]"
        ) from error
    # of hooks on the model, which is a twin here
    warnings.filterwarnings("ignore", r"Setting forward, backward hooks and attributes on non-linear", UserWarning)
    return captum.attr
