"""Networks given link by link: nodes, switches and what joins them; flows take all shortest ways, split evenly at each fork.

That is equal-cost multi-path routing (RFC 2992), balanced perfectly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from profiles import files
from profiles.files import BadInput
from profiles.units import parse
from simulator.networks.topology import Index, Paths, Ports, Reals, joined


class WireFile(BaseModel):
    """A link as people write it: its two ends, and its bandwidth in each direction."""

    model_config = ConfigDict(extra="forbid")
    ends: tuple[str, str]
    bandwidth: str | float = Field(description="like '200 Gb/s'")


class LinksFile(BaseModel):
    """Links as people write them, between `node0`, `node1`, ... (or `node0.nic0`, ...; inside a node `gpu0`, ...) and switches.

    With `tree` there must be one way only between any two.
    """

    model_config = ConfigDict(extra="forbid")
    kind: Literal["links"]
    switches: list[str] = Field(default=[], description="their names")
    links: Annotated[list[WireFile], Field(min_length=1)]
    tree: bool = Field(default=False, description="whether there must be one way only between any two")
    source: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Links:
    """A graph; links are sorted by where they leave: those of vertex v are `first[v]` to `first[v + 1]`.

    `vertex` is that of each port, `hops[a, b]` the links on the shortest way from a to b.
    """

    names: tuple[str, ...]
    vertex: Index
    tail: Index
    head: Index
    first: Index
    hops: NDArray[np.int32]
    capacity: Reals

    def paths(self, src: Index, dst: Index) -> Paths:
        """Return every link of all shortest ways, hop by hop."""
        at, to, flow, share = self.vertex[src], self.vertex[dst], np.arange(len(src)), np.ones(len(src))
        flows: list[Index] = []
        links: list[Index] = []
        shares: list[Reals] = []
        while True:
            away = at != to
            at, to, flow, share = at[away], to[away], flow[away], share[away]
            if not len(flow):
                return joined(flows, links, shares)
            degree = self.first[at + 1] - self.first[at]
            entry = np.repeat(np.arange(len(at)), degree)
            link = np.arange(len(entry)) - np.repeat(np.cumsum(degree) - degree, degree) + self.first[at[entry]]
            closer = self.hops[self.head[link], to[entry]] < self.hops[at[entry], to[entry]]
            entry, link = entry[closer], link[closer]
            split = share[entry] / np.bincount(entry, minlength=len(at))[entry]
            flows.append(flow[entry])
            links.append(link)
            shares.append(split)
            # parts of a flow that meet again go on as one
            meeting = flow[entry] * len(self.names) + self.head[link]
            _, one, which = np.unique(meeting, return_index=True, return_inverse=True)
            flow, at, to = flow[entry][one], self.head[link][one], to[entry][one]
            share = np.bincount(which, weights=split).astype(np.float64)

    def name(self, link: int) -> str:
        """Return the ends: 'leaf0 to spine1'."""
        return f"{self.names[self.tail[link]]} to {self.names[self.head[link]]}"


def links(section: Mapping[str, Any], ports: Ports, origin: str) -> Links:
    """Return the graph of a section; one whose links do not join all nodes, or name others, is refused."""
    file = files.validate(LinksFile, dict(section), origin)
    ends, rates = _wires(file, ports, origin)
    names = tuple(dict.fromkeys([*(e for pair in ends for e in pair), *file.switches]))
    number = {name: i for i, name in enumerate(names)}
    if file.tree:
        _check_tree(ends, origin)
    a, b = np.array([[number[e] for e in pair] for pair in ends]).T
    tail, head = np.concatenate([a, b]), np.concatenate([b, a])
    by_tail = np.argsort(tail, kind="stable")
    tail, head, capacity = tail[by_tail], head[by_tail], np.tile(rates, 2)[by_tail]
    vertex = np.array([number[_attached(port, ports, number, origin)] for port in range(ports.num)])
    hops = _hops(tail, head, len(names))
    cut = np.flatnonzero(hops[vertex[0], vertex] < 0)
    if len(cut):
        raise BadInput(f"{origin}.links: no way leads from {names[vertex[0]]} to {names[vertex[cut[0]]]}; "
                       f"all {ports.node}s must be joined")
    return Links(names=names, vertex=vertex, tail=tail, head=head, capacity=capacity, hops=hops,
                 first=np.searchsorted(tail, np.arange(len(names) + 1)))


def _wires(file: LinksFile, ports: Ports, origin: str) -> tuple[list[tuple[str, str]], Reals]:
    nodes = {f"{ports.node}{n}" for n in range(ports.num_wired)}
    nics = {f"{node}.nic{r}" for node in nodes for r in range(ports.rails)}
    known, rates = nodes | nics | set(file.switches), []
    both = sorted(set(file.switches) & (nodes | nics))
    if both:
        raise BadInput(f"{origin}.switches: {both[0]!r} is the name of a {ports.node}; a switch needs another")
    for i, wire in enumerate(file.links):
        for end in wire.ends:
            if end not in known:
                last, switches = f"{ports.node}{ports.num_wired - 1}", ", ".join(file.switches) or "none"
                raise BadInput(f"{origin}.links.{i}.ends: {end!r} is neither one of {ports.node}0 to {last} nor among the "
                               f"switches ({switches})")
        if wire.ends[0] == wire.ends[1]:
            raise BadInput(f"{origin}.links.{i}.ends: joins {wire.ends[0]} to itself")
        rates.append(parse(wire.bandwidth, "bytes_per_s", f"{origin}.links.{i}.bandwidth"))
        if rates[-1] == 0:
            raise BadInput(f"{origin}.links.{i}.bandwidth: must be more than zero (is {wire.bandwidth!r})")
    return [wire.ends for wire in file.links], np.array(rates)


def _attached(port: int, ports: Ports, number: Mapping[str, int], origin: str) -> str:
    """Return the vertex of a port: that of its NIC, or of its whole node."""
    node, rail = divmod(port, ports.rails)
    whole = f"{ports.node}{node}"
    nics = [f"{whole}.nic{r}" for r in range(ports.rails)]
    for name in (nics[rail], whole):
        if name in number:
            return name
    lacks = nics[rail] if any(nic in number for nic in nics) else whole
    raise BadInput(f"{origin}.links: no link leads to {lacks}; all {ports.node}s must be joined")


def _check_tree(ends: list[tuple[str, str]], origin: str) -> None:
    """Refuse links that close a cycle, and name it; parallel links are one."""
    above: dict[str, list[str]] = {}
    seen: set[frozenset[str]] = set()
    for a, b in ends:
        if frozenset((a, b)) in seen:
            continue
        seen.add(frozenset((a, b)))
        way = _way(above, a, b)
        if way:
            raise BadInput(f"{origin}.links: declared a tree, but {' - '.join([*way, a])} is a cycle; "
                           "take one of its links away, or write tree: false")
        above.setdefault(a, []).append(b)
        above.setdefault(b, []).append(a)


def _way(neighbours: Mapping[str, list[str]], a: str, b: str) -> list[str]:
    """Return the vertices from a to b in a forest, or nothing where there is no way."""
    ways = [[a]]
    while ways:
        way = ways.pop()
        if way[-1] == b:
            return way
        ways += [[*way, n] for n in neighbours.get(way[-1], ()) if len(way) < 2 or n != way[-2]]
    return []


def _hops(tail: Index, head: Index, num: int) -> NDArray[np.int32]:
    """Return the links on the shortest way between all vertices, -1 where there is none: breadth first from all at once."""
    hops = np.where(np.eye(num, dtype=bool), 0, -1).astype(np.int32)
    leaves = np.flatnonzero(np.diff(tail, prepend=-1))
    reached = np.eye(num, dtype=bool)
    for step in range(1, num):
        wider = reached.copy()
        wider[tail[leaves]] |= np.logical_or.reduceat(reached[head], leaves, axis=0)
        new = wider & ~reached
        if not new.any():
            break
        hops[new] = step
        reached = wider
    return hops
