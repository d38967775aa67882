"""Submissions: the job that runs a command line, checked, written into the folder of its run, and submitted."""

import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from viscoin.errors import Refused, reason_of
from viscoin.files import atomic_path
from viscoin.kinds import CHAIN, TRAINED
from viscoin.runs.run import drop_folder, new_folder
from viscoin.slurm import queue
from viscoin.slurm.script import Job, seconds_of


@dataclass(frozen=True)
class Limits:
    """What a job asks SLURM for.

    Attributes:
        partition: None means the cluster's default.
        account: account to charge; None means the user's default.
        gpus: GPUs per node, "2" or "a100:2"; "0" computes on the CPU.
        nodes: number of nodes.
        time: time limit in SLURM's notation; see `viscoin.slurm.script.seconds_of`.
        mem: memory per node, such as "32G".
        cpus_per_task: CPU cores per process.
    """

    partition: str | None = None
    account: str | None = None
    gpus: str = "1"
    nodes: int = 1
    time: str = "1-00:00:00"
    mem: str = "32G"
    cpus_per_task: int = 8

    @property
    def gpu_count(self) -> int:
        """GPUs per node.

        Raises:
            Refused: `gpus` is no such number.
        """
        match = re.fullmatch(r"(?:[\w.-]+:)?(\d+)", self.gpus)
        if match is None:
            raise Refused("gpus", self.gpus, "expected a number, or the type and a number, as in a100:4")
        return int(match[1])

    def check(self) -> None:
        """Raise Refused for what SLURM would not understand."""
        seconds_of(self.time)
        if not re.fullmatch(r"\d+[KMGTkmgt]?[Bb]?", self.mem):
            raise Refused("mem", self.mem, "expected a number and K, M, G or T, as in 32G")
        _ = self.gpu_count
        _check_word("partition", self.partition)
        _check_word("account", self.account)


@dataclass(frozen=True)
class CommandLine:
    """A command line of this program that it could run.

    Attributes:
        program: how the program is called, quoted for the shell: "python main.py".
        command: words of the command, such as ("train", "gan").
        rest: words that follow.
        options: value of each option that the command has, by the name of its parameter; None where it is not given.
    """

    program: str
    command: tuple[str, ...]
    rest: tuple[str, ...]
    options: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.program} {shlex.join([*self.command, *self.rest])}"


@dataclass(frozen=True)
class Submission:
    """A job that is ready to be submitted.

    Attributes:
        line: the command line that it runs.
        folder: folder of the run, which takes the batch script and the output as well.
        reserved: the folder was made for this job alone.
    """

    line: CommandLine
    job: Job
    folder: Path
    reserved: bool = False

    @property
    def runs(self) -> list[Path]:
        """Folders of the runs that the command trains."""
        if self.line.command == ("train", "all"):
            return [self.folder / kind for kind in CHAIN]
        return [self.folder] if self.line.command in [("train", kind) for kind in TRAINED] else []

    def output(self, number: str) -> Path:
        """File with what the job prints."""
        return self.folder / f"slurm-{number}.out"

    def submit(self) -> str:
        """Write the batch script into the folder and submit it; returns the number of the job.

        Raises:
            Refused: SLURM is not installed, the folder cannot be written, or sbatch refuses the job. Then a folder that
                was made for it is removed.
        """
        existed = self.folder.exists() and not self.reserved
        try:
            queue.check_slurm(instead=str(self.line))
            return queue.submit(self._write())
        except BaseException:
            if not existed:
                drop_folder(self.folder)
            raise

    def commands(self, number: str) -> dict[str, str]:
        """Shell commands that watch, cancel and resume the job, by what they show or do."""
        folder = shlex.quote(str(self.folder))
        logs = f"{self.line.program} logs --follow --logs-path {folder}"
        return {
            "state": f"squeue --job {number}",
            "output": f"tail -F {shlex.quote(str(self.output(number)))}",
            **({"metrics": logs} if self.runs == [self.folder] else {}),
            "cancel": f"scancel {number}",
            "resume": self.job.resubmit,
        }

    def _write(self) -> Path:
        """Write the batch script. SLURM does not make the folder of the output."""
        path = self.folder / "job.sbatch"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as partial:
                partial.write_text(self.job.script())
        except OSError as error:
            reason = f"--out {self.folder}: cannot write there ({reason_of(error)})"
            raise Refused("command", None, reason, "choose another folder") from error
        return path


def prepare(line: CommandLine, limits: Limits, name: str | None = None, reserve: bool = False) -> Submission:
    """The job that runs a command line, with the devices and the folder of the run that it does not name itself.

    Args:
        name: name of the job; None means that of the command.
        reserve: make a new folder of the run now, so that no other job of the same second takes it.

    Raises:
        Refused: SLURM would not understand the limits, or they do not fit the command.
    """
    name = name or "-".join(line.command)
    limits.check()
    _check_word("name", name)
    tasks, folder = _tasks(line, limits), _folder(line, name)
    reserve = reserve and line.options.get("out") is None
    if reserve:
        folder = new_folder(name)
    job = Job(
        head=(f"Written by `submit` on {datetime.now():%Y-%m-%d %H:%M}; to resume what it runs: sbatch THIS_FILE",),
        name=name,
        command=f"{line}{_added(line, tasks, limits.nodes, folder)}",
        output=f"{folder}/slurm-%j.out",
        folder=shlex.quote(str(folder)),
        activate=f"export PATH={shlex.quote(os.path.dirname(sys.executable))}:$PATH # the Python that submitted this",
        resubmit=f"sbatch {shlex.quote(str(folder / 'job.sbatch'))}",
        nodes=limits.nodes,
        tasks=tasks,
        gpus=limits.gpus if limits.gpu_count else "0",
        cpus=limits.cpus_per_task,
        mem=limits.mem,
        time=limits.time,
        partition=limits.partition,
        account=limits.account,
        continues=line.command[0] in ("train", "sweep"),
    )
    return Submission(line, job, folder, reserve)


def _tasks(line: CommandLine, limits: Limits) -> int:
    """Processes per node: one per GPU, or on the CPU as many as the command asks for."""
    devices, nodes = line.options.get("devices"), line.options.get("num_nodes")
    tasks: int = devices or max(1, limits.gpu_count)
    if limits.gpu_count and tasks != limits.gpu_count:
        raise Refused("gpus", limits.gpus, f"the command has --devices {tasks}", "leave one of them out")
    if nodes not in (None, limits.nodes):
        raise Refused("nodes", limits.nodes, f"the command has --num-nodes {nodes}", "make them agree")
    if tasks * limits.nodes > 1 and not _is_parallel(line):
        reason = f"`gpus` {limits.gpus}, `nodes` {limits.nodes}: {' '.join(line.command)!r} computes on one device"
        raise Refused(None, None, reason, "leave these options out")
    return tasks


def _is_parallel(line: CommandLine) -> bool:
    """Whether a command computes on several devices; each worker of a sweep has one."""
    return "devices" in line.options and line.command[0] != "sweep"


def _folder(line: CommandLine, name: str) -> Path:
    folder = Path(line.options.get("out") or f"runs/{name}-{datetime.now():%Y%m%d-%H%M%S}")
    folder = folder if folder.suffix != ".zip" else folder.parent
    if re.search(r"[^\w./+,=@:-]", str(folder)):
        reason = f"--out {folder}: SLURM writes only to paths of letters, digits and . / + , = @ : _ -"
        raise Refused("command", None, reason, "rename it")
    if line.options.get("resume") and line.options.get("out") is None:
        reason = "--resume needs the folder of the run to resume"
        raise Refused("command", " ".join(line.command), reason, "name it, as in --out runs/NAME")
    return folder


def _added(line: CommandLine, tasks: int, nodes: int, folder: Path) -> str:
    """Options that complete a command line."""
    values = {"devices": tasks, "num_nodes": nodes} if _is_parallel(line) else {}
    options = {**values, "out": folder}
    words = [
        word
        for option, value in options.items()
        if option in line.options and not line.options[option]
        for word in (f"--{option.replace('_', '-')}", str(value))
    ]
    return f" {shlex.join(words)}" if words else ""


def _check_word(parameter: str, value: str | None) -> None:
    """Raise Refused for what would break a line of the batch script apart."""
    if value is not None and not re.fullmatch(r"[\w.,+-]+", value):
        raise Refused(parameter, value, "only letters, digits and . , + - _ may be in it")
