"""Processes that SLURM's srun started, as Fabric is to see them."""

import os
import re
from typing import Any

from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)


class Step(ClusterEnvironment):
    """The tasks of one step of a SLURM job, which is what one `srun` starts.

    Fabric's own environment goes by the variables of the whole job, which also stand in batch scripts and shells, and
    which a step that uses a part of the job inherits; this one by those of the step alone.
    """

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        if "MASTER_ADDR" in os.environ:
            return os.environ["MASTER_ADDR"]
        if _number("SLURM_STEP_NUM_NODES") == 1:
            return "127.0.0.1"
        return SLURMEnvironment.resolve_root_node_address(os.environ["SLURM_STEP_NODELIST"])

    @property
    def main_port(self) -> int:
        # The same in all tasks, another one for the jobs and steps beside them on the same node.
        own = 15000 + (_number("SLURM_JOB_ID") * 7 + _number("SLURM_STEP_ID")) % 15000
        return int(os.environ.get("MASTER_PORT", own))

    @staticmethod
    def detect() -> bool:
        return "SLURM_STEP_NUM_TASKS" in os.environ and "SLURM_PROCID" in os.environ

    def world_size(self) -> int:
        return _number("SLURM_STEP_NUM_TASKS")

    def set_world_size(self, size: int) -> None:
        """It is what srun made it."""

    def global_rank(self) -> int:
        return _number("SLURM_PROCID")

    def set_global_rank(self, rank: int) -> None:
        """It is what srun made it."""

    def local_rank(self) -> int:
        return _number("SLURM_LOCALID")

    def node_rank(self) -> int:
        return _number("SLURM_NODEID")


def fabric_plugins(devices: int, num_nodes: int) -> list[Any]:
    """What Fabric needs to know of who started this process: for `Fabric(plugins=...)`.

    One task (as in a shell of `srun --pty`), a batch script or a shell of salloc start the other processes of their
    machine themselves, as on a machine without SLURM.

    Raises:
        ValueError: srun started processes in another number, or none at all on the other nodes.
    """
    if TorchElasticEnvironment.detect():
        return []
    if Step.detect() and Step().world_size() > 1:
        _check_step(devices, num_nodes)
        return [Step()]
    if num_nodes > 1 and Step.detect():
        raise ValueError(
            f"--num-nodes {num_nodes}: srun started one process; start {devices * num_nodes} with "
            f"srun --nodes={num_nodes} --ntasks-per-node={devices}"
        )
    if num_nodes > 1 and "NODE_RANK" not in os.environ:
        raise ValueError(
            f"--num-nodes {num_nodes}: nothing starts processes on the other nodes; put srun before the command "
            f"(with --nodes={num_nodes} --ntasks-per-node={devices}), or torchrun"
        )
    return [LightningEnvironment()] if "SLURM_JOB_ID" in os.environ else []


def _check_step(devices: int, num_nodes: int) -> None:
    nodes, tasks = _number("SLURM_STEP_NUM_NODES"), _number("SLURM_STEP_NUM_TASKS")
    if nodes == num_nodes and set(_tasks_per_node()) == {devices}:
        return
    per_node = _tasks_per_node()
    means = f"pass --devices {per_node[0]} --num-nodes {nodes}, or start " if len(set(per_node)) == 1 else ""
    raise ValueError(
        f"srun started {tasks} processes on {nodes} {'node' if nodes == 1 else 'nodes'}, but --devices {devices} times "
        f"--num-nodes {num_nodes} is {devices * num_nodes}; {means or 'start '}srun with --nodes={num_nodes} "
        f"--ntasks-per-node={devices}"
    )


def _tasks_per_node() -> list[int]:
    """SLURM's "2(x3),1" as numbers: [2, 2, 2, 1]."""
    counts = []
    for tasks, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")):
        counts += [int(tasks)] * int(times or 1)
    return counts


def _number(name: str) -> int:
    return int(os.environ.get(name, "0"))
