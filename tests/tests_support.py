"""Made-up inputs and comparisons that several tests need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from planner.shapes import kernels_of
from profiles.families import load_model
from profiles.tables import table_from_rows, write_table

PEAK, BANDWIDTH = 9e10, 1e10


def tiny_profile(path: Path, num_ranks: int = 2) -> Path:
    """Write a profile of an imaginary machine that runs at half its roofline, with the shapes of the small model."""
    rows: list[dict[str, object]] = []
    common = {"dtype": "fp32", "mode": "eager", "num_samples": 9}

    def add(seconds: float, **row: object) -> None:
        rows.append(common | {"median_s": seconds, "p10_s": 0.9 * seconds, "p90_s": 1.2 * seconds} | row)

    for k in kernels_of(load_model("bytes-5m"), num_ranks=num_ranks, seq_len=256, global_batch=8, precision="fp32",
                        kernels="eager"):
        sizes = {f"size_{i}": float(s) for i, s in enumerate(k.size)}
        seconds = 5e-6 + 2 * max(float(k.flop) / PEAK, float(k.moved_bytes) / BANDWIDTH)
        add(seconds, kind=k.kind, **{"pass": k.pass_}, **sizes)
    for kind in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send"):
        for size in (1024, 2**20, 2**24):
            add(1e-4 + size / 1e9, kind=kind, bytes=size, group_size=num_ranks)
    head = {"name": "imaginary", "date": "2026-01-01", "num_ranks": num_ranks, "peak_flop_per_s": {"fp32": PEAK},
            "memory_bytes_per_s": BANDWIDTH, "memory_bytes": 8e9, "framework_bytes": 3e8, "backend": "gloo",
            "environment": {"device": "imaginary"}}
    return write_table(table_from_rows(head, rows), path)


def differences(recorded: Any, fresh: Any, tolerance: float = 2e-3, where: str = "") -> list[str]:
    """Return where plain values differ, numbers that are not whole by more than a tolerance (relative; absolute below 1)."""
    if isinstance(recorded, dict) and isinstance(fresh, dict):
        one_sided = [f"{where}.{name}: on one side only" for name in recorded.keys() ^ fresh.keys()]
        both = [name for name in recorded if name in fresh]
        return one_sided + [d for name in both for d in differences(recorded[name], fresh[name], tolerance, f"{where}.{name}")]
    if isinstance(recorded, list) and isinstance(fresh, list) and len(recorded) == len(fresh):
        pairs = enumerate(zip(recorded, fresh, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, tolerance, f"{where}.{i}")]
    numbers = [x for x in (recorded, fresh) if isinstance(x, int | float) and not isinstance(x, bool)]
    if len(numbers) == 2 and any(isinstance(x, float) for x in numbers):
        near = abs(recorded - fresh) <= tolerance * max(1.0, abs(recorded))
        return [] if near else [f"{where}: {recorded} and {fresh}"]
    return [] if recorded == fresh else [f"{where}: {recorded!r} and {fresh!r}"]
