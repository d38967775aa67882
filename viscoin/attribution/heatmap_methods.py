"""The one table of methods, and the function that runs them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from viscoin.attribution.cam import Weighing, activation_maps, gradcam, hirescam, layercam
from viscoin.attribution.concepts import activation_grid, amplification_change
from viscoin.attribution.explained import Explained
from viscoin.attribution.gradients import integrated_gradients
from viscoin.attribution.occlusion import occlusion
from viscoin.attribution.targets import STAGES, Stage
from viscoin.errors import Refused

FINEST: tuple[Stage, ...] = (0,)


@dataclass(frozen=True)
class Method:
    """One way to find where a score comes from.

    Attributes:
        title: the name as its paper writes it.
        weigh: what it makes of a feature map and its gradient; of methods that look at feature maps.
        whole: what it makes of a explained; of all others. Maps (B, M, H, W) >= 0 of any scale.
        of_concepts: whether only concepts have such a map.
        slow: whether it takes hundreds of passes an image.
    """

    title: str
    weigh: Weighing | None = None
    whole: Callable[[Explained], Tensor] | None = None
    of_concepts: bool = False
    slow: bool = False


METHODS: Mapping[str, Method] = {
    "hirescam": Method("HiResCAM", weigh=hirescam),
    "gradcam": Method("Grad-CAM", weigh=gradcam),
    "layercam": Method("LayerCAM", weigh=layercam),
    "integrated-gradients": Method("Integrated Gradients", whole=integrated_gradients),
    "occlusion": Method("Occlusion", whole=occlusion, slow=True),
    "grid": Method("Activation grid", whole=activation_grid, of_concepts=True),
    "change": Method("Change by amplification", whole=amplification_change, of_concepts=True),
}
WITH_STAGES = tuple(name for name, method in METHODS.items() if method.weigh)
PLACES = {0: "finest map", 1: "middle map", 2: "coarsest map", "psi": "map of Psi"}


def check_method(method: str, stages: Sequence[Stage] | None) -> tuple[Stage, ...]:
    """The stages that a method looks at; none for methods that look at no feature maps.

    Raises:
        Refused: unknown method or stage, or stages for a method without.
    """
    if method not in METHODS:
        raise Refused("method", method, "unknown method", f"choose one of: {', '.join(METHODS)}")
    if METHODS[method].weigh is None:
        if stages is not None:
            raise Refused("stage", None, f"does not go with `method` {method}", f"only with {', '.join(WITH_STAGES)}")
        return ()
    stages = FINEST if stages is None else tuple(stages)
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown or not stages:
        wrong = ", ".join(map(str, unknown)) or "(none)"
        raise Refused("stage", wrong, "unknown stage", "choose 0 (finest), 1 or 2 of f, psi, or all")
    return stages


def maps_of(explained: Explained, method: str, stages: Sequence[Stage]) -> Tensor:
    """Maps (B, M, H, W) >= 0, of any scale, of the chosen scores; needs the graph of the explained's scores.

    Args:
        method, stages: as `check_method` takes and gives them.
    """
    found = METHODS[method]
    missing = [stage for stage in stages if stage not in explained.observed.maps]
    if missing:
        raise Refused(
            "stage", missing[0], f"a {explained.target.noun} of this model has no such map", "choose 0, 1 or 2"
        )
    with torch.enable_grad():
        if found.weigh is not None:
            return activation_maps(explained, found.weigh, stages)
        if found.whole is None:
            raise TypeError(f"method {method} has nothing to run")
        return found.whole(explained)


def title_of(method: str, stages: Sequence[Stage]) -> str:
    """For figures: "HiResCAM, finest map", or the method alone."""
    places = " × ".join(PLACES[stage] for stage in stages)
    return f"{METHODS[method].title}, {places}" if places else METHODS[method].title
