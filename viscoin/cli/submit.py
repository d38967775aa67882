"""`submit`: run another command as a job of a SLURM cluster."""

import shlex
from signal import SIGINT
from typing import TYPE_CHECKING, Annotated, Any

import typer

from viscoin.cli.output import echo
from viscoin.errors import Refused
from viscoin.program import program_name
from viscoin.signals import Stopped

if TYPE_CHECKING:
    from viscoin.slurm.submission import CommandLine, Submission

USAGE_ERROR: Any = typer.BadParameter.__mro__[1]  # of Typer's own click, or of the click that it uses
EXAMPLE = "submit --time 1-00:00:00 -- train viscoin --dataset birds"


def submit(
    context: typer.Context,
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- COMMAND", help="Command to run, as in -- train viscoin --dataset birds."),
    ] = None,
    partition: Annotated[
        str | None, typer.Option("--partition", metavar="NAME", help="Partition; see: sinfo. Default: the cluster's.")
    ] = None,
    account: Annotated[str | None, typer.Option("--account", metavar="NAME", help="Account to charge.")] = None,
    gpus: Annotated[
        str, typer.Option("--gpus", metavar="N|TYPE:N", help="GPUs per node; 0 computes on the CPU.")
    ] = "1",
    nodes: Annotated[int, typer.Option("--nodes", min=1, metavar="N", help="Number of nodes.")] = 1,
    time: Annotated[
        str, typer.Option("--time", metavar="D-HH:MM:SS", help="Time limit; a training is requeued when it is reached.")
    ] = "1-00:00:00",
    mem: Annotated[str, typer.Option("--mem", metavar="SIZE", help="Memory per node.")] = "32G",
    cpus_per_task: Annotated[int, typer.Option("--cpus-per-task", min=1, metavar="N", help="CPU cores per GPU.")] = 8,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Name of the job; default: the command's.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the batch script without submitting it.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Print the metrics until the job ends, and exit with its exit code.")
    ] = False,
) -> None:
    """Run any command as a job of a SLURM cluster.

    A training that is preempted or reaches its time limit is requeued and resumes. The job's output goes into the
    folder of the run. Adds --devices, --num-nodes and --out to the command where it lacks them.
    """
    from viscoin.slurm.submission import Limits, prepare

    line = _checked(context.find_root().command, command or [])
    submission = prepare(
        line, Limits(partition, account, gpus, nodes, time, mem, cpus_per_task), name, reserve=not dry_run
    )
    if dry_run:
        echo(submission.job.script(), nl=False)
        return
    number = submission.submit()
    echo(f"job {number}: {submission.job.name}")
    for title, text in {"run folder": submission.folder, **submission.commands(number)}.items():
        echo(f"  {title:11} {text}")
    if follow:
        raise typer.Exit(_followed(number, submission))


def _followed(number: str, submission: "Submission") -> int:
    """Print metrics and states of a job until it has ended; returns its exit code."""
    from viscoin.slurm.following import follow_job
    from viscoin.slurm.queue import Watch

    echo("Ctrl-C stops following, not the job", err=True)
    watch = Watch(number)
    try:
        for news in follow_job(submission, watch):
            echo(news.text, err=news.about_job)
    except KeyboardInterrupt as stop:
        raise Stopped(f"stopped following; job {number} continues", getattr(stop, "signal", SIGINT)) from None
    return watch.exit_code


def _checked(program: Any, words: list[str]) -> "CommandLine":
    """Read the command line to submit, without running it.

    Raises:
        Refused: `program` could not run it.
    """
    from viscoin.slurm.submission import CommandLine

    if not words:
        raise Refused(
            None, None, "there is no command to submit", f"write it after --, as in: {program_name()} {EXAMPLE}"
        )
    command, rest, found = program, words, list[str]()
    while hasattr(command, "commands"):
        known = sorted(set(command.commands) - {"submit"})
        if not rest or rest[0] not in known:
            what = shlex.join([*found, *rest[:1]])
            remedy = f"write after {shlex.join(found) or '--'} one of {', '.join(known)}"
            raise Refused(None, None, f"there is no command {what!r} to submit", remedy)
        command, found, rest = command.commands[rest[0]], [*found, rest[0]], rest[1:]
    try:
        parsed = command.make_context(" ".join(found), list(rest))
    except USAGE_ERROR as error:
        raise Refused("command", " ".join(found), error.format_message()) from error
    names = [parameter.name for parameter in command.params]
    given = {name for name in names if getattr(parsed.get_parameter_source(name), "name", "") == "COMMANDLINE"}
    options = {name: parsed.params.get(name) if name in given else None for name in names}
    return CommandLine(program_name(), tuple(found), tuple(rest), options)
