"""One rank of the profiler: `python -m profiles.measure.rank JOB RANK`; rank 0 writes what was measured beside JOB."""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from profiles import kernels
from profiles.measure.cases import num_parts
from profiles.measure.engine import engine_rows
from profiles.measure.environment import environment
from profiles.measure.grid import FP8, default_kernels, key, unique
from profiles.measure.host import host_copy_seconds, launch_seconds
from profiles.measure.leave import leave_group
from profiles.measure.rounds import Visit, agreed, make_pools, plan_visits, run_rounds
from profiles.measure.storage import copy_seconds, disk_seconds
from profiles.measure.wires import collective_rows
from profiles.ops import Kernel

SHARES = {"kernels": 0.64, "collectives": 0.14, "engines": 0.14, "disk": 0.08}
"""Of the time; a single rank gives the collectives' and engines' share to the kernels, and so does a GPU the engines'."""
MAX_SHARE_OF_MEMORY = 0.25
"""A kernel whose tensors would take more of a rank's memory than this is not measured; optimizers share it."""
FP8_CAPABILITY = (8, 9)

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
    for stage, absent in (("collectives", num_ranks == 1), ("engines", num_ranks == 1 or device != "cpu")):
        if absent:
            shares["kernels"] += shares.pop(stage)
    wanted = [Kernel(**(k | {"size": tuple(k["size"])})) for k in job["kernels"]]
    dtypes = [d for d in job["dtypes"] if _runs(d, device)]
    grid = unique(default_kernels(dtypes, job["scale"]), but=wanted)
    too_large = _too_large((*wanted, *grid), memory_bytes * MAX_SHARE_OF_MEMORY)
    progress("kernels", 0.0)
    visits = _kernels(
        [k for k in wanted if k not in too_large], [k for k in grid if k not in too_large],
        job, seconds * shares["kernels"], lambda part: progress("kernels", 0.95 * shares["kernels"] * part),
    )
    # now, while the device is warm
    conditions = environment(device)
    rows = [_row(*key(v.case.kernel), seconds=_of_all_ranks(v.quiet_seconds, num_ranks)) for v in visits]
    del visits
    if num_ranks > 1:
        def done(part: float) -> None:
            progress("collectives", 0.95 * (shares["kernels"] + shares["collectives"] * part))

        for kind, group_size, num_bytes, samples in collective_rows(
            num_ranks, rank, device, seconds * shares["collectives"], done
        ):
            rows.append(_row(kind, seconds=samples, group_size=group_size, num_bytes=num_bytes))
    if "engines" in shares:
        rows += _engines(num_ranks, seconds * shares["engines"], lambda part: progress(
            "engines", 0.95 * (shares["kernels"] + shares["collectives"] + shares["engines"] * part)
        ))
    progress("disk", 0.95)
    rows += _copies_and_disk(job, rank, seconds * shares["disk"])
    progress("done", 1.0)
    left_out = [f"{k.kind} {k.pass_} {k.size}" for k in too_large if k in wanted]
    return {
        "rows": rows, "framework_bytes": framework_bytes, "memory_bytes": int(memory_bytes),
        "environment": conditions | ({"too_large_to_measure": left_out} if left_out else {}),
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


def _copies_and_disk(job: dict[str, Any], rank: int, budget_s: float) -> list[dict[str, Any]]:
    device, num_ranks = job["device"], job["num_ranks"]
    rows = [
        _row("memory_copy", seconds=_of_all_ranks(samples, num_ranks), num_bytes=num_bytes)
        for num_bytes, samples in copy_seconds(device).items()
    ]
    if device != "cpu":
        rows += _gpu_rows(device, num_ranks)
    num_bytes, writes, reads = disk_seconds(Path(job["folder"]), rank, budget_s)
    return [
        *rows, _row("disk_write", seconds=_of_all_ranks(writes, num_ranks), num_bytes=num_bytes),
        _row("disk_read", seconds=_of_all_ranks(reads, num_ranks), num_bytes=num_bytes),
    ]


def _gpu_rows(device: str, num_ranks: int) -> list[dict[str, Any]]:
    copies = [
        _row(kind, seconds=_of_all_ranks(samples, num_ranks), num_bytes=num_bytes)
        for (kind, num_bytes), samples in host_copy_seconds(device).items()
    ]
    launches = [
        _row("launch", seconds=_of_all_ranks(samples, num_ranks), mode=mode) for mode, samples in launch_seconds().items()
    ]
    return copies + launches


def _engines(num_ranks: int, budget_s: float, on_round: Callable[[float], None]) -> list[dict[str, Any]]:
    return [
        _row(r.kind, "", "fp32" if r.params else "", (r.params,) if r.params else (), seconds=r.seconds, mode=r.mode,
             group_size=num_ranks, num_bytes=r.bytes)
        for r in engine_rows(num_ranks, budget_s, on_round)
    ]


def _runs(dtype: str, device: str) -> bool:
    """Return whether the device has matmuls of a type: FP8 from compute capability 8.9 on."""
    return dtype != FP8 or (device != "cpu" and torch.cuda.get_device_capability() >= FP8_CAPABILITY)


def _too_large(kernels: tuple[Kernel, ...], room_bytes: float) -> list[Kernel]:
    found = []
    kept_bytes = 0.0
    for kernel in kernels:
        # inputs, outputs, gradients, and what autograd keeps between; or weight, gradient and two moments
        needed_bytes = 3.0 * float(kernel.moved_bytes)
        if kernel.kind == "adamw":
            needed_bytes = 16.0 * kernel.size[0] * num_parts(kernel.size[0])
        if needed_bytes + kept_bytes > room_bytes:
            found.append(kernel)
        elif kernel.kind == "adamw":
            # an optimizer stays for all rounds
            kept_bytes += needed_bytes
    return found


def _row(
    kind: str, pass_: str = "", dtype: str = "", size: tuple[int, ...] = (), *, seconds: list[float],
    group_size: int | None = None, num_bytes: int | None = None, mode: str = "",
) -> dict[str, Any]:
    return {
        "kind": kind, "pass": pass_, "dtype": dtype, "mode": mode or ("eager" if size else ""), "size": list(size),
        "group_size": group_size, "bytes": num_bytes, "seconds": seconds,
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


def _progress(stage: str, fraction: float) -> None:
    print(json.dumps({"stage": stage, "fraction": fraction}), flush=True)


def _silence(stage: str, fraction: float) -> None:
    pass


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
