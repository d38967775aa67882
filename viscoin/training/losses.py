"""The losses of Psi, Theta and Omega (Parekh et al. 2025, Sec. 3.4), and perceptual distances.

Batch means everywhere, so that weights do not depend on the batch size, unless stated otherwise. Logits and concept
maps are taken to float32 first, for mixed precision.
"""

import logging

from torch import Tensor
from torch.nn import functional as F

from viscoin.models.explainer import activations

logger = logging.getLogger(__name__)


def output_fidelity(explainer_logits: Tensor, classifier_logits: Tensor) -> Tensor:
    """L_of = -mean_b sum_c softmax(f(x))_c log softmax(g(x))_c. Logits (B, C) -> scalar; f is the fixed target."""
    return _soft_cross_entropy(explainer_logits, classifier_logits)


def reconstruction_class(reconstruction_logits: Tensor, classifier_logits: Tensor) -> Tensor:
    """-mean_b sum_c softmax(f(x))_c log softmax(f(x~))_c. Logits (B, C) of f for x~ and x -> scalar; f(x) is fixed."""
    return _soft_cross_entropy(reconstruction_logits, classifier_logits)


def reconstruction_l1(reconstruction: Tensor, images: Tensor) -> Tensor:
    """mean |x~ - x|. Images (B, 3, H, W) in [-1, 1] -> scalar."""
    return F.l1_loss(reconstruction, images)


def reconstruction_l2(reconstruction: Tensor, images: Tensor) -> Tensor:
    """mean (x~ - x)^2. Images (B, 3, H, W) in [-1, 1] -> scalar."""
    return F.mse_loss(reconstruction, images)


def sparsity(concept_maps: Tensor, phi: Tensor | None = None) -> Tensor:
    """mean |phi / ||phi||_2| + mean |Phi|. Concept maps Phi (B, K, 3, 3) -> scalar.

    phi (B, K) is Phi max-pooled, which is done here where it is not given.
    """
    concept_maps = concept_maps.float()
    phi = activations(concept_maps) if phi is None else phi
    return F.normalize(phi, dim=1).abs().mean() + concept_maps.abs().mean()


def bimodality(phi: Tensor) -> Tensor:
    """Mean over concepts of kurtosis - 0.85 skewness^2 over the batch. Concept activations (B, K), float32 -> scalar.

    A concept that is either there or not takes two values. Kurtosis - skewness^2 is at least 1, and 1 for two values
    alone (Pearson 1916; Sarle's bimodality coefficient is made of both). The factor below 1 prefers concepts of a
    third of all images to those of a single class. Take 100 images or more: moments of few are noise.
    """
    standardised = (phi - phi.mean(0)) / (phi.var(0, unbiased=False) + 1e-6).sqrt()
    kurtosis, skewness = standardised.pow(4).mean(0), standardised.pow(3).mean(0)
    return (kurtosis.clamp(max=50) - 0.85 * skewness.square().clamp(max=40)).mean()  # a rare outlier must not rule


def conciseness_diversity(concept_maps: Tensor, eta: float) -> Tensor:
    """sum_b H(phi_b) - H(mean_b phi_b) + eta mean |phi| (FLINT, Parekh et al., NeurIPS 2021, Sec. 3.2).

    H is the entropy (nats) of the softmax over concepts. Concept maps (B, K, 3, 3) -> scalar. The first term is
    small if each image uses few concepts, the second if the images together use many. As in FLINT it is a sum over the
    batch, so it grows with the batch.
    """
    phi = activations(concept_maps.float())
    return _entropy(phi).sum() - _entropy(phi.mean(0)) + eta * phi.abs().mean()


def concept_orthogonality(kernels: Tensor) -> Tensor:
    """(sum_ij |k_i|.|k_j| / (||k_i|| ||k_j||) - K) / K^2 over the kernels (K, C, 1, 1) of conv5 -> scalar in [0, 1).

    The absolute value is taken of the entries, as in the public code: zero only if no two concepts share a channel.
    """
    n_concepts = len(kernels)
    unit = F.normalize(kernels.flatten(1), dim=1).abs()
    return ((unit @ unit.T).sum() - n_concepts) / n_concepts**2


def style_regularization(ws: Tensor, mean_style: Tensor) -> Tensor:
    """mean (w+ - w_avg)^2. Style vectors (B, num_ws, w_dim) and mean style (w_dim,) -> scalar."""
    return F.mse_loss(ws, mean_style.expand_as(ws))


def _soft_cross_entropy(logits: Tensor, target_logits: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), target_logits.detach().float().softmax(1))


def _entropy(x: Tensor) -> Tensor:
    """Entropy in nats of softmax(x) over the last dimension; finite, like its gradient, where probabilities are 0."""
    return -(x.softmax(-1) * x.log_softmax(-1)).sum(-1)
