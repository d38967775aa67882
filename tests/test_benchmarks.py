"""Benchmarks start, print their tables at toy size and refuse bad options; their numbers are not tested."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_models import tiny_recipe

from benchmarks import concepts, gan, loader, openmp, serving, startup, step, timing
from benchmarks.timing import FlopCounter
from benchmarks.training_step import Split, StepCase, TrainingStep, step_parts

BENCHMARKS = {
    module.__name__.rpartition(".")[2]: module for module in (concepts, gan, loader, openmp, serving, startup, step)
}
BENCHMARKS = {name: getattr(module, name) for name, module in BENCHMARKS.items()}
ROOT = Path(__file__).parents[1]


def run(name: str, *options: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, ROOT / "benchmarks" / f"{name}.py", *options]
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=600, cwd=ROOT)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_recipe().to_yaml())
    return path


def error(name: str, options: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", [f"{name}.py", *options])
        timing.start(BENCHMARKS[name])
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_every_program_is_known() -> None:
    programs = {path.stem for path in ROOT.glob("benchmarks/*.py") if "__main__" in path.read_text()}
    assert programs == set(BENCHMARKS)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_option_that_does_not_exist(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "No such option" in error(name, ["--nonsense"], capsys)


BAD = [
    ("gan", "--sizes 64,99", "--sizes 99: unknown; choose from 64, paper256"),
    ("gan", "--dtype float8", "--dtype float8: unknown; choose from float32, bfloat16"),
    ("gan", "--device tpu", "--device tpu: unknown; choose from auto, cpu, cuda"),
    ("step", "--dtypes float8", "--dtypes float8: unknown; choose from float32, bfloat16"),
    ("step", "--processes 0", "--processes 0: not a whole number from 1"),
    ("step", "--threads 1 --size nosuch", "no recipe or file named 'nosuch'"),
    ("loader", "--workers 1,x", "--workers x: not a whole number from 1"),
    ("concepts", "--threads 1 --model nosuch.safetensors", "nosuch.safetensors"),
    ("startup", "--commands help,nosuch", "--commands nosuch: unknown"),
    ("serving", "--requests 0", "greater than or equal to 8"),
    ("openmp", "--threads 0", "greater than or equal to 1"),
]


@pytest.mark.parametrize(("name", "options", "reason"), BAD, ids=[f"{name} {options}" for name, options, _ in BAD])
def test_bad_options(name: str, options: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert reason in error(name, options.split(), capsys)


def test_startup_of_one_command_from_a_checkout() -> None:
    result = run("startup", "--commands", "help", "--rounds", 1)
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)["commands"]
    assert [row["name"] for row in rows] == ["help"]
    assert all(0 < row["cpu_seconds_min"] <= row["cpu_seconds_median"] for row in rows)
    assert [line.split()[0] for line in result.stderr.splitlines()] == ["s", "help"]


def test_startup_says_which_command_failed() -> None:
    with pytest.raises(ValueError, match=r"python main.py nosuch ended with exit code 2: .*No such command"):
        startup.run([startup.MAIN, "nosuch"])


def test_openmp_sets_the_variable_for_new_processes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(openmp.VARIABLE, "ACTIVE")
    seen: list[str | None] = []

    class Here:
        """A pool that only looks at the environment that its processes would get."""

        def __init__(self, *arguments: object) -> None:
            seen.append(os.environ.get(openmp.VARIABLE))
            raise InterruptedError

    monkeypatch.setattr(openmp, "Pool", Here)
    for policy in openmp.POLICIES:
        with pytest.raises(InterruptedError):
            openmp.in_fresh_process(policy, 1, 1, 0)
    assert seen == [None, "PASSIVE"]
    assert os.environ[openmp.VARIABLE] == "ACTIVE"


SMALL = {
    "gan": ("--sizes 64 --rounds 1 --seconds 0 --threads 1", "training_iteration"),
    "loader": ("--sizes 32 --workers 1 --images 100 --epochs 2 --rounds 1", "torchvision MiB"),
    "concepts": ("--images 64 --batch-size 32 --rounds 1 --threads 1", "ratio"),
    "openmp": ("--busy 1 --threads 1 --batch-size 2 --rounds 1 --seconds 0", "PASSIVE"),
}


@pytest.mark.long
@pytest.mark.parametrize("name", SMALL)
def test_program_prints_its_numbers(name: str) -> None:
    options, word = SMALL[name]
    result = run(name, *options.split())
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)
    assert word in result.stdout + result.stderr


def test_step_is_split_into_its_parts(recipe: Path) -> None:
    taken = TrainingStep(StepCase(str(recipe), "float32", "eager", 1), "cpu")
    with FlopCounter() as counter:
        parts = Split(taken, lambda: counter.total).of_steps(seconds=0)
    assert set(parts) == set(step_parts())
    assert sum(parts.values()) == taken.flops()
    kernels = taken.task.ensemble.concept_extractor.conv5.weight  # whose orthogonality is the one product of the losses
    assert parts["losses"] == 2 * len(kernels) * kernels.numel()
    assert parts["data"] == parts["optimiser"] == parts["rest"] == 0
    assert parts["f backward"] < parts["f"]
    assert "features" not in vars(taken.task.ensemble.classifier)  # nothing is left wrapped

    row = step.step_report(taken.case, [taken.measure(0, time.process_time) | {"peak": 1e12}])
    assert 0 < row["share_outside_networks"] < 1
    assert row["fraction_of_peak"] == pytest.approx(row["gflop_per_image"] * row["images_per_second"] / 1e3, abs=1e-3)
    tables = step.step_tables([row | {"peak_memory_mib": 1}])
    table = "\n".join(map(timing.aligned, tables))
    assert all(part in table for part in ("Omega, G backward", "optimiser", "outside networks"))


@pytest.mark.long
def test_step_shared_by_two_processes(recipe: Path) -> None:
    options = ["--size", recipe, "--dtypes", "float32", "--processes", 2, "--rounds", 1, "--seconds", 0]
    result = run("step", *options, "--threads", 1)
    assert result.returncode == 0, result.stderr
    (row,) = json.loads(result.stdout)["steps"]
    assert row["images_per_second"] > 0
    assert 0 < row["fraction_of_peak"] < 1
    assert (row["batch"], row["processes"]) == (6, 2)
