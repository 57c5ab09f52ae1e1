"""What the training software does beside the split: kernels, overlap, what it keeps and in which type.

An explicit input: every difference between frameworks that changes time or memory is a field here. The catalogue has
one file for each framework and generation, with where each value was read.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from profiles import files

MODES = ("eager", "fused")


@dataclass(frozen=True, slots=True, kw_only=True)
class Software:
    """How one framework generation computes a step; the defaults are those of Headway's own torch engine.

    Computation. `kernels`: eager, or fused pointwise chains. `attention`: flash1, flash2, flash3 (the best kernel
    of its accelerator) or unfused. `fused_projections`: one matmul for q, k, v and one for both projections up. `dropout`:
    masks on attention and residual. `host_launch_s`: seconds in which the host launches one kernel; a pass takes no
    less than its launches (0: captured in a graph). `step_s`: seconds of a step that no kernel sees.

    Overlap. `grad_reduce`, `param_gather`: the collectives over dp run beside the passes. `tp_backward`: in backward
    the collectives of column-parallel maps run beside the matmul of the weight gradient. `tp_overlap`: matmuls and
    their collectives are pipelined in pieces. `pp_overlap`: sends run beside other micro-batches. `ep_overlap`: the
    exchange of tokens runs beside another micro-batch; `sends_once`: a token travels once to a rank, however many of
    its experts are there.

    Types. `fused_accumulation`: the matmul of a weight gradient adds to the sum itself, instead of a kernel behind it.
    `grad_bytes`: an accumulated gradient; `reduce_bytes`: one on the wire; `gather_bytes`: a gathered weight
    (0: as computed with); `master_bytes`: a master weight of mixed precision (0: none, the working weights are
    updated); `moment_bytes`: both moments of AdamW.

    Recomputation and memory. `selective`: what selective recomputation repeats: attention (scores between the
    projections, Korthikanti et al.), pointwise (all but matmuls and attention) or alternate (every other matmul, too).
    `early_stop`: full recomputation stops at the last tensor that backward needs. `pipe_buffers`: sent and received
    tensors of a pipeline stay until the step ends. `keeps_gathered`: a tensor gathered over tp is kept for backward,
    not gathered again. `late_gradients`: gradients are allocated in backward, while activations go, and freed after
    the step (Megatron keeps one buffer for good). `fp32_logits`: the loss copies the logits to fp32 instead of working
    in place.
    """

    name: str = "torch"
    framework: str = "Headway's torch engine"
    year: int = 2026
    kernels: str = "eager"
    attention: str = "flash3"
    fused_projections: bool = False
    dropout: bool = False
    host_launch_s: float = 0.0
    step_s: float = 0.0
    grad_reduce: bool = True
    param_gather: bool = False
    tp_backward: bool = False
    tp_overlap: bool = False
    pp_overlap: bool = True
    ep_overlap: bool = False
    sends_once: bool = False
    fused_accumulation: bool = False
    grad_bytes: float = 4.0
    reduce_bytes: float = 4.0
    gather_bytes: float = 0.0
    master_bytes: float = 4.0
    moment_bytes: float = 8.0
    selective: str = "pointwise"
    early_stop: bool = True
    pipe_buffers: bool = True
    keeps_gathered: bool = True
    late_gradients: bool = True
    fp32_logits: bool = True
    source: str = "measured on Headway's own engine"


TORCH = Software()
"""Headway's own engine, with eager kernels."""

_Positive = Annotated[float, Field(ge=0)]


class SoftwareFile(BaseModel):
    """A software file, as people write it; what is not named is as in Headway's own engine."""

    model_config = ConfigDict(extra="forbid")
    framework: str
    year: int
    kernels: Literal["eager", "fused"]
    attention: Literal["flash1", "flash2", "flash3", "unfused"]
    fused_projections: bool = False
    dropout: bool = False
    host_launch_s: _Positive = 0.0
    step_s: _Positive = 0.0
    grad_reduce: bool = True
    param_gather: bool = False
    tp_backward: bool = False
    tp_overlap: bool = False
    pp_overlap: bool = True
    ep_overlap: bool = False
    sends_once: bool = False
    fused_accumulation: bool = False
    grad_bytes: _Positive = 4.0
    reduce_bytes: _Positive = 4.0
    gather_bytes: _Positive = 0.0
    master_bytes: _Positive = 4.0
    moment_bytes: _Positive = 8.0
    selective: Literal["attention", "pointwise", "alternate"] = "pointwise"
    early_stop: bool = True
    pipe_buffers: bool = True
    keeps_gathered: bool = True
    late_gradients: bool = True
    fp32_logits: bool = True
    source: str


def load_software(name: str) -> Software:
    """Return a framework generation by catalogue name or from a YAML file."""
    path = Path(name)
    is_file = path.suffix in (".yaml", ".yml")
    data = files.read_mapping(path) if is_file else files.catalog_mapping("software", name)
    origin = str(path) if is_file else f"software/{name}.yaml"
    file = files.validate(SoftwareFile, data, origin)
    return Software(name=path.stem if is_file else name, **file.model_dump())


def software_from(data: Any, origin: str) -> Software:
    """Return the software that a plan file states: a catalogue name, or a mapping with every field."""
    if isinstance(data, str):
        return load_software(data)
    if not isinstance(data, dict):
        raise files.BadInput(f"{origin}: software: must be a catalogue name or a mapping (is {data!r})")
    known = {f.name for f in fields(Software)}
    for field in data:
        if field not in known:
            raise files.BadInput(f"{origin}: software.{field}: is not known; known are {', '.join(sorted(known))}")
    own = {k: v for k, v in data.items() if k != "name"}
    whole = {f.name: f.default for f in fields(Software) if f.name != "name"} | own
    file = files.validate(SoftwareFile, whole, f"{origin}: software")
    return Software(name=str(data.get("name", "given")), **file.model_dump())
