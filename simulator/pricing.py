"""From work to seconds: each part's passes, its collectives and its update, priced once for estimate and replay."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from profiles.collectives import Collective
from profiles.cost import Cost, CostModel
from profiles.host import copy_s, host_update_s
from profiles.model import Part
from profiles.ops import ELEMENT_BYTES, Kernel, Num
from simulator.layout import covered_parts, ranks_per_node
from simulator.networks import build_fabric, contention
from simulator.software import Software
from simulator.states import leaves_each_time, offloaded
from simulator.strategy import Strategy
from simulator.workload import PartWork, Work, Workload

IN_LINE = ("tp", "cp", "ep")
"""Axes whose collectives stand in line with the computation of a pass, where they are not hidden."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """Computation of a pass and the communication in line with it, in seconds, and how far each may be off.

    `spread` is what adds up because it is shared, times seconds; `noise` is the variance of what does not, in s².
    """

    compute_s: Num = 0.0
    tp_s: Num = 0.0
    cp_s: Num = 0.0
    ep_s: Num = 0.0
    compute_spread_s: Num = 0.0
    comm_spread_s: Num = 0.0
    noise_s2: Num = 0.0

    @property
    def total_s(self) -> Num:
        """Return computation and the communication in line with it."""
        return self.compute_s + self.tp_s + self.cp_s + self.ep_s

    @property
    def variance_s2(self) -> Num:
        """Return the variance: computation and communication are off independently of each other."""
        return self.compute_spread_s**2 + self.comm_spread_s**2 + self.noise_s2

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def __mul__(self, times: Num) -> Seconds:
        """Return the same work repeated: the very same error each time, so variances grow with the square."""
        linear = {f.name: getattr(self, f.name) * times for f in fields(self)}
        return Seconds(**(linear | {"noise_s2": self.noise_s2 * times**2}))


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSeconds:
    """Seconds of one part of one micro-batch on one rank.

    Backward includes what recomputation repeats. `weight` is what of it makes the gradients of weights (W), which a
    schedule that splits backward runs apart from the rest (I). What happens in some micro-batches only (the accumulation of
    gradients, copies to and from collectives in a pipeline) is spread over all.
    """

    forward: Seconds
    backward: Seconds
    weight: Seconds
    gather_s: Num
    reduce_s: Num
    update_s: Num
    regather_s: Num

    def of(self, pass_: str) -> Seconds:
        """Return a pass: F, B, or one of B's halves I and W."""
        if pass_ == "I":
            return self.backward + self.weight * -1
        return {"F": self.forward, "B": self.backward, "W": self.weight}[pass_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """All seconds of a workload: by part, of one send between stages, of the sum of a tied embedding.

    `beside`: seconds that a second of communication adds to the computation beside it. `wait`: share of a step that
    ranks spend waiting for the slowest. Those of a pool are as if all ranks had the slowest accelerator and wire of it; `over`
    has those of pipeline ranks that lie over some of its parts, of `part_gpus` accelerators each, by their indices.
    """

    parts: dict[Part, PartSeconds]
    send_s: Num
    tie_s: Num
    comm_spread: Num
    overlaps: bool
    beside: Num
    wait: Num
    part_gpus: tuple[int, ...] = ()
    over: dict[tuple[int, ...], Prices] = field(default_factory=dict)

    def places(self, pp: int) -> list[tuple[int, ...]]:
        """Return the parts of a pool over which each pipeline rank lies; of any other cluster nothing for each."""
        return covered_parts(self.part_gpus, pp) if self.part_gpus else [()] * pp

    def at(self, place: tuple[int, ...]) -> Prices:
        """Return the prices of a pipeline rank that lies over some parts of a pool."""
        return self.over.get(place, self)

    def hop_s(self, one: tuple[int, ...], other: tuple[int, ...]) -> Num:
        """Return the seconds of a send between two pipeline ranks: within one part over its own wire."""
        return self.at(one).send_s if one == other else self.send_s

    def pick(self, index: Any) -> Prices:
        """Return the prices of some strategies of a batch (a mask or an array of indices)."""
        result: Prices = _pick(self, index)
        return result


def _pick(value: Any, index: Any) -> Any:
    if isinstance(value, dict):
        return {k: _pick(v, index) for k, v in value.items()}
    if isinstance(value, tuple):
        return value
    if isinstance(value, (Prices, PartSeconds, Seconds)):
        return replace(value, **{f.name: _pick(getattr(value, f.name), index) for f in fields(value)})
    return value[index] if np.ndim(value) else value


def price(workload: Workload, cost: CostModel) -> Prices:
    """Return the seconds of every part of a workload on a cluster, or on each part of a pool on which a stage may stand."""
    whole = _price(workload, cost)
    if not cost.parts:
        return whole
    part_gpus = tuple(part.num_gpus for part in cost.cluster.parts)
    places = {place for pp in np.unique(workload.strategy.pp) for place in covered_parts(part_gpus, int(pp))}
    # what all ranks do together is the same for all
    over = {place: replace(_price(workload, cost.over(place)), tie_s=whole.tie_s)
            for place in sorted(places) if len(place) < len(part_gpus)}
    return replace(whole, part_gpus=part_gpus, over=over)


def _price(workload: Workload, cost: CostModel) -> Prices:
    strategy = workload.strategy
    cost = as_run(cost, strategy.software)
    send = collective_cost(workload.send, strategy, cost)
    some_reduce = workload.parts["head"].reduce[0]
    cluster = cost.cluster
    per_node = cluster.num_gpus / sum(part.num_nodes for part in cluster.kinds)
    nodes = np.maximum(1.0, np.asarray(strategy.world_size) / per_node)
    return Prices(
        parts={name: _part_seconds(part, strategy, cost) for name, part in workload.parts.items()},
        send_s=np.where(np.asarray(strategy.pp) > 1, send.seconds, 0.0),
        tie_s=cost.collective(workload.tie, 2 if cost.cluster.num_nodes == 1 else 1).seconds,
        comm_spread=collective_cost(some_reduce, strategy, cost).spread,
        overlaps=cost.overlaps, beside=cost.calibration.beside, wait=cost.calibration.wait * np.log2(nodes),
    )


def as_run(cost: CostModel, software: Software) -> CostModel:
    """Return the cost model as a software's kernels find it."""
    age = max(0.0, float(software.year - (cost.cluster.accelerator.year or software.year - MATURE_YEARS)))
    parts = tuple(as_run(part, software) for part in cost.parts)
    return replace(cost, eager=software.kernels == "eager", age_years=age, parts=parts)


MATURE_YEARS = 4
"""Age of an accelerator's libraries where its year of launch is not known."""


def collective_cost(collective: Collective, strategy: Strategy, cost: CostModel, engine: str = "") -> Cost:
    """Return the cost of a collective where the groups of its axis sit, with the links that they share."""
    shared: tuple[Num, Num] = (1.0, 1.0)
    if not cost.cluster.network.is_non_blocking and cost.cluster.table is None:
        shared = contention(build_fabric(cost.cluster), strategy, collective.axis, collective.kind)
    return cost.collective(collective, _per_node(strategy, cost, collective.axis), engine, shared)


def _per_node(strategy: Strategy, cost: CostModel, axis: str) -> Num:
    """Return members of a group in one node; a send between stages counts its two ends."""
    per_node = ranks_per_node(strategy, axis, cost.cluster.gpus_per_node)
    return np.minimum(per_node, 2) if axis == "pp" else per_node


def _part_seconds(part: PartWork, strategy: Strategy, cost: CostModel) -> PartSeconds:
    forward, backward, weight = _passes(part, strategy, cost)
    m, zero, piped = np.asarray(strategy.num_microbatches), np.asarray(strategy.zero), np.asarray(strategy.pp) > 1
    if np.any(m > 1):
        accumulate = _seconds((part.accumulate,), strategy, cost) * ((m - 1) / m)
        backward, weight = backward + accumulate, weight + accumulate
    if np.any(zero >= 2) and not cost.gathers_with_copies:
        gather, reduce = (_seconds((k,), strategy, cost) for k in (part.gather_copy, part.reduce_copy))
        # a pipeline reduces once a step, and under ZeRO-2 gathers once a step
        once = np.where(piped, 1 / m, 1.0)
        forward = forward + gather * np.where(zero == 3, 1.0, np.where(zero == 2, once, 0.0))
        reduce = reduce * np.where(zero >= 2, once, 0.0)
        backward, weight = backward + gather * (zero == 3) + reduce, weight + reduce

    def group_s(collectives: tuple[Collective, ...], engine: str, parts: Num = 1) -> Num:
        """Return a part's share of collectives that so many parts share."""
        whole = (replace(c, bytes=parts * c.bytes) for c in collectives)
        return sum(collective_cost(c, strategy, cost, engine).seconds for c in whole) / parts

    gather_s, update_s = group_s(part.gather, "fsdp"), _update_s(part, strategy, cost)
    if np.any(offloaded(strategy).moments):
        gather_s = gather_s + _fetch_s(part, strategy, cost)
        update_s = _offloaded_update_s(part, strategy, cost, update_s, backward.total_s)
    return PartSeconds(
        forward=forward, backward=backward, weight=weight, gather_s=gather_s,
        reduce_s=group_s(part.reduce, "fsdp", part.bucket), update_s=update_s,
        regather_s=group_s(part.regather, "", part.bucket),
    )


def _update_s(part: PartWork, strategy: Strategy, cost: CostModel) -> Num:
    """Return the update of a part: of plain tensors, or of those that tensor parallelism or FSDP distributes."""
    seconds = cost.update(part.update).seconds
    for engine, used in (("fsdp", (np.asarray(strategy.zero) >= 2) & (np.asarray(strategy.dp) > 1)),
                         ("tp", np.asarray(strategy.tp) > 1)):
        if np.any(used):
            seconds = np.where(used, cost.update(part.update, engine).seconds, seconds)
    return seconds


def _fetch_s(part: PartWork, strategy: Strategy, cost: CostModel) -> Num:
    """Return the copy of a part's shards of weights from the host, where these lie there, in front of a gather."""
    if strategy.software.offloads_with != "weights":
        return 0.0
    shard = part.params / strategy.shards + part.expert_params / strategy.expert_replicas
    width = strategy.software.master_bytes or ELEMENT_BYTES[strategy.dtype]
    fetched = np.asarray(strategy.zero) >= 2
    return copy_s(cost.cluster, fetched * width * shard * offloaded(strategy).updated)


def _offloaded_update_s(part: PartWork, strategy: Strategy, cost: CostModel, device_s: Num, backward_s: Num) -> Num:
    """Return what the update of a part adds to a step where some of its states lie in host memory.

    What the host updates (x of n parameters): x n gradients down, Adam, x n weights up. What the device updates: states up,
    the update, states down. One after the other, or the longest of the three where they run beside one another; gradients
    that travel beside backward take what that leaves of them (arXiv 2101.06840, section 4.1). Never less than on the device
    alone: what stays there is updated before.
    """
    away, software, update = offloaded(strategy), strategy.software, part.update
    (n,), beside = update.size, software.offload_overlap
    down_s = copy_s(cost.cluster, software.grad_bytes * n * away.updated)
    up_s = copy_s(cost.cluster, ELEMENT_BYTES[strategy.dtype] * n * away.updated)
    if software.offloads_with == "weights":
        # FSDP copies them in front of each gather, and all of a single replica once a step
        up_s = np.where(np.asarray(strategy.zero) >= 2, 0.0, up_s)
    hosted_s = np.maximum(host_update_s(cost.cluster, update.moved_bytes * away.updated), device_s * away.updated)
    if beside == "backward":
        times = strategy.num_microbatches if software.offloads_with != "states" else 1
        times = np.where(leaves_each_time(strategy), times, 1)
        down_s = times * np.maximum(0.0, down_s - backward_s)
    one_way_s = copy_s(cost.cluster, (software.moment_bytes * away.moments + software.master_bytes * away.master) * n)
    streamed_s = device_s + 2 * one_way_s if beside == "none" else np.maximum(device_s, one_way_s)
    on_host_s = np.maximum(np.maximum(down_s, up_s), hosted_s) if beside == "parts" else down_s + hosted_s + up_s
    return np.where(np.asarray(away.updated) > 0, device_s * (1 - away.updated) + on_host_s, streamed_s)


def _passes(part: PartWork, strategy: Strategy, cost: CostModel) -> tuple[Seconds, Seconds, Seconds]:
    """Return forward and backward with what recomputation repeats, neither faster than the host launches it; and what of
    backward makes gradients of weights."""
    recompute, times = np.asarray(strategy.recompute), strategy.num_repeats
    forward = _hosted(part.forward, strategy, cost)
    backward = _hosted(part.backward, strategy, cost)
    weight = _seconds(tuple(w for w in part.backward if isinstance(w, Kernel) and w.pass_ == "W"), strategy, cost)
    if strategy.software.tp_backward:
        backward = _hide(backward, part, strategy, cost)
    for name, work in (("full", part.recompute_full), ("selective", part.recompute_selective)):
        if np.any(recompute == name):
            again = _hosted(work, strategy, cost)
            backward = backward + again * np.where(recompute == name, times, 0.0)
            # what is repeated more often than the layers that repeat at all, the gradients of weights repeat
            weight = weight + again * np.where(recompute == name, times - strategy.recompute_share, 0.0)
    return forward, backward, weight


def _hosted(work: Work, strategy: Strategy, cost: CostModel) -> Seconds:
    """Return a pass of which no stretch takes less than the host needs to launch it, communication included.

    The host runs ahead of the device until it has to know how many tokens each expert got; it does again behind them.
    """
    seconds, software = _seconds(work, strategy, cost), strategy.software
    if not software.host_launch_s or software.graphs == "all":
        return seconds
    dense, experts = _stretches(work)
    idle: Num = 0.0
    for stretch in (experts,) if software.graphs == "dense" else (dense, experts):
        if stretch:
            launches = sum(1 if isinstance(w, Collective) else w.launches for w in stretch
                           if software.graphs != "router" or not isinstance(w, Kernel) or w.kind != "route")
            busy_s = _seconds(stretch, strategy, cost).total_s if experts else seconds.total_s
            idle = idle + np.maximum(0.0, launches * software.host_launch_s - busy_s)
    return replace(seconds, compute_s=seconds.compute_s + idle)


def _stretches(work: Work) -> tuple[Work, Work]:
    """Return what a pass does outside the experts and, from dispatch to combination, with them."""
    exchanges = [i for i, w in enumerate(work) if isinstance(w, Collective) and w.axis == "ep"]
    if not exchanges:
        return work, ()
    first, last = exchanges[0], exchanges[-1] + 1
    return (*work[:first], *work[last:]), work[first:last]


def _hide(backward: Seconds, part: PartWork, strategy: Strategy, cost: CostModel) -> Seconds:
    """Return a backward whose column-parallel collectives run beside the matmuls of weight gradients, where it is whole."""
    beside = _seconds(part.hidden_backward, strategy, cost).tp_s
    matmuls = tuple(w for w in part.backward if isinstance(w, Kernel) and w.kind == "gemm" and w.pass_ == "W")
    hidden = np.minimum(beside, _seconds(matmuls, strategy, cost).compute_s) * ~np.asarray(strategy.splits_backward)
    return replace(
        backward, tp_s=backward.tp_s - hidden, compute_s=backward.compute_s + cost.calibration.beside * hidden
    )


def _seconds(work: Work, strategy: Strategy, cost: CostModel) -> Seconds:
    sums: dict[str, Num] = {f.name: 0.0 for f in fields(Seconds)}
    attention_s: Num = 0.0
    for item in work:
        if isinstance(item, Collective):
            c = collective_cost(item, strategy, cost)
            axis = "ep" if item.axis == "etp" else item.axis
            sums[f"{axis}_s"] = sums[f"{axis}_s"] + c.seconds
            sums["comm_spread_s"] = sums["comm_spread_s"] + c.seconds * c.spread
        else:
            c = cost.kernel(item)
            sums["compute_s"] = sums["compute_s"] + c.seconds
            sums["compute_spread_s"] = sums["compute_spread_s"] + c.seconds * c.spread
            if item.kind == "attention":
                attention_s = attention_s + c.seconds
        if np.any(c.noise):
            sums["noise_s2"] = sums["noise_s2"] + (c.seconds * c.noise) ** 2
    if strategy.context == "ring":
        # keys of the next rank travel while those at hand are attended to (arXiv 2310.01889, section 3)
        sums["cp_s"] = np.maximum(0.0, sums["cp_s"] - attention_s)
    if strategy.software.ep_overlap:
        hidden = np.minimum(sums["ep_s"], sums["compute_s"])
        sums["ep_s"] = sums["ep_s"] - hidden
        sums["compute_s"] = sums["compute_s"] + cost.calibration.beside * hidden
    if strategy.software.tp_overlap:
        sums["tp_s"] = cost.calibration.pipelined * sums["tp_s"]
    return Seconds(**sums)

