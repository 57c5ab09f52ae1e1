"""Which streams of a pipeline may meet on a link at one moment: activations and gradients that are sent between stages,
collectives over dp beside the passes, and those in line with them.

Every rank has a lane for each: what it sends forward, what it sends backward, dp, tp, cp, ep. A lane carries one transfer at a
time; lanes whose transfers together ask more of a link than it carries are rivals. All replicas do the same at the same time,
so a lane of a pipeline rank stands for those of all its replicas.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from profiles.collectives import Collective
from profiles.cost import CostModel
from simulator.networks import Routes, Stream, Transfer, build_fabric, stream_routes
from simulator.pricing import IN_LINE, Prices, as_run, collective_cost
from simulator.workload import PartWork, Work, Workload

Key = tuple[str, str, str]
"""A lane, what runs on it (a pass, `gather`, `reduce`; nothing for sends) and of which part."""
FORWARD, BACKWARD = "pp forward", "pp backward"
"""Lanes of what goes to the next rank of a pipeline, and to the one before."""
ROUNDING = 1e-9
"""What is wanted of a link beyond what it carries and is no more than that is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coupling:
    """Lanes that have rivals. Of key k, place p: route = `routes_of[k]` + p, lane = `lanes_of[k's lane]` + p."""

    routes: Routes
    routes_of: dict[Key, int]
    lanes_of: dict[str, int]
    rivals: list[tuple[int, ...]]

    def find(self, lane: str, what: str, part: str, place: int) -> tuple[int, int] | None:
        """Return lane and route of a transfer, or nothing where it has the links to itself."""
        key = (lane, what, part)
        if key not in self.routes_of:
            return None
        number = self.lanes_of[lane] + place
        return (number, self.routes_of[key] + place) if self.rivals[number] else None


def couple(workload: Workload, cost: CostModel, prices: Prices) -> Coupling | None:
    """Return the lanes of a pipeline whose transfers may meet; nothing where none can, and where communication never runs
    beside anything (on CPU, where links are memory)."""
    if not prices.overlaps:
        return None
    streams = _streams(workload, as_run(cost, workload.strategy.software), prices)
    names = list(dict.fromkeys(lane for lane, _, _ in streams))
    if len(names) < 2:
        return None
    pp = int(workload.strategy.pp)
    routes = stream_routes(build_fabric(cost.cluster), workload.strategy, list(streams.values()))
    lanes_of = {name: i * pp for i, name in enumerate(names)}
    lane_of = np.concatenate([lanes_of[lane] + np.arange(pp) for lane, _, _ in streams])
    # a lane carries one transfer at a time: no more than the one that wants most
    most = np.zeros((len(names) * pp, len(routes.capacity)))
    np.maximum.at(most, (lane_of[routes.route], routes.link), routes.use)
    contested = most.sum(axis=0) > 1 + ROUNDING
    if not contested.any():
        return None
    shares = most[:, contested] > 0
    rivals = [tuple(np.flatnonzero((shares & shares[i]).any(axis=1) & (np.arange(len(shares)) != i)).tolist())
              for i in range(len(shares))]
    stays = contested[routes.link]
    number = np.cumsum(contested) - 1
    kept = replace(routes, capacity=routes.capacity[contested], route=routes.route[stays], link=number[routes.link[stays]],
                   use=routes.use[stays])
    return Coupling(routes=kept, routes_of={key: i * pp for i, key in enumerate(streams)}, lanes_of=lanes_of, rivals=rivals)


def _streams(workload: Workload, cost: CostModel, prices: Prices) -> dict[Key, Stream]:
    """Return every kind of transfer that a rank makes, as priced."""
    strategy, found = workload.strategy, dict[Key, Stream]()
    if float(prices.send_s) > 0:
        send = (_transfer(workload.send),)
        found[FORWARD, "", ""] = Stream(send, float(prices.send_s))
        found[BACKWARD, "", ""] = Stream(send, float(prices.send_s), is_backward=True)
    for name, part in workload.parts.items():
        priced = prices.parts[name]
        for what, whole, seconds in (("gather", part.gather, priced.gather_s), ("reduce", part.reduce, priced.reduce_s)):
            if float(seconds) > 0:
                found["dp", what, name] = Stream(tuple(map(_transfer, _real(whole))), float(seconds))
        for pass_, work in (("F", part.forward), ("B", _backward(part, str(strategy.recompute)))):
            for axis in IN_LINE:
                those = [c for c in _real(work) if ("ep" if c.axis == "etp" else c.axis) == axis]
                seconds = sum(float(collective_cost(c, strategy, cost).seconds) for c in those)
                if seconds > 0:
                    found[axis, pass_, name] = Stream(tuple(map(_transfer, those)), seconds)
    return found


def _backward(part: PartWork, recompute: str) -> Work:
    again = {"full": part.recompute_full, "selective": part.recompute_selective}
    return (*part.backward, *again.get(recompute, ()))


def _real(work: Iterable[object]) -> list[Collective]:
    return [c for c in work if isinstance(c, Collective) and float(c.group_size) > 1 and float(c.bytes) > 0]


def _transfer(collective: Collective) -> Transfer:
    return Transfer(collective.axis, collective.kind, float(collective.bytes), collective.copies)
