"""Adaptive discriminator augmentation against the reference numbers (float32), its statistics, and its controller."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from stylegan2_ada.affine import (
    SYM6,
    affine_resample,
    downsample_cropped,
    reflect_pad,
    sample,
    sample_adjoint,
    upsample_mirrored,
)
from stylegan2_ada.augment import PRESETS, AugmentController, AugmentPipe, Draws, augment_pipe, octave_filters
from stylegan2_ada.ops import setup_filter
from viscoin.plotting.augmentation import augmentation_table

GOLDEN = Path(__file__).parent / "golden" / "stylegan2" / "augment_percentile.safetensors"
with safe_open(GOLDEN, "pt") as golden:
    CASES = [tuple(case) for case in json.loads(golden.metadata()["config"])["cases"]]
    TENSORS = {key: golden.get_tensor(key) for key in golden.keys()}  # noqa: SIM118
EVERY = list(PRESETS["bgcfnc"])
TAPS = setup_filter(SYM6)


def images(n: int = 4, size: int = 16, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def seeded(pipe: Callable[[Tensor], Tensor], x: Tensor, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return pipe(x)


def identity(n: int) -> Tensor:
    return torch.eye(3).repeat(n, 1, 1)


@pytest.mark.parametrize(("name", "percentile"), CASES)
def test_matches_reference(name: str, percentile: float) -> None:
    pipe = AugmentPipe(**PRESETS.get(name, {name: 1}))
    expected = TENSORS[f"{name}.{percentile}"]
    torch.testing.assert_close(pipe(TENSORS["x"], debug_percentile=percentile), expected, atol=1e-4, rtol=1e-4)


def test_all_cases_are_there() -> None:
    assert len(CASES) == 42


# Geometry


def test_sym6_is_an_orthogonal_lowpass_filter() -> None:
    f = torch.tensor(SYM6, dtype=torch.float64)
    for shift in range(6):
        assert f[2 * shift :] @ f[: len(f) - 2 * shift] == pytest.approx(float(shift == 0), abs=1e-11)
    alternating = f * torch.tensor([1, -1]).repeat(6)
    for moment in range(6):  # six vanishing moments
        assert float(alternating @ torch.linspace(-1, 1, 12).double() ** moment) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("size", [(2, 2), (3, 5), (16, 12)])
def test_identity_is_exact(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    torch.testing.assert_close(affine_resample(x, identity(2), TAPS), x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("zoom_out", [3.0, 40.0])
def test_no_border_shows(zoom_out: float) -> None:
    inverse = identity(2) * torch.tensor([zoom_out, zoom_out, 1])
    inverse[1, :2, 2] = 333.3
    white = torch.ones(2, 3, 16, 16)
    torch.testing.assert_close(affine_resample(white, inverse, TAPS), white, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pixels", [5, -5, 15, 37, -100])
def test_translation_mirrors_the_image(pixels: int) -> None:
    x = torch.randn(1, 1, 16, 16)
    inverse = identity(1)
    inverse[0, 0, 2] = pixels
    mirrored = reflect_pad(x, max(-pixels, 0), max(pixels, 0), 0, 0)
    expected = mirrored[..., max(pixels, 0) : max(pixels, 0) + 16]
    torch.testing.assert_close(affine_resample(x, inverse, TAPS), expected, atol=1e-4, rtol=0)


def test_positive_translation_moves_right_and_down() -> None:
    ramp = torch.linspace(-1, 1, 32).expand(1, 1, 32, 32)
    moved = AugmentPipe(xint=1)(ramp, debug_percentile=0.9)  # 0.1 of the width
    torch.testing.assert_close(moved[..., 8:24], ramp[..., 5:21], atol=1e-4, rtol=0)


def test_reflect_pad_exceeds_the_image() -> None:
    x = torch.tensor([[0.0, 1, 2], [3, 4, 5]])[None, None]
    assert reflect_pad(x, 5, 6, 0, 0)[0, 0, 0].tolist() == [1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1, 0]
    assert reflect_pad(x, 0, 0, 2, 3)[0, 0, :, 0].tolist() == [0, 3, 0, 3, 0, 3, 0]


def test_dense_products_equal_filters() -> None:
    x = torch.randn(2, 3, 9, 12)
    dense = upsample_mirrored(x, TAPS, dense=True)
    assert dense.shape == (2, 3, 33, 45)
    torch.testing.assert_close(dense, upsample_mirrored(x, TAPS, dense=False), atol=1e-5, rtol=0)
    torch.testing.assert_close(dense[..., 0], dense[..., -1])  # a whole period
    y = torch.randn(2, 3, 28, 34)
    down = downsample_cropped(y, TAPS, dense=True)
    assert down.shape == (2, 3, 9, 12)
    torch.testing.assert_close(down, downsample_cropped(y, TAPS, dense=False), atol=1e-5, rtol=0)


def test_sampling_operators_are_complete() -> None:
    grid = torch.rand(2, 4, 5, 2) * 2 - 1
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    for operator, arguments in [
        (sample, (torch.randn(2, 3, 6, 7, requires_grad=True), grid)),
        (sample_adjoint, (torch.randn(2, 3, 4, 5, requires_grad=True), grid, 6, 7)),
    ]:
        torch.library.opcheck(operator, arguments, test_utils=checks)


# Colour


@pytest.mark.parametrize("percentile", [0.15, 0.7])
def test_color_equals_the_product_of_its_matrices(percentile: float) -> None:
    x = images()
    q, z = percentile, torch.tensor(2 * percentile - 1).erfinv().item()
    v = torch.full((3,), 1 / math.sqrt(3))
    axis, cross = torch.outer(v, v), torch.linalg.cross(v.expand(3, 3), torch.eye(3), dim=1).T
    angle = math.pi * (2 * q - 1)
    hue = math.cos(angle) * torch.eye(3) + (1 - math.cos(angle)) * axis + math.sin(angle) * cross
    steps = [
        (torch.eye(3), 0.2 * z),  # brightness
        (2 ** (0.5 * z) * torch.eye(3), 0.0),  # contrast
        (torch.eye(3) - 2 * int(2 * q) * axis, 0.0),  # luma flip
        (hue, 0.0),
        (axis + 2**z * (torch.eye(3) - axis), 0.0),  # saturation
    ]
    total = torch.eye(4)
    for matrix, offset in steps:
        step = torch.eye(4)
        step[:3, :3], step[:3, 3] = matrix, offset
        total = step @ total
    expected = torch.einsum("ij,bjhw->bihw", total[:3, :3], x) + total[:3, 3, None, None]
    torch.testing.assert_close(augment_pipe("color")(x, debug_percentile=q), expected, atol=1e-5, rtol=0)


def test_grey_images_are_grey_color_images() -> None:
    grey = images(channels=1)
    for preset in ("color", "bgcfnc"):
        pipe = augment_pipe(preset)
        if preset == "bgcfnc":
            pipe = AugmentPipe(**{**PRESETS[preset], "noise": 0})
        y, rgb = seeded(pipe, grey), seeded(pipe, grey.expand(-1, 3, -1, -1))
        torch.testing.assert_close(y.expand(-1, 3, -1, -1), rgb, atol=1e-5, rtol=0)


def test_hue_and_saturation_leave_grey_alone() -> None:
    grey = images(channels=1)
    torch.testing.assert_close(seeded(AugmentPipe(hue=1, saturation=1), grey), grey, rtol=0, atol=0)


# Filter, noise, cutout


def test_octaves_sum_to_the_identity_and_divide_the_frequencies() -> None:
    bands = octave_filters()
    assert bands.shape == (4, 43)
    delta = torch.zeros(43)
    delta[21] = 1
    assert torch.equal(bands.sum(0), delta)
    response = torch.fft.rfft(bands, 4096).abs()
    for band, octave in enumerate([(0, 1 / 8), (1 / 8, 1 / 4), (1 / 4, 1 / 2), (1 / 2, 1)]):
        middle = round(2048 * (octave[0] + octave[1]) / 2)
        assert response[:, middle].argmax() == band
    assert response[0, 0] == pytest.approx(1) and response[3, -1] == pytest.approx(1)


def test_filter_shares_out_the_expected_power() -> None:
    pipe = AugmentPipe(imgfilter=1, imgfilter_bands=[1, 0, 0, 0])
    flat = torch.ones(512, 1, 4, 4)  # all in the coarsest octave, which is expected to hold 10/13 of the power
    gains = seeded(pipe, flat)[:, 0, 0, 0].sqrt()  # the filter runs along both axes
    octaves = (gains / ((1 - gains.square() * 10 / 13) / (3 / 13)).sqrt()).log2()  # against the other three
    assert gains.max() < math.sqrt(13 / 10)
    assert float(octaves.mean()) == pytest.approx(0, abs=0.15) and float(octaves.std()) == pytest.approx(1, rel=0.1)


def test_noise_has_the_drawn_size() -> None:
    y = seeded(AugmentPipe(noise=1), torch.zeros(2000, 1, 16, 16))
    sizes = y.std([1, 2, 3])
    assert float(sizes.square().mean().sqrt()) == pytest.approx(0.1, rel=0.05)  # half-normal with this scale
    assert float(sizes.mean()) == pytest.approx(0.1 * math.sqrt(2 / math.pi), rel=0.05)
    assert y.mean().abs() < 1e-3


def test_cutout_clears_a_rectangle() -> None:
    y = AugmentPipe(cutout=1)(torch.ones(2, 3, 16, 16), debug_percentile=0.5)
    hole = torch.ones(16, 16)
    hole[4:12, 4:12] = 0
    assert torch.equal(y, hole.expand(2, 3, 16, 16))
    corner = AugmentPipe(cutout=1, cutout_size=0.25)(torch.ones(1, 1, 16, 16), debug_percentile=1e-6)
    assert (corner[0, 0, :2, :2] == 0).all() and corner.sum() == 256 - 4


def test_cutout_hides_its_share_on_average() -> None:
    hidden = 1 - seeded(AugmentPipe(cutout=1), torch.ones(2000, 1, 16, 16)).mean()
    assert float(hidden) == pytest.approx((1 / 2 - 1 / 16) ** 2, abs=0.01)  # parts of it lie outside


# Probabilities and randomness


@pytest.mark.parametrize("p", [1.0, 0.4])
@pytest.mark.parametrize(
    ("name", "share"), [("xflip", 1 / 2), ("rotate90", 3 / 4), ("lumaflip", 1 / 2), ("rotate", 1), ("saturation", 1)]
)
def test_each_transform_happens_with_its_probability(name: str, share: float, p: float) -> None:
    pipe = AugmentPipe(**{name: 1})
    pipe.p.fill_(p)
    x = images(2000, 4)
    changed = (seeded(pipe, x) != x).flatten(1).any(1).float().mean()
    assert float(changed) == pytest.approx(p * share, abs=0.04)


def test_probability_is_keyword_times_p() -> None:
    pipe = AugmentPipe(brightness=0.5)
    pipe.p.fill_(0.5)
    x = torch.zeros(4000, 3, 2, 2)
    assert float((seeded(pipe, x) != 0).any(1).float().mean()) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
    ("name", "measure", "mean", "std"),
    [
        ("brightness", lambda y: y, 1, 0.2),
        ("contrast", lambda y: y.log2(), 0, 0.5),
        ("contrast", lambda y: (y.log2() / 0.5).abs(), math.sqrt(2 / math.pi), math.sqrt(1 - 2 / math.pi)),
    ],
)
def test_strengths_follow_their_distribution(name: str, measure: Callable, mean: float, std: float) -> None:
    values = measure(seeded(AugmentPipe(**{name: 1}), torch.ones(4000, 3, 2, 2))[:, 0, 0, 0])
    assert float(values.mean()) == pytest.approx(mean, abs=4 * std / math.sqrt(4000))
    assert float(values.std()) == pytest.approx(std, rel=0.06)


def test_translation_is_drawn_from_an_eighth_of_the_width() -> None:
    ramp = torch.arange(64.0).expand(500, 1, 64, 64)
    moved = (ramp - seeded(AugmentPipe(xint=1), ramp))[:, 0, 32, 32]
    torch.testing.assert_close(moved, moved.round(), atol=2e-3, rtol=0)
    assert moved.abs().max().round() == 8
    assert float(moved.std()) == pytest.approx(16 / math.sqrt(12), rel=0.1)


def test_draws_have_their_distribution() -> None:
    torch.manual_seed(0)
    draws = Draws(torch.zeros(4000, 1))
    assert draws.uniform(1, 2).shape == (2, 4000)
    assert draws.uniform(1).min() >= -1 and float(draws.uniform(1).std()) == pytest.approx(1 / math.sqrt(3), rel=0.05)
    assert draws.integer(1, 4).unique().tolist() == [0, 1, 2, 3]
    assert float(draws.happens(0.3).mean()) == pytest.approx(0.3, abs=0.03)
    assert float((draws.normal(0.3) != 0).float().mean()) == pytest.approx(0.3, abs=0.03)
    x, y = draws.normal(0.3, 2)
    assert torch.equal(x == 0, y == 0)  # taken or left together
    assert (draws.half_normal(1) >= 0).all()


def test_p_of_zero_changes_no_bit() -> None:
    x, pipe = images(), augment_pipe("bgcfnc")
    pipe.p.zero_()
    assert torch.equal(pipe(x), x)
    compiled = torch.compile(pipe, fullgraph=True, backend="eager")  # has no way out for p = 0
    assert torch.equal(compiled(x), x)


def test_small_p_leaves_most_images_untouched() -> None:
    x, pipe = images(200), AugmentPipe(**{name: 1 for name in EVERY})
    pipe.p.fill_(0.01)
    same = (seeded(pipe, x) == x).flatten(1).all(1).float().mean()
    assert 0.75 < float(same) < 0.95  # about 0.99 ** 18


def test_p_above_one_counts_as_one() -> None:
    x, pipe = images(), augment_pipe("bgcfnc")
    expected = seeded(pipe, x)
    pipe.p.fill_(1.7)
    torch.testing.assert_close(seeded(pipe, x), expected, rtol=0, atol=0)


def test_seed_decides() -> None:
    x, pipe = images(), augment_pipe("bgcfnc")
    assert torch.equal(seeded(pipe, x), seeded(pipe, x))
    assert not torch.equal(seeded(pipe, x), seeded(pipe, x, seed=1))


# Gradients, compilation, precision


@pytest.mark.parametrize("preset", ["geom", "bgc", "bgcfnc"])
def test_compiles_without_a_graph_break(preset: str) -> None:
    torch.compiler.reset()
    x, pipe = images(2, 8), augment_pipe(preset)
    compiled = torch.compile(pipe, fullgraph=True, backend="eager")
    torch.testing.assert_close(seeded(compiled, x), seeded(pipe, x), atol=1e-6, rtol=0)


def test_compiled_once_for_every_p() -> None:
    torch.compiler.reset()
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable:
        graphs.append(graph)
        return graph.forward

    pipe = augment_pipe("bgcfnc")
    compiled = torch.compile(pipe, fullgraph=True, backend=backend)
    for p in (0.0, 0.3, 1.0):
        pipe.p.fill_(p)
        compiled(images(2, 8))
    assert len(graphs) == 1


def test_compiled_gradient_equals_eager() -> None:
    torch.compiler.reset()
    pipe, gradients = augment_pipe("bgcfnc"), []
    for function in (pipe, torch.compile(pipe, fullgraph=True, backend="aot_eager")):
        x = images(2, 8).requires_grad_()
        seeded(function, x).square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_differentiable_twice(channels: int) -> None:
    pipe = augment_pipe("bgcfnc")
    x = images(2, 4, channels).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: seeded(pipe, x), x, fast_mode=True)
    # Augmentation is affine in the image; a square after it makes the second derivative count.
    assert torch.autograd.gradgradcheck(lambda x: seeded(pipe, x).square(), x, fast_mode=True)


def test_r1_penalty_reaches_the_discriminator_through_the_pipe() -> None:
    pipe = augment_pipe("bgc").double()
    x = images(2, 8).double().requires_grad_()
    weight = torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def penalty(weight: Tensor) -> Tensor:
        logits = (seeded(pipe, x) * weight[:, None, None]).tanh().sum()
        (gradient,) = torch.autograd.grad(logits, x, create_graph=True)
        return gradient.square().sum()

    step = torch.tensor([0.0, 1e-6, 0.0], dtype=torch.float64)
    difference = ((penalty(weight + step) - penalty(weight - step)) / 2e-6).detach()
    (slope,) = torch.autograd.grad(penalty(weight.requires_grad_()), weight)
    assert float(slope[1]) == pytest.approx(float(difference), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    pipe, x = augment_pipe("bgcfnc"), images().to(dtype)
    y = seeded(pipe, x)
    assert y.dtype == dtype
    assert torch.equal(y, seeded(pipe, x.float()).to(dtype))


def test_autocast_changes_nothing() -> None:
    pipe, x = augment_pipe("bgcfnc"), images()
    with torch.autocast("cpu", torch.bfloat16):
        y = seeded(pipe, x)
    assert torch.equal(y, seeded(pipe, x))


def test_channels_last_and_oblong_images() -> None:
    pipe = augment_pipe("bgcfnc")
    x = torch.rand(2, 3, 12, 20)
    y = seeded(pipe, x)
    assert y.shape == x.shape and y.isfinite().all()
    last = x.contiguous(memory_format=torch.channels_last)
    for preset in ("geom", "color", "filter", "cutout"):
        pipe = augment_pipe(preset)
        torch.testing.assert_close(seeded(pipe, last), seeded(pipe, x), atol=1e-5, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_matches_reference() -> None:
    pipe = augment_pipe("bgcfnc").cuda()
    for name, percentile in CASES:
        y = AugmentPipe(**PRESETS.get(name, {name: 1})).cuda()(TENSORS["x"].cuda(), debug_percentile=percentile)
        torch.testing.assert_close(y.cpu(), TENSORS[f"{name}.{percentile}"], atol=1e-3, rtol=1e-3)
    assert seeded(pipe, images().cuda()).isfinite().all()


# Bad input


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"xflop": 1}, "xflop.*xflip"),
        ({"xflip": 1.5}, "xflip is 1.5"),
        ({"hue": -0.1}, "hue is -0.1"),
        ({"scale_std": -1}, "scale_std is -1"),
        ({"noise_std": math.nan}, "noise_std is nan"),
        ({"rotate_max": math.inf}, "rotate_max is inf"),
        ({"contrast": "1"}, "contrast is '1'"),
        ({"cutout_size": 2}, "cutout_size is 2"),
        ({"imgfilter_bands": [1, 1]}, "four"),
        ({"imgfilter_bands": 1}, "four"),
        ({"imgfilter_bands": [1, 1, 1, 2]}, "imgfilter_bands is"),
    ],
)
def test_wrong_keyword_is_refused(keywords: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentPipe(**keywords)


def test_unknown_preset_is_refused_with_the_list() -> None:
    with pytest.raises(ValueError, match=r"'bcg'.*blit, geom, color, .*, bgcfnc"):
        augment_pipe("bcg")


@pytest.mark.parametrize(
    ("x", "percentile", "message"),
    [
        (torch.zeros(3, 8, 8), None, "shape"),
        (torch.zeros(1, 3, 8, 1), None, "2 pixels"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), None, "uint8"),
        (torch.zeros(1, 2, 8, 8), None, "2 channels"),
        (torch.zeros(1, 3, 8, 8), 1.0, "debug_percentile is 1"),
    ],
)
def test_wrong_images_are_refused(x: Tensor, percentile: float | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        augment_pipe("bgc")(x, debug_percentile=percentile)


def test_only_colour_needs_colour() -> None:
    assert augment_pipe("bg")(images(channels=2)).shape == (4, 2, 16, 16)


def test_presets_of_the_paper() -> None:
    assert {name: len(keywords) for name, keywords in PRESETS.items()} == {
        "blit": 3, "geom": 4, "color": 5, "filter": 1, "noise": 1, "cutout": 1,
        "bg": 7, "bgc": 12, "bgcf": 13, "bgcfn": 14, "bgcfnc": 15,
    }  # fmt: skip
    assert "xflip=1" in repr(augment_pipe("blit")) and "hue" not in repr(augment_pipe("blit"))


def test_state_holds_only_p() -> None:
    assert list(augment_pipe("bgc").state_dict()) == ["p"]


def test_table_shows_every_preset_at_every_strength() -> None:
    real = np.zeros((2, 8, 8, 3), np.uint8)
    augmented = {"blit": [real + 60, real + 120], "bgc": [real + 180, real + 240]}
    figure = augmentation_table(real, augmented, ["p = 0.5", "p = 1"])
    shown = [int(np.asarray(image.get_array())[0, 0, 0]) for image in figure.axes[0].images]
    assert sorted(shown) == [0] * 4 + [60] * 2 + [120] * 2 + [180] * 2 + [240] * 2
    assert {text.get_text() for text in figure.axes[0].texts} == {"p = 0.5", "p = 1", "images", "blit", "bgc"}


# Controller


def test_controller_takes_ada_kimg_to_go_from_0_to_1() -> None:
    controller = AugmentController(ada_kimg=1)
    steps = 0
    while controller.p < 1:
        controller.update(1.0, images=10)
        steps += 1
    assert steps * 10 == 1000


def test_controller_moves_every_fourth_step_towards_its_target() -> None:
    controller = AugmentController()
    values = [controller.update(sign, 8) for sign in (1, 1, 1, 0, -1, -1, -1, -1, -1, -1, -1, -1)]
    step = 32 / 500_000
    assert values == pytest.approx([0, 0, 0, step, step, step, step, 0, 0, 0, 0, 0])
    assert controller.r_t == -1


def test_controller_weighs_steps_by_images_and_rests_at_the_target() -> None:
    controller = AugmentController(target=0.5, interval=2, p=0.25)
    controller.update(1.0, 30)
    assert controller.update(torch.tensor(-1.0), 10) == 0.25
    assert controller.r_t == 0.5


def test_controller_continues_from_its_state() -> None:
    a, b = AugmentController(), AugmentController()
    for sign in (0.9, torch.tensor(0.8), 0.7, 0.9, 0.5, torch.tensor(0.9)):
        a.update(sign, 16)
    state = a.state_dict()
    assert all(type(value) in (int, float) for value in state.values())
    b.load_state_dict(json.loads(json.dumps(state)))
    assert [a.update(1.0, 16) for _ in range(3)] == [b.update(1.0, 16) for _ in range(3)]


@pytest.mark.parametrize(
    "arguments", [{"target": 2}, {"ada_kimg": 0}, {"interval": 0}, {"p": -0.1}, {"p": math.nan}, {"target": math.nan}]
)
def test_controller_refuses_bad_arguments(arguments: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        AugmentController(**arguments)
    with pytest.raises(ValueError, match="images is 0"):
        AugmentController().update(1.0, 0)
