"""Where states can lie in host memory: what the framework can do, what its sharding asks for, and what the hosts hold."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from planner.question import Question
from profiles.host import gpus_of_host, has_host
from profiles.ops import Num
from profiles.units import show
from simulator.states import host_bytes
from simulator.strategy import OFFLOAD, Strategy


def can_offload(s: Strategy, q: Question) -> Num:
    """Return where strategies of a batch offload nothing, or what can be offloaded."""
    plain = np.asarray(s.offload) == "none"
    if plain.all():
        return plain
    whole: Num = True
    for holds, _ in _conditions(s, q):
        whole = whole & np.asarray(holds)
    return plain | whole


def no_offload(s: Strategy, q: Question) -> str:
    """Return why one strategy cannot offload what it says."""
    return next(reason for holds, reason in _conditions(s, q) if not holds)


def offload_ways(q: Question) -> tuple[str, ...]:
    """Return the ways to offload that a question's framework has, where its cluster states a host."""
    ways = q.software.offloads.split(",")
    return tuple(way for way in OFFLOAD if way in ways and has_host(q.cluster))


def _conditions(s: Strategy, q: Question) -> Iterator[tuple[Num, str]]:
    """Return what must hold, with the sentence for one strategy that says what does not."""
    software, cluster = s.software, q.cluster
    has = f"has {software.offloads.replace(',', ' and ')}" if software.offloads else "has none"
    yield np.isin(s.offload, software.offloads.split(",")), f"offload {s.offload}: {software.framework} {has}"
    share = np.asarray(s.offload_share)
    yield (share > 0) & (share <= 1), f"offload_share {s.offload_share} is no share of the states: it is above 0, at most 1"
    whole = software.offloads_with != "weights"
    yield whole | (share == 1), f"offload_share {s.offload_share}: {software.framework} offloads all or nothing"
    least = 2 if software.offloads_with == "weights" else 1
    sharded = (np.asarray(s.zero) >= least) | (np.asarray(s.replicas) == 1)
    yield sharded, f"offload {s.offload} with ZeRO-{s.zero}: {software.framework} offloads what ZeRO-{least} shards, or above"
    yield not cluster.parts, f"offload {s.offload}: {cluster.machines} is a pool, and its hosts are not one; use one part"
    yield has_host(cluster), (f"offload {s.offload}: {cluster.title} states no host: its file needs 'host', that of "
                              f"{cluster.accelerator.title} 'host_link'")
    if cluster.host is not None:
        needed = host_bytes(q.model, s) * gpus_of_host(cluster)
        yield needed <= cluster.host.memory_bytes, _short(needed, cluster.host.memory_bytes)


def _short(needed: Num, there: float) -> str:
    least = float(np.min(needed))
    return f"offload needs {show(least, 'bytes')} of host memory a host, {show(there, 'bytes')} are there"
