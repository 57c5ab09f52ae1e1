"""Start a job under torchrun, follow its progress, return its run. Needs torch only in the processes it starts."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from executor.data import STDLIB, open_data, write_stdlib
from executor.engine import refusal
from executor.run import JOB_FILE, LOG_FILE, RUN_FILE, Job, Run, check_job, job_as_dict, read_run
from profiles.files import BadInput, make_folder, write_text
from profiles.measure import CPU_ENVIRONMENT
from simulator.schedules import load_table

NUM_LOG_LINES = 20
PATIENCE_S = 15.0


def launch(job: Job, on_progress: Callable[[dict[str, Any]], None] | None = None) -> Run:
    """Run a job in its own processes and return what was measured; the job's folder keeps the run and the log."""
    check_launch(job)
    folder = make_folder(job.out)
    job_file = write_text(folder / JOB_FILE, json.dumps(job_as_dict(job), indent=2) + "\n")
    if job.data == STDLIB:
        write_stdlib(folder)
    log_file = folder / LOG_FILE
    (folder / RUN_FILE).unlink(missing_ok=True)  # a run that fails must not leave the one before it
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
        str(job.strategy.world_size), "-m", "executor.train", str(job_file),
    ]
    with log_file.open("w") as log:
        status = _follow(command, child_environment(job), log, on_progress)
    if status != 0:
        raise RuntimeError(f"training stopped with status {status}; the whole log is {log_file}\n{tail(log_file)}")
    return read_run(folder)


def check_launch(job: Job) -> None:
    """Refuse a job that cannot start on this machine; CPU ranks may outnumber cores, GPU ranks not GPUs."""
    check_job(job)
    if importlib.util.find_spec("torch") is None:
        raise BadInput("torch: is not installed, and running a plan needs it; pip install headway[torch]")
    table = load_table(job.table)[0] if job.table else None
    reason = refusal(job.strategy, job.model, job.device, table)
    if reason:
        raise BadInput(f"strategy: {reason}")
    if job.data != STDLIB:
        open_data(job.data, job.out, seq_len=job.strategy.seq_len, vocab=job.model.vocab, fingerprint=job.fingerprint)
    if job.device == "cuda":
        import torch

        present = torch.cuda.device_count()
        if present < job.strategy.world_size:
            raise BadInput(f"strategy: needs {job.strategy.world_size} GPUs, this machine has {present}")


def child_environment(job: Job) -> dict[str, str]:
    """Return the environment of the workers: where to find this package, and settings that measurements need."""
    here = str(Path(__file__).resolve().parent.parent)
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(CPU_ENVIRONMENT if job.device == "cpu" else {})}


def _follow(
    command: list[str], env: dict[str, str], log: TextIO, on_progress: Callable[[dict[str, Any]], None] | None
) -> int:
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.startswith("{"):
                log.write(line)
            elif on_progress is not None and "event" not in (told := json.loads(line)):
                on_progress(told)
        return process.wait()
    finally:
        stop(process)


def stop(process: subprocess.Popen[str]) -> None:
    """End torchrun and with it its workers: asked first, forced after a while."""
    if process.poll() is not None:
        return
    # the workers have sessions of their own, and only torchrun knows them: let it end them
    process.terminate()
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def tail(path: Path) -> str:
    """Return the last lines of a log before torchrun's own account of the failure, which is long and says little."""
    lines = path.read_text(errors="replace").splitlines()
    account = next((i for i, line in enumerate(lines) if "distributed/elastic/multiprocessing" in line), None)
    return "\n".join(lines[: account or None][-NUM_LOG_LINES:])
