"""SLURM: batch scripts from one template, submitting them, and following the jobs."""
