"""The operations against the reference numbers in tests/golden/stylegan2 (float32, tolerance 1e-4)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from stylegan2_ada.ops import (
    bias_act,
    downsample2d,
    filter2d,
    modulated_conv2d,
    resampled_conv2d,
    setup_filter,
    upfirdn2d,
    upsample2d,
)

GOLDEN = Path(__file__).parent / "golden" / "stylegan2"


def load(name: str) -> tuple[list[dict], dict[str, torch.Tensor]]:
    with safe_open(GOLDEN / f"ops_{name}.safetensors", "pt") as file:
        return json.loads(file.metadata()["config"])["cases"], {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("i", range(19))
def test_bias_act_matches_reference(i: int) -> None:
    cases, t = load("bias_act")
    x, b = t[f"{i}.x"].requires_grad_(), t[f"{i}.b"].requires_grad_()
    y = bias_act(x, b, **cases[i])
    close(y, t[f"{i}.y"])
    grads = torch.autograd.grad(y, [x, b], t[f"{i}.grad_y"])
    close(grads[0], t[f"{i}.grad_x"])
    close(grads[1], t[f"{i}.grad_b"])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("i", range(6))
def test_upfirdn2d_matches_reference(i: int, channels_last: bool) -> None:
    cases, t = load("upfirdn2d")
    x = t[f"{i}.x"]
    x = (x.contiguous(memory_format=torch.channels_last) if channels_last else x).requires_grad_()
    y = upfirdn2d(x, t[f"{i}.filter"], **cases[i])
    close(y, t[f"{i}.y"])
    close(torch.autograd.grad(y, x, t[f"{i}.grad_y"])[0], t[f"{i}.grad_x"])


@pytest.mark.parametrize("factors", [{"up": 1}, {"up": 2, "padding": [0, -1]}])
def test_upfirdn2d_convolves_unless_flipped(factors: dict) -> None:
    impulse = torch.zeros(1, 1, 3, 3)
    impulse[0, 0, 1, 1] = 1
    f = torch.arange(6.0).reshape(2, 3)
    padding = factors.pop("padding", [0, 0])
    args = {**factors, "padding": [2 + padding[0], 2 + padding[1], 1 + padding[0], 1 + padding[1]]}
    at = 1 if factors["up"] == 1 else 2  # the impulse's place on the upsampled grid
    for flip, expected in [(False, f), (True, f.flip([0, 1]))]:
        y = upfirdn2d(impulse, f, flip_filter=flip, **args)
        close(y[0, 0, at : at + 2, at : at + 3], expected)
        close(y.sum(), f.sum())


@pytest.mark.parametrize("function", [filter2d, upsample2d, downsample2d])
def test_resampling_matches_reference(function) -> None:
    _, t = load("upfirdn2d")
    name = function.__name__
    close(setup_filter([1, 3, 3, 1]), t[f"{name}.filter"])
    close(function(t[f"{name}.x"], t[f"{name}.filter"]), t[f"{name}.y"])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("i", range(4))
def test_modulated_conv2d_matches_reference(i: int, channels_last: bool) -> None:
    cases, t = load("modulated_conv2d")
    case = dict(cases[i])
    case.pop("kernel")
    case["flip_weight"] = case.pop("correlation")
    x = t[f"{i}.x"]
    x = (x.contiguous(memory_format=torch.channels_last) if channels_last else x).requires_grad_()
    inputs = [x, t[f"{i}.weight"].requires_grad_(), t[f"{i}.styles"].requires_grad_()]
    y = modulated_conv2d(*inputs, resample_filter=setup_filter([1, 3, 3, 1]), **case)
    close(y, t[f"{i}.y"])
    grads = torch.autograd.grad(y, inputs, t[f"{i}.grad_y"])
    for grad, name in zip(grads, ["x", "weight", "styles"], strict=True):
        close(grad, t[f"{i}.grad_{name}"])


def test_modulated_conv2d_adds_noise() -> None:
    x, weight, styles = torch.randn(2, 3, 4, 4), torch.randn(5, 3, 3, 3), torch.randn(2, 3)
    noise = torch.randn(2, 1, 4, 4)
    difference = modulated_conv2d(x, weight, styles, noise, padding=1) - modulated_conv2d(x, weight, styles, padding=1)
    close(difference, noise.expand(2, 5, 4, 4))


def test_one_dimensional_filter_equals_its_outer_product() -> None:
    taps = torch.rand(12)
    x = torch.randn(1, 2, 8, 9)
    flat, square = setup_filter(taps), setup_filter(taps.outer(taps))
    assert flat.shape == (12,)
    close(upsample2d(x, flat, up=2, gain=3), upsample2d(x, square, up=2, gain=3))


@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("flip_weight", [False, True])
def test_resampled_conv2d_equals_its_definition(up: int, down: int, kernel: int, flip_weight: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, kernel, kernel)
    f = setup_filter([1, 3, 3, 1])
    y = resampled_conv2d(x, weight, f, up, down, kernel // 2, flip_weight)
    pad = [2, 1, 2, 1] if up == 2 else [1, 1, 1, 1]
    if up == down == 1:
        pad, f = [0] * 4, None
    wide = upfirdn2d(x, f, up=up, padding=[p + kernel // 2 for p in pad], gain=up**2)
    expected = torch.nn.functional.conv2d(wide, weight if flip_weight else weight.flip([2, 3]), stride=down)
    close(y, expected)


@pytest.mark.parametrize(
    "case", [{"up": 2, "padding": [2, 1, 2, 1]}, {"down": 2, "padding": 1}, {"padding": [1, 2, 1, 2]}]
)
def test_upfirdn2d_second_order_gradient(case: dict) -> None:
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    f = setup_filter([1, 3, 3, 1]).double()
    torch.autograd.gradcheck(lambda x: upfirdn2d(x.square(), f, **case), x)
    torch.autograd.gradgradcheck(lambda x: upfirdn2d(x.square(), f, **case), x)


def test_upfirdn2d_keeps_float32_under_autocast() -> None:
    x = torch.randn(1, 3, 8, 8)
    f = setup_filter([1, 3, 3, 1])
    expected = upsample2d(x, f)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(upsample2d(x, f), expected)


def test_wrong_arguments_are_named() -> None:
    x = torch.zeros(1, 2, 4, 4)
    with pytest.raises(ValueError, match=r"'gelu'.*lrelu"):
        bias_act(x, act="gelu")
    with pytest.raises(ValueError, match="b has shape"):
        bias_act(x, torch.zeros(3))
    with pytest.raises(ValueError, match="up is 0"):
        upfirdn2d(x, None, up=0)
    with pytest.raises(ValueError, match="padding is"):
        upfirdn2d(x, None, padding=[1, 2, 3])
    with pytest.raises(ValueError, match="leaves less"):
        upfirdn2d(x, setup_filter([1, 3, 3, 1]), padding=-1)
    with pytest.raises(ValueError, match="styles has shape"):
        modulated_conv2d(x, torch.zeros(2, 2, 3, 3), torch.zeros(1, 3))
