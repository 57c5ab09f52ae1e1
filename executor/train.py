"""The worker that torchrun starts on each rank: `python -m executor.train JOB.json`. Trains, measures, writes a run."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor.parallel import loss_parallel

from executor import data
from executor.parallel import Parallel, parallelise
from executor.pipeline import build_pipeline, run_step
from executor.record import Recorder
from executor.run import DATA, Job, Run, job_from_dict, write_run
from profiles.files import read_mapping
from profiles.measure.leave import leave_group
from simulator.layout import rank_of
from simulator.schedules import load_table
from simulator.timeline import COLUMNS

BACKENDS = {"cpu": "gloo", "cuda": "nccl"}


def main(path: str) -> None:
    """Train the job in a file; the first rank that has a loss reports progress, rank 0 writes the run."""
    job = job_from_dict(read_mapping(path), path)
    device = _own_device(job.device)
    dist.init_process_group(BACKENDS[job.device], device_id=device if device.type == "cuda" else None)
    mine = train(job, device)
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    if dist.get_rank() == 0:
        write_run(join(job, everyone), job.out)
    leave_group()


def _own_device(kind: str) -> torch.device:
    if kind == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def train(job: Job, device: torch.device) -> dict[str, Any]:
    """Return what this rank measured over the job's steps."""
    source = data.open_data(job.data, job.out, seq_len=job.strategy.seq_len, vocab=job.model.vocab,
                            first_sample=job.first_sample)
    idle_bytes = _idle_bytes(device)
    table = load_table(job.table)[0] if job.table else None
    parallel = parallelise(job.model, job.strategy, device, seed=job.seed, learning_rate=job.learning_rate, table=table)
    recorder = Recorder(dist.get_rank(), device)
    schedule = build_pipeline(parallel, recorder)
    reports = dist.get_rank() == rank_of(job.strategy, pp=parallel.home[max(parallel.home)])
    losses: list[float] = []
    feed = data.batches(source, job.strategy, seed=job.seed, dp_rank=parallel.dp_rank, num_steps=job.num_steps,
                        first_sample=job.first_sample)
    dist.barrier()
    recorder.start()
    with data.Prefetch(feed) as batches, loss_parallel() if job.strategy.tp > 1 else nullcontext():
        for step in range(job.num_steps):
            with recorder.step():
                with recorder.span(DATA, "", stream="host"):
                    tokens = _on_device(next(batches), device)
                loss = run_step(parallel, schedule, tokens, recorder)
                update(parallel, recorder)
            if loss is not None:
                losses.append(float(loss))
            if reports:
                line = {"step": step, "loss": losses[-1], "step_time_s": recorder.step_times_s[-1]}
                print(json.dumps(line), flush=True)
    peak_bytes, reserved_bytes = _peak_bytes(device)
    return {
        "rows": recorder.rows, "step_times_s": recorder.step_times_s, "losses": losses, "idle_bytes": idle_bytes,
        "peak_bytes": peak_bytes, "reserved_bytes": reserved_bytes,
    }


def update(parallel: Parallel, recorder: Recorder) -> None:
    """Apply the optimizer to the gradients of a step, and free them."""
    with recorder.span("optimizer", "U"):
        parallel.optimizer.step()
        parallel.optimizer.zero_grad()


def _on_device(batch: data.Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    inputs, targets = batch
    return torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device)


def join(job: Job, everyone: list[dict[str, Any]]) -> Run:
    """Return the run of all ranks' measurements: the slowest step times, the mean losses, one timeline."""
    rows = [row for mine in everyone for row in mine["rows"]]
    timeline = pd.DataFrame(rows, columns=list(COLUMNS)).sort_values(["start_s", "rank"], ignore_index=True)
    return Run(
        job=job, environment=environment(job.device),
        step_times_s=tuple(np.max([mine["step_times_s"] for mine in everyone], axis=0).tolist()),
        losses=tuple(np.mean([mine["losses"] for mine in everyone if mine["losses"]], axis=0).tolist()),
        idle_memory_bytes=tuple(mine["idle_bytes"] for mine in everyone),
        peak_memory_bytes=tuple(mine["peak_bytes"] for mine in everyone),
        reserved_memory_bytes=tuple(mine["reserved_bytes"] for mine in everyone), timeline=timeline,
    )


def environment(device_type: str) -> dict[str, Any]:
    """Return what a measurement depends on besides the job."""
    return {
        "torch": torch.__version__, "python": platform.python_version(), "platform": platform.platform(),
        "backend": BACKENDS[device_type], "num_threads": torch.get_num_threads(), "num_cores": os.cpu_count(),
        "device_name": torch.cuda.get_device_name() if device_type == "cuda" else _processor_name(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _idle_bytes(device: torch.device) -> int:
    """Return the bytes in use before training, and forget the peak until now (Linux: proc_pid_clear_refs(5))."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _resident_bytes("VmRSS")


def _peak_bytes(device: torch.device) -> tuple[int, int]:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    peak = _resident_bytes("VmHWM")
    return peak, peak


def _resident_bytes(field: str) -> int:
    """Return a memory field of this process (kB in Linux's /proc/self/status); 0 where there is no /proc."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)


if __name__ == "__main__":
    main(sys.argv[1])
