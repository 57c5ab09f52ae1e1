"""Efficiency files: how far from its roofline an accelerator runs, by kind of work. Fitted numbers with their source.

A section may be the name of another file, whose section then holds: siblings share what was measured on one.
The formulas are in `laws.py`.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from profiles import files
from profiles.files import BadInput

Share = Annotated[float, Field(gt=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Spread = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
AtLeastZero = Annotated[float, Field(ge=0)]


class _Numbers(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Law(_Numbers):
    source: str
    spread: Spread


class GemmLaw(_Law):
    """Matmuls: rates reached in a burst over the peak, by dtype; `sustained` is what power leaves of them for longer.

    `half_depth` (of k, at 16 bits) and `wave_share` (0: waves of tiles do not matter, 1: a part wave costs a whole
    one) say how rates fall for small shapes; the factors are rates of weight gradients and of grouped matmuls over
    those of plain ones. `spread` is the standard deviation of the logarithm of what the fit leaves.
    """

    efficiency: dict[str, Share]
    sustained: Share
    overhead_s: Seconds
    memory_efficiency: Share
    half_depth: AtLeastZero = 0.0
    wave_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    weight_gradient_factor: Share
    grouped_factor: Share = 1.0


class AttentionLaw(_Law):
    """Fused attention: the rate over the peak that long sequences and wide heads tend to, and how it falls below.

    `half_head_dim` and `half_length` halve it, idle units slow it by a power; `backward_speed` is backward's rate
    over forward's; `versions` are rates of other kernels over the fitted one.
    """

    efficiency: Share
    sustained: Share = 1.0
    overhead_s: Seconds
    half_head_dim: AtLeastZero = 0.0
    half_length: AtLeastZero
    occupancy_power: AtLeastZero = 0.0
    backward_speed: Share
    versions: dict[str, Share] = {}


class MemoryLaw(_Law):
    """Kernels that memory binds: the share of the bandwidth by kind ('rms_norm') or kind and pass ('rms_norm.B')."""

    efficiency: Share
    overhead_s: Seconds
    kinds: dict[str, Share] = {}


class ScanLaw(_Law):
    """Chunked recurrences: rates over the peak and over the bandwidth."""

    efficiency: Share
    memory_efficiency: Share
    overhead_s: Seconds


class Protocol(_Numbers):
    """t = fixed + step steps + S (copy_share F + (1 - copy_share) f) / B."""

    fixed_s: Seconds
    step_s: Seconds
    bytes_per_s: Rate
    copy_share: Annotated[float, Field(ge=0, lt=1)]


class NvlsLaw(_Numbers):
    """All-reduce in the switch: t = fixed + S / B, from `min_group` ranks on."""

    fixed_s: Seconds
    bytes_per_s: Rate
    min_group: int


class SendLaw(_Numbers):
    """t = fixed + S / B."""

    fixed_s: Seconds
    bytes_per_s: Rate


class ScaleUpLaw(_Law):
    """Collectives inside a node: the faster of the protocols; rates hold at `reference_bytes_per_s` of the link."""

    reference_bytes_per_s: Rate
    protocols: dict[str, tuple[Protocol, ...]]
    send: SendLaw
    send_note: str = ""
    nvls: NvlsLaw | None = None


class ScaleOutLaw(_Law):
    """Collectives over nodes: trees for all-reduce, rings for gather and scatter, the NIC's share of its rate.

    t = hop log2(nodes) + w + ramp sqrt(w hop log2(nodes)) of a tree, fixed + step (n - nodes) + node_step (nodes - 1) + w
    of a ring, w the seconds on the wire.
    """

    nic_share: Share
    all_reduce_hop_s: Seconds
    all_reduce_ramp: AtLeastZero
    ring_fixed_s: Seconds
    ring_step_s: Seconds
    ring_node_step_s: Seconds
    send_fixed_s: Seconds
    send_share: Share


class Efficiency(_Numbers):
    """All laws of one accelerator, as kernels run alone; what a training run adds is in `calibration.py`."""

    accelerator: str
    gemm: GemmLaw
    attention: AttentionLaw
    scan: ScanLaw
    memory_bound: MemoryLaw
    scale_up: ScaleUpLaw
    scale_out: ScaleOutLaw


@cache
def load_efficiency(accelerator: str) -> Efficiency:
    """Return the fitted laws of a catalogue accelerator."""
    return files.validate(Efficiency, _sections(accelerator, ()), f"efficiency/{accelerator}.yaml")


def _sections(name: str, lenders: tuple[str, ...]) -> dict[str, Any]:
    data = files.catalog_mapping("efficiency", name)
    if name in lenders:
        raise BadInput(f"efficiency/{name}.yaml: borrows from itself by way of {', '.join(lenders)}")
    return {
        field: _sections(value, (*lenders, name)).get(field, value)
        if isinstance(value, str) and field != "accelerator" else value
        for field, value in data.items()
    }


def with_law_number(laws: Efficiency, path: str, value: Any) -> Efficiency:
    """Return the laws with one number replaced, named like 'gemm.efficiency.bf16'; an array prices a batch at once."""
    replaced: Efficiency = _with_number(laws, path.split("."), value, path)
    return replaced


def _with_number(holder: Any, keys: list[str], value: Any, path: str) -> Any:
    known = holder if isinstance(holder, dict) else type(holder).model_fields
    if keys[0] not in known:
        raise BadInput(f"efficiency: {path!r} names no number; known here: {', '.join(known)}")
    old = holder[keys[0]] if isinstance(holder, dict) else getattr(holder, keys[0])
    new = _with_number(old, keys[1:], value, path) if len(keys) > 1 else value
    return holder | {keys[0]: new} if isinstance(holder, dict) else holder.model_copy(update={keys[0]: new})


def with_attention_version(laws: Efficiency, version: str) -> Efficiency:
    """Return the laws with an attention kernel of another version ('fa2' where 'fa3' was fitted), by its stated factor."""
    if version not in laws.attention.versions:
        known = ", ".join(laws.attention.versions)
        raise BadInput(f"attention: {version!r} has no factor for {laws.accelerator}; known: {known}")
    factor = laws.attention.versions[version]
    return with_law_number(laws, "attention.efficiency", laws.attention.efficiency * factor)
