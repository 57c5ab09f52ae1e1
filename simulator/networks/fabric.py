"""The fabric of a cluster: every link that a rank's bytes go over, those of its own ports included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from simulator.networks.topology import Index, Paths, Reals, Topology, joined


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fabric:
    """Links in this order: accelerators out and in (scale-up), links inside each node, NICs out and in, links between nodes.

    Bytes between accelerators of a node take the scale-up network, all others the scale-out network by way of their own
    NICs. `up_bytes_per_s` and `out_bytes_per_s` are an accelerator's share of the two, in one direction; `capacity` is that
    of each link and may be lowered (a degraded NIC).
    """

    num_nodes: int
    gpus_per_node: int
    gpus_per_nic: int
    up: Topology
    out: Topology
    up_bytes_per_s: float
    out_bytes_per_s: float
    capacity: Reals

    @property
    def num_gpus(self) -> int:
        """Return the number of accelerators."""
        return self.num_nodes * self.gpus_per_node

    @property
    def rails(self) -> int:
        """Return the NICs of a node."""
        return -(-self.gpus_per_node // self.gpus_per_nic)

    @property
    def num_scale_up(self) -> int:
        """Return how many links, the first ones, are inside nodes."""
        return 2 * self.num_gpus + self.num_nodes * len(self.up.capacity)

    @property
    def is_non_blocking(self) -> bool:
        """Return whether there are no links but ports, all of them at their rate: then nothing is shared."""
        if len(self.up.capacity) or len(self.out.capacity):
            return False
        ports, nics = np.split(self.capacity, [self.num_scale_up])
        return bool(np.all(ports >= self.up_bytes_per_s) and np.all(nics >= self.out_bytes_per_s * self.gpus_per_nic))

    def nic(self, gpu: Index) -> Index:
        """Return the NIC of accelerators, counted over all nodes."""
        port: Index = gpu // self.gpus_per_node * self.rails + gpu % self.gpus_per_node // self.gpus_per_nic
        return port

    def crosses(self, src: Index, dst: Index) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        """Return whether flows between accelerators leave the node."""
        return np.asarray(src // self.gpus_per_node != dst // self.gpus_per_node)

    def paths(self, src: Index, dst: Index) -> Paths:
        """Return the links of flows between accelerators; one to itself takes none."""
        across = self.crosses(src, dst)
        inside, outside = np.flatnonzero(~across & (src != dst)), np.flatnonzero(across)
        a, b = src[inside], dst[inside]
        up = self.up.paths(a % self.gpus_per_node, b % self.gpus_per_node)
        node = a // self.gpus_per_node
        up_links = 2 * self.num_gpus + node[up.flow] * len(self.up.capacity) + up.link
        c, d = self.nic(src[outside]), self.nic(dst[outside])
        out, nics, nic0 = self.out.paths(c, d), self.num_nodes * self.rails, self.num_scale_up
        return joined(
            [inside, inside, inside[up.flow], outside, outside, outside[out.flow]],
            [a, self.num_gpus + b, up_links, nic0 + c, nic0 + nics + d, nic0 + 2 * nics + out.link],
            [np.ones(2 * len(inside)), up.share, np.ones(2 * len(outside)), out.share],
        )

    def nic_links(self, gpu: int) -> tuple[int, int]:
        """Return the links out of and into the NIC of an accelerator."""
        out = self.num_scale_up + int(self.nic(np.asarray(gpu)))
        return out, out + self.num_nodes * self.rails

    def name(self, link: int) -> str:
        """Return what a link is called: 'gpu 12 out', 'node 3 NIC 1 in', 'pod 2 up'."""
        if link < 2 * self.num_gpus:
            return f"gpu {link % self.num_gpus} {'in' if link >= self.num_gpus else 'out'}"
        if link < self.num_scale_up:
            node, inner = divmod(link - 2 * self.num_gpus, len(self.up.capacity))
            return f"node {node}: {self.up.name(inner)}"
        nics, link = self.num_nodes * self.rails, link - self.num_scale_up
        if link < 2 * nics:
            node, rail = divmod(link % nics, self.rails)
            return f"node {node} NIC {rail} {'in' if link >= nics else 'out'}"
        return self.out.name(link - 2 * nics)


def degraded(fabric: Fabric, shares: Mapping[int, float]) -> Fabric:
    """Return the fabric with some links at a share of their capacity: a NIC that fell back to a lower rate, a lost cable."""
    capacity = fabric.capacity.copy()
    for link, share in shares.items():
        capacity[link] *= share
    return replace(fabric, capacity=capacity)
