"""The flows of collectives: who sends how many bytes to whom when all groups of an axis run the same one at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from profiles.collectives import reached, traffic_factor
from simulator.networks.topology import Index, Reals


class Flows(NamedTuple):
    """Bytes from accelerator `src` to accelerator `dst`, one entry a flow."""

    src: Index
    dst: Index
    bytes: Reals


def axis_groups(num_ranks: int, size: int, stride: int) -> NDArray[np.int64]:
    """Return the accelerators of an axis's groups, one group a row: members are `stride` apart; rank r is on the r-th."""
    return np.arange(num_ranks).reshape(-1, size, stride).swapaxes(1, 2).reshape(-1, size)


def collective_flows(kind: str, groups: NDArray[np.int64], size_bytes: float, gpus_per_node: int, copies: int = 0) -> Flows:
    """Return the flows of a collective in every group; `size_bytes` and `copies` are those of `Collective`.

    Between nodes a group runs as many rings or trees as it has members in a node, each over its own member's NIC, so that
    every NIC carries its share (NCCL's channels). Gather and scatter: rings through the nodes, half the bytes each way
    round; all-reduce: two binary trees a channel, half the bytes each (Sanders et al. 2009, doi 10.1016/j.parco.2009.09.001);
    all-to-all: what goes to a node leaves on the sender's rail and is forwarded inside (NCCL's PXN; DeepEP, arXiv 2412.19437,
    section 3.2.2). A send goes from every member to the next, from the last to the first (looped pipelines). Members
    that are not spread evenly over nodes form one ring (or tree) in their order, or send to each other directly.
    """
    n = groups.shape[1]
    if n == 1:
        return _flows([])
    if kind == "send":
        return _flows([(groups, np.roll(groups, -1, axis=1), size_bytes)])
    members = np.sort(groups, axis=1)
    if kind == "broadcast":
        return _flows([(members[:, :-1], members[:, 1:], size_bytes)])
    by_node = _by_node(members, gpus_per_node)
    nodes, per_node = by_node.shape[1:]
    if kind == "all_to_all":
        share = reached(nodes, copies) / reached(n, copies) / nodes if copies else 1 / nodes
        between = [(by_node, np.roll(by_node, -k, axis=1), size_bytes * share) for k in range(1, nodes)]
        return _flows(between + [(by_node, np.roll(by_node, -k, axis=2), size_bytes / per_node) for k in range(1, per_node)])
    ring_bytes = size_bytes * traffic_factor(kind, n)
    if nodes == 1:
        return _flows(_ring(by_node, 2, ring_bytes))
    if kind != "all_reduce":
        inside = _ring(by_node, 2, ring_bytes * (per_node - 1) / per_node)
        return _flows(inside + _ring(by_node, 1, ring_bytes / per_node))
    inside = _ring(by_node, 2, 2 * size_bytes * (per_node - 1) / per_node)
    for child, parent in _trees(nodes):
        a, b = by_node[:, child], by_node[:, parent]
        inside += [(a, b, size_bytes / 2 / per_node), (b, a, size_bytes / 2 / per_node)]
    return _flows(inside)


Piece = tuple[NDArray[np.int64], NDArray[np.int64], float]


def _flows(pieces: list[Piece]) -> Flows:
    if not pieces:
        return Flows(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    return Flows(
        src=np.concatenate([src.ravel() for src, _, _ in pieces]), dst=np.concatenate([dst.ravel() for _, dst, _ in pieces]),
        bytes=np.concatenate([np.full(src.size, float(num_bytes)) for src, _, num_bytes in pieces]),
    )


def _by_node(members: NDArray[np.int64], gpus_per_node: int) -> NDArray[np.int64]:
    """Return members as [group, node, member of the node]; as nodes of one where they are not spread evenly."""
    num, n = members.shape
    node = members // gpus_per_node
    nodes = 1 + np.count_nonzero(np.diff(node, axis=1), axis=1)
    if np.all(nodes == nodes[0]) and n % nodes[0] == 0:
        by_node = node.reshape(num, nodes[0], -1)
        if np.all(by_node == by_node[:, :, :1]):
            return members.reshape(by_node.shape)
    return members[:, :, np.newaxis]


def _ring(members: NDArray[np.int64], dim: int, num_bytes: float) -> list[Piece]:
    """Return flows around a ring along a dimension, half of the bytes each way."""
    if members.shape[dim] == 1:
        return []
    return [(members, np.roll(members, way, axis=dim), num_bytes / 2) for way in (-1, 1)]


def _trees(num: int) -> list[tuple[Index, Index]]:
    """Return children and parents of two binary trees in which no node has children twice, where num is even.

    The first as NCCL lays it out (`trees.cc`): the parent of i is i with its lowest bit cleared and the next one set, or
    the former where the latter is beyond the last. The second is its mirror, or for odd numbers shifted by one.
    """
    i = np.arange(1, num)
    bit = i & -i
    parent = (i ^ bit) | (bit << 1)
    parent = np.where(parent >= num, i ^ bit, parent)
    second = (num - 1 - i, num - 1 - parent) if num % 2 == 0 else ((i + 1) % num, (parent + 1) % num)
    return [(i, parent), second]
