"""From work to seconds: each part's passes, its collectives and its update, priced once for estimate and replay."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from profiles.collectives import Collective
from profiles.cost import CostModel
from profiles.model import Part
from profiles.ops import Num
from simulator.layout import ranks_per_node
from simulator.strategy import Strategy
from simulator.workload import PartWork, Work, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """Computation and tensor-parallel communication of a pass, in seconds, and how far each may be off.

    `spread` is what adds up because it is shared, times seconds; `noise` is the variance of what does not, in s².
    """

    compute_s: Num = 0.0
    tp_s: Num = 0.0
    compute_spread_s: Num = 0.0
    tp_spread_s: Num = 0.0
    noise_s2: Num = 0.0

    @property
    def total_s(self) -> Num:
        """Return computation and communication: tensor-parallel collectives stand in line with the matmuls."""
        return self.compute_s + self.tp_s

    @property
    def variance_s2(self) -> Num:
        """Return the variance: computation and communication are off independently of each other."""
        return self.compute_spread_s**2 + self.tp_spread_s**2 + self.noise_s2

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def __mul__(self, times: Num) -> Seconds:
        """Return the same work repeated: the very same error each time, so variances grow with the square."""
        linear = {f.name: getattr(self, f.name) * times for f in fields(self)}
        return Seconds(**(linear | {"noise_s2": self.noise_s2 * times**2}))


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSeconds:
    """Seconds of one part of one micro-batch on one rank.

    Backward includes what recomputation repeats. What happens in some micro-batches only (the accumulation of
    gradients, copies to and from collectives in a pipeline) is spread over all.
    """

    forward: Seconds
    backward: Seconds
    gather_s: Num
    reduce_s: Num
    update_s: Num
    regather_s: Num


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """All seconds of a workload: by part, of one send between stages, of the sum of a tied embedding."""

    parts: dict[Part, PartSeconds]
    send_s: Num
    tie_s: Num
    comm_spread: Num
    overlaps: bool


def price(workload: Workload, cost: CostModel) -> Prices:
    """Return the seconds of every part of a workload on a cluster."""
    strategy = workload.strategy
    send = cost.collective(workload.send, _per_node(strategy, cost, "pp"))
    some_reduce = workload.parts["layer"].reduce[0]
    return Prices(
        parts={name: _part_seconds(part, strategy, cost) for name, part in workload.parts.items()},
        send_s=np.where(np.asarray(strategy.pp) > 1, send.seconds, 0.0),
        tie_s=cost.collective(workload.tie, 2 if cost.cluster.num_nodes == 1 else 1).seconds,
        comm_spread=cost.collective(some_reduce, _per_node(strategy, cost, "dp")).spread,
        overlaps=cost.overlaps,
    )


def _per_node(strategy: Strategy, cost: CostModel, axis: str) -> Num:
    """Return members of a group in one node; a send between stages counts its two ends."""
    per_node = ranks_per_node(strategy, axis, cost.cluster.gpus_per_node)
    return np.minimum(per_node, 2) if axis == "pp" else per_node


def _part_seconds(part: PartWork, strategy: Strategy, cost: CostModel) -> PartSeconds:
    recompute = np.asarray(strategy.recompute)
    backward = _seconds(part.backward, strategy, cost)
    if np.any(recompute == "full"):
        backward = backward + _seconds(part.recompute_full, strategy, cost) * (recompute == "full")
    if np.any(recompute == "selective"):
        backward = backward + _seconds(part.recompute_selective, strategy, cost) * (recompute == "selective")

    forward = _seconds(part.forward, strategy, cost)
    m, zero, piped = np.asarray(strategy.num_microbatches), np.asarray(strategy.zero), np.asarray(strategy.pp) > 1
    if np.any(m > 1):
        backward = backward + _seconds((part.accumulate,), strategy, cost) * ((m - 1) / m)
    if np.any(zero >= 2):
        gather, reduce = (_seconds((k,), strategy, cost) for k in (part.gather_copy, part.reduce_copy))
        # a pipeline reduces once a step, and under ZeRO-2 gathers once a step
        once = np.where(piped, 1 / m, 1.0)
        forward = forward + gather * np.where(zero == 3, 1.0, np.where(zero == 2, once, 0.0))
        backward = backward + gather * (zero == 3) + reduce * np.where(zero >= 2, once, 0.0)

    def dp_s(collective: Collective) -> Num:
        return cost.collective(collective, _per_node(strategy, cost, "dp")).seconds

    return PartSeconds(
        forward=forward, backward=backward,
        gather_s=dp_s(part.gather), reduce_s=sum(dp_s(c) for c in part.reduce),
        update_s=cost.kernel(part.update).seconds, regather_s=dp_s(part.regather),
    )


def _seconds(work: Work, strategy: Strategy, cost: CostModel) -> Seconds:
    result = Seconds()
    for item in work:
        if isinstance(item, Collective):
            c = cost.collective(item, _per_node(strategy, cost, item.axis))
            result = result + Seconds(
                tp_s=c.seconds, tp_spread_s=c.seconds * c.spread, noise_s2=(c.seconds * c.noise) ** 2
            )
        else:
            c = cost.kernel(item)
            result = result + Seconds(
                compute_s=c.seconds, compute_spread_s=c.seconds * c.spread, noise_s2=(c.seconds * c.noise) ** 2
            )
    return result
