"""Batch scripts: what a job asks SLURM for and runs, rendered from one template."""

import re
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from viscoin.errors import Refused

WARNING = 120  # seconds before the end of its time in which a training saves
TIME = re.compile(
    r"(?P<minutes>\d+)(:(?P<seconds>\d+))?|(?P<h>\d+):(?P<m>\d+):(?P<s>\d+)"
    r"|(?P<days>\d+)-(?P<dh>\d+)(:(?P<dm>\d+)(:(?P<ds>\d+))?)?"
)


@dataclass(frozen=True)
class Job:
    """What one batch script asks for and runs.

    Attributes:
        head: comment lines that say what it is for.
        command: the command line that srun starts, quoted for the shell.
        output: file for what the job prints, with SLURM's %x, %j, %A and %a.
        folder: folder of the run, quoted for the shell.
        activate: line that makes `python` the right one.
        resubmit: command that resumes the run by hand.
        nodes, tasks: nodes, and processes per node.
        gpus: GPUs per node, "2" or "a100:2"; "0" for none.
        cpus: CPU cores per process.
        mem: memory per node, such as "32G".
        time: time limit in SLURM's notation; see `seconds_of`.
        continues: whether the command saves when warned and resumes when it is started again.
        redirect: whether its output goes into the run folder.
        array: task indices of a job array, such as "0-3".
        template: whether people fill it in: partition and account are there as comments.
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
            ("output", self.output, "what the job prints; its folder must exist"),
            ("open-mode", "append", "keep the output when the job is restarted"),
            ("array", self.array, "one job per index"),
            ("nodes", str(self.nodes), "nodes"),
            ("ntasks-per-node", str(self.tasks), "processes per node, one per GPU"),
            ("gpus-per-node", self.gpus if self.gpus != "0" else None, "GPUs per node"),
            ("cpus-per-task", str(self.cpus), "CPU cores per process, to read and augment images"),
            ("mem", self.mem, "memory per node"),
            ("time", self.time, "time limit, days-hours:minutes:seconds"),
            ("requeue", "", "restart the job after a preemption or a failure of its node"),
            ("signal", self._signal(), "warn the job this many seconds before its time limit"),
            ("partition", self.partition, "see: sinfo"),
            ("account", self.account, "account to charge"),
        ]  # fmt: skip
        lines = [(f"#SBATCH --{key}{'=' * bool(value)}{value}", why) for key, value, why in given if value is not None]
        if self.template:
            lines += [("##SBATCH --partition=NAME", "see: sinfo"), ("##SBATCH --account=NAME", "account to charge")]
        width = min(40, max(len(line) for line, _ in lines))
        return [f"{line:{width}} # {why}" for line, why in lines]

    def _signal(self) -> str | None:
        seconds = seconds_of(self.time)
        # A job of a few minutes would be warned at once, and be restarted over and over again.
        return f"B:USR1@{min(WARNING, seconds // 4) if seconds else WARNING}" if self.continues else None


def seconds_of(time: str) -> int | None:
    """Length of a time limit: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]].

    Returns:
        Seconds; None for "UNLIMITED".

    Raises:
        Refused: it is not one of these, or zero.
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
        raise Refused(
            "time", time, "expected minutes, hours:minutes:seconds or days-hours:minutes:seconds, as in 1-12:00:00"
        )
    return total


def shipped_jobs() -> dict[str, Job]:
    """The scripts in slurm/ by name, which scripts/write_slurm_jobs.py writes from the template."""
    several = '--devices "$SLURM_NTASKS_PER_NODE" --num-nodes "$SLURM_NNODES"'

    def job(name: str, what: str, words: str, example: str, more: tuple[str, ...] = (), **changes: object) -> Job:
        number = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" if "array" in changes else "$SLURM_JOB_ID"
        values: dict[str, object] = {
            "head": (
                what,
                "Submit from the project's folder; options of sbatch come before the script, the command's after it:",
                f"    sbatch slurm/{name}.sbatch {example}",
                *more,
                "Partitions and accounts differ between clusters: remove one '#' from those lines and fill them in.",
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

    cluster = (
        "On two nodes with four GPUs each:",
        "    sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 slurm/{}.sbatch --dataset birds",
    )
    jobs = {
        name: job(
            name, what, f"train {name}", "--dataset birds", tuple(line.format(name) for line in cluster),
            time=time, mem=mem,
        )
        for name, what, time, mem in (
            ("classifier", "Train the classifier f.", "0-02:00:00", "16G"),
            ("gan", "Train the generator G.", "2-00:00:00", "32G"),
            ("viscoin", "Train Psi, Theta and Omega on the newest f and G of the dataset.", "1-00:00:00", "32G"),
        )
    }  # fmt: skip
    jobs["test"] = job(
        "test", "Test the newest ensemble of the dataset.", "test viscoin", "--dataset birds",
        time="0-01:00:00", mem="16G", continues=False,
    )  # fmt: skip
    jobs["array"] = job(
        "array", "Train one classifier per index of the array, which is its seed.", "train classifier",
        "--dataset birds", ("    sbatch --array=0-9%2 slurm/array.sbatch # ten classifiers, two at a time",),
        command=f'python main.py train classifier {several} --seed "$SLURM_ARRAY_TASK_ID" --out "$run" "$@"',
        resubmit="sbatch --array=$SLURM_ARRAY_TASK_ID slurm/array.sbatch --out $run $*",
        array="0-3", time="0-02:00:00", mem="16G",
    )  # fmt: skip
    jobs["sweep"] = job(
        "sweep", "Search with several workers in one study, until it has its number of trials.", "sweep",
        "classifier --dataset birds --space space.yaml --trials 20",
        command='python main.py sweep --out "$run" "$@"', folder="runs/$SLURM_JOB_NAME-$SLURM_ARRAY_JOB_ID",
        resubmit="sbatch slurm/sweep.sbatch --out $run $*",
        array="0-3", time="0-08:00:00", mem="16G",
    )  # fmt: skip
    return jobs
