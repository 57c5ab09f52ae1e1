"""Bytes of weights, gradients and optimizer states of a part on a rank, and of the buffers of their collectives.

Bytes per parameter under bf16: 2 weight, 4 gradient (fp32), 12 master weight and two moments; under fp32: 4, 4, 8
(arXiv 1910.02054 section 3.1 with fp32 gradients); other types are those of the strategy's software. Sharding over
the replicas: moments and master from ZeRO-1, gradients from ZeRO-2, weights from ZeRO-3. What an engine holds beside
that is written where it is added. Frozen weights are held in the type that is computed in, without gradient, master or
moments.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from profiles.model import Part
from profiles.ops import ELEMENT_BYTES, Num
from simulator.strategy import Strategy
from simulator.workload import PartWork, Workload

ROOTS = ("embedding", "head")
"""Parts that ZeRO-3 gathers once: the root of a model is not sharded again behind its forward (torch's fully_shard)."""


def state_bytes(
    strategy: Strategy, params: Num, expert_params: Num = 0.0, frozen: tuple[Num, Num] = (0.0, 0.0)
) -> dict[str, Num]:
    """Return the bytes of weights, gradients and optimizer states of so many parameters of a rank; `frozen` of them, and of
    the experts', are not trained."""
    states = _states_of(strategy, params, frozen[0], strategy.shards)
    if np.any(expert_params):
        experts = _states_of(strategy, expert_params, frozen[1], strategy.expert_replicas)
        states = {name: states[name] + experts[name] for name in states}
    return states


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


def part_states(workload: Workload, part: Part) -> dict[str, Num]:
    """Return the bytes of weights, gradients and optimizer states of one part on its rank."""
    strategy, work = workload.strategy, workload.parts[part]
    frozen = work.params - work.trained_params, work.expert_params - work.trained_expert_params
    states = state_bytes(strategy, work.params, work.expert_params, frozen)
    return states if part in ROOTS else states | {"weights": states["weights"] - _narrowed_bytes(work, strategy)}


def _narrowed_bytes(work: PartWork, strategy: Strategy) -> Num:
    """Return what a layer's frozen weights take less where they are held as narrow as its matmuls read them."""
    software = strategy.software
    if not software.frozen_bytes or not strategy.matmul:
        return 0.0
    alone = np.asarray(strategy.zero) == 3
    frozen = (work.params - work.trained_params) / np.where(alone, strategy.shards, 1)
    experts = (work.expert_params - work.trained_expert_params) / np.where(alone, strategy.expert_replicas, 1)
    return (ELEMENT_BYTES[strategy.dtype] - software.frozen_bytes) * (frozen + experts)


def update_bytes(workload: Workload, part: Part) -> Num:
    """Return what the update of a part makes beside its states, where gradients are narrower than fp32."""
    strategy, software, work = workload.strategy, workload.strategy.software, workload.parts[part]
    if not software.update_bytes or software.grad_bytes >= ELEMENT_BYTES["fp32"] or strategy.dtype == "fp32":
        return 0.0
    sharded = np.asarray(strategy.zero) >= 1
    return software.update_bytes * (work.trained_params / np.where(sharded, strategy.shards, 1)
                                    + work.trained_expert_params / np.where(sharded, strategy.expert_replicas, 1))


class Buffers(NamedTuple):
    """Bytes of a weight that ZeRO-3 has gathered; of a whole gradient on its way to its shard, as computed and as sent; and
    of flat buffers of collectives."""

    gathered: Num
    reduced: Num
    buckets: Num


def buffer_bytes(strategy: Strategy) -> Buffers:
    """Return what collectives over the replicas hold beside the states, for each parameter, and the flat buffers."""
    zero, compute, software = np.asarray(strategy.zero), ELEMENT_BYTES[strategy.dtype], strategy.software
    wire = software.reduce_bytes if strategy.dtype != "fp32" else 0.0
    each_time = (zero >= 2) & (np.asarray(strategy.pp) == 1)
    replicated = np.asarray(strategy.replicas) > 1
    return Buffers(
        gathered=np.where(zero == 3, compute, 0.0), reduced=np.where(each_time, compute + wire, 0.0),
        buckets=np.where(replicated & (zero <= 2), software.bucket_bytes, 0.0),
    )
