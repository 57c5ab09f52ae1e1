"""Static loads: the bytes on every link when all groups of an axis run the same collective at once, and what that costs."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from profiles.ops import Num
from simulator.layout import size, stride
from simulator.networks.fabric import Fabric
from simulator.networks.topology import Reals
from simulator.networks.traffic import Flows, axis_groups, collective_flows
from simulator.strategy import Strategy


class Contention(NamedTuple):
    """How many times longer a collective's bytes take on the busiest link than on its ranks' own ports: 1 or more.

    `scale_up` holds for what stays inside nodes, `scale_out` for what leaves them.
    """

    scale_up: Num
    scale_out: Num


def axis_flows(
    fabric: Fabric, strategy: Strategy, axis: str, kind: str, size_bytes: float = 1.0, copies: int = 0
) -> Flows:
    """Return the flows of one strategy's collective over an axis (or a folded one), in all groups at once."""
    groups = axis_groups(int(strategy.world_size), int(size(strategy, axis)), int(stride(strategy, axis)))
    return collective_flows(kind, groups, size_bytes, fabric.gpus_per_node, copies)


def link_loads(fabric: Fabric, flows: Flows) -> Reals:
    """Return the bytes that each link of the fabric carries."""
    flow, link, share = fabric.paths(flows.src, flows.dst)
    return np.bincount(link, weights=flows.bytes[flow] * share, minlength=len(fabric.capacity)).astype(np.float64)


def contention(fabric: Fabric, strategy: Strategy, axis: str, kind: str) -> Contention:
    """Return what sharing links costs a kind of collective over an axis; numbers, or arrays for a batch of strategies."""
    if fabric.is_non_blocking:
        return Contention(1.0, 1.0)
    columns = np.broadcast_arrays(strategy.world_size, size(strategy, axis), stride(strategy, axis))
    rows, which = np.unique(np.stack([np.ravel(c) for c in columns]).astype(np.int64), axis=1, return_inverse=True)
    factors = np.array([_contention(fabric, kind, *row) for row in rows.T.tolist()])
    up, out = factors[np.ravel(which)].T
    if columns[0].ndim == 0:
        return Contention(float(up[0]), float(out[0]))
    return Contention(up, out)


@lru_cache(maxsize=65536)
def _contention(fabric: Fabric, kind: str, num_ranks: int, size: int, stride: int) -> tuple[float, float]:
    flows = collective_flows(kind, axis_groups(num_ranks, size, stride), 1.0, fabric.gpus_per_node)
    across = fabric.crosses(flows.src, flows.dst)
    up, out = (Flows(flows.src[i], flows.dst[i], flows.bytes[i]) for i in (~across, across))
    return slowdown(fabric, up, fabric.up_bytes_per_s), slowdown(fabric, out, fabric.out_bytes_per_s)


def slowdown(fabric: Fabric, flows: Flows, bytes_per_s: float) -> float:
    """Return max(1, seconds of the busiest link / seconds of the busiest accelerator at its own rate)."""
    if not len(flows.src):
        return 1.0
    moved = max(np.bincount(end, weights=flows.bytes).max() for end in (flows.src, flows.dst))
    return max(1.0, float((link_loads(fabric, flows) / fabric.capacity).max() / (moved / bytes_per_s)))
