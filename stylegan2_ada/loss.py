"""Loss terms of StyleGAN2 and the running mean of its weights, as small functions that a training loop composes."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylegan2_ada.distributed import mean_over_processes


def generator_logistic(fake_logits: Tensor) -> Tensor:
    """-log sigmoid(D(G(z))), non-saturating (Goodfellow et al., arXiv 1406.2661, Sec. 3). (B, 1) -> scalar mean."""
    return F.softplus(-fake_logits).mean()


def discriminator_logistic(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-log sigmoid(D(x)) - log(1 - sigmoid(D(G(z)))) (arXiv 1406.2661, Eq. 1). Two (B, 1) -> scalar mean."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def r1_penalty(real_images: Tensor, real_logits: Tensor) -> Tensor:
    """Squared norm of dD/dx on real images (Mescheder et al., arXiv 1801.04406, Eq. 9), without gamma / 2. -> (B,).

    Args:
        real_images: (B, C, H, W) with requires_grad set before the discriminator saw them.
        real_logits: (B, 1).
    """
    (gradient,) = torch.autograd.grad(real_logits.sum(), real_images, create_graph=True)
    return gradient.float().square().sum([1, 2, 3])


def path_lengths(images: Tensor, ws: Tensor, pl_noise: Tensor) -> Tensor:
    """|J_w^T y| of the StyleGAN2 paper, Sec. 3.2 and Eq. 4. -> (B,).

    y is the noise divided by sqrt(H * W), so that the length does not depend on the resolution (Appendix B). With
    several styles per image the squared norm is averaged over them (inferred from published numbers).

    Args:
        images: (B, C, H, W), made from `ws`.
        ws: (B, num_ws, w_dim), requires grad.
        pl_noise: standard normal, shape of the images.
    """
    h, w = images.shape[2:]
    (gradient,) = torch.autograd.grad((images * pl_noise).sum() / math.sqrt(h * w), ws, create_graph=True)
    return gradient.float().square().sum(2).mean(1).sqrt()


class PathLengthRegularizer(nn.Module):
    """(|J_w^T y| - a)^2 with a the running mean of the lengths (StyleGAN2 paper, Eq. 4).

    Args:
        decay: share of each batch in the running mean; 0.01 in the paper's Appendix B (beta_pl = 0.99).
    """

    mean: Tensor

    def __init__(self, decay: float = 0.01) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros([]))

    def forward(self, lengths: Tensor) -> Tensor:
        """(B,) -> (B,), and updates the running mean over all processes, which counts as a constant."""
        self.mean.lerp_(mean_over_processes(lengths.detach().mean()), self.decay)
        return (lengths - self.mean).square()


def mixed_ws(
    mapping: Callable[..., Tensor],
    z: Tensor,
    c: Tensor | None,
    prob: float,
    generator: torch.Generator | None = None,
    update_w_avg: bool = False,
) -> Tensor:
    """Styles of which, with probability `prob` per sample, those from a random layer on come from another latent.

    Style mixing of StyleGAN (arXiv 1812.04948, Sec. 3.1).

    Args:
        mapping: mapping network.
        z: (B, z_dim); c: (B, c_dim) or None.
        prob: 0.9 in both papers; 0 takes nothing from the generator.
        generator: source of random numbers; None for torch's global one.

    Returns:
        (B, num_ws, w_dim).
    """
    ws = mapping(z, c, update_w_avg=update_w_avg)
    if prob <= 0:
        return ws
    device = z.device if generator is None else generator.device
    b, num_ws, _ = ws.shape
    other = mapping(torch.randn(z.shape, generator=generator, device=device).to(z), c)
    cutoff = torch.randint(1, num_ws, [b], generator=generator, device=device)
    mixes = torch.rand([b], generator=generator, device=device) < prob
    first_other = torch.where(mixes, cutoff, num_ws).to(ws.device)
    keep = torch.arange(num_ws, device=ws.device) < first_other[:, None]
    return torch.where(keep[:, :, None], ws, other)


@torch.no_grad()
def update_ema(ema_module: nn.Module, module: nn.Module, decay: float) -> None:
    """ema <- decay * ema + (1 - decay) * parameter, for parameters; buffers are copied (arXiv 1710.10196, Sec. 6)."""
    if not 0 <= decay <= 1:
        raise ValueError(f"decay is {decay}; it lies in [0, 1]")
    torch._foreach_lerp_(list(ema_module.parameters()), list(module.parameters()), 1 - decay)
    for ema_buffer, buffer in zip(ema_module.buffers(), module.buffers(), strict=True):
        ema_buffer.copy_(buffer)
