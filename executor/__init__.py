"""Make it happen: torch model, parallelism, data, runs; `executor.launch.launch` starts a job in its own processes.

Only what the workers import needs torch.
"""

from executor.engine import refusal
from executor.run import Job, Run, read_run, write_run

__all__ = ["Job", "Run", "read_run", "refusal", "write_run"]
