"""Training steps of StyleGAN2-ADA: adversarial (arXiv 1912.04958, 2006.06676), and before it, if so set, a warm
start by reconstruction and the matching of features (after arXiv 1904.02762).

The loop, the data and the files are the caller's; a trainer holds networks and optimisers and does one step. Several
processes may train together: see `stylegan2_ada.distributed`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stylegan2_ada.distributed import average_gradients, broadcast, gather, mean_over_processes, world_size
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
from stylegan2_ada.optimizer import load_optimizer, set_rate

if TYPE_CHECKING:
    from stylegan2_ada.augment import AugmentController, AugmentPipe

# The mapping network's lr multiplier of 0.01 suits the adversarial game; matching latents needs a faster pace.
MAPPING_BOOST = 50

# Of the mean spread of features, added to each one's own: what hardly varies must not count for most.
LEAST_SPREAD = 0.3

Distance = Callable[[Tensor, Tensor], Tensor]
Features = Callable[[Tensor], Sequence[Tensor]]  # images (B, 3, H, W) -> features (B, D) of several levels
Check = Callable[[Mapping[str, Tensor]], None]


@dataclass(frozen=True)
class GanSettings:
    """Hyperparameters of the training; counts of images in thousands (kimg).

    `batch_size` counts the images of all processes; each takes its share in `accumulate` parts, one after the other,
    and D compares standard deviations within a part. `ema_rampup` bounds the half-life of the weight average by that
    share of the images seen so far (ADA paper, Appendix C); None does not. With `half_precision`, gradients that are
    not finite are replaced, as networks with float16 layers need. `reconstruction` weighs ||x - G(E(x))|| in the
    adversarial phase; 0 gives plain StyleGAN2.
    `latent_noise` and `latent_penalty` keep the encoder's styles smooth enough for the mapping network to reach.
    For the first `hold_steps` of the warm start, and again of the adversarial phase, G stays as it is and what is new
    beside it learns alone: the encoder, also on samples of G, whose styles are known; then D.
    Between the two phases G learns for `matching_steps` from the features of whole batches of samples.
    """

    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float = 2e-3
    r1_gamma: float = 1.0
    r1_interval: int = 16
    path_length_weight: float = 2.0
    path_length_interval: int = 8
    style_mixing: float = 0.9
    ema_kimg: float = 5.0
    ema_rampup: float | None = 0.05
    half_precision: bool = False
    warm_start_learning_rate: float = 2e-3
    warm_start_steps: int = 0
    matching_learning_rate: float = 1e-3
    matching_steps: int = 0
    hold_steps: int = 0
    reconstruction: float = 0.0
    perceptual: float = 1.0
    latent_noise: float = 0.1
    latent_penalty: float = 1e-3
    latent_memory: int = 1024


class GanTrainer:
    """Networks and optimisers; `step` trains by reconstruction and by matching first (if so set), then adversarially.

    Both regularisers are lazy (StyleGAN2 paper, Sec. 3.1 and Appendix B): every k steps, a step of their own on k times
    the penalty. A network so takes k + 1 steps where it would take k, hence the rate c * lr and the moments beta^c of
    its Adam, c = k / (k + 1). The interval alone decides this: weight 0 changes no rate.
    The discriminator judges the samples that the generator was just trained on.

    Args:
        generator, discriminator: networks to train; parameters that do not require grad stay as they are.
        settings: hyperparameters.
        encoder: image (B, 3, H, W) -> styles (B, w_dim); needed for the warm start and the reconstruction term.
        perceptual: distance of two image batches, (B,) each, added to L1 + L2 in the reconstruction.
        backward: how to run backward (a gradient scaler or a distributed strategy may want to).
        check: called with the loss terms of a step before its backward pass; may raise.
        augment: pipe that all images pass on their way to the discriminator; its buffer `p` is the strength.
        controller: adjusts `augment.p` by the signs of the logits of real images.
        labels: classes (N,) of all real images, from which those of samples are taken; needed if c_dim > 0.
        features: what samples and real images must have alike in the matching phase; needed for it.
        compiled: translate synthesis and D by `torch.compile` where no second derivatives are needed: everywhere but in
            the two regularisers.
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
        augment: "AugmentPipe | None" = None,
        controller: "AugmentController | None" = None,
        labels: Tensor | None = None,
        compiled: bool = False,
        features: Features | None = None,
    ) -> None:
        if features is None and settings.matching_steps:
            raise ValueError("the matching of features needs features")
        if encoder is None and (settings.warm_start_steps or settings.reconstruction):
            raise ValueError("a warm start or a reconstruction term needs an encoder")
        if generator.c_dim and labels is None:
            raise ValueError("a conditional generator needs the labels of the real images")
        self.generator, self.discriminator, self.encoder = generator, discriminator, encoder
        for module in (generator, discriminator, encoder):
            if module is not None:
                broadcast(module)
        device = next(generator.parameters()).device
        self.labels = None if labels is None else labels.to(device)
        self.augment, self.controller = augment, controller
        self.ema = deepcopy(generator).eval().requires_grad_(False)
        self.settings, self.perceptual, self.backward, self.check = settings, perceptual, backward, check
        compile_ = torch.compile if compiled else lambda network: network
        self.synthesis, self.judgement = compile_(generator.synthesis), compile_(discriminator)
        self.path_length = PathLengthRegularizer().to(device)
        self.generator_optimizer = self._lazy_adam(generator.parameters(), settings.path_length_interval)
        self.drawing = [parameter for parameter in generator.parameters() if parameter.requires_grad]
        self.judge = [parameter for parameter in discriminator.parameters() if parameter.requires_grad]
        self.discriminator_optimizer = self._lazy_adam(self.judge, settings.r1_interval)
        self.memory = torch.empty(0)
        self.features = features
        self.adversarial_from = settings.warm_start_steps + settings.matching_steps
        self.matching_optimizer: torch.optim.Optimizer | None = None
        if settings.matching_steps:
            self.matching_optimizer = torch.optim.Adam(
                [
                    {"params": list(generator.synthesis.parameters())},
                    {"params": list(generator.mapping.parameters())},
                ],
                settings.matching_learning_rate,
                betas=(0.5, 0.99),
            )
        self.warm_optimizer: torch.optim.Optimizer | None = None
        if encoder is not None:
            rate = settings.warm_start_learning_rate
            groups = [
                {"params": [*encoder.parameters(), *generator.synthesis.parameters()], "lr": rate},
                {"params": list(generator.mapping.parameters()), "lr": MAPPING_BOOST * rate},
            ]
            self.warm_optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
            self.encoder_optimizer = torch.optim.Adam(encoder.parameters(), rate, betas=(0.0, 0.99))

    def change(self, settings: GanSettings) -> None:
        """Train by other settings from the next step on; batch, intervals and length must be the same."""
        self.settings = settings
        for optimizer, interval in (
            (self.generator_optimizer, settings.path_length_interval),
            (self.discriminator_optimizer, settings.r1_interval),
        ):
            set_rate(optimizer, settings.learning_rate * interval / (interval + 1))
        if self.encoder is not None:
            set_rate(self.encoder_optimizer, settings.warm_start_learning_rate)

    def step(self, images: Tensor, step: int, labels: Tensor | None = None) -> dict[str, Tensor]:
        """One training step on this process's real images (B, 3, H, W) in [-1, 1] and, for conditional networks, their
        classes (B,); returns the loss terms."""
        if step < self.settings.warm_start_steps:
            terms = self._warm_step(images, step)
        elif step < self.adversarial_from:
            terms = self._matching_step(images, step)
        else:
            terms = self._adversarial_step(images, step, labels)
        w_avg = self.generator.mapping.w_avg
        w_avg.copy_(mean_over_processes(w_avg))
        update_ema(self.ema, self.generator, self._ema_decay(step))
        return terms

    def _ema_decay(self, step: int) -> float:
        half_life = self.settings.ema_kimg * 1000
        if self.settings.ema_rampup is not None:
            half_life = min(half_life, self.settings.ema_rampup * (step + 1) * self.settings.batch_size)
        return 0.5 ** (self.settings.batch_size / max(half_life, 1e-8))

    def _warm_step(self, images: Tensor, step: int) -> dict[str, Tensor]:
        optimizer = self.warm_optimizer
        if optimizer is None:
            raise ValueError("the warm start needs an encoder")
        # Cosine from full to a tenth over the warm start; the adversarial phase starts with its own rate.
        factor = 0.55 + 0.45 * math.cos(math.pi * step / self.settings.warm_start_steps)
        for group, scale in zip(optimizer.param_groups, (1, MAPPING_BOOST), strict=True):
            group["lr"] = self.settings.warm_start_learning_rate * scale * factor
        held = step < self.settings.hold_steps
        if held:
            _require_grad(self.drawing, False)
        terms = self._update([optimizer], (self._warm_terms(part, held) for part in self._split(images)))
        _require_grad(self.drawing, True)
        return terms

    def _warm_terms(self, images: Tensor, held: bool) -> dict[str, Tensor]:
        w, terms = self._reconstruct(images)
        if held:
            return terms | {"inversion": self._inversion(len(images))}
        z = torch.randn(256, self.generator.z_dim, device=images.device)
        return terms | {"latent_match": energy_distance(self._map(z), self._remember(gather(w.detach())))}

    def _inversion(self, n: int) -> Tensor:
        """Mean squared error of the encoder on n samples of G, whose styles are known."""
        if self.encoder is None:
            raise ValueError("the styles of samples need an encoder")
        with torch.no_grad():
            ws = self._ws(n, self._drawn_condition(n))
            samples = self.synthesis(ws, noise_mode="random")
        return F.mse_loss(self.encoder(samples).float(), ws[:, 0])

    def _matching_step(self, images: Tensor, step: int) -> dict[str, Tensor]:
        """G learns to draw batches whose features are distributed as those of real images.

        In place of moments and their running means (generative feature matching, dos Santos et al., arXiv 1904.02762),
        the energy distance, which has no bias in batches of any size (but for the units, which are of the batch).
        """
        optimizer, features = self.matching_optimizer, self.features
        if optimizer is None or features is None:
            raise ValueError("the matching of features needs features")
        done = (step - self.settings.warm_start_steps) / self.settings.matching_steps
        rate = self.settings.matching_learning_rate * (0.5 + 0.5 * math.cos(math.pi * done))
        for group, scale in zip(optimizer.param_groups, (1, MAPPING_BOOST), strict=True):
            group["lr"] = rate * scale

        def terms() -> Iterator[dict[str, Tensor]]:
            for part in self._split(images):
                samples = self.synthesis(self._ws(len(part), None), noise_mode="random")
                with torch.no_grad():
                    wanted = [gather(level.float()) for level in features(part)]
                drawn = [gather(level.float()) for level in features(samples.float())]
                yield {"matching": torch.stack([*map(matching_distance, drawn, wanted)]).sum()}

        return self._update([optimizer], terms())

    @torch.no_grad()
    def _samples(self, n: int) -> tuple[Tensor, Tensor | None]:
        """Samples of G and their conditions."""
        condition = self._drawn_condition(n)
        return self.synthesis(self._ws(n, condition), noise_mode="random"), condition

    def _adversarial_step(self, images: Tensor, step: int, labels: Tensor | None) -> dict[str, Tensor]:
        settings = self.settings
        parts = self._split(images)
        conditions = [None] * len(parts) if labels is None else [self._condition(part) for part in self._split(labels)]
        if labels is None and self.generator.c_dim:
            raise ValueError("a conditional discriminator needs the labels of the real images")
        real = list(zip(parts, conditions, strict=True))
        fake: list[tuple[Tensor, Tensor | None]] = []
        held = step < self.adversarial_from + settings.hold_steps
        terms = {} if held else self._generator_step(parts, fake)
        if held:
            fake += [self._samples(len(images)) for images in parts]
        elif settings.path_length_weight and step % settings.path_length_interval == 0:
            terms |= self._path_length_step(parts)
        terms |= self._discriminator_step(real, fake)
        if settings.r1_gamma and step % settings.r1_interval == 0:
            terms |= self._r1_step(real)
        if self.augment is not None:
            terms |= self._adapt(self.augment, terms["real_sign"], len(images))
        return terms

    def _generator_step(self, parts: Sequence[Tensor], fake: list[tuple[Tensor, Tensor | None]]) -> dict[str, Tensor]:
        """Also appends the samples of each part, and their conditions, to `fake`."""

        def terms() -> Iterator[dict[str, Tensor]]:
            for images in parts:
                condition = self._drawn_condition(len(images))
                samples = self.synthesis(self._ws(len(images), condition), noise_mode="random")
                fake.append((samples.detach(), condition))
                found = {"generator": generator_logistic(self._logits(samples, condition)).mean()}
                if self.settings.reconstruction:
                    _, others = self._reconstruct(images)
                    found |= {key: value * self.settings.reconstruction for key, value in others.items()}
                yield found

        _require_grad(self.judge, False)
        optimizers = [self.generator_optimizer, *([self.encoder_optimizer] if self.settings.reconstruction else [])]
        means = self._update(optimizers, terms())
        _require_grad(self.judge, True)
        return means

    def _path_length_step(self, parts: Sequence[Tensor]) -> dict[str, Tensor]:
        """Lazy path-length regularisation (StyleGAN2 paper, Sec. 3.2 and Appendix B) on half a batch."""

        def terms() -> Iterator[dict[str, Tensor]]:
            for images in parts:
                n = max(1, len(images) // 2)
                ws = self._ws(n, self._drawn_condition(n))
                fake = self.generator.synthesis(ws, noise_mode="random")
                noise = torch.randn(fake.shape, device=fake.device)  # randn_like is slow for channels-last on CPUs
                penalty = self.path_length(path_lengths(fake, ws, noise)).mean()
                yield {"path_length": penalty * self.settings.path_length_weight}

        return self._update([self.generator_optimizer], terms(), self.settings.path_length_interval)

    def _discriminator_step(
        self, real: Sequence[tuple[Tensor, Tensor | None]], fake: Sequence[tuple[Tensor, Tensor | None]]
    ) -> dict[str, Tensor]:
        signs: list[Tensor] = []

        def terms() -> Iterator[dict[str, Tensor]]:
            for judged in zip(real, fake, strict=True):
                real_logits, fake_logits = (self._logits(images, condition) for images, condition in judged)
                signs.append(torch.stack([real_logits.detach().sign().mean(), fake_logits.detach().sign().mean()]))
                yield {"discriminator": discriminator_logistic(real_logits, fake_logits).mean()}

        means = self._update([self.discriminator_optimizer], terms())
        real_sign, fake_sign = torch.stack(signs).mean(0)
        return means | {"real_sign": real_sign, "fake_sign": fake_sign}

    def _r1_step(self, real: Sequence[tuple[Tensor, Tensor | None]]) -> dict[str, Tensor]:
        """Lazy R1 on real images; the gradient goes through the augmentation to the images themselves."""

        def terms() -> Iterator[dict[str, Tensor]]:
            for images, condition in real:
                images = images.detach().requires_grad_()
                logits = self._logits(images, condition, twice=True)
                yield {"r1": r1_penalty(images, logits).mean() * self.settings.r1_gamma / 2}

        return self._update([self.discriminator_optimizer], terms(), self.settings.r1_interval)

    def _logits(self, images: Tensor, condition: Tensor | None, twice: bool = False) -> Tensor:
        """`twice`: they will be differentiated twice."""
        judge = self.discriminator if twice else self.judgement
        return judge(images if self.augment is None else self.augment(images), condition)

    def _adapt(self, augment: "AugmentPipe", real_sign: Tensor, n: int) -> dict[str, Tensor]:
        """Let the controller move the strength of the augmentation, by the signs of all processes."""
        if self.controller is None:
            return {"augment_p": augment.p.clone()}
        augment.p.fill_(self.controller.update(mean_over_processes(real_sign.detach()), n * world_size()))
        terms = {"augment_p": augment.p.clone()}
        if not math.isnan(self.controller.r_t):  # as it is before the first move
            terms["r_t"] = torch.full_like(augment.p, self.controller.r_t)
        return terms

    def _update(
        self, optimizers: Sequence[torch.optim.Optimizer], terms: Iterable[dict[str, Tensor]], weight: float = 1.0
    ) -> dict[str, Tensor]:
        """One optimisation step on the mean gradient of all parts and processes; returns the means of the terms."""
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        share, means = 1 / self.settings.accumulate, dict[str, Tensor]()
        for found in terms:
            self.check(found)
            self.backward(torch.stack(list(found.values())).sum() * (weight * share))
            means = {key: means.get(key, 0) + value.detach() * share for key, value in found.items()}
        parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        average_gradients(parameters, self.settings.half_precision)
        for optimizer in optimizers:
            optimizer.step()
        return means

    def _split(self, batch: Tensor) -> tuple[Tensor, ...]:
        """A batch in equal parts, which go through the networks one after the other."""
        return batch.tensor_split(self.settings.accumulate)

    def _reconstruct(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if self.encoder is None:
            raise ValueError("a reconstruction needs an encoder")
        w = self.encoder(images).float()
        noisy = w + self.settings.latent_noise * torch.randn_like(w)
        rebuilt = self.synthesis(self._broadcast(noisy), noise_mode="random").float()
        terms = {
            "l1": F.l1_loss(rebuilt, images),
            "l2": F.mse_loss(rebuilt, images),
            "latent": self.settings.latent_penalty * w.square().mean(),
        }
        if self.perceptual is not None and self.settings.perceptual:
            terms["perceptual"] = self.settings.perceptual * self.perceptual(rebuilt, images).mean()
        return w, terms

    def _ws(self, n: int, condition: Tensor | None) -> Tensor:
        z = torch.randn(n, self.generator.z_dim, device=next(self.generator.parameters()).device)
        return mixed_ws(self.generator.mapping, z, condition, self.settings.style_mixing, update_w_avg=True)

    def _map(self, z: Tensor) -> Tensor:
        return self.generator.mapping(z, self._drawn_condition(len(z)), update_w_avg=True)[:, 0]

    def _drawn_condition(self, n: int) -> Tensor | None:
        """Conditions (n, c_dim) as frequent as in the real images; None, and nothing sampled, without conditions."""
        if self.labels is None or not self.generator.c_dim:
            return None
        return self._condition(self.labels[torch.randint(len(self.labels), (n,), device=self.labels.device)])

    def _condition(self, labels: Tensor | None) -> Tensor | None:
        if not self.generator.c_dim:
            return None
        if labels is None:
            raise ValueError("a conditional discriminator needs the labels of the real images")
        return F.one_hot(labels, self.generator.c_dim).float()

    def _broadcast(self, w: Tensor) -> Tensor:
        return w[:, None].expand(-1, self.generator.synthesis.num_ws, -1)

    def _remember(self, w: Tensor) -> Tensor:
        self.memory = torch.cat([w, self.memory.to(w)] if len(self.memory) else [w])[: self.settings.latent_memory]
        return self.memory

    def _lazy_adam(self, parameters: Any, interval: int) -> torch.optim.Adam:
        """Adam with betas (0, 0.99), corrected for the extra steps of lazy regularisation (see the class)."""
        ratio = interval / (interval + 1)
        return torch.optim.Adam(parameters, self.settings.learning_rate * ratio, betas=(0.0, 0.99**ratio), fused=True)

    def state_dict(self) -> dict[str, Any]:
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        return parts | {"memory": self.memory, "augmentation": self._augmentation_state()}

    def _augmentation_state(self) -> dict[str, Any]:
        if self.augment is None:
            return {}
        controller = {} if self.controller is None else self.controller.state_dict()
        return {"p": self.augment.p.clone(), "controller": controller}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, part in self._parts().items():
            if isinstance(part, torch.optim.Optimizer):
                load_optimizer(part, state[name])
            else:
                part.load_state_dict(state[name])
        self.memory = state["memory"]
        augmentation = state.get("augmentation")  # absent from files of the first version
        if self.augment is not None and augmentation:
            self.augment.p.copy_(augmentation["p"])
            if self.controller is not None:
                self.controller.load_state_dict(augmentation["controller"])

    def _parts(self) -> dict[str, Any]:
        names = ["generator", "discriminator", "ema", "path_length", "generator_optimizer", "discriminator_optimizer"]
        if self.encoder is not None:
            names += ["encoder", "warm_optimizer", "encoder_optimizer"]
        if self.matching_optimizer is not None:
            names.append("matching_optimizer")
        return {name: getattr(self, name) for name in names}


def _require_grad(parameters: Iterable[nn.Parameter], value: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(value)


def matching_distance(drawn: Tensor, wanted: Tensor) -> Tensor:
    """Energy distance of features (N, D) to those of real images (M, D), each in units of its spread there."""
    spread = wanted.std(0)
    unit = (spread + LEAST_SPREAD * spread.mean()).clamp_min(1e-8) * wanted.shape[1] ** 0.5
    return energy_distance(drawn / unit, wanted / unit)


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
