"""What the streams of a pipeline stage take of the links that they share, as fractions of what the cost model assumes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simulator.layout import coordinates
from simulator.networks.fabric import Fabric
from simulator.networks.fair import Routes
from simulator.networks.loads import axis_flows
from simulator.networks.traffic import Flows
from simulator.strategy import Strategy


class Stream(NamedTuple):
    """A collective over an axis that all ranks of a stage run at one time; a backward send goes to the stage before.

    `share` is what it takes of its busiest link as priced: less than all where latency or the library binds.
    """

    axis: str
    kind: str
    is_backward: bool = False
    share: float = 1.0


def stream_routes(
    fabric: Fabric, strategy: Strategy, streams: tuple[Stream, ...], priced_on: Fabric | None = None
) -> Routes:
    """Return a route for each stream and stage: route = stream x pp + stage; links are folded, their capacity is 1.

    A route's `use` of a link is what the stage's ranks together put on it while the collective runs as priced: all
    stages at once, at the pace of the busiest link. So a stream alone runs at rate 1, second by second as priced, and no
    stage is slowed by the same stream of others; different streams slow each other where their uses add to more than 1.
    Where prices hold on another fabric (`priced_on`, the same with all its NICs whole), slower links slow their stages.
    """
    pp = int(strategy.pp)
    stage = np.full(fabric.num_gpus, -1)
    ranks = np.arange(int(strategy.world_size))
    stage[ranks] = coordinates(strategy, ranks)["pp"]
    route, link, use = [], [], []
    for i, stream in enumerate(streams):
        flows = axis_flows(fabric, strategy, stream.axis, stream.kind)
        if stream.is_backward:
            flows = Flows(flows.dst, flows.src, flows.bytes)
        paths = fabric.paths(flows.src, flows.dst)
        at = i * pp + stage[flows.src[paths.flow]]
        pair, which = np.unique(at * len(fabric.capacity) + paths.link, return_inverse=True)
        one_link = pair % len(fabric.capacity)
        num_bytes = np.bincount(which, weights=flows.bytes[paths.flow] * paths.share)
        priced_s = np.bincount(one_link, weights=num_bytes / (priced_on or fabric).capacity[one_link])
        route.append(pair // len(fabric.capacity))
        link.append(one_link)
        use.append(stream.share * num_bytes / fabric.capacity[one_link] / priced_s.max(initial=0.0))
    return Routes(capacity=np.ones(len(fabric.capacity)), limit=np.ones(len(streams) * pp), route=np.concatenate(route),
                  link=np.concatenate(link), use=np.concatenate(use)).folded()
