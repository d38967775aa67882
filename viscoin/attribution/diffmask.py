"""Maps of a trained DiffMask: which patches f needs to say what it says."""

from dataclasses import dataclass

import torch
from torch import Tensor

from viscoin.attribution.question import DoesNotHold, Found, Question
from viscoin.attribution.targets import ClassifierLogit
from viscoin.errors import Refused
from viscoin.inference.batches import evaluation
from viscoin.models.classifier import Classifier
from viscoin.models.diffmask import DiffMask, Masked
from viscoin.models.tokens import PatchTokens


@dataclass(frozen=True)
class DiffMaskMaps:
    """Masks of B images, and what f says when only their patches are left.

    Attributes:
        maps: (B, h, w) float32 in [0, 1], one number a patch: the probability that it is kept.
        logits, masked_logits: (B, n_classes) of f, for the images and with z = maps.
        kl: KL(f(x) || f(masked)), (B,), nats.
        kept: mean of each map, (B,).
    """

    maps: Tensor
    logits: Tensor
    masked_logits: Tensor
    kl: Tensor
    kept: Tensor


def diffmask_maps(
    classifier: Classifier,
    mask_model: DiffMask,
    images: Tensor,
    *,
    layer: int | None = None,
    aggregated: bool = True,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
) -> DiffMaskMaps:
    """m_i = exp(logP_i), the probability that all gates of patch i are open (De Cao et al. 2020); not class-specific.

    Nothing is sampled: the same images give the same maps.

    Args:
        classifier: the plain ViT that `mask_model` was trained on.
        images: (B, 3, H, W) in [-1, 1].
        layer: the last layer whose gates count: 0 the embeddings, 1 to L the inputs of the blocks, L + 1 the output of
            the last one; None: all of them.
        aggregated: the product over the layers up to that one; else that of one layer alone.
        batch_size: images that go through f at a time.

    Raises:
        Refused: no plain ViT, a DiffMask of another classifier, or no such layer.
    """
    mask_model.check_classifier(classifier)
    mask_model.check_layer(layer)
    tokens = PatchTokens(classifier)
    with evaluation(classifier, device), evaluation(mask_model, device):
        parts = [mask_model.explain(tokens, part.to(device), layer, aggregated) for part in images.split(batch_size)]
    found = Masked(*(torch.cat(values).float().cpu() for values in zip(*parts)))
    return DiffMaskMaps(found.mask.view(-1, *tokens.grid), found.logits, found.masked_logits, found.kl, found.kept)


def learned_mask(question: Question) -> Found:
    """`diffmask_maps` as a method: option `diffmask` is the model, `gates` the last layer whose gates count.

    Like attention rollout it says what the whole prediction needs, the same for every class.
    """
    if not isinstance(question.target, ClassifierLogit):
        raise DoesNotHold("a DiffMask explains what the classifier f predicts")
    classifier = question.target.classifier
    try:
        tokens = PatchTokens(classifier)
    except Refused as error:
        raise DoesNotHold(error.reason) from error
    mask_model, gates = question.options["diffmask"], question.options["gates"]
    if not isinstance(mask_model, DiffMask):
        raise Refused(
            "method", "diffmask", "it has to be trained for this classifier, and no DiffMask is given",
            "train one with `train diffmask`, and give its file (`diffmask`)",
        )  # fmt: skip
    mask_model.check_classifier(classifier)
    mask_model.check_layer(gates, "gates")
    question.passes.forwards += len(question.images)
    with evaluation(mask_model, question.images.device):
        mask = mask_model.mask(tokens.states(question.images)[1], gates, question.options["aggregated"])
    return Found(mask.float().view(-1, *tokens.grid).clone())
