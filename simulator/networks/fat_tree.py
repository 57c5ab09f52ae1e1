"""Fat trees (Clos networks): leaf switches, pods and whatever is above, each level with its oversubscription.

All parallel links of a switch, or of a pod of them, to the level above are one: load balancing over them is taken to be
perfect (adaptive routing, packet spraying), which hashed flows fall short of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from profiles import files
from profiles.files import BadInput
from simulator.networks.topology import Index, Paths, Ports, Reals, joined


class LevelFile(BaseModel):
    """A level as people write it: what joins so many nodes, and its capacity down over its capacity up.

    With `rails` there is one for each NIC of a node (rail-optimised): NIC i of every node meets at switch i.
    """

    model_config = ConfigDict(extra="forbid")
    switch: str = Field(description="what one is called (leaf, pod)")
    nodes: PositiveInt = Field(description="nodes below one of them")
    oversubscription: Annotated[float, Field(gt=0, allow_inf_nan=False, description="capacity down over capacity up")] = 1.0
    rails: bool = Field(default=False, description="one switch for each NIC of a node")


class FatTreeFile(BaseModel):
    """A fat tree as people write it, from the leaves up; above the last level all is non-blocking."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["fat_tree"]
    levels: Annotated[list[LevelFile], Field(min_length=1, description="from the leaves up")]
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """Switches of a level, each of `nodes` nodes and of all rails or of one; links from `first`, up and down in turn."""

    name: str
    nodes: int
    rails: int
    first: int

    def switch(self, port: Index, rails: int) -> Index:
        """Return the switches that ports are below."""
        below: Index = port // rails // self.nodes * self.rails + port % rails % self.rails
        return below


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FatTree:
    """Levels of switches over nodes of `rails` NICs: a flow climbs until one switch is above both its ends."""

    rails: int
    levels: tuple[Level, ...]
    capacity: Reals

    def paths(self, src: Index, dst: Index) -> Paths:
        """Return the way up from every source and the way down to its destination."""
        flows: list[Index] = []
        links: list[Index] = []
        for level in self.levels:
            a, b = level.switch(src, self.rails), level.switch(dst, self.rails)
            apart = np.flatnonzero(a != b)
            flows += [apart, apart]
            links += [level.first + 2 * a[apart], level.first + 2 * b[apart] + 1]
        return joined(flows, links)

    def name(self, link: int) -> str:
        """Return the switch and the direction: 'pod 3 up', 'leaf 2 rail 5 down'."""
        level = next(level for level in reversed(self.levels) if level.first <= link)
        switch, down = divmod(link - level.first, 2)
        unit, rail = divmod(switch, level.rails)
        return f"{level.name} {unit}{f' rail {rail}' if level.rails > 1 else ''} {'down' if down else 'up'}"


def fat_tree(section: Mapping[str, Any], ports: Ports, origin: str) -> FatTree:
    """Return the fat tree of a section: a level's capacity up is that of what it joins over its oversubscription."""
    file = files.validate(FatTreeFile, dict(section), origin)
    for i, (below, above) in enumerate(pairwise(file.levels), start=1):
        if above.nodes % below.nodes or above.nodes == below.nodes:
            raise BadInput(f"{origin}.levels.{i}.nodes: {above.nodes} must be a multiple, twice or more, of the {below.nodes} "
                           f"of {below.switch!r} below it")
        if above.rails and not below.rails:
            raise BadInput(f"{origin}.levels.{i}.rails: {above.switch!r} is of one rail, {below.switch!r} below it joins all")
    levels: list[Level] = []
    capacity: list[Reals] = []
    # what enters a level from one node of one rail
    each, first = ports.bytes_per_s, 0
    for level in file.levels:
        rails = ports.rails if level.rails else 1
        each /= level.oversubscription
        num = -(-ports.num_nodes // level.nodes) * rails
        levels.append(Level(name=level.switch, nodes=level.nodes, rails=rails, first=first))
        capacity.append(np.full(2 * num, each * level.nodes * ports.rails / rails))
        first += 2 * num
    return FatTree(rails=ports.rails, levels=tuple(levels), capacity=np.concatenate(capacity))
