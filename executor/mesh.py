"""Device meshes of a strategy: its axes, the ranks that share weights, and the ranks that share experts.

All are views of one mesh, so that torch can compose them. The rank numbers are those of `simulator.layout`.
"""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import DeviceMesh

from simulator import layout
from simulator.strategy import Strategy


def build_mesh(strategy: Strategy, device_type: str) -> DeviceMesh:
    """Return the device mesh [pp, dp, cp, tp] of `simulator.layout`."""
    return DeviceMesh(device_type, torch.from_numpy(layout.mesh(strategy)), mesh_dim_names=layout.ORDER[::-1])


def replica_mesh(mesh: DeviceMesh, strategy: Strategy) -> DeviceMesh:
    """Return the ranks with the same dense weights: [shard], or [copies, shard] where groups of ranks share a copy (HSDP)."""
    replicas = mesh["dp", "cp"]._flatten("shard") if strategy.cp > 1 else mesh["dp"]
    shards = int(strategy.shards)
    if shards == replicas.size() or shards == 1:
        return replicas
    return replicas._unflatten(0, (replicas.size() // shards, shards), ("copies", "group"))


def expert_mesh(mesh: DeviceMesh, strategy: Strategy) -> DeviceMesh:
    """Return the ranks of a pipeline stage as [edp, ep]: copies of an expert, experts.

    Experts lie over dp, cp and tp in an order of their own (parallel folding, arXiv 2504.14960).
    """
    sizes = tuple(int(layout.size(strategy, axis)) for axis in ("edp", "ep"))
    return mesh["dp", "cp", "tp"]._flatten("experts")._unflatten(0, sizes, ("edp", "ep"))
