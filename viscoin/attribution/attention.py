"""Methods that read the attention of plain vision transformers: A (L, B, H, N, N), its rows adding up to 1."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from viscoin.attribution.question import DoesNotHold, Found, Question
from viscoin.models.layers import has_tokens, prefix_tokens, token_grid

FUSIONS = ("mean", "max", "min")
# Why a family of timm has no attention from each patch to each, by the module that defines it.
OTHERWISE = {
    "swin_transformer": "it attends inside windows",
    "swin_transformer_v2": "it attends inside windows",
    "maxxvit": "it attends inside windows",
    "cait": "its heads talk to each other after the softmax",
    "xcit": "its attention is between channels",
    "pvt_v2": "its keys are pooled",
    "levit": "its keys are pooled",
    "mvitv2": "its keys are pooled",
}


def rollout(attentions: Tensor, fusion: str = "mean", discard_ratio: float = 0.0, prefix: int = 1) -> Tensor:
    """R = a_L ... a_1 (B, N, N): what of each token, over all layers, comes from each patch.

    a_l = rows of (F_l + I) divided by their sums, F_l = mean, max or min of the heads. Of each image, the
    floor(discard_ratio N^2) smallest entries of F_l become 0, but what the class token sees of itself does not.
    Abnar & Zuidema 2020, arXiv 2005.00928, Sec. 3; discarding follows a well-known implementation (vit-explain).

    Args:
        attentions: (L, B, H, N, N).
        discard_ratio: in [0, 1).
        prefix: number of tokens before the patches; without any, none is kept from being discarded.
    """
    fused = attentions.mean(2) if fusion == "mean" else getattr(attentions, f"a{fusion}")(2)
    tokens = fused.shape[-1]
    count = int(discard_ratio * tokens * tokens)
    if count:
        fused = _discarded(fused, count, prefix)
    fused = fused + torch.eye(tokens, device=fused.device)
    layers = fused / fused.sum(-1, keepdim=True)
    found = layers[0]
    for layer in layers[1:]:
        found = layer @ found
    return found


def _discarded(fused: Tensor, count: int, prefix: int) -> Tensor:
    flat = fused.flatten(2)
    smallest = flat.topk(count, largest=False).indices
    kept = flat.scatter(2, smallest, 0.0)
    if prefix:
        kept[..., 0] = flat[..., 0]
    return kept.unflatten(2, fused.shape[-2:])


def chefer(attentions: Tensor, gradients: Tensor) -> Tensor:
    """R (B, N, N): from R = I, each layer adds mean_h relu(dA * A) R (Chefer et al. 2021, arXiv 2103.15679, Eqs. 5, 6).

    Not the layer-wise relevance propagation of the same authors (arXiv 2012.09838).

    Args:
        attentions: (L, B, H, N, N).
        gradients: of the score by them, of the same shape.
    """
    _, batch, _, tokens, _ = attentions.shape
    found = torch.eye(tokens, device=attentions.device).expand(batch, -1, -1)
    for A, dA in zip(attentions, gradients, strict=True):
        found = found + (dA * A).clamp(min=0).mean(1) @ found
    return found


def last_attention(question: Question) -> Found:
    """What the class token, or the mean of the patches, sees in the last block."""
    A = attentions(question)[-1]
    fusion = question.options["fusion"]
    return Found(of_patches(question.backbone, A.mean(1) if fusion == "mean" else getattr(A, f"a{fusion}")(1)))


def attention_rollout(question: Question) -> Found:
    """Rollout from the class token, or the mean of the patches; its peak is 1."""
    found, options = attentions(question), question.options
    R = rollout(found, options["fusion"], options["discard_ratio"], prefix_tokens(question.backbone))
    heat = of_patches(question.backbone, R)
    return Found(heat / heat.amax((1, 2), keepdim=True).clamp_min(torch.finfo(heat.dtype).tiny))


def chefer_relevance(question: Question) -> Found:
    """Relevance of the patches for the class token, or for the mean of the patches."""
    with torch.enable_grad(), _recorded(question, True) as seen:
        score = question.score(question.images.detach().requires_grad_(), question.every)
    _check(question, seen)
    question.passes.backwards += len(score)
    gradients = torch.autograd.grad(score.sum(), seen, materialize_grads=True)
    return Found(of_patches(question.backbone, chefer(torch.stack(seen).detach(), torch.stack(gradients))))


def attentions(question: Question) -> Tensor:
    """(L, B, H, N, N) of all blocks."""
    question.passes.forwards += len(question.images)
    with torch.no_grad(), _recorded(question, False) as seen:
        question.target.scores(question.images)
    _check(question, seen)
    return torch.stack(seen)


@contextmanager
def _recorded(question: Question, differentiable: bool) -> Iterator[list[Tensor]]:
    """The attention of each block in passes within; it is not computed by the fused kernel, which shows none.

    The model is a twin, so that the switch of the kernel is seen by no other thread.
    """
    reason = _refusal(question.backbone)
    if reason:
        raise DoesNotHold(reason)
    seen = list[Tensor]()

    def keep(_module: nn.Module, _given: object, output: Tensor) -> Tensor:
        seen.append(output if output.requires_grad or not differentiable else output.detach().requires_grad_())
        return seen[-1]

    hooks = []
    for block in question.backbone.get_submodule("blocks").children():
        attention = block.get_submodule("attn")
        attention.fused_attn = False  # type: ignore[assignment]  # a switch, no part of the network
        hooks.append(attention.get_submodule("attn_drop").register_forward_hook(keep))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _refusal(model: nn.Module) -> str | None:
    """Why a network has no attention from each patch to each that could be read; None where it has."""
    family = type(model).__module__.rsplit(".", 1)[-1]
    if family in OTHERWISE:
        return OTHERWISE[family]
    if not has_tokens(model) or token_grid(model) is None:
        return "it is no plain vision transformer"
    for block in model.get_submodule("blocks").children():
        attention = getattr(block, "attn", None)
        if not (hasattr(attention, "fused_attn") and isinstance(getattr(attention, "attn_drop", None), nn.Dropout)):
            return "its blocks have no attention that could be read"
    pooling = getattr(model, "global_pool", "token")
    if getattr(model, "attn_pool", None) is not None or pooling == "map":
        return "another attention pools the tokens"
    return None if pooling in ("token", "avg") else f"its tokens are pooled by {pooling!r}"


def _check(question: Question, seen: list[Tensor]) -> None:
    """Raise DoesNotHold unless each block gave the attention of all tokens among themselves."""
    model, count = question.backbone, len(question.images)
    height, width = token_grid(model) or (0, 0)
    tokens = height * width + prefix_tokens(model)
    depth = len(list(model.get_submodule("blocks").children()))
    whole = all(A.ndim == 4 and len(A) == count and A.shape[-2:] == (tokens, tokens) for A in seen)
    if len(seen) != depth or not whole:
        raise DoesNotHold("its attention is not one of all tokens among themselves in each block")
    if not all(torch.allclose(A.sum(-1), torch.ones((), device=A.device), atol=1e-3) for A in seen):
        raise DoesNotHold("the rows of its attention do not add up to 1")


def of_patches(model: nn.Module, matrix: Tensor) -> Tensor:
    """(B, N, N) -> (B, h, w): the rows of the tokens that the logits are read from, at the patches."""
    prefix, grid = prefix_tokens(model), token_grid(model)
    if getattr(model, "global_pool", "token") == "avg":
        rows = matrix[:, prefix:].mean(1)
    elif getattr(model, "head_dist", None) is not None:  # logits are the mean of those of the first two tokens
        rows = matrix[:, :2].mean(1)
    else:
        rows = matrix[:, 0]
    return rows[:, prefix:].unflatten(1, grid)  # type: ignore[arg-type]  # refused without a grid
