"""A small real SLURM on this machine, to try jobs on: python scripts/local_slurm.py [FOLDER] [--stop]

Needs Linux, root (as in a container) and the Debian packages slurm-wlm and munge; neither systemd, cgroups nor a
database. All its files lie in FOLDER. Several nodes are pretended, all of them this machine. Partitions: `main`; `low`,
whose jobs are put back into the queue when one of `high` needs their place.
"""

import argparse
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import product
from pathlib import Path

FOLDER = Path(tempfile.gettempdir()) / "viscoin-slurm"
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "setpriv")
DAEMONS = ("slurmd", "slurmctld", "munged")
KILL_WAIT = 60  # seconds that a job gets between SIGTERM and SIGKILL

CONFIGURATION = """\
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
# Trainings derive their port from the number of their job: two of these SLURMs must not count alike.
FirstJobId={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
# A container has neither systemd nor cgroups to itself.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
# More cores than there are, so that several jobs run at once; graphics cards in name only.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
KillWait={kill_wait}
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2
{nodes}
PartitionName=main Nodes=ALL Default=YES PriorityTier=5 PreemptMode=OFF MaxTime=1-00:00:00
PartitionName=low Nodes=ALL PriorityTier=1 MaxTime=1-00:00:00
PartitionName=high Nodes=ALL PriorityTier=9 MaxTime=1-00:00:00
"""


def missing() -> str | None:
    """Why SLURM cannot be started here; None where it can."""
    if sys.platform != "linux":
        return "SLURM runs on Linux only; use a Linux container"
    absent = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if absent:
        return f"{', '.join(absent)} not found; on Debian: apt-get install --no-install-recommends slurm-wlm munge"
    if os.geteuid() != 0:
        return "SLURM's daemons start jobs as other users and need root; run this as root in a container"
    try:
        pwd.getpwnam("munge")
    except KeyError:
        return "there is no user munge, whom the Debian package munge creates; install it again"
    return None


def start(folder: Path = FOLDER, nodes: int = 2, cpus: int = 8) -> Path:
    """Start all daemons; returns the configuration file, for the variable SLURM_CONF.

    Raises:
        RuntimeError: something is missing, or a daemon does not come up; says what.
    """
    if reason := missing():
        raise RuntimeError(reason)
    stop(folder)
    folder = folder.resolve()
    if not folder.exists():
        folder.mkdir(parents=True)
        folder.chmod(0o755)  # whatever the umask: the user munge must enter, and nobody else may write
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(exist_ok=True)
    configuration = _configure(folder, nodes, cpus)
    try:
        _start_munge(folder)
        _run("slurmctld", "-c", conf=configuration)
        for i in range(1, nodes + 1):
            _run("slurmd", "-N", f"node{i}", conf=configuration)
        _await_nodes(configuration, nodes)
    except RuntimeError:
        stop(folder)
        raise
    return configuration


def stop(folder: Path = FOLDER) -> bool:
    """Cancel all jobs and end all daemons; whether there were any."""
    configuration = folder / "slurm.conf"
    running = [pid for name in DAEMONS for pid in _pids(folder, name)]
    if _pids(folder, "slurmctld"):
        with suppress(RuntimeError):
            jobs = _run("squeue", "--noheader", "--format=%A", conf=configuration).split()
            if jobs:
                _run("scancel", *jobs, conf=configuration)
                until = time.monotonic() + KILL_WAIT + 10
                while time.monotonic() < until and _run("squeue", "--noheader", conf=configuration).strip():
                    time.sleep(0.2)
    for name, number in product(DAEMONS, (signal.SIGTERM, signal.SIGKILL)):
        for pid in _pids(folder, name):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        until = time.monotonic() + 10
        while time.monotonic() < until and _pids(folder, name):
            time.sleep(0.1)
    return bool(running)


def _configure(folder: Path, nodes: int, cpus: int) -> Path:
    ports = _free_ports(nodes + 1)
    host = socket.gethostname().partition(".")[0]
    lines = [
        f"NodeName=node{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=65536 "
        "Gres=gpu:2 State=UNKNOWN"
        for i, port in enumerate(ports[1:], 1)
    ]
    for i in range(1, nodes + 1):
        (folder / "spool" / f"node{i}").mkdir(exist_ok=True)
    for i in range(2):
        (folder / f"gpu{i}").touch()
    (folder / "gres.conf").write_text(f"NodeName=node[1-{nodes}] Name=gpu File={folder}/gpu[0-1]\n")
    path = folder / "slurm.conf"
    path.write_text(
        CONFIGURATION.format(host=host, ports=ports, folder=folder, kill_wait=KILL_WAIT, nodes="\n".join(lines))
    )
    return path


def _start_munge(folder: Path) -> None:
    """The daemon by which SLURM knows its users, with a key and a socket of its own."""
    place, key = folder / "munge", folder / "munge" / "key"
    key.unlink(missing_ok=True)
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    place.chmod(0o755)
    for path in (place, key):
        shutil.chown(path, "munge", "munge")
    _run(
        "setpriv", "--reuid=munge", "--regid=munge", "--clear-groups",
        shutil.which("munged", path=_path()) or "munged", f"--key-file={key}", f"--socket={place}/socket",
        f"--pid-file={place}/munged.pid", f"--log-file={place}/munged.log", f"--seed-file={place}/seed",
        hint=f"the user munge must be able to enter {folder}",
    )  # fmt: skip


def _await_nodes(configuration: Path, nodes: int, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with suppress(RuntimeError):
            if (
                _run("sinfo", "--noheader", "--partition=main", "--format=%T %D", conf=configuration)
                == f"idle {nodes}\n"
            ):
                return
        time.sleep(0.2)
    logs = "\n".join(path.read_text()[-1000:] for path in sorted(configuration.parent.glob("slurm*.log")))
    raise RuntimeError(f"SLURM's nodes do not come up; its logs in {configuration.parent} end with\n{logs}")


def _run(program: str, *arguments: str, conf: Path | None = None, hint: str = "") -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH"))}
    environment |= {"PATH": _path()} | ({"SLURM_CONF": str(conf)} if conf else {})
    with tempfile.TemporaryFile("w+") as output:  # not a pipe, which a daemon would keep open
        try:
            done = subprocess.run([program, *arguments], env=environment, stdout=output, stderr=output, timeout=60)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"{program}: no answer in a minute") from error
        output.seek(0)
        text = output.read()
    if done.returncode:
        raise RuntimeError(f"{program}: {text.strip() or done.returncode}" + (f" ({hint})" if hint else ""))
    return text


def _pids(folder: Path, daemon: str) -> list[int]:
    """Live processes of a daemon that was started here."""
    found = []
    for path in [*folder.glob(f"{daemon}*.pid"), *folder.glob(f"munge/{daemon}.pid")]:
        with suppress(OSError, ValueError):
            pid = int(path.read_text())
            if daemon.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER, help=f"for its files (default: {FOLDER})")
    parser.add_argument("--nodes", type=int, default=2, metavar="N", help="machines to pretend (default: 2)")
    parser.add_argument("--cpus", type=int, default=8, metavar="N", help="cores of each (default: 8)")
    parser.add_argument("--stop", action="store_true", help="cancel its jobs and end it")
    options = parser.parse_args()
    if options.stop:
        print("SLURM ended" if stop(options.folder) else f"no SLURM runs in {options.folder}")
        return
    try:
        configuration = start(options.folder, options.nodes, options.cpus)
    except RuntimeError as error:
        sys.exit(f"cannot start SLURM: {error}")
    place = "" if options.folder == FOLDER else f" {options.folder}"
    print(f"SLURM runs: {options.nodes} nodes of {options.cpus} cores; partitions main, low (may be preempted), high")
    print(f"  use it  export SLURM_CONF={configuration}")
    print(f"  end it  python scripts/local_slurm.py{place} --stop")


if __name__ == "__main__":
    main()
