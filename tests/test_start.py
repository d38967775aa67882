"""What commands import before their first output, and how their threads wait: a light command stays light."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import write_models

from viscoin.cli import WAITING

ROOT = Path(__file__).parents[1]
HEAVY = {
    "torch", "torchvision", "timm", "torchmetrics", "lightning_fabric", "lpips", "sklearn", "scipy", "pandas",
    "huggingface_hub", "cv2", "matplotlib", "matplotlib.pyplot", "wandb", "mlflow", "tensorboard", "optuna", "numpy",
}  # fmt: skip
LIST = """
import json, sys
from viscoin.cli import main
try:
    main()
finally:
    print(json.dumps(sorted(sys.modules)))
"""
SMALL = [f"--set=dataset.{key}" for key in ("train=64", "validation=24", "test=40", "resolution=32")]
# Commands, and the most that they may import of these.
COMMANDS = {
    "--help": ([], set()),
    "train --help": ([], set()),
    "logs": (["--logs-path", "run"], {"numpy", "matplotlib"}),
    "to-pickle": (["--checkpoints", "viscoin.safetensors", "--output", "x.pkl"], {"numpy", "torch"}),
    "data birds info": (SMALL, {"numpy", "matplotlib", "cv2"}),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "l1": 0.5}\n{"step": 2, "l1": 0.4}\n')
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_light_commands_import_little(here: Path, command: str) -> None:
    options, allowed = COMMANDS[command]
    if command == "to-pickle":
        write_models(here)
    done = subprocess.run(
        [sys.executable, "-c", LIST, *command.split(), *options], cwd=here, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout.splitlines()[-1])) & HEAVY <= allowed


@pytest.mark.parametrize(
    ("given", "policy"),
    [
        ({}, "PASSIVE"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        ({"GOMP_SPINCOUNT": "9"}, None),
        ({"KMP_BLOCKTIME": "9"}, None),
    ],
)
def test_threads_do_not_spin_unless_the_user_says_so(given: dict[str, str], policy: str | None) -> None:
    kept = {key: value for key, value in os.environ.items() if key not in WAITING}
    code = """
import os
from viscoin.cli import main
try:
    main()
finally:
    print(os.environ.get("OMP_WAIT_POLICY"))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"], cwd=ROOT, env=kept | given, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == str(policy), done.stderr
