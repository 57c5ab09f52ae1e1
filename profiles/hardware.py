"""Accelerators, links, clusters and prices: data-sheet figures, each with its source. Never measurements."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from profiles import files
from profiles.files import BadInput
from profiles.network import Network, NetworkFile, declared
from profiles.tables import MeasuredTable, read_table
from profiles.units import parse


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """One device: usable memory, bandwidth, dense peaks by dtype, power, and how many units share a kernel's tiles.

    `laws` names the efficiency file of the catalogue; `sources` maps each figure to its source. `num_sms` is 1 where
    work is not dealt out in waves (or nothing is known of it); `sustained` is the rate that a lower power limit leaves
    of the rate of the accelerator whose laws hold.
    """

    name: str
    title: str
    device: str = "cuda"
    year: int = 0
    memory_bytes: float
    memory_bytes_per_s: float
    peak_flop_per_s: dict[str, float]
    power_w: float | None = None
    sustained: float = 1.0
    num_sms: int = 1
    framework_bytes: float
    allocator_slack: float
    laws: str
    sources: dict[str, str]


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
    an operating system and fail together (0: all of them). `network` says what links ranks share beyond their own.
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
    network: Network = field(default_factory=Network)
    table: MeasuredTable | None = None

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


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FigureFile(_Strict):
    """A figure as people write it: a value with its unit, and its source."""

    value: str | float
    source: str


class CountFile(_Strict):
    """A count and its source."""

    value: PositiveInt
    source: str


class RatioFile(_Strict):
    """A ratio and its source."""

    value: Annotated[float, Field(ge=0, lt=1)]
    source: str


class AcceleratorFile(_Strict):
    """An accelerator file, as people write it."""

    name: str
    vendor: str
    year: int
    note: str = ""
    memory: FigureFile
    memory_bandwidth: FigureFile
    peak: dict[str, FigureFile]
    power: FigureFile | None = None
    sustained: RatioFile | None = None
    num_sms: CountFile | None = None
    framework_memory: FigureFile
    allocator_slack: RatioFile
    laws: str | None = None


class LinkFile(_Strict):
    """A link, as people write it."""

    name: str
    bandwidth: FigureFile
    latency: FigureFile | None = None
    share: RatioFile | None = None


class ClusterFile(_Strict):
    """A cluster file, as people write it; `num_nodes` may also be given on the command line."""

    name: str
    accelerator: str
    gpus_per_node: PositiveInt
    gpus_per_host: PositiveInt | None = None
    num_nodes: PositiveInt = 1
    note: str = ""
    scale_up: LinkFile
    scale_out: LinkFile
    topology: str = ""
    network: NetworkFile | None = None
    node_power: FigureFile | None = None


def load_accelerator(name: str) -> Accelerator:
    """Return an accelerator by catalogue name or from a YAML file."""
    path = Path(name)
    is_file = path.suffix in (".yaml", ".yml")
    data = files.read_mapping(path) if is_file else files.catalog_mapping("accelerators", name)
    origin = str(path) if is_file else f"accelerators/{name}.yaml"
    file = files.validate(AcceleratorFile, data, origin)

    def figure(f: FigureFile, dimension: str, field: str) -> float:
        value = parse(f.value, dimension, f"{origin}: {field}")
        if value == 0:
            raise BadInput(f"{origin}: {field}: must be more than zero (is {f.value!r})")
        return value

    sources = {
        "memory": file.memory.source, "memory_bandwidth": file.memory_bandwidth.source,
        "framework_memory": file.framework_memory.source, "allocator_slack": file.allocator_slack.source,
    } | {k: f.source for k, f in (("num_sms", file.num_sms), ("sustained", file.sustained)) if f}
    return Accelerator(
        name=path.stem if is_file else name, title=file.name, year=file.year,
        memory_bytes=figure(file.memory, "bytes", "memory"),
        memory_bytes_per_s=figure(file.memory_bandwidth, "bytes_per_s", "memory_bandwidth"),
        peak_flop_per_s={d: figure(f, "flop_per_s", f"peak.{d}") for d, f in file.peak.items()},
        power_w=figure(file.power, "w", "power") if file.power else None,
        sustained=_above_zero(file.sustained, f"{origin}: sustained"), num_sms=file.num_sms.value if file.num_sms else 1,
        framework_bytes=figure(file.framework_memory, "bytes", "framework_memory"),
        allocator_slack=file.allocator_slack.value,
        laws=file.laws or (path.stem if is_file else name),
        sources=sources | {f"peak.{d}": f.source for d, f in file.peak.items()},
    )


def load_cluster(text: str, profile: str | Path | None = None) -> Cluster:
    """Return a cluster: `dgx-h100:16` (catalogue name, nodes), a YAML file, or `local[:ranks]` with a profile file."""
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
    file = files.validate(ClusterFile, data, origin)

    def link(which: str, f: LinkFile) -> Link:
        value = parse(f.bandwidth.value, "bytes_per_s", f"{origin}: {which}.bandwidth")
        if value == 0:
            raise BadInput(f"{origin}: {which}.bandwidth: must be more than zero (is {f.bandwidth.value!r})")
        latency_s = parse(f.latency.value, "s", f"{origin}: {which}.latency") if f.latency else 0.0
        return Link(name=f.name, bytes_per_s=value, source=f.bandwidth.source, latency_s=latency_s,
                    share=_above_zero(f.share, f"{origin}: {which}.share"))

    if file.gpus_per_node % (file.gpus_per_host or file.gpus_per_node):
        raise BadInput(f"{origin}: gpus_per_host: {file.gpus_per_host} does not divide gpus_per_node {file.gpus_per_node}")

    return Cluster(
        name=path.stem if is_file else name, title=file.name, accelerator=load_accelerator(file.accelerator),
        gpus_per_node=file.gpus_per_node, gpus_per_host=file.gpus_per_host or 0,
        num_nodes=int(nodes) if nodes else file.num_nodes,
        scale_up=link("scale_up", file.scale_up), scale_out=link("scale_out", file.scale_out),
        node_power_w=parse(file.node_power.value, "w", f"{origin}: node_power") if file.node_power else None,
        network=declared(file.network, max(file.num_nodes, int(nodes or 0)), file.gpus_per_node, origin),
    )


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


def with_links(
    cluster: Cluster, *, scale_up_bytes_per_s: float | None = None, scale_out_bytes_per_s: float | None = None,
    gpus_per_node: int | None = None, num_nodes: int | None = None, source: str = "stated by the user",
) -> Cluster:
    """Return the cluster with other links (bytes per second and accelerator, one direction) or another node."""
    up, out = cluster.scale_up, cluster.scale_out
    if scale_up_bytes_per_s is not None:
        up = replace(up, bytes_per_s=_positive(scale_up_bytes_per_s, "scale_up"), source=source)
    if scale_out_bytes_per_s is not None:
        out = replace(out, bytes_per_s=_positive(scale_out_bytes_per_s, "scale_out"), source=source)
    return replace(
        cluster, scale_up=up, scale_out=out,
        gpus_per_node=int(_positive(gpus_per_node or cluster.gpus_per_node, "gpus_per_node")),
        num_nodes=int(_positive(num_nodes or cluster.num_nodes, "num_nodes")),
    )


def _above_zero(ratio: RatioFile | None, field: str) -> float:
    return 1.0 if ratio is None else _positive(ratio.value, field)


def _positive(value: float, field: str) -> float:
    if not value > 0:
        raise BadInput(f"{field}: must be more than zero (is {value!r})")
    return value


def prices() -> list[dict[str, Any]]:
    """Return the catalogue's price rows."""
    rows: list[dict[str, Any]] = files.catalog_mapping("", "prices")["prices"]
    return rows


def default_price(accelerator: Accelerator) -> Price | None:
    """Return the catalogue's default price of an accelerator, or None where none is known."""
    for row in prices():
        if row["accelerator"] == accelerator.name and row.get("default"):
            return Price(
                usd_per_gpu_hour=parse(row["price"], "usd_per_hour", "price"), term=row["term"],
                provider=f"{row['provider']} {row['sku']}".strip(), date=str(row["date"]), source=row["source"],
            )
    return None
