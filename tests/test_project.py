"""The files around the code: packaging, pins, environments, make targets, job templates."""

import ast
import importlib.metadata
import importlib.resources
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from viscoin.kinds import CHAIN
from viscoin.models.files import ASSETS

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKE_TARGETS = (
    "setup",
    "demo",
    "test",
    "test-fast",
    "test-rest",
    "test-all",
    "docs",
    "check-install",
    "check-wheel",
    "lint",
    "typecheck",
    "format",
    "clean",
)

CHECK_INSTALL = ROOT / "scripts" / "check_minimal_install.py"

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
needs_nix = pytest.mark.skipif(
    shutil.which("nix-instantiate") is None, reason="nix-instantiate (Debian: nix-bin) is not installed"
)


def declared(*groups: str) -> dict[str, Requirement]:
    """The requirements of pyproject.toml by name: the core, and the named extras."""
    texts = PROJECT["dependencies"] + [text for group in groups for text in PROJECT["optional-dependencies"][group]]
    return {canonicalize_name(Requirement(text).name): Requirement(text) for text in texts}


def run(*command: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    # Below `make test` a make would take over its flags and announce its folder.
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)


# --- dependencies


def pins() -> dict[str, str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    matches = [re.fullmatch(r"([\w.-]+)==(\d[\w.]*)", line) for line in lines]
    assert all(matches), f"not of the form name==version: {lines[matches.index(None)]!r}"
    return {canonicalize_name(match[1]): match[2] for match in matches if match}


def test_every_declared_package_is_pinned_and_nothing_else() -> None:
    assert pins().keys() == declared(*PROJECT["optional-dependencies"]).keys()
    assert len(pins()) == len((ROOT / "requirements.txt").read_text().splitlines())


def test_pins_are_versions_that_pyproject_allows() -> None:
    for name, requirement in declared(*PROJECT["optional-dependencies"]).items():
        assert requirement.specifier.contains(pins()[name]), f"{requirement} does not allow {pins()[name]}"


def test_conda_environment_takes_its_packages_from_the_same_list() -> None:
    environment = yaml.safe_load((ROOT / "conda.yml").read_text())
    python, *tools, pip = environment["dependencies"]
    assert environment["name"] == PROJECT["name"]
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.removeprefix("python="))
    assert not {canonicalize_name(tool) for tool in tools} & pins().keys()
    assert pip == {"pip": ["-r requirements.txt", "-e ."]}


@needs_nix
@pytest.mark.parametrize("path", sorted(ROOT.glob("*.nix")), ids=lambda path: path.name)
def test_nix_file_parses(path: Path) -> None:
    done = run("nix-instantiate", "--parse", str(path))
    assert done.returncode == 0, done.stderr


# As much of nixpkgs as the flake uses; packages are their own names.
NIXPKGS = """
arguments:
let
  named = name: { outPath = name; };
in
assert arguments.config.allowUnfree; # else CUDA is refused
{
  lib.makeLibraryPath = packages: builtins.concatStringsSep ":" (map (package: package.outPath) packages);
  stdenv.cc.cc.lib = named "libstdc++";
  mkShell = {
    __functor = self: attributes: attributes // { stdenv = "stdenv"; };
    override = changes: attributes: attributes // changes;
  };
  cudaPackages_13 = { backendStdenv = "stdenv of nvcc"; cudatoolkit = named "cudatoolkit"; };
} // builtins.listToAttrs (
  map (name: { inherit name; value = named name; }) [ "zlib" "python312" "gnumake" "git" "gcc" ]
)
"""
FLAKE = """
let
  lib.genAttrs = names: make: builtins.listToAttrs (map (name: { inherit name; value = make name; }) names);
in
((import FLAKE).outputs { nixpkgs = { inherit lib; outPath = NIXPKGS; }; }).devShells
"""


@needs_nix
def test_nix_shells_bring_python_and_tools_and_take_packages_from_the_same_list(tmp_path: Path) -> None:
    (tmp_path / "default.nix").write_text(NIXPKGS)
    code = FLAKE.replace("NIXPKGS", str(tmp_path)).replace("FLAKE", str(ROOT / "flake.nix"))
    done = run("nix-instantiate", "--eval", "--strict", "--json", "--store", "dummy://", "--expr", code)
    assert done.returncode == 0, done.stderr
    shells = json.loads(done.stdout)
    assert {"x86_64-linux", "aarch64-linux"} == shells.keys()
    for system in shells.values():
        plain, cuda = system["default"], system["cuda"]
        assert (cuda["CUDA_HOME"], cuda["stdenv"]) == ("cudatoolkit", "stdenv of nvcc")
        assert "cudatoolkit" in cuda["packages"] and "gcc" in plain["packages"]
        assert "CUDA_HOME" not in plain
        for shell in (plain, cuda):
            (python,) = [name for name in shell["packages"] if name.startswith("python")]
            assert SpecifierSet(PROJECT["requires-python"]).contains(f"3.{python.removeprefix('python3')}")
            assert shell["shellHook"].startswith("make setup && ")
            assert not set(shell["packages"]) & pins().keys()


def test_extras() -> None:
    extras = {"app", "attribution", "clip", "dev", "docs", "export", "gpu-ops", "metrics", "sweep", "tracking"}
    assert PROJECT["optional-dependencies"].keys() == extras
    core = declared().keys()
    for extra in PROJECT["optional-dependencies"]:
        own = [canonicalize_name(Requirement(text).name) for text in PROJECT["optional-dependencies"][extra]]
        assert own == sorted(own) and not core & set(own), extra
        row = f"| `{extra}` |"
        assert row in (ROOT / "CONTRIBUTING.md").read_text()


@pytest.mark.slow
def test_without_extras_every_module_imports_or_says_which_one_it_needs() -> None:
    """As `make check-install`, which takes minutes, but with packages hidden instead of absent."""
    code = f"""
import runpy, shutil
from importlib.machinery import PathFinder

check = runpy.run_path({str(CHECK_INSTALL)!r})
hidden = {{name for extra in check["EXTRAS"] for name in check["packages"](check["EXTRAS"][extra])}}
print(*sorted(hidden))

find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *others: None if name.partition(".")[0] in hidden else find(name, *others)
shutil.which = lambda *arguments, **options: None  # a ninja of the system
print(*check["check"]("none"), sep="\\n")
"""
    done = run(sys.executable, "-W", "ignore", "-c", code, timeout=600)
    assert done.returncode == 0, done.stderr
    hidden, *problems = done.stdout.splitlines()
    assert {"open_clip", "ninja", "torch_fidelity", "pytest"} <= set(hidden.split())
    assert [line for line in problems if line] == []


def test_messages_name_extras_that_exist() -> None:
    files = [path for folder in ("viscoin", "stylegan2_ada", "scripts", "docs") for path in (ROOT / folder).rglob("*")]
    texts = [path.read_text() for path in [*files, *ROOT.glob("*.md")] if path.suffix in (".py", ".md")]
    named = {name for text in texts for name in re.findall(r"pip install viscoin\[([\w-]+)\]", text)}
    used = {"app", "attribution", "clip", "export", "gpu-ops", "metrics", "sweep", "tracking"}
    assert used <= named <= PROJECT["optional-dependencies"].keys()


def imports(path: Path) -> Iterator[str]:
    """Top-level names that a file imports, at any depth of the code."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize(
    ("folders", "groups"),
    [
        (
            ("viscoin", "stylegan2_ada"),
            ("app", "attribution", "clip", "export", "gpu-ops", "metrics", "sweep", "tracking"),
        ),
        (("tests",), tuple(PROJECT["optional-dependencies"])),
    ],
)
def test_every_imported_package_is_declared(folders: tuple[str, ...], groups: tuple[str, ...]) -> None:
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    own = {"viscoin", "stylegan2_ada", "benchmarks", "tests", "main", "example"} | {path.stem for path in files}
    distributions = importlib.metadata.packages_distributions()
    allowed = declared(*groups).keys() | ({"packaging"} if "dev" in groups else set())  # pytest itself needs packaging
    for path in files:
        for name in set(imports(path)) - own - sys.stdlib_module_names:
            origins = {canonicalize_name(origin) for origin in distributions.get(name, [name])}
            assert origins & allowed, f"{path.relative_to(ROOT)} imports {name}, which pyproject.toml does not list"


# --- packaging and entry points


def test_main_prints_help_without_torch() -> None:
    code = (
        "import runpy, sys; sys.argv = ['main.py', '--help']\n"
        "try: runpy.run_path('main.py', run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "print('heavy:', *sorted({'torch', 'timm', 'matplotlib', 'cv2'} & sys.modules.keys()))"
    )
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert "amplify" in done.stdout
    assert done.stdout.splitlines()[-1].strip() == "heavy:"


def test_all_ways_to_start_are_the_same() -> None:
    module, _, function = PROJECT["scripts"]["viscoin"].partition(":")
    assert f"from {module} import {function}\n" in (ROOT / "main.py").read_text()
    own = ROOT / (module.replace(".", "/") + ".py")
    assert own.name == "__main__.py" and f"def {function}() -> None:" in own.read_text()
    assert own.read_text().endswith(f'if __name__ == "__main__":\n    {function}()\n')


def test_packages_hold_the_shipped_models_and_the_marker_of_types() -> None:
    for package in ("viscoin", "stylegan2_ada"):
        assert importlib.resources.files(package).joinpath("py.typed").is_file()
    shipped = importlib.resources.files("viscoin") / "assets" / "birds"
    assert {f"{kind}.safetensors" for kind in CHAIN} <= {path.name for path in shipped.iterdir()}
    assert shipped.joinpath("gan.safetensors") == ASSETS / "birds" / "gan.safetensors"


def test_links_of_the_readme_lead_to_the_repository_from_everywhere() -> None:
    absolute = runpy.run_path(str(ROOT / "hatch_build.py"))["absolute"]
    page, there = "https://github.com/a/b/blob/main/", "https://github.com/a/b/raw/main/"
    for given, expected in {
        "[x](docs/x.md#y)": f"[x]({page}docs/x.md#y)",
        "![x](docs/x.png)": f"![x]({there}docs/x.png)",
        '<img src="docs/x.svg" width="80">': f'<img src="{there}docs/x.svg" width="80">',
        "[![x](x.svg)](LICENSE)": f"[![x]({there}x.svg)]({page}LICENSE)",
        "[x](https://e.org/x.png) [y](#y) f(x[0])": "[x](https://e.org/x.png) [y](#y) f(x[0])",
    }.items():
        assert absolute(given, "https://github.com/a/b") == expected
    readme = absolute((ROOT / "README.md").read_text(), PROJECT["urls"]["Repository"])
    assert all(target.startswith(("https:", "#")) for target in re.findall(r"\]\(([^)\s]+)\)", readme))


@pytest.mark.slow
def test_wheel_holds_all_that_the_packages_need(tmp_path: Path) -> None:
    done = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    held = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    files = [path for package in ("viscoin", "stylegan2_ada") for path in (ROOT / package).rglob("*") if path.is_file()]
    needed = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    assert {"viscoin/py.typed", "stylegan2_ada/py.typed", "viscoin/assets/birds/viscoin.safetensors"} <= needed
    assert any(name.endswith(".yaml") for name in needed)
    assert needed <= held, sorted(needed - held)
    assert {name.partition("/")[0] for name in held} == {
        "viscoin",
        "stylegan2_ada",
        f"viscoin-{PROJECT['version']}.dist-info",
    }


# --- make, hooks, continuous integration


@needs_make
@pytest.mark.parametrize("target", MAKE_TARGETS)
def test_make_target_exists(target: str) -> None:
    done = run("make", "--dry-run", "--always-make", target)
    assert done.returncode == 0, done.stderr
    assert target == "clean" or "uv pip install" in done.stdout


@needs_make
@pytest.mark.parametrize(("target", "chosen"), [("test", ' -m "not long"'), ("test-all", "")])
def test_make_test_runs_all_checks_and_ends_with_pytest(target: str, chosen: str) -> None:
    *before, last = run("make", "--dry-run", target).stdout.splitlines()
    assert "-m pytest" in last and last.endswith(f"--dist worksteal{chosen}")
    assert all(any(check in line for line in before) for check in ("ruff check", "ruff format", "-m mypy"))


@needs_make
def test_make_test_rest_runs_what_make_test_leaves_out() -> None:
    assert run("make", "--dry-run", "test-rest").stdout.splitlines()[-1].endswith("--dist worksteal -m long ")


@needs_make
def test_make_setup_names_the_python_that_is_missing() -> None:
    done = run("make", "--always-make", "setup", "PYTHON3=python2.0")
    assert done.returncode != 0
    assert "3.11 or newer" in done.stderr and "python2.0" in done.stderr


def test_continuous_integration_runs_the_tests_and_checks_installing() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    last = [line.split()[:2] for line in script.read_text().splitlines() if line.startswith("make ")]
    assert last == [["make", "check-install"], ["make", "check-wheel"], ["make", "test"]]
    assert "missing+=(nix-bin)" in script.read_text()
    assert run("bash", "-n", str(script)).returncode == 0


def test_hooks_are_make_targets() -> None:
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = [hook["entry"] for repository in repositories for hook in repository["hooks"]]
    assert {repository["repo"] for repository in repositories} == {"local"}
    assert set(entries) == {"make lint", "make typecheck", "make test-fast"}
