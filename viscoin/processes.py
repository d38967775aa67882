"""Which of several processes this one is, before any of them talk to each other."""

import os


def is_first_process() -> bool:
    """Whether this process writes files and speaks: false in those that a launcher started beside it."""
    return all(int(os.environ.get(name) or 0) == 0 for name in ("RANK", "NODE_RANK", "LOCAL_RANK", "SLURM_PROCID"))
