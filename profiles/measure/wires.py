"""Timing collectives: from when the last rank starts to when the last rank has finished, on the machine's one clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from profiles.collectives import KINDS
from profiles.measure.rounds import agreed

CPU_BYTES = (1 << 10, 1 << 13, 1 << 16, 1 << 19, 1 << 22, 1 << 24)
CUDA_BYTES = (*CPU_BYTES, 1 << 26, 1 << 28)
MIN_ROUNDS, MAX_ROUNDS = 3, 40
SAMPLES_A_VISIT = 3

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
    spans: dict[tuple[str, int, int], Spans] = {key: [] for key in calls}
    start_s = time.perf_counter()
    for number in range(MAX_ROUNDS):
        for key, call in calls.items():
            spans[key] += [_span(call, device) for _ in range(SAMPLES_A_VISIT + 1)][1:]
        spent_s = agreed(time.perf_counter() - start_s)
        on_round(min(1.0, spent_s / budget_s))
        if number + 1 >= MIN_ROUNDS and spent_s * (number + 2) / (number + 1) > budget_s:
            break
    of_ranks: list[Any] = [None] * num_ranks
    dist.all_gather_object(of_ranks, spans)
    return [(*key, _seconds(key, of_ranks)) for key in calls]


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


def _seconds(key: tuple[str, int, int], of_ranks: list[dict[tuple[str, int, int], Spans]]) -> list[float]:
    kind, group_size, _ = key
    trips, busy = (2, 2) if kind == "send" else (1, group_size)
    result = []
    for first in range(0, len(of_ranks), group_size):
        members = [spans[key] for spans in of_ranks[first : first + busy]]
        for at_once in zip(*members, strict=True):
            result.append((max(end for _, end in at_once) - max(start for start, _ in at_once)) / trips)
    return result
