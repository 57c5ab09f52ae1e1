"""The condition of a machine: which ranks compute slower, and which reach others slower, than the data sheets say.

Ranks that meet in every layer (tp, cp, ep; dp where weights are gathered layer by layer) go at the pace of the slowest of
them; so a slow rank makes its pipeline another than the others, and no more pipelines than that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from profiles.files import BadInput
from profiles.ops import Num
from simulator.layout import mesh, ranks_per_node, size
from simulator.pricing import PartSeconds, Prices, Seconds
from simulator.strategy import Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """Seconds of computation, and of communication between nodes, of each rank over those of a healthy one: [ranks]."""

    compute: NDArray[np.float64]
    network: NDArray[np.float64]


def healthy(num_ranks: int) -> Condition:
    """Return the condition of a machine without a slow rank."""
    return Condition(compute=np.ones(num_ranks), network=np.ones(num_ranks))


def with_slow(condition: Condition, ranks: Mapping[int, float], nodes: Mapping[int, float], gpus_per_node: int) -> Condition:
    """Return a condition with some ranks that compute, and some nodes whose network is, so many times slower."""
    compute, network = condition.compute.copy(), condition.network.copy()
    num_nodes = -(-len(compute) // gpus_per_node)
    for what, those, known in (("rank", ranks, len(compute)), ("node", nodes, num_nodes)):
        for index, factor in those.items():
            if not 0 <= index < known:
                raise BadInput(f"slow {what}: {index} is not there; the job has {known}, counted from 0")
            if not (np.isfinite(factor) and factor > 0):
                raise BadInput(f"slow {what} {index}: the factor must be above 0, like 1.2: a fifth more time (is {factor:g})")
    for rank, factor in ranks.items():
        compute[rank] *= factor
    for node, factor in nodes.items():
        network[node * gpus_per_node : (node + 1) * gpus_per_node] *= factor
    return Condition(compute=compute, network=network)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipelines:
    """The pipelines of a job, those that are alike once: [pipelines, pp] factors of computation and of the network.

    `replica` is the first data-parallel index of each, `count` how many it stands for; `reduced` [pp] the network's factor
    of what all replicas of a stage do together.
    """

    compute: NDArray[np.float64]
    network: NDArray[np.float64]
    replica: NDArray[np.int64]
    count: NDArray[np.int64]
    reduced: NDArray[np.float64]


def pipelines(strategy: Strategy, condition: Condition | None = None) -> Pipelines:
    """Return the distinct pipelines of a job."""
    compute, network = paces(strategy, condition or healthy(int(strategy.world_size)))
    both, replica, which = np.unique(np.concatenate([compute, network], axis=1), axis=0, return_index=True, return_inverse=True)
    order = np.argsort(replica)
    pp = int(strategy.pp)
    return Pipelines(compute=both[order, :pp], network=both[order, pp:], replica=replica[order],
                     count=np.bincount(which.ravel())[order], reduced=network.max(axis=0))


def paces(strategy: Strategy, condition: Condition) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the factors of each pipeline and stage, [dp, pp]: those of the slowest of the ranks that meet in every layer."""
    pp, dp, inner = int(strategy.pp), int(strategy.dp), int(strategy.cp) * int(strategy.tp)
    together = meeting_replicas(strategy)

    def pace(factors: NDArray[np.float64]) -> NDArray[np.float64]:
        blocks = factors[mesh(strategy)].reshape(pp, dp // together, together * inner).max(axis=2)
        return np.repeat(blocks, together, axis=1).T

    return pace(condition.compute), pace(condition.network)


def meeting_replicas(strategy: Strategy) -> int:
    """Return how many neighbouring replicas of dp meet in every layer: all where weights are gathered layer by layer, those
    over which experts lie."""
    if int(strategy.zero) >= 2 and int(strategy.dp) > 1:
        return int(strategy.dp)
    inner = int(strategy.cp) * int(strategy.tp)
    return max(1, min(int(strategy.dp), -(-int(strategy.ep) * int(strategy.etp) // inner)))


def at_pace(prices: Prices, strategy: Strategy, gpus_per_node: int, compute: Num, network: Num, reduced: Num) -> Prices:
    """Return prices where computation and communication between nodes take so many times longer (arrays: many at once).

    `network` is of a pipeline's own communication, `reduced` of what all replicas do together.
    """
    crosses = {axis: float(size(strategy, axis)) > float(ranks_per_node(strategy, axis, gpus_per_node))
               for axis in ("tp", "cp", "ep", "shard")}
    factor = {axis: network if crosses[axis] else 1.0 for axis in ("tp", "cp", "ep")}
    together = reduced if crosses["shard"] else 1.0

    def paced(s: Seconds) -> Seconds:
        return replace(s, compute_s=s.compute_s * compute, **{f"{a}_s": getattr(s, f"{a}_s") * f for a, f in factor.items()})

    def part(p: PartSeconds) -> PartSeconds:
        return replace(p, forward=paced(p.forward), backward=paced(p.backward), weight=paced(p.weight),
                       gather_s=p.gather_s * together, reduce_s=p.reduce_s * together, update_s=p.update_s * compute,
                       regather_s=p.regather_s * together)

    return replace(prices, parts={name: part(p) for name, p in prices.parts.items()})
