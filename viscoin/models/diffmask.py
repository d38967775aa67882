"""DiffMask: which patches can be replaced by one vector without changing what f says.

De Cao et al. 2020 (arXiv 2004.14992), for images Nalmpantis et al. 2023 (arXiv 2304.06391, Vision DiffMask).
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from viscoin.errors import Refused
from viscoin.models.classifier import Classifier
from viscoin.models.digests import digest
from viscoin.models.hard_concrete import HardConcrete
from viscoin.models.tokens import PatchTokens

GATE = HardConcrete()


class Masked(NamedTuple):
    """What masks (B, N) in [0, 1] over the patches of images do to f: its logits (B, n_classes) before and after."""

    mask: Tensor
    logits: Tensor
    masked_logits: Tensor

    @property
    def kl(self) -> Tensor:
        """KL(f(x) || f(masked)), (B,)."""
        return kl_divergence(self.logits, self.masked_logits)

    @property
    def kept(self) -> Tensor:
        """Share of the patches that is kept, (B,)."""
        return self.mask.mean(1)


class Gates(nn.Module):
    """One small network a layer: from a token's embedding and its state there to how open its gate is.

    v = mul tanh(W2 tanh(W1 [h_0; h_k] + b1) + b2) + add, W1 (d/4, 2d), W2 (1, d/4), weights normalised as g v/|v|
    (Salimans & Kingma 2016). The weights of all layers lie in one tensor each, layers first.
    """

    def __init__(self, layers: int, width: int, mul_activation: float = 15.0, add_activation: float = 8.0) -> None:
        super().__init__()
        hidden = max(1, width // 4)
        self.mul_activation = mul_activation
        self.v1, self.g1, self.b1 = _normalised_layers(layers, hidden, 2 * width)
        self.v2, self.g2, self.b2 = _normalised_layers(layers, 1, hidden)
        self.add = nn.Parameter(torch.full((layers,), float(add_activation)))

    @torch.no_grad()
    def narrow(self, spread: float) -> None:
        """Shrink what is added to `add` to this share, so that gates start more alike."""
        self.g2.mul_(spread)
        self.b2.mul_(spread)

    def forward(self, states: Tensor) -> Tensor:
        """States of layers 0..k, (k + 1, B, N, d), in order -> logits v of their gates (B, N, k + 1)."""
        with torch.autocast(states.device.type, enabled=False):  # their sum over layers needs all digits
            return self._logits(states.float())

    def _logits(self, states: Tensor) -> Tensor:
        count, batch, tokens, width = states.shape
        flat = states.reshape(count, batch * tokens, width)
        first, second = _weights(self.v1, self.g1, count), _weights(self.v2, self.g2, count)
        # [h_0; h_k] is never put together: it would be twice as large as all states
        hidden = torch.tanh(flat[0] @ first[:, :width] + flat @ first[:, width:] + self.b1[:count, None])
        out = torch.tanh(hidden @ second + self.b2[:count, None])
        logits = self.mul_activation * out + self.add[:count, None, None]
        return logits.view(count, batch, tokens).movedim(0, -1)


def _normalised_layers(layers: int, outputs: int, inputs: int) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
    """Directions, lengths and biases as torch.nn.Linear starts them."""
    bound = 1 / math.sqrt(inputs)
    v = torch.empty(layers, outputs, inputs).uniform_(-bound, bound)
    bias = torch.empty(layers, outputs).uniform_(-bound, bound)
    return nn.Parameter(v), nn.Parameter(v.norm(dim=-1, keepdim=True)), nn.Parameter(bias)


def _weights(v: Tensor, g: Tensor, count: int) -> Tensor:
    """(count, inputs, outputs)."""
    v, g = v[:count], g[:count]
    return (g * v / v.norm(dim=-1, keepdim=True)).transpose(1, 2)


class DiffMask(nn.Module):
    """Gates for all layers of a plain ViT, what replaces a patch, and the multiplier of each layer.

    Args:
        classifier: digest of f, which the file does not hold.
        layers: L + 2 for a ViT of L blocks.
        width: d, numbers of a token.
        mul_activation, add_activation: of `Gates`; the second is where its learned number starts.
        placeholder: "learned", "zeros", or "fixed" to what its training found in the images.
        alpha: where the multipliers start.
    """

    def __init__(
        self, classifier: str, layers: int, width: int, mul_activation: float = 15.0, add_activation: float = 8.0,
        placeholder: str = "learned", alpha: float = 20.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.classifier = classifier
        self.architecture: dict[str, Any] = {
            "classifier": classifier, "layers": layers, "width": width, "mul_activation": mul_activation,
            "add_activation": add_activation, "placeholder": placeholder, "alpha": alpha,
        }  # fmt: skip
        self.gates = Gates(layers, width, mul_activation, add_activation)
        self.placeholder = nn.Parameter(torch.zeros(width), requires_grad=placeholder == "learned")
        if placeholder == "learned":
            nn.init.xavier_normal_(self.placeholder.data.view(1, 1, width))
        self.alphas = nn.ParameterList([nn.Parameter(torch.tensor(float(alpha))) for _ in range(layers)])

    @property
    def layers(self) -> int:
        return len(self.alphas)

    def log_open(self, states: Tensor) -> Tensor:
        """log P(z > 0) of each gate, (B, N, k + 1), of states (k + 1, B, N, d) of layers 0..k."""
        return GATE.log_open(self.gates(states))

    def replace(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """Embeddings (B, N, d), kept as far as the mask (B, N) in [0, 1] says, and the placeholder for the rest."""
        return torch.lerp(self.placeholder.to(embeddings.dtype), embeddings, mask.to(embeddings.dtype)[..., None])

    def sample(self, states: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Sampled masks of the layers 0..k together, and the log of the probability that each patch is kept, (B, N).

        Args:
            states: of layers 0..k, (k + 1, B, N, d).
            uniforms: in [0, 1), (B, N, k + 1).
        """
        logits = self.gates(states)
        return GATE.gate(logits, uniforms).prod(-1), GATE.log_open(logits).sum(-1)

    def explain(self, tokens: PatchTokens, images: Tensor, layer: int | None = None, aggregated: bool = True) -> Masked:
        """The deterministic masks of images (B, 3, H, W) in [-1, 1], and what f says with them.

        Args:
            tokens: of the classifier that it was trained on.
            layer: the last layer whose gates count, from 0; None: all layers.
            aggregated: m_i = prod_k P(z_ki > 0) over the layers up to that one; else of that one alone.
        """
        logits, states = tokens.states(images)
        mask = self.mask(states, layer, aggregated)
        masked = tokens.logits(self.replace(states[0], mask))
        return Masked(mask, logits.float(), masked.float())

    def mask(self, states: Tensor, layer: int | None = None, aggregated: bool = True) -> Tensor:
        """The deterministic masks (B, N) of states (L + 2, B, N, d); as `explain`."""
        layer = self.layers - 1 if layer is None else layer
        log_open = self.log_open(states[: layer + 1])
        return (log_open.sum(-1) if aggregated else log_open[..., -1]).exp()

    def check_layer(self, layer: int | None, parameter: str = "layer") -> None:
        """Raise Refused unless there is such a layer."""
        if layer is not None and not 0 <= layer < self.layers:
            raise Refused(
                parameter, layer, "there is no such layer",
                f"choose 0 (embeddings), 1 to {self.layers - 2} (inputs of the blocks) or {self.layers - 1} (output)",
            )  # fmt: skip

    def check_classifier(self, classifier: Classifier) -> None:
        """Raise Refused unless these are the weights of the f that it was trained on."""
        found = digest(f=classifier)["f"]
        if found != self.classifier:
            raise Refused(
                "diffmask", None,
                f"it was trained on a classifier of digest {self.classifier[:16]}, and this one has {found[:16]}",
                "give the one that it was trained on, or train another with `train diffmask`",
            )  # fmt: skip


def kl_divergence(logits: Tensor, masked: Tensor) -> Tensor:
    """KL(softmax(logits) || softmax(masked)), (B,), of logits (B, n_classes)."""
    return F.kl_div(masked.log_softmax(-1), logits.log_softmax(-1), reduction="none", log_target=True).sum(-1)
