"""Installs VisCoIN without extras, and with each extra alone, and imports all of it: `make check-install`.

Every module must import without extras, but for packages that are nothing without one (`WHOLE`). What needs an extra
says which: `pip install viscoin[clip]`.
"""

import argparse
import importlib
import importlib.metadata
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
WHOLE = {"viscoin.serving": "app", "viscoin.dashboard": "app"}  # packages of which all needs an extra


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--here", metavar="EXTRA", help="check this environment, which has that extra or `none`")
    here = parser.parse_args().here
    if here is not None:
        problems = list(check(here))
        print(*problems or [f"{here}: all modules import"], sep="\n")
        sys.exit(bool(problems))
    with tempfile.TemporaryDirectory(prefix="viscoin-install-") as folder:
        sys.exit(any([not install_and_check(Path(folder), extra) for extra in ("none", *EXTRAS)]))


def install_and_check(folder: Path, extra: str) -> bool:
    """Bring the environment in `folder` to the core and one extra, in the pinned versions, and look at it."""
    python = install(folder, "--editable", str(ROOT) if extra == "none" else f"{ROOT}[{extra}]")
    command = [python, __file__, "--here", extra]
    return subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONWARNINGS": "ignore"}).returncode == 0


def install(folder: Path, *wanted: str | Path) -> Path:
    """Make the environment in `folder` hold this and its dependencies alone, as pinned; returns its Python."""
    uv = [sys.executable, "-m", "uv"]
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    options = ["--quiet", "--exact", "--python", python, "--constraint", ROOT / "requirements.txt"]
    subprocess.run([*uv, "pip", "install", *options, *wanted], check=True)
    return python


def check(extra: str) -> Iterator[str]:
    """What is wrong with an environment that has the core and this extra."""
    for name in modules():
        whole = next((needed for package, needed in WHOLE.items() if name.startswith(package)), None)
        if whole is not None and not set(EXTRAS[whole]) <= set(EXTRAS.get(extra, [])):
            continue
        try:
            importlib.import_module(name)
        except Exception as error:
            yield f"{extra}: {name} does not import: {type(error).__name__}: {error}"
    for name in packages(EXTRAS.get(extra, [])):
        try:
            importlib.import_module(name)
        except Exception as error:
            yield f"{extra}: its package {name} does not import: {type(error).__name__}: {error}"
    for needed, use in users().items():
        try:
            use()
        except ValueError as error:
            asks_for_it = f"pip install viscoin[{needed}]" in str(error)
            if asks_for_it == (needed == extra):
                yield f"{extra}: what needs the extra {needed} says: {error}"
        else:
            brought = set(EXTRAS[needed]) <= set(EXTRAS.get(extra, []))
            if not brought and needed != "gpu-ops":  # a ninja of the system will do as well
                yield f"{extra}: works without the extra {needed}; is that extra needed?"


def modules() -> list[str]:
    """Every module of both packages."""
    names = []
    for top in ("viscoin", "stylegan2_ada"):
        package = importlib.import_module(top)
        names += [top, *(found.name for found in pkgutil.walk_packages(package.__path__, f"{top}."))]
    return names


def packages(requirements: list[str]) -> list[str]:
    """Names to import of the distributions of an extra."""
    wanted = {canonical(re.split(r"[<>=!~ \[;]", text)[0]) for text in requirements}
    found = importlib.metadata.packages_distributions().items()
    names = [name for name, origins in found if wanted & set(map(canonical, origins))]
    return sorted(name for name in names if name.isidentifier() and not name.startswith("_"))


def canonical(distribution: str) -> str:
    """One spelling for each distribution (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def users() -> dict[str, Callable[[], object]]:
    """For each extra that the code imports, a call that needs it (for a model that does not exist: no download)."""
    from stylegan2_ada import metrics
    from stylegan2_ada.ops.build import find_ninja
    from viscoin.attribution.deeplift import load_captum
    from viscoin.cli.serve import load_service
    from viscoin.export import onnx_packages
    from viscoin.models.scorers import load_clip
    from viscoin.runs.tracking import parse_trackers
    from viscoin.sweep.study import load_optuna

    return {
        "app": load_service,
        "attribution": load_captum,
        "gpu-ops": find_ninja,
        "metrics": lambda: metrics._torch_fidelity("metric_kid"),
        "clip": lambda: load_clip("no such model", "none"),
        "export": onnx_packages,
        "sweep": load_optuna,
        "tracking": lambda: parse_trackers(["tensorboard,mlflow,wandb"]),
    }


if __name__ == "__main__":
    main()
