"""Bytes alive at the peak of a step, by what holds them; the same code for one strategy and for a batch.

Bytes per parameter under bf16: 2 weight, 4 gradient (fp32), 12 master weight and two moments; under fp32: 4, 4, 8
(arXiv 1910.02054 section 3.1 with fp32 gradients). Sharding over dp: moments and master from ZeRO-1, gradients
from ZeRO-2, weights from ZeRO-3. What torch's engines hold beside that is written where it is added.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from profiles.hardware import Accelerator
from profiles.model import Part
from profiles.ops import ELEMENT_BYTES, Num
from simulator.layout import stage_layers_by_place
from simulator.strategy import Strategy
from simulator.workload import PartWork, Workload

PLACES = ("first", "middle", "last", "only")


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
    """Return the peak of the fullest stage of each strategy."""
    p = np.asarray(workload.strategy.pp)
    by_place = {place: place_memory(workload, accelerator, place) for place in PLACES}
    exists = {"first": p > 1, "middle": p > 2, "last": p > 1, "only": p == 1}
    totals = np.stack(np.broadcast_arrays(
        *[np.where(exists[place], sum(by_place[place].values()), 0.0) for place in PLACES]
    ))
    fullest = totals.argmax(axis=0)
    parts = {}
    for name in by_place["first"]:
        stacked = np.stack(np.broadcast_arrays(totals[0], *[by_place[place][name] for place in PLACES])[1:])
        parts[name] = np.take_along_axis(stacked, fullest[None], axis=0)[0]
    return Memory(peak_bytes=totals.max(axis=0), usable_bytes=accelerator.memory_bytes, parts_bytes=parts)


def place_memory(workload: Workload, accelerator: Accelerator, place: str) -> dict[str, Num]:
    """Return the bytes of a stage at its peak, by what holds them."""
    first, middle, last = stage_layers_by_place(workload.model.num_layers, np.asarray(workload.strategy.pp))
    layers = {"first": first, "middle": np.maximum(middle, 1), "last": last, "only": workload.model.num_layers}[place]
    stage: list[tuple[Part, Num]] = [("layer", layers)]
    if place in ("first", "only"):
        stage.insert(0, ("embedding", 1))
    if place in ("last", "only"):
        stage.append(("head", 1))
    params = sum(workload.parts[part].params * num for part, num in stage)
    largest = _largest(workload, [part for part, _ in stage])
    states = state_bytes(workload.strategy, params, largest)
    active = _activation_bytes(workload, stage, in_flight(workload.strategy, place)) + _pipe_bytes(workload, place)
    transient = _transient_bytes(workload, [part for part, _ in stage])
    # with a single micro-batch gradients appear while activations go: the two never stand together
    single = np.asarray(workload.strategy.num_microbatches) == 1
    late = single & (states["gradients"] > active + transient)
    states["gradients"] = np.where(single & ~late, 0.0, states["gradients"])
    active, transient = np.where(late, 0.0, active), np.where(late, 0.0, transient)
    dynamic = active + transient
    return states | {
        "activations": active, "transient": transient, "framework": accelerator.framework_bytes,
        "slack": accelerator.allocator_slack * dynamic,
    }


def state_bytes(strategy: Strategy, params: Num, largest: Num) -> dict[str, Num]:
    """Return the bytes of weights, gradients, optimizer states and gathered buffers for `params` parameters.

    `largest` is the number of parameters of the largest part of the stage: ZeRO-3 holds two parts gathered (the one
    that computes and the next one), and sharded gradients pass through one whole part.
    """
    zero, dp, piped = np.asarray(strategy.zero), np.asarray(strategy.dp), np.asarray(strategy.pp) > 1
    mixed = strategy.precision != "fp32"
    compute = ELEMENT_BYTES[strategy.precision]
    shard1, shard2 = np.where(zero >= 1, dp, 1), np.where((zero >= 2) & ~piped, dp, 1)
    # fp32 weights are the master copy; `fully_shard` (ZeRO-2) keeps its shard beside the gathered weights, and
    # `replicate` (ZeRO-0 beside tp or pp) a working copy
    replicated = (zero == 0) & (dp > 1) & (piped | (np.asarray(strategy.tp) > 1))
    whole = np.where(zero <= 2, compute * params, 0.0)
    master = 4.0 * params / shard1 if mixed else np.where(replicated, 4.0 * params, 0.0)
    # DDP sums into buckets of its own once micro-batches have been accumulated
    buckets = (not mixed) & (zero <= 1) & (dp > 1) & ~replicated & (np.asarray(strategy.num_microbatches) > 1)
    return {
        "weights": whole + np.where(zero >= 2, 4.0 * params / dp, master),
        "gradients": 4.0 * params / shard2 * np.where(buckets, 2.0, 1.0),
        "optimizer": 8.0 * params / shard1,
        "gathered": np.where(zero == 3, 2 * compute * largest, 0.0)
        + np.where((zero >= 2) & ~piped, (compute + (4.0 if mixed else 0.0)) * largest, 0.0),
    }


def in_flight(strategy: Strategy, place: str) -> Num:
    """Return the most micro-batches whose activations a stage holds: p - s under 1F1B, all under GPipe."""
    p, m = np.asarray(strategy.pp), np.asarray(strategy.num_microbatches)
    depth = {"first": p, "middle": np.maximum(p - 1, 1), "last": 1, "only": 1}[place]
    return np.where((np.asarray(strategy.schedule) == "GPipe") & (p > 1), m, np.minimum(m, depth))


def _largest(workload: Workload, parts: list[Part]) -> Num:
    largest: Num = 0.0
    for part in parts:
        largest = np.maximum(largest, workload.parts[part].params)
    return largest


def _saved_bytes(part: PartWork, recompute: Num) -> Num:
    rest = np.where(recompute == "selective", part.saved_selective_bytes, part.saved_none_bytes)
    return np.where(recompute == "full", part.saved_full_bytes, rest)


def _activation_bytes(workload: Workload, stage: list[tuple[Part, Num]], micro_batches: Num) -> Num:
    recompute = np.asarray(workload.strategy.recompute)
    return sum(_saved_bytes(workload.parts[part], recompute) * num for part, num in stage) * micro_batches


def _pipe_bytes(workload: Workload, place: str) -> Num:
    """Return what torch's pipeline holds between stages: until the step ends, every micro-batch's receive buffer and
    sent tensor, forward and backward; a stage at an end has one neighbour, one in the middle two (measured: 2 m)."""
    if place == "only":
        return 0.0
    return (4 if place == "middle" else 2) * np.asarray(workload.strategy.num_microbatches) * workload.send.bytes


def _transient_bytes(workload: Workload, parts: list[Part]) -> Num:
    """Return what lives inside one pass: gradients of activations, and a layer's recomputed activations."""
    recompute = np.asarray(workload.strategy.recompute)
    layer = workload.parts["layer"]
    again = layer.saved_none_bytes - _saved_bytes(layer, recompute)
    largest: Num = layer.transient_bytes + again
    for part in parts:
        largest = np.maximum(largest, workload.parts[part].transient_bytes)
    return largest
