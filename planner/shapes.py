"""The kernels that a model's strategies would run on a few local ranks: what the profiler should measure for it."""

from __future__ import annotations

from collections.abc import Iterable

from planner.question import DEFAULT_MAX_SEQ_LEN
from planner.rules import widths
from planner.space import divisors
from profiles.model import ModelSpec
from profiles.ops import Kernel
from simulator.software import Software
from simulator.strategy import Strategy
from simulator.workload import build_workload

MAX_TOKENS_PER_MICROBATCH = 8192
"""Micro-batches of more tokens than this are interpolated, not measured: they take long and change no rate."""


def kernels_of(
    model: ModelSpec, *, num_ranks: int, seq_len: int, global_batch: int, precision: str, kernels: str
) -> list[Kernel]:
    """Return the distinct kernels of a model for every micro-batch and tensor-parallel degree, smallest first."""
    micro_batches = [m for m in divisors(global_batch) if m * seq_len <= MAX_TOKENS_PER_MICROBATCH] or [1]
    heads, kv_heads, _ = widths(model)
    degrees = [t for t in divisors(num_ranks) if heads % t == 0 and kv_heads % t == 0]
    return kernels_of_strategies([
        (model, Strategy(tp=tp, micro_batch=micro_batch, seq_len=seq_len, precision=precision,
                         software=Software(kernels=kernels)))
        for micro_batch in micro_batches for tp in degrees
    ])


def kernels_of_strategies(cases: Iterable[tuple[ModelSpec, Strategy]]) -> list[Kernel]:
    """Return the distinct kernels of some models, each under a strategy."""
    found: dict[tuple[object, ...], Kernel] = {}
    for model, strategy in cases:
        for part in build_workload(model, strategy).parts.values():
            for work in (*part.forward, *part.backward, part.update, part.accumulate, part.gather_copy, part.reduce_copy):
                if isinstance(work, Kernel):
                    found.setdefault((work.kind, work.pass_, work.dtype, *map(float, work.size)), work)
    return list(found.values())


def model_cases(
    model: ModelSpec, num_ranks: int, device: str, seq_len: int | None = None, global_batch: int | None = None
) -> list[Kernel]:
    """Return the kernels to measure for a model on this machine, with the precision that its plan will have."""
    cuda = device == "cuda"
    return kernels_of(
        model, num_ranks=num_ranks, seq_len=seq_len or min(model.max_seq_len, DEFAULT_MAX_SEQ_LEN),
        global_batch=global_batch or 8 * num_ranks, precision="bf16" if cuda else "fp32", kernels="eager",
    )
