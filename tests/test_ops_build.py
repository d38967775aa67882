"""The CUDA kernels without a GPU: their arithmetic runs on the host, nvcc compiles them, mistakes are named."""

import ctypes
import itertools
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import Answer

from stylegan2_ada.ops import backend, bias_act, build, check, synthesis_tail, upfirdn2d
from stylegan2_ada.ops.bias_act import ACTIVATIONS
from stylegan2_ada.ops.operators import known_by_output

ROOT = Path(__file__).parents[1]
NAMES = list(ACTIVATIONS)

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


# --- the device functions, thread by thread on the host ----------------------------------------------------------


def structure(**fields: str) -> type[ctypes.Structure]:
    """A structure of parameters.h; the names of its pointers, int64s, int32s and floats come in that order."""
    kinds = {"pointers": ctypes.c_void_p, "longs": ctypes.c_int64, "ints": ctypes.c_int32, "floats": ctypes.c_float}
    members = [(name, kinds[kind]) for kind, names in fields.items() for name in names.split()]
    return type("Parameters", (ctypes.Structure,), {"_fields_": members})


BiasAct = structure(
    pointers="x reference b y", longs="elements size inner", ints="order from_output", floats="alpha gain limit"
)
Upfirdn2d = structure(
    pointers="x f y",
    longs="batch channels in_height in_width out_height out_width",
    ints="filter_height filter_width up_x up_y down_x down_y left top flip_filter channels_last",
    floats="gain",
)
SynthesisTail = structure(
    pointers="x coefficients noise b y",
    longs="batch channels pixels",
    ints="noise_per_sample channels_last",
    floats="alpha gain limit",
)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("host") / "host.so"
    flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
    source = Path(__file__).with_name("host_kernels.cpp")
    subprocess.run(["g++", *flags, f"-I{build.SOURCES}", source, "-o", library], check=True)
    return ctypes.CDLL(str(library))


def guarded(x: torch.Tensor) -> torch.Tensor:
    """x in the midst of NaNs, which anything read beyond its ends would spread."""
    buffer = torch.full([x.numel() + 128], math.nan)
    view = buffer[64:-64].as_strided(x.shape, x.stride(), 64)
    return view.copy_(x)


def guards_hold(y: torch.Tensor) -> bool:
    """Whether all of a guarded tensor was written, and nothing around it."""
    buffer = torch.empty(0).set_(y.untyped_storage())
    return bool(buffer[:64].isnan().all() and buffer[-64:].isnan().all() and not y.isnan().any())


def blank(y: torch.Tensor) -> torch.Tensor:
    return guarded(torch.full_like(y, math.nan))


def laid_out(x: torch.Tensor, channels_last: bool) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def fill(kind: type[ctypes.Structure], **values: object) -> ctypes.Structure:
    return kind(**{k: v.data_ptr() if isinstance(v, torch.Tensor) else v for k, v in values.items()})


# (batch, channels, height, width), channels last, values per thread
LAYOUTS = [
    ((2, 8, 3, 4), False, 4),
    ((2, 8, 3, 4), True, 4),
    ((2, 16, 3, 5), True, 8),
    ((3, 5, 3, 7), False, 1),
    ((3, 5, 3, 7), True, 1),
    ((1, 1, 1, 1), False, 1),
]


@needs_compiler
@pytest.mark.parametrize("act", NAMES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_bias_act_on_the_host(host: ctypes.CDLL, act: str, layout: tuple) -> None:
    torch.manual_seed(0)
    shape, channels_last, values = layout
    for has_bias, gain, clamp in itertools.product([True, False], [1.3, -0.7], [None, 0.6]):
        x, g = (guarded(laid_out(torch.randn(shape), channels_last)) for _ in range(2))
        b = guarded(torch.randn(shape[1])) if has_bias else None
        expected = bias_act(x, b, act=act, alpha=0.3, gain=gain, clamp=clamp)
        common = dict(alpha=0.3, gain=gain, limit=-1 if clamp is None else clamp, elements=x.numel())
        common |= dict(b=b, size=shape[1], inner=x.stride(1)) if has_bias else dict(size=1, inner=x.numel())
        y = blank(x)
        host.run_bias_act(ctypes.byref(fill(BiasAct, x=x, y=y, **common)), values, NAMES.index(act))
        assert guards_hold(y)
        torch.testing.assert_close(y, expected)

        from_output = known_by_output(act, 0.3, gain)
        reference, b = (expected, None) if from_output else (x, b)
        for order in (1, 2):
            arguments = (g, reference, b, 1, act, 0.3, gain, clamp, from_output, order)
            expected_grad = torch.ops.stylegan2_ada.bias_act_grad(*arguments)
            common |= dict(x=g, reference=guarded(reference), order=order, from_output=from_output)
            y = blank(x)
            host.run_bias_act(ctypes.byref(fill(BiasAct, y=y, **common)), values, NAMES.index(act))
            assert guards_hold(y)
            torch.testing.assert_close(y, expected_grad, atol=1e-5, rtol=1e-5)


@needs_compiler
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_synthesis_tail_on_the_host(host: ctypes.CDLL, layout: tuple) -> None:
    torch.manual_seed(0)
    (b, c, h, w), channels_last, values = layout
    for act, noise_shape, clamp in itertools.product(["lrelu", "swish"], [None, (b, 1, h, w), (h, w)], [None, 0.5]):
        x = guarded(laid_out(torch.randn(b, c, h, w), channels_last))
        coefficients, bias = guarded(torch.rand(b, c)), guarded(torch.randn(c))
        noise = None if noise_shape is None else guarded(torch.randn(noise_shape))
        y = blank(x)
        p = fill(
            SynthesisTail,
            x=x,
            coefficients=coefficients,
            noise=noise,
            b=bias,
            y=y,
            batch=b,
            channels=c,
            pixels=h * w,
            noise_per_sample=noise is not None and noise.ndim == 4,
            channels_last=channels_last,
            alpha=0.2,
            gain=1.7,
            limit=-1 if clamp is None else clamp,
        )
        host.run_synthesis_tail(ctypes.byref(p), values, NAMES.index(act))
        assert guards_hold(y)
        torch.testing.assert_close(y, synthesis_tail(x, coefficients, noise, bias, act, 1.7, clamp))


def run_upfirdn2d(host, x, f, up, down, padding, flip, channels_last, values, kernel) -> None:
    """One call on the host against the reference."""
    x, f = guarded(laid_out(x, channels_last)), guarded(f)
    expected = upfirdn2d(x, f, up, down, padding, flip, gain=1.5)
    y = blank(laid_out(expected, channels_last))
    p = fill(
        Upfirdn2d,
        x=x,
        f=f,
        y=y,
        **dict(zip(("batch", "channels", "in_height", "in_width"), x.shape, strict=True)),
        out_height=y.shape[2],
        out_width=y.shape[3],
        **dict(zip(("filter_height", "filter_width"), f.shape, strict=True)),
        **dict(up_x=up[0], up_y=up[1], down_x=down[0], down_y=down[1], left=padding[0], top=padding[2]),
        flip_filter=flip,
        channels_last=channels_last,
        gain=1.5,
    )
    host.run_upfirdn2d(ctypes.byref(p), values, *kernel)
    assert guards_hold(y)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)


SHAPES = [((2, 3, 5, 7), False, 1), ((2, 3, 5, 7), True, 1), ((1, 8, 6, 3), True, 4), ((2, 8, 1, 9), True, 8)]


@needs_compiler
@pytest.mark.parametrize("factors", [(u, d) for u in range(1, 5) for d in range(1, 5)], ids=str)
def test_upfirdn2d_on_the_host_at_any_rate(host: ctypes.CDLL, factors: tuple[int, int]) -> None:
    torch.manual_seed(0)
    up, down = factors
    filters = [torch.rand(3, 2), torch.rand(1, 5), torch.rand(4, 4)]
    paddings = [(4, 4, 4, 4), (7, 2, 3, 9), (5, -1, -1, 6), (-1, 5, 5, -1)]
    for (shape, last, values), f, pad, flip in itertools.product(SHAPES, filters, paddings, [False, True]):
        pairs = [up, 5 - up], [down, 5 - down]  # other rates along y
        run_upfirdn2d(host, torch.randn(shape), f, *pairs, pad, flip, last, values, (0, 0))


@needs_compiler
@pytest.mark.parametrize("kernel", [(1, 1), (2, 1), (1, 2)], ids=str)
def test_upfirdn2d_on_the_host_with_fixed_rates(host: ctypes.CDLL, kernel: tuple[int, int]) -> None:
    torch.manual_seed(0)
    up, down = ([factor] * 2 for factor in kernel)
    pads = itertools.product([-1, 2, 5], [2, 4], [-1, 2, 5, 8], [4, 7])
    for (shape, last, values), pad, flip in itertools.product(SHAPES, pads, [False, True]):
        run_upfirdn2d(host, torch.randn(shape), torch.rand(4, 4), up, down, pad, flip, last, values, kernel)


# --- building ----------------------------------------------------------------------------------------------------

has_nvcc = shutil.which("nvcc") is not None or Path("/usr/local/cuda/bin/nvcc").exists()
needs_nvcc = pytest.mark.skipif(
    not has_nvcc or torch.version.cuda is None, reason="nvcc, or a CUDA build of PyTorch, is missing"
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.long
@needs_nvcc
def test_kernels_compile_and_register_without_a_gpu(cache: Path) -> None:
    answer = Answer("ops", "build", "--arch", "9.0")
    answer.went_well()
    path = Path(answer.out.splitlines()[0])
    assert path.parent.parent == cache
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    code = (
        "import torch\n"
        "from stylegan2_ada.ops.backend import load_kernels\n"
        "assert load_kernels() == '', load_kernels()\n"
        "assert torch.ops.stylegan2_ada.compiled_for() == '9.0'\n"
        "for name in ('bias_act', 'bias_act_grad', 'upfirdn2d', 'synthesis_tail'):\n"
        "    assert torch._C._dispatch_has_kernel_for_dispatch_key(f'stylegan2_ada::{name}', 'CUDA'), name\n"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


@pytest.fixture
def toolkit(tmp_path: Path) -> Path:
    """A folder that looks like a CUDA toolkit of PyTorch's version, whose compiler always fails."""
    home = tmp_path / "toolkit"
    for name in ("bin/nvcc", "include/cuda_runtime.h", "lib64/libcudart.so"):
        (home / name).parent.mkdir(parents=True)
        (home / name).touch()
    write_nvcc(home, "13.0")
    return home


def write_nvcc(home: Path, version: str) -> None:
    script = f"""#!/bin/sh
case "$*" in
  --version) echo "Cuda compilation tools, release {version}, V{version}.1" ;;
  --list-gpu-arch) echo compute_80; echo compute_90 ;;
  *--dryrun*) echo "#\\$ TOP={home}/bin/.." >&2 ;;
  *) echo "nvcc fatal : out of luck"; exit 1 ;;
esac
"""
    (home / "bin" / "nvcc").write_text(script)
    (home / "bin" / "nvcc").chmod(0o755)


@pytest.fixture
def cuda13(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.version.cuda", "13.2")


def test_toolkit_is_found_behind_a_wrapper(toolkit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper = tmp_path / "elsewhere" / "nvcc"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {toolkit}/bin/nvcc "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:/usr/bin:/bin")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))  # no toolkit
    monkeypatch.delenv("CUDA_PATH", raising=False)
    assert build.find_cuda_home() == toolkit


def test_missing_nvcc_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda13: None) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(build, "FALLBACK_HOME", str(tmp_path / "none"))
    Answer("ops", "build").refused("there is no nvcc", str(tmp_path), "install the CUDA toolkit 13")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--arch", "9"], ["'9' is no compute capability"]),
        (["--arch", "3.5"], ["does not compile for 3.5, but for 8.0, 9.0"]),
        (["--arch", ","], ["names no compute capability"]),
    ],
)
def test_bad_architectures_are_named(toolkit: Path, cuda13: None, options: list[str], said: list[str]) -> None:
    Answer("ops", "build", "--cuda-home", str(toolkit), *options).refused(*said)


def test_folder_that_is_no_toolkit_is_named(tmp_path: Path, cuda13: None) -> None:
    Answer("ops", "build", "--cuda-home", str(tmp_path)).refused(f"{tmp_path} is no CUDA toolkit", "bin/nvcc")


def test_other_cuda_major_is_named(toolkit: Path, cuda13: None) -> None:
    write_nvcc(toolkit, "12.4")
    Answer("ops", "build", "--cuda-home", str(toolkit)).refused("CUDA 12.4", "CUDA 13.2", "toolkit 13")


def test_pytorch_without_cuda_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.version.cuda", None)
    Answer("ops", "build").refused("built without CUDA")


def test_missing_ninja_and_compiler_are_named(toolkit: Path, cuda13: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    Answer("ops", "build", "--cuda-home", str(toolkit)).refused("no-such-compiler")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(toolkit))
    Answer("ops", "build", "--cuda-home", str(toolkit)).refused("pip install viscoin[gpu-ops]")


@needs_compiler
def test_failed_build_leaves_the_old_library(cache: Path, toolkit: Path, cuda13: None) -> None:
    old = backend.library_path()
    old.parent.mkdir(parents=True)
    old.write_text("old")
    answer = Answer("ops", "build", "--cuda-home", str(toolkit))
    answer.refused("do not compile", "out of luck")
    assert Path(answer.err.rpartition("the full log is ")[2].strip()).is_file()
    assert old.read_text() == "old"


# --- checking ----------------------------------------------------------------------------------------------------


def test_check_without_kernels_says_so_and_compares_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stylegan2_ada.ops.check.CPU_SHAPE", (1, 2, 4, 4))
    answer = Answer("ops", "check", "--device", "cpu").went_well()
    assert answer.out.startswith("The operations run in plain PyTorch: the kernels need CUDA, and this is cpu.")
    for word in ("synthesis_tail", "upsample2d", "bfloat16", "channels-last", "backward", "All agree."):
        assert word in answer.out


def test_check_fails_when_the_implementations_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stylegan2_ada.ops.check.CPU_SHAPE", (1, 2, 4, 4))
    monkeypatch.setitem(check.OPERATORS, "filter2d", lambda x, s, n, b: x * 1.1)
    answer = Answer("ops", "check", "--device", "cpu")
    assert answer.code == 1
    differing = [line for line in answer.out.splitlines() if "DIFFERS" in line]
    assert differing and all(line.startswith("filter2d") for line in differing)
