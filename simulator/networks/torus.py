"""Tori and meshes of any number of dimensions, with dimension-order routing (Dally and Seitz, doi 10.1109/TC.1987.1676939)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from profiles import files
from profiles.files import BadInput
from profiles.units import parse
from simulator.networks.topology import Index, Paths, Ports, Reals, joined


class TorusFile(BaseModel):
    """A torus as people write it: nodes a dimension, that of neighbouring numbers first.

    Without `wrap` it is a mesh. `link_bandwidth` is that of one link in one direction; by default the links of a node
    share its ports' rate, two a dimension.
    """

    model_config = ConfigDict(extra="forbid")
    kind: Literal["torus"]
    dims: Annotated[list[PositiveInt], Field(min_length=1, description="nodes a dimension, that of neighbours first")]
    wrap: bool = Field(default=True, description="false: a mesh")
    link_bandwidth: str | float | None = Field(
        default=None, description="of one link, one direction, like '100 Gb/s'; absent: the ports' rate, shared")
    source: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Torus:
    """Nodes in a box; link (node x dimensions + dimension) x 2 leads to the next along a dimension, + 1 to the one before.

    A flow corrects its coordinates in the order of `dims`, each the shorter way round, half each way where both are.
    """

    node: str
    dims: tuple[int, ...]
    wrap: bool
    rails: int
    capacity: Reals

    def paths(self, src: Index, dst: Index) -> Paths:
        """Return every link on the way, dimension by dimension."""
        at, to = src // self.rails, dst // self.rails
        flows: list[Index] = []
        links: list[Index] = []
        shares: list[Reals] = []
        stride = 1
        for k, size in enumerate(self.dims):
            x, target = at // stride % size, to // stride % size
            ahead = (target - x) % size
            for way, steps in enumerate((ahead, (x - target) % size)):
                share = np.where(2 * steps < size, 1.0, np.where(2 * steps == size, 0.5, 0.0))
                if not self.wrap:
                    share = np.where(way == (target < x), 1.0, 0.0)
                moves = np.where((ahead > 0) & (share > 0), steps, 0)
                for step in range(int(moves.max(initial=0))):
                    flow = np.flatnonzero(moves > step)
                    here = at[flow] + ((x[flow] + (-step if way else step)) % size - x[flow]) * stride
                    flows.append(flow)
                    links.append((here * len(self.dims) + k) * 2 + way)
                    shares.append(share[flow])
            at = at + (target - x) * stride
            stride *= size
        return joined(flows, links, shares)

    def name(self, link: int) -> str:
        """Return the node and the direction: 'node 17 +y'."""
        node, way = divmod(link, 2 * len(self.dims))
        dim, back = divmod(way, 2)
        return f"{self.node} {node} {'-' if back else '+'}{'xyzw'[dim] if len(self.dims) <= 4 else dim}"


def torus(section: Mapping[str, Any], ports: Ports, origin: str) -> Torus:
    """Return the torus of a section; nodes beyond those in use are there, and idle."""
    file = files.validate(TorusFile, dict(section), origin)
    num = math.prod(file.dims)
    if num < ports.num_nodes:
        box = " x ".join(map(str, file.dims))
        raise BadInput(f"{origin}.dims: {box} holds {num}, {ports.num_nodes} {ports.node}s need a place")
    rate = ports.bytes_per_s * ports.rails / (2 * len(file.dims))
    if file.link_bandwidth is not None:
        rate = parse(file.link_bandwidth, "bytes_per_s", f"{origin}.link_bandwidth")
        if rate == 0:
            raise BadInput(f"{origin}.link_bandwidth: must be more than zero (is {file.link_bandwidth!r})")
    return Torus(node=ports.node, dims=tuple(file.dims), wrap=file.wrap, rails=ports.rails,
                 capacity=np.full(num * len(file.dims) * 2, rate))
