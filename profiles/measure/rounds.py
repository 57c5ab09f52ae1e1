"""Timing: interleaved rounds over all cases, all ranks on the same case at the same time, first calls discarded.

A machine drifts by 5 to 15 % over minutes, in all kernels alike, and the first calls after a switch of work are slow:
hence short visits, many rounds, and medians. Results are kept for a while and then freed on the clock: a step keeps
activations too, so its new tensors land on memory that is in no near cache (on CPU that alone adds a third to a
pointwise operator).
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from profiles.measure.cases import DTYPES, Case, case_of, num_parts, num_pool_elements
from profiles.measure.grid import work
from profiles.measure.others import MANY_CORES, Usage, cores_between, quieter, usage
from profiles.ops import Kernel

SAMPLE_S = 0.002
"""Calls share a sample until it lasts this long."""
MAX_CALLS = 32
MIN_ROUNDS, AIMED_ROUNDS, MAX_ROUNDS = 3, 6, 40
MAX_SAMPLES_A_VISIT = 8
WANTED_WEIGHT = 3
"""A kernel that was asked for gets this many times the time of one of the grid."""
MAX_SHARE_OF_A_CALL = 1 / 600
"""A grid kernel whose single call would take more than this share of the time is left out."""
SPIN_CYCLES, SPIN_CYCLES_A_CALL = 1_000_000, 300_000
HELD_BYTES = 1 << 26
"""Results younger than this many bytes are kept."""

QUIET_SAMPLES, PATIENCE = 4, 2.5
"""Samples that others should leave alone, and how many times its time a measurement may take to find them."""
WATCHED_S = 0.3
"""Others' use of the processor is asked for this often: the system counts it in steps of some milliseconds."""

Held = deque[tuple[float, object]]
"""Bytes and results, oldest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """How a case is visited in a round: calls in a sample, samples, and the samples of this rank so far.

    `others` are the cores that other processes used around each sample.
    """

    case: Case
    num_calls: int
    num_samples: int
    seconds: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)

    @property
    def quiet_seconds(self) -> list[float]:
        """Return the samples that others disturbed least."""
        return quieter(self.seconds, self.others)


def agreed(value: float) -> float:
    """Return rank 0's value on every rank: what is measured next must be decided alike."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def disturbance(start: Usage) -> float:
    """Return the cores that others than the ranks have used since a moment; 0 where the system does not tell."""
    end = usage()
    own_s: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(own_s, end.own_s - start.own_s)
    return agreed(cores_between(start, end, sum(own_s)) or 0.0)


def goes_on(num_rounds: int, least: int, spent_s: float, budget_s: float, others: Iterable[Sequence[float]]) -> bool:
    """Return whether to make another round: while time is left, and longer where others disturbed most of some samples.

    `others` are the cores that others used around the samples so far of each thing that is measured.
    """
    then_s = spent_s * (num_rounds + 1) / num_rounds
    if num_rounds < least or then_s <= budget_s:
        return True
    disturbed = any(sum(cores <= MANY_CORES for cores in some) < QUIET_SAMPLES for some in others)
    return disturbed and then_s <= PATIENCE * budget_s


def make_pools(kernels: Iterable[Kernel], pool_bytes: int, device: str) -> dict[str, Tensor]:
    """Return normal random numbers, in one dimension, by dtype: at least `pool_bytes`, and enough for every kernel."""
    pools = {}
    of_dtype: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        of_dtype.setdefault(kernel.dtype, []).append(kernel)
    for name, some in of_dtype.items():
        dtype = DTYPES[name]
        size = max(pool_bytes // dtype.itemsize, *(num_pool_elements(k) for k in some))
        # FP8 can be cast and viewed, and little else
        tile = torch.randn(1 << 20, device=device).to(dtype).view(torch.uint8)
        pools[name] = tile.repeat(-(-size // (1 << 20))).view(dtype)
    return pools


def time_call(case: Case, num_calls: int, device: str, held: Held) -> float:
    """Return seconds a call, of `num_calls` calls on fresh inputs; frees old results, and keeps the new ones.

    On CPU these are the thread's own seconds: while another program has the core, nothing of the kernel is paid.
    """
    prepared = case.prepare(num_calls)
    stale = _stale(held)
    if device == "cpu":
        start_s = time.thread_time()
        results = case.call(prepared)
        stale.clear()
        seconds = time.thread_time() - start_s
    else:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        # the device spins while the host queues the calls, so that the events time kernels and not their launches
        torch.cuda._sleep(SPIN_CYCLES + num_calls * SPIN_CYCLES_A_CALL)  # type: ignore[no-untyped-call]
        start.record()
        results = case.call(prepared)
        end.record()
        end.synchronize()
        seconds = float(start.elapsed_time(end)) / 1e3
    if results is not None:
        held.append((num_calls * float(case.kernel.written_bytes), results))
    return seconds / num_calls


def _stale(held: Held) -> list[object]:
    kept_bytes = sum(size for size, _ in held)
    stale = []
    while held and kept_bytes > HELD_BYTES:
        size, results = held.popleft()
        kept_bytes -= size
        stale.append(results)
    return stale


def plan_visits(
    wanted: Sequence[Kernel], grid: Sequence[Kernel], pools: dict[str, Tensor], device: str, budget_s: float
) -> list[Visit]:
    """Try every kernel once and return how to visit it; grid kernels that would take too long are left out."""
    held: Held = deque()
    tried: list[tuple[Case, float, float]] = []
    last: dict[tuple[str, str, str], tuple[float, float]] = {}
    for kernel in (*wanted, *sorted(grid, key=work)):
        kind = (kernel.kind, kernel.pass_, kernel.dtype)
        if kernel not in wanted and kind in last:
            seconds, done = last[kind]
            if seconds * work(kernel) / done > budget_s * MAX_SHARE_OF_A_CALL:
                continue
        case = case_of(kernel, pools[kernel.dtype])
        start_s = time.perf_counter()
        time_call(case, 1, device, held)
        call_s = agreed(time_call(case, 1, device, held))
        last[kind] = max(last.get(kind, (0.0, 1.0)), (call_s, work(kernel)))
        tried.append((case, call_s, agreed((time.perf_counter() - start_s) / 2)))
    weights = [WANTED_WEIGHT if case.kernel in wanted else 1 for case, _, _ in tried]
    share_s = budget_s / (AIMED_ROUNDS * max(1, sum(weights)))
    return [
        _visit(case, call_s, whole_s, weight * share_s, pools[case.kernel.dtype])
        for (case, call_s, whole_s), weight in zip(tried, weights, strict=True)
    ]


def _visit(case: Case, call_s: float, whole_s: float, share_s: float, pool: Tensor) -> Visit:
    room = max(1, pool.numel() // (2 * num_pool_elements(case.kernel)))
    num_calls = max(1, min(MAX_CALLS, room, round(SAMPLE_S / call_s)))
    if case.kernel.kind == "adamw":
        num_calls = num_parts(case.kernel.size[0])
    # one more sample is made than counted: the first after a switch is discarded
    num_samples = max(1, min(MAX_SAMPLES_A_VISIT, int(share_s / (num_calls * whole_s)) - 1))
    return Visit(case=case, num_calls=num_calls, num_samples=num_samples)


def run_rounds(visits: Sequence[Visit], device: str, budget_s: float, on_round: Callable[[float], None]) -> int:
    """Fill the visits' samples round by round until the time is spent, and return the number of rounds."""
    start_s = time.perf_counter()
    held: Held = deque()
    gc.collect()
    gc.disable()
    for number in range(MAX_ROUNDS):
        since, watched = usage(), []
        for visit in visits:
            dist.barrier()
            samples = [time_call(visit.case, visit.num_calls, device, held) for _ in range(visit.num_samples + 1)]
            visit.seconds.extend(samples[1:])
            watched.append(visit)
            if visit is visits[-1] or agreed(time.perf_counter() - since.at_s) > WATCHED_S:
                others = disturbance(since)
                for seen in watched:
                    seen.others.extend([others] * seen.num_samples)
                since, watched = usage(), []
        spent_s = agreed(time.perf_counter() - start_s)
        on_round(min(1.0, spent_s / budget_s))
        if number + 1 >= MIN_ROUNDS and spent_s * (number + 2) / (number + 1) > budget_s:
            break
    gc.enable()
    return number + 1
