"""The wiring of a cluster as its file declares it; what links that makes is built in `simulator/networks`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from profiles.files import BadInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """The wiring of a cluster's two networks: inside a node (scale-up) and between nodes (scale-out).

    `num_nodes` of `gpus_per_node` accelerators are wired, of which a job may use fewer (0: as many as it uses);
    `gpus_per_nic` accelerators share a NIC. A network's fields are those of the topology that its `kind` names; none at
    all is a non-blocking one, whose links no group of ranks ever shares. `origin` is named in errors.
    """

    num_nodes: int = 0
    gpus_per_node: int = 0
    gpus_per_nic: int = 1
    scale_up: Mapping[str, Any] = field(default_factory=dict)
    scale_out: Mapping[str, Any] = field(default_factory=dict)
    origin: str = field(default="network", repr=False)

    @property
    def is_non_blocking(self) -> bool:
        """Return whether nothing is declared that ranks could share."""
        return not self.scale_up and not self.scale_out


class NetworkFile(BaseModel):
    """The `network` section of a cluster file, as people write it."""

    model_config = ConfigDict(extra="forbid")
    nics_per_node: PositiveInt | None = Field(default=None, description="absent: one for each accelerator")
    scale_up: dict[str, Any] = Field(default={}, description="inside a node: a network kind, below")
    scale_out: dict[str, Any] = Field(default={}, description="between nodes: a network kind, below")


def declared(file: NetworkFile | None, num_nodes: int, gpus_per_node: int, origin: str) -> Network:
    """Return the network that a file declares; NICs are dealt evenly to accelerators, several to one count as one."""
    if file is None:
        return Network()
    nics = file.nics_per_node or gpus_per_node
    if gpus_per_node % nics and nics % gpus_per_node:
        raise BadInput(f"{origin}: network.nics_per_node: {nics} NICs are not dealt evenly to {gpus_per_node} accelerators")
    return Network(num_nodes=num_nodes, gpus_per_node=gpus_per_node, gpus_per_nic=max(1, gpus_per_node // nics),
                   scale_up=file.scale_up, scale_out=file.scale_out, origin=f"{origin}: network")
