"""Non-blocking networks: NVSwitch, or a fat tree of full bisection; nothing is shared but the ports themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from profiles import files
from simulator.networks.topology import Index, Paths, Ports, Reals, joined


class NonBlockingFile(BaseModel):
    """A non-blocking network, as people write it."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["non_blocking"] = "non_blocking"
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NonBlocking:
    """No links beside the ports."""

    capacity: Reals = field(default_factory=lambda: np.empty(0))

    def paths(self, src: Index, dst: Index) -> Paths:
        """Return no links at all."""
        return joined([], [])

    def name(self, link: int) -> str:
        """Return nothing: there is no link to name."""
        raise IndexError(link)


def non_blocking(section: Mapping[str, Any], ports: Ports, origin: str) -> NonBlocking:
    """Return the topology of a section of that kind, or of an empty one."""
    files.validate(NonBlockingFile, dict(section), origin)
    return NonBlocking()
