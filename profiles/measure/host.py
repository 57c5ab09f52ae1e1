"""Timing what only a GPU has: launching kernels, and copies between its memory and the host's."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

COPY_BYTES = (1 << 16, 1 << 20, 1 << 24, 1 << 28)
NUM_SAMPLES, NUM_LAUNCHES = 12, 500
"""Launches in one sample: so many that waiting for the last one does not count."""


def launch_seconds() -> dict[str, list[float]]:
    """Return seconds of an empty kernel by how it is launched: one by one in a stream, and in a replayed graph."""
    empty = _empty
    in_stream = [_timed(lambda: _repeat(empty), torch.cuda.synchronize) / NUM_LAUNCHES for _ in range(NUM_SAMPLES + 1)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _repeat(empty)
    in_graph = [_timed(graph.replay, torch.cuda.synchronize) / NUM_LAUNCHES for _ in range(NUM_SAMPLES + 1)]
    return {"stream": in_stream[1:], "graph": in_graph[1:]}


def _empty() -> None:
    # a kernel that spins for no cycle
    torch.cuda._sleep(0)  # type: ignore[no-untyped-call]


def _repeat(call: Callable[[], None]) -> None:
    for _ in range(NUM_LAUNCHES):
        call()


def host_copy_seconds(
    device: str, wait: Callable[[], None] | None = None, sizes: tuple[int, ...] = COPY_BYTES
) -> dict[tuple[str, int], list[float]]:
    """Return seconds of copies from pinned host memory to the device and back, by kind and bytes; all ranks at once."""
    wait = wait or torch.cuda.synchronize
    found: dict[tuple[str, int], list[float]] = {}
    for num_bytes in sizes:
        here = torch.zeros(num_bytes // 4, pin_memory=device != "cpu")
        there = torch.zeros(num_bytes // 4, device=device)
        for kind, source, target in (("host_to_device", here, there), ("device_to_host", there, here)):
            if dist.is_initialized():
                dist.barrier()
            found[kind, num_bytes] = [_copied(source, target, wait) for _ in range(NUM_SAMPLES + 1)][1:]
    return found


def _copied(source: Tensor, target: Tensor, wait: Callable[[], None]) -> float:
    return _timed(lambda: target.copy_(source, non_blocking=True), wait)


def _timed(call: Callable[[], object], wait: Callable[[], None]) -> float:
    wait()
    start_s = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start_s
