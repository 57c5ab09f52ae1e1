"""Bytes alive at the peak of a step, by what holds them; the same code for one strategy and for a batch.

Bytes per parameter under bf16: 2 weight, 4 gradient (fp32), 12 master weight and two moments; under fp32: 4, 4, 8
(arXiv 1910.02054 section 3.1 with fp32 gradients); other types are those of the strategy's software. Sharding over
the replicas: moments and master from ZeRO-1, gradients from ZeRO-2, weights from ZeRO-3. What an engine holds beside
that is written where it is added. Frozen weights are held in the type that is computed in, without gradient, master or
moments. The peak is the largest of a step's moments: the loss, the backward of a layer while
most micro-batches are held, the end of backward, the update.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from profiles.hardware import Accelerator
from profiles.model import Part
from profiles.ops import ELEMENT_BYTES, Num
from simulator.layout import rank_parts
from simulator.schedules import SCHEDULES, rank_stages, stage_rank
from simulator.strategy import Pipe, Strategy, by_pipe
from simulator.workload import PartWork, Workload, pick_workload

Stage = list[tuple[Part, int]]
ROOTS = ("embedding", "head")
LOSS_PARTS = ("head", "mtp")
"""Parts with a loss: of one rank, at the end of the model."""


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
        return _peak_of_pipe(workload, accelerator, pipes[0])
    peak = np.zeros(len(strategy))
    parts: dict[str, Num] = {}
    for pipe in pipes:
        some = _peak_of_pipe(pick_workload(workload, pipe.where), accelerator, pipe)
        peak[pipe.where] = some.peak_bytes
        for name, value in some.parts_bytes.items():
            parts.setdefault(name, np.zeros(len(strategy)))[pipe.where] = value
    return Memory(peak_bytes=peak, usable_bytes=accelerator.memory_bytes, parts_bytes=parts)


def _peak_of_pipe(workload: Workload, accelerator: Accelerator, pipe: Pipe) -> Memory:
    ranks = rank_parts(workload.model, pipe.pp, pipe.chunks, workload.strategy.software.layer_split, pipe.schedule)
    # of ranks with the same parts the first or the last holds the most micro-batches
    fullest = [rank for rank, parts in enumerate(ranks) if parts not in ranks[:rank] or parts not in ranks[rank + 1 :]]
    each = [rank_memory(workload, accelerator, rank) for rank in fullest]
    totals = np.stack(np.broadcast_arrays(*[sum(m.values()) for m in each]))
    which = totals.argmax(axis=0)
    parts: dict[str, Num] = {}
    for name in each[0]:
        stacked = np.stack(np.broadcast_arrays(totals[0], *[m[name] for m in each])[1:])
        parts[name] = np.take_along_axis(stacked, which[None], axis=0)[0]
    return Memory(peak_bytes=totals.max(axis=0), usable_bytes=accelerator.memory_bytes, parts_bytes=parts)


def rank_memory(workload: Workload, accelerator: Accelerator, rank: int) -> dict[str, Num]:
    """Return the bytes of a pipeline rank at its peak, by what holds them; all strategies have one pp, chunks and
    schedule."""
    strategy, pipe = workload.strategy, by_pipe(workload.strategy)[0]
    split = strategy.software.layer_split
    stage = rank_parts(workload.model, pipe.pp, pipe.chunks, split, pipe.schedule)[rank]
    alive = _alive(workload, stage, pipe, rank)
    moments = _moments(workload, stage, alive)
    totals = np.stack(np.broadcast_arrays(*[sum(m.values()) for m in moments]))
    which = totals.argmax(axis=0)
    peak = {}
    for name in moments[0]:
        stacked = np.stack(np.broadcast_arrays(totals[0], *[m[name] for m in moments])[1:])
        peak[name] = np.take_along_axis(stacked, which[None], axis=0)[0]
    freed = moments[-2]["gradients"] - peak["gradients"]
    slack = _slack_bytes(accelerator, alive, peak, freed, _single(strategy))
    return peak | {"framework": accelerator.framework_bytes, "slack": slack}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Alive:
    """What comes and goes on a pipeline rank in a step, in bytes.

    `layers` and `loss_saved` wait for backward at the peak of the loss, `piped` between stages; `loss`, `backward` and
    `update` live beside them inside the loss, the backward of a layer and the update; `forward` and `cast` have lived
    before: what a layer's forward drops, and logits as computed.
    """

    layers: Num
    loss_saved: Num
    others_saved: Num
    piped: Num
    loss: Num
    backward: Num
    forward: Num
    cast: Num
    update: Num


def _alive(workload: Workload, stage: Stage, pipe: Pipe, rank: int) -> _Alive:
    strategy, software, parts = workload.strategy, workload.strategy.software, workload.parts
    held = in_flight(strategy, rank)
    # the last stage sends a micro-batch back at once, unless all of them go forward first
    ends = strategy.num_microbatches if pipe.schedule in ("GPipe", "LoopedBFS") and pipe.pp > 1 else np.ones(())
    layers = [(parts[p], num) for p, num in stage if p not in LOSS_PARTS]
    losses = [(parts[p], num) for p, num in stage if p in LOSS_PARTS]
    saved = sum((work.saved_none_bytes * num for work, num in losses), 0.0)
    backward: Num = 0.0
    forward: Num = 0.0
    for work, _ in layers:
        again = work.saved_none_bytes - _saved_bytes(work, strategy)
        backward = np.maximum(backward, work.transient_bytes + again)
        forward = np.maximum(forward, np.minimum(work.freed_bytes, again))
    updated = sum((_updated(work, strategy) * num for work, num in [*layers, *losses]), 0.0)
    narrow = software.grad_bytes < ELEMENT_BYTES["fp32"] and strategy.dtype != "fp32"
    return _Alive(
        layers=sum((_saved_bytes(work, strategy) * num for work, num in layers), 0.0) * held,
        loss_saved=saved * ends, others_saved=saved * (ends - 1), piped=_pipe_bytes(workload, pipe, rank, held, ends),
        loss=max((work.transient_bytes for work, _ in losses), key=np.max, default=0.0),
        backward=backward, forward=forward, cast=sum((work.freed_bytes for work, _ in losses), 0.0),
        update=software.update_bytes * updated if narrow else 0.0,
    )


def _moments(workload: Workload, stage: Stage, alive: _Alive) -> list[dict[str, Num]]:
    """Return the bytes at four moments: the loss, the backward of a layer with most micro-batches held, its end, the update.

    Late gradients of a single micro-batch appear while activations go: the two never stand together.
    """
    strategy, software = workload.strategy, workload.strategy.software
    def all_of(field: str) -> Num:
        return sum((getattr(workload.parts[part], field) * num for part, num in stage), 0.0)

    params, experts = all_of("params"), all_of("expert_params")
    frozen = params - all_of("trained_params"), experts - all_of("trained_expert_params")
    narrowed = sum((_narrowed_bytes(workload.parts[part], strategy) * num for part, num in stage if part not in ROOTS), 0.0)
    (largest, roots), (summed, summed_roots) = (_elements(workload, stage, t) for t in ("", "trained_"))
    absent = _single(strategy)
    left = alive.piped if software.pipe_buffers else 0.0
    # what copies narrow gradients for the update frees them
    copied = np.asarray(alive.update) > 0
    moments = []
    for gathered, reduced, activations, transient, gone in (
        (roots + largest, 0.0, alive.layers + alive.loss_saved + alive.piped, alive.loss, absent),
        (roots + 2 * largest, summed, alive.layers + alive.others_saved + alive.piped, alive.backward, absent),
        (roots, np.maximum(summed_roots, summed), left, 0.0, False),
        (0.0, 0.0, left, alive.update, copied),
    ):
        states = state_bytes(strategy, params, experts, gathered, reduced, frozen)
        states["weights"] = states["weights"] - narrowed
        gradients = np.where(gone, 0.0, states["gradients"])
        moments.append(states | {"gradients": gradients, "activations": activations, "transient": transient})
    return moments


def _single(strategy: Strategy) -> Num:
    """Return whether gradients appear while activations go: those of a single micro-batch that are not kept for good."""
    return (np.asarray(strategy.num_microbatches) == 1) & strategy.software.late_gradients


def _slack_bytes(accelerator: Accelerator, alive: _Alive, peak: dict[str, Num], freed: Num, single: Num) -> Num:
    """Return the bytes that the caching allocator holds and cannot use at the peak.

    A share of what comes and goes, and what has lived before (`freed`: gradients) in blocks too small for the largest
    tensors of a step, the logits in fp32 and flat copies for the update: blocks are split, never joined, and go back to
    the device only where an allocation would fail (CUDACachingAllocator.cpp).
    """
    dynamic = peak["activations"] + peak["transient"]
    if not accelerator.allocator_slack:
        return 0.0 * dynamic
    small = alive.layers + alive.piped + alive.forward + np.where(single, 0.0, freed)
    apart = small + np.maximum(alive.loss_saved + alive.loss + alive.cast, alive.update)
    share = accelerator.allocator_slack * dynamic
    room = accelerator.memory_bytes - accelerator.framework_bytes - sum(peak.values()) - share
    used = dynamic + np.where(single, peak["gradients"], 0.0)
    return share + np.clip(apart - used, 0.0, np.maximum(room, 0.0))


def state_bytes(
    strategy: Strategy, params: Num, expert_params: Num, gathered: Num, reduced: Num, frozen: tuple[Num, Num] = (0.0, 0.0),
) -> dict[str, Num]:
    """Return the bytes of weights, gradients, optimizer states and buffers of a rank's parameters.

    `gathered` is the number of parameters that ZeRO-3 holds whole, `reduced` of those whose whole gradients are on their
    way to their shards; `frozen` of the parameters, and of the experts', are not trained.
    """
    states = _states_of(strategy, params, frozen[0], strategy.shards)
    if np.any(expert_params):
        experts = _states_of(strategy, expert_params, frozen[1], strategy.expert_replicas)
        states = {name: states[name] + experts[name] for name in states}
    zero, piped = np.asarray(strategy.zero), np.asarray(strategy.pp) > 1
    compute, software = ELEMENT_BYTES[strategy.dtype], strategy.software
    wire = software.reduce_bytes if strategy.dtype != "fp32" else 0.0
    buffers = np.where(zero == 3, compute * gathered, 0.0) + np.where((zero >= 2) & ~piped, (compute + wire) * reduced, 0.0)
    replicated = np.asarray(strategy.replicas) > 1
    return states | {"gathered": buffers + np.where(replicated & (zero <= 2), software.bucket_bytes, 0.0)}


def _states_of(strategy: Strategy, params: Num, frozen: Num, shards: Num) -> dict[str, Num]:
    zero, piped, software = np.asarray(strategy.zero), np.asarray(strategy.pp) > 1, strategy.software
    mixed = strategy.dtype != "fp32"
    compute = ELEMENT_BYTES[strategy.dtype]
    shard1, shard2 = np.where(zero >= 1, shards, 1), np.where((zero >= 2) & ~piped, shards, 1)
    # fp32 weights are the master copy; `fully_shard` (ZeRO-2) keeps its shard beside the gathered weights, and
    # `replicate` (ZeRO-0 beside tp or pp) a working copy
    replicated = (zero == 0) & (strategy.dp > 1) & (piped | (np.asarray(strategy.tp) > 1))
    whole = np.where(zero <= 2, compute * params, 0.0)
    trained, kept = params - frozen, software.master_bytes or compute
    master = software.master_bytes * trained / shard1 if mixed else np.where(replicated, 4.0 * params, 0.0)
    # DDP sums into buckets of its own once micro-batches have been accumulated
    buckets = (not mixed) & (zero <= 1) & (strategy.dp > 1) & ~replicated & (np.asarray(strategy.num_microbatches) > 1)
    low = compute if software.keeps_low_gradients and software.grad_bytes > compute else 0.0
    return {
        "weights": whole + np.where(zero >= 2, (kept * trained + compute * frozen) / shards, master),
        "gradients": (software.grad_bytes + low) * trained / shard2 * np.where(buckets, 2.0, 1.0),
        "optimizer": software.moment_bytes * trained / shard1,
    }


def _narrowed_bytes(work: PartWork, strategy: Strategy) -> Num:
    """Return what a layer's frozen weights take less where they are held as narrow as its matmuls read them."""
    software = strategy.software
    if not software.frozen_bytes or not strategy.matmul:
        return 0.0
    alone = np.asarray(strategy.zero) == 3
    frozen = (work.params - work.trained_params) / np.where(alone, strategy.shards, 1)
    experts = (work.expert_params - work.trained_expert_params) / np.where(alone, strategy.expert_replicas, 1)
    return (ELEMENT_BYTES[strategy.dtype] - software.frozen_bytes) * (frozen + experts)


def _updated(work: PartWork, strategy: Strategy) -> Num:
    """Return the parameters of a part that a rank updates."""
    sharded = np.asarray(strategy.zero) >= 1
    return work.trained_params / np.where(sharded, strategy.shards, 1) \
        + work.trained_expert_params / np.where(sharded, strategy.expert_replicas, 1)


def in_flight(strategy: Strategy, rank: int) -> Num:
    """Return the most micro-batches whose activations a pipeline rank holds: chunks of them, each 1/v of its layers."""
    p, m, v = np.asarray(strategy.pp), np.asarray(strategy.num_microbatches), np.asarray(strategy.chunks)
    names = np.where(p > 1, strategy.schedule, "1F1B")
    held: Num = 0.0
    for name in np.unique(names):
        held = np.where(names == name, SCHEDULES[str(name)].held(rank, np.maximum(p, rank + 1), m, v), held)
    return held / v


def _elements(workload: Workload, stage: Stage, which: str) -> tuple[Num, Num]:
    """Return the parameters (or the `trained_` ones) of the largest layer of a stage, and of embedding and head, which
    ZeRO-3 gathers once.

    Only the root of a model is not sharded again behind its forward (torch's fully_shard).
    """
    largest: Num = 0.0
    roots: Num = 0.0
    for part, num in stage:
        work = workload.parts[part]
        elements = getattr(work, f"{which}params") + getattr(work, f"{which}expert_params")
        if part in ROOTS:
            roots = roots + elements * num
        else:
            largest = np.maximum(largest, elements)
    return largest, roots


def _saved_bytes(part: PartWork, strategy: Strategy) -> Num:
    recompute, share = np.asarray(strategy.recompute), strategy.recompute_share
    less: Num = np.where(recompute == "selective", part.saved_selective_bytes, part.saved_none_bytes)
    less = np.where(recompute == "full", part.saved_full_bytes, less)
    return share * less + (1 - share) * part.saved_none_bytes


def _pipe_bytes(workload: Workload, pipe: Pipe, rank: int, held: Num, waiting: Num) -> Num:
    """Return what a pipeline holds between stages: a received and a sent tensor, forward and backward, for each neighbour.

    A stage has one in front and one behind, where these stand on other ranks. torch's runtime keeps the four of every
    micro-batch until the step ends (measured: 2 m). Others have one of each at a time, and where they keep what they
    have sent, that of each micro-batch `held`, but of those that are `waiting` for the loss.
    """
    software, m = workload.strategy.software, np.asarray(workload.strategy.num_microbatches)
    if pipe.pp == 1:
        return 0.0
    own = np.array(rank_stages(pipe.schedule, rank, pipe.pp, pipe.chunks))
    beside = np.stack([own - 1, own + 1])
    away = (beside >= 0) & (beside < pipe.pp * pipe.chunks) & (stage_rank(pipe.schedule, beside, pipe.pp) != rank)
    if software.pipe_buffers:
        tensors = 2 * away.sum() * m
    else:
        ends = pipe.pp * pipe.chunks - 1 in own
        tensors = 2 * away.any(axis=1).sum() + (pipe.chunks * held - ends * waiting if software.keeps_sent else 0)
    return tensors * workload.send.bytes
