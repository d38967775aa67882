"""Write slurm/*.sbatch from the template that `python main.py submit` uses: python scripts/write_slurm_jobs.py"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from viscoin.slurm.script import shipped_jobs  # noqa: E402


def main() -> None:
    for name, job in shipped_jobs().items():
        path = ROOT / "slurm" / f"{name}.sbatch"
        path.write_text(job.script(), encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
