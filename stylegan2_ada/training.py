"""Training steps of StyleGAN2: adversarial (Karras et al. 2020, Sec. 3-4) and a warm start by reconstruction.

The loop, the data and the files are the caller's; a trainer holds networks and optimisers and does one step.
"""

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stylegan2_ada.loss import (
    PathLengthRegularizer,
    discriminator_logistic,
    generator_logistic,
    mixed_ws,
    path_lengths,
    r1_penalty,
    update_ema,
)
from stylegan2_ada.networks import Discriminator, Generator

# The mapping network's lr multiplier of 0.01 suits the adversarial game; matching latents needs a faster pace.
MAPPING_BOOST = 50

Distance = Callable[[Tensor, Tensor], Tensor]
Check = Callable[[Mapping[str, Tensor]], None]


@dataclass(frozen=True)
class GanSettings:
    """Hyperparameters of the training; counts of images in thousands (kimg).

    `reconstruction` weighs ||x - G(E(x))|| in the adversarial phase; 0 gives plain StyleGAN2.
    `latent_noise` and `latent_penalty` keep the encoder's styles smooth enough for the mapping network to reach.
    """

    batch_size: int = 32
    learning_rate: float = 2e-3
    r1_gamma: float = 1.0
    r1_interval: int = 16
    path_length_weight: float = 2.0
    path_length_interval: int = 8
    style_mixing: float = 0.9
    ema_kimg: float = 5.0
    warm_start_learning_rate: float = 2e-3
    warm_start_steps: int = 0
    reconstruction: float = 0.0
    perceptual: float = 1.0
    latent_noise: float = 0.1
    latent_penalty: float = 1e-3
    latent_memory: int = 1024


class GanTrainer:
    """Networks and optimisers; `step` trains by reconstruction first (if so set), then adversarially.

    Args:
        generator, discriminator: networks to train, unconditional.
        settings: hyperparameters.
        encoder: image (B, 3, H, W) -> styles (B, w_dim); needed for the warm start and the reconstruction term.
        perceptual: distance of two image batches, (B,) each, added to L1 + L2 in the reconstruction.
        backward: how to run backward (a gradient scaler or a distributed strategy may want to).
        check: called with the loss terms of a step before its backward pass; may raise.
    """

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        settings: GanSettings,
        encoder: nn.Module | None = None,
        perceptual: Distance | None = None,
        backward: Callable[[Tensor], None] = Tensor.backward,
        check: Check = lambda terms: None,
    ) -> None:
        if encoder is None and (settings.warm_start_steps or settings.reconstruction):
            raise ValueError("a warm start or a reconstruction term needs an encoder")
        self.generator, self.discriminator, self.encoder = generator, discriminator, encoder
        self.ema = deepcopy(generator).eval().requires_grad_(False)
        self.settings, self.perceptual, self.backward, self.check = settings, perceptual, backward, check
        self.path_length = PathLengthRegularizer().to(next(generator.parameters()).device)
        self.generator_optimizer = self._lazy_adam(generator.parameters(), settings.path_length_interval)
        self.discriminator_optimizer = self._lazy_adam(discriminator.parameters(), settings.r1_interval)
        self.memory = torch.empty(0)
        self.warm_optimizer: torch.optim.Optimizer | None = None
        if encoder is not None:
            rate = settings.warm_start_learning_rate
            groups = [
                {"params": [*encoder.parameters(), *generator.synthesis.parameters()], "lr": rate},
                {"params": list(generator.mapping.parameters()), "lr": MAPPING_BOOST * rate},
            ]
            self.warm_optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
            self.encoder_optimizer = torch.optim.Adam(encoder.parameters(), rate, betas=(0.0, 0.99))

    def step(self, images: Tensor, step: int) -> dict[str, Tensor]:
        """One training step on real images (B, 3, H, W) in [-1, 1]; returns the loss terms."""
        warm = step < self.settings.warm_start_steps
        terms = self._warm_step(images, step) if warm else self._adversarial_step(images, step)
        seen = (step + 1) * self.settings.batch_size
        half_life = min(self.settings.ema_kimg * 1000, 0.05 * seen)
        update_ema(self.ema, self.generator, 0.5 ** (self.settings.batch_size / max(half_life, 1e-8)))
        return terms

    def _warm_step(self, images: Tensor, step: int) -> dict[str, Tensor]:
        optimizer = self.warm_optimizer
        if optimizer is None:
            raise ValueError("the warm start needs an encoder")
        # Cosine from full to a tenth over the warm start; the adversarial phase starts with its own rate.
        factor = 0.55 + 0.45 * math.cos(math.pi * step / self.settings.warm_start_steps)
        for group, scale in zip(optimizer.param_groups, (1, MAPPING_BOOST), strict=True):
            group["lr"] = self.settings.warm_start_learning_rate * scale * factor
        w, terms = self._reconstruct(images)
        z = torch.randn(256, self.generator.z_dim, device=images.device)
        terms["latent_match"] = energy_distance(self._map(z), self._remember(w.detach()))
        self.check(terms)
        optimizer.zero_grad(set_to_none=True)
        self.backward(torch.stack(list(terms.values())).sum())
        optimizer.step()
        return {key: value.detach() for key, value in terms.items()}

    def _adversarial_step(self, images: Tensor, step: int) -> dict[str, Tensor]:
        fake = self._sample(len(images))
        terms = self._generator_step(images, fake)
        if self.settings.path_length_weight and step % self.settings.path_length_interval == 0:
            terms |= self._path_length_step(images)
        terms |= self._discriminator_step(images, fake.detach(), step)
        return {key: value.detach() for key, value in terms.items()}

    def _generator_step(self, images: Tensor, fake: Tensor) -> dict[str, Tensor]:
        self.discriminator.requires_grad_(False)
        terms = {"generator": generator_logistic(self.discriminator(fake, None)).mean()}
        if self.settings.reconstruction:
            _, parts = self._reconstruct(images)
            terms |= {key: value * self.settings.reconstruction for key, value in parts.items()}
        self.check(terms)
        self.generator_optimizer.zero_grad(set_to_none=True)
        if self.encoder is not None:
            self.encoder_optimizer.zero_grad(set_to_none=True)
        self.backward(torch.stack(list(terms.values())).sum())
        self.generator_optimizer.step()
        if self.settings.reconstruction:
            self.encoder_optimizer.step()
        self.discriminator.requires_grad_(True)
        return terms

    def _path_length_step(self, images: Tensor) -> dict[str, Tensor]:
        """Lazy path-length regularisation (StyleGAN2 paper, Sec. 3.2 and Appendix B) on half a batch."""
        ws = self._ws(max(1, len(images) // 2))
        fake = self.generator.synthesis(ws, noise_mode="random")
        penalty = self.path_length(path_lengths(fake, ws, torch.randn_like(fake))).mean()
        terms = {"path_length": penalty * self.settings.path_length_weight}
        self.check(terms)
        self.generator_optimizer.zero_grad(set_to_none=True)
        self.backward(terms["path_length"] * self.settings.path_length_interval)
        self.generator_optimizer.step()
        return terms

    def _discriminator_step(self, images: Tensor, fake: Tensor, step: int) -> dict[str, Tensor]:
        regularise = bool(self.settings.r1_gamma) and step % self.settings.r1_interval == 0
        real = images.detach().requires_grad_(regularise)
        real_logits, fake_logits = self.discriminator(real, None), self.discriminator(fake, None)
        terms = {"discriminator": discriminator_logistic(real_logits, fake_logits).mean()}
        if regularise:
            terms["r1"] = r1_penalty(real, real_logits).mean() * self.settings.r1_gamma / 2
        self.check(terms)
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        self.backward(terms["discriminator"] + terms.get("r1", 0) * self.settings.r1_interval)
        self.discriminator_optimizer.step()
        return terms | {"real_sign": real_logits.sign().mean(), "fake_sign": fake_logits.sign().mean()}

    def _reconstruct(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if self.encoder is None:
            raise ValueError("a reconstruction needs an encoder")
        w = self.encoder(images).float()
        noisy = w + self.settings.latent_noise * torch.randn_like(w)
        rebuilt = self.generator.synthesis(self._broadcast(noisy), noise_mode="random").float()
        terms = {
            "l1": F.l1_loss(rebuilt, images),
            "l2": F.mse_loss(rebuilt, images),
            "latent": self.settings.latent_penalty * w.square().mean(),
        }
        if self.perceptual is not None and self.settings.perceptual:
            terms["perceptual"] = self.settings.perceptual * self.perceptual(rebuilt, images).mean()
        return w, terms

    def _sample(self, n: int) -> Tensor:
        return self.generator.synthesis(self._ws(n), noise_mode="random")

    def _ws(self, n: int) -> Tensor:
        z = torch.randn(n, self.generator.z_dim, device=next(self.generator.parameters()).device)
        return mixed_ws(self.generator.mapping, z, None, self.settings.style_mixing, update_w_avg=True)

    def _map(self, z: Tensor) -> Tensor:
        return self.generator.mapping(z, None, update_w_avg=True)[:, 0]

    def _broadcast(self, w: Tensor) -> Tensor:
        return w[:, None].expand(-1, self.generator.synthesis.num_ws, -1)

    def _remember(self, w: Tensor) -> Tensor:
        self.memory = torch.cat([w, self.memory.to(w)] if len(self.memory) else [w])[: self.settings.latent_memory]
        return self.memory

    def _lazy_adam(self, parameters: Any, interval: int) -> torch.optim.Adam:
        """Adam with beta1 0, corrected for the extra steps of lazy regularisation (StyleGAN2, Appendix B)."""
        ratio = interval / (interval + 1)
        return torch.optim.Adam(parameters, self.settings.learning_rate * ratio, betas=(0.0, 0.99**ratio))

    def state_dict(self) -> dict[str, Any]:
        parts = self._parts()
        return {name: part.state_dict() for name, part in parts.items()} | {"memory": self.memory}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.memory = state["memory"]

    def _parts(self) -> dict[str, Any]:
        names = ["generator", "discriminator", "ema", "path_length", "generator_optimizer", "discriminator_optimizer"]
        if self.encoder is not None:
            names += ["encoder", "warm_optimizer", "encoder_optimizer"]
        return {name: getattr(self, name) for name in names}


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """2 E|x - y| - E|x - x'| - E|y - y'| of two samples (N, D), (M, D): 0 when the distributions agree.

    Source: Szekely and Rizzo 2013, "Energy statistics". Unbiased in both self terms.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, y = x.float(), y.float()
        n, m = len(x), len(y)
        within = _distances(x, x).sum() / (n * (n - 1)) + _distances(y, y).sum() / (m * (m - 1))
        return 2 * _distances(x, y).mean() - within


def _distances(x: Tensor, y: Tensor) -> Tensor:
    # sqrt has no finite slope at 0, where the self distances lie.
    square = x.square().sum(1)[:, None] + y.square().sum(1)[None] - 2 * x @ y.T
    return square.clamp_min(1e-6).sqrt()
