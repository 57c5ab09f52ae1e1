"""Measuring a machine: starts one process per rank, waits, and makes the table."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import profiles
from profiles import files
from profiles.files import BadInput
from profiles.measure.grid import ACCELERATOR_SCALE, DTYPES, FP8, unique, whole
from profiles.measure.others import load_between, usage
from profiles.ops import Kernel
from profiles.tables import MeasuredTable, table_from_rows

CPU_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""What a rank on CPU, of the profiler or the executor, finds in its environment: one thread, and freed memory goes back
at once, so that the peak of resident memory is the peak of what was in use."""
POOL_BYTES = 1 << 28
"""Inputs rotate through this much memory per rank, which is more than a rank's share of the last cache."""

Progress = Callable[[str, float], None]


def measure_machine(
    *, num_ranks: int, cases: Sequence[Kernel] = (), device: str = "cpu", seconds: float = 45.0,
    name: str = "local-cpu", on_progress: Progress | None = None, folder: Path | None = None,
    dtypes: Sequence[str] | None = None,
) -> MeasuredTable:
    """Return what kernels, collectives, memory and disk cost on one rank while all `num_ranks` ranks are busy.

    `cases` are measured first and whatever they take; a grid of default shapes fills the rest of about `seconds`.
    """
    on_gpu = device == "cuda"
    dtypes = tuple(dtypes or (("bf16", "fp16", FP8, "fp32") if on_gpu else ("fp32",)))
    _check(num_ranks, device, seconds, dtypes)
    folder = files.make_folder(folder or Path.cwd())
    job = {
        "num_ranks": num_ranks, "device": device, "backend": "nccl" if on_gpu else "gloo", "seconds": float(seconds),
        "kernels": [_plain(k) for k in unique(whole(k) for k in cases)],
        "dtypes": dtypes, "scale": ACCELERATOR_SCALE if on_gpu else 1, "pool_bytes": POOL_BYTES,
        "folder": str(folder.resolve()), "memory_bytes": None if on_gpu else _machine_bytes() // num_ranks,
    }
    before = usage()
    found = _run_ranks(job, on_progress)
    load = load_between(before, usage())
    rows = [_summary(row) for row in found["rows"]]
    head = {
        "name": name, "date": datetime.now(UTC).date().isoformat(), "num_ranks": num_ranks,
        "peak_flop_per_s": _peaks(rows), "memory_bytes_per_s": _copy_rate(rows),
        "memory_bytes": found["memory_bytes"], "framework_bytes": found["framework_bytes"],
        "backend": job["backend"], "environment": found["environment"] | {
            "load_average": load.average, "cores_of_others": load.cores_of_others,
        },
    }
    return table_from_rows(head, rows)


def _check(num_ranks: int, device: str, seconds: float, dtypes: Sequence[str]) -> None:
    if importlib.util.find_spec("torch") is None:
        raise BadInput("profile: torch is not installed; pip install headway[torch]")
    if num_ranks < 1:
        raise BadInput(f"ranks: must be at least 1 (is {num_ranks})")
    if not seconds > 0:
        raise BadInput(f"seconds: must be positive (is {seconds:g})")
    known = (*DTYPES, FP8) if device == "cuda" else DTYPES
    for dtype in dtypes:
        if dtype not in known:
            raise BadInput(f"dtype: must be one of {', '.join(known)} on {device} (is {dtype!r})")
    if device not in ("cpu", "cuda"):
        raise BadInput(f"device: must be cpu or cuda (is {device!r})")
    if device == "cuda":
        import torch

        count = torch.cuda.device_count()
        if count < num_ranks:
            raise BadInput(f"device: cuda needs a GPU per rank: {num_ranks} ranks, {count} GPUs found")


def _plain(kernel: Kernel) -> dict[str, Any]:
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in asdict(kernel).items()}


def _machine_bytes() -> int:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="utf-8").strip() if limit.exists() else ""
    return min(physical, int(text)) if text.isdigit() else physical


def _run_ranks(job: dict[str, Any], on_progress: Progress | None) -> dict[str, Any]:
    """Start the ranks on a job and return what rank 0 wrote; if one fails, stop the others."""
    root = str(Path(profiles.__file__).parent.parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
    if job["device"] == "cpu":
        environment |= CPU_ENVIRONMENT
    with tempfile.TemporaryDirectory(prefix="headway-profile-") as temporary:
        path = Path(temporary) / "job"
        path.write_text(json.dumps(job), encoding="utf-8")
        ranks: list[subprocess.Popen[str]] = []
        try:
            for rank in range(job["num_ranks"]):
                with Path(f"{path}.{rank}.err").open("w", encoding="utf-8") as errors:
                    ranks.append(subprocess.Popen(
                        [sys.executable, "-P", "-m", "profiles.measure.rank", str(path), str(rank)], env=environment,
                        stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL, stderr=errors, text=True,
                    ))
            _follow(ranks[0], on_progress)
            _wait(ranks, path)
        finally:
            for process in ranks:
                if process.poll() is None:
                    process.kill()
                process.wait()
        found: dict[str, Any] = json.loads(Path(f"{path}.result").read_text(encoding="utf-8"))
        return found


def _follow(first: subprocess.Popen[str], on_progress: Progress | None) -> None:
    assert first.stdout is not None
    with first.stdout as lines:
        for line in lines:
            # libraries may print there too
            if line.startswith('{"stage"') and on_progress is not None:
                message = json.loads(line)
                on_progress(message["stage"], message["fraction"])


def _wait(ranks: list[subprocess.Popen[str]], path: Path) -> None:
    while any(process.poll() is None for process in ranks):
        failed = [process.returncode for process in ranks if process.poll()]
        if failed:
            break
        time.sleep(0.02)
    for rank, process in enumerate(ranks):
        if process.poll():
            lines = Path(f"{path}.{rank}.err").read_text(encoding="utf-8").splitlines()
            reason = next((line for line in reversed(lines) if line.strip()), "no message")
            raise RuntimeError(f"rank {rank} of the profiler ended with status {process.returncode}: {reason}")


def _summary(row: dict[str, Any]) -> dict[str, Any]:
    size = row["size"]
    p10, median, p90 = (float(f"{q:.9g}") for q in np.quantile(row["seconds"], (0.1, 0.5, 0.9)))
    return {
        "kind": row["kind"], "pass": row["pass"], "dtype": row["dtype"], "mode": row["mode"],
        "group_size": _number(row["group_size"]), "bytes": _number(row["bytes"]),
        **{f"size_{i}": float(s) for i, s in enumerate(size)},
        "median_s": median, "p10_s": p10, "p90_s": p90, "num_samples": float(len(row["seconds"])),
    }


def _number(value: int | None) -> float:
    return float("nan") if value is None else float(value)


def _peaks(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the best matmul rate by dtype, on one rank: 2 m n k over the median."""
    rates: dict[str, float] = {}
    for row in rows:
        if row["kind"] == "gemm":
            rate = 2.0 * row["size_0"] * row["size_1"] * row["size_2"] / row["median_s"]
            rates[row["dtype"]] = float(f"{max(rate, rates.get(row['dtype'], 0.0)):.6g}")
    return rates


def _copy_rate(rows: list[dict[str, Any]]) -> float:
    largest = max((row for row in rows if row["kind"] == "memory_copy"), key=lambda row: row["bytes"])
    return float(f"{largest['bytes'] / largest['median_s']:.6g}")
