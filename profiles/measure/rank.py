"""One rank of the profiler: `python -m profiles.measure.rank JOB RANK`; rank 0 writes what was measured beside JOB."""

from __future__ import annotations

import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from profiles import kernels
from profiles.measure.grid import default_kernels, key, unique
from profiles.measure.leave import leave_group
from profiles.measure.rounds import Visit, agreed, make_pools, plan_visits, run_rounds
from profiles.measure.storage import copy_seconds, disk_seconds
from profiles.measure.wires import collective_rows
from profiles.ops import Kernel

SHARES = {"kernels": 0.72, "collectives": 0.18, "disk": 0.10}
"""Of the time; a single rank gives the collectives' share to the kernels."""
MAX_SHARE_OF_MEMORY = 0.25
"""A kernel whose tensors would take more of a rank's memory than this is not measured; optimizers share it."""

Progress = Callable[[str, float], None]


def main(job_path: str, rank: int) -> None:
    """Measure what the job asks for, together with the other ranks."""
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    device, num_ranks = job["device"], job["num_ranks"]
    if device == "cpu":
        torch.set_num_threads(1)
    else:
        torch.cuda.set_device(rank)
    dist.init_process_group(
        job["backend"], init_method=f"file://{job_path}.store", rank=rank, world_size=num_ranks
    )
    result = _measure(job, rank, _progress if rank == 0 else _silence)
    if rank == 0:
        Path(f"{job_path}.result").write_text(json.dumps(result), encoding="utf-8")
    leave_group()


def _measure(job: dict[str, Any], rank: int, progress: Progress) -> dict[str, Any]:
    device, num_ranks, seconds = job["device"], job["num_ranks"], job["seconds"]
    framework_bytes = _framework_bytes(device)
    memory_bytes = job["memory_bytes"] or torch.cuda.get_device_properties(rank).total_memory
    shares = dict(SHARES)
    if num_ranks == 1:
        shares["kernels"] += shares.pop("collectives")
    wanted = [Kernel(**(k | {"size": tuple(k["size"])})) for k in job["kernels"]]
    grid = unique(default_kernels(job["dtypes"], job["scale"]), but=wanted)
    too_large = _too_large((*wanted, *grid), memory_bytes * MAX_SHARE_OF_MEMORY)
    progress("kernels", 0.0)
    visits = _kernels(
        [k for k in wanted if k not in too_large], [k for k in grid if k not in too_large],
        job, seconds * shares["kernels"], lambda part: progress("kernels", 0.95 * shares["kernels"] * part),
    )
    rows = [_row(*key(v.case.kernel), seconds=_of_all_ranks(v.seconds, num_ranks)) for v in visits]
    del visits
    if num_ranks > 1:
        def done(part: float) -> None:
            progress("collectives", 0.95 * (shares["kernels"] + shares["collectives"] * part))

        for kind, group_size, num_bytes, samples in collective_rows(
            num_ranks, rank, device, seconds * shares["collectives"], done
        ):
            rows.append(_row(kind, seconds=samples, group_size=group_size, num_bytes=num_bytes))
    for num_bytes, samples in copy_seconds(device).items():
        rows.append(_row("memory_copy", seconds=_of_all_ranks(samples, num_ranks), num_bytes=num_bytes))
    progress("disk", 0.95)
    num_bytes, writes, reads = disk_seconds(Path(job["folder"]), rank, seconds * shares["disk"])
    rows.append(_row("disk_write", seconds=_of_all_ranks(writes, num_ranks), num_bytes=num_bytes))
    rows.append(_row("disk_read", seconds=_of_all_ranks(reads, num_ranks), num_bytes=num_bytes))
    progress("done", 1.0)
    return {
        "rows": rows, "framework_bytes": framework_bytes, "memory_bytes": int(memory_bytes),
        "environment": _environment(device, [f"{k.kind} {k.pass_} {k.size}" for k in too_large if k in wanted]),
    }


def _kernels(
    wanted: list[Kernel], grid: list[Kernel], job: dict[str, Any], budget_s: float, on_round: Callable[[float], None]
) -> list[Visit]:
    start_s = time.perf_counter()
    pools = make_pools((*wanted, *grid), job["pool_bytes"], job["device"])
    visits = plan_visits(wanted, grid, pools, job["device"], budget_s)
    left_s = max(budget_s / 2, budget_s - agreed(time.perf_counter() - start_s))
    run_rounds(visits, job["device"], left_s, on_round)
    gc.collect()
    return visits


def _too_large(kernels: tuple[Kernel, ...], room_bytes: float) -> list[Kernel]:
    found = []
    kept_bytes = 0.0
    for kernel in kernels:
        # inputs, outputs, gradients, and what autograd keeps between; or weight, gradient and two moments
        needed_bytes = 16.0 * kernel.size[0] if kernel.kind == "adamw" else 3.0 * float(kernel.moved_bytes)
        if needed_bytes + kept_bytes > room_bytes:
            found.append(kernel)
        elif kernel.kind == "adamw":
            # an optimizer stays for all rounds
            kept_bytes += needed_bytes
    return found


def _row(
    kind: str, pass_: str = "", dtype: str = "", size: tuple[int, ...] = (), *, seconds: list[float],
    group_size: int | None = None, num_bytes: int | None = None,
) -> dict[str, Any]:
    return {
        "kind": kind, "pass": pass_, "dtype": dtype, "size": list(size), "group_size": group_size,
        "bytes": num_bytes, "seconds": seconds,
    }


def _of_all_ranks(samples: list[float], num_ranks: int) -> list[float]:
    lists: list[Any] = [None] * num_ranks
    dist.all_gather_object(lists, samples)
    return [s for some in lists for s in some]


def _framework_bytes(device: str) -> int:
    """Return the bytes that a rank takes before any model: after one small step, beside torch's own tensors."""
    x = torch.randn(1, 64, 64, device=device)
    weight = torch.randn(64, 64, device=device, requires_grad=True)
    optimizer = torch.optim.AdamW([weight], fused=True)
    kernels.gelu(torch.nn.functional.linear(x, weight)).sum().backward()  # type: ignore[no-untyped-call]
    dist.all_reduce(weight.grad)
    optimizer.step()
    if device == "cpu":
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmRSS:")[1].split()[0]) * 1024
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_allocated()


def _environment(device: str, left_out: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "python": platform.python_version(), "torch": torch.__version__, "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if device != "cpu" else _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads_per_rank": torch.get_num_threads(),
    }
    if device != "cpu" and (clocks := _clocks()):
        found["clocks"] = clocks
    if left_out:
        found["too_large_to_measure"] = left_out
    return found


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _clocks() -> str:
    query = ["nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,power.limit", "--format=csv,noheader", "-i", "0"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _progress(stage: str, fraction: float) -> None:
    print(json.dumps({"stage": stage, "fraction": fraction}), flush=True)


def _silence(stage: str, fraction: float) -> None:
    pass


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
