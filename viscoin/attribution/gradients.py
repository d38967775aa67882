"""Attributions by gradients with respect to the image itself."""

import re
from collections.abc import Callable

import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from viscoin.attribution.explained import SMOOTHING, Explained, blurred
from viscoin.attribution.question import DoesNotHold, Found, Question

STEPS = 16  # of the path integral, at first
MOST_STEPS = 256
TOLERANCE = 0.02  # of the change of the score, or of 1 where it changes by less


def integrated_gradients(explained: Explained) -> Tensor:
    """Integral of gradients from the blurred image x' to x (Sundararajan et al. 2017, arXiv 1703.01365, Eq. 1).

    Summed over colours and smoothed over pixels, as gradients of single pixels are noisy (Smilkov et al. 2017, arXiv
    1706.03825); what raises the score stays.
    """
    heat = path_integral(explained).cpu().numpy()
    sigma = SMOOTHING * explained.size[0]
    smooth = gaussian_filter(heat, (0, 0, sigma, sigma), mode="nearest")
    return torch.from_numpy(smooth).clamp(min=0).to(explained.images.device)


def path_integral(explained: Explained, steps: int = STEPS) -> Tensor:
    """Signed attributions (B, M, H, W), by the midpoint rule; their sum approaches score(x) - score(x')."""
    start = blurred(explained.images)
    way = explained.images - start
    total = torch.zeros(*explained.chosen.shape, *explained.size, device=way.device)
    for place in midpoints(steps):
        images = (start + place * way).requires_grad_()
        chosen = explained.scores(images).gather(1, explained.chosen)
        for m, column in enumerate(chosen.unbind(1)):
            total[:, m] += along(torch.autograd.grad(column.sum(), images, retain_graph=True)[0], way)
    return total / steps


def midpoints(steps: int) -> list[float]:
    """Places in [0, 1] in the middle of equal steps."""
    return [(step + 0.5) / steps for step in range(steps)]


def along(gradient: Tensor, way: Tensor) -> Tensor:
    """What a gradient (..., 3, H, W) makes of a change of the image, summed over colours."""
    return (gradient * way).sum(-3)


def saliency(question: Question) -> Found:
    """|gradient|, the largest of the three colours (Simonyan et al. 2014, arXiv 1312.6034, Sec. 3.1)."""
    return Found(question.gradient(question.images, question.every).abs().amax(1))


def input_x_gradient(question: Question) -> Found:
    """x G, x the image as the classifier takes it, 0 for grey (Shrikumar et al. 2016, arXiv 1605.01713)."""
    return Found(along(question.gradient(question.images, question.every), question.images))


def smoothgrad(question: Question) -> Found:
    """Mean gradient over noisy images (Smilkov et al. 2017, arXiv 1706.03825); std as a share of the image's range."""
    spread = question.options["std"] * (question.images.amax((1, 2, 3)) - question.images.amin((1, 2, 3)))
    scale = spread[:, None, None, None, None]
    mean = _mean_gradient(
        question, lambda rows, some: question.images[rows, None] + scale[rows] * question.noise(rows, some)
    )
    return Found(mean.sum(1))


def _mean_gradient(question: Question, images: Callable[[Tensor, range], Tensor]) -> Tensor:
    """Mean (B, 3, H, W) of gradients at `samples` images (rows, samples, 3, H, W) for each row."""
    n, total = question.options["samples"], torch.zeros_like(question.images)
    for rows, some in question.samples(n):
        at = images(rows, some)
        found = question.gradient(at.flatten(0, 1), rows.repeat_interleave(len(some)))
        total[rows] += found.unflatten(0, (len(rows), len(some))).sum(1)
    return total / n


def adaptive_path_integral(question: Question) -> Found:
    """The path integral of gradients with as many steps as each image needs, up to 256, or as many as asked for."""
    start, steps = question.start(), question.options["steps"]
    change, way = score_change(question, start), question.images - start
    heat = torch.zeros(len(way), *question.size, device=way.device)
    used, gap = torch.zeros(len(way), dtype=torch.long, device=way.device), torch.zeros_like(change)
    rows, count = question.every, steps or STEPS
    while len(rows):
        heat[rows], used[rows] = _integral(question, rows, start, way, count), count
        gap[rows] = heat[rows].sum((1, 2)) - change[rows]
        allowed = TOLERANCE * change[rows].abs().clamp(min=1)
        rows = rows[(gap[rows].abs() > allowed) & (steps is None) & (count < MOST_STEPS)]
        count *= 2
    return Found(heat, gap, used)


def _integral(question: Question, rows: Tensor, start: Tensor, way: Tensor, steps: int) -> Tensor:
    total = torch.zeros(len(rows), *question.size, device=way.device)
    pairs = [(i, place) for i in range(len(rows)) for place in midpoints(steps)]
    for first in range(0, len(pairs), question.batch_size):
        numbers, places = zip(*pairs[first : first + question.batch_size], strict=True)
        chosen = torch.tensor(numbers, device=rows.device)
        which, at = rows[chosen], torch.tensor(places, device=way.device)[:, None, None, None]
        gradient = question.gradient(start[which] + at * way[which], which)
        total.index_add_(0, chosen, along(gradient, way[which]))
    return total / steps


def gradient_shap(question: Question) -> Found:
    """Mean of gradients at random places of the way from the baseline, times the way (Lundberg & Lee 2017, 1705.07874).

    The baseline is one image, so its expectation is the path integral; noise of `std` is added to the image.
    """
    start, std = question.start(), question.options["std"]
    n, heat = question.options["samples"], torch.zeros(len(start), *question.size, device=start.device)
    for rows, some in question.samples(n):
        draws = [[question.generator(int(row), sample) for sample in some] for row in rows]
        places = torch.tensor([[g.random(dtype="float32") for g in line] for line in draws], device=start.device)
        way = question.images[rows, None] + std * question.noise(rows, some) - start[rows, None]
        at = start[rows, None] + places[..., None, None, None] * way
        found = question.gradient(at.flatten(0, 1), rows.repeat_interleave(len(some))).unflatten(0, at.shape[:2])
        heat[rows] += along(found, way).sum(1) / n
    return Found(heat, heat.sum((1, 2)) - score_change(question, start))


def score_change(question: Question, start: Tensor) -> Tensor:
    """score(x) - score(x'), (B,)."""
    with torch.no_grad():
        return question.score(question.images, question.every) - question.score(start, question.every)


def guided_backprop(question: Question) -> Found:
    """|gradient|, largest of three colours, in which each ReLU lets only what is positive back through.

    Springenberg et al. 2015, arXiv 1412.6806. Without ReLU it would be the gradient; such networks are refused.
    """
    check_relu(question)
    for module in question.target.model.modules():  # of a twin
        if isinstance(module, nn.ReLU):
            module.forward = _GuidedReLU.apply  # type: ignore[assignment]
    return saliency(question)


class _GuidedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        return x.relu()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]  # declared without types
        return gradient.clamp(min=0) * (x > 0)


# What autograd calls steps that are linear in what depends on the image.
_LINEAR = {
    "Add", "Addmm", "AdaptiveAvgPool2D", "Alias", "AsStrided", "AvgPool2D", "Cat", "Clone", "ConstantPadNd",
    "Convolution", "CudnnBatchNorm", "Div", "Expand", "MiopenBatchNorm", "Mean", "MkldnnConvolution", "Mm", "Mul",
    "NativeBatchNorm", "Neg", "Permute", "ReshapeAlias", "Select", "Slice", "Split", "SplitWithSizes", "Squeeze",
    "Stack", "Sub", "Sum", "T", "ToCopy", "Transpose", "UnsafeView", "Unsqueeze", "View", "Gather", "Index",
    "UpsampleNearest2D", "UpsampleBilinear2D", "UpsampleBilinear2DAa", "UpsampleBicubic2D", "UpsampleBicubic2DAa",
}  # fmt: skip
_POOLING = {"AdaptiveMaxPool2D", "Amax", "MaxPool2DWithIndices"}


def check_relu(question: Question, reused: bool = True) -> None:
    """Raise DoesNotHold unless all that is not linear between image and score are modules nn.ReLU, and pooling.

    It reads the graph of the score of the first image, which holds whatever the network does, by modules or not.

    Args:
        reused: whether one module may work at several places.
    """
    calls = dict[nn.Module, int]()
    relus = [module for module in question.target.model.modules() if isinstance(module, nn.ReLU)]

    def count(module: nn.Module, _given: object, _output: object) -> None:
        calls[module] = calls.get(module, 0) + 1

    hooks = [module.register_forward_hook(count) for module in relus]
    try:
        with torch.enable_grad():
            score = question.score(question.images[:1].detach().requires_grad_(), question.every[:1])
    finally:
        for hook in hooks:
            hook.remove()
    steps = _steps(score)
    other = sorted({kind for kind, factors in steps if kind != "Relu" and not _linear(kind, factors)})
    if other:
        raise DoesNotHold(f"besides ReLU and pooling it computes {', '.join(other[:4])}, which would be passed over")
    found = [kind for kind, _ in steps].count("Relu")
    if not found or found != sum(calls.values()):
        raise DoesNotHold("it has no ReLU" if not found else "some of its ReLUs are no modules of their own")
    if not reused and max(calls.values()) > 1:
        raise DoesNotHold("it uses one ReLU at several places")


def _linear(kind: str, factors: int) -> bool:
    """Whether a step with so many inputs that depend on the image is linear or pooling."""
    return kind in _POOLING or (kind in _LINEAR and (factors <= 1 or kind not in ("Addmm", "Div", "Mm", "Mul")))


def _steps(score: Tensor) -> list[tuple[str, int]]:
    """Kind of each step of the graph behind a score, and how many of its inputs depend on the image."""
    waiting, seen, found = [score.grad_fn], set[object](), list[tuple[str, int]]()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        inputs = [further for further, _ in node.next_functions if further is not None]
        kind = re.sub(r"Backward\d*$", "", node.name())
        if "AccumulateGrad" not in kind:
            found.append((kind, len(inputs)))
        waiting += inputs
    return found
