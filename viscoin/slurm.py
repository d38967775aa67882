"""SLURM: batch scripts from one template, and the jobs that sbatch makes of them."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from viscoin.errors import Refused

WARNING = 120  # seconds before the end of its time in which a training saves
TIME = re.compile(
    r"(?P<minutes>\d+)(:(?P<seconds>\d+))?|(?P<h>\d+):(?P<m>\d+):(?P<s>\d+)"
    r"|(?P<days>\d+)-(?P<dh>\d+)(:(?P<dm>\d+)(:(?P<ds>\d+))?)?"
)
ENDED = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
)  # fmt: skip
NO_SLURM = (
    "there is no {command} here: SLURM, which shares a cluster's machines out, is not installed. On a cluster, do this "
    "on its login node; elsewhere run the same command without SLURM: {instead}"
)


@dataclass(frozen=True)
class Job:
    """What one batch script asks for and runs.

    Attributes:
        head: lines that say what it is for.
        command: the command line that srun starts, as the shell reads it.
        output: file that takes what the job prints, with SLURM's %x, %j, %A and %a.
        folder: folder of the run, as the shell reads it.
        activate: line that makes `python` the right one.
        resubmit: command that goes on by hand.
        nodes, tasks: machines, and processes of each.
        gpus: graphics cards of each machine, "2" or "a100:2"; "0" for none.
        cpus: processor cores of each process.
        mem: main memory of each machine, such as "32G".
        time: as SLURM writes it; see `seconds_of`.
        continues: whether the command saves when warned and goes on when it is started again.
        redirect: what it prints goes into the run folder.
        array: numbers of an array of jobs, such as "0-3".
        template: to be filled in by people: partition and account are there as comments.
    """

    head: tuple[str, ...]
    name: str
    command: str
    output: str
    folder: str
    activate: str
    resubmit: str
    nodes: int = 1
    tasks: int = 1
    gpus: str = "1"
    cpus: int = 8
    mem: str = "32G"
    time: str = "1-00:00:00"
    partition: str | None = None
    account: str | None = None
    continues: bool = True
    redirect: bool = False
    array: str | None = None
    template: bool = False

    def script(self) -> str:
        """The batch script."""
        environment = Environment(
            loader=PackageLoader("viscoin"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
            keep_trailing_newline=True,
        )  # fmt: skip
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return environment.get_template("job.sbatch.j2").render(values | {"directives": self._directives()})

    def _directives(self) -> list[str]:
        given: list[tuple[str, str | None, str]] = [
            ("job-name", self.name, "in squeue, and %x in the next line"),
            ("output", self.output, "what the job prints; its folder must be there"),
            ("open-mode", "append", "the next start of the job does not wipe it out"),
            ("array", self.array, "one job for each of these numbers"),
            ("nodes", str(self.nodes), "machines"),
            ("ntasks-per-node", str(self.tasks), "processes of each, one for a graphics card"),
            ("gpus-per-node", self.gpus if self.gpus != "0" else None, "graphics cards of each"),
            ("cpus-per-task", str(self.cpus), "reading and augmenting images"),
            ("mem", self.mem, "main memory of each machine"),
            ("time", self.time, "days-hours:minutes:seconds, then the job is ended"),
            ("requeue", "", "a job that is preempted, or whose machine breaks, starts again"),
            ("signal", self._signal(), "a warning, so many seconds before its time is up"),
            ("partition", self.partition, "see: sinfo"),
            ("account", self.account, "who pays"),
        ]  # fmt: skip
        lines = [(f"#SBATCH --{key}{'=' * bool(value)}{value}", why) for key, value, why in given if value is not None]
        if self.template:
            lines += [("##SBATCH --partition=NAME", "see: sinfo"), ("##SBATCH --account=NAME", "who pays")]
        width = min(40, max(len(line) for line, _ in lines))
        return [f"{line:{width}} # {why}" for line, why in lines]

    def _signal(self) -> str | None:
        seconds = seconds_of(self.time)
        # A job of a few minutes would be warned at once, and start over and over again.
        return f"B:USR1@{min(WARNING, seconds // 4) if seconds else WARNING}" if self.continues else None


def seconds_of(time: str) -> int | None:
    """Length of a time limit: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]].

    Returns:
        Seconds; None for "UNLIMITED".

    Raises:
        ValueError: it is not one of these, or no time at all.
    """
    if time.upper() in ("UNLIMITED", "INFINITE"):
        return None
    match = TIME.fullmatch(time)
    total = 0
    if match:
        for part, unit in {
            "minutes": 60, "seconds": 1, "h": 3600, "m": 60, "s": 1, "days": 86400, "dh": 3600, "dm": 60, "ds": 1,
        }.items():  # fmt: skip
            total += unit * int(match[part] or 0)
    if not total:
        formats = "minutes, hours:minutes:seconds or days-hours:minutes:seconds"
        raise Refused("time", time, f"expected {formats}, as in 1-12:00:00")
    return total


def shipped_jobs() -> dict[str, Job]:
    """The scripts in slurm/ by name, written from the template by scripts/write_slurm_jobs.py."""
    several = '--devices "$SLURM_NTASKS_PER_NODE" --num-nodes "$SLURM_NNODES"'

    def job(name: str, what: str, words: str, example: str, more: tuple[str, ...] = (), **changes: object) -> Job:
        number = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" if "array" in changes else "$SLURM_JOB_ID"
        values: dict[str, object] = {
            "head": (
                what,
                "Submit from the project's folder; options of sbatch come first, those of the command last:",
                f"    sbatch slurm/{name}.sbatch {example}",
                *more,
                "Partitions and accounts differ from cluster to cluster: take a '#' off those lines and fill them in.",
            ),
            "name": words.replace(" ", "-"),
            "command": f'python main.py {words} {several} --out "$run" "$@"',
            "output": "runs/%x-%A_%a.out" if "array" in changes else "runs/%x-%j.out",
            "folder": f"runs/$SLURM_JOB_NAME-{number}",
            "activate": "source .venv/bin/activate # or: conda activate viscoin",
            "resubmit": f"sbatch slurm/{name}.sbatch --out $run $*",
            "redirect": True,
            "template": True,
        }
        return Job(**{**values, **changes})  # type: ignore[arg-type]

    cards = (
        "On four graphics cards of each of two machines:",
        "    sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 slurm/{}.sbatch --dataset birds",
    )
    jobs = {
        name: job(
            name, what, f"train {name}", "--dataset birds", tuple(line.format(name) for line in cards),
            time=time, mem=mem,
        )
        for name, what, time, mem in (
            ("classifier", "Train the classifier f.", "0-02:00:00", "16G"),
            ("gan", "Train the generator G.", "2-00:00:00", "32G"),
            ("viscoin", "Train Psi, Theta and Omega on the newest f and G of the dataset.", "1-00:00:00", "32G"),
        )
    }  # fmt: skip
    jobs["test"] = job(
        "test", "Measure the newest ensemble of the dataset.", "test viscoin", "--dataset birds",
        time="0-01:00:00", mem="16G", continues=False,
    )  # fmt: skip
    jobs["array"] = job(
        "array", "Train one classifier for each number of the array, which is its seed.", "train classifier",
        "--dataset birds", ("    sbatch --array=0-9%2 slurm/array.sbatch # ten of them, two at a time",),
        command=f'python main.py train classifier {several} --seed "$SLURM_ARRAY_TASK_ID" --out "$run" "$@"',
        resubmit="sbatch --array=$SLURM_ARRAY_TASK_ID slurm/array.sbatch --out $run $*",
        array="0-3", time="0-02:00:00", mem="16G",
    )  # fmt: skip
    jobs["sweep"] = job(
        "sweep", "Several workers on one study: each tries recipes until the study has its trials.", "sweep",
        "classifier --dataset birds --space space.yaml --trials 20",
        command='python main.py sweep --out "$run" "$@"', folder="runs/$SLURM_JOB_NAME-$SLURM_ARRAY_JOB_ID",
        resubmit="sbatch slurm/sweep.sbatch --out $run $*",
        array="0-3", time="0-08:00:00", mem="16G",
    )  # fmt: skip
    return jobs


# --- jobs


@dataclass(frozen=True)
class State:
    """How far a job is: SLURM's word for it, why it waits, and its exit code."""

    name: str
    reason: str
    exit_code: int

    @property
    def ended(self) -> bool:
        return self.name in ENDED


def submit(script: Path) -> str:
    """Hand a batch script to sbatch; returns the number of the job.

    Raises:
        ValueError: sbatch refuses it; says why.
    """
    return _call("sbatch", "--parsable", str(script)).partition(";")[0].strip()


def job_state(job: str) -> State | None:
    """State of a job; None where SLURM does not answer, or knows it no longer."""
    try:
        said = _call("scontrol", "show", "job", "--oneliner", job)
    except ValueError:
        return _state_of_accounts(job)
    facts = dict(word.partition("=")[::2] for word in said.splitlines()[0].split())
    return State(facts.get("JobState", ""), facts.get("Reason", ""), _exit_code(facts.get("ExitCode", "0:0")))


def _state_of_accounts(job: str) -> State | None:
    """From the cluster's accounts, where it has some: they remember jobs that ended long ago."""
    try:
        said = _call("sacct", "--noheader", "--allocations", "--parsable2", "--format=State,ExitCode", "--jobs", job)
        state, code = said.splitlines()[0].split("|")
    except (ValueError, IndexError):
        return None
    return State(state.split()[0], "", _exit_code(code))


def _exit_code(text: str) -> int:
    """SLURM's "code:signal" as a shell tells it."""
    code, _, signal = text.partition(":")
    return int(code) or (128 + int(signal) if int(signal or 0) else 0)


def check_slurm(command: str, instead: str) -> None:
    """Raise ValueError unless that command of SLURM is here; says how to do without."""
    if shutil.which(command) is None:
        raise ValueError(NO_SLURM.format(command=command, instead=instead))


def _call(command: str, *arguments: str) -> str:
    try:
        done = subprocess.run([command, *arguments], capture_output=True, text=True, timeout=120)
    except FileNotFoundError as error:
        raise ValueError(f"there is no {command} here") from error
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"{command}: no answer in two minutes; is SLURM up? See: sinfo") from error
    if done.returncode:
        lines = [line.split("error: ")[-1] for line in done.stderr.splitlines() if "error: " in line]
        raise ValueError(f"{command} refuses: {'; '.join(lines) or done.stderr.strip() or done.returncode}")
    return done.stdout
