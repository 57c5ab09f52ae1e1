"""What replicas of a part do together: gathers of sharded weights, sums of gradients, the update."""

from __future__ import annotations

from typing import Any

import numpy as np

from profiles.collectives import Collective
from profiles.model import ModelSpec, Part
from profiles.ops import ELEMENT_BYTES, Kernel, Num, Pass
from profiles.optimizer import AdamW
from profiles.pointwise import Pointwise
from simulator.strategy import Strategy

BUCKET_ELEMENTS = 40e6
BUCKET_ELEMENTS_A_RANK = 1e6


def over_replicas(
    model: ModelSpec, strategy: Strategy, part: Part, held: tuple[Num, Num], trained: tuple[Num, Num]
) -> dict[str, Any]:
    """Return the collectives over the replicas, the accumulation and the update of a part.

    `held` and `trained` are the dense parameters of a rank and those of its experts: what is not trained is gathered
    where it is sharded, and neither summed, reduced nor updated. ZeRO-0 all-reduces; all others reduce-scatter, and
    ZeRO-1 gathers the updated weights (arXiv 1910.02054, sections 5 and 7). Where only a group of ranks shares a copy, what
    is scattered there is all-reduced over the groups (HSDP, arXiv 2304.11277, section 3.2.2). A collective that a level does
    not use has a group of one.
    """
    zero, software, n, shards = np.asarray(strategy.zero), strategy.software, strategy.replicas, strategy.shards
    mixed, experts = strategy.dtype != "fp32", strategy.expert_replicas
    gathered = software.gather_bytes or ELEMENT_BYTES[strategy.dtype]
    reduced = software.reduce_bytes
    scatters = zero >= 1
    trains, has_experts = bool(np.any(trained[0])), bool(np.any(trained[1]))

    def over(axis: str, kind: str, size: Num, used: Num, group: Num) -> Collective:
        return Collective(name=f"{part}.{kind}", kind=kind, axis=axis, bytes=size, group_size=np.where(used, group, 1))

    def sums(axis: str, elements: Num, group: Num, inside: Num, used: bool) -> tuple[Collective, ...]:
        return (
            over(axis, "all_reduce", reduced * elements, ~scatters & used, group),
            over(axis, "reduce_scatter", reduced * elements, scatters & used, inside),
            over(f"{axis} groups", "all_reduce", reduced * elements / inside, scatters & used, group / inside),
        )

    def gathers(elements: tuple[Num, Num], used: Num) -> tuple[Collective, ...]:
        dense = over("shard", "all_gather", gathered * elements[0], used & bool(np.any(elements[0])), shards)
        return (dense, over("edp", "all_gather", gathered * elements[1], used, experts)) if np.any(elements[1]) else (dense,)

    def shared(elements: tuple[Num, Num], where: Num) -> Num:
        """Return the elements of a rank: shards of them where that holds."""
        return elements[0] / np.where(where, shards, 1) + elements[1] / np.where(where, experts, 1)

    def moved(name: str, elements: Num, dtype: str, pass_: Pass) -> Kernel:
        """Return an add of that many elements: two tensors read and one written."""
        return Pointwise(
            name=f"{part}.{name}", kind="add", rows=elements / model.hidden, cols=model.hidden, dtype=dtype
        ).kernels(pass_)[0]

    def copied(elements: tuple[Num, Num]) -> Num:
        """Return what FSDP copies from shards into a flat buffer and out of the gathered one, each read and written once."""
        dense, of_experts = elements
        return 2 / 3 * (dense * (1 + 1 / np.asarray(shards, dtype=float))
                        + of_experts * (1 + 1 / np.asarray(experts, dtype=float)))

    reduce = sums("shard", trained[0], n, shards, trains)
    reduce += sums("edp", trained[1], experts, experts, True)[:2] if has_experts else ()
    # a kernel of no size has no law: where nothing is trained, one element is
    least = 0.0 if trains or has_experts else 1.0
    # sharded gradients are added after they are scattered, whole ones (and those of a pipeline) before
    added = shared(trained, (zero >= 2) & (np.asarray(strategy.pp) == 1)) + least
    grad_dtype = "fp32" if software.grad_bytes == 4 else strategy.dtype
    if software.fused_accumulation:
        added = 0.0 * added
    return {
        "accumulate": moved("accumulate", added, grad_dtype, "B"),
        "gather_copy": moved("gather_copy", copied(held), strategy.dtype, "F"),
        "reduce_copy": moved("reduce_copy", copied(trained) + least, "fp32" if reduced == 4 else strategy.dtype, "F"),
        "gather": gathers(held, zero >= 2),
        "reduce": reduce,
        "update": AdamW(
            name=f"{part}.update", params=shared(trained, zero >= 1) + least, writes_bf16_copy=mixed,
            state_bytes=software.master_bytes + software.moment_bytes, grad_bytes=software.grad_bytes,
        ).kernels("U")[0],
        "regather": gathers(trained, zero == 1),
        "bucket": _bucket(model, strategy, sum(trained)) if strategy.lora_rank else 1,
    }


def _bucket(model: ModelSpec, strategy: Strategy, elements: Num) -> Num:
    """Return how many layers' adapters are summed in one message: as many as a bucket holds or a stage has; FSDP sums each.

    A bucket holds 40 M elements, or 1 M for each replica where that is more (Megatron-Core, distributed_data_parallel.py).
    """
    room = np.maximum(BUCKET_ELEMENTS, BUCKET_ELEMENTS_A_RANK * strategy.replicas) / np.maximum(elements, 1.0)
    layers = np.maximum(model.num_layers / (strategy.pp * strategy.chunks), 1.0)
    return np.where(np.asarray(strategy.zero) >= 2, 1.0, np.clip(room, 1.0, layers))
