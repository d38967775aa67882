"""Which version of this code a run or a model comes from."""

import subprocess
from functools import cache
from pathlib import Path


@cache
def code_revision() -> str:
    """The commit of this code, or "unknown" where it does not lie in a git repository."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return answer.stdout.strip() or "unknown"
