"""Networks: who shares which wire. Topologies by name, the bytes on every link, and what sharing one makes slower."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from profiles.files import BadInput
from profiles.hardware import Cluster
from simulator.networks.fabric import Fabric, degraded
from simulator.networks.fair import Routes, max_min_rates
from simulator.networks.fat_tree import fat_tree
from simulator.networks.links import links
from simulator.networks.loads import Contention, axis_flows, contention, link_loads
from simulator.networks.non_blocking import non_blocking
from simulator.networks.shared import SharedLinks
from simulator.networks.streams import Stream, Transfer, stream_routes
from simulator.networks.topology import Paths, Ports, Topology
from simulator.networks.torus import torus
from simulator.networks.traffic import Flows, axis_groups, collective_flows
from simulator.networks.wires import Flow, Wires, through

__all__ = ["TOPOLOGIES", "Contention", "Fabric", "Flow", "Flows", "Paths", "Ports", "Routes", "SharedLinks", "Stream",
           "Topology", "Transfer", "Wires", "axis_flows", "axis_groups", "build_fabric", "collective_flows", "contention",
           "degraded", "link_loads", "max_min_rates", "stream_routes", "through"]

TOPOLOGIES: dict[str, Callable[[Mapping[str, Any], Ports, str], Topology]] = {
    "non_blocking": non_blocking,
    "fat_tree": fat_tree,
    "torus": torus,
    "links": links,
}
"""Name -> topology of a section of a cluster file on so many ports."""


def build_fabric(cluster: Cluster) -> Fabric:
    """Return the links of a cluster, built once; a network that cannot be is a `BadInput`."""
    network, up, out = cluster.network, cluster.scale_up, cluster.scale_out
    return _fabric(
        json.dumps([network.scale_up, network.scale_out], sort_keys=True, default=str), network.origin,
        (cluster.num_nodes, max(cluster.num_nodes, network.num_nodes)),
        (cluster.gpus_per_node, max(cluster.gpus_per_node, network.gpus_per_node), network.gpus_per_nic),
        (up.bytes_per_s * up.share, out.bytes_per_s * out.share),
    )


@lru_cache(maxsize=16)
def _fabric(text: str, origin: str, nodes: tuple[int, int], gpus: tuple[int, int, int], rates: tuple[float, float]) -> Fabric:
    up_section, out_section = json.loads(text)
    (num_nodes, wired_nodes), (per_node, wired_gpus, per_nic) = nodes, gpus
    rails = -(-per_node // per_nic)
    up = _topology(up_section, Ports(node="gpu", num_nodes=per_node, num_wired=wired_gpus, rails=1, bytes_per_s=rates[0]),
                   f"{origin}.scale_up")
    out = _topology(out_section, Ports(node="node", num_nodes=num_nodes, num_wired=wired_nodes, rails=rails,
                                       bytes_per_s=rates[1] * per_nic), f"{origin}.scale_out")
    capacity = [np.full(2 * num_nodes * per_node, rates[0]), np.tile(up.capacity, num_nodes),
                np.full(2 * num_nodes * rails, rates[1] * per_nic), out.capacity]
    return Fabric(num_nodes=num_nodes, gpus_per_node=per_node, gpus_per_nic=per_nic, up=up, out=out,
                  up_bytes_per_s=rates[0], out_bytes_per_s=rates[1], capacity=np.concatenate(capacity))


def _topology(section: Mapping[str, Any], ports: Ports, origin: str) -> Topology:
    kind = section.get("kind", "non_blocking")
    if kind not in TOPOLOGIES:
        raise BadInput(f"{origin}.kind: {kind!r} is not known; known are {', '.join(TOPOLOGIES)}")
    return TOPOLOGIES[kind](section, ports, origin)
