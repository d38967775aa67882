"""Which version of this code a run or a model comes from."""

import subprocess
import tomllib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@cache
def code_revision() -> str:
    """The commit of this code, or "unknown" where it is not checked out: installed, or within another repository."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "--show-toplevel", "--short", "HEAD"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    top, _, commit = answer.stdout.strip().partition("\n")
    return commit if commit and Path(top).resolve() == ROOT else "unknown"


def describe_version() -> str:
    """Version and revision of this code, and the version of PyTorch, without importing it."""
    try:
        own = version("viscoin")
    except PackageNotFoundError:  # run from a checkout
        own = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    return f"viscoin {own}, revision {code_revision()}, torch {version('torch')}"
