"""What the streams of a pipeline's ranks take of the links that they share, as fractions of what the links carry."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from simulator.layout import size, stride
from simulator.networks.fabric import Fabric
from simulator.networks.fair import Routes
from simulator.networks.topology import Index, Reals
from simulator.networks.traffic import Flows, axis_groups, collective_flows
from simulator.strategy import Strategy


class Transfer(NamedTuple):
    """A collective over an axis, of so many bytes (as `Collective` counts them), in all groups of a stage at once."""

    axis: str
    kind: str
    bytes: float
    copies: int = 0


class Stream(NamedTuple):
    """Transfers of a stage one after the other, priced at so many seconds together; backward sends go to the stage before."""

    transfers: tuple[Transfer, ...]
    seconds: float
    is_backward: bool = False


def stream_routes(
    fabric: Fabric, strategy: Strategy, streams: Sequence[Stream], priced_on: Fabric | None = None
) -> Routes:
    """Return a route for each stream and stage: route = stream x pp + stage; links are folded, their capacity is 1.

    A route's `use` of a link is the share of the priced seconds in which the stage's ranks together keep it busy, averaged
    over the stream: less than 1 where latency or the library binds, and no more where prices know of faster ways. So a
    stream alone runs at rate 1, second by second as priced, and no stage is slowed by the same stream of others, for prices
    count that; different streams slow each other where their uses add to more than 1. Where prices hold on another fabric
    (`priced_on`, the same with all its NICs whole), slower links slow their stages.
    """
    kinds = tuple(dict.fromkeys((t.axis, t.kind, t.copies, s.is_backward) for s in streams for t in s.transfers))
    mesh = tuple((int(size(strategy, axis)), int(stride(strategy, axis))) for axis, *_ in kinds)
    loads = _loads(fabric, kinds, mesh, int(strategy.world_size), int(strategy.pp), int(stride(strategy, "pp")))
    priced = loads if priced_on is None else _loads(
        priced_on, kinds, mesh, int(strategy.world_size), int(strategy.pp), int(stride(strategy, "pp")))
    uses = np.zeros((len(streams) * loads.shape[1], loads.shape[2]))
    for i, stream in enumerate(streams):
        weight = np.zeros(len(kinds))
        for t in stream.transfers:
            weight[kinds.index((t.axis, t.kind, t.copies, stream.is_backward))] += t.bytes / stream.seconds
        whole = np.tensordot(weight, priced, axes=1).sum(axis=0).max(initial=0.0)
        uses[i * loads.shape[1] : (i + 1) * loads.shape[1]] = np.tensordot(weight, loads, axes=1) / max(1.0, whole)
    route, link = np.nonzero(uses)
    return Routes(capacity=np.ones(loads.shape[2]), limit=np.ones(len(uses)), route=route, link=link, use=uses[route, link])


@lru_cache(maxsize=64)
def _loads(
    fabric: Fabric, kinds: tuple[tuple[str, str, int, bool], ...], mesh: tuple[tuple[int, int], ...], num_ranks: int, pp: int,
    apart: int,
) -> Reals:
    """Return the seconds for which a byte of each kind keeps links busy, [kind, stage, link]; links with the same are one."""
    route: list[Index] = []
    link: list[Index] = []
    use: list[Reals] = []
    for i, ((_, kind, copies, is_backward), (members, step)) in enumerate(zip(kinds, mesh, strict=True)):
        flows = collective_flows(kind, axis_groups(num_ranks, members, step), 1.0, fabric.gpus_per_node, copies)
        if is_backward:
            flows = Flows(flows.dst, flows.src, flows.bytes)
        paths = fabric.paths(flows.src, flows.dst)
        at = i * pp + flows.src[paths.flow] // apart % pp
        pair, which = np.unique(at * len(fabric.capacity) + paths.link, return_inverse=True)
        route.append(pair // len(fabric.capacity))
        link.append(pair % len(fabric.capacity))
        use.append(np.bincount(which, weights=flows.bytes[paths.flow] * paths.share) / fabric.capacity[link[-1]])
    routes = Routes(capacity=np.ones(len(fabric.capacity)), limit=np.ones(len(kinds) * pp), route=np.concatenate(route),
                    link=np.concatenate(link), use=np.concatenate(use)).folded()
    loads = np.zeros((len(kinds) * pp, len(routes.capacity)))
    loads[routes.route, routes.link] = routes.use / routes.capacity[routes.link]
    return loads.reshape(len(kinds), pp, -1)
