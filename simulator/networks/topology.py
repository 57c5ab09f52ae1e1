"""What a topology is: links with capacities, and the links that a flow between two ports takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]
Reals = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """What a topology joins: `num_nodes` nodes of `rails` NICs, or accelerators of one port; port = node x rails + rail.

    `node` is what one is called: node between nodes, gpu inside one; `num_wired` of them are there, the first `num_nodes`
    in use. `bytes_per_s` is a port's, in one direction.
    """

    node: str
    num_nodes: int
    num_wired: int
    rails: int
    bytes_per_s: float

    @property
    def num(self) -> int:
        """Return the number of ports."""
        return self.num_nodes * self.rails


class Paths(NamedTuple):
    """Which links flows take: one entry for each flow and link, with the share of the flow that goes over it."""

    flow: Index
    link: Index
    share: Reals


class Topology(Protocol):
    """The links between ports, those of the ports themselves not counted; each link has one direction."""

    @property
    def capacity(self) -> Reals:
        """Return bytes per second of each link."""

    def paths(self, src: Index, dst: Index) -> Paths:
        """Return the links of the flows from ports `src` to ports `dst`."""

    def name(self, link: int) -> str:
        """Return what a link is called in a report."""


def joined(flows: list[Index], links: list[Index], shares: list[Reals] | None = None) -> Paths:
    """Return paths from entries in pieces; without shares every flow goes whole over each of its links."""
    if not flows:
        return Paths(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    flow, link = np.concatenate(flows), np.concatenate(links)
    return Paths(flow, link, np.concatenate(shares) if shares is not None else np.ones(len(flow)))
