"""SLURM's queue: submit batch scripts, and watch the states of jobs."""

import math
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from viscoin.errors import Refused

ASK = 10.0  # seconds between two questions to SLURM
PATIENCE = 12  # questions without an answer
ENDED = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
)  # fmt: skip
OF_CLUSTER = ("BOOT_FAIL", "NODE_FAIL", "PREEMPTED", "REVOKED")  # the job did nothing wrong


@dataclass(frozen=True)
class State:
    """State of a job: SLURM's word for it, why the job waits, and its exit code."""

    name: str
    reason: str
    exit_code: int

    @property
    def ended(self) -> bool:
        return self.name in ENDED

    def __str__(self) -> str:
        waits = f" ({self.reason})" if self.reason not in ("None", "") and not self.ended else ""
        return f"{self.name.lower()}{waits}"


class Watch:
    """Watches the state of a job.

    Attributes:
        state: the last one that SLURM reported, None before.
    """

    def __init__(self, number: str) -> None:
        self.number = number
        self.state: State | None = None
        self._said, self._asked, self._unanswered = "", -math.inf, 0

    def look(self) -> str:
        """Ask SLURM, at most every `ASK` seconds; returns the new state as text, "" where nothing has changed.

        Raises:
            Refused: SLURM has not answered `PATIENCE` times.
        """
        if time.monotonic() - self._asked < ASK:
            return ""
        self._asked, found = time.monotonic(), job_state(self.number)
        self._unanswered = 0 if found else self._unanswered + 1
        if self._unanswered >= PATIENCE:
            raise Refused(
                None, None, f"SLURM does not report job {self.number}", f"see: scontrol show job {self.number}"
            )
        if found is None:
            return ""
        self.state = found
        before, self._said = self._said, f"job {self.number}: {found}"
        return self._said if self._said != before else ""

    @property
    def ended(self) -> bool:
        return self.state is not None and self.state.ended

    @property
    def completed(self) -> bool:
        return self.state is not None and self.state.name == "COMPLETED"

    @property
    def exit_code(self) -> int:
        """Exit code of the job; where it failed without one, 75 if that was for its node, else 1."""
        if self.completed or self.state is None:
            return 0
        return self.state.exit_code or (75 if self.state.name in OF_CLUSTER else 1)


def submit(script: Path) -> str:
    """Submit a batch script with sbatch; returns the number of the job.

    Raises:
        Refused: sbatch refuses it; says why.
    """
    return _call("sbatch", "--parsable", str(script)).partition(";")[0].strip()


def check_slurm(instead: str) -> None:
    """Check that jobs can be submitted from here.

    Args:
        instead: command line that does without SLURM.

    Raises:
        Refused: there is no sbatch.
    """
    if shutil.which("sbatch") is None:
        reason = "there is no sbatch here, since SLURM is not installed"
        remedy = f"submit from the login node of a cluster, or run the command without SLURM: {instead}"
        raise Refused(None, None, reason, remedy)


def job_state(job: str) -> State | None:
    """State of a job; None where SLURM does not answer, or no longer knows it."""
    try:
        said = _call("scontrol", "show", "job", "--oneliner", job)
    except ValueError:
        return _state_of_accounts(job)
    facts = dict(word.partition("=")[::2] for word in next(iter(said.splitlines()), "").split())
    if not facts.get("JobState"):
        return None
    return State(facts.get("JobState", ""), facts.get("Reason", ""), _exit_code(facts.get("ExitCode", "0:0")))


def _state_of_accounts(job: str) -> State | None:
    """From the cluster's accounting, where it has one: that remembers jobs that ended long ago."""
    try:
        said = _call("sacct", "--noheader", "--allocations", "--parsable2", "--format=State,ExitCode", "--jobs", job)
        state, code = said.splitlines()[0].split("|")
        return State(state.split()[0], "", _exit_code(code))
    except (ValueError, IndexError):
        return None


def _exit_code(text: str) -> int:
    """SLURM's "code:signal" as a shell reports it."""
    code, signal = (int(part) if part.isdigit() else 0 for part in text.partition(":")[::2])
    return code or (128 + signal if signal else 0)


def _call(command: str, *arguments: str) -> str:
    try:
        done = subprocess.run([command, *arguments], capture_output=True, text=True, timeout=120)
    except FileNotFoundError as error:
        raise Refused(None, None, f"there is no {command} here") from error
    except subprocess.TimeoutExpired as error:
        raise Refused(None, None, f"{command}: no answer in two minutes", "see whether SLURM is up: sinfo") from error
    if done.returncode:
        lines = [line.split("error: ")[-1] for line in done.stderr.splitlines() if "error: " in line]
        said = "; ".join(lines) or done.stderr.strip() or str(done.returncode)
        raise Refused(None, None, f"{command} refuses: {said}")
    return done.stdout
