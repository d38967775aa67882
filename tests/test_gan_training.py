"""Training steps of the generator on 16 px images: warm start, adversarial terms, lazy regularisers, classes,
augmentation, average, state."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from stylegan2_ada.loss import r1_penalty
from stylegan2_ada.networks import Discriminator, Generator
from stylegan2_ada.training import MAPPING_BOOST, GanSettings, GanTrainer, energy_distance, matching_distance

SIZE, BATCH, CLASSES = 16, 8, 3
LABELS = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, 2, 2])  # of all real images


def colours(seed: int = 0, n: int = BATCH) -> Tensor:
    """Images (n, 3, 16, 16) in [-1, 1]: a random colour above, another below."""
    draws = torch.rand(n, 3, 2, 1, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return draws.repeat_interleave(SIZE // 2, 2).expand(-1, -1, -1, SIZE).contiguous()


class Encoder(nn.Module):
    """Mean colours of the two halves -> styles."""

    def __init__(self, w_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, w_dim))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(nn.functional.avg_pool2d(images, (SIZE // 2, SIZE)).flatten(1))


class Pipe(nn.Module):
    """In the place of AugmentPipe: adds p * noise, and remembers what passed."""

    p: Tensor

    def __init__(self, p: float = 1.0, gain: float = 1.0) -> None:
        super().__init__()
        self.gain, self.seen = gain, []
        self.register_buffer("p", torch.tensor(p))

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.detach().clone())
        return self.gain * images + self.p * torch.randn_like(images)


class Controller:
    """In the place of AugmentController: p grows by a thousandth of the images."""

    def __init__(self) -> None:
        self.p, self.r_t, self.calls = 0.0, float("nan"), []

    def update(self, real_sign_mean, images: int) -> float:
        self.calls.append((float(real_sign_mean), images))
        self.p += images / 1000
        self.r_t = float(real_sign_mean) if len(self.calls) > 1 else self.r_t
        return self.p

    def state_dict(self) -> dict:
        return {"p": self.p, "r_t": self.r_t, "calls": len(self.calls)}

    def load_state_dict(self, state: dict) -> None:
        self.p, self.r_t, self.calls = state["p"], state["r_t"], [(0.0, 0)] * state["calls"]


def make(encoder: bool = True, conditional: bool = False, **settings) -> GanTrainer:
    torch.manual_seed(0)
    c_dim = CLASSES if conditional else 0
    generator = Generator(
        z_dim=8,
        c_dim=c_dim,
        w_dim=8,
        img_resolution=SIZE,
        img_channels=3,
        mapping_kwargs={"num_layers": 2},
        synthesis_kwargs={"channel_base": 128, "channel_max": 8},
    )
    discriminator = Discriminator(c_dim=c_dim, img_resolution=SIZE, img_channels=3, channel_base=128, channel_max=8)
    names = ("check", "backward", "perceptual_distance", "augment", "controller", "labels", "features")
    extra = {"labels": LABELS if conditional else None}
    extra |= {key: settings.pop(key) for key in names if key in settings}
    extra["perceptual"] = extra.pop("perceptual_distance", None)
    chosen = GanSettings(**{"batch_size": BATCH, "path_length_weight": 0.0, "r1_gamma": 0.0} | settings)
    return GanTrainer(generator, discriminator, chosen, Encoder(8) if encoder else None, **extra)


def steps(trainer: GanTrainer, numbers) -> list[dict[str, Tensor]]:
    """Terms of steps with these numbers; the draws of a step depend on its number alone."""
    terms = []
    for number in numbers:
        torch.manual_seed(number)
        labels = LABELS[torch.randint(len(LABELS), (BATCH,))] if trainer.labels is not None else None
        terms.append(trainer.step(colours(number), number, labels))
    return terms


def weights(module: nn.Module) -> list[Tensor]:
    return [value.clone() for value in module.state_dict().values()]


def changed(module: nn.Module, before: list[Tensor]) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(module.state_dict().values(), before, strict=True))


# --- energy distance ---------------------------------------------------------------------------------------------


def test_energy_distance_by_hand():
    """x 0, 2 and y 1, 5: between 1, 5, 1, 3 on average 2.5; within x 2, within y 4."""
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [5.0]])
    assert energy_distance(x, y) == pytest.approx(2 * 2.5 - 2 - 4, abs=5e-3)
    assert energy_distance(3 * x, 3 * y) == pytest.approx(3 * -1, abs=1e-2)  # a length, not a square


def test_energy_distance_of_samples():
    x, same, other = (torch.randn(1000, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    zero = float(energy_distance(x, same))
    assert abs(zero) < 0.02
    shifted = [float(energy_distance(x, other + shift)) for shift in (0.5, 1.0, 2.0)]
    assert 0.1 < shifted[0] < shifted[1] < shifted[2]
    assert energy_distance(x, 2 * other) > 0.1  # another spread
    assert energy_distance(x[:300], other + 1) == pytest.approx(shifted[1], rel=0.1)  # sizes may differ


def test_energy_distance_has_a_slope_where_points_coincide():
    x = torch.zeros(4, 3, requires_grad=True)
    energy_distance(x, torch.zeros(5, 3)).backward()
    assert torch.isfinite(x.grad).all()
    y = torch.randn(6, 3)
    x = y.clone().requires_grad_()
    energy_distance(x, y).backward()
    assert torch.isfinite(x.grad).all()


def test_energy_distance_pulls_samples_together():
    x = torch.full((64, 2), 3.0).add(torch.randn(64, 2)).requires_grad_()
    y = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD([x], 10.0)
    start = float(energy_distance(x, y).detach())
    for _ in range(60):
        optimizer.zero_grad()
        energy_distance(x, y).backward()
        optimizer.step()
    assert energy_distance(x, y).item() < 0.1 * start


def test_energy_distance_is_exact_under_autocast():
    x, y = torch.randn(50, 8), torch.randn(50, 8)
    with torch.autocast("cpu", torch.bfloat16):
        inside = energy_distance(x, y)
    a, b = x.double(), y.double()
    within = (torch.cdist(a, a).sum() + torch.cdist(b, b).sum()) / (50 * 49)
    assert inside.dtype == torch.float32
    assert float(inside) == pytest.approx(float(2 * torch.cdist(a, b).mean() - within), abs=1e-4)


# --- warm start --------------------------------------------------------------------------------------------------


def test_warm_start_learns_to_reconstruct():
    trainer = make(warm_start_steps=80, warm_start_learning_rate=1e-2)
    terms = steps(trainer, range(80))
    assert set(terms[0]) == {"l1", "l2", "latent", "latent_match"}
    first, last = (sum(float(term["l1"] + term["l2"]) for term in part) / 5 for part in (terms[:5], terms[-5:]))
    assert last < 0.6 * first
    held_out = colours(1000)
    with torch.no_grad():
        w = trainer.encoder(held_out)
        rebuilt = trainer.ema.synthesis(trainer._broadcast(w), noise_mode="const")
    assert (rebuilt - held_out).abs().mean() < 0.8 * held_out.abs().mean()


def test_warm_start_trains_encoder_synthesis_and_mapping_but_not_the_discriminator():
    trainer = make(warm_start_steps=5)
    parts = [trainer.encoder, trainer.generator.synthesis, trainer.generator.mapping, trainer.ema]
    before, discriminator = [weights(part) for part in parts], weights(trainer.discriminator)
    steps(trainer, range(2))
    assert all(changed(part, old) for part, old in zip(parts, before))
    assert not changed(trainer.discriminator, discriminator)


def test_held_generator_stays_while_the_encoder_and_then_the_discriminator_learn():
    trainer = make(warm_start_steps=4, hold_steps=2, reconstruction=1.0)

    def learned(part: nn.Module, numbers: list[int]) -> tuple[bool, list[dict]]:
        before = [parameter.detach().clone() for parameter in part.parameters()]
        terms = steps(trainer, numbers)
        return any(not torch.equal(a, b) for a, b in zip(part.parameters(), before, strict=True)), terms

    drawn, terms = learned(trainer.generator, [0])
    assert not drawn and set(terms[0]) == {"l1", "l2", "latent", "inversion"}
    assert learned(trainer.encoder, [1])[0]
    assert learned(trainer.generator, [2])[0] and not learned(trainer.discriminator, [3])[0]
    drawn, terms = learned(trainer.generator, [4])
    assert not drawn and "generator" not in terms[0]
    assert learned(trainer.discriminator, [5])[0] and learned(trainer.generator, [6])[0]


def test_held_encoder_learns_the_styles_of_samples():
    trainer = make(warm_start_steps=200, hold_steps=200, warm_start_learning_rate=1e-2)
    terms = steps(trainer, range(120))
    first, last = (sum(float(term["inversion"]) for term in part) / 5 for part in (terms[:5], terms[-5:]))
    assert last < 0.7 * first


def test_warm_start_brings_the_mapping_to_the_styles_of_images():
    trainer = make(warm_start_steps=80, warm_start_learning_rate=1e-2)
    steps(trainer, range(80))
    with torch.no_grad():
        images = torch.cat([colours(seed) for seed in range(100, 116)])
        styles = trainer.encoder(images)
        z = torch.randn(128, 8, generator=torch.Generator().manual_seed(1))
        trained, fresh = trainer.generator.mapping(z)[:, 0], make().generator.mapping(z)[:, 0]
    assert energy_distance(trained, styles) < 0.5 * energy_distance(fresh, styles)
    assert len(trainer.memory) == 80 * BATCH
    assert trainer.generator.mapping.w_avg.norm() > 0


def halves(images: Tensor) -> list[Tensor]:
    """Features of one level: the mean colours of the two halves."""
    return [nn.functional.avg_pool2d(images, (SIZE // 2, SIZE)).flatten(1)]


def test_matching_trains_mapping_and_synthesis_alone_and_then_the_game_begins():
    trainer = make(warm_start_steps=1, matching_steps=3, hold_steps=1, features=halves)
    steps(trainer, [0])
    parts = [trainer.generator.synthesis, trainer.generator.mapping, trainer.ema]
    before, others = [weights(part) for part in parts], [weights(trainer.discriminator), weights(trainer.encoder)]
    terms = steps(trainer, range(1, 4))
    assert [set(term) for term in terms] == [{"matching"}] * 3
    assert all(changed(part, old) for part, old in zip(parts, before))
    assert not changed(trainer.discriminator, others[0]) and not changed(trainer.encoder, others[1])
    drawn = weights(trainer.generator.synthesis)
    held, free = steps(trainer, [4, 5])  # D alone for one step
    assert "discriminator" in held and "generator" not in held and "generator" in free
    assert changed(trainer.generator.synthesis, drawn)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_matched_samples_have_the_features_of_real_images(accumulate):
    """Means and spreads of colours, of which single images say nothing."""
    settings = {"matching_steps": 300, "matching_learning_rate": 5e-3, "batch_size": 64, "accumulate": accumulate}
    trainer = make(encoder=False, features=halves, **settings)
    real = halves(colours(1000, 512))[0]

    def distance() -> float:
        z = torch.randn(512, 8, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            return float(energy_distance(halves(trainer.generator(z, None, noise_mode="const"))[0], real))

    before = distance()
    for number in range(300):
        torch.manual_seed(number)
        trainer.step(colours(number, 64), number)
    assert distance() < 0.2 * before


def test_distance_of_matching_does_not_depend_on_the_scale_of_a_feature():
    a, b = torch.randn(64, 3), torch.randn(64, 3) + 0.5
    scale = torch.tensor(7.0)
    torch.testing.assert_close(matching_distance(a * scale, b * scale), matching_distance(a, b))
    assert torch.isfinite(matching_distance(a, torch.zeros(64, 3)))  # what never varies has no spread


def test_matching_needs_features():
    with pytest.raises(ValueError, match="needs features"):
        make(matching_steps=1)


def test_rate_of_matching_falls_from_its_start_to_zero():
    trainer = make(matching_steps=4, matching_learning_rate=0.5, features=halves)
    rates = []
    for number in range(4):
        steps(trainer, [number])
        rates.append([group["lr"] for group in trainer.matching_optimizer.param_groups])
    assert rates[0] == [0.5, 0.5 * MAPPING_BOOST] and rates[2][0] == pytest.approx(0.25)
    assert all(synthesis * MAPPING_BOOST == mapping for synthesis, mapping in rates)


def test_memory_of_styles_is_bounded_and_holds_the_newest():
    trainer = make(warm_start_steps=5, latent_memory=20)
    steps(trainer, range(3))
    assert trainer.memory.shape == (20, 8)
    trainer.memory = torch.arange(20.0)[:, None].expand(20, 8)
    remembered = trainer._remember(torch.full((BATCH, 8), -1.0))
    assert remembered[:, 0].tolist() == [-1.0] * BATCH + list(range(12))


def test_rate_of_the_warm_start_falls_to_a_tenth():
    trainer = make(warm_start_steps=100, warm_start_learning_rate=1e-2)
    rates = []
    for step in (0, 50, 100 - 1):
        steps(trainer, [step])
        rates.append([group["lr"] for group in trainer.warm_optimizer.param_groups])
    assert rates[0] == pytest.approx([1e-2, 50 * 1e-2])
    assert rates[1] == pytest.approx([0.55e-2, 50 * 0.55e-2])
    assert rates[2] == pytest.approx([0.1e-2, 50 * 0.1e-2], rel=0.01)


def test_perceptual_distance_counts_with_its_weight():
    calls = []

    def distance(a: Tensor, b: Tensor) -> Tensor:
        calls.append((a.shape, b.shape))
        return (a - b).abs().mean((1, 2, 3)) + 3

    terms = steps(make(warm_start_steps=2, perceptual=0.5, perceptual_distance=distance), [0])[0]
    assert calls == [((BATCH, 3, SIZE, SIZE),) * 2]
    assert terms["perceptual"] == pytest.approx(0.5 * (3 + float(terms["l1"])), rel=1e-5)
    assert "perceptual" not in steps(make(warm_start_steps=2, perceptual=0.0, perceptual_distance=distance), [0])[0]


@pytest.mark.parametrize("settings", [{"warm_start_steps": 1}, {"reconstruction": 0.5}])
def test_reconstruction_without_encoder_is_refused(settings):
    with pytest.raises(ValueError, match="needs an encoder"):
        make(encoder=False, **settings)
    make(encoder=False)


# --- adversarial phase -------------------------------------------------------------------------------------------


def test_adversarial_step_trains_both_networks():
    trainer = make(encoder=False)
    parts = [trainer.generator.mapping, trainer.generator.synthesis, trainer.discriminator, trainer.ema]
    before = [weights(part) for part in parts]
    terms = steps(trainer, range(2))[-1]
    assert set(terms) == {"generator", "discriminator", "real_sign", "fake_sign"}
    assert all(value.ndim == 0 and torch.isfinite(value) and not value.requires_grad for value in terms.values())
    assert all(changed(part, old) for part, old in zip(parts, before))
    assert all(value.requires_grad for value in trainer.discriminator.parameters())


def test_adversarial_training_moves_samples_towards_the_images():
    trainer = make(encoder=False, r1_gamma=0.1, learning_rate=5e-3, ema_kimg=0.05)

    def distance() -> float:
        """Between mean colours of real and generated halves."""
        real = torch.cat([colours(seed) for seed in range(500, 516)]) * 0.3 + 0.6
        z = torch.randn(128, 8, generator=torch.Generator().manual_seed(7))
        with torch.no_grad():
            fake = trainer.ema(z, None, noise_mode="const")
        return float(energy_distance(fake.mean((2, 3)), real.mean((2, 3))))

    start = distance()
    for number in range(60):
        torch.manual_seed(number)
        trainer.step(colours(number) * 0.3 + 0.6, number)  # bright images
    assert distance() < 0.5 * start


def test_lazy_regularisers_act_at_their_intervals():
    trainer = make(encoder=False, r1_gamma=1.0, r1_interval=4, path_length_weight=2.0, path_length_interval=3)
    terms = steps(trainer, range(9))
    assert [step for step, values in enumerate(terms) if "r1" in values] == [0, 4, 8]
    assert [step for step, values in enumerate(terms) if "path_length" in values] == [0, 3, 6]
    assert all(torch.isfinite(value) for values in terms for value in values.values())
    assert trainer.path_length.mean > 0


def test_regularisers_are_off_with_zero_weights():
    terms = steps(make(encoder=False, r1_interval=1, path_length_interval=1), range(2))
    assert all(not {"r1", "path_length"} & set(values) for values in terms)


def test_r1_scales_with_gamma():
    one, three = (steps(make(encoder=False, r1_gamma=gamma, r1_interval=1), [0])[0]["r1"] for gamma in (1.0, 3.0))
    assert three == pytest.approx(3 * float(one), rel=1e-4) and one > 0


def test_lazy_rates_follow_the_intervals():
    """StyleGAN2, Appendix B: c = k / (k + 1) on the rate, beta2 to the power c."""
    trainer = make(encoder=False, learning_rate=2e-3, r1_interval=16, path_length_interval=4)
    for optimizer, c in ((trainer.discriminator_optimizer, 16 / 17), (trainer.generator_optimizer, 4 / 5)):
        group = optimizer.param_groups[0]
        assert group["lr"] == pytest.approx(2e-3 * c)
        assert group["betas"] == pytest.approx((0.0, 0.99**c))


def test_regularisers_take_steps_of_their_own():
    """Both networks alike: k + 1 steps where there are k without, which is what their rates are corrected for."""
    trainer = make(encoder=False, r1_gamma=1.0, r1_interval=4, path_length_weight=1.0, path_length_interval=2)
    steps(trainer, range(4))
    for network, optimizer, count in (
        (trainer.discriminator, trainer.discriminator_optimizer, 4 + 1),
        (trainer.generator, trainer.generator_optimizer, 4 + 2),
    ):
        assert max(int(optimizer.state[value]["step"]) for value in network.parameters()) == count


def test_regularisers_are_multiplied_by_their_interval():
    """The gradient that reaches the weights is k times that of the logged penalty."""
    losses: list[float] = []

    def backward(loss: Tensor) -> None:
        losses.append(float(loss.detach()))
        loss.backward()

    settings = {"r1_gamma": 2.0, "r1_interval": 5, "path_length_weight": 3.0, "path_length_interval": 7}
    terms = steps(make(encoder=False, backward=backward, **settings), [0])[0]
    expected = [terms["generator"], 7 * terms["path_length"], terms["discriminator"], 5 * terms["r1"]]
    assert losses == pytest.approx([float(value) for value in expected])


def test_mean_style_follows_the_mapping():
    """Trap 10: the mean style is what the adapted generator starts from, whatever phase came before."""
    trainer = make(encoder=False, learning_rate=1e-2)
    trainer.generator.mapping.w_avg_beta = 0.9
    steps(trainer, range(30))
    w_avg = trainer.generator.mapping.w_avg
    z = torch.randn(2000, 8, generator=torch.Generator().manual_seed(3))
    mean = trainer.generator.mapping(z)[:, 0].mean(0).detach()
    assert mean.norm() > 0.05 and (w_avg - mean).norm() < 0.5 * mean.norm()
    assert torch.equal(trainer.ema.mapping.w_avg, w_avg)


def test_reconstruction_goes_on_in_the_adversarial_phase():
    trainer = make(warm_start_steps=1, reconstruction=0.5)
    before = weights(trainer.encoder)
    terms = steps(trainer, [3])[0]
    assert set(terms) == {"generator", "discriminator", "real_sign", "fake_sign", "l1", "l2", "latent"}
    assert changed(trainer.encoder, before)
    doubled = steps(make(warm_start_steps=1, reconstruction=1.0), [3])[0]
    for key in ("l1", "l2", "latent"):
        assert doubled[key] == pytest.approx(2 * float(terms[key]), rel=1e-4)


def test_without_reconstruction_the_encoder_rests():
    trainer = make(warm_start_steps=1)
    steps(trainer, [0])
    before = weights(trainer.encoder)
    assert "l1" not in steps(trainer, [1])[0]
    assert not changed(trainer.encoder, before)


# --- classes -----------------------------------------------------------------------------------------------------


def test_conditional_networks_see_the_classes():
    """Real images come with their own classes, samples with one for G and D alike."""
    trainer = make(encoder=False, conditional=True, r1_gamma=1.0, path_length_weight=1.0)
    seen: dict[str, list[Tensor]] = {"mapping": [], "discriminator": []}
    trainer.generator.mapping.register_forward_pre_hook(lambda module, args: seen["mapping"].append(args[1]))
    trainer.discriminator.register_forward_pre_hook(lambda module, args: seen["discriminator"].append(args[1]))
    labels = torch.arange(BATCH) % CLASSES
    trainer.step(colours(), 0, labels)
    real = torch.eye(CLASSES)[labels]
    generator, main_real, main_fake, r1 = seen["discriminator"]
    assert torch.equal(main_real, real) and torch.equal(r1, real)
    assert torch.equal(generator, seen["mapping"][0]) and torch.equal(main_fake, generator)
    assert not torch.equal(generator, real)
    assert all(torch.equal(c.sum(1), torch.ones(len(c))) for c in seen["mapping"])


def test_classes_of_samples_are_as_frequent_as_in_the_data():
    trainer = make(encoder=False, conditional=True)
    torch.manual_seed(0)
    shares = trainer._drawn_condition(20_000).mean(0)
    torch.testing.assert_close(shares, torch.tensor([0.3, 0.1, 0.6]), atol=0.02, rtol=0)


def test_conditional_training_needs_labels():
    with pytest.raises(ValueError, match="conditional generator needs the labels"):
        make(conditional=True, labels=None)
    with pytest.raises(ValueError, match="conditional discriminator needs the labels"):
        make(encoder=False, conditional=True).step(colours(), 0)


def test_warm_start_of_a_conditional_generator():
    assert set(steps(make(conditional=True, warm_start_steps=2), range(2))[1]) >= {"l1", "latent_match"}


# --- augmentation ------------------------------------------------------------------------------------------------


def test_all_that_the_discriminator_sees_is_augmented():
    pipe = Pipe()
    trainer = make(encoder=False, augment=pipe, r1_gamma=1.0, path_length_weight=1.0)
    judged: list[Tensor] = []
    trainer.discriminator.register_forward_pre_hook(lambda module, args: judged.append(args[0].detach()))
    terms = steps(trainer, [0])[0]
    fake, real, again, r1 = pipe.seen  # of the generator's step, the discriminator's, and R1
    assert torch.equal(real, colours(0)) and torch.equal(r1, real) and torch.equal(fake, again)
    assert len(judged) == 4 and not any(torch.equal(a, b) for a, b in zip(judged, pipe.seen))
    assert not torch.equal(judged[0], judged[2])  # each time with draws of its own
    assert terms["augment_p"] == 1.0


def test_r1_goes_through_the_augmentation_to_the_images():
    trainer = make(encoder=False, augment=Pipe(0.0, gain=3.0), r1_gamma=2.0)
    real = colours(0).requires_grad_()
    expected = float(r1_penalty(real, trainer.discriminator(3.0 * real)).mean().detach())
    assert float(trainer._r1_step([(colours(0), None)])["r1"].detach()) == pytest.approx(expected, rel=1e-4)


def test_controller_moves_the_strength_by_the_signs_of_real_logits():
    pipe, controller = Pipe(0.0), Controller()
    terms = steps(make(encoder=False, augment=pipe, controller=controller), range(3))
    assert controller.calls == [(pytest.approx(float(values["real_sign"])), BATCH) for values in terms]
    assert [float(values["augment_p"]) for values in terms] == pytest.approx([0.008, 0.016, 0.024])
    assert pipe.p == pytest.approx(0.024)
    assert "r_t" not in terms[0] and terms[2]["r_t"] == pytest.approx(controller.r_t)


def test_fixed_augmentation_stays():
    pipe = Pipe(0.3)
    assert [float(values["augment_p"]) for values in steps(make(encoder=False, augment=pipe), range(5))] == [
        pytest.approx(0.3)
    ] * 5


@pytest.mark.parametrize("preset", ["bgc", "bgcfnc"])
def test_training_with_the_real_pipe(preset):
    """All presets can be differentiated twice, as R1 wants."""
    from stylegan2_ada.augment import AugmentController, augment_pipe

    pipe = augment_pipe(preset)
    pipe.p.fill_(0.8)
    controller = AugmentController(ada_kimg=0.1)
    controller.load_state_dict(controller.state_dict())
    trainer = make(encoder=False, augment=pipe, controller=controller, r1_gamma=1.0, r1_interval=1)
    terms = steps(trainer, range(4))
    assert all(torch.isfinite(value) for values in terms for value in values.values())
    assert terms[0]["r1"] > 0 and 0 <= float(pipe.p) <= 1


# --- float16 and frozen layers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [True, False])
def test_gradients_that_are_not_finite_are_replaced_only_for_float16(half):
    """NaN by 0, infinity by 1e5, as published; Adam then takes steps of its usual size."""
    trainer = make(encoder=False, half_precision=half)
    weight, bias = trainer.discriminator.b4.out.weight, trainer.discriminator.b4.out.bias
    before = weight.detach().clone()

    def backward(loss: Tensor) -> None:
        loss.backward()
        weight.grad[0, 0], weight.grad[0, 1] = float("nan"), float("-inf")

    trainer.backward = backward
    trainer._update([trainer.discriminator_optimizer], [{"sum": bias.sum() + weight.sum()}])
    if half:
        change = (weight - before).detach()[0]
        assert change[0] == 0 and change[1] > 0 and torch.isfinite(change).all()
    else:
        assert not torch.isfinite(weight).all()


def test_frozen_parameters_stay():
    torch.manual_seed(0)
    trainer = make(encoder=False)
    frozen = trainer.discriminator.b16
    frozen.requires_grad_(False)
    trainer = GanTrainer(trainer.generator, trainer.discriminator, GanSettings(batch_size=BATCH))
    before, other = weights(frozen), weights(trainer.discriminator.b8)
    steps(trainer, range(2))
    assert not changed(frozen, before) and changed(trainer.discriminator.b8, other)
    assert not any(value.requires_grad for value in frozen.parameters())


# --- average, checks, state --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "ema_kimg", "half_life"), [(10_000, 0.016, 16), (1, 100.0, 0.05 * 2 * BATCH)]
)  # at the start of a training the half-life is a twentieth of the images seen
def test_average_has_its_half_life(step, ema_kimg, half_life):
    trainer = make(encoder=False, ema_kimg=ema_kimg)
    with torch.no_grad():
        for value in trainer.ema.parameters():
            value.add_(1)
    old = {name: value.clone() for name, value in trainer.ema.named_parameters()}
    steps(trainer, [step])
    decay = 0.5 ** (BATCH / half_life)
    for name, value in trainer.generator.named_parameters():
        expected = decay * old[name] + (1 - decay) * value
        torch.testing.assert_close(dict(trainer.ema.named_parameters())[name], expected.detach(), rtol=1e-4, atol=1e-5)


def test_average_without_ramp_has_its_half_life_from_the_start():
    trainer = make(encoder=False, ema_kimg=0.016, ema_rampup=None)
    assert trainer._ema_decay(0) == trainer._ema_decay(1000) == pytest.approx(0.5 ** (BATCH / 16))
    assert make(encoder=False, ema_kimg=0.016, ema_rampup=0.5)._ema_decay(1) == pytest.approx(0.5 ** (BATCH / 8))


@pytest.mark.parametrize("step", [0, 5])
def test_check_comes_before_the_weights_change(step):
    seen: list[set[str]] = []

    def refuse(terms) -> None:
        seen.append(set(terms))
        raise ValueError("not finite")

    trainer = make(warm_start_steps=3, r1_gamma=1.0, check=refuse)
    parts = [trainer.generator.synthesis, trainer.encoder, trainer.discriminator, trainer.ema]
    before = [weights(part) for part in parts]
    with pytest.raises(ValueError, match="not finite"):
        steps(trainer, [step])
    assert not any(changed(part, old) for part, old in zip(parts, before))
    assert seen == [{"l1", "l2", "latent", "latent_match"} if step == 0 else {"generator"}]


def test_all_terms_are_checked():
    seen: set[str] = set()
    settings = {"r1_gamma": 1.0, "path_length_weight": 1.0, "warm_start_steps": 1, "reconstruction": 1.0}
    steps(make(check=lambda terms: seen.update(terms), **settings), [0, 16])
    expected = {"l1", "l2", "latent", "latent_match", "generator", "discriminator", "r1", "path_length"}
    assert seen == expected


def test_backward_goes_through_the_given_function():
    calls: list[Callable] = []
    trainer = make(
        encoder=False, r1_gamma=1.0, path_length_weight=1.0, backward=lambda loss: calls.append(loss.backward())
    )
    steps(trainer, [0])
    assert len(calls) == 4  # generator, path lengths, discriminator, R1


@pytest.mark.parametrize("number", [3, 6])
def test_state_is_complete(tmp_path, number):
    """A trainer that takes over another's state makes the same next steps, across the change of phase."""
    settings = {"warm_start_steps": 4, "reconstruction": 0.5, "r1_gamma": 1.0, "r1_interval": 2}
    settings |= {"path_length_weight": 1.0, "path_length_interval": 2}
    one = make(**settings)
    steps(one, range(number))
    torch.save(one.state_dict(), tmp_path / "state.pt")
    other = make(**settings)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for trainer in (one, other):
        steps(trainer, range(number, 9))
    for part in ("generator", "discriminator", "ema", "encoder", "path_length"):
        for a, b in zip(getattr(one, part).state_dict().values(), getattr(other, part).state_dict().values()):
            assert torch.equal(a, b), part


@pytest.mark.parametrize("number", [3, 5])
def test_state_of_matching_is_complete(tmp_path, number):
    settings = {"warm_start_steps": 2, "matching_steps": 3, "features": halves}
    one, other = make(**settings), make(**settings)
    steps(one, range(number))
    torch.save(one.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for trainer in (one, other):
        steps(trainer, range(number, 7))
    for part in ("generator", "ema", "discriminator"):
        for a, b in zip(getattr(one, part).state_dict().values(), getattr(other, part).state_dict().values()):
            assert torch.equal(a, b), part


@pytest.mark.parametrize("number", [2, 5])
def test_state_of_augmentation_and_classes_is_complete(tmp_path, number):
    def fresh() -> GanTrainer:
        return make(encoder=False, conditional=True, augment=Pipe(0.0), controller=Controller(), r1_gamma=1.0)

    one, other = fresh(), fresh()
    before = steps(one, range(number))
    torch.save(one.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert len(before) == number
    for a, b in zip(*(steps(trainer, range(number, 9)) for trainer in (one, other)), strict=True):
        assert a == b
    assert one.augment.p == other.augment.p > 0
    assert all(torch.equal(a, b) for a, b in zip(weights(one.ema), weights(other.ema)))


def test_training_in_bfloat16():
    trainer = make(warm_start_steps=2, r1_gamma=1.0, r1_interval=1, path_length_weight=1.0, path_length_interval=1)
    with torch.autocast("cpu", torch.bfloat16):
        terms = steps(trainer, range(4))
    assert all(torch.isfinite(value) for values in terms for value in values.values())
    assert all(value.dtype == torch.float32 for value in trainer.generator.state_dict().values())
