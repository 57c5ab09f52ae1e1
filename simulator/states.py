"""Bytes of weights, gradients and optimizer states of a part on a rank, and of the buffers of their collectives.

Bytes per parameter under bf16: 2 weight, 4 gradient (fp32), 12 master weight and two moments; under fp32: 4, 4, 8
(arXiv 1910.02054 section 3.1 with fp32 gradients); other types are those of the strategy's software. Sharding over
the replicas: moments and master from ZeRO-1, gradients from ZeRO-2, weights from ZeRO-3. What an engine holds beside
that is written where it is added. Frozen weights are held in the type that is computed in, without gradient, master or
moments. What `strategy.offload` names lies in host memory instead (arXiv 2101.06840, section 3); the device then keeps
weights as they are computed with, which updated ones overwrite.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from profiles.model import ModelSpec, Part
from profiles.ops import ELEMENT_BYTES, Num
from simulator.adapters import trained_elements, trained_items
from simulator.strategy import Strategy
from simulator.workload import PartWork, Workload, held_params, shape_of

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
    away = offloaded(strategy)
    streams = software.offloads_with == "weights"
    # ZeRO-3 gathers from what stays: shards as computed with, where these are not on the host, too
    left = np.where((zero == 3) & ~(streams & (np.asarray(away.updated) > 0)), compute, 0.0)
    kept_bytes = (kept * (1 - away.master) + left * away.master) * trained + compute * frozen * (1 - streams * away.updated)
    master = (software.master_bytes * trained / shard1 * (1 - away.master) if mixed
              else np.where(replicated, 4.0 * params, 0.0))
    summed_there = (software.offloads_with != "states") & leaves_each_time(strategy)
    # DDP sums into buckets of its own once micro-batches have been accumulated
    buckets = (not mixed) & (zero <= 1) & (strategy.dp > 1) & ~replicated & (np.asarray(strategy.num_microbatches) > 1)
    low = compute if software.keeps_low_gradients and software.grad_bytes > compute else 0.0
    return {
        "weights": whole + np.where(zero >= 2, kept_bytes / shards, master),
        "gradients": ((software.grad_bytes + low) * trained / shard2 * np.where(buckets, 2.0, 1.0)
                      * (1 - summed_there * away.updated)),
        "optimizer": software.moment_bytes * trained / shard1 * (1 - away.moments),
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
    """Return what the update of a part holds beside what stays: copies of gradients narrower than fp32, and states that are
    back from the host for it."""
    strategy, software, work, away = workload.strategy, workload.strategy.software, workload.parts[part], offloaded(
        workload.strategy)
    each = software.update_bytes * (1 - away.updated) if copies_gradients(strategy) else 0.0
    if np.any(away.moments):
        states = software.moment_bytes * away.moments + software.master_bytes * away.master
        each = each + np.where(np.asarray(away.updated) > 0, 0.0, states)
    if not np.any(each):
        return 0.0
    sharded = np.asarray(strategy.zero) >= 1
    return each * (work.trained_params / np.where(sharded, strategy.shards, 1)
                   + work.trained_expert_params / np.where(sharded, strategy.expert_replicas, 1))


def copies_gradients(strategy: Strategy) -> bool:
    """Return whether the update copies gradients, which are narrower than fp32, and frees them."""
    software = strategy.software
    return bool(software.update_bytes) and software.grad_bytes < ELEMENT_BYTES["fp32"] and strategy.dtype != "fp32"


class Offloaded(NamedTuple):
    """Shares of what lies in host memory: of moments, of main weights, and of what the host updates."""

    moments: Num
    master: Num
    updated: Num


def offloaded(strategy: Strategy) -> Offloaded:
    """Return which shares of a rank's states are offloaded."""
    if not np.ndim(strategy.offload) and strategy.offload == "none":
        return Offloaded(0.0, 0.0, 0.0)
    way, share = np.asarray(strategy.offload), strategy.offload_share
    # weights that are their own main copy stay, but where the host updates them
    apart = strategy.dtype != "fp32" and strategy.software.master_bytes > 0
    ways = (("moments", "states", "optimizer"), ("states", "optimizer") if apart else ("optimizer",), ("optimizer",))
    return Offloaded(*(np.where(np.isin(way, some), share, 0.0) for some in ways))


def leaves_each_time(strategy: Strategy) -> Num:
    """Return where gradients can leave the device behind each micro-batch: reduced to shards, or of a single replica."""
    zero, alone = np.asarray(strategy.zero), np.asarray(strategy.replicas) == 1
    return ((zero >= 2) | alone) & (np.asarray(strategy.pp) == 1)


def host_bytes(model: ModelSpec, strategy: Strategy) -> Num:
    """Return the bytes of host memory that what a rank offloads takes, on the average over the ranks.

    For each parameter its moments and main weight, where these are there, and a gradient in fp32 where the host updates:
    16 bytes under bf16 (arXiv 2101.06840; DeepSpeed's estimate_zero2_model_states_mem_needs).
    """
    away, software = offloaded(strategy), strategy.software
    if not np.any(away.moments):
        return 0.0
    each = software.moment_bytes * away.moments + ELEMENT_BYTES["fp32"] * away.updated
    each = each + (software.master_bytes or ELEMENT_BYTES[strategy.dtype]) * away.master
    sharded, elements = np.asarray(strategy.zero) >= 1, 0.0
    shape = shape_of(strategy)
    for part in model.parts:
        dense, experts = held_params(model, strategy, part)
        if strategy.lora_rank:
            dense, experts = trained_elements(trained_items(model, part, shape, strategy.lora_rank, strategy.lora_targets))
        own = dense / np.where(sharded, strategy.shards, 1) + experts / np.where(sharded, strategy.expert_replicas, 1)
        elements = elements + model.times(part) * own
    return each * elements / strategy.pp


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
    if np.any(offloaded(strategy).updated) and software.offloads_with != "states":
        # on their way to the host
        each_time = each_time | (leaves_each_time(strategy) & (offloaded(strategy).updated > 0))
    replicated = np.asarray(strategy.replicas) > 1
    return Buffers(
        gathered=np.where(zero == 3, compute, 0.0), reduced=np.where(each_time, compute + wire, 0.0),
        buckets=np.where(replicated & (zero <= 2), software.bucket_bytes, 0.0),
    )
