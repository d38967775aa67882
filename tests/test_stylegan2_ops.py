"""The operations against the reference numbers in tests/golden/stylegan2 (float32, tolerance 1e-4)."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from stylegan2_ada.networks import Discriminator, Generator
from stylegan2_ada.ops import (
    backend,
    bias_act,
    downsample2d,
    filter2d,
    modulated_conv2d,
    resampled_conv2d,
    setup_filter,
    synthesis_tail,
    upfirdn2d,
    upsample2d,
)
from stylegan2_ada.ops.bias_act import ACTIVATIONS

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
    "case",
    [
        {"up": 2, "padding": [2, 1, 2, 1]},
        {"down": 2, "padding": 1},
        {"padding": [1, 2, 1, 2]},
        {"padding": 5},  # wider than the filter
    ],
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


# --- the operators of torch.library; their CPU kernels are the reference, their derivatives those of the CUDA kernels

OPS = torch.ops.stylegan2_ada


def double(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def upfirdn2d_cases() -> list[tuple]:
    return [
        ([1, 2], [3, 1], [2, 1, 0, 3], False, 1.5),
        ([2, 1], [1, 3], [-1, 2, 3, -1], True, 1.5),
        ([3, 4], [4, 3], [5, 0, 2, 2], False, -0.5),
        ([1, 1], [1, 1], [-1, -2, 0, -1], False, 1.0),
    ]


def operator_calls() -> dict[str, tuple[Callable, tuple]]:
    """Calls of every operator: the overload and its arguments."""
    torch.manual_seed(0)
    f = torch.rand(3, 2, dtype=torch.float64)
    calls: dict[str, tuple[Callable, tuple]] = {}
    for act in ACTIVATIONS:
        calls[f"bias_act {act}"] = (OPS.bias_act.default, (double(2, 3, 4), double(3), 1, act, 0.3, 1.3, 0.9))
        calls[f"bias_act {act} negative"] = (OPS.bias_act.default, (double(3, 4), None, 0, act, 0.3, -1.3, None))
        arguments = (double(2, 3, 2, 2), double(2, 3), double(2, 1, 2, 2), double(3), act, 0.2, 1.3, 2.0)
        calls[f"synthesis_tail {act}"] = (OPS.synthesis_tail.default, arguments)
    for noise in (None, double(2, 2)):
        arguments = (double(2, 3, 2, 2), double(2, 3), noise, double(3), "lrelu", 0.2, 1.3, None)
        calls[f"synthesis_tail noise {noise is not None}"] = (OPS.synthesis_tail.default, arguments)
    arguments = (double(2, 3), double(2, 3), double(3), 1, "swish", 0.2, 1.3, 2.0, False, 1)
    calls["bias_act_grad"] = (OPS.bias_act_grad.default, arguments)
    for i, case in enumerate(upfirdn2d_cases()):
        calls[f"upfirdn2d {i}"] = (OPS.upfirdn2d.default, (double(1, 2, 4, 5), f, *case))
    last = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    calls["upfirdn2d channels-last"] = (OPS.upfirdn2d.default, (last, f.float(), *upfirdn2d_cases()[0]))
    arguments = (double(2, 3, 2, 2), double(2, 3, 3, 3), double(2, 3), None, 2, 1, [1] * 4, f, False)
    calls["modulated_conv2d"] = (OPS.modulated_conv2d.default, arguments)
    return calls


CALLS = operator_calls()


@pytest.mark.parametrize(
    "name",
    [
        "bias_act lrelu",
        "bias_act swish",
        "bias_act relu negative",
        "bias_act_grad",
        "synthesis_tail elu",
        "synthesis_tail noise True",
        "synthesis_tail noise False",
        "upfirdn2d 0",
        "upfirdn2d channels-last",
        "modulated_conv2d",
    ],
)
def test_operators_pass_opcheck(name: str) -> None:
    torch.library.opcheck(*CALLS[name])


@pytest.mark.parametrize("name", [name for name in CALLS if name != "upfirdn2d channels-last"])
def test_operators_have_first_and_second_derivatives(name: str) -> None:
    function, arguments = CALLS[name]
    torch.autograd.gradcheck(function, arguments)
    if name != "bias_act_grad":  # which is of first order already
        torch.autograd.gradgradcheck(function, arguments)


def test_operators_equal_the_public_functions() -> None:
    x, coefficients, noise, b = torch.randn(2, 3, 4, 4), torch.rand(2, 3), torch.randn(4, 4), torch.randn(3)
    close(OPS.bias_act(x, b, 1, "lrelu", 0.2, 2**0.5, 1.0), bias_act(x, b, act="lrelu", clamp=1))
    tail = OPS.synthesis_tail(x, coefficients, noise, b, "lrelu", 0.2, 2**0.5, 1.0)
    close(tail, synthesis_tail(x, coefficients, noise, b, clamp=1))
    f = torch.rand(2, 3)
    for up, down, padding, flip, gain in upfirdn2d_cases():
        padding = [p + 2 for p in padding]
        close(OPS.upfirdn2d(x, f, up, down, padding, flip, gain), upfirdn2d(x, f, up, down, padding, flip, gain))
    weight, styles = torch.randn(3, 3, 1, 1), torch.randn(2, 3)
    close(OPS.modulated_conv2d(x, weight, styles), modulated_conv2d(x, weight, styles))


# --- which implementation runs


@pytest.fixture
def unbuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No compiled kernels, whatever this machine has."""
    monkeypatch.setattr(backend, "library_path", lambda: tmp_path / "none.so")
    cached = (backend.load_kernels, backend.obstacle, backend._log_once)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


@pytest.mark.parametrize(
    "call",
    [
        lambda x, f, **impl: bias_act(x, **impl),
        lambda x, f, **impl: upfirdn2d(x, f, **impl),
        lambda x, f, **impl: filter2d(x, f, **impl),
        lambda x, f, **impl: upsample2d(x, f, **impl),
        lambda x, f, **impl: downsample2d(x, f, **impl),
        lambda x, f, **impl: synthesis_tail(x, x[:, :, 0, 0], None, x[0, :, 0, 0], **impl),
        lambda x, f, **impl: modulated_conv2d(x, x.new_ones(2, 2, 3, 3), x[:, :, 0, 0], None, 2, 1, 1, f, **impl),
        lambda x, f, **impl: resampled_conv2d(x, x.new_ones(2, 2, 3, 3), f, down=2, padding=1, **impl),
    ],
)
def test_impl_is_a_choice_of_every_operation(call: Callable, unbuilt: None) -> None:
    x, f = torch.randn(2, 2, 4, 4), setup_filter([1, 3, 3, 1])
    assert torch.equal(call(x, f, impl="reference"), call(x, f))
    with pytest.raises(ValueError, match="impl is 'fast'; choose auto, reference or cuda"):
        call(x, f, impl="fast")
    with pytest.raises(ValueError, match=r"tensor is on cpu.*not built.*viscoin ops build"):
        call(x, f, impl="cuda")


class OnCuda:
    """Enough of a tensor to choose an implementation for."""

    device, dtype = torch.device("cuda", 0), torch.float16


def test_auto_explains_once_why_cuda_tensors_take_the_reference(
    unbuilt: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "stylegan2_ada"):
        assert not backend.use_kernels("auto", torch.zeros(1))
        assert not caplog.messages
        assert not backend.use_kernels("auto", OnCuda())  # type: ignore[arg-type]
        assert not backend.use_kernels("auto", OnCuda())  # type: ignore[arg-type]
    (message,) = caplog.messages
    assert "plain PyTorch" in message and "viscoin ops build" in message and "\n" not in message


def test_gpu_that_the_kernels_do_not_fit_takes_the_reference(unbuilt: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Kernels:
        kernels_fit = staticmethod(lambda index: False)
        compiled_for = staticmethod(lambda: "8.0, 9.0")

    monkeypatch.setattr(backend, "load_kernels", lambda: "")
    monkeypatch.setattr(torch.ops, "stylegan2_ada", Kernels)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "GTX 1080")
    assert not backend.use_kernels("auto", OnCuda())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"GTX 1080 has compute capability 6\.1.*8\.0, 9\.0.*--arch 6\.1"):
        backend.use_kernels("cuda", OnCuda())  # type: ignore[arg-type]


def test_broken_library_is_named(unbuilt: None, tmp_path: Path) -> None:
    (tmp_path / "none.so").write_text("no library")
    assert "none.so cannot be loaded" in backend.load_kernels()


# --- torch.compile


def test_no_graph_break_in_the_operations() -> None:
    f = setup_filter([1, 3, 3, 1])

    def both(x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        x = upsample2d(bias_act(x, b, act="lrelu"), f)
        x = OPS.bias_act(x, b, 1, "swish", 0.2, 1.0, None)
        return OPS.upfirdn2d(x, f, [1, 1], [2, 2], [1, 1, 1, 1], False, 1.0)

    x, b = torch.randn(1, 2, 4, 4, requires_grad=True), torch.randn(2, requires_grad=True)
    compiled = torch.compile(both, backend="aot_eager", fullgraph=True)
    close(compiled(x, b), both(x, b))
    for actual, expected in zip(*(torch.autograd.grad(g(x, b).sum(), [x, b]) for g in (compiled, both)), strict=True):
        close(actual, expected)


def test_choice_of_kernels_is_a_constant_of_the_graph(unbuilt: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def untraceable(kind: str, index: int | None) -> str:
        torch._dynamo.graph_break()
        return ""

    monkeypatch.setattr(backend, "obstacle", untraceable)
    compiled = torch.compile(lambda x: bias_act(x, act="lrelu", impl="cuda"), backend="eager", fullgraph=True)
    x = torch.randn(2, 3)
    close(compiled(x), bias_act(x, act="lrelu"))


def small_networks() -> tuple[Generator, Discriminator]:
    torch.manual_seed(0)
    size = dict(channel_base=64, channel_max=8)
    generator = Generator(8, 0, 8, 8, 3, mapping_kwargs=dict(num_layers=2), synthesis_kwargs=size)
    return generator, Discriminator(0, 8, 3, **size)


@pytest.mark.slow
@pytest.mark.parametrize("backend_name", ["aot_eager", pytest.param("inductor", marks=pytest.mark.long)])
def test_networks_compile_without_graph_break(backend_name: str) -> None:
    generator, discriminator = small_networks()
    z = torch.randn(4, 8)

    def logits(z: torch.Tensor) -> torch.Tensor:
        return discriminator(generator(z, noise_mode="const"))

    parameters = list(generator.parameters()) + list(discriminator.parameters())
    compiled = torch.compile(logits, backend=backend_name, fullgraph=True)
    close(compiled(z), logits(z))
    gradients = [torch.autograd.grad(g(z).sum(), parameters, allow_unused=True) for g in (compiled, logits)]
    for actual, expected in zip(*gradients, strict=True):
        if expected is not None:
            torch.testing.assert_close(actual, expected, atol=1e-3, rtol=1e-3)
