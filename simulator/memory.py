"""Bytes alive at the peak of a step, by what holds them; the same code for one strategy and for a batch.

Bytes per parameter under bf16: 2 weight, 4 gradient (fp32), 12 master weight and two moments; under fp32: 4, 4, 8
(arXiv 1910.02054 section 3.1 with fp32 gradients); other types are those of the strategy's software. Sharding over
the replicas: moments and master from ZeRO-1, gradients from ZeRO-2, weights from ZeRO-3. What an engine holds beside
that is written where it is added.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from profiles.hardware import Accelerator
from profiles.model import Part
from profiles.ops import ELEMENT_BYTES, Num
from simulator.layout import rank_parts
from simulator.strategy import Strategy, by_pipe
from simulator.workload import PartWork, Workload, pick_workload

Stage = list[tuple[Part, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Peak bytes of the fullest rank, what they are, and what the accelerator offers; fields may be arrays."""

    peak_bytes: Num
    usable_bytes: float
    parts_bytes: dict[str, Num]

    @property
    def fits(self) -> Num:
        """Return whether the peak fits."""
        return self.peak_bytes <= self.usable_bytes


def peak_memory(workload: Workload, accelerator: Accelerator) -> Memory:
    """Return the peak of the fullest pipeline rank of each strategy."""
    strategy = workload.strategy
    pipes = by_pipe(strategy)
    if len(pipes) == 1:
        return _peak_of_pipe(workload, accelerator, pipes[0].pp, pipes[0].chunks)
    peak = np.zeros(len(strategy))
    parts: dict[str, Num] = {}
    for pipe in pipes:
        some = _peak_of_pipe(pick_workload(workload, pipe.where), accelerator, pipe.pp, pipe.chunks)
        peak[pipe.where] = some.peak_bytes
        for name, value in some.parts_bytes.items():
            parts.setdefault(name, np.zeros(len(strategy)))[pipe.where] = value
    return Memory(peak_bytes=peak, usable_bytes=accelerator.memory_bytes, parts_bytes=parts)


def _peak_of_pipe(workload: Workload, accelerator: Accelerator, pp: int, chunks: int) -> Memory:
    ranks = rank_parts(workload.model, pp, chunks)
    # of ranks with the same parts the first holds the most micro-batches
    fullest = [rank for rank, parts in enumerate(ranks) if parts not in ranks[:rank]]
    each = [rank_memory(workload, accelerator, rank) for rank in fullest]
    totals = np.stack(np.broadcast_arrays(*[sum(m.values()) for m in each]))
    which = totals.argmax(axis=0)
    parts: dict[str, Num] = {}
    for name in each[0]:
        stacked = np.stack(np.broadcast_arrays(totals[0], *[m[name] for m in each])[1:])
        parts[name] = np.take_along_axis(stacked, which[None], axis=0)[0]
    return Memory(peak_bytes=totals.max(axis=0), usable_bytes=accelerator.memory_bytes, parts_bytes=parts)


def rank_memory(workload: Workload, accelerator: Accelerator, rank: int) -> dict[str, Num]:
    """Return the bytes of a pipeline rank at its peak, by what holds them; all strategies have one pp and chunks."""
    strategy = workload.strategy
    pp, chunks = int(np.ravel(strategy.pp)[0]), int(np.ravel(strategy.chunks)[0])
    stage = rank_parts(workload.model, pp, chunks)[rank]
    params = sum((workload.parts[part].params * num for part, num in stage), 0.0)
    experts = sum((workload.parts[part].expert_params * num for part, num in stage), 0.0)
    states = state_bytes(strategy, params, experts, *_largest(workload, stage))
    active = _activation_bytes(workload, stage, in_flight(strategy, rank)) + _pipe_bytes(workload, rank, pp)
    transient = _transient_bytes(workload, stage)
    # with a single micro-batch gradients appear while activations go: the two never stand together
    single = np.asarray(strategy.num_microbatches) == 1
    single = single & strategy.software.late_gradients
    late = single & (states["gradients"] > active + transient)
    states["gradients"] = np.where(single & ~late, 0.0, states["gradients"])
    active, transient = np.where(late, 0.0, active), np.where(late, 0.0, transient)
    dynamic = active + transient
    return states | {
        "activations": active, "transient": transient, "framework": accelerator.framework_bytes,
        "slack": accelerator.allocator_slack * dynamic,
    }


def state_bytes(
    strategy: Strategy, params: Num, expert_params: Num, largest: Num, largest_experts: Num
) -> dict[str, Num]:
    """Return the bytes of weights, gradients, optimizer states and gathered buffers of a rank's parameters.

    `largest` is the number of dense parameters of the largest part of the stage, `largest_experts` of its experts:
    ZeRO-3 holds two parts gathered (the one that computes and the next one), and sharded gradients pass through one
    whole part.
    """
    dense = _states_of(strategy, params, largest, strategy.shards)
    if not np.any(expert_params):
        return dense
    experts = _states_of(strategy, expert_params, largest_experts, strategy.expert_replicas)
    return {name: dense[name] + experts[name] for name in dense}


def _states_of(strategy: Strategy, params: Num, largest: Num, shards: Num) -> dict[str, Num]:
    zero, piped, software = np.asarray(strategy.zero), np.asarray(strategy.pp) > 1, strategy.software
    mixed = strategy.dtype != "fp32"
    compute = ELEMENT_BYTES[strategy.dtype]
    shard1, shard2 = np.where(zero >= 1, shards, 1), np.where((zero >= 2) & ~piped, shards, 1)
    # fp32 weights are the master copy; `fully_shard` (ZeRO-2) keeps its shard beside the gathered weights, and
    # `replicate` (ZeRO-0 beside tp or pp) a working copy
    replicated = (zero == 0) & (strategy.dp > 1) & (piped | (np.asarray(strategy.tp) > 1))
    whole = np.where(zero <= 2, compute * params, 0.0)
    kept = software.master_bytes or compute
    master = software.master_bytes * params / shard1 if mixed else np.where(replicated, 4.0 * params, 0.0)
    # DDP sums into buckets of its own once micro-batches have been accumulated
    buckets = (not mixed) & (zero <= 1) & (strategy.dp > 1) & ~replicated & (np.asarray(strategy.num_microbatches) > 1)
    return {
        "weights": whole + np.where(zero >= 2, kept * params / shards, master),
        "gradients": software.grad_bytes * params / shard2 * np.where(buckets, 2.0, 1.0),
        "optimizer": software.moment_bytes * params / shard1,
        "gathered": np.where(zero == 3, 2 * compute * largest, 0.0)
        + np.where((zero >= 2) & ~piped, (compute + (software.reduce_bytes if mixed else 0.0)) * largest, 0.0),
    }


def in_flight(strategy: Strategy, rank: int) -> Num:
    """Return the most micro-batches whose activations a pipeline rank holds.

    p - rank under 1F1B, all under GPipe; with v chunks (v - 1) p + 2 (p - rank - 1) + 1 of them, each 1/v of the
    rank's layers (arXiv 2104.04473, section 2.2.2).
    """
    p, m, v = np.asarray(strategy.pp), np.asarray(strategy.num_microbatches), np.asarray(strategy.chunks)
    chunked = np.minimum(m * v, (v - 1) * p + 2 * (p - rank - 1) + 1) / v
    depth = np.where(v > 1, chunked, np.minimum(m, np.maximum(p - rank, 1)))
    return np.where((np.asarray(strategy.schedule) == "GPipe") & (p > 1), m, depth)


def _largest(workload: Workload, stage: Stage) -> tuple[Num, Num]:
    largest: Num = 0.0
    experts: Num = 0.0
    for part, _ in stage:
        work = workload.parts[part]
        bigger = work.params + work.expert_params > largest + experts
        largest, experts = np.where(bigger, work.params, largest), np.where(bigger, work.expert_params, experts)
    return largest, experts


def _saved_bytes(part: PartWork, strategy: Strategy) -> Num:
    recompute, share = np.asarray(strategy.recompute), strategy.recompute_share
    less: Num = np.where(recompute == "selective", part.saved_selective_bytes, part.saved_none_bytes)
    less = np.where(recompute == "full", part.saved_full_bytes, less)
    return share * less + (1 - share) * part.saved_none_bytes


def _activation_bytes(workload: Workload, stage: Stage, micro_batches: Num) -> Num:
    saved = sum((_saved_bytes(workload.parts[part], workload.strategy) * num for part, num in stage), 0.0)
    return saved * micro_batches


def _pipe_bytes(workload: Workload, rank: int, pp: int) -> Num:
    """Return what torch's pipeline holds between stages: until the step ends, every micro-batch's receive buffer and
    sent tensor, forward and backward; a stage at an end has one neighbour, one in the middle two (measured: 2 m)."""
    if pp == 1:
        return 0.0
    ends = 4 if 0 < rank < pp - 1 else 2
    held = np.asarray(workload.strategy.num_microbatches) if workload.strategy.software.pipe_buffers else 1
    return ends * held * workload.send.bytes


def _transient_bytes(workload: Workload, stage: Stage) -> Num:
    """Return what lives inside one pass: gradients of activations, and a layer's recomputed activations."""
    largest: Num = 0.0
    for part, _ in stage:
        work = workload.parts[part]
        again = work.saved_none_bytes - _saved_bytes(work, workload.strategy)
        largest = np.maximum(largest, work.transient_bytes + again)
    return largest

