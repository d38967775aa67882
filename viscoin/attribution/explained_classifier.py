"""A classifier whose second output is a map, in one forward pass that can be exported."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from viscoin.attribution.attention import of_patches, rollout
from viscoin.attribution.attributing import attribute
from viscoin.attribution.explained import enlarged
from viscoin.attribution.methods import METHODS
from viscoin.attribution.options import check_options
from viscoin.errors import Refused
from viscoin.models.classifier import Classifier
from viscoin.models.layers import backbone_of, prefix_tokens

ONE_PASS = ("cam", "attention", "rollout")


class ExplainedClassifier(nn.Module):
    """f and where it looks: images (B, 3, H, W) in [-1, 1] -> logits (B, C) and maps (B, H, W), in one forward pass.

    A map is that of the class with the largest logit (cam), or of no class in particular (attention, rollout), and is
    what `attribute` gives. It works on a copy of the classifier, in eval mode; not for several threads at once.

    Args:
        method: one of `ONE_PASS`.
        options: of the method, as of `attribute`.

    Raises:
        Refused: a method of several passes, one that does not hold for the classifier, or a wrong option.
    """

    def __init__(self, classifier: Classifier, method: str = "cam", **options: Any) -> None:
        super().__init__()
        if method not in ONE_PASS:
            raise Refused("method", method, "is no map of one forward pass", f"choose one of: {', '.join(ONE_PASS)}")
        self.method, self.options = method, check_options(method, METHODS[method].options, options)
        self.seen = _Seen()
        side = classifier.resolution
        example = torch.linspace(-1, 1, 3 * side * side).view(1, 3, side, side).to(classifier.scale.device)
        wanted = attribute(classifier, example, method, **options).maps  # refuses what does not hold
        self.classifier = copy.deepcopy(classifier).eval().requires_grad_(False)
        if method != "cam":
            self._record()
        found = self(example)[1].cpu()
        if not torch.allclose(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max())):
            raise Refused("method", method, "the features of this backbone are not what its last layer reads")

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, native = self._class_map(images) if self.method == "cam" else self._attention_map(images)
        return logits, enlarged(native, (self.classifier.resolution, self.classifier.resolution))

    def _class_map(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.classifier.model.forward_features(self.classifier._normalised(images))
        logits = self.classifier.model.forward_head(features)
        weight = self.classifier.last_layer.weight[logits.argmax(1)]
        return logits, (weight[..., None, None] * features).sum(1)

    def _attention_map(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, model, fusion = self.classifier(images), backbone_of(self.classifier), self.options["fusion"]
        attentions = torch.stack(self.seen.attentions)
        self.seen.attentions.clear()
        if self.method == "attention":
            last = attentions[-1]
            return logits, of_patches(model, last.mean(1) if fusion == "mean" else getattr(last, f"a{fusion}")(1))
        native = of_patches(model, rollout(attentions, fusion, self.options["discard_ratio"], prefix_tokens(model)))
        return logits, native / native.amax((1, 2), keepdim=True).clamp_min(torch.finfo(native.dtype).tiny)

    def _record(self) -> None:
        """Have each block compute its attention openly and keep it."""
        for block in backbone_of(self.classifier).get_submodule("blocks").children():
            attention: Any = block.get_submodule("attn")
            attention.fused_attn, attention.attn_drop = False, _Recorder(self.seen)


class _Seen:
    """Attention of each block; an object of its own, as the exporter makes copies of lists."""

    def __init__(self) -> None:
        self.attentions: list[Tensor] = []


class _Recorder(nn.Module):
    """Keeps what passes through it."""

    def __init__(self, seen: _Seen) -> None:
        super().__init__()
        self.seen = seen

    def forward(self, attention: Tensor) -> Tensor:
        self.seen.attentions.append(attention)
        return attention
