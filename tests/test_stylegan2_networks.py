"""Networks and loss terms against the reference numbers in tests/golden/stylegan2 (float32)."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch.utils._python_dispatch import TorchDispatchMode

from stylegan2_ada.loss import (
    PathLengthRegularizer,
    discriminator_logistic,
    generator_logistic,
    mixed_ws,
    path_lengths,
    r1_penalty,
    update_ema,
)
from stylegan2_ada.networks import Discriminator, Generator, minibatch_std

GOLDEN = Path(__file__).parent / "golden" / "stylegan2"
GENERATORS = ["generator_res32", "generator_cond_res16", "generator_resnet_res16"]
DISCRIMINATORS = ["discriminator_res32", "discriminator_cond_orig_res16", "discriminator_skip_res16"]


def load(name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(config, state dict, everything else) of a reference file."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    state = {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}
    return config, state, {k: v for k, v in tensors.items() if not k.startswith("state.")}


def load_generator(name: str) -> tuple[Generator, dict[str, Any], dict[str, torch.Tensor]]:
    config, state, t = load(name)
    truncation = {k: config.pop(k) for k in ("truncation_psi", "truncation_cutoff")}
    generator = Generator(**config)
    generator.load_state_dict(state, strict=True)
    return generator, truncation, t


def load_discriminator(name: str) -> tuple[Discriminator, str, dict[str, torch.Tensor]]:
    config, state, t = load(name)
    weight_name = config.pop("r1_grad_wrt")
    discriminator = Discriminator(**config)
    discriminator.load_state_dict(state, strict=True)
    return discriminator, weight_name, t


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def tiny_generator(**kwargs: Any) -> Generator:
    torch.manual_seed(0)
    return Generator(8, 0, 8, 16, 3, {"num_layers": 2}, {"channel_base": 128, "channel_max": 8, **kwargs})


@pytest.mark.parametrize("name", GENERATORS)
def test_generator_matches_reference(name: str) -> None:
    generator, truncation, t = load_generator(name)
    ws = generator.mapping(t["z"], t["c"])
    close(ws, t["ws"])
    close(generator.mapping(t["z"], t["c"], **truncation), t["ws_trunc"])
    close(generator.synthesis(ws, noise_mode="const"), t["img_const"], 1e-3)
    close(generator.synthesis(ws, noise_mode="none"), t["img_none"], 1e-3)
    close(generator(t["z"], t["c"], noise_mode="const", **truncation), t["img_trunc"], 1e-3)


@pytest.mark.parametrize("name", GENERATORS)
def test_path_lengths_match_reference(name: str) -> None:
    generator, _, t = load_generator(name)
    ws = generator.mapping(t["z"], t["c"])
    lengths = path_lengths(generator.synthesis(ws, noise_mode="const"), ws, t["pl_noise"])
    close(lengths, t["pl_lengths"], 1e-3)
    lengths.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in generator.mapping.parameters())


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_discriminator_matches_reference(name: str) -> None:
    discriminator, weight_name, t = load_discriminator(name)
    x = t["x"].requires_grad_()
    logits = discriminator(x, t["c"])
    close(logits, t["logits"])
    close(torch.autograd.grad(logits.sum(), x, retain_graph=True)[0], t["grad_x"], 1e-3)
    r1 = r1_penalty(x, logits)
    close(r1, t["r1"], 1e-3)
    (second_order,) = torch.autograd.grad(r1.mean(), discriminator.get_parameter(weight_name))
    close(second_order, t["r1_grad"], 1e-3)


@pytest.mark.parametrize("architecture", ["orig", "skip", "resnet"])
def test_every_architecture_trains_under_bfloat16_autocast(architecture: str) -> None:
    generator = tiny_generator(architecture=architecture)
    discriminator = Discriminator(0, 16, 3, architecture, channel_base=128, channel_max=8)
    with torch.autocast("cpu", torch.bfloat16):
        images = generator(torch.randn(4, 8))
        images.retain_grad()
        logits = discriminator(images)
        penalty = r1_penalty(images, logits).mean()
    assert images.dtype == logits.dtype == torch.float32
    (generator_logistic(logits) + penalty).backward()
    for network in (generator, discriminator):
        assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
    assert generator.synthesis.b4.const.grad.abs().sum() > 0


def test_bfloat16_autocast_stays_near_float32() -> None:
    generator, _, t = load_generator("generator_res32")
    with torch.autocast("cpu", torch.bfloat16):
        images = generator.synthesis(t["ws"], noise_mode="const")
    assert (images - t["img_const"]).abs().mean() < 0.02 * t["img_const"].std()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_second_order_gradient_under_autocast_stays_near_float32(dtype: torch.dtype) -> None:
    discriminator, weight_name, t = load_discriminator("discriminator_res32")
    x = t["x"].requires_grad_()
    with torch.autocast("cpu", dtype):
        r1 = r1_penalty(x, discriminator(x))
    torch.testing.assert_close(r1, t["r1"], rtol=0.1, atol=0)
    (gradient,) = torch.autograd.grad(r1.mean(), discriminator.get_parameter(weight_name))
    assert torch.cosine_similarity(gradient.flatten(), t["r1_grad"].flatten(), dim=0) > 0.99


def test_float16_does_not_overflow() -> None:
    generator, _, t = load_generator("generator_res32")
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if name.endswith("affine.bias") and "torgb" not in name:
                parameter.mul_(1e4)  # demodulation takes the size of the styles out again
        expected = generator.synthesis(t["ws"], "const")
        with torch.autocast("cpu", torch.float16):
            images = generator.synthesis(t["ws"], "const")
    assert (images - expected).abs().mean() < 0.02 * expected.std()


def test_conv_clamp_limits_activations() -> None:
    clamped, free = tiny_generator(conv_clamp=0.01), tiny_generator()
    z = torch.randn(2, 8)
    assert clamped(z).abs().max() <= 3 * 0.01 * 1.001 < free(z).abs().max()
    features, _ = clamped.synthesis.b4(None, None, clamped.mapping(z)[:, :2], "none")
    assert features.abs().max() <= 0.01


def test_initial_activations_have_unit_variance() -> None:
    torch.manual_seed(0)
    generator = Generator(64, 0, 64, 32, 3, synthesis_kwargs={"channel_base": 2048, "channel_max": 64})
    ws = generator.mapping(torch.randn(16, 64))
    x, _ = generator.synthesis.b4(None, None, ws[:, :2], "none")
    assert 0.5 < x.square().mean() < 2


def test_noise_modes() -> None:
    generator = tiny_generator()
    for name, parameter in generator.named_parameters():
        if name.endswith("noise_strength"):
            parameter.data.fill_(1.0)
    ws = generator.mapping(torch.randn(1, 8))
    assert torch.equal(generator.synthesis(ws, "const"), generator.synthesis(ws, "const"))
    assert not torch.equal(generator.synthesis(ws, "random"), generator.synthesis(ws, "random"))
    with pytest.raises(ValueError, match=r"'constant'.*random, const or none"):
        generator.synthesis(ws, "constant")


def test_w_avg_moves_only_when_asked() -> None:
    generator = tiny_generator()
    z = torch.randn(4, 8)
    ws = generator.mapping(z)
    assert generator.mapping.w_avg.abs().sum() == 0
    generator(z, update_w_avg=True)
    close(generator.mapping.w_avg, 0.005 * ws[:, 0].mean(0))


def test_config_rebuilds_the_network() -> None:
    generator = tiny_generator(architecture="resnet")
    Generator(**json.loads(json.dumps(generator.config))).load_state_dict(generator.state_dict())
    discriminator = Discriminator(3, 16, 1, "skip", 128, 8, epilogue_kwargs={"mbstd_group_size": 2})
    Discriminator(**json.loads(json.dumps(discriminator.config))).load_state_dict(discriminator.state_dict())


def test_minibatch_std_has_known_value() -> None:
    x = torch.zeros(4, 2, 4, 4)
    x[2:] = 2.0  # groups of two: samples (0, 2) and (1, 3), each with deviation 1
    y = minibatch_std(x, group_size=2, num_channels=1)
    assert y.shape == (4, 3, 4, 4)
    close(y[:, 2], torch.ones(4, 4, 4))


def test_losses_have_known_values() -> None:
    zero = torch.zeros(4, 1)
    close(generator_logistic(zero), torch.tensor(2.0).log())
    close(discriminator_logistic(zero, zero), 2 * torch.tensor(2.0).log())
    assert generator_logistic(zero + 5) < generator_logistic(zero - 5)
    assert discriminator_logistic(zero + 5, zero - 5) < discriminator_logistic(zero - 5, zero + 5)


def test_path_length_regularizer_keeps_a_running_mean() -> None:
    regularizer = PathLengthRegularizer(decay=0.5)
    lengths = torch.tensor([1.0, 3.0], requires_grad=True)
    penalty = regularizer(lengths)
    close(regularizer.state_dict()["mean"], torch.tensor(1.0))
    close(penalty, torch.tensor([0.0, 4.0]))
    regularizer(lengths)
    penalty.sum().backward()
    close(lengths.grad, torch.tensor([0.0, 4.0]))


def test_mixed_ws_mixes_the_tail() -> None:
    generator = tiny_generator()
    z = torch.randn(64, 8)
    plain = generator.mapping(z)
    assert torch.equal(mixed_ws(generator.mapping, z, None, prob=0), plain)
    mixed = mixed_ws(generator.mapping, z, None, 1.0, torch.Generator().manual_seed(0))
    same = (mixed == plain).all(2)
    assert same[:, 0].all() and not same[:, -1].any()
    assert (same[:, 1:] <= same[:, :-1]).all() and 0 < same[:, 3].float().mean() < 1
    assert torch.equal(mixed, mixed_ws(generator.mapping, z, None, 1.0, torch.Generator().manual_seed(0)))
    half = mixed_ws(generator.mapping, z, None, 0.5, torch.Generator().manual_seed(0))
    assert 0.2 < (half == plain).all(2).all(1).float().mean() < 0.8


def test_update_ema() -> None:
    module = tiny_generator()
    ema = copy.deepcopy(module)
    module.mapping.fc0.bias.data += 1
    module.mapping.w_avg += 1
    update_ema(ema, module, decay=0.75)
    close(ema.mapping.fc0.bias.data, module.mapping.fc0.bias.data - 0.75)
    assert torch.equal(ema.mapping.w_avg, module.mapping.w_avg)
    with pytest.raises(ValueError, match="decay is 2"):
        update_ema(ema, module, decay=2)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="img_resolution is 48; choose a power of two"):
        Generator(8, 0, 8, 48, 3)
    with pytest.raises(ValueError, match="img_resolution is 4; choose a power of two from 8"):
        Discriminator(0, 4, 3)
    with pytest.raises(ValueError, match="'dense'; choose one of orig, skip, resnet"):
        tiny_generator(architecture="dense")
    generator = tiny_generator()
    with pytest.raises(ValueError, match=r"z has shape \(2, 9\); \(B, 8\)"):
        generator(torch.zeros(2, 9))
    with pytest.raises(ValueError, match=r"ws has shape .*\(B, 6, 8\)"):
        generator.synthesis(torch.zeros(2, 5, 8))
    discriminator = Discriminator(2, 16, 3, channel_base=128, channel_max=8)
    with pytest.raises(ValueError, match=r"\(B, 3, 16, 16\)"):
        discriminator(torch.zeros(4, 1, 16, 16))
    with pytest.raises(ValueError, match="c has shape None"):
        discriminator(torch.zeros(4, 3, 16, 16))
    with pytest.raises(ValueError, match="batch of 6"):
        discriminator(torch.zeros(6, 3, 16, 16), torch.zeros(6, 2))


def test_second_order_of_r1_spends_nothing_on_the_fixed_filters():
    """torch's own double backward runs a convolution for each channel of a depthwise filter, needed or not."""

    class Convolutions(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func._overloadpacket is torch.ops.aten.convolution
            return func(*args, **(kwargs or {}))

    discriminator = Discriminator(c_dim=0, img_resolution=16, img_channels=3, channel_base=512, channel_max=32)
    image = torch.randn(2, 3, 16, 16, requires_grad=True)
    with Convolutions() as seen:
        r1_penalty(image, discriminator(image)).mean().backward()
    assert seen.count < 32 + 8  # 32 channels


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_fused_tail_of_convolutions_gives_the_same_logits(name, monkeypatch):
    """With kernels, a convolution leaves bias, activation, gain and clamp to bias_act."""
    config, state, values = load(name)
    config.pop("r1_grad_wrt", None)
    discriminator = Discriminator(**config | {"conv_clamp": 2.0})
    discriminator.load_state_dict(state)
    x, c = values["x"], values.get("c")
    plain = discriminator(x, c)
    monkeypatch.setattr("stylegan2_ada.networks.use_kernels", lambda impl, x: True)
    torch.testing.assert_close(discriminator(x, c), plain, atol=1e-5, rtol=1e-5)
