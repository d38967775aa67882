"""SLURM: what is submitted, and, where SLURM is installed, real jobs on a small one that is started here."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from safetensors.torch import load_file
from tiny_models import SETTINGS, Answer, set_options, tiny_recipe

from viscoin.runs.control import read_record
from viscoin.runs.run import Run
from viscoin.slurm import queue
from viscoin.slurm.script import Job, seconds_of, shipped_jobs
from viscoin.slurm.submission import CommandLine, Limits, prepare
from viscoin.training.slurm import Step, fabric_plugins

ROOT = Path(__file__).parents[1]
JOBS = sorted((ROOT / "slurm").glob("*.sbatch"))


def script_of(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


local_slurm = script_of("local_slurm")
absent = local_slurm.missing()
needs_slurm = pytest.mark.skipif(absent is not None, reason=f"no SLURM to test with: {absent}")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in [*os.environ]:
        if name.startswith(("SLURM_", "SBATCH_")):
            monkeypatch.delenv(name)
    return tmp_path


# --- the scripts that come along


def test_there_is_a_job_for_each_training_for_tests_and_for_arrays() -> None:
    assert {path.stem for path in JOBS} == {"classifier", "gan", "viscoin", "test", "array", "sweep"}


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_job_is_what_the_template_says(path: Path) -> None:
    assert path.read_text() == shipped_jobs()[path.stem].script(), "run: python scripts/write_slurm_jobs.py"


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_job_runs_one_command_that_exists(path: Path) -> None:
    (line,) = [line for line in path.read_text().splitlines() if line.startswith("srun ")]
    command = shlex.split(line)
    assert command[:3] == ["srun", "python", "main.py"] and command[-1] == "&" and "$@" in command
    words = [{"$SLURM_NTASKS_PER_NODE": "2", "$SLURM_NNODES": "1", "$run": "run"}.get(word, word) for word in command]
    words = [word for word in words[3:-1] if word not in ("$@", "$SLURM_ARRAY_TASK_ID")]
    words = [word for word in words if word != "--seed"]
    Answer(*words, "--help").went_well()


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_job_is_bash_with_explained_directives(path: Path) -> None:
    assert subprocess.run(["bash", "-n", path]).returncode == 0
    directives = [line for line in path.read_text().splitlines() if line.lstrip("#").startswith("SBATCH")]
    assert all(re.fullmatch(r"##?SBATCH --[\w-]+(=\S+)? +# \S.*", line) for line in directives)
    text = "\n".join(directives)
    assert "#SBATCH --output=runs/%x-" in text and "#SBATCH --open-mode=append" in text
    assert "#SBATCH --requeue" in text
    assert ("#SBATCH --signal=B:USR1@120" in text) == (path.stem != "test")
    assert (ROOT / "runs").is_dir()


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_folder_that_is_given_counts_also_when_submitted_again(path: Path, here: Path) -> None:
    (here / ".venv/bin").mkdir(parents=True)
    (here / ".venv/bin/activate").touch()
    numbers = {"ARRAY_JOB_ID": "6", "ARRAY_TASK_ID": "1", "NTASKS_PER_NODE": "1", "NNODES": "1", "JOB_NAME": "n"}
    environment = surroundings(
        pretend(here / "bin", srun='echo "$@" > called; exit 1'),
        **{f"SLURM_{name}": value for name, value in numbers.items()},
    )
    subprocess.run(["bash", path, "--seed", "3", "--out", "mine"], env=environment, timeout=60)
    (printed,) = Path("runs").glob("*/slurm-7.out")
    again = printed.read_text().splitlines()[-1]
    assert "exit code 1; to resume: sbatch" in again
    assert [re.findall(r"--out (\S+)", text)[-1] for text in (Path("called").read_text(), again)] == ["mine", "mine"]


# --- what a script does, with a pretended SLURM


def pretend(folder: Path, **programs: str) -> str:
    """Programs of the shell in a folder; the PATH in which they come first."""
    folder.mkdir(exist_ok=True)
    for name, text in programs.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def job(**changes: object) -> Job:
    values: dict[str, object] = {
        "head": ("A job.",), "name": "n", "command": "python main.py train gan", "output": "n.out", "folder": "run",
        "activate": ":", "resubmit": "sbatch me",
    }  # fmt: skip
    return Job(**{**values, **changes})  # type: ignore[arg-type]


def surroundings(path: str, **more: str) -> dict[str, str]:
    return (
        os.environ | {"PATH": path, "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_CPUS_PER_TASK": "1"} | more
    )


@pytest.mark.parametrize(
    ("code", "ran", "continues", "requeued"),
    [
        (0, 0, True, False),
        (1, 900, True, False),
        (2, 900, True, False),
        (138, 0, True, True),
        (143, 0, True, True),
        (75, 30, True, False),
        (75, 900, True, True),
        (137, 900, True, True),
        (138, 900, False, False),
    ],
)
def test_which_exit_codes_go_back_into_the_queue(
    here: Path, code: int, ran: int, continues: bool, requeued: bool
) -> None:
    path = pretend(here / "bin", srun=f"exit {code}", scontrol='echo "$@" > asked')
    (here / "job").write_text(job(continues=continues).script())
    done = subprocess.run(
        ["bash", "job"], env=surroundings(path, SECONDS=str(ran)), capture_output=True, text=True, timeout=30
    )
    assert done.returncode == code, done.stderr
    assert Path("asked").exists() == requeued
    if requeued:
        assert Path("asked").read_text() == "requeue 7\n"
    assert ("sbatch me" in done.stdout) == (not requeued and code not in (0, 2))


def test_refused_requeue_says_how_to_go_on(here: Path) -> None:
    path = pretend(here / "bin", srun="exit 138", scontrol="exit 1")
    done = subprocess.run(["bash"], input=job().script(), env=surroundings(path), capture_output=True, text=True)
    assert done.returncode == 138 and "exit code 138; to resume: sbatch me" in done.stdout


def test_warning_reaches_the_step_and_its_exit_code_counts(here: Path) -> None:
    path = pretend(
        here / "bin",
        srun="trap 'sleep 0.3; touch saved; exit 138' USR1; touch ready; while :; do sleep 0.05; done",
        scontrol="touch asked",
    )
    (here / "job").write_text(job().script())
    process = subprocess.Popen(["bash", "job"], env=surroundings(path), stdout=subprocess.DEVNULL)
    until(lambda: Path("ready").exists())
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 138
    assert Path("saved").exists() and Path("asked").exists()


# --- submit, without SLURM


def dry_run(*arguments: object) -> str:
    return Answer("submit", "--dry-run", *arguments).went_well().out


def directives(script: str) -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([\w-]+)=?(\S*)", script, re.MULTILINE))


def command_of(script: str) -> list[str]:
    (line,) = [line for line in script.splitlines() if line.startswith("srun ")]
    return shlex.split(line)


def test_dry_run_prints_the_script_and_does_nothing(here: Path) -> None:
    script = dry_run(
        "--gpus", "a100:2", "--nodes", 3, "--partition", "fast", "--account", "me", "--time", "1-12", "--mem", "8G",
        "--cpus-per-task", 4, "--name", "n", "--", "train", "viscoin", "--dataset", "my birds", "--out", "there",
    )  # fmt: skip
    assert list(here.iterdir()) == []
    assert directives(script) == {
        "job-name": "n", "output": "there/slurm-%j.out", "open-mode": "append", "nodes": "3", "ntasks-per-node": "2",
        "gpus-per-node": "a100:2", "cpus-per-task": "4", "mem": "8G", "time": "1-12", "requeue": "",
        "signal": "B:USR1@120", "partition": "fast", "account": "me",
    }  # fmt: skip
    assert command_of(script)[-11:-1] == [
        "train", "viscoin", "--dataset", "my birds", "--out", "there", "--devices", "2", "--num-nodes", "3",
    ]  # fmt: skip
    assert f"export PATH={Path(sys.executable).parent}:" in script


def test_the_folder_of_the_run_is_decided_when_submitting() -> None:
    script = dry_run("--", "train", "classifier")
    folder = command_of(script)[command_of(script).index("--out") + 1]
    assert re.fullmatch(r"runs/train-classifier-\d{8}-\d{6}", folder)
    assert directives(script)["output"] == f"{folder}/slurm-%j.out"


def test_processes_on_the_cpu_and_commands_that_do_not_go_on() -> None:
    on_cpu = dry_run("--gpus", 0, "--", "train", "gan", "--devices", 3)
    assert directives(on_cpu)["ntasks-per-node"] == "3" and "gpus-per-node" not in directives(on_cpu)
    assert command_of(on_cpu).count("--devices") == 1
    study = command_of(dry_run("--", "sweep", "classifier", "--space", "space.yaml"))
    assert "--devices" not in study and "--num-nodes" not in study and "--out" in study
    file = dry_run("--", "export", "model.safetensors", "--to", "onnx")
    assert "signal" not in directives(file) and "scontrol" not in file and "--devices" not in file


@pytest.mark.parametrize(("time", "signal"), [("1", "15"), ("5:00", "75"), ("30", "120"), ("UNLIMITED", "120")])
def test_short_jobs_are_warned_late(time: str, signal: str) -> None:
    assert directives(dry_run("--time", time, "--", "train", "gan"))["signal"] == f"B:USR1@{signal}"


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("90", 5400), ("1:30", 90), ("2:00:01", 7201), ("1-2", 93600), ("1-2:03", 93780), ("1-02:03:04", 93784)],
)
def test_length_of_times(time: str, seconds: int) -> None:
    assert seconds_of(time) == seconds


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        ([], ("no command", "--")),
        (["--", "train"], ("'train'", "classifier")),
        (["--", "trane", "gan"], ("'trane'", "train")),
        (["--", "submit", "--", "logs"], ("'submit'",)),
        (["--", "train", "gan", "--stepz", "3"], ("train gan", "--stepz")),
        (["--", "train", "gan", "--kimg", "many"], ("train gan", "--kimg", "number")),
        (["--time", "soon", "--", "train", "gan"], ("--time soon", "1-12:00:00")),
        (["--time", "0", "--", "train", "gan"], ("--time 0",)),
        (["--mem", "much", "--", "train", "gan"], ("--mem much", "32G")),
        (["--gpus", "x", "--", "train", "gan"], ("--gpus x", "a100:4")),
        (["--name", "a b", "--", "train", "gan"], ("--name 'a b'",)),
        (["--partition", "x\n#SBATCH", "--", "train", "gan"], ("--partition",)),
        (["--gpus", "2", "--", "train", "gan", "--devices", "3"], ("--gpus 2", "--devices 3")),
        (["--nodes", "2", "--", "train", "gan", "--num-nodes", "3"], ("--nodes 2", "--num-nodes 3")),
        (["--gpus", "2", "--", "logs"], ("--gpus 2", "'logs'", "one device")),
        (["--gpus", "2", "--", "sweep", "classifier", "--space", "s.yaml"], ("--gpus 2", "'sweep'", "one device")),
        (["--", "train", "gan", "--resume"], ("--resume", "--out")),
        *(
            (["--dry-run", "--", "train", "gan", "--out", out], (f"--out {out}", "letters"))
            for out in ("my run", "a%j", "o'neil", "a#b", "a$b", 'a"b')
        ),
    ],
)
def test_mistakes(arguments: list[str], texts: tuple[str, ...]) -> None:
    Answer("submit", *arguments).refused(*texts)


def test_without_slurm_the_command_itself_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(here))
    Answer("submit", "--", "train", "gan", "--kimg", "1").refused("no sbatch", "login node", "train gan --kimg 1")
    assert list(here.iterdir()) == []


def test_refusal_of_sbatch_is_passed_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "sbatch: error: invalid partition specified: x\nsbatch: error: Batch job submission failed: Invalid name"
    monkeypatch.setenv("PATH", pretend(here / "bin", sbatch=f"echo '{said}' >&2; exit 1"))
    Answer("submit", "--partition", "x", "--", "train", "gan").refused(
        "sbatch refuses: invalid partition specified: x; Batch job submission failed: Invalid name"
    )
    assert not Path("runs").exists()
    Run.create("gan", tiny_recipe(), Path("runs/begun"))
    Answer("submit", "--partition", "x", "--", "train", "gan", "--out", "runs/begun").refused("sbatch refuses")
    assert Path("runs/begun/recipe.yaml").is_file()


def test_folder_that_cannot_be(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").touch()
    monkeypatch.setenv("PATH", pretend(here / "bin", sbatch="touch submitted; echo 7"))
    Answer("submit", "--", "train", "gan", "--out", "file/run").refused("--out file/run", "cannot write")
    assert not Path("submitted").exists()


def test_what_is_told_of_a_job(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", pretend(here / "bin", sbatch='cp "${@: -1}" submitted; echo "7;cluster"'))
    told = Answer("submit", "--", "train", "gan", "--out", "run").went_well().out
    assert told.startswith("job 7: train-gan\n")
    for text in ("squeue --job 7", "tail -F run/slurm-7.out", "logs --follow --logs-path run", "scancel 7"):
        assert text in told
    assert "sbatch run/job.sbatch" in told
    assert Path("submitted").read_text() == Path("run/job.sbatch").read_text()


def test_a_program_submits_without_the_command_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", pretend(here / "bin", sbatch="echo 7"))
    code = """
import sys
from viscoin.slurm.submission import CommandLine, Limits, prepare
line = CommandLine("viscoin", ("train", "concept2clip"), ("--seed", "3"), {"devices": None, "out": "run"})
submission = prepare(line, Limits(gpus="2"))
print(submission.submit(), submission.runs, submission.job.command)
print({"typer", "click", "torch"} & set(sys.modules))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "7 [PosixPath('run')] viscoin train concept2clip --seed 3 --devices 2",
        "set()",
    ], done.stderr
    assert "srun viscoin train concept2clip" in Path("run/job.sbatch").read_text()


@pytest.mark.parametrize(
    ("command", "folders"),
    [
        (("train", "all"), ["run/classifier", "run/gan", "run/viscoin"]),
        (("train", "concept2clip"), ["run"]),
        (("test", "viscoin"), []),
    ],
)
def test_runs_that_a_command_trains(command: tuple[str, ...], folders: list[str]) -> None:
    line = CommandLine("viscoin", command, (), {"devices": None, "num_nodes": None, "out": "run"})
    assert [str(run) for run in prepare(line, Limits()).runs] == folders


STATES = {
    "COMPLETED": ("JobState=COMPLETED Reason=None ExitCode=0:0", 0),
    "FAILED": ("JobState=FAILED Reason=NonZeroExitCode ExitCode=75:0", 75),
    "TIMEOUT": ("JobState=TIMEOUT Reason=TimeLimit ExitCode=0:0", 1),
    "CANCELLED": ("JobState=CANCELLED Reason=None ExitCode=0:15", 143),
}


@pytest.mark.parametrize("state", STATES)
def test_following_ends_with_the_job(here: Path, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    said, code = STATES[state]
    monkeypatch.setattr(queue, "ASK", 0.0)
    count = 'echo x >> asked; if [ $(wc -l < asked) -lt 3 ]; then echo "JobState=PENDING Reason=Resources"; else'
    write = 'echo \'{"step": 2, "train.loss": 0.5}\' > run/metrics.jsonl; echo the end > run/slurm-7.out'
    path = pretend(here / "bin", sbatch="echo 7", scontrol=f"{count} {write}; echo '{said}'; fi")
    monkeypatch.setenv("PATH", path)
    answer = Answer("submit", "--follow", "--", "train", "gan", "--out", "run")
    assert answer.code == code, answer.err
    assert "step 2  train: loss 0.5" in answer.out
    assert answer.err.count("job 7: pending (Resources)") == 1 and f"job 7: {state.lower()}\n" in answer.err
    assert ("the end" in answer.err) == (state != "COMPLETED")


@pytest.mark.parametrize(
    ("command", "file", "shown"),
    [
        (("train", "all"), "gan/metrics.jsonl", "gan  step 2  train: loss 0.5"),
        (("sweep", "classifier", "--space", "s.yaml"), "other", "the end"),
    ],
)
def test_following_what_is_not_one_training(
    here: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], file: str, shown: str
) -> None:
    monkeypatch.setattr(queue, "ASK", 0.0)
    Path("run/gan").mkdir(parents=True)
    write = f'echo \'{{"step": 2, "train.loss": 0.5}}\' > run/{file}; echo the end > run/slurm-7.out'
    path = pretend(here / "bin", sbatch="echo 7", scontrol=f"{write}; echo 'JobState=COMPLETED ExitCode=0:0'")
    monkeypatch.setenv("PATH", path)
    answer = Answer("submit", "--follow", "--", *command, "--out", "run").went_well()
    assert shown in answer.out + answer.err and "logs --follow" not in answer.out


# --- processes that srun started


def step(monkeypatch: pytest.MonkeyPatch, tasks: int, nodes: int = 1, per_node: str | None = None, **more: str) -> None:
    variables = {
        "SLURM_JOB_ID": "12", "SLURM_STEP_ID": "3", "SLURM_STEP_NUM_TASKS": tasks, "SLURM_STEP_NUM_NODES": nodes,
        "SLURM_STEP_TASKS_PER_NODE": per_node or tasks, "SLURM_PROCID": 0, "SLURM_LOCALID": 0, "SLURM_NODEID": 0,
        "SLURM_STEP_NODELIST": "gpu[07-09,12]",
    }  # fmt: skip
    for name, value in (variables | more).items():
        monkeypatch.setenv(name, str(value))


def test_tasks_of_srun_are_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    # What the whole job is said to be does not count.
    more = {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_NTASKS": "16", "SLURM_NNODES": "8"}
    step(monkeypatch, 4, 2, "2(x2)", **more)
    (found,) = fabric_plugins(2, 2)
    assert (found.world_size(), found.global_rank(), found.local_rank(), found.node_rank()) == (4, 3, 1, 1)
    assert found.main_address == "gpu07" and found.main_port == 15000 + 12 * 7 + 3
    assert found.creates_processes_externally and Step.detect()


def test_one_machine_needs_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    step(monkeypatch, 2)
    assert fabric_plugins(2, 1)[0].main_address == "127.0.0.1"


@pytest.mark.parametrize(
    ("tasks", "nodes", "per_node", "devices", "num_nodes"),
    [(4, 1, "4", 1, 1), (4, 2, "2(x2)", 4, 1), (4, 2, "3,1", 2, 2), (2, 1, "2", 2, 2)],
)
def test_other_numbers_than_srun_started(
    monkeypatch: pytest.MonkeyPatch, tasks: int, nodes: int, per_node: str, devices: int, num_nodes: int
) -> None:
    step(monkeypatch, tasks, nodes, per_node)
    with pytest.raises(ValueError, match=rf"srun started {tasks} .*`devices` {devices} .*--ntasks-per-node={devices}"):
        fabric_plugins(devices, num_nodes)


def test_shells_and_batch_scripts_start_processes_as_on_a_laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fabric_plugins(2, 1) == []
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert type(fabric_plugins(2, 1)[0]).__name__ == "LightningEnvironment"
    with pytest.raises(ValueError, match=r"num_nodes 2: nothing starts .* put srun before"):
        fabric_plugins(1, 2)
    step(monkeypatch, 1)  # of srun --pty
    assert type(fabric_plugins(2, 1)[0]).__name__ == "LightningEnvironment"
    with pytest.raises(ValueError, match="num_nodes 2: srun started one process"):
        fabric_plugins(1, 2)


# --- a real SLURM


def until(condition: Callable[[], object], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def slurm_call(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def state_of(job: str) -> str:
    return re.findall(r"JobState=(\w+)", slurm_call("scontrol", "show", "job", "-o", job))[0]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    """A SLURM of this test process alone; not in pytest's folders, which the user munge may not enter."""
    folder = Path(tempfile.mkdtemp(prefix="viscoin-slurm-"))
    folder.chmod(0o755)
    try:
        yield local_slurm.start(folder)
    except RuntimeError as error:  # that it starts is what a test of its own is for
        pytest.skip(f"SLURM does not start here: {error}")
    finally:
        local_slurm.stop(folder)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def project(cluster: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as people submit from."""
    monkeypatch.setenv("SLURM_CONF", str(cluster))
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    (here / "main.py").symlink_to(ROOT / "main.py")
    monkeypatch.setattr(sys, "argv", ["main.py"])  # `submit` is called inside this process
    (here / "runs").mkdir()
    (here / ".venv" / "bin").mkdir(parents=True)
    (here / ".venv/bin/activate").write_text(f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH\n")
    return here


SMALL = ("--cpus-per-task=1", "--mem=1G")
TINY = (
    *set_options(), "--set", "classifier.backbone=viscoin_resnet10", "--no-pretrained", "--device", "cpu",
    "--precision", "32-true", "--epochs", "20",
)  # fmt: skip

# Read by Python before anything else. A training must not have ended when it is to be disturbed, however fast it is.
SLOW_MOTION = """\
import time
from pathlib import Path
from viscoin.training import loop

def seed_step(*arguments, original=loop.seed_step):
    if Path("slowly").exists():
        time.sleep(0.3)
    original(*arguments)

loop.seed_step = seed_step
"""


@pytest.fixture
def slowly(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """While this file is there, jobs submitted from here take a third of a second more for each step."""
    (project / "sitecustomize.py").write_text(SLOW_MOTION)
    monkeypatch.setenv("PYTHONPATH", f"{project}:{ROOT}")
    (project / "slowly").touch()
    return project / "slowly"


def line_count(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def until_it_trains(printed: Path, began: str) -> None:
    """All its processes, since it said that: then they save when they are told to stop."""
    until(lambda: printed.exists() and began in printed.read_text())
    lines = line_count(printed.parent / "metrics.jsonl")
    until(lambda: line_count(printed.parent / "metrics.jsonl") > lines)


def weights(folder: Path) -> dict[str, list[float]]:
    return {name: value.flatten().tolist() for name, value in load_file(folder / "model.safetensors").items()}


@needs_slurm
@pytest.mark.long
def test_job_that_is_warned_and_put_back_ends_as_one_that_is_left_alone(
    slowly: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The early warning, then a requeue in the middle; beside it the same training undisturbed, followed to its end."""
    monkeypatch.setattr(queue, "ASK", 0.5)
    command = ("submit", *SMALL, "--gpus", 1, "--time", 60)
    told = Answer(*command, "--", "train", "classifier", *TINY, "--out", "runs/disturbed").went_well().out
    number = told.split(":")[0].removeprefix("job ")
    disturbed, printed = Path("runs/disturbed"), Path(f"runs/disturbed/slurm-{number}.out")
    for began, disturb in (
        ("classifier step", ("scancel", "--batch", "--signal=USR1", number)),
        ("going on from step", ("scontrol", "requeue", number)),
    ):
        until_it_trains(printed, began)
        slurm_call(*disturb)
    until(lambda: state_of(number) not in ("RUNNING", "COMPLETING"))
    slowly.unlink()
    followed = Answer(*command, "--follow", "--", "train", "classifier", *TINY, "--out", "runs/alone").went_well()
    assert "validation: accuracy" in followed.out and "completed" in followed.err
    until(lambda: state_of(number) in ("COMPLETED", "FAILED", "CANCELLED"))
    said = printed.read_text()
    assert state_of(number) == "COMPLETED", said
    assert "exit code 138: requeued" in said and "DUE TO JOB REQUEUE" in said
    assert len(re.findall(r"going on from step \d+", said)) == 2
    assert "Traceback" not in said
    assert weights(disturbed) == weights(Path("runs/alone"))


@needs_slurm
@pytest.mark.long
def test_two_tasks_train_together_and_an_array_trains_apart(project: Path) -> None:
    """Both with the scripts that come along, on two machines that are one."""
    epochs = ("--epochs", "2")
    together = slurm_call(
        "sbatch", "--parsable", "--export=ALL,MASTER_ADDR=127.0.0.1", *SMALL, "--nodes=2", "--ntasks-per-node=1",
        str(ROOT / "slurm/classifier.sbatch"), *TINY, *epochs,
    )  # fmt: skip
    apart = slurm_call("sbatch", "--parsable", "--array=3-4", *SMALL, str(ROOT / "slurm/array.sbatch"), *TINY, *epochs)
    until(lambda: not slurm_call("squeue", "--noheader", "--jobs", f"{together},{apart}"))
    folders = [Path(f"runs/train-classifier-{name}") for name in (together, f"{apart}_3", f"{apart}_4")]
    said = ["".join(file.read_text() for file in folder.glob("slurm-*.out")) for folder in folders]
    assert all((folder / "model.safetensors").is_file() for folder in folders), "\n".join(said)
    assert "on node[1-2]" in said[0] and said[0].count("run folder:") == 1
    recipes = [(folder / "recipe.yaml").read_text() for folder in folders]
    assert ["seed: 3" in text for text in recipes] == [False, True, False]
    assert ["seed: 4" in text for text in recipes] == [False, False, True]
    Answer("train", "classifier", *TINY, *epochs, "--out", "alone").went_well()
    one, two = (
        json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1]) for folder in (Path("alone"), folders[0])
    )
    assert two["validation.loss"] == pytest.approx(one["validation.loss"], abs=1e-3)


@needs_slurm
@pytest.mark.long
def test_a_job_that_the_service_submits_is_steered_through_the_shared_folder(slowly: Path) -> None:
    """By the service and by `control`; the job sees nothing of either but the folder of its run."""
    from fastapi.testclient import TestClient

    from viscoin.serving.app import create_app
    from viscoin.serving.state import Settings

    settings = Settings([("viscoin", None)], Path("runs"), "cpu", token="t" * 32, data_root=Path())
    client = TestClient(
        create_app(settings), base_url="http://localhost", headers={"Authorization": f"Bearer {'t' * 32}"}
    )
    wish = {
        "kind": "classifier", "dataset": "birds", "name": "far", "where": "slurm",
        "limits": {"gpus": "0", "mem": "1G", "time": "60", "cpus_per_task": 1},
        "settings": SETTINGS | {
            "classifier.backbone": "viscoin_resnet10", "classifier.pretrained": False, "classifier.epochs": 5000,
        },
    }  # fmt: skip
    told = client.post("/api/v1/jobs", json=wish)
    assert told.status_code == 202, told.text
    folder, printed = Path("runs/far"), Path(f"runs/far/slurm-{told.json()['job']}.out")
    until_it_trains(printed, "classifier step")
    sent = client.post("/api/v1/runs/far/commands", json={"command": "set", "values": {"learning_rate": 0.002}})
    assert sent.status_code == 202, sent.text
    until(lambda: [entry.values for entry in read_record(folder)] == [{"classifier.learning_rate": 0.002}])
    Answer("control", folder, "pause").went_well()
    until(lambda: client.get("/api/v1/runs/far").json()["state"] == "paused")
    lines = line_count(folder / "metrics.jsonl")
    time.sleep(2)
    assert line_count(folder / "metrics.jsonl") == lines
    assert client.post("/api/v1/runs/far/commands", json={"command": "continue"}).status_code == 202
    until(lambda: line_count(folder / "metrics.jsonl") > lines)
    Answer("control", folder, "finish").went_well()
    until(lambda: state_of(told.json()["job"]) not in ("RUNNING", "COMPLETING", "PENDING"))
    said = printed.read_text()
    assert state_of(told.json()["job"]) == "COMPLETED", said
    assert client.get("/api/v1/runs/far").json()["state"] == "finished", said
    assert (folder / "model.safetensors").is_file()
    assert [entry.command for entry in read_record(folder)] == ["set", "pause", "continue", "finish"]


@needs_slurm
@pytest.mark.long
def test_interactive_srun(project: Path) -> None:
    """In a terminal of its own, as `srun --pty` wants one."""
    python = shlex.join([sys.executable, "main.py", "train", "classifier", *TINY, "--epochs", "1", "--out", "run"])
    said = slurm_call("script", "--quiet", "--return", "--command", f"srun --pty {python}", "/dev/null")
    assert "run/model.safetensors" in said and Path("run/model.safetensors").is_file()


@needs_slurm
@pytest.mark.long
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two CPU cores")
def test_preempted_job_saves_and_goes_on_and_a_cancelled_one_saves_and_stays(project: Path) -> None:
    folder = Path("runs/preempted")
    told = Answer(
        "submit", *SMALL, "--partition", "low", "--gpus", 2, "--", "train", "classifier", *TINY, "--epochs", 5000,
        "--devices", 2, "--out", folder,
    ).went_well()  # fmt: skip
    number = told.out.split(":")[0].removeprefix("job ")
    printed = folder / f"slurm-{number}.out"
    until_it_trains(printed, "classifier step")
    node = slurm_call("squeue", "--noheader", "--format=%N", "--jobs", number)
    slurm_call(
        "sbatch", "--partition=high", f"--nodelist={node}", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"
    )
    until_it_trains(printed, "going on from step")
    assert "DUE TO PREEMPTION" in printed.read_text()
    slurm_call("scancel", number)
    until(lambda: state_of(number) == "CANCELLED")
    assert printed.read_text().count("stopped at step") == 2
    assert "Restarts=1" in slurm_call("scontrol", "show", "job", "-o", number)


@needs_slurm
@pytest.mark.long
def test_refusal_of_the_real_sbatch(project: Path) -> None:
    Answer("submit", "--partition", "nowhere", "--", "train", "gan").refused("sbatch refuses", "invalid partition")


@needs_slurm
@pytest.mark.long
def test_local_slurm_tells_how_to_use_and_end_it() -> None:
    folder = Path(tempfile.mkdtemp(prefix="viscoin-slurm-"))
    folder.chmod(0o755)
    script = [sys.executable, str(ROOT / "scripts/local_slurm.py"), str(folder)]
    try:
        assert f"export SLURM_CONF={folder}/slurm.conf" in slurm_call(*script, "--nodes", "1")
        assert slurm_call(*script, "--stop") == "SLURM ended"
        assert slurm_call(*script, "--stop").startswith("no SLURM runs")
    finally:
        local_slurm.stop(folder)
        shutil.rmtree(folder, ignore_errors=True)


def test_local_slurm_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    monkeypatch.setattr(local_slurm, "_path", lambda: str(here))
    assert "apt-get install" in local_slurm.missing()
    with pytest.raises(RuntimeError, match="slurmctld, slurmd, munged"):
        local_slurm.start(here / "slurm")
