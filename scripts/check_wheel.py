"""Builds the wheel, installs it into a fresh environment and works with it outside the repository: `make check-wheel`.

The installed files are read-only meanwhile, also for root, and must be the same afterwards.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from check_minimal_install import ROOT, install

PACKAGES = ("viscoin", "stylegan2_ada")
# Root may write everywhere; without this capability it may not.
AS_ANYBODY = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 and shutil.which("setpriv") else []


@dataclass(frozen=True)
class Check:
    """A command, what it must print and which file it must leave in its folder."""

    command: Sequence[str | Path]
    says: str = ""
    leaves: str | None = None
    folder: str = "empty"


USER = "from viscoin.errors import Refused\nreveal_type(Refused)\n"
AMPLIFY = ["viscoin", "amplify", "--concept-top-k", "5", "--out", "amplified"]
TO_PICKLE = ["to-pickle", "--output", "birds.pkl"]
OLD_PATH = ["--checkpoints", "assets/birds/viscoin.safetensors"]

CHECKS = (
    Check(["viscoin", "--help"], "Usage: viscoin "),
    Check(["python", "-m", "viscoin", "--help"], "Usage: python -m viscoin "),
    Check(["python", ROOT / "main.py", "--help"], f"Usage: python {ROOT}/main.py "),
    Check(["viscoin", "test", "classifier", "--dataset", "unknown"], "Error: "),
    # Beside an unrelated package of the same name, which `python -m` alone would take.
    Check(["viscoin", *TO_PICKLE, *OLD_PATH], leaves="birds.pkl", folder="unrelated"),
    Check(["python", "-P", "-m", "viscoin", "--help"], "Usage: python -m viscoin ", folder="unrelated"),
    Check(["python", ROOT / "main.py", "--help"], "Usage: ", folder="unrelated"),
    Check(["python", "-m", "viscoin", *TO_PICKLE], leaves="birds.pkl"),
    Check(AMPLIFY, leaves="amplified/amplification.png"),
    Check(["viscoin", "test", "viscoin", "--fast"], "accuracy of f"),
    Check(["viscoin", "demo", "--quick"], leaves="runs/demo/report.html"),
)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="viscoin-wheel-") as name:
        problems = list(check(Path(name)))
    print(*problems or ["the wheel works"], sep="\n")
    sys.exit(bool(problems))


def check(folder: Path) -> Iterator[str]:
    """What is wrong with the packages that are built from this tree."""
    wheel, difference = build(folder / "dist")
    if difference:
        yield f"the tree and the sdist give different wheels: {', '.join(sorted(difference))}"
    python = install(folder / "environment", wheel)
    (site,) = (folder / "environment").glob("lib/python*/site-packages")
    lock(site)
    before = state(site)
    yield from types(folder, python)
    for each in CHECKS:
        yield from run(each, folder)
    if changed := {path for path, _ in before.items() ^ state(site).items()}:
        yield f"installed files changed: {', '.join(sorted(map(str, changed)))}"


def build(folder: Path) -> tuple[Path, set[str]]:
    """The wheel made from the sdist, and the names of files in which the one made from the tree differs."""
    command = [sys.executable, "-m", "build", "--no-isolation", ROOT, "--outdir"]
    for arguments in ([folder / "tree", "--wheel"], [folder]):
        subprocess.run([*command, *arguments], check=True, stdout=subprocess.DEVNULL)
    (direct,), (wheel,), (sdist,) = folder.glob("tree/*.whl"), folder.glob("*.whl"), folder.glob("*.tar.gz")
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB; {sdist.name}: {sdist.stat().st_size / 1e6:.1f} MB")
    return wheel, {name for name, _ in contents(direct).items() ^ contents(wheel).items()}


def contents(wheel: Path) -> dict[str, int]:
    """Checksums by name."""
    with zipfile.ZipFile(wheel) as file:
        return {info.filename: info.CRC for info in file.infolist()}


def lock(site: Path) -> None:
    """Take the permission to write the installed packages from everybody."""
    for path in files(site):
        path.chmod(path.stat().st_mode & ~0o222)


def state(site: Path) -> Mapping[Path, tuple[int, int]]:
    """Time of the last change and size by path."""
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in files(site)}


def files(site: Path) -> list[Path]:
    return [path for name in PACKAGES for path in (site / name, *(site / name).rglob("*"))]


def types(folder: Path, python: Path) -> Iterator[str]:
    """Whether mypy reads the annotations of the installed packages."""
    (folder / "user.py").write_text(USER)
    command = [sys.executable, "-m", "mypy", "--python-executable", python, "--config-file=", "user.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode or "def (parameter: str | None" not in done.stdout:
        yield f"mypy: {done.stdout}{done.stderr}"


def run(check: Check, folder: Path) -> Iterator[str]:
    """What is wrong with the outcome of a command."""
    here = folder / check.folder
    if not here.exists():
        here.mkdir()
    if check.folder == "unrelated":
        (here / "viscoin").mkdir(exist_ok=True)
        (here / "viscoin" / "__init__.py").write_text("raise ImportError('the unrelated package')")
    start = time.monotonic()
    text = " ".join(map(str, check.command))
    done = subprocess.run(
        [*AS_ANYBODY, *check.command], cwd=here, env=environment(folder), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    print(f"{time.monotonic() - start:6.1f} s  {text}", flush=True)
    expected = 2 if check.says.startswith("Error") else 0
    if done.returncode != expected or check.says not in done.stdout:
        yield f"{text}: exit code {done.returncode}, without {check.says!r}: {done.stdout[-2000:]}"
    elif check.leaves and not (here / check.leaves).is_file():
        yield f"{text}: left no {check.leaves}: {done.stdout[-2000:]}"


def environment(folder: Path) -> dict[str, str]:
    """The variables of a user who has the fresh environment activated, and nothing in the caches."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "XDG_", "VISCOIN"))}
    return kept | {
        "PATH": f"{folder / 'environment' / 'bin'}:{os.environ['PATH']}",
        "HOME": str(folder),
        "PYTHONPYCACHEPREFIX": str(folder / "bytecode"),
    }


if __name__ == "__main__":
    main()
