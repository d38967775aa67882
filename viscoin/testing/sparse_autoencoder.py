"""A sparse autoencoder of feature vectors: each is a sum of a few of K directions (TopK: Gao et al., arXiv 2406.04093).

Written here because it is short: the library `overcomplete` (MIT) has it, and requires OpenCV and scikit-image with it.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

ACTIVE = 8  # latents of a vector, at most a quarter of K
STEPS, BATCH, RATE = 600, 1024, 2e-3
DEAD = 50  # steps without being among the active ones
AUXILIARY = 1 / 32  # weight of the loss that lets dead latents explain what is left over


def sparse_autoencoder(vectors: Tensor, k: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Train on feature vectors (N, C).

    Returns:
        Weight (C, K) and bias (K,), so that latents are relu(vectors @ weight + bias), of which the ACTIVE largest
        rebuild a vector; and its directions (K, C), each of length 1.
    """
    generator = torch.Generator().manual_seed(seed)
    mean = vectors.mean(0)
    scale = (vectors - mean).square().mean().sqrt().clamp_min(1e-12)
    inputs = (vectors - mean) / scale
    decoder = F.normalize(torch.randn(k, inputs.shape[1], generator=generator), dim=1)
    encoder, bias, shift = decoder.T.clone(), torch.zeros(k), torch.zeros(inputs.shape[1])
    parameters = [part.requires_grad_() for part in (encoder, bias, decoder, shift)]
    optimiser = torch.optim.Adam(parameters, RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1, 0.05, STEPS)
    active, idle = min(ACTIVE, max(1, k // 4)), torch.zeros(k)
    for _ in range(STEPS):
        batch = inputs[torch.randint(len(inputs), (min(BATCH, len(inputs)),), generator=generator)]
        latents = (batch - shift) @ encoder + bias
        codes = _largest(latents, active)
        left = batch - shift - codes @ decoder
        loss, dead = left.square().mean(), idle > DEAD
        if dead.any():
            revived = _largest(latents[:, dead], min(2 * active, int(dead.sum())))
            loss = loss + AUXILIARY * (left.detach() - revived @ decoder[dead]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            decoder.copy_(F.normalize(decoder, dim=1))
            idle = torch.where((codes > 0).any(0), 0, idle + 1)
    with torch.no_grad():
        weight = encoder / scale
        return weight, bias - mean @ weight - shift @ encoder, decoder.detach()


def _largest(latents: Tensor, count: int) -> Tensor:
    """All but the largest positive ones of each row set to zero."""
    values, places = latents.relu().topk(count, dim=1)
    return torch.zeros_like(latents).scatter(1, places, values)
