"""What a cluster file may declare of its network, which links that makes, and which faults are refused in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from profiles import files
from profiles.files import BadInput
from profiles.hardware import Cluster, load_cluster, with_links, with_num_gpus
from simulator.networks import TOPOLOGIES, Fabric, build_fabric, contention, degraded
from simulator.strategy import Strategy

CLUSTER = """
name: Mine
accelerator: h100-80gb
gpus_per_node: 4
num_nodes: {nodes}
scale_up: {{name: NVLink, bandwidth: {{value: 400 GB/s, source: me}}}}
scale_out: {{name: IB, bandwidth: {{value: 50 GB/s, source: me}}}}
network:
  nics_per_node: {nics}
  scale_{where}: {section}
"""


def cluster_with(tmp_path: Path, section: str, nodes: int = 4, nics: int = 4, where: str = "out") -> Cluster:
    path = tmp_path / "mine.yaml"
    path.write_text(CLUSTER.format(section=section, nodes=nodes, nics=nics, where=where))
    return load_cluster(str(path))


def names(fabric: Fabric, src: int, dst: int) -> dict[str, float]:
    """Return the names of the links on the way between two accelerators, with their shares."""
    _, link, share = fabric.paths(np.array([src]), np.array([dst]))
    return dict(zip((fabric.name(i) for i in link), share.tolist(), strict=True))


@pytest.mark.parametrize("name", files.catalog_names("clusters"))
def test_the_network_of_every_cluster_of_the_catalogue_can_be_built(name: str) -> None:
    cluster = replace(load_cluster(name), num_nodes=8)
    fabric = build_fabric(cluster)
    assert np.all(fabric.capacity > 0) and len({fabric.name(i) for i in range(len(fabric.capacity))}) == len(fabric.capacity)
    for section in (cluster.network.scale_up, cluster.network.scale_out):
        assert not section or (section["kind"] in TOPOLOGIES and section["source"])


def test_a_file_that_says_nothing_is_non_blocking() -> None:
    cluster = load_cluster("dgx-h100:4")
    fabric = build_fabric(cluster)
    assert cluster.network.is_non_blocking and fabric.is_non_blocking
    assert names(fabric, 0, 1) == {"gpu 0 out": 1, "gpu 1 in": 1}
    assert names(fabric, 0, 9) == {"node 0 NIC 0 out": 1, "node 1 NIC 1 in": 1}
    assert names(fabric, 3, 3) == {}
    factors = contention(fabric, Strategy(tp=8, dp=np.array([2, 4])), "dp", "all_reduce")
    assert factors == (1.0, 1.0)


def test_an_nvl72_rack_is_one_scale_up_domain() -> None:
    fabric = build_fabric(load_cluster("gb200-nvl72:2"))
    assert names(fabric, 0, 71) == {"gpu 0 out": 1, "gpu 71 in": 1}
    assert names(fabric, 0, 72) == {"node 0 NIC 0 out": 1, "node 1 NIC 0 in": 1}


TREE = "{kind: fat_tree, source: me, levels: [{switch: leaf, nodes: 2%s}, {switch: pod, nodes: 4, oversubscription: 3}]}"


def test_a_flow_climbs_until_one_switch_is_above_both_ends(tmp_path: Path) -> None:
    fabric = build_fabric(cluster_with(tmp_path, TREE % "", nodes=8))
    nics = {"node 0 NIC 0 out": 1}
    assert names(fabric, 0, 4) == nics | {"node 1 NIC 0 in": 1}
    assert names(fabric, 0, 8) == nics | {"leaf 0 up": 1, "leaf 1 down": 1, "node 2 NIC 0 in": 1}
    top = {"pod 0 up": 1, "pod 1 down": 1}
    assert names(fabric, 0, 16) == nics | top | {"leaf 0 up": 1, "leaf 2 down": 1, "node 4 NIC 0 in": 1}


def test_rails_meet_at_their_own_leaf_and_cross_above(tmp_path: Path) -> None:
    fabric = build_fabric(cluster_with(tmp_path, TREE % ", rails: true", nodes=8))
    assert names(fabric, 1, 5) == {"node 0 NIC 1 out": 1, "node 1 NIC 1 in": 1}
    assert names(fabric, 1, 6) == {"node 0 NIC 1 out": 1, "leaf 0 rail 1 up": 1, "leaf 0 rail 2 down": 1, "node 1 NIC 2 in": 1}


@pytest.mark.parametrize(("rails", "leaf"), [("", 2 * 4 * 50e9), (", rails: true", 2 * 50e9)])
def test_capacity_up_is_capacity_down_over_oversubscription(tmp_path: Path, rails: str, leaf: float) -> None:
    fabric = build_fabric(cluster_with(tmp_path, TREE % rails, nodes=8))
    by_name = {fabric.name(i): c for i, c in enumerate(fabric.capacity)}
    assert by_name["leaf 3 rail 2 down" if rails else "leaf 3 down"] == leaf
    assert by_name["pod 1 up"] == pytest.approx(4 * 4 * 50e9 / 3)
    faster = build_fabric(with_links(cluster_with(tmp_path, TREE % rails, nodes=8), scale_out_bytes_per_s=100e9))
    assert faster.capacity[-1] == pytest.approx(2 * by_name["pod 1 down"])


def test_accelerators_share_a_nic(tmp_path: Path) -> None:
    fabric = build_fabric(cluster_with(tmp_path, "{}", nodes=2, nics=2))
    assert names(fabric, 1, 7) == {"node 0 NIC 0 out": 1, "node 1 NIC 1 in": 1}
    assert fabric.capacity[fabric.nic_links(5)[0]] == 2 * 50e9
    assert [fabric.name(i) for i in fabric.nic_links(5)] == ["node 1 NIC 0 out", "node 1 NIC 0 in"]


def test_a_torus_inside_the_scale_up_domain(tmp_path: Path) -> None:
    section = "{kind: torus, dims: [2, 2], link_bandwidth: 100 GB/s, source: me}"
    fabric = build_fabric(cluster_with(tmp_path, section, where="up"))
    way = names(fabric, 4, 7)
    assert way == {"gpu 4 out": 1, "gpu 7 in": 1, "node 1: gpu 0 +x": 0.5, "node 1: gpu 0 -x": 0.5,
                   "node 1: gpu 1 +y": 0.5, "node 1: gpu 1 -y": 0.5}
    assert set(fabric.capacity[2 * 16 : fabric.num_scale_up]) == {100e9}


def test_a_job_on_part_of_the_machine(tmp_path: Path) -> None:
    """Nodes that a job does not use keep their links, whatever kind of network it is."""
    wires = ", ".join(f"{{ends: [node{n}, leaf{n // 2}], bandwidth: 200 GB/s}}" for n in range(4))
    wires += ", {ends: [leaf0, leaf1], bandwidth: 10 GB/s}"
    section = f"{{kind: links, switches: [leaf0, leaf1], links: [{wires}], source: me}}"
    for text in (section, "{kind: torus, dims: [2, 2], source: me}", TREE % ""):
        whole = cluster_with(tmp_path, text)
        assert build_fabric(with_num_gpus(whole, 8)).num_nodes == 2
        assert build_fabric(with_num_gpus(whole, 2)).num_gpus == 2


def test_a_degraded_nic_slows_its_group(tmp_path: Path) -> None:
    fabric = build_fabric(load_cluster("dgx-h100:4"))
    slow = degraded(fabric, {fabric.nic_links(9)[0]: 0.25})
    assert not slow.is_non_blocking and fabric.is_non_blocking
    assert contention(slow, Strategy(tp=8, dp=4), "dp", "all_gather") == pytest.approx((1, 4))
    assert contention(slow, Strategy(tp=8, dp=4), "tp", "all_gather") == (1, 1)


WIRES = ("{{kind: links, switches: [a, b], tree: {tree}, source: me, links: ["
         "{{ends: [node0, a], bandwidth: 200 GB/s}}, {{ends: [node1, a], bandwidth: 200 GB/s}}, "
         "{{ends: [node2, b], bandwidth: 200 GB/s}}, {{ends: [a, b], bandwidth: 1 GB/s}}{more}]}}")


def wires(more: str = "", tree: str = "false") -> str:
    return WIRES.format(tree=tree, more=f", {more}" if more else "")


NODE3 = "{ends: [node3, b], bandwidth: 200 GB/s}"


@pytest.mark.parametrize(("section", "message"), [
    ("{kind: ring}", r"network.scale_out.kind: 'ring' is not known; known are non_blocking, fat_tree, torus, links"),
    ("{kind: fat_tree, levels: []}", "levels"),
    ("{kind: fat_tree, levels: [{switch: leaf, nodes: 2}]}", "network.scale_out: source: is missing"),
    ("{kind: fat_tree, source: me, levels: [{switch: leaf, nodes: 2, oversubscription: -2}]}",
     "levels.0.oversubscription: Input should be greater than 0"),
    ("{kind: fat_tree, source: me, levels: [{switch: leaf, nodes: 2}, {switch: pod, nodes: 3}]}",
     "levels.1.nodes: 3 must be a multiple, twice or more, of the 2 of 'leaf'"),
    ("{kind: fat_tree, source: me, levels: [{switch: leaf, nodes: 2}, {switch: pod, nodes: 4, rails: true}]}",
     "levels.1.rails: 'pod' is of one rail, 'leaf' below it joins all"),
    ("{kind: torus, dims: [3], source: me}", "dims: 3 holds 3, 4 nodes need a place"),
    ("{kind: torus, dims: [2, 2], link_bandwidth: -1 GB/s, source: me}", "link_bandwidth: '-1 GB/s' must not be negative"),
    ("{kind: torus, dims: [2, 2], link_bandwidth: 0 GB/s, source: me}", "link_bandwidth: must be more than zero"),
    (wires(), "no link leads to node3; all nodes must be joined"),
    (wires("{ends: [node3, node3], bandwidth: 1 GB/s}"), "links.4.ends: joins node3 to itself"),
    (wires("{ends: [node3, c], bandwidth: 1 GB/s}"),
     r"links.4.ends: 'c' is neither one of node0 to node3 nor among the switches \(a, b\)"),
    (wires("{ends: [node4, b], bandwidth: 1 GB/s}"), "'node4' is neither one of node0 to node3"),
    (wires("{ends: [node3.nic7, b], bandwidth: 1 GB/s}"), "'node3.nic7' is neither"),
    (wires("{ends: [node3.nic2, b], bandwidth: 1 GB/s}"), "no link leads to node3.nic0"),
    (wires("{ends: [node3, b], bandwidth: -200 GB/s}"), "links.4.bandwidth: '-200 GB/s' must not be negative"),
    (wires("{ends: [node3, b], bandwidth: 0 GB/s}"), "links.4.bandwidth: must be more than zero"),
    (wires("{ends: [node3, b], bandwidth: 200}"), "links.4.bandwidth: 200.0 is a bare number"),
    (wires(NODE3 + ", {ends: [node1, b], bandwidth: 1 GB/s}", tree="true"),
     "declared a tree, but node1 - a - b - node1 is a cycle"),
    ("{kind: links, switches: [node1], source: me, links: [{ends: [node0, node1], bandwidth: 1 GB/s}]}",
     "switches: 'node1' is the name of a node"),
    ("{kind: links, source: me, links: [{ends: [node0, node1], bandwidth: 1 GB/s}, {ends: [node2, node3], bandwidth: 1 GB/s}]}",
     "no way leads from node0 to node2; all nodes must be joined"),
])
def test_a_network_with_a_fault_is_refused_in_one_line(tmp_path: Path, section: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        build_fabric(cluster_with(tmp_path, section))
    text = str(caught.value)
    assert "\n" not in text and "mine.yaml: network.scale_out" in text


def test_whole_trees_and_cycles_that_are_not_declared_trees_are_accepted(tmp_path: Path) -> None:
    fabric = build_fabric(cluster_with(tmp_path, wires(NODE3 + ", " + NODE3, tree="true")))
    assert names(fabric, 0, 8)["a to b"] == 1
    build_fabric(cluster_with(tmp_path, wires(NODE3 + ", {ends: [node1, b], bandwidth: 1 GB/s}")))


def test_nics_and_nothing_else_of_the_section_are_checked_where_it_is_read(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"network\.nics_per_node: 3 NICs are not dealt evenly to 4 accelerators"):
        cluster_with(tmp_path, "{}", nics=3)
    with pytest.raises(BadInput, match=r"network\.scale_in"):
        cluster_with(tmp_path, "{}", where="in")
