"""Clusters and pools of unlike ones, links and prices: data-sheet figures, each with its source. Never measurements."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveInt

from profiles import files
from profiles.accelerators import (
    Accelerator,
    FigureFile,
    RatioFile,
    Strict,
    above_zero,
    figure_of,
    load_accelerator,
    mixed_accelerator,
    positive,
)
from profiles.files import BadInput
from profiles.host import Host, HostFile, host_of
from profiles.network import Network, NetworkFile, declared
from profiles.tables import MeasuredTable, read_table
from profiles.units import parse

__all__ = ["Accelerator", "Cluster", "Link", "Price", "cluster_from_mapping", "cluster_from_table", "load_accelerator",
           "load_cluster", "local_cluster", "pool", "scaled_pool", "with_links", "with_num_gpus"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A wire: bytes per second and accelerator in one direction.

    `latency_s` is what a message takes longer than on the links of the fits (NVLink, InfiniBand), `share` the part of
    the rate that arrives, beside what the laws of collectives already say.
    """

    name: str
    bytes_per_s: float
    source: str
    latency_s: float = 0.0
    share: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Nodes of accelerators: a fast link inside the node, a slower one between nodes.

    A node is what the fast link joins: the 8 of a server, the 72 of an NVL72 rack. `gpus_per_host` of them share
    an operating system and fail together (0: all of them); `host`: the memory that these share, where known. `network` says
    what links ranks share beyond their own.

    A pool of unlike clusters has `parts`, in the order of its ranks; its own fields stand for all of them (`pool`).
    """

    name: str
    title: str
    accelerator: Accelerator
    gpus_per_node: int
    num_nodes: int
    scale_up: Link
    scale_out: Link
    gpus_per_host: int = 0
    node_power_w: float | None = None
    host: Host | None = None
    network: Network = field(default_factory=Network)
    table: MeasuredTable | None = None
    parts: tuple[Cluster, ...] = ()

    @property
    def kinds(self) -> tuple[Cluster, ...]:
        """Return the parts of a pool; of any other cluster itself."""
        return self.parts or (self,)

    @property
    def machines(self) -> str:
        """Return its nodes in words."""
        return " + ".join(part.title if part.name == "local" else f"{part.num_nodes} x {part.title}" for part in self.kinds)

    @property
    def smallest_gpus(self) -> int:
        """Return the accelerators of its smallest whole share: a node, or of a pool so many that its parts stay in
        proportion."""
        return self.num_gpus // math.gcd(*(part.num_nodes for part in self.parts)) if self.parts else self.gpus_per_node

    @property
    def num_gpus(self) -> int:
        """Return the number of accelerators."""
        return self.gpus_per_node * self.num_nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What an accelerator-hour costs, where, on which terms, as of when."""

    usd_per_gpu_hour: float
    term: str
    provider: str
    date: str
    source: str


class LinkFile(Strict):
    """A link, as people write it."""

    name: str
    bandwidth: FigureFile = Field(description="per accelerator, one direction, like '400 Gb/s' or '450 GB/s'")
    latency: FigureFile | None = Field(
        default=None, description="what a message takes longer than over NVLink or InfiniBand, like '25 us'")
    share: RatioFile | None = Field(default=None, description="part of the rate that arrives; absent: all")


class ClusterFile(Strict):
    """A cluster file, as people write it; `num_nodes` may also be given on the command line."""

    name: str = Field(description="as it is shown")
    accelerator: str = Field(description="a name of the catalogue, or an accelerator file (.yaml)")
    gpus_per_node: PositiveInt = Field(description="accelerators that the fast link joins")
    gpus_per_host: PositiveInt | None = Field(
        default=None, description="accelerators that share an operating system and fail together; absent: all of a node")
    num_nodes: PositiveInt = Field(default=1, description="where the command line does not say ('ours.yaml:8')")
    note: str = ""
    scale_up: LinkFile = Field(description="the fast link inside a node")
    scale_out: LinkFile = Field(description="the link between nodes")
    topology: str = Field(default="", description="in words, for readers")
    network: NetworkFile | None = Field(default=None, description="links that ranks share; absent: none do")
    node_power: FigureFile | None = Field(default=None, description="maximum of a node, like '10.2 kW'")
    host: HostFile | None = Field(default=None, description="needed for offload")


class PartFile(Strict):
    """A part of a pool: a cluster, as on the command line, and its nodes."""

    cluster: str = Field(description="a name of the catalogue or a cluster file")
    num_nodes: PositiveInt | None = Field(default=None, description="absent: as the cluster says")


class PoolFile(Strict):
    """A pool of unlike clusters, as people write it; without a `wire` the slowest of their NICs joins them."""

    name: str
    note: str = ""
    parts: list[PartFile] = Field(description="in the order of the ranks")
    wire: LinkFile | None = Field(default=None, description="what joins the parts, where their slowest NIC does not")


def load_cluster(text: str, profile: str | Path | None = None) -> Cluster:
    """Return a cluster: `dgx-h100:16` (catalogue name, nodes), a YAML file, a pool of several (`dgx-a100:8+dgx-h100:8`), or
    `local[:ranks]` with a profile file."""
    if "+" in text and not Path(text).is_file():
        return pool([load_cluster(part.strip(), profile) for part in text.split("+")])
    match = re.fullmatch(r"(.*?)(?::(-?\w+))?", text)
    name, nodes = (match[1], match[2]) if match else (text, None)
    if nodes is not None and (not nodes.isdecimal() or int(nodes) < 1):
        raise BadInput(f"cluster: {text!r}: the number after ':' must be a whole number of nodes, like 'dgx-h100:16'")
    if name == "local":
        return local_cluster(profile, int(nodes) if nodes else None)
    path = Path(name)
    is_file = path.suffix in (".yaml", ".yml")
    data = files.read_mapping(path) if is_file else files.catalog_mapping("clusters", name)
    origin = str(path) if is_file else f"clusters/{name}.yaml"
    if "parts" in data:
        if nodes:
            raise BadInput(f"cluster: {text!r}: a pool has its nodes in its file, part by part")
        return _pool_of(files.validate(PoolFile, data, origin), origin, profile)
    return cluster_from_mapping(data, path.stem if is_file else name, origin, int(nodes) if nodes else None)


def cluster_from_mapping(data: dict[str, Any], name: str, origin: str, num_nodes: int | None = None) -> Cluster:
    """Return the cluster that the fields of a cluster file state; `origin` is named in errors."""
    file = files.validate(ClusterFile, data, origin)
    if file.gpus_per_node % (file.gpus_per_host or file.gpus_per_node):
        raise BadInput(f"{origin}: gpus_per_host: {file.gpus_per_host} does not divide gpus_per_node {file.gpus_per_node}")
    return Cluster(
        name=name, title=file.name, accelerator=load_accelerator(file.accelerator),
        gpus_per_node=file.gpus_per_node, gpus_per_host=file.gpus_per_host or 0, num_nodes=num_nodes or file.num_nodes,
        scale_up=_link(file.scale_up, f"{origin}: scale_up"), scale_out=_link(file.scale_out, f"{origin}: scale_out"),
        node_power_w=parse(file.node_power.value, "w", f"{origin}: node_power") if file.node_power else None,
        host=host_of(file.host, f"{origin}: host") if file.host else None,
        network=declared(file.network, max(file.num_nodes, num_nodes or 0), file.gpus_per_node, origin),
    )


def _link(file: LinkFile, field: str) -> Link:
    value = figure_of(file.bandwidth, "bytes_per_s", f"{field}.bandwidth")
    latency_s = parse(file.latency.value, "s", f"{field}.latency") if file.latency else 0.0
    return Link(name=file.name, bytes_per_s=value, source=file.bandwidth.source, latency_s=latency_s,
                share=above_zero(file.share, f"{field}.share"))


def _pool_of(file: PoolFile, origin: str, profile: str | Path | None) -> Cluster:
    parts = [load_cluster(part.cluster, profile) for part in file.parts]
    parts = [replace(part, num_nodes=row.num_nodes or part.num_nodes) for part, row in zip(parts, file.parts, strict=True)]
    return pool(parts, wire=_link(file.wire, f"{origin}: wire") if file.wire else None)


def pool(parts: Sequence[Cluster], wire: Link | None = None) -> Cluster:
    """Return unlike clusters as one, its ranks in the order of the parts; neighbours that are alike are one part.

    The `wire` between parts is no faster than the NICs at its ends, and as fast as the slowest where none is given. What else
    stands for all: the accelerator is `mixed_accelerator`, the network inside a node the slowest, and a node as large as
    divides those of all parts.
    """
    parts = [whole for part in parts for whole in part.kinds]
    for part in parts:
        if part.table is not None:
            raise BadInput("cluster: 'local' is one measured machine, and no part of a pool")
        if not part.network.is_non_blocking:
            raise BadInput(f"cluster: {part.name} declares a network of links that are shared, and no part of a pool may")
    found = [replace(own[0], num_nodes=sum(part.num_nodes for part in own))
             for own in (list(some) for _, some in groupby(parts, key=_one_node))]
    if len(found) == 1:
        return found[0]
    node, hosts = (math.gcd(*sizes) for sizes in zip(
        *((part.gpus_per_node, part.gpus_per_host or part.gpus_per_node) for part in found), strict=True))
    slowest = min((part.scale_out for part in found), key=_rate)
    joint = replace(slowest, source=f"assumed: the slowest NIC of the pool, {slowest.name} ({slowest.source})")
    if wire is not None:
        joint = replace(wire, bytes_per_s=min(wire.bytes_per_s, _rate(slowest) / wire.share))
    return Cluster(
        name="+".join(part.name for part in found), title=" + ".join(part.title for part in found),
        accelerator=mixed_accelerator([(part.accelerator, part.num_gpus) for part in found]),
        gpus_per_node=node, gpus_per_host=hosts if hosts != node else 0, num_nodes=sum(part.num_gpus for part in found) // node,
        scale_up=min((part.scale_up for part in found), key=_rate), scale_out=joint, parts=tuple(found),
    )


def _one_node(cluster: Cluster) -> Cluster:
    return replace(cluster, num_nodes=1)


def _rate(link: Link) -> float:
    return link.bytes_per_s * link.share


def local_cluster(profile: str | Path | None, num_ranks: int | None = None) -> Cluster:
    """Return this machine as a cluster of one node, all of it measured: from the file that `headway profile` wrote."""
    if profile is None:
        raise BadInput("cluster: 'local' needs --profile FILE; `headway profile` measures this machine and writes one")
    return cluster_from_table(read_table(profile), num_ranks, origin=str(profile))


def cluster_from_table(table: MeasuredTable, num_ranks: int | None = None, origin: str = "profile") -> Cluster:
    """Return the measured machine as a cluster of one node; memory is the machine's, shared by its ranks."""
    head = table.head
    ranks = num_ranks or int(head["num_ranks"])
    if ranks > head["num_ranks"]:
        raise BadInput(
            f"cluster: local:{ranks}: {origin} was measured with {head['num_ranks']} ranks busy; "
            f"run `headway profile --ranks {ranks}`"
        )
    source = f"measured {head['date']}"
    keys = ("memory", "memory_bandwidth", "framework_memory", *(f"peak.{d}" for d in head["peak_flop_per_s"]))
    device = "cuda" if head["backend"] == "nccl" else "cpu"
    accelerator = Accelerator(
        name=head["name"], title=str(head["environment"].get("device", head["name"])), device=device,
        memory_bytes=float(head["memory_bytes"]) * (head["num_ranks"] / ranks if device == "cpu" else 1),
        memory_bytes_per_s=float(head["memory_bytes_per_s"]),
        peak_flop_per_s={k: float(v) for k, v in head["peak_flop_per_s"].items()},
        framework_bytes=float(head["framework_bytes"]), allocator_slack=0.0, laws="",
        sources=dict.fromkeys(keys, source) | {"allocator_slack": "none: large blocks go back to the system at once"},
    )
    largest = table.rows[table.rows["kind"] == "send"]
    rate = float((largest["bytes"] / largest["median_s"]).max()) if len(largest) else float(head["memory_bytes_per_s"])
    link = Link(name=str(head["backend"]), bytes_per_s=rate, source=source)
    return Cluster(name="local", title=f"this machine ({ranks} ranks)", accelerator=accelerator, gpus_per_node=ranks,
                   num_nodes=1, scale_up=link, scale_out=link, table=table)


def with_num_gpus(cluster: Cluster, num_gpus: int) -> Cluster:
    """Return the cluster cut to that many accelerators: whole nodes, a part of one, or alike parts made of whole hosts."""
    if num_gpus < 1:
        raise BadInput(f"gpus: must be at least 1 (is {num_gpus})")
    if num_gpus > cluster.num_gpus:
        raise BadInput(f"gpus: {num_gpus} are asked for, {cluster.name} has {cluster.num_gpus}")
    if cluster.parts:
        return scaled_pool(cluster, num_gpus)
    if num_gpus < cluster.gpus_per_node:
        return replace(cluster, gpus_per_node=num_gpus, num_nodes=1)
    host = cluster.gpus_per_host or cluster.gpus_per_node
    # racks of 72 are used in parts of 64 where degrees are powers of two
    for nodes in range(-(-num_gpus // cluster.gpus_per_node), cluster.num_nodes + 1):
        if num_gpus % (nodes * host) == 0:
            return replace(cluster, gpus_per_node=num_gpus // nodes, num_nodes=nodes)
    below = num_gpus // host * host
    raise BadInput(
        f"gpus: {num_gpus} do not divide into whole nodes of {cluster.gpus_per_node}; the next below is {below}"
        if host == cluster.gpus_per_node else
        f"gpus: {num_gpus} do not divide into equal parts of nodes of {cluster.gpus_per_node}, made of hosts of {host}"
    )


def scaled_pool(cluster: Cluster, num_gpus: int) -> Cluster:
    """Return a pool with fewer or more nodes, its parts in proportion."""
    least = cluster.smallest_gpus
    if num_gpus % least:
        raise BadInput(f"gpus: {num_gpus} do not keep the parts of {cluster.machines} in proportion; multiples of {least} do")
    times, before = num_gpus // least, cluster.num_gpus // least
    return pool([replace(part, num_nodes=part.num_nodes // before * times) for part in cluster.parts], cluster.scale_out)


def with_links(
    cluster: Cluster, *, scale_up_bytes_per_s: float | None = None, scale_out_bytes_per_s: float | None = None,
    gpus_per_node: int | None = None, num_nodes: int | None = None, source: str = "stated by the user",
) -> Cluster:
    """Return the cluster with other links (bytes per second and accelerator, one direction) or another node."""
    up, out = cluster.scale_up, cluster.scale_out
    if scale_up_bytes_per_s is not None:
        up = replace(up, bytes_per_s=positive(scale_up_bytes_per_s, "scale_up"), source=source)
    if scale_out_bytes_per_s is not None:
        out = replace(out, bytes_per_s=positive(scale_out_bytes_per_s, "scale_out"), source=source)
    return replace(
        cluster, scale_up=up, scale_out=out,
        gpus_per_node=int(positive(gpus_per_node or cluster.gpus_per_node, "gpus_per_node")),
        num_nodes=int(positive(num_nodes or cluster.num_nodes, "num_nodes")),
    )
