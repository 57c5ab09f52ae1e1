"""Accelerators: data-sheet figures, each with its source. Never measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from profiles import files
from profiles.files import BadInput
from profiles.units import parse


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """One device: usable memory, bandwidth, dense peaks by dtype, power, and how many units share a kernel's tiles.

    `laws` names the efficiency file of the catalogue; `sources` maps each figure to its source. `num_sms` is 1 where
    work is not dealt out in waves (or nothing is known of it); `sustained` is the rate that a lower power limit leaves
    of the rate of the accelerator whose laws hold; `host_link_bytes_per_s` that of the link to its host, one direction, where
    it is known. `parts` are the accelerators that one stands for, and how many there are
    of each (`mixed_accelerator`).
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
    host_link_bytes_per_s: float | None = None
    framework_bytes: float
    allocator_slack: float
    laws: str
    sources: dict[str, str]
    parts: tuple[tuple[Accelerator, int], ...] = ()

    @property
    def kinds(self) -> tuple[Accelerator, ...]:
        """Return the accelerators that this one stands for; of any other itself."""
        return tuple(part for part, _ in self.parts) or (self,)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FigureFile(Strict):
    """A figure as people write it: a value with its unit, and its source."""

    value: str | float = Field(description="the number and its unit, like '80 GiB'")
    source: str = Field(description="document, repository or 'assumption'")


class CountFile(Strict):
    """A count and its source."""

    value: PositiveInt
    source: str


class RatioFile(Strict):
    """A ratio and its source."""

    value: Annotated[float, Field(ge=0, lt=1)]
    source: str


class AcceleratorFile(Strict):
    """An accelerator file, as people write it."""

    name: str = Field(description="as it is shown")
    vendor: str
    year: int = Field(description="of its launch")
    note: str = ""
    memory: FigureFile = Field(description="what a job can see, like '79.6 GiB'")
    memory_bandwidth: FigureFile = Field(description="like '3350 GB/s'")
    peak: dict[str, FigureFile] = Field(description="dense peak by type (bf16, fp8, ...), like '989.4 TFLOP/s'")
    power: FigureFile | None = Field(default=None, description="maximum of the data sheet, like '700 W'")
    sustained: RatioFile | None = Field(
        default=None, description="rate that a lower power limit leaves, over that of the accelerator whose laws hold")
    num_sms: CountFile | None = Field(default=None, description="units that work is dealt out to in waves; absent: no waves")
    host_link: FigureFile | None = Field(default=None, description="link to the host, one direction, like '63 GB/s'")
    framework_memory: FigureFile = Field(description="what context and libraries hold, like '1.5 GiB'")
    allocator_slack: RatioFile = Field(description="share of the caching allocator's blocks that is held and not used")
    laws: str | None = Field(default=None, description="the accelerator whose measured laws hold; absent: its own")


def load_accelerator(name: str) -> Accelerator:
    """Return an accelerator by catalogue name or from a YAML file."""
    path = Path(name)
    is_file = path.suffix in (".yaml", ".yml")
    data = files.read_mapping(path) if is_file else files.catalog_mapping("accelerators", name)
    origin = str(path) if is_file else f"accelerators/{name}.yaml"
    file = files.validate(AcceleratorFile, data, origin)

    def figure(f: FigureFile, dimension: str, field: str) -> float:
        return figure_of(f, dimension, f"{origin}: {field}")

    sources = {
        "memory": file.memory.source, "memory_bandwidth": file.memory_bandwidth.source,
        "framework_memory": file.framework_memory.source, "allocator_slack": file.allocator_slack.source,
    } | {k: f.source for k, f in (("num_sms", file.num_sms), ("sustained", file.sustained), ("host_link", file.host_link)) if f}
    return Accelerator(
        name=path.stem if is_file else name, title=file.name, year=file.year,
        memory_bytes=figure(file.memory, "bytes", "memory"),
        memory_bytes_per_s=figure(file.memory_bandwidth, "bytes_per_s", "memory_bandwidth"),
        peak_flop_per_s={d: figure(f, "flop_per_s", f"peak.{d}") for d, f in file.peak.items()},
        power_w=figure(file.power, "w", "power") if file.power else None,
        sustained=above_zero(file.sustained, f"{origin}: sustained"), num_sms=file.num_sms.value if file.num_sms else 1,
        host_link_bytes_per_s=figure(file.host_link, "bytes_per_s", "host_link") if file.host_link else None,
        framework_bytes=figure(file.framework_memory, "bytes", "framework_memory"),
        allocator_slack=file.allocator_slack.value,
        laws=file.laws or (path.stem if is_file else name),
        sources=sources | {f"peak.{d}": f.source for d, f in file.peak.items()},
    )


def mixed_accelerator(parts: Sequence[tuple[Accelerator, int]]) -> Accelerator:
    """Return an accelerator that stands for unlike ones, so many of each.

    Peaks, bandwidth and power are means, so that times their number they are the sums of all; a type has a peak where all
    have one. Memory is the smallest, what the framework holds the largest. It follows no law of its own.
    """
    kinds = [part for part, _ in parts]

    def mean(values: Sequence[float]) -> float:
        return mean_of([(value, num) for value, (_, num) in zip(values, parts, strict=True)])

    powers = [kind.power_w for kind in kinds if kind.power_w is not None]
    common = [dtype for dtype in kinds[0].peak_flop_per_s if all(dtype in kind.peak_flop_per_s for kind in kinds)]
    return Accelerator(
        name="+".join(kind.name for kind in kinds), title=" + ".join(kind.title for kind in kinds), device=kinds[0].device,
        year=max(kind.year for kind in kinds), memory_bytes=min(kind.memory_bytes for kind in kinds),
        memory_bytes_per_s=mean([kind.memory_bytes_per_s for kind in kinds]),
        peak_flop_per_s={dtype: mean([kind.peak_flop_per_s[dtype] for kind in kinds]) for dtype in common},
        power_w=mean(powers) if len(powers) == len(kinds) else None,
        framework_bytes=max(kind.framework_bytes for kind in kinds),
        allocator_slack=max(kind.allocator_slack for kind in kinds), laws="",
        sources={f"{kind.title}: {what}": source for kind in kinds for what, source in kind.sources.items()},
        parts=tuple(parts),
    )


def mean_memory(accelerator: Accelerator) -> float:
    """Return the bytes of an accelerator; of those that it stands for the mean."""
    return mean_of([(kind.memory_bytes, num) for kind, num in accelerator.parts or ((accelerator, 1),)])


def mean_of(values: Sequence[tuple[float, int]]) -> float:
    """Return the mean of values, each so many times; of equal ones that very value."""
    first, total = values[0][0], sum(num for _, num in values)
    return first + sum((value - first) * num for value, num in values) / total


def figure_of(file: FigureFile, dimension: str, field: str) -> float:
    """Return a figure that is more than zero, in SI, or its fault as a `BadInput`."""
    value = parse(file.value, dimension, field)
    if value == 0:
        raise BadInput(f"{field}: must be more than zero (is {file.value!r})")
    return value


def above_zero(ratio: RatioFile | None, field: str) -> float:
    """Return a ratio, 1 where none is given, or its fault as a `BadInput`."""
    return 1.0 if ratio is None else positive(ratio.value, field)


def positive(value: float, field: str) -> float:
    """Return a value that is more than zero, or its fault as a `BadInput`."""
    if not value > 0:
        raise BadInput(f"{field}: must be more than zero (is {value!r})")
    return value
