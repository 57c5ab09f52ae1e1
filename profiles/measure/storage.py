"""Timing memory copies, and writing and reading a file: on every rank at the same time, as a checkpoint does."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from profiles.measure.rounds import agreed

COPY_BYTES = (1 << 24, 1 << 26, 1 << 28)
"""Moved: half read, half written."""
NUM_COPIES = 8
FILE_BYTES, SMALL_FILE_BYTES = 1 << 26, 1 << 23
MIN_FILES, MAX_FILES = 2, 8
BLOCK_BYTES = 1 << 22


def copy_seconds(device: str) -> dict[int, list[float]]:
    """Return seconds of copies by bytes moved; the first of each is discarded."""
    result = {}
    for moved_bytes in COPY_BYTES:
        source = torch.ones(moved_bytes // 8, device=device)
        target = torch.zeros_like(source)
        dist.barrier()
        result[moved_bytes] = [_copy(source, target, device) for _ in range(NUM_COPIES + 1)][1:]
    return result


def _copy(source: Tensor, target: Tensor, device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    start_s = time.perf_counter()
    target.copy_(source)
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start_s


def disk_seconds(folder: Path, rank: int, budget_s: float) -> tuple[int, list[float], list[float]]:
    """Return the bytes of a file, and seconds of writing it (to the disk, not its cache) and of reading it back."""
    num_bytes = FILE_BYTES if budget_s >= 1.0 else SMALL_FILE_BYTES
    data = os.urandom(BLOCK_BYTES)
    path = folder / f".headway-profile-{os.getpid()}-{rank}"
    writes: list[float] = []
    reads: list[float] = []
    begin_s = time.perf_counter()
    try:
        for number in range(MAX_FILES):
            dist.barrier()
            writes.append(_write(path, data, num_bytes // BLOCK_BYTES))
            dist.barrier()
            reads.append(_read(path))
            if number + 1 >= MIN_FILES and agreed(time.perf_counter() - begin_s) > budget_s:
                break
    finally:
        path.unlink(missing_ok=True)
    return num_bytes, writes, reads


def _write(path: Path, block: bytes, num_blocks: int) -> float:
    start_s = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(num_blocks):
            file.write(block)
        os.fsync(file.fileno())
    return time.perf_counter() - start_s


def _read(path: Path) -> float:
    block = bytearray(BLOCK_BYTES)
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            # or the pages just written would be read from memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start_s = time.perf_counter()
        while file.readinto(block):
            pass
        return time.perf_counter() - start_s
