"""The host beside accelerators: its memory, and what lies there of a training state: copies over the link, Adam on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from profiles.accelerators import CountFile, FigureFile, Strict, figure_of
from profiles.ops import Num

if TYPE_CHECKING:
    from profiles.hardware import Cluster

LINK_SHARE = 0.8
"""Share of a host link's rate that large copies of pinned memory reach: 12.3 of 15.75 GB/s over PCIe 3.0, 25 of 31.5 over
4.0 and 55 of 63 over 5.0 are what NVIDIA's bandwidthTest and nvbandwidth commonly show."""
UPDATE_SHARE = 0.46
"""Share of the host memory's rate that Adam on the CPU reaches: 30 bytes for each of 10 G parameters in 2.57 s on two Xeon
8168 of 256 GB/s (arXiv 2101.06840, table 4)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The host of some accelerators: bytes and bytes per second of its memory, shared by all of them.

    So many accelerators as `gpus_per_link` says share one link to the processor (behind a PCIe switch). `sources` maps each
    figure to its source.
    """

    memory_bytes: float
    memory_bytes_per_s: float
    sources: dict[str, str]
    gpus_per_link: int = 1


class HostFile(Strict):
    """The host of accelerators, as people write it."""

    memory: FigureFile = Field(description="of the whole host, like '2 TB'")
    memory_bandwidth: FigureFile = Field(description="of the whole host, like '614.4 GB/s'")
    gpus_per_link: CountFile | None = Field(default=None, description="accelerators that share one link to the processor")


def host_of(file: HostFile, origin: str) -> Host:
    """Return the host that a file states."""
    links = file.gpus_per_link
    sources = {"memory": file.memory.source, "memory_bandwidth": file.memory_bandwidth.source}
    return Host(
        memory_bytes=figure_of(file.memory, "bytes", f"{origin}.memory"),
        memory_bytes_per_s=figure_of(file.memory_bandwidth, "bytes_per_s", f"{origin}.memory_bandwidth"),
        gpus_per_link=links.value if links else 1, sources=sources | ({"gpus_per_link": links.source} if links else {}),
    )


def has_host(cluster: Cluster) -> bool:
    """Return whether a cluster states what offload needs to know: a host, and a link to it."""
    return cluster.host is not None and cluster.accelerator.host_link_bytes_per_s is not None


def gpus_of_host(cluster: Cluster) -> int:
    """Return the accelerators of a host: those of a node, where not stated otherwise."""
    return min(cluster.gpus_per_host or cluster.gpus_per_node, cluster.gpus_per_node)


def copy_s(cluster: Cluster, size_bytes: Num) -> Num:
    """Return the seconds of a copy between an accelerator and its host, while all others of the host copy as much; either
    direction alone, both run at once."""
    rate, host = cluster.accelerator.host_link_bytes_per_s, cluster.host
    assert rate is not None and host is not None
    sharing = min(host.gpus_per_link, gpus_of_host(cluster))
    return np.asarray(size_bytes) * sharing / (LINK_SHARE * rate)


def host_update_s(cluster: Cluster, moved_bytes: Num) -> Num:
    """Return the seconds in which the host updates an accelerator's share while it updates that of all its others."""
    assert cluster.host is not None
    return np.asarray(moved_bytes) * gpus_of_host(cluster) / (UPDATE_SHARE * cluster.host.memory_bytes_per_s)
