"""The worker that torchrun starts on each rank: `python -m executor.train JOB.json`. Trains, measures, writes a run."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import sys
import time
import zlib
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
from executor.checkpoint import Checkpointer, load_state, newest_good
from executor.data.order import positions
from executor.journal import note, read_journal, trained_steps
from executor.manifest import check_same_training
from executor.monitor import Monitor
from executor.parallel import Parallel, parallelise
from executor.pipeline import build_pipeline, run_step
from executor.pulse import Pulse
from executor.record import Recorder
from executor.run import DATA, Job, Run, job_from_dict, write_run
from executor.told import Told
from executor.vitals import Vitals
from executor.weights import reader, write_weights
from profiles.files import read_mapping
from profiles.measure.leave import leave_group
from simulator.layout import ORDER, rank_of
from simulator.schedules import load_table
from simulator.timeline import COLUMNS

BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
RECORDED_VARIABLES = ("CUDA_", "GLOO_", "MALLOC_", "MKL_", "NCCL_", "OMP_", "PYTORCH_", "TORCH_")
"""Beginnings of the names of variables that change how fast or with what numbers training runs."""


def main(path: str) -> None:
    """Train the job in a file; rank 0 keeps the journal, reports progress, and writes the run when all steps are done."""
    job = job_from_dict(read_mapping(path), path)
    torch.manual_seed(job.seed)
    vitals = Vitals(job.out, int(os.environ["RANK"]))
    device = _own_device(job.device)
    dist.init_process_group(BACKENDS[job.device], device_id=device if device.type == "cuda" else None)
    mine = train(job, device, vitals)
    vitals.advance("ending the run")
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    if dist.get_rank() == 0 and all(everyone):
        write_run(join(job, everyone), job.out)
    dist.barrier()
    vitals.end()
    leave_group()


def _own_device(kind: str) -> torch.device:
    if kind == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def train(job: Job, device: torch.device, vitals: Vitals) -> dict[str, Any] | None:
    """Return what this rank measured over the steps it trained, or None where it was asked to leave before the last."""
    source = data.open_data(job.data, job.out, seq_len=job.strategy.seq_len, vocab=job.model.vocab,
                            fingerprint=job.fingerprint)
    idle_bytes = _idle_bytes(device)
    table = load_table(job.table)[0] if job.table else None
    parallel = parallelise(job.model, job.strategy, device, seed=job.seed, learning_rate=job.learning_rate, table=table,
                           read=reader(job.weights, job.model) if job.weights else None)
    reporter = Reporter(job, dist.get_rank())
    reports = dist.get_rank() == rank_of(job.strategy, pp=parallel.home[max(parallel.home)])
    # each on a group of its own: threads and steps in flight must not share one
    pulse, saving = Pulse(dist.new_group(backend="gloo")), dist.new_group(backend="gloo")
    checkpointer = Checkpointer(job, parallel, source.fingerprint, saving, reporter.say)
    first_step = take_up(job, parallel, source.fingerprint, saving, reporter)
    recorder = Recorder(dist.get_rank(), device)
    schedule = build_pipeline(parallel, recorder)
    feed = data.batches(source, job.strategy, seed=job.seed, dp_rank=parallel.dp_rank, num_steps=job.num_steps - first_step,
                        first_sample=job.first_sample + first_step * int(job.strategy.global_batch))
    is_left = False
    dist.barrier()
    recorder.start()
    with data.Prefetch(feed) as batches, loss_parallel() if job.strategy.tp > 1 else nullcontext():
        for step in range(first_step, job.num_steps):
            vitals.advance(f"step {step}")
            begun_at_s = time.time()
            with recorder.step():
                with recorder.span(DATA, "", stream="host"):
                    batch = next(batches)
                    tokens = _on_device(batch, device)
                loss = run_step(parallel, schedule, tokens, recorder)
                update(parallel, recorder)
            if reports and loss is not None:
                tell({"step": step, "loss": float(loss), "step_time_s": recorder.spent_s["step"]})
            is_left = reporter.step(step - 1, pulse.receive())
            pulse.send(told(vitals, recorder, parallel, job, step, batch, loss, begun_at_s))
            if is_left or step + 1 == job.num_steps or (job.checkpoint_every and (step + 1) % job.checkpoint_every == 0):
                reporter.step(step, pulse.receive())
                if job.checkpoint_every:
                    vitals.advance(f"checkpoint after step {step}")
                    checkpointer.save(step + 1)
            if is_left and step + 1 < job.num_steps:
                break
        else:
            is_left = False
    checkpointer.finish()
    if is_left:
        reporter.say("left", step=step + 1)
        return None
    peak_bytes, reserved_bytes = _peak_bytes(device)
    if job.save_weights:
        vitals.advance("saving weights")
        write_weights(parallel, job.save_weights)
    return {
        "rows": recorder.rows, "first_step": first_step, "data": source.fingerprint, "idle_bytes": idle_bytes,
        "peak_bytes": peak_bytes,
        "reserved_bytes": reserved_bytes,
    }


def take_up(job: Job, parallel: Parallel, data_fingerprint: str, group: dist.ProcessGroup, reporter: Reporter) -> int:
    """Fill the model from the newest good checkpoint, if there is one, and return how many steps it has behind it."""
    runs = [job.out, *([job.resume] if job.resume and Path(job.resume).resolve() != Path(job.out).resolve() else [])]
    found = newest_good(runs, group, reporter.say)
    if found is None:
        reporter.say("ready", step=0)
        return 0
    folder, manifest = found
    check_same_training(folder, manifest, job, data_fingerprint)
    load_state(parallel, folder, manifest.step, group)
    if folder.parent.parent.resolve() != Path(job.out).resolve():
        reporter.adopt(read_journal(job.resume), manifest.step)
    reporter.say("ready", step=manifest.step, checkpoint=str(folder))
    return manifest.step


def told(
    vitals: Vitals, recorder: Recorder, parallel: Parallel, job: Job, step: int, batch: data.Batch, loss: Tensor | None,
    begun_at_s: float,
) -> Told:
    """Return what this rank says of a step."""
    spent, inputs = recorder.spent_s, batch[0]
    places = positions(job.strategy, job.first_sample, step, parallel.dp_rank)
    is_first = all(parallel.mesh.get_local_rank(axis) == 0 for axis in ORDER if axis != "dp")
    return Told(
        leaves=vitals.leaves, loss=math.nan if loss is None else float(loss), begun_at_s=begun_at_s,
        step_time_s=spent["step"], data_s=spent[DATA], forward_s=spent.get("F", 0.0),
        backward_s=spent.get("B", 0.0) + spent.get("W", 0.0), dp_s=spent.get("dp", 0.0), optimizer_s=spent["U"],
        first_sample=int(places[0]), num_samples=len(places) if is_first else 0,
        crc32=zlib.crc32(inputs.tobytes()) if is_first else 0,
        memory_bytes=_used_bytes() if job.log_every and (step + 1) % job.log_every == 0 else 0,
    )


class Reporter:
    """Rank 0's voice: the journal, and its events on standard output; other ranks say nothing."""

    def __init__(self, job: Job, rank: int) -> None:
        self.job, self.is_first = job, rank == 0
        self._monitor = Monitor(job) if self.is_first else None

    def say(self, event: str, **facts: Any) -> None:
        """Report an event."""
        if self.is_first:
            tell(note(self.job.out, event=event, **facts))

    def step(self, step: int, everyone: list[Told] | None) -> bool:
        """Report a step by what all ranks told of it, if anything; return whether one of them was asked to leave."""
        if everyone is None:
            return False
        if self._monitor is not None:
            note(self.job.out, **step_line(step, everyone))
            for line in self._monitor.add(step, everyone):
                tell(note(self.job.out, **line))
        return any(told.leaves for told in everyone)

    def adopt(self, lines: list[dict[str, Any]], num_steps: int) -> None:
        """Take over the first steps from the journal of the run that wrote the checkpoint."""
        for step, line in sorted(trained_steps(lines).items()):
            if step < num_steps and self.is_first:
                # their seconds are those of the other run
                note(self.job.out, **{name: fact for name, fact in line.items() if name != "begun_at_s"})


def step_line(step: int, everyone: list[Told]) -> dict[str, Any]:
    """Return a step as the journal has it: the mean loss, the slowest rank's seconds, and who had which samples."""
    losses = [told.loss for told in everyone if not math.isnan(told.loss)]
    samples = sorted((int(t.first_sample), int(t.num_samples), int(t.crc32)) for t in everyone if t.num_samples)
    return {
        "step": step, "loss": float(np.mean(losses)), "step_time_s": max(t.step_time_s for t in everyone),
        "data_s": max(t.data_s for t in everyone), "begun_at_s": everyone[0].begun_at_s, "samples": samples,
    }


def tell(line: dict[str, Any]) -> None:
    """Print a line for the launcher; where it is gone, nobody listens any more."""
    try:
        # in one write: the thread that writes checkpoints tells of them at the same time
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def update(parallel: Parallel, recorder: Recorder) -> None:
    """Apply the optimizer to the gradients of a step, and free them."""
    with recorder.span("optimizer", "U"):
        parallel.optimizer.step()
        parallel.optimizer.zero_grad()


def _on_device(batch: data.Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    inputs, targets = batch
    return torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device)


def join(job: Job, everyone: list[dict[str, Any]]) -> Run:
    """Return the run of all ranks' measurements: one timeline, and the steps' times and losses from the journal."""
    rows = [row for mine in everyone for row in mine["rows"]]
    timeline = pd.DataFrame(rows, columns=list(COLUMNS)).sort_values(["start_s", "rank"], ignore_index=True)
    steps = trained_steps(read_journal(job.out))
    return Run(
        job=job, environment=environment(job.device) | {"data": everyone[0]["data"]},
        step_times_s=tuple(steps[step]["step_time_s"] for step in range(job.num_steps)),
        losses=tuple(steps[step]["loss"] for step in range(job.num_steps)),
        idle_memory_bytes=tuple(mine["idle_bytes"] for mine in everyone),
        peak_memory_bytes=tuple(mine["peak_bytes"] for mine in everyone),
        reserved_memory_bytes=tuple(mine["reserved_bytes"] for mine in everyone), timeline=timeline,
        first_step=everyone[0]["first_step"],
    )


def environment(device_type: str) -> dict[str, Any]:
    """Return what a measurement depends on besides the job."""
    return {
        "torch": torch.__version__, "python": platform.python_version(), "platform": platform.platform(),
        "backend": BACKENDS[device_type], "num_threads": torch.get_num_threads(), "num_cores": os.cpu_count(),
        "device_name": torch.cuda.get_device_name() if device_type == "cuda" else _processor_name(),
        "numpy": np.__version__, "variables": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith(RECORDED_VARIABLES)},
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


def _used_bytes() -> int:
    """Return the memory that this rank holds: allocated on CUDA, resident on CPU."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else _resident_bytes("VmRSS")


def _resident_bytes(field: str) -> int:
    """Return a memory field of this process (kB in Linux's /proc/self/status); 0 where there is no /proc."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)


if __name__ == "__main__":
    main(sys.argv[1])
