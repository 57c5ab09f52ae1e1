"""A published row's machine: a cluster of the catalogue, with the links and the node that the row states."""

from __future__ import annotations

import re
from functools import cache

from profiles.files import BadInput
from profiles.hardware import Cluster, load_cluster, with_links, with_num_gpus
from reports.rows import Row

CLUSTERS = {
    "V100-32GB-SXM": "dgx-1-v100", "A100-40GB-SXM": "a100-40gb-roce1600", "A100-80GB-SXM": "dgx-a100",
    "A100-80GB-PCIe": "a100-pcie",
    "A800-80GB": "a800-roce400", "H800-80GB-SXM": "h800-ib", "H100-80GB-SXM": "dgx-h100", "H100-94GB-SXM": "h100-94gb",
    "H100-96GB-SXM-500W": "h100-96gb", "H200-SXM": "dgx-h200", "B200-SXM": "dgx-b200", "B300-SXM": "dgx-b300",
    "GB200": "gb200-nvl72", "GB300": "gb300-nvl72", "L40S": "l40s-node", "RTX4090-24GB": "rtx4090-node",
    "RTXA6000-48GB": "rtxa6000-node", "MI250X-GCD": "frontier", "MI300X": "mi300x-node", "MI325X": "mi325x-node",
    "MI350X": "mi350x-node", "MI355X": "mi355x-node",
}
"""The `gpu` column -> the cluster of the catalogue that stands for it where the row names no other."""
NAMED = (
    ("A100-80GB-SXM", r"Jean Zay", "jean-zay-a100"), ("V100-32GB-SXM", r"Jean Zay", "jean-zay-v100"),
    ("A100-80GB-SXM", r"Selene", "selene"), ("A100-40GB-SXM", r"EFA", "p4d"),
    ("A100-80GB-SXM", r"4 x 100 Gb RoCE", "a100-80gb-roce400"), ("A100-80GB-SXM", r"RoCE", "a100-80gb-roce1600"),
    ("A100-80GB-SXM", r"800 Gbps per node", "a100-80gb-ib800"), ("A100-80GB-SXM", r"EFA", "p4de"),
    ("H100-80GB-SXM", r"TCPX\b", "a3-high"), ("H100-80GB-SXM", r"TCPXO", "a3-mega"), ("H100-80GB-SXM", r"EFA", "p5"),
    ("H100-80GB-SXM", r"RoCE", "h100-roce3200"), ("H200-SXM", r"EFA", "p5en"), ("B200-SXM", r"EFA", "p6-b200"),
)
"""Accelerator, what the `interconnect` column says, and the cluster that it means; the first that matches."""
GBIT_PER_S = 1e9 / 8
MAX_NODES = 10**6
RACK = 16
"""Nodes of more accelerators than this are racks; the row's `gpus_per_node` then counts those of a host."""


def cluster_of(row: Row) -> Cluster:
    """Return the machine of a row, cut to its accelerators; what the catalogue does not know is a `BadInput`."""
    gpu, text, num = row.text("gpu"), row.text("interconnect"), row.whole("n_gpus")
    if gpu not in CLUSTERS:
        raise BadInput(f"gpu: {gpu!r} has no reference cluster; known are {', '.join(CLUSTERS)}")
    if num is None or num < 1:
        raise BadInput(f"n_gpus: must be a whole number of at least 1 (is {row.text('n_gpus')!r})")
    name = next((c for g, says, c in NAMED if g == gpu and re.search(says, text)), CLUSTERS[gpu])
    cluster = _loaded(name)
    used = re.search(r"(\d+) GPUs per domain used", text)
    node = int(used[1]) if used else row.whole("gpus_per_node") if cluster.gpus_per_node <= RACK else None
    cluster = with_links(cluster, gpus_per_node=node, scale_out_bytes_per_s=stated_bytes_per_s(row, node),
                         source=f"{row.id}: {text}")
    return with_num_gpus(cluster, num)


@cache
def _loaded(name: str) -> Cluster:
    """Return a cluster of as many nodes as anyone has; files are read once for thousands of rows."""
    return load_cluster(f"{name}:{MAX_NODES}")


def stated_bytes_per_s(row: Row, gpus_per_node: int | None) -> float | None:
    """Return the bytes per second that one accelerator can send between nodes, where the row states a rate."""
    text = row.text("interconnect")
    rate = re.search(r"(?:(\d+) x )?([\d.]+) ?(Gb|Tb)(?:/s|ps)?\b", text)
    if not rate:
        return None
    gbit = int(rate[1] or 1) * float(rate[2]) * (1000 if rate[3] == "Tb" else 1)
    whole_node = bool(rate[1]) or "per node" in text
    return gbit * GBIT_PER_S / ((gpus_per_node or 8) if whole_node else 1)
