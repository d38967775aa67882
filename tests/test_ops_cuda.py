"""The CUDA kernels against the reference, where there is a GPU."""

from collections.abc import Callable, Iterator

import pytest
import torch

from stylegan2_ada.ops import bias_act, setup_filter, synthesis_tail, upfirdn2d
from stylegan2_ada.ops.backend import DTYPES, obstacle, use_kernels
from stylegan2_ada.ops.bias_act import ACTIVATIONS
from stylegan2_ada.ops.build import build_kernels
from stylegan2_ada.ops.check import compare_operations, make_inputs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
SHAPES = [(2, 16, 8, 8), (3, 5, 7, 9), (0, 8, 4, 4)]
IMPLEMENTATIONS = ("reference", "cuda")


@pytest.fixture(scope="module", autouse=True)
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's library, or one of our own where there is none."""
    with pytest.MonkeyPatch.context() as patch:
        if obstacle("cuda", 0):
            patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
            build_kernels()
            obstacle.cache_clear()
        yield


def twins(function: Callable[..., torch.Tensor], inputs: list[torch.Tensor]) -> None:
    """Output, gradients and gradients of a penalty on the gradient, of both implementations."""
    results = []
    for impl in IMPLEMENTATIONS:
        y = function(*inputs, impl=impl)
        first = torch.autograd.grad(y, inputs, torch.tanh(y), create_graph=True, allow_unused=True)
        penalty = sum(g.float().square().sum() for g in first if g is not None)
        second = torch.autograd.grad(penalty, inputs, allow_unused=True)
        gradients = [
            torch.zeros_like(x) if g is None else g for g, x in zip([*first, *second], inputs * 2, strict=True)
        ]
        results.append([y, *gradients])
    precision = torch.finfo(inputs[0].dtype).eps
    for expected, actual in zip(*results, strict=True):
        assert actual.dtype == expected.dtype and actual.shape == expected.shape
        if expected.numel():
            error = (actual.double() - expected.double()).abs().max()
            assert error <= 64 * precision * max(1, float(expected.detach().abs().max()))


def inputs(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> list[torch.Tensor]:
    return make_inputs(shape, dtype, channels_last, torch.device("cuda"))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_bias_act_twins(act: str, dtype: torch.dtype, channels_last: bool, shape: tuple[int, ...]) -> None:
    x, _, _, b = inputs(shape, dtype, channels_last)
    twins(lambda x, b, impl: bias_act(x, b, act=act, clamp=256, impl=impl), [x, b])
    twins(lambda x, impl: bias_act(x, act=act, gain=-0.5, impl=impl), [x])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bias_act_clamps_and_takes_any_layout(dtype: torch.dtype) -> None:
    x, _, _, b = (tensor.detach() for tensor in inputs((4, 6, 5, 3), dtype, False))
    results = [bias_act(x, b, act="lrelu", clamp=0.5, impl=impl) for impl in IMPLEMENTATIONS]
    assert torch.equal(results[0].abs() == 0.5, results[1].abs() == 0.5)
    for view in (x[1:, :, ::2], x.transpose(2, 3), x[:1].expand(4, -1, -1, -1), x.flatten(1)[:, :6], x[:, 1:]):
        bias = b[: view.shape[1]]
        results = [bias_act(view, bias, act="swish", impl=impl) for impl in IMPLEMENTATIONS]
        torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("act", ["lrelu", "swish"])
def test_synthesis_tail_twins(act: str, dtype: torch.dtype, channels_last: bool, shape: tuple[int, ...]) -> None:
    x, coefficients, noise, b = inputs(shape, dtype, channels_last)
    twins(lambda x, s, n, b, impl: synthesis_tail(x, s, n, b, act, clamp=256, impl=impl), [x, coefficients, noise, b])
    twins(lambda x, s, b, impl: synthesis_tail(x, s, None, b, act, impl=impl), [x, coefficients, b])
    if noise.shape[0]:
        noise = noise[0, 0].detach().requires_grad_()
        twins(lambda x, s, n, b, impl: synthesis_tail(x, s, n, b, act, impl=impl), [x, coefficients, noise, b])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_upfirdn2d_twins(dtype: torch.dtype, channels_last: bool, shape: tuple[int, ...]) -> None:
    x = inputs(shape, dtype, channels_last)[0]
    blur, uneven, long = setup_filter([1, 3, 3, 1]), setup_filter([[1, 2, 3], [4, -5, 6]]), setup_filter(torch.ones(12))
    cases = [(blur, up, down, 4) for up, down in [(1, 1), (2, 1), (1, 2), (2, 2), (4, 3)]]
    cases += [(uneven, [3, 1], [1, 2], [-1, 4, 3, -1]), (long, 2, 1, 11), (None, 1, 3, [0, -1, -2, 3])]
    for f, up, down, padding in cases:
        f = None if f is None else f.cuda()
        for flip in (False, True):
            twins(
                lambda x, impl, a=(f, up, down, padding, flip): upfirdn2d(x, *a, gain=1.5, impl=impl),
                [x],
            )


def test_every_operation_agrees_at_full_size() -> None:
    rows = list(compare_operations(torch.device("cuda", 0), (4, 64, 128, 128)))
    assert all(row.kernel_ms is not None for row in rows)
    assert not [row for row in rows if not row.agrees]


def test_kernels_run_on_the_current_stream_and_stay_in_the_layout() -> None:
    x = torch.randn(2, 8, 16, 16, device="cuda").to(memory_format=torch.channels_last)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        y = bias_act(upfirdn2d(x, setup_filter([1, 3, 3, 1], device="cuda"), padding=2, impl="cuda"), act="relu")
    stream.synchronize()
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_double_takes_the_reference() -> None:
    x = torch.zeros(1, 1, device="cuda", dtype=torch.float64)
    assert not use_kernels("auto", x)
    with pytest.raises(ValueError, match=r"not torch\.float64"):
        use_kernels("cuda", x)


def test_no_graph_break_with_kernels() -> None:
    x = torch.randn(2, 8, 16, 16, device="cuda", requires_grad=True)
    compiled = torch.compile(lambda x: bias_act(x, act="swish", impl="cuda"), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), bias_act(x, act="swish", impl="reference"))
