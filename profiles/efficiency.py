"""Efficiency files: how far from its roofline an accelerator runs, by kind of work. Fitted numbers with their source."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from profiles import files

Share = Annotated[float, Field(gt=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Spread = Annotated[float, Field(ge=0, lt=1)]


class _Law(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    source: str
    spread: Spread


class GemmLaw(_Law):
    """t = overhead + max(flop / (peak e), bytes / (bandwidth b)); the weight gradient's e is `weight_gradient_factor` lower."""

    efficiency: Share
    weight_gradient_factor: Share
    memory_efficiency: Share
    overhead_s: Seconds


class AttentionLaw(_Law):
    """t = overhead + flop / (peak e) (1 + half_length / seq_len); backward at `backward_speed` of that rate."""

    efficiency: Share
    half_length: Annotated[float, Field(ge=0)]
    overhead_s: Seconds
    backward_speed: Share


class MemoryLaw(_Law):
    """t = launches overhead + bytes / (bandwidth e)."""

    efficiency: Share
    overhead_s: Seconds


class Protocol(BaseModel):
    """t = fixed + step steps + S (copy_share F + (1 - copy_share) f) / B."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    fixed_s: Seconds
    step_s: Seconds
    bytes_per_s: Rate
    copy_share: Annotated[float, Field(ge=0, lt=1)]


class NvlsLaw(BaseModel):
    """All-reduce in the switch: t = fixed + S / B, from `min_group` ranks on."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    fixed_s: Seconds
    bytes_per_s: Rate
    min_group: int


class SendLaw(BaseModel):
    """t = fixed + S / B."""

    model_config = ConfigDict(extra="forbid", frozen=True)
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
    """Collectives over nodes: trees for all-reduce, rings for gather and scatter, the NIC's share of its rate."""

    nic_share: Share
    all_reduce_hop_s: Seconds
    all_reduce_ramp: Annotated[float, Field(ge=0)]
    ring_fixed_s: Seconds
    ring_step_s: Seconds
    ring_node_step_s: Seconds
    send_fixed_s: Seconds
    send_share: Share


class Efficiency(BaseModel):
    """All laws of one accelerator."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    accelerator: str
    gemm: GemmLaw
    attention: AttentionLaw
    memory_bound: MemoryLaw
    scale_up: ScaleUpLaw
    scale_out: ScaleOutLaw


def load_efficiency(accelerator: str) -> Efficiency:
    """Return the fitted laws of a catalogue accelerator."""
    return files.validate(Efficiency, files.catalog_mapping("efficiency", accelerator), f"efficiency/{accelerator}.yaml")
