"""Compiles the CUDA kernels ahead of time, with nvcc and ninja; no GPU is needed for it."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from .backend import SOURCES, library_path, load_kernels

COMMON_ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0+PTX")
"""Turing to Hopper, and PTX, which the driver compiles for what comes later."""
FALLBACK_HOME = "/usr/local/cuda"
LOG_LINES = 15  # of a failed build, in the error
CUDA_ADVICE = "install the CUDA toolkit {version} (conda: cuda-nvcc, cuda-cudart-dev) or name it with --cuda-home"

NINJA_FILE = """\
rule cuda
  command = $nvcc {flags} {cuda_flags} -MD -MF $out.d -c $in -o $out
  depfile = $out.d
rule cxx
  command = $cxx {flags} -fPIC -MD -MF $out.d -c $in -o $out
  depfile = $out.d
rule link
  command = $cxx -shared $in {link_flags} -o $out
nvcc = {nvcc}
cxx = {cxx}
{objects}
build kernels.so: link {names}
"""


@dataclass
class Build:
    path: Path
    """The library."""
    architectures: str
    """What it was compiled for, as in "8.0 9.0+PTX"."""
    cuda_home: Path
    seconds: float


def build_kernels(architectures: str | None = None, cuda_home: Path | None = None, verbose: bool = False) -> Build:
    """Compile the kernels into the library that the operations look for; a failed build leaves the old one alone.

    Args:
        architectures: compute capabilities like "8.6;9.0+PTX"; None for those of the visible GPUs, and without any for
            the common ones.
        cuda_home: folder of the CUDA toolkit; None looks for it.
        verbose: print the commands and output of the compilers.

    Raises:
        ValueError: no nvcc, nvcc and PyTorch of different CUDA majors, no ninja or C++ compiler, an architecture that
            nvcc does not know, or code that does not compile.
    """
    start = time.perf_counter()
    if torch.version.cuda is None:
        raise ValueError(f"PyTorch {torch.__version__} is built without CUDA; install a CUDA build of it first")
    home = find_cuda_home(cuda_home)
    nvcc = home / "bin" / "nvcc"
    check_version(nvcc)
    chosen = parse_architectures(architectures or default_architectures(nvcc), nvcc)
    tools = {"ninja": find_ninja(), "nvcc": str(nvcc), "cxx": find_compiler()}

    target = library_path()
    work = target.with_suffix(".build")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / "build.ninja").write_text(ninja_file(home, chosen, tools["nvcc"], tools["cxx"]))
    _run(tools["ninja"], work, verbose)
    os.replace(work / "kernels.so", target)
    shutil.rmtree(work)
    load_kernels.cache_clear()
    return Build(target, " ".join(chosen), home, time.perf_counter() - start)


def find_cuda_home(given: Path | None = None) -> Path:
    """The folder of the CUDA toolkit: the given one, $CUDA_HOME, that of nvcc on PATH, or /usr/local/cuda.

    nvcc on PATH may be a link or a script; so it is asked where its toolkit is.

    Raises:
        ValueError: none of them has nvcc, the headers and the runtime library.
    """
    if given is not None:
        if missing := _missing(given):
            raise ValueError(f"--cuda-home {given} is no CUDA toolkit: it has no {missing}")
        return given
    places = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), _home_of_nvcc(), FALLBACK_HOME]
    candidates = [Path(place) for place in places if place]
    for home in candidates:
        if not _missing(home):
            return home
    version = (torch.version.cuda or "").partition(".")[0]
    looked = "; ".join(dict.fromkeys(f"{home} has no {_missing(home)}" for home in candidates))
    raise ValueError(f"there is no nvcc with its toolkit ({looked}); {CUDA_ADVICE.format(version=version)}")


def _missing(home: Path) -> str:
    for name in ("bin/nvcc", "include/cuda_runtime.h"):
        if not (home / name).is_file():
            return name
    return "" if _library_folder(home) else "lib64/libcudart.so"


def _library_folder(home: Path) -> Path | None:
    return next((home / name for name in ("lib64", "lib") if (home / name / "libcudart.so").exists()), None)


def _home_of_nvcc() -> str | None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    said = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True)
    top = re.search(r"^#\$ TOP=(.+)$", said.stderr, re.MULTILINE)
    return str(Path(top[1].strip()).resolve() if top else Path(nvcc).resolve().parents[1])


def check_version(nvcc: Path) -> None:
    """Raises ValueError unless nvcc and PyTorch are of the same CUDA major."""
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True)
    version = re.search(r"release (\d+)\.(\d+)", said.stdout)
    if version is None:
        raise ValueError(f"{nvcc} --version says no release: {(said.stdout + said.stderr).strip() or 'nothing'}")
    wanted = (torch.version.cuda or "").partition(".")[0]
    if version[1] != wanted:
        raise ValueError(
            f"{nvcc} is of CUDA {version[1]}.{version[2]} and PyTorch {torch.__version__} of CUDA "
            f"{torch.version.cuda}; {CUDA_ADVICE.format(version=wanted)}"
        )


def default_architectures(nvcc: Path) -> str:
    """Those of the visible GPUs; without any, the common ones that nvcc supports."""
    if torch.cuda.is_available():
        capabilities = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
        return " ".join(f"{major}.{minor}" for major, minor in sorted(capabilities))
    known = _supported(nvcc)
    return " ".join(name for name in COMMON_ARCHITECTURES if _number(name) in known)


def parse_architectures(text: str, nvcc: Path) -> list[str]:
    """ "8.6;9.0+PTX", also with commas or spaces, as a list. Raises ValueError for what nvcc cannot compile for."""
    names = [name for name in re.split(r"[;,\s]+", text) if name]
    for name in names:
        if not re.fullmatch(r"\d+\.\d[a-z]?(\+PTX)?", name):
            raise ValueError(f"--arch {text!r}: {name!r} is no compute capability; write it like 8.6 or 9.0+PTX")
    known = _supported(nvcc)
    for name in names:
        if _number(name).rstrip("af") not in known:
            raise ValueError(f"--arch {text!r}: {nvcc} does not compile for {name}, but for {_listed(known)}")
    if not names:
        raise ValueError(f"--arch {text!r} names no compute capability; write it like 8.6 or 9.0+PTX")
    return names


def _listed(numbers: list[str]) -> str:
    return ", ".join(f"{number[:-1]}.{number[-1]}" for number in sorted(numbers, key=int))


def _number(architecture: str) -> str:
    return architecture.removesuffix("+PTX").replace(".", "")


def _supported(nvcc: Path) -> list[str]:
    said = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout
    return re.findall(r"compute_(\d+)", said)


def find_ninja() -> str:
    """Raises ValueError where there is none."""
    if importlib.util.find_spec("ninja") is not None:
        import ninja

        return str(Path(ninja.BIN_DIR) / "ninja")
    if found := shutil.which("ninja"):
        return found
    raise ValueError("there is no ninja; install it with: pip install viscoin[gpu-ops]")


def find_compiler() -> str:
    """$CXX or g++. Raises ValueError where there is none."""
    name = os.environ.get("CXX", "g++")
    if found := shutil.which(name):
        return found
    raise ValueError(f"there is no C++ compiler {name}; install g++, or name another one with the variable CXX")


def ninja_file(home: Path, architectures: list[str], nvcc: str, cxx: str) -> str:
    """The build of kernels.so from all sources."""
    torch_folder = Path(torch.__file__).parent
    includes = [torch_folder / "include", home / "include", *_more_headers()]
    names = ", ".join(architectures)
    flags = ["-std=c++20", "-O3", "-DNDEBUG", f'-DSTYLEGAN2_ADA_ARCHITECTURES="{names}"']
    flags += [option for folder in includes for option in ("-isystem", str(folder))]
    code = []
    for name in architectures:
        number = _number(name)
        code.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if name.endswith("+PTX"):
            code.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    libraries = [torch_folder / "lib", _library_folder(home)]
    link = [f"-L{folder}" for folder in libraries] + ["-lc10", "-lc10_cuda", "-ltorch_cpu", "-lcudart"]
    sources = sorted(SOURCES.glob("*.cu")) + sorted(SOURCES.glob("*.cpp"))
    objects = [f"{source.name}.o" for source in sources]
    rules = [
        f"build {name}: {'cuda' if source.suffix == '.cu' else 'cxx'} {_escaped(str(source))}"
        for name, source in zip(objects, sources, strict=True)
    ]
    return NINJA_FILE.format(
        flags=_quoted(flags),
        cuda_flags=_quoted([*code, "-ccbin", cxx, "-Xcompiler", "-fPIC"]),
        link_flags=_quoted(link),
        nvcc=_quoted([nvcc]),
        cxx=_quoted([cxx]),
        objects="\n".join(rules),
        names=" ".join(objects),
    )


def _more_headers() -> list[Path]:
    """Headers that PyTorch's own CUDA packages bring; a minimal toolkit lacks some that PyTorch's headers include."""
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    major = (torch.version.cuda or "").partition(".")[0]
    return [path for folder in folders if (path := Path(folder) / f"cu{major}" / "include").is_dir()]


def _quoted(arguments: list[str]) -> str:
    """For a command of a ninja file."""
    return shlex.join(arguments).replace("$", "$$")


def _escaped(path: str) -> str:
    """For a path of a ninja file."""
    return re.sub(r"([$ :])", r"$\1", path)


def _run(ninja: str, work: Path, verbose: bool) -> None:
    log = work / "build.log"
    command = [ninja, "-C", str(work), *(["-v"] if verbose else [])]
    with log.open("w") as out:
        code = subprocess.run(command, stdout=None if verbose else out, stderr=subprocess.STDOUT).returncode
    if code == 0:
        return
    if verbose:
        raise ValueError("the kernels do not compile; see above")
    last = " | ".join(line.strip() for line in log.read_text().splitlines()[-LOG_LINES:] if line.strip())
    raise ValueError(f"the kernels do not compile: {last}; the full log is {log}")
