"""Methods that weigh the channels of a feature map A by what its gradient G, or the score itself, says of them."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from viscoin.attribution.cam import (
    Weighing,
    evened,
    gradcam,
    gradcampp,
    hirescam,
    layercam,
    smoothgradcampp,
    xgradcam,
)  # fmt: skip
from viscoin.attribution.explained import enlarged, min_max, unit
from viscoin.attribution.question import DoesNotHold, Found, Question
from viscoin.attribution.targets import ClassifierLogit
from viscoin.errors import Refused
from viscoin.inference.batches import progress
from viscoin.models.layers import default_layer, known_layers, lay_out, resolve_layer, stage_layers

logger = logging.getLogger(__name__)

ALL = "all"
CANCELLED = 1e-5  # share of the parts that rounding may leave of a sum that is 0
FOR_POSITIVE = (gradcampp, xgradcam)
LONG = 2000  # passes; what takes more shows a progress bar


def weighing(weigh: Weighing) -> Callable[[Question], Found]:
    """The method relu(weigh(A, G))."""

    def run(question: Question) -> Found:
        def at(layer: str) -> Tensor:
            A, G = activations_and_gradients(question, question.images, question.every, layer)
            if weigh in FOR_POSITIVE and bool((A < 0).any()):
                logger.warning("the maps at %s are below 0 in places; the method is meant for maps >= 0", layer)
            if question.options.get("even"):
                G = evened(G, _stride(question, A))
            heat = weigh(A, G)
            if weigh is hirescam:
                _check_cancelled(question, layer, heat, A * G)
            return heat.clamp(min=0)

        return _at_layers(question, at)

    return run


def smooth_gradcampp(question: Question) -> Found:
    """Grad-CAM++ with gradients of several noisy images."""
    n, std = question.options["samples"], question.options["std"]

    def at(layer: str) -> Tensor:
        A = activations(question, question.images, question.every, layer)
        means = [torch.zeros_like(A) for _ in range(3)]
        for rows, some in question.samples(n):
            noisy = question.images[rows, None] + std * question.noise(rows, some)
            G = activations_and_gradients(question, noisy.flatten(0, 1), rows.repeat_interleave(len(some)), layer)[1]
            G = G.unflatten(0, (len(rows), len(some)))
            for power, mean in enumerate(means, 1):
                mean[rows] += (G**power).sum(1) / n
        return smoothgradcampp(A, *means).clamp(min=0)

    return _at_layers(question, at)


def score_cam(question: Question) -> Found:
    """Score-CAM, and with `samples` noisy masks a channel SS-CAM."""

    def at(layer: str) -> Tensor:
        A = activations(question, question.images, question.every, layer)
        with progress(A[..., 0, 0].numel() * question.options.get("samples", 1), "Score-CAM", "pass") as bar:
            bar.disable = bar.disable or bar.total < LONG
            scores = torch.stack([_masked_scores(question, A[row], row, bar.update) for row in question.every])
        return (scores.softmax(1)[..., None, None] * A).sum(1).clamp(min=0)

    return _at_layers(question, at)


def _masked_scores(question: Question, A: Tensor, row: Tensor, done: Callable[[int], object]) -> Tensor:
    """Scores (C,) of the image under each channel of A (C, h, w) as a mask; means over noisy ones."""
    samples, std = question.options.get("samples", 1), question.options.get("std", 0.0)
    total = torch.zeros(len(A), device=A.device)
    with torch.no_grad():
        for sample in range(samples):
            generator = question.generator(int(row), sample)
            for channels in torch.arange(len(A), device=A.device).split(question.batch_size):
                masks = min_max(enlarged(A[channels], question.size))
                if std:
                    drawn = generator.standard_normal(tuple(masks.shape), "float32")
                    masks = masks + std * torch.from_numpy(drawn).to(A.device)
                masked = question.images[row] * masks[:, None]
                total[channels] += question.score(masked, row.expand(len(channels))) / samples
                done(len(channels))
    return total


def class_activation_map(question: Question) -> Found:
    """w_c . A of the features that the last layer reads, pooled; signed."""
    if not isinstance(question.target, ClassifierLogit):
        raise DoesNotHold("it reads the last layer of the classifier f, so it explains logits of f alone")
    layer = _last_layer(question)
    weight = layer.weight[question.targets]
    if question.against is not None:
        weight = weight - layer.weight[question.against]
    return Found((weight[..., None, None] * pooled_map(question)).sum(1))


def pooled_map(question: Question) -> Tensor:
    """The map (B, C, h, w) of which the last layer reads the mean over positions; checked by the logits themselves."""
    layer = _last_layer(question)
    logits, seen = _with_pooled(question)
    for A in seen:
        if A is not None and A.shape[1] == layer.in_features:
            made = layer(A.mean((2, 3)))
            if torch.allclose(made, logits, rtol=1e-3, atol=1e-3 * float(logits.abs().max())):
                return A
    raise DoesNotHold("its logits are no linear function of a pooled map: a norm or a layer is in between")


def _last_layer(question: Question) -> nn.Linear:
    try:
        return question.target.classifier.last_layer
    except (AttributeError, Refused) as error:
        raise DoesNotHold("its last layer is not linear, or not known") from error


def _with_pooled(question: Question) -> tuple[Tensor, list[Tensor | None]]:
    """Logits, and what goes into the pooling of the network, or what comes out of the layer that was asked for."""
    from timm.layers import SelectAdaptivePool2d

    model, seen = question.backbone, list[Tensor | None]()

    def before(_module: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen.append(lay_out(given[0], model))

    def after(_module: nn.Module, _given: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(lay_out(output, model))

    if question.layer is not None:
        hooks = [model.get_submodule(question.layer).register_forward_hook(after)]
    else:
        kinds = SelectAdaptivePool2d, nn.AdaptiveAvgPool2d
        hooks = [part.register_forward_pre_hook(before) for part in model.modules() if isinstance(part, kinds)]
    question.passes.forwards += len(question.images)
    try:
        with torch.no_grad():
            return question.target.scores(question.images), seen
    finally:
        for hook in hooks:
            hook.remove()


def activations(question: Question, images: Tensor, rows: Tensor, layer: str) -> Tensor:
    """The feature maps (N, C, h, w) of a layer."""
    with torch.no_grad():
        return _recorded(question, images, rows, layer)[1]


def activations_and_gradients(question: Question, images: Tensor, rows: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    """The feature maps of a layer and the gradient of the score there, both (N, C, h, w)."""
    with torch.enable_grad():
        score, A, leaf = _recorded(question, images.detach().requires_grad_(), rows, layer)
    if not score.requires_grad:
        raise Refused("layer", layer, "the score does not depend on it", known_layers(question.backbone))
    gradient = question.derivative(score, leaf)
    G = lay_out(gradient, question.backbone)
    if G is None:
        raise TypeError("a gradient has the shape of its map")
    if gradient.ndim == 3 and not G.any() and gradient.any():
        raise Refused(
            "layer", layer, "of its tokens the score reads the class token alone, so maps would be zero",
            known_layers(question.backbone),
        )  # fmt: skip
    return A.detach(), G


def _recorded(question: Question, images: Tensor, rows: Tensor, layer: str) -> tuple[Tensor, Tensor, Tensor]:
    """Score (N,), map (N, C, h, w) of a layer, and the tensor itself, at which the graph of the score begins."""
    model, seen = question.backbone, list[Tensor]()

    def begin(_module: nn.Module, _given: object, output: object) -> Tensor:
        if not isinstance(output, Tensor):
            raise Refused("layer", layer, "it gives no single tensor", known_layers(model))
        leaf = output.detach()
        seen.append(leaf.requires_grad_(torch.is_grad_enabled()))
        return leaf.clone()  # as what follows may work in place

    hook = model.get_submodule(layer).register_forward_hook(begin)
    try:
        score = question.score(images, rows)
    finally:
        hook.remove()
    if len(seen) != 1:
        found = "is not used" if not seen else f"is used {len(seen)} times"
        raise Refused("layer", layer, f"it {found} in one pass", known_layers(model))
    A = lay_out(seen[0], model) if len(seen[0]) == len(images) else None
    if A is None:
        shape = tuple(seen[0].shape)
        raise Refused("layer", layer, f"its output {shape} is no map of the image", known_layers(model))
    return score, A, seen[0]


def _check_cancelled(question: Question, layer: str, heat: Tensor, products: Tensor) -> None:
    """Raise Refused where a map (B, h, w) is what rounding leaves of products (B, C, h, w) that cancel everywhere."""
    whole = products.abs().sum(1).max()
    if whole > 0 and heat.abs().max() < CANCELLED * whole:
        raise Refused(
            "layer", layer, "a norm takes out the length at each position there, so gradient times map is 0",
            f"choose the norm behind it, or {default_layer(question.backbone, True)}",
        )  # fmt: skip


def _at_layers(question: Question, at: Callable[[str], Tensor]) -> Found:
    """The map at one layer, or the product of the unit maps at all stages that have one."""
    if question.layer != ALL:
        return Found(at(resolve_layer(question.backbone, question.layer)))
    heats = []
    for layer in stage_layers(question.backbone):
        try:
            heats.append(unit(enlarged(at(layer), question.size)))
        except Refused:
            if layer != stage_layers(question.backbone)[-1]:
                raise  # only the last one may be behind all that a score reads
    return Found(torch.stack(heats).prod(0))


def _stride(question: Question, A: Tensor) -> int:
    shapes = getattr(question.target.classifier, "feature_shapes", None)
    return max(1, round(A.shape[-1] / shapes[-1][-1])) if shapes else 1


GRADIENT_WEIGHINGS: dict[str, Callable[[Question], Found]] = {
    "gradcam": weighing(gradcam),
    "hirescam": weighing(hirescam),
    "gradcampp": weighing(gradcampp),
    "xgradcam": weighing(xgradcam),
    "layercam": weighing(layercam),
}
