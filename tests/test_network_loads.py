"""Bytes on every link against a plain enumeration of every flow, hop by hop; what contention is in closed form."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from profiles.collectives import KINDS, traffic_factor
from profiles.hardware import Cluster, load_cluster
from profiles.laws import node_wire_bytes
from profiles.network import Network
from simulator.layout import ORDER, size, stride
from simulator.networks import (
    Flows,
    axis_flows,
    axis_groups,
    build_fabric,
    collective_flows,
    contention,
    link_loads,
)
from simulator.strategy import Strategy

DGX = load_cluster("dgx-h100")
RATE = DGX.scale_out.bytes_per_s
GRADE = {"all_gather": 1, "reduce_scatter": 1, "all_reduce": 2}
"""How often each byte goes round a ring."""


def wired(num_nodes: int, gpus_per_node: int = 4, gpus_per_nic: int = 1, **section: Any) -> Cluster:
    network = Network(num_nodes=num_nodes, gpus_per_node=gpus_per_node, gpus_per_nic=gpus_per_nic, scale_out=section)
    return replace(DGX, num_nodes=num_nodes, gpus_per_node=gpus_per_node, network=network)


def tree(*levels: tuple[int, float, bool]) -> dict[str, Any]:
    named = [{"switch": f"level{i}", "nodes": n, "oversubscription": o, "rails": r} for i, (n, o, r) in enumerate(levels)]
    return {"kind": "fat_tree", "levels": named, "source": "me"}


Flow = tuple[int, int, float]


def flows_by_hand(kind: str, group: list[int], num_bytes: float, per_node: int) -> Iterator[Flow]:
    """Yield who sends what to whom in one group, member by member."""
    n = len(group)
    if n == 1:
        return
    if kind == "send":
        yield from ((a, group[(i + 1) % n], num_bytes) for i, a in enumerate(group))
        return
    group = sorted(group)
    if kind == "broadcast":
        yield from ((group[i], group[i + 1], num_bytes) for i in range(n - 1))
        return
    homes: dict[int, list[int]] = defaultdict(list)
    for gpu in group:
        homes[gpu // per_node].append(gpu)
    nodes = list(homes.values())
    p = len(nodes[0])
    if kind == "all_to_all":
        for a, b in product(group, group):
            relay = b // per_node * per_node + a % per_node
            yield (a, relay, num_bytes / n)
            yield (relay, b, num_bytes / n)
        return
    chunk = num_bytes / n / p / 2
    for channel, way, _ in product(range(p), (1, -1), range((n - 1) * GRADE[kind])):
        if kind == "all_reduce" and len(nodes) > 1:
            break
        # a ring enters a node at the channel's member and goes through the others: p - 1 hops, then to the next node
        for k, node in enumerate(nodes):
            inner = [node[(channel + way * i) % p] for i in range(p)]
            yield from ((a, b, chunk) for a, b in pairwise(inner))
            if len(nodes) > 1:
                yield (node[channel], nodes[(k + way) % len(nodes)][channel], chunk)
            else:
                yield (inner[-1], inner[0], chunk)
    if kind == "all_reduce" and len(nodes) > 1:
        for node in nodes:
            # what is summed goes through a node to its channel's member, what is whole comes back: as in half a ring each way
            yield from ((node[i], node[(i + way) % p], num_bytes * (p - 1) / p)
                        for i, way in product(range(p), (1, -1)) if p > 1)
        for mirror, channel, child in product((False, True), range(p), range(1, len(nodes))):
            lowest = len(bin(child)) - len(bin(child).rstrip("0"))
            parent = child - (1 << lowest)
            above = parent | (1 << (lowest + 1))
            parent = above if above < len(nodes) else parent
            ends = (child, parent)
            if mirror:
                odd = len(nodes) % 2
                ends = tuple((e + 1) % len(nodes) if odd else len(nodes) - 1 - e for e in ends)  # type: ignore[assignment]
            a, b = (nodes[e][channel] for e in ends)
            yield from ((a, b, num_bytes / 2 / p), (b, a, num_bytes / 2 / p))


def edges_by_hand(cluster: Cluster) -> dict[str, dict[str, str]]:
    """Return the links of a cluster as vertex -> vertex -> name."""
    section, g, per_nic = cluster.network.scale_out, cluster.gpus_per_node, cluster.network.gpus_per_nic
    rails = g // per_nic
    edges: dict[str, dict[str, str]] = defaultdict(dict)

    def join(a: str, b: str, out: str, back: str) -> None:
        edges[a][b], edges[b][a] = out, back

    for node, rail in product(range(cluster.num_nodes), range(rails)):
        nic = f"nic {node} {rail}"
        for gpu in range(rail * per_nic, (rail + 1) * per_nic):
            join(f"gpu {node * g + gpu}", nic, f"node {node} NIC {rail} out", f"node {node} NIC {rail} in")
        below, up, down = nic, "", ""
        for level in section.get("levels", ()):
            name = f"{level['switch']} {node // level['nodes']}" + (f" rail {rail}" if level["rails"] and rails > 1 else "")
            join(below, name, up, down)
            below, up, down = name, f"{name} up", f"{name} down"
        if section["kind"] == "links":
            join(nic, f"node{node}", "", "")
        else:
            join(below, "core", up, down)
    for wire in section.get("links", ()):
        a, b = wire["ends"]
        join(a, b, f"{a} to {b}", f"{b} to {a}")
    return edges


def shares_by_hand(edges: dict[str, dict[str, str]], src: str, dst: str) -> Counter[str]:
    """Return the share of a flow on each link, split evenly at each fork of the shortest ways: breadth first, back from dst."""
    hops, ring = {dst: 0}, [dst]
    while ring:
        ring = [v for u in ring for v in edges[u] if hops.setdefault(v, hops[u] + 1) == hops[u] + 1]
        ring = list(dict.fromkeys(ring))
    found: Counter[str] = Counter()

    def walk(at: str, share: float) -> None:
        closer = [v for v in edges[at] if hops[v] < hops[at]]
        for v in closer:
            found[edges[at][v]] += share / len(closer)
            walk(v, share / len(closer))

    walk(src, 1.0)
    return found


def loads_by_hand(cluster: Cluster, flows: list[Flow]) -> dict[str, float]:
    edges, loads, known = edges_by_hand(cluster), Counter[str](), dict[tuple[int, int], Counter[str]]()
    for src, dst, num_bytes in flows:
        if src // cluster.gpus_per_node == dst // cluster.gpus_per_node:
            if src != dst:
                loads[f"gpu {src} out"] += num_bytes
                loads[f"gpu {dst} in"] += num_bytes
            continue
        if (src, dst) not in known:
            known[src, dst] = shares_by_hand(edges, f"gpu {src}", f"gpu {dst}")
        for name, share in known[src, dst].items():
            loads[name] += share * num_bytes
    return {name: load for name, load in loads.items() if name and load}


LEAF_SPINE = {"kind": "links", "source": "me", "switches": ["leaf0", "leaf1", "spine0", "spine1", "spine2"], "links": [
    *({"ends": [f"node{n}", f"leaf{n // 2}"], "bandwidth": "200 GB/s"} for n in range(4)),
    *({"ends": [f"leaf{i}", f"spine{j}"], "bandwidth": f"{10 + j} GB/s"} for i in range(2) for j in range(3)),
]}
SQUARE = {"kind": "links", "source": "me", "links": [
    {"ends": [f"node{n}", f"node{(n + 1) % 4}"], "bandwidth": "50 GB/s"} for n in range(4)
]}
clusters = st.one_of(
    st.builds(lambda nic, o, r: wired(4, 4, nic, **tree((2, o, r))), st.sampled_from([1, 2]), st.floats(0.5, 4), st.booleans()),
    st.builds(lambda o: wired(8, 2, **tree((2, 1.0, True), (4, o, False))), st.floats(0.5, 4)),
    st.sampled_from([wired(4, 4, **LEAF_SPINE), wired(4, 4, **SQUARE), wired(4, 2, 2, **LEAF_SPINE)]),
)
powers = st.sampled_from([1, 2, 4])


@given(clusters, st.sampled_from(KINDS), powers, powers, powers, powers, st.permutations(ORDER),
       st.sampled_from(["tp", "cp", "dp", "pp", "ep", "edp", "shard"]))
@settings(max_examples=200)
def test_loads_are_those_of_every_flow_hop_by_hop(
    cluster: Cluster, kind: str, tp: int, cp: int, dp: int, ep: int, order: list[str], axis: str
) -> None:
    """Any axis over any axes inside it, in any order on the machine, on any network; experts in the usual one."""
    pp = cluster.num_gpus // (tp * cp * dp)
    assume(pp and tp * cp * dp % ep == 0)
    order = order if axis in ORDER else list(ORDER)
    strategy = Strategy(tp=tp, cp=cp, dp=dp, pp=pp, ep=ep, order="-".join(order))
    fabric = build_fabric(cluster)
    flows = axis_flows(fabric, strategy, axis, kind, 12e6)
    if axis in ORDER:
        coordinates = list(product(*(range(getattr(strategy, a)) for a in reversed(order))))
        place = order[::-1].index(axis)
        alike: dict[tuple[int, ...], list[int]] = {}
        for gpu, where in enumerate(coordinates):
            alike.setdefault(where[:place] + where[place + 1 :], []).append(gpu)
        groups = list(alike.values())
    else:
        n, apart = int(size(strategy, axis)), int(stride(strategy, axis))
        groups = [[r + i * apart for i in range(n)] for r in range(tp * cp * dp * pp) if r // apart % n == 0]
    by_hand = [f for group in groups for f in flows_by_hand(kind, group, 12e6, cluster.gpus_per_node)]
    loads = link_loads(fabric, flows)
    assert {fabric.name(i): pytest.approx(x) for i, x in enumerate(loads) if x} == loads_by_hand(cluster, by_hand)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.booleans(), st.integers(1, 2), st.data())
def test_a_torus_by_walking(dims: list[int], wrap: bool, gpus_per_node: int, data: st.DataObject) -> None:
    """Dimension by dimension the shorter way round, half each way where both are."""
    num = int(np.prod(dims))
    fabric = build_fabric(wired(num, gpus_per_node, gpus_per_node, kind="torus", dims=dims, wrap=wrap, source="me"))
    pairs = data.draw(st.lists(st.tuples(st.integers(0, num - 1), st.integers(0, num - 1)), min_size=1))
    expected: Counter[str] = Counter()
    for a, b in pairs:
        at, to = ([x // int(np.prod(dims[:k])) % d for k, d in enumerate(dims)] for x in (a, b))
        for k, d in enumerate(dims):
            ahead, back = (to[k] - at[k]) % d, (at[k] - to[k]) % d
            ways = [w for w, steps in ((1, ahead), (-1, back)) if steps == min(ahead, back)]
            ways = ways if wrap else [1 if to[k] > at[k] else -1]
            for way in ways if at[k] != to[k] else ():
                here = list(at)
                while here[k] != to[k]:
                    node = sum(x * int(np.prod(dims[:i])) for i, x in enumerate(here))
                    expected[f"node {node} {'+' if way > 0 else '-'}{'xyz'[k]}"] += 1 / len(ways)
                    here[k] = (here[k] + way) % d
            at[k] = to[k]
    src, dst = (np.array(column) * gpus_per_node for column in zip(*pairs, strict=True))
    loads = link_loads(fabric, Flows(src, dst, np.ones(len(src))))
    found = {fabric.name(i): pytest.approx(x) for i, x in enumerate(loads) if x and "NIC" not in fabric.name(i)}
    assert found == expected


@given(st.sampled_from(KINDS), st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.integers(0, 4))
def test_flows_add_up_to_the_traffic(kind: str, nodes: int, per_node: int, apart: int, copies: int) -> None:
    """The bytes of all flows are those that ranks send; those that leave a node are what the law prices."""
    n, gpus_per_node, num_bytes = nodes * per_node, per_node * apart, 1e6
    copies = copies if kind == "all_to_all" else 0
    groups = axis_groups(nodes * gpus_per_node, n, apart)
    flows = collective_flows(kind, groups, num_bytes, gpus_per_node, copies)
    across = flows.src // gpus_per_node != flows.dst // gpus_per_node
    leaving = np.bincount(flows.src[across] // gpus_per_node, weights=flows.bytes[across], minlength=nodes) / apart
    arriving = np.bincount(flows.dst[across] // gpus_per_node, weights=flows.bytes[across], minlength=nodes) / apart
    if kind in ("send", "broadcast"):
        assert flows.bytes.sum() == pytest.approx(apart * num_bytes * (0 if n == 1 else n if kind == "send" else n - 1))
        return
    assert leaving == pytest.approx(arriving)
    if kind == "all_reduce" and nodes > 2:
        # a tree's root and leaves send less than its other nodes: on average as much as a ring through the nodes
        assert leaving.mean() == pytest.approx(2 * num_bytes * (nodes - 1) / nodes)
        assert leaving.max() <= 2 * num_bytes * (1 + 1e-9)
    elif nodes > 1:
        assert leaving == pytest.approx(float(node_wire_bytes(kind, num_bytes, n, nodes, copies)))
    if kind != "all_to_all":
        assert flows.bytes.sum() == pytest.approx(apart * n * num_bytes * traffic_factor(kind, n))


def test_members_that_nodes_share_unevenly_form_one_ring() -> None:
    """Groups of 4 on nodes of 6: the second has two members in each of two nodes, the first all in one."""
    flows = collective_flows("all_gather", axis_groups(12, 4, 1), 4.0, 6)
    pairs = {(a, b) for g in (0, 4, 8) for i in range(4) for a, b in ((g + i, g + (i + 1) % 4), (g + (i + 1) % 4, g + i))}
    assert set(zip(flows.src.tolist(), flows.dst.tolist(), strict=True)) == pairs and set(flows.bytes) == {3 / 2}
    direct = collective_flows("all_to_all", axis_groups(12, 4, 1), 4.0, 6)
    assert len(direct.src) == 12 * 3 and set(direct.bytes) == {1.0}


@given(st.integers(2, 40))
def test_the_two_trees_reach_all_nodes_and_share_the_work(num: int) -> None:
    """Each joins all nodes by n - 1 links, none with more than two children; with an even number none has any in both."""
    flows = collective_flows("all_reduce", np.arange(num)[None], 2.0, 1)
    assert len(flows.src) == 4 * (num - 1)
    parents: list[Counter[int]] = []
    for half in np.split(np.arange(len(flows.src)), 2):
        children, above = flows.src[half[: num - 1]], flows.dst[half[: num - 1]]
        assert len(set(children.tolist())) == num - 1
        parents.append(Counter(above.tolist()))
        at = np.arange(num)
        for _ in range(num):
            for child, parent in zip(children, above, strict=True):
                at[child] = at[parent]
        assert len(set(at.tolist())) == 1
    assert max(max(p.values()) for p in parents) <= 2
    if num % 2 == 0 and num > 2:
        assert not parents[0].keys() & parents[1].keys()


@pytest.mark.parametrize("ratio", [1, 2, 8, 64])
def test_contention_in_closed_form(ratio: float) -> None:
    """8 leaves of 4 nodes of 8 accelerators: what leaves a leaf over what it can carry."""
    fabric = build_fabric(wired(32, 8, **tree((4, ratio, False))))

    def factor(axis: str, kind: str, **degrees: int) -> float:
        return float(contention(fabric, Strategy(**degrees), axis, kind).scale_out)

    # every rank sends to the next leaf; a ring through all nodes leaves a leaf once for each of its four nodes' NICs
    assert factor("pp", "send", tp=8, dp=4, pp=8) == pytest.approx(max(1, ratio))
    assert factor("dp", "all_gather", tp=8, dp=32) == pytest.approx(max(1, ratio / 4))
    # of 31 other nodes 28 are beyond the leaf
    assert factor("ep", "all_to_all", tp=8, dp=32, ep=256) == pytest.approx(max(1, ratio * 28 / 31))
    assert factor("dp", "all_reduce", tp=8, dp=4, pp=8) == 1
    assert contention(fabric, Strategy(tp=8, dp=32), "tp", "all_reduce") == (1, 1)


def test_rails_that_meet_at_a_leaf_need_no_spine() -> None:
    """A leaf for each rail reaches four times the nodes of one for all four: a ring of the same rail stays below it."""
    strategy = Strategy(tp=4, dp=8, pp=4)
    rails, mixed = (build_fabric(wired(32, 4, **tree((nodes, 8.0, r)))) for nodes, r in ((8, True), (2, False)))
    assert contention(rails, strategy, "dp", "reduce_scatter").scale_out == 1
    assert contention(mixed, strategy, "dp", "reduce_scatter").scale_out == pytest.approx(8 / 2)


def test_a_ring_on_a_torus_uses_one_dimension_of_three() -> None:
    """The rate of a chip is that of its six links; a ring along one dimension uses two."""
    section = {"kind": "torus", "dims": [4, 4, 4], "source": "me"}
    fabric = build_fabric(wired(64, 1, **section))
    for axis in ("tp", "cp", "dp"):
        assert contention(fabric, Strategy(tp=4, cp=4, dp=4), axis, "all_gather").scale_out == pytest.approx(3)
    inside = replace(wired(1, 64), network=Network(num_nodes=1, gpus_per_node=64, scale_up=section))
    assert contention(build_fabric(inside), Strategy(tp=4, dp=16), "tp", "all_gather") == pytest.approx((3, 1))


def test_where_the_axes_lie_matters() -> None:
    """Tensor parallelism over nodes of an oversubscribed network, data parallelism inside: tp pays, dp does not."""
    fabric = build_fabric(wired(8, 4, **tree((1, 4.0, False))))
    strategy = Strategy(tp=4, dp=8)
    usual = [contention(fabric, strategy, a, "all_gather") for a in ("tp", "dp")]
    swapped = [contention(fabric, replace(strategy, order="dp-tp-cp-pp"), a, "all_gather") for a in ("tp", "dp")]
    assert usual == [(1, 1), (1, pytest.approx(4))]
    assert swapped[0].scale_out == pytest.approx(4)


def test_llama_3_on_its_own_network() -> None:
    """16,384 accelerators, pods of 3,072, 1:7 above: a stage is 1,024 accelerators, whose sends leave a pod at 1024 x 7 / 3072;
    with dp outermost, as it was run (arXiv 2407.21783, section 3.3.2), neither sends nor rings are slowed."""
    fabric = build_fabric(replace(load_cluster("h100-roce3200"), num_nodes=2048))
    strategy = Strategy(tp=8, pp=16, dp=128)
    assert contention(fabric, strategy, "pp", "send").scale_out == pytest.approx(1024 * 7 / 3072)
    for axis, kind in (("pp", "send"), ("dp", "reduce_scatter")):
        assert contention(fabric, replace(strategy, order="tp-cp-pp-dp"), axis, kind).scale_out == 1
    loads = link_loads(fabric, axis_flows(fabric, strategy, "pp", "send", 1e6))
    assert fabric.name(int((loads / fabric.capacity).argmax())).startswith("pod")


def test_a_batch_of_strategies_is_as_its_members() -> None:
    fabric = build_fabric(wired(32, 8, **tree((4, 8.0, False))))
    tp, dp, pp = np.array([8, 4, 8, 1, 8]), np.array([32, 16, 4, 256, 32]), np.array([1, 4, 8, 1, 1])
    for axis, kind in (("dp", "all_gather"), ("pp", "send"), ("tp", "all_reduce")):
        for order in ("", "dp-tp-cp-pp", np.array(["", "tp-cp-pp-dp", "", "dp-tp-cp-pp", "dp-tp-cp-pp"])):
            some = Strategy(tp=tp, dp=dp, pp=pp, order=order)
            batch = contention(fabric, some, axis, kind)
            ones = [contention(fabric, some.pick(i), axis, kind) for i in range(len(some))]
            assert list(zip(*(column.tolist() for column in batch), strict=True)) == ones
