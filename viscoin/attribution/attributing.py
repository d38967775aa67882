"""One function for all methods, all models and all scores."""

import logging
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from viscoin.attribution import activation, attention, gradients
from viscoin.attribution.explained import enlarged
from viscoin.attribution.methods import METHODS, Method
from viscoin.attribution.options import check_options
from viscoin.attribution.question import BASELINES, DoesNotHold, Found, Passes, Question
from viscoin.attribution.result import AttributionResult
from viscoin.attribution.targets import ClassifierLogit, Target
from viscoin.errors import Refused
from viscoin.inference.batches import evaluation
from viscoin.inference.twins import twin
from viscoin.models.digests import digest
from viscoin.models.ensemble import VisCoIN
from viscoin.models.layers import backbone_of, name_of, resolve_layer

logger = logging.getLogger(__name__)

Choice = Tensor | Sequence[int]


def attribute(
    classifier: nn.Module | Target,
    images: Tensor,
    method: str = "gradcam",
    targets: Choice | None = None,
    *,
    layer: int | str | None = None,
    baseline: str | Tensor = "blur",
    seed: int = 0,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    against: Choice | None = None,
    indices: Sequence[int] | None = None,
    **options: Any,
) -> AttributionResult:
    """Where in images a score comes from, by any method of `METHODS`.

    A map depends on the image, its target, the options, the seed and the image's index, and on nothing else: not on the
    batch it is in. The model is moved to the device and otherwise stays as it is, whatever happens; several threads may
    use it at once.

    Args:
        classifier: a `Classifier`, whose logits are explained, or a target of `targets.py`: an activation of a concept,
            or a logit of the explainer g.
        images: (B, 3, H, W) in [-1, 1].
        targets: (B,) indices of the class or concept; by default that with the largest score.
        layer: for methods that look at a layer: 0 (finest) to 2 of the last three feature maps, a module of the
            backbone by its path, or "all", the product of the unit maps at the three. By default the last map, or of a
            transformer the tokens that enter the last block.
        baseline: what the image is compared with, for methods that do: "grey" (0), "blur", "noise" (uniform, of the
            seed), or images (B, 3, H, W).
        batch_size: most images that pass the model at once.
        against: (B,) indices of scores that are subtracted: why this class and not that one.
        indices: (B,) what stands for an image in seeds; by default 0 to B - 1.
        options: those of the method.

    Raises:
        Refused: an unknown method, layer, baseline or option, one that does not fit, targets out of range, images of
            another size, or a method that does not hold for the model; then it names those that do.
    """
    begun = time.perf_counter()
    chosen, target = _method(method), _target(classifier)
    asked = check_options(method, chosen.options, options)
    _check_images(images, target, batch_size)
    _check_baseline(baseline, images)
    path = _layer(chosen, method, target, layer)
    numbers = _indices(indices, len(images), seed)
    passes, found = Passes(), list[Found]()
    with evaluation(target.model, device, gradients=True):
        images = images.detach().to(device, torch.float32)
        logits = _logits(target, images, batch_size)
        goals = _checked(targets, "targets", logits, target)
        rivals = None if against is None else _checked(against, "against", logits, target)
        if rivals is not None and (rivals == goals).any():
            raise Refused("against", int(rivals[rivals == goals][0]), "the same as the target", "choose another")
        for rows in torch.arange(len(images)).split(batch_size):
            question = Question(
                target.of(twin(target.model)), images[rows], goals[rows], None if rivals is None else rivals[rows],
                [numbers[row] for row in rows], seed, batch_size,
                baseline[rows].to(images) if isinstance(baseline, Tensor) else baseline, path, asked, passes,
            )  # fmt: skip
            found.append(_answer(question, method, chosen))
    native = torch.cat([one.native for one in found])
    result = AttributionResult(
        maps=enlarged(native, images.shape[-2:]).cpu(),
        native=native.cpu(),
        signed=chosen.signed,
        targets=goals.cpu(),
        logits=logits.cpu(),
        method=method,
        options=_resolved(chosen, asked, path, baseline, seed, rivals, found),
        gap=_joined([one.gap for one in found]),
        forwards=passes.forwards / len(images),
        backwards=passes.backwards / len(images),
        seconds=time.perf_counter() - begun,
    )
    return result


def _method(name: str) -> Method:
    if name not in METHODS:
        raise Refused("method", name, "unknown method", f"choose one of: {', '.join(METHODS)}")
    return METHODS[name]


def _target(classifier: nn.Module | Target) -> Target:
    if isinstance(classifier, VisCoIN):
        raise Refused(
            "classifier", None, "an ensemble has several scores",
            "give ExplainerLogit(ensemble), ConceptActivation(ensemble), or its classifier",
        )  # fmt: skip
    return ClassifierLogit(classifier) if isinstance(classifier, nn.Module) else classifier  # type: ignore[arg-type]


def _check_images(images: Tensor, target: Target, batch_size: int) -> None:
    if batch_size < 1:
        raise Refused("batch_size", batch_size, "counts from 1")
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise Refused("images", None, f"must be (B, 3, H, W), not {tuple(images.shape)}")
    side = getattr(target.classifier, "resolution", None)
    if side is not None and tuple(images.shape[2:]) != (side, side):
        size = f"{images.shape[2]}x{images.shape[3]}"
        raise Refused("images", None, f"{size} px, but the model takes {side}x{side}", "resize them")
    if not images.isfinite().all():
        raise Refused("images", None, "there are values that are no numbers", "check how they were read")


def _check_baseline(baseline: str | Tensor, images: Tensor) -> None:
    if isinstance(baseline, Tensor):
        if baseline.shape != images.shape:
            raise Refused("baseline", None, f"{tuple(baseline.shape)} must be as the images, {tuple(images.shape)}")
    elif baseline not in BASELINES:
        raise Refused("baseline", baseline, "unknown", f"choose {', '.join(BASELINES)}, or give images")


def _layer(chosen: Method, name: str, target: Target, layer: int | str | None) -> str | None:
    """The path of the layer, "all", or None for methods without one and for `cam`, which finds its own."""
    if not chosen.layered:
        if layer is not None:
            known = ", ".join(key for key, method in METHODS.items() if method.layered)
            raise Refused("layer", layer, f"does not go with `method` {name}", f"only with {known}")
        return None
    if "pooling" in chosen.needs:
        return None if layer is None else resolve_layer(backbone_of(target.classifier), layer)
    if layer == activation.ALL:
        return activation.ALL
    return resolve_layer(backbone_of(target.classifier), layer, chosen.normalised)


def _indices(indices: Sequence[int] | None, count: int, seed: int) -> list[int]:
    if seed < 0:
        raise Refused("seed", seed, "below 0")
    numbers = list(range(count)) if indices is None else [int(number) for number in indices]
    if len(numbers) != count or min(numbers) < 0:
        raise Refused("indices", None, f"must be {count} numbers from 0, one for each image")
    return numbers


def _logits(target: Target, images: Tensor, batch_size: int) -> Tensor:
    with torch.no_grad():
        return torch.cat([target.scores(part).float() for part in images.split(batch_size)])


def _checked(choice: Choice | None, name: str, logits: Tensor, target: Target) -> Tensor:
    if choice is None:
        return logits.argmax(1)
    indices = torch.as_tensor(choice).to(logits.device)
    if indices.shape != (len(logits),) or indices.is_floating_point():
        raise Refused(name, None, f"must be {len(logits)} indices, one for each image")
    wrong = indices[(indices < 0) | (indices >= logits.shape[1])]
    if len(wrong):
        raise Refused(
            name, int(wrong[0]), f"out of range; there are {logits.shape[1]} {target.nouns}, counted from 0"
        )  # fmt: skip
    return indices.long()


def _answer(question: Question, name: str, chosen: Method) -> Found:
    """What the method finds, checked."""
    try:
        found = chosen.run(question)
    except DoesNotHold as error:
        model, others = name_of(question.target.classifier), ", ".join(_holding(question))
        raise Refused("method", name, f"does not hold for {model}: {error}", f"those that do: {others}") from error
    shape = tuple(found.native.shape)
    if found.native.ndim != 3 or len(found.native) != len(question.images):
        raise Refused("method", name, f"gave {shape}, not maps ({len(question.images)}, h, w)")
    bad = (~found.native.isfinite()).flatten(1).any(1)
    if bad.any():
        index = question.indices[int(bad.nonzero()[0, 0])]
        raise Refused("method", name, f"the map of image {index} has values that are no numbers")
    return found


def _holding(question: Question) -> list[str]:
    """Methods that hold for the model of a question, found by trying what they need."""
    one = Question(
        question.target.of(twin(question.target.model)), question.images[:1], question.targets[:1], None, [0], 0, 1,
        "grey", None, {},
    )  # fmt: skip
    met = {need for need, attempt in _ATTEMPTS.items() if _works(attempt, one)}
    return [name for name, method in METHODS.items() if set(method.needs) <= met]


_ATTEMPTS = {
    "maps": lambda one: activation.activations(one, one.images, one.every, resolve_layer(one.backbone, None)),
    "pooling": activation.class_activation_map,
    "attention": attention.attentions,
    "relu": gradients.check_relu,
}


def _works(attempt: Any, question: Question) -> bool:
    try:
        attempt(question)
    except (DoesNotHold, Refused):
        return False
    return True


def _resolved(
    chosen: Method,
    asked: dict[str, Any],
    path: str | None,
    baseline: str | Tensor,
    seed: int,
    rivals: Tensor | None,
    found: list[Found],
) -> dict[str, Any]:
    """The options as they were used, as plain values: models by their digests."""
    resolved = {
        name: digest(model=value)["model"] if isinstance(value, nn.Module) else value for name, value in asked.items()
    }
    if chosen.layered:
        resolved["layer"] = path
    if chosen.compared:
        resolved["baseline"] = "images" if isinstance(baseline, Tensor) else baseline
    if chosen.random or (chosen.compared and baseline == "noise"):
        resolved["seed"] = seed
    if rivals is not None:
        resolved["against"] = rivals.tolist()
    steps = _joined([one.steps for one in found])
    return resolved if steps is None else {**resolved, "steps": steps.tolist()}


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    found = [part for part in parts if part is not None]
    return torch.cat(found).detach().cpu() if found else None
