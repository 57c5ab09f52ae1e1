"""Timing collectives: from when the last rank starts to when the last rank has finished, on the machine's one clock.

On CPU a collective stands in line with computation, as in a training step: a few of both in turn, less the computation
alone. Ranks that have just computed are out of step, and gloo's threads must win a busy core first; measured by itself
a small collective is two to four times cheaper than that.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from profiles.collectives import KINDS
from profiles.measure.others import quieter, usage
from profiles.measure.rounds import agreed, disturbance, goes_on

CPU_BYTES = (1 << 10, 1 << 13, 1 << 16, 1 << 19, 1 << 22, 1 << 24)
CUDA_BYTES = (*CPU_BYTES, 1 << 26, 1 << 28)
MIN_ROUNDS, MAX_ROUNDS = 3, 40
SAMPLES_A_VISIT = 2
IN_LINE = 4
"""Collectives, and pieces of computation between them, in one sample on CPU."""
PIECE_S = 0.004
"""Computation between two collectives: about what a small layer has between its own."""
LEAST_S = 1e-6

Call = Callable[[], object]
Spans = list[tuple[float, float]]


def collective_rows(
    num_ranks: int, rank: int, device: str, budget_s: float, on_round: Callable[[float], None]
) -> list[tuple[str, int, int, list[float]]]:
    """Return (kind, group size, bytes, seconds of the samples) for groups of every size that divides the ranks.

    Groups of one size are busy at the same time. A send is half of a ping-pong.
    """
    calls: dict[tuple[str, int, int], Call] = {}
    for group_size in (n for n in range(2, num_ranks + 1) if num_ranks % n == 0):
        group, members = _group_of(rank, num_ranks, group_size)
        for num_bytes in CPU_BYTES if device == "cpu" else CUDA_BYTES:
            for kind in KINDS:
                if kind == "send" and group_size != 2 and num_ranks % 2 == 0:
                    continue
                calls[kind, group_size, num_bytes] = _call(kind, num_bytes, group, members, rank, device)
    piece = in_line_piece() if device == "cpu" else None
    spans: dict[tuple[str, int, int], Spans] = {key: [] for key in calls}
    alone: Spans = []
    around: list[float] = []
    others: dict[tuple[str, int, int], list[float]] = {key: [] for key in calls}
    start_s = time.perf_counter()
    for number in range(1, MAX_ROUNDS + 1):
        for key, call in calls.items():
            in_line = call if piece is None else partial(_in_line, piece, call)
            before = usage()
            spans[key] += [_span(in_line, device) for _ in range(SAMPLES_A_VISIT + 1)][1:]
            if piece is not None:
                alone.append(_span(partial(_in_line, piece, _nothing), device))
                around.append(disturbance(before))
                others[key] += [around[-1]] * SAMPLES_A_VISIT
        spent_s = agreed(time.perf_counter() - start_s)
        on_round(min(1.0, spent_s / budget_s))
        if not goes_on(number, MIN_ROUNDS, spent_s, budget_s, others.values() if piece is not None else ()):
            break
    if piece is not None:
        alone, spans = quieter(alone, around), {key: quieter(some, others[key]) for key, some in spans.items()}
    of_ranks: list[Any] = [None] * num_ranks
    dist.all_gather_object(of_ranks, spans)
    alones: list[Any] = [None] * num_ranks
    dist.all_gather_object(alones, alone)
    alone_s, num = (0.0, 1) if piece is None else (median(_lengths(alones)), IN_LINE)
    return [(*key, _samples(key, of_ranks, alone_s, num)) for key in calls]


def in_line_piece() -> Call:
    """Return a matmul, or a few, of about `PIECE_S`, the same on every rank."""
    x = torch.ones(256, 256)

    def multiply(times: int) -> None:
        for _ in range(times):
            x @ x

    multiply(8)
    start_s = time.perf_counter()
    multiply(8)
    return partial(multiply, max(1, round(agreed(PIECE_S / ((time.perf_counter() - start_s) / 8)))))


def _in_line(piece: Call, call: Call) -> None:
    for _ in range(IN_LINE):
        piece()
        call()


def _nothing() -> None:
    pass


def _group_of(rank: int, num_ranks: int, group_size: int) -> tuple[dist.ProcessGroup | None, range]:
    mine: tuple[dist.ProcessGroup | None, range] = (None, range(num_ranks))
    if group_size == num_ranks:
        return mine
    for first in range(0, num_ranks, group_size):
        members = range(first, first + group_size)
        group = dist.new_group(list(members))
        if rank in members:
            mine = (group, members)
    return mine


def _call(kind: str, num_bytes: int, group: dist.ProcessGroup | None, members: range, rank: int, device: str) -> Call:
    whole = torch.zeros(num_bytes // 4 // len(members) * len(members), device=device)
    part = torch.zeros(whole.numel() // len(members), device=device)
    # the names changed in torch 2.13
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    if kind == "all_reduce":
        return partial(dist.all_reduce, whole, group=group)
    if kind == "all_gather":
        return partial(gather, whole, part, group=group)
    if kind == "reduce_scatter":
        return partial(scatter, part, whole, group=group)
    if kind == "all_to_all":
        return partial(dist.all_to_all_single, torch.empty_like(whole), whole, group=group)
    if kind == "broadcast":
        return partial(dist.broadcast, whole, src=members[0], group=group)
    return partial(_ping_pong, whole, members, rank, group)


def _ping_pong(tensor: Tensor, members: range, rank: int, group: dist.ProcessGroup | None) -> None:
    first, second = members[0], members[1]
    if rank == first:
        dist.send(tensor, second, group=group)
        dist.recv(tensor, second, group=group)
    elif rank == second:
        dist.recv(tensor, first, group=group)
        dist.send(tensor, first, group=group)


def _span(call: Call, device: str) -> tuple[float, float]:
    dist.barrier()
    if device != "cpu":
        torch.cuda.synchronize()
    start_s = time.perf_counter()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return start_s, time.perf_counter()


def _samples(
    key: tuple[str, int, int], of_ranks: list[dict[tuple[str, int, int], Spans]], alone_s: float, num: int
) -> list[float]:
    """Return seconds of one collective in each sample of each group; a ping-pong is two sends one after the other."""
    kind, group_size, _ = key
    trips, busy = (2, 2) if kind == "send" else (1, group_size)
    starts = range(0, len(of_ranks), group_size)
    whole = [s for first in starts for s in _lengths([spans[key] for spans in of_ranks[first : first + busy]])]
    return [max(LEAST_S, (s - alone_s) / num / trips) for s in whole]


def _lengths(of_members: list[Spans]) -> list[float]:
    """Return, sample by sample, the time from the last start to the last end."""
    return [max(end for _, end in at_once) - max(start for start, _ in at_once)
            for at_once in zip(*of_members, strict=True)]
