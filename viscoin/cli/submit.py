"""`submit`: run another command as a job of a SLURM cluster."""

import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from viscoin.program import program_name

if TYPE_CHECKING:
    from viscoin.slurm import Job, State

ASK = 10.0  # seconds between two questions to SLURM
PATIENCE = 12  # questions without an answer
USAGE_ERROR: Any = typer.BadParameter.__mro__[1]  # of Typer's own click, or of the click that it uses


def submit(
    context: typer.Context,
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- COMMAND", help="What to run, as in -- train viscoin --dataset birds."),
    ] = None,
    partition: Annotated[
        str | None, typer.Option("--partition", metavar="NAME", help="Queue; default: the cluster's. See: sinfo")
    ] = None,
    account: Annotated[str | None, typer.Option("--account", metavar="NAME", help="Who pays.")] = None,
    gpus: Annotated[
        str, typer.Option("--gpus", metavar="N|TYPE:N", help="Graphics cards of each machine; 0 computes on the CPU.")
    ] = "1",
    nodes: Annotated[int, typer.Option("--nodes", min=1, metavar="N", help="Machines.")] = 1,
    limit: Annotated[
        str,
        typer.Option("--time", metavar="D-HH:MM:SS", help="After that the job is ended; a training starts again."),
    ] = "1-00:00:00",
    mem: Annotated[str, typer.Option("--mem", metavar="SIZE", help="Main memory of each machine.")] = "32G",
    cpus_per_task: Annotated[
        int, typer.Option("--cpus-per-task", min=1, metavar="N", help="Processor cores for each graphics card.")
    ] = 8,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Name of the job; default: that of the command.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the batch script, and submit nothing.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Print metrics until the job ends, then exit with its exit code.")
    ] = False,
) -> None:
    """Submit a command to SLURM; a training that is preempted or out of time goes on by itself.

    Adds --devices and --num-nodes to the command, and the folder of the run (--out), where its output goes as well.
    """
    from viscoin import slurm

    words = _checked(context.find_root().command, command or [])
    limits = Limits(partition, account, gpus, nodes, limit, mem, cpus_per_task)
    job, folder = _job(words, limits, name)
    script = job.script()
    if dry_run:
        typer.echo(script, nl=False)
        return
    slurm.check_slurm("sbatch", f"{program_name()} {shlex.join(words.all)}")
    existed = folder.exists()
    path = _written(script, folder)
    try:
        number = slurm.submit(path)
    except ValueError:
        if not existed:
            shutil.rmtree(folder)
        raise
    typer.echo(f"job {number}: {job.name}")
    metrics = _metrics(words, folder)
    place = shlex.quote(str(folder))
    lines = {
        "run folder": str(folder),
        "state": f"squeue --job {number}",
        "output": f"tail -F {place}/slurm-{number}.out",
        "metrics": f"{program_name()} logs --follow --logs-path {place}" if len(metrics) == 1 else None,
        "cancel": f"scancel {number}",
        "go on": job.resubmit,
    }
    for title, text in lines.items():
        if text is not None:
            typer.echo(f"  {title:11} {text}")
    if follow:
        raise typer.Exit(_followed(number, folder, metrics))


class Limits(NamedTuple):
    """What the options ask SLURM for."""

    partition: str | None
    account: str | None
    gpus: str
    nodes: int
    time: str
    mem: str
    cpus: int

    def cards(self) -> int:
        """Graphics cards of each machine.

        Raises:
            ValueError: an option that SLURM would not understand.
        """
        from viscoin.slurm import seconds_of

        seconds_of(self.time)
        if not re.fullmatch(r"\d+[KMGTkmgt]?[Bb]?", self.mem):
            raise ValueError(f"--mem {self.mem!r}: expected a number and K, M, G or T, as in 32G")
        match = re.fullmatch(r"(?:[\w.-]+:)?(\d+)", self.gpus)
        if match is None:
            raise ValueError(f"--gpus {self.gpus!r}: expected a number, or the type and a number, as in a100:4")
        for option, value in (("--partition", self.partition), ("--account", self.account)):
            _check_word(option, value)
        return int(match[1])


class Words(NamedTuple):
    """A command line of ours that exists: the words of the command, the rest, and its options with their values."""

    command: list[str]
    rest: list[str]
    options: dict[str, Any]  # by name: the value, None where it is not given

    @property
    def all(self) -> list[str]:
        return [*self.command, *self.rest]


def _checked(program: Any, words: list[str]) -> Words:
    """Read the command line to submit, without running it; ValueError unless `program` could run it."""
    example = f"as in: {program_name()} submit --time 1-00:00:00 -- train viscoin --dataset birds"
    if not words:
        raise ValueError(f"submit: no command; write it after --, {example}")
    command, rest, found = program, words, list[str]()
    while hasattr(command, "commands"):
        known = ", ".join(sorted(set(command.commands) - {"submit"}))
        if not rest or rest[0] not in command.commands or rest[0] == "submit":
            what = shlex.join([*found, *rest[:1]]) or "nothing"
            raise ValueError(
                f"submit: there is no command {what!r} to submit; after {shlex.join(found) or '--'} {known}"
            )
        command, found, rest = command.commands[rest[0]], [*found, rest[0]], rest[1:]
    try:
        parsed = command.make_context(" ".join(found), list(rest))
    except USAGE_ERROR as error:
        raise ValueError(f"submit: {' '.join(found)}: {error.format_message()}") from error
    given = {
        option: parsed.params[parameter.name]
        if parsed.get_parameter_source(parameter.name) is not None
        and parsed.get_parameter_source(parameter.name).name == "COMMANDLINE"
        else None
        for parameter in command.params
        for option in parameter.opts
    }
    return Words(found, rest, given)


def _job(words: Words, limits: Limits, name: str | None) -> tuple["Job", Path]:
    """The job that runs a command, and the folder of its run."""
    from viscoin.slurm import Job

    cards, name = limits.cards(), name or "-".join(words.command)
    _check_word("--name", name)
    options = words.options
    tasks = options.get("--devices") or max(1, cards)
    if cards and tasks != cards:
        raise ValueError(f"--gpus {limits.gpus}, but the command has --devices {tasks}; leave one of them out")
    if options.get("--num-nodes") not in (None, limits.nodes):
        raise ValueError(
            f"--nodes {limits.nodes}, but the command has --num-nodes {options['--num-nodes']}; make them agree"
        )
    more: list[str] = []
    if "--devices" in options and words.command[0] != "sweep":  # whose workers have one device each
        more += [] if options["--devices"] else ["--devices", str(tasks)]
        more += [] if options["--num-nodes"] else ["--num-nodes", str(limits.nodes)]
    elif tasks * limits.nodes > 1:
        raise ValueError(
            f"--gpus {limits.gpus}, --nodes {limits.nodes}: {' '.join(words.command)!r} computes on one device; "
            "leave these options out"
        )
    folder = Path(options.get("--out") or f"runs/{name}-{datetime.now():%Y%m%d-%H%M%S}")
    folder = folder if folder.suffix != ".zip" else folder.parent
    if re.search(r"[^\w./+,=@:-]", str(folder)):
        raise ValueError(
            f"--out {folder}: SLURM writes only to paths of letters, digits and . / + , = @ : _ -; rename it"
        )
    if "--out" in options and options["--out"] is None:
        if options.get("--resume"):
            raise ValueError("submit: --resume needs the folder of the run that is to go on, as in --out runs/NAME")
        more += ["--out", str(folder)]
    line = f"{program_name()} {shlex.join([*words.all, *more])}"
    job = Job(
        head=(f"Made by `submit` on {datetime.now():%Y-%m-%d %H:%M}; what it runs goes on with: sbatch THIS_FILE",),
        name=name,
        command=line,
        output=f"{folder}/slurm-%j.out",
        folder=shlex.quote(str(folder)),
        activate=f"export PATH={shlex.quote(os.path.dirname(sys.executable))}:$PATH # the Python that submitted this",
        resubmit=f"sbatch {shlex.quote(str(folder / 'job.sbatch'))}",
        nodes=limits.nodes,
        tasks=tasks,
        gpus=limits.gpus if cards else "0",
        cpus=limits.cpus,
        mem=limits.mem,
        time=limits.time,
        partition=limits.partition,
        account=limits.account,
        continues=words.command[0] in ("train", "sweep"),
    )
    return job, folder


def _check_word(option: str, value: str | None) -> None:
    """Raise ValueError for what would break a line of the batch script apart."""
    if value is not None and not re.fullmatch(r"[\w.,+-]+", value):
        raise ValueError(f"{option} {value!r}: only letters, digits and . , + - _ may be in it")


def _written(script: str, folder: Path) -> Path:
    """The batch script, in the run folder, which SLURM does not make by itself."""
    from viscoin.files import atomic_path

    path = folder / "job.sbatch"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as partial:
            partial.write_text(script)
    except OSError as error:
        raise ValueError(f"--out {folder}: cannot write there ({error.strerror}); choose another folder") from error
    return path


def _metrics(words: Words, folder: Path) -> list[Path]:
    """Files that a command writes metrics to."""
    from viscoin.runs.metrics import METRICS

    if words.command == ["train", "all"]:
        return [folder / kind / METRICS for kind in ("classifier", "gan", "viscoin")]
    return [folder / METRICS] if words.command[0] == "train" else []


def _followed(number: str, folder: Path, metrics: list[Path]) -> int:
    """Print metrics and states of a job until it has ended; returns its exit code."""
    from viscoin.runs.metrics import describe_line, follow

    typer.echo("Ctrl-C ends this, not the job", err=True)
    watched = _Watched(number)
    names = [f"{path.parent.name}  " if len(metrics) > 1 else "" for path in metrics]
    try:
        for growth in follow(metrics, pause=min(1.0, ASK)):
            for i in growth.rewritten:
                typer.echo(f"{names[i]}went back, as after a new start")
            for i, text in growth.fresh:
                if line := describe_line(text):
                    typer.echo(f"{names[i]}{line}")
            if watched.ended:  # already before these lines were read: there are no more
                break
            watched.look()
        while not watched.ended:  # the run has its model, the job ends a little later
            time.sleep(min(1.0, ASK))
            watched.look()
    except KeyboardInterrupt:
        typer.echo(f"stopped following; job {number} goes on", err=True)
        raise typer.Exit(130) from None
    if not watched.went_well or not any(path.is_file() for path in metrics):
        _show_end(folder / f"slurm-{number}.out")
    return watched.exit_code


class _Watched:
    """A job whose changes of state are told."""

    def __init__(self, number: str) -> None:
        self.number = number
        self.state: State | None = None
        self.said, self.asked, self.unanswered = "", -ASK, 0

    def look(self) -> None:
        """Ask SLURM now and then; ValueError where it has not answered for long."""
        from viscoin.slurm import job_state

        if time.monotonic() - self.asked < ASK:
            return
        self.asked, found = time.monotonic(), job_state(self.number)
        self.unanswered = 0 if found else self.unanswered + 1
        if self.unanswered >= PATIENCE:
            raise ValueError(f"SLURM does not tell of job {self.number}; see: scontrol show job {self.number}")
        if found is None:
            return
        self.state = found
        waits = f" ({found.reason})" if found.reason not in ("None", "") and not found.ended else ""
        text = f"job {self.number}: {found.name.lower()}{waits}"
        if text != self.said:
            typer.echo(text, err=True)
            self.said = text

    @property
    def ended(self) -> bool:
        return self.state is not None and self.state.ended

    @property
    def went_well(self) -> bool:
        return self.state is not None and self.state.name == "COMPLETED"

    @property
    def exit_code(self) -> int:
        if self.went_well or self.state is None:
            return 0
        return self.state.exit_code or 1


def _show_end(path: Path, lines: int = 10) -> None:
    """The last lines of what a job printed."""
    if path.is_file():
        texts: Sequence[str] = path.read_text(errors="replace").splitlines()[-lines:]
        typer.echo("\n".join([f"{path} ends with", *(f"  {text}" for text in texts)]), err=True)
