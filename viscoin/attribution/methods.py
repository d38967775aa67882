"""The one table of attribution methods; help texts, documents and messages are read from it.

A method from outside is a function images, targets, classifier -> maps, entered by `register`. Packages name theirs in
the entry point group `viscoin.attributions`.
"""

import inspect
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from viscoin.attribution import activation, attention, controls, gradients, occlusion, rise, shapley
from viscoin.attribution.deeplift import deeplift
from viscoin.attribution.diffmask import learned_mask
from viscoin.attribution.options import Option
from viscoin.attribution.question import DoesNotHold, Found, Question
from viscoin.attribution.targets import ClassifierLogit
from viscoin.errors import Refused, reason_of

ENTRY_POINTS = "viscoin.attributions"
FAMILIES = ("activation", "attention", "gradient", "perturbation", "learned", "control", "plugin")
NEEDS = ("maps", "pooling", "attention", "relu", "training")


@dataclass(frozen=True)
class Method:
    """One way to say where a score comes from.

    Attributes:
        title: the name as its paper writes it.
        family: one of `FAMILIES`.
        run: answers a question.
        reference: paper and equation.
        cost: passes for one image, forwards + backwards.
        signed: whether places that lower the score are below zero; otherwise maps are >= 0.
        complete: whether a map adds up to the change of the score from the baseline.
        needs: what the model must have, of `NEEDS`: feature maps; a linear layer that reads their mean; attention from
            each token to each; ReLU as the only nonlinearity; an own training.
        layered: whether it looks at a layer, which can be chosen.
        normalised: whether it reads tokens after the norm, by default, where they count through it alone.
        compared: whether it compares the image with a baseline.
        random: whether it draws, so that the seed matters.
        options: its own options.
        extra: the extra of the package that it needs.
    """

    title: str
    family: str
    run: Callable[[Question], Found]
    reference: str
    cost: str
    signed: bool = False
    complete: bool = False
    needs: tuple[str, ...] = ()
    layered: bool = False
    normalised: bool = False
    compared: bool = False
    random: bool = False
    options: Mapping[str, Option] = field(default_factory=dict)
    extra: str | None = None


class Plugin(Protocol):
    """A method from outside; the classifier is a twin, which it may hook and switch as it likes."""

    def __call__(self, images: Tensor, targets: Tensor, classifier: nn.Module) -> Tensor:
        """Copies of images (B, 3, H, W) in [-1, 1] and classes (B,) -> maps (B, h, w), positive where the class is
        spoken for."""


def register(
    name: str, function: Plugin, *, title: str = "", reference: str = "", signed: bool = False, replace: bool = False
) -> None:
    """Enter a method from outside into `METHODS`, under the family "plugin".

    Args:
        function: (images (B, 3, H, W), targets (B,), classifier) -> maps (B, h, w), enlarged here if they are smaller.
        title: for people; by default the name.
        signed: whether its maps may be below zero; otherwise they are clamped there.
        replace: whether a plugin of that name may be replaced.

    Raises:
        Refused: the name is taken.
    """
    known = METHODS.get(name)
    if known is not None and not (replace and known.family == "plugin"):
        raise Refused("name", name, "there is such a method", "choose another")

    def run(question: Question) -> Found:
        if not isinstance(question.target, ClassifierLogit):
            raise DoesNotHold("a plugin explains logits of the classifier f alone")
        if question.against is not None:
            raise DoesNotHold("a plugin explains one class, not one against another")
        try:
            maps = function(question.images, question.targets, question.target.classifier)
        except Exception as error:  # whatever a plugin raises
            code = getattr(inspect.unwrap(function), "__code__", None)
            said = said_by(error, code.co_filename if code else None)
            raise Refused("method", name, f"the plugin raised {said}", "mend it") from error
        if not isinstance(maps, Tensor) or maps.ndim != 3 or len(maps) != len(question.images) or not maps.numel():
            shape = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
            raise Refused("method", name, f"gave {shape}, not maps ({len(question.images)}, h, w)", "mend the plugin")
        maps = maps.detach().float()
        return Found(maps if signed else maps.clamp(min=0))

    METHODS[name] = Method(title or name, "plugin", run, reference or "a plugin", "unknown", signed=signed)


def said_by(error: Exception, file: str | None = None) -> str:
    """Kind and words of an error, and the last line of a file that led to it: "KeyError: 'heads' (line 12)"."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    if isinstance(error, SyntaxError) and error.lineno:
        lines = [error.lineno]
    said = f"{type(error).__name__}: {reason_of(error)}"
    return f"{said} (line {lines[-1]})" if lines else said


def described(name: str) -> str:
    """The options of a method for people: "samples 25, std 0.15"."""
    return ", ".join(f"{option} {entry.default}" for option, entry in METHODS[name].options.items())


_EVEN = Option(False, "even gradients out over the strides behind the map")
_FUSION = Option("mean", "how heads are fused", choices=attention.FUSIONS)


def _samples(default: int) -> Option:
    return Option(default, "random samples an image", least=1)


def _std(default: float, of: str) -> Option:
    return Option(default, f"standard deviation of the noise, {of}", least=0.0)


METHODS: dict[str, Method] = {
    "cam": Method(
        "CAM", "activation", activation.class_activation_map, "Zhou et al. 2016, arXiv 1512.04150, Eq. 2", "1 + 0",
        signed=True, needs=("pooling",), layered=True,
    ),
    "gradcam": Method(
        "Grad-CAM", "activation", activation.GRADIENT_WEIGHINGS["gradcam"],
        "Selvaraju et al. 2017, arXiv 1610.02391, Eqs. 1, 2", "1 + 1", needs=("maps",), layered=True,
    ),
    "hirescam": Method(
        "HiResCAM", "activation", activation.GRADIENT_WEIGHINGS["hirescam"],
        "Draelos & Carin 2020, arXiv 2011.08891, Eq. 5", "1 + 1", needs=("maps",), layered=True, normalised=True,
        options={"even": _EVEN},
    ),
    "gradcampp": Method(
        "Grad-CAM++", "activation", activation.GRADIENT_WEIGHINGS["gradcampp"],
        "Chattopadhay et al. 2018, arXiv 1710.11063, Eq. 19", "1 + 1", needs=("maps",), layered=True,
        options={"even": _EVEN},
    ),
    "smoothgradcampp": Method(
        "Smooth Grad-CAM++", "activation", activation.smooth_gradcampp,
        "Omeiza et al. 2019, arXiv 1908.01224", "1 + n, n + 0", needs=("maps",), layered=True, random=True,
        options={"samples": _samples(4), "std": _std(0.3, "of images in [-1, 1]")},
    ),
    "xgradcam": Method(
        "XGrad-CAM", "activation", activation.GRADIENT_WEIGHINGS["xgradcam"],
        "Fu et al. 2020, arXiv 2008.02312, Eq. 8", "1 + 1", needs=("maps",), layered=True, options={"even": _EVEN},
    ),
    "layercam": Method(
        "LayerCAM", "activation", activation.GRADIENT_WEIGHINGS["layercam"],
        "Jiang et al. 2021, IEEE TIP 30, Eqs. 5, 6", "1 + 1", needs=("maps",), layered=True, options={"even": _EVEN},
    ),
    "scorecam": Method(
        "Score-CAM", "activation", activation.score_cam, "Wang et al. 2020, arXiv 1910.01279, Alg. 1",
        "1 + C + 0 (C channels)", needs=("maps",), layered=True,
    ),
    "sscam": Method(
        "SS-CAM", "activation", activation.score_cam, "Wang et al. 2020, arXiv 2006.14255", "1 + C n + 0",
        needs=("maps",), layered=True, random=True,
        options={"samples": _samples(35), "std": _std(2.0, "of masks in [0, 1]")},
    ),
    "attention": Method(
        "Attention", "attention", attention.last_attention, "weights of the last block", "1 + 0",
        needs=("attention",), options={"fusion": _FUSION},
    ),
    "rollout": Method(
        "Attention rollout", "attention", attention.attention_rollout, "Abnar & Zuidema 2020, arXiv 2005.00928, Sec. 3",
        "1 + 0", needs=("attention",),
        options={"fusion": _FUSION, "discard_ratio": Option(0.0, "share of weights to discard", least=0.0, below=1.0)},
    ),
    "chefer": Method(
        "Chefer et al.", "attention", attention.chefer_relevance, "Chefer et al. 2021, arXiv 2103.15679, Eqs. 5, 6",
        "1 + 1", needs=("attention",),
    ),
    "saliency": Method(
        "Saliency", "gradient", gradients.saliency, "Simonyan et al. 2014, arXiv 1312.6034, Sec. 3.1", "1 + 1",
    ),
    "input-x-gradient": Method(
        "Input x Gradient", "gradient", gradients.input_x_gradient, "Shrikumar et al. 2016, arXiv 1605.01713", "1 + 1",
        signed=True,
    ),
    "smoothgrad": Method(
        "SmoothGrad", "gradient", gradients.smoothgrad, "Smilkov et al. 2017, arXiv 1706.03825", "n + n", signed=True,
        random=True, options={"samples": _samples(25), "std": _std(0.15, "a share of the range of the image")},
    ),
    "integrated-gradients": Method(
        "Integrated Gradients", "gradient", gradients.adaptive_path_integral,
        "Sundararajan et al. 2017, arXiv 1703.01365, Eq. 1", "n + n (16 to 256)", signed=True, complete=True,
        compared=True,
        options={"steps": Option(None, "steps of the path; without, as many as each image needs", 1, optional=True)},
    ),
    "deeplift": Method(
        "DeepLIFT", "gradient", deeplift, "Shrikumar et al. 2017, arXiv 1704.02685, Eqs. 6-8", "2 + 1",
        signed=True, complete=True, needs=("relu",), compared=True, extra="attribution",
    ),
    "guided-backprop": Method(
        "Guided Backpropagation", "gradient", gradients.guided_backprop, "Springenberg et al. 2015, arXiv 1412.6806",
        "1 + 1", needs=("relu",),
    ),
    "gradient-shap": Method(
        "Gradient SHAP", "gradient", gradients.gradient_shap, "Lundberg & Lee 2017, arXiv 1705.07874", "n + n",
        signed=True, compared=True, random=True,
        options={"samples": _samples(25), "std": _std(0.0, "of images in [-1, 1]")},
    ),
    "occlusion": Method(
        "Occlusion", "perturbation", occlusion.hidden_windows, "Zeiler & Fergus 2014, arXiv 1311.2901, Sec. 4.2",
        "(2 side / stride)^2 + 0", signed=True, compared=True,
        options={
            "window": Option(None, "side of the window in pixels; by default an eighth of the image", 1, optional=True),
            "stride": Option(None, "distance of windows in pixels; by default half the window", 1, optional=True),
            "overhang": Option(True, "let windows begin before the border, so that all pixels count the same"),
        },
    ),
    "rise": Method(
        "RISE", "perturbation", rise.rise, "Petsiuk et al. 2018, arXiv 1806.07421, Eq. 6", "n + 0", random=True,
        options={
            "samples": _samples(1000),
            "cells": Option(7, "cells on a side of a mask", least=1),
            "p": Option(0.5, "share of each mask that is kept", least=0.01, below=1.0),
        },
    ),
    "kernel-shap": Method(
        "Kernel SHAP", "perturbation", shapley.kernel_shap, "Lundberg & Lee 2017, arXiv 1705.07874, Sec. 4.1",
        "n + 0", signed=True, complete=True, compared=True, random=True,
        options={"samples": _samples(300), "cells": Option(7, "cells on a side", least=2)},
    ),
    "diffmask": Method(
        "DiffMask", "learned", learned_mask, "De Cao et al. 2020, arXiv 2004.14992; Nalmpantis et al. 2023, 2304.06391",
        "1 + 0", needs=("training",),
        options={
            "diffmask": Option(None, "the DiffMask of the classifier, of `train diffmask`", optional=True),
            "gates": Option(None, "last layer whose gates count, from 0; without, all", least=0, optional=True),
            "aggregated": Option(True, "all layers up to that one; else that one alone"),
        },
    ),
    "random": Method("Random noise", "control", controls.random, "none", "0 + 0", random=True),
    "centre": Method("Blob in the middle", "control", controls.centre, "none", "0 + 0"),
    "edges": Method("Edges of the image", "control", controls.edges, "none", "0 + 0"),
}  # fmt: skip
