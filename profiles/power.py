"""What training draws and emits: node power, the building around it (PUE), the grid behind it; every figure with its source."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from profiles import files
from profiles.files import BadInput
from profiles.hardware import Cluster

Spread = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """A figure, how far off it may be (standard deviation of its logarithm), and where it was read."""

    name: str
    value: float
    source: str
    spread: float = 0.0


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _FactorFile(_Strict):
    value: Positive
    spread: Spread = 0.0
    source: str


class _PueFile(_FactorFile):
    name: str
    value: Annotated[float, Field(ge=1)]
    year: int


class _PowerFile(_Strict):
    load: _FactorFile
    node_over_accelerators: _FactorFile
    pue_default: str
    pue: list[_PueFile]


class _RegionFile(_Strict):
    name: str
    year: int
    g_per_kwh: Positive
    source: str = ""


class _GridFile(_Strict):
    default: str
    source: str
    regions: list[_RegionFile]


@cache
def _power() -> _PowerFile:
    return files.validate(_PowerFile, files.catalog_mapping("", "power"), "power.yaml")


@cache
def _grid() -> _GridFile:
    return files.validate(_GridFile, files.catalog_mapping("", "grid"), "grid.yaml")


def load_factor() -> Factor:
    """Return what a node draws in training over its maximum."""
    return _factor("load", _power().load)


def node_maximum_w(cluster: Cluster) -> Factor | None:
    """Return the maximum power of a node, from its data sheet or its accelerators'; None where neither is known."""
    if cluster.parts:
        found = [(node_maximum_w(part), part.num_nodes) for part in cluster.parts]
        known = [(most, num) for most, num in found if most is not None]
        if len(known) < len(found):
            return None
        return Factor(name="node", value=sum(most.value * num for most, num in known) / cluster.num_nodes,
                      source="mean over the pool: " + "; ".join(most.source for most, _ in known))
    if cluster.node_power_w is not None:
        return Factor(name="node", value=cluster.node_power_w, source=f"data sheet of {cluster.title}")
    if cluster.accelerator.power_w is None:
        return None
    over = _power().node_over_accelerators
    watts = cluster.accelerator.power_w * cluster.gpus_per_node * over.value
    return Factor(name="node", value=watts, source=f"{over.value:g} times the power of its accelerators: {over.source.strip()}")


def pue(given: str | float | None = None) -> Factor:
    """Return a power usage effectiveness by number, by name, or the catalogue's default."""
    if given is not None and _is_number(given):
        if not float(given) >= 1 or float(given) > 10:
            raise BadInput(f"pue: must be at least 1, like 1.2 (is {given})")
        return Factor(name="given", value=float(given), source="given")
    wanted = given or _power().pue_default
    for row in _power().pue:
        if row.name == wanted:
            return _factor(row.name, row)
    raise BadInput(f"pue: {wanted!r} is neither a number nor one of {', '.join(row.name for row in _power().pue)}")


def carbon_kg_per_kwh(region: str | float | None = None) -> Factor:
    """Return the grid's emissions by region, by number (g/kWh), or the catalogue's default."""
    if region is not None and _is_number(region):
        if not 0 <= float(region) < 1e5:
            raise BadInput(f"region: grams of CO2 for each kWh must be from 0, like 369 (is {region})")
        return Factor(name="given", value=float(region) / 1000.0, source="given")
    wanted = region or _grid().default
    for row in _grid().regions:
        if row.name == wanted:
            return Factor(name=f"{row.name}, {row.year}", value=row.g_per_kwh / 1000.0, source=row.source or _grid().source)
    raise BadInput(f"region: {wanted!r} is neither grams for each kWh nor one of {', '.join(regions())}")


def regions() -> tuple[str, ...]:
    """Return the regions that the catalogue knows."""
    return tuple(row.name for row in _grid().regions)


def _factor(name: str, row: _FactorFile) -> Factor:
    return Factor(name=name, value=row.value, source=row.source.strip(), spread=row.spread)


def _is_number(text: str | float) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
