"""How tested networks compute: in which arithmetic, and translated by `torch.compile` or not."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from stylegan2_ada.networks import Synthesis
from viscoin.errors import Refused
from viscoin.models.classifier import Classifier, ClassifierOutput

PRECISIONS = ("auto", "32-true", "bf16-mixed")

_EXACT: ContextVar[bool] = ContextVar("exact", default=False)


def check_precision(precision: str) -> None:
    """Raise Refused unless models can be tested with this precision of Fabric."""
    if precision not in PRECISIONS:
        reason = f"trained models compute in one of {', '.join(PRECISIONS)}"
        raise Refused("precision", precision, reason, "32-true repeats published numbers")


def prepare(model: nn.Module, precision: str = "32-true", compiled: bool = False) -> None:
    """Let f and the synthesis network of G, wherever they are in a model, compute so from now on.

    All else, which takes no time, stays in float32, and so does what they give. Where gradients are needed, nothing is
    translated.

    This changes the model itself, for all that share it: call it once, when the model is loaded.

    Args:
        precision: "32-true", or "bf16-mixed" for autocast to bfloat16.
        compiled: let `torch.compile` translate them, once for the first batch size and once for all others.
    """
    if precision == "32-true" and not compiled:
        return
    for module in model.modules():
        names = {Classifier: ("forward", "features"), Synthesis: ("forward",)}.get(type(module), ())
        if names:
            module.computes_in = precision  # type: ignore[assignment]  # a note, no part of the network
        for name in names:
            setattr(module, name, _prepared(getattr(module, name), precision == "bf16-mixed", compiled))


def precision_of(model: nn.Module) -> str:
    """The precision that `prepare` has given to f and G in a model, "32-true" without it and within `exact`."""
    if _EXACT.get():
        return "32-true"
    return next((str(module.computes_in) for module in model.modules() if "computes_in" in vars(module)), "32-true")


@contextmanager
def exact() -> Iterator[None]:
    """Within, prepared networks compute as if they were not."""
    token = _EXACT.set(True)
    try:
        yield
    finally:
        _EXACT.reset(token)


def _prepared(function: Callable[..., Any], mixed: bool, compiled: bool) -> Callable[..., Any]:
    translated = torch.compile(function, options={"fallback_random": True}) if compiled else function

    def run(x: Tensor, *arguments: Any, **options: Any) -> Any:
        if _EXACT.get():
            return function(x, *arguments, **options)
        chosen = function if torch.is_grad_enabled() else translated
        with torch.autocast(x.device.type, torch.bfloat16, enabled=mixed):
            return _in_float32(chosen(x, *arguments, **options))

    return run


def _in_float32(result: Any) -> Any:
    if isinstance(result, ClassifierOutput):
        return ClassifierOutput(result.logits.float(), tuple(part.float() for part in result.maps))
    return result.float()
