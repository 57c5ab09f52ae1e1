"""What the training software does beside the split: kernels, overlap, what it keeps and in which type.

An explicit input: every difference between frameworks that changes time or memory is a field here. The catalogue has
one file for each framework and generation, with where each value was read.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import numpy as np
from pydantic import Field, GetPydanticSchema, create_model
from pydantic_core import core_schema

from profiles import files
from profiles.ops import ELEMENT_BYTES, Num

MODES = ("eager", "fused")
REPEATED = ("core_attn", "layernorm", "mla_up_proj", "moe_act", "shared_experts", "moe", "mlp")
"""Modules that selective recomputation can repeat (Megatron-LM arguments.py, --recompute-modules)."""

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_MODULE = "|".join(REPEATED)
OFFLOADS = "moments|states|optimizer"
Modules = Annotated[str, Field(pattern=f"^(({_MODULE})(,({_MODULE}))*)?$")]
"""Names out of `REPEATED` with commas between them, or nothing."""
Offloads = Annotated[str, Field(pattern=f"^(({OFFLOADS})(,({OFFLOADS}))*)?$")]
"""Ways to offload (`strategy.OFFLOAD`) with commas between them, or nothing."""


def one_of(*words: str) -> GetPydanticSchema:
    """Return the check that a string in a file is one of some words."""
    return GetPydanticSchema(lambda _type, _handler: core_schema.literal_schema(list(words)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Software:
    """How one framework generation computes a step; the defaults are those of Headway's own torch engine.

    `name`, `framework`, `year`: which generation; `source`: where its values were read.

    Computation. `kernels`: eager, or fused pointwise chains. `attention`: flash1, flash2, flash3 (the best kernel
    of its accelerator) or unfused. `fused_projections`: one matmul for q, k, v and one for both projections up. `dropout`:
    masks on attention and residual. `expert_kernels`: loop (a matmul and a cast for each expert, launched one by one),
    grouped (one kernel for all experts) or fused (activation and casts too are parts of it). `step_s`: seconds of a
    step that no kernel sees.

    Host. `host_launch_s`: seconds in which the host launches one kernel; a pass takes no less than its launches. `graphs`:
    what CUDA graphs launch at once: none, router (the choice of experts), dense (all but the exchange and the matmuls of
    experts, whose sizes the host waits to learn) or all.

    Overlap. `grad_reduce`, `param_gather`: the collectives over dp run beside the passes. `tp_backward`: in backward
    the collectives of column-parallel maps run beside the matmul of the weight gradient. `tp_overlap`: matmuls and
    their collectives are pipelined in pieces. `pp_overlap`: sends run beside other micro-batches. `ep_overlap`: the
    exchange of tokens runs beside another micro-batch; `sends_once`: a token travels once to a node and once to a rank,
    however many of its experts are there.

    Types. `fused_accumulation`: the matmul of a weight gradient adds to the sum itself, instead of a kernel behind it.
    `grad_bytes`: an accumulated gradient; `reduce_bytes`: one on the wire; `gather_bytes`: a gathered weight
    (0: as computed with); `master_bytes`: a master weight of mixed precision (0: none, the working weights are
    updated); `moment_bytes`: both moments of AdamW; `frozen_bytes`: a layer's weight that is not trained, where matmuls are
    narrower than the residual stream (0: as the residual stream).

    Recomputation and memory. `selective`: what selective recomputation repeats: attention (scores between the
    projections, Korthikanti et al.), pointwise (all but matmuls and attention) or alternate (every other matmul, too);
    `repeats`: modules that it repeats instead, with commas between them. `early_stop`: full recomputation stops at
    the last tensor that backward needs. `pipe_buffers`: sent and received tensors of a pipeline stay until the step
    ends. `keeps_graph`: where backward is split, its first half leaves the whole graph to the second, which repeats full
    recomputation (torch's runtime: stage_backward_input and stage_backward_weight), instead of what weight gradients read.
    `keeps_gathered`: a tensor gathered over tp is kept for backward, not gathered again. `late_gradients`:
    gradients are allocated in backward, while activations go, and freed after the step (Megatron keeps one buffer for
    good). `fp32_logits`: the loss copies the logits to fp32 instead of working in place. `logit_bytes`: what is then alive
    for each logit at the loss's peak: logits, copies and gradients (12: torch's log-softmax, its result and two
    gradients in fp32). `parallel_logit_bytes`: the same where tp splits the vocabulary (0: the same). `compiled_logit_bytes`:
    the same under fused kernels (0: the same). `keeps_sent`: what a stage has sent stays until its micro-batch comes back.
    `attention_copies`: so many tensors as wide as attention's output are kept in other layouts. `fp32_norms`: eager
    norms are written out in fp32. `narrow_activations`: the input of a feed-forward activation is kept as matmuls are
    computed. `keeps_low_gradients`: gradients as computed stay beside wider sums of them. `update_bytes`: what the step
    makes of each updated parameter's gradient where it is narrower than fp32: flat and fp32 copies, the optimizer's
    temporaries. `bucket_bytes`: flat buffers of collectives.

    Offload to the host. `offloads`: which ways the framework has (`strategy.OFFLOAD`), with commas between them.
    `offloads_with`: what lies there with the optimizer's states: nothing more (states), each step's sums of gradients too
    (gradients; under ZeRO-2 and 3 without a pipeline, else they wait on the device), or these and the sharded weights, which
    are copied in front of each gather (weights). `offload_overlap`: copies and the update follow one another (none), run
    beside one another part by part (parts), or gradients travel beside backward (backward).

    Pipeline. `layer_split`: stages get layers evenly (even), with those left over on the last ones (late), or by cost,
    the head counted.
    """

    name: str = "torch"
    framework: str = "Headway's torch engine"
    year: int = 2026
    kernels: Annotated[str, one_of(*MODES)] = "eager"
    attention: Annotated[str, one_of("flash1", "flash2", "flash3", "unfused")] = "flash3"
    fused_projections: bool = False
    dropout: bool = False
    expert_kernels: Annotated[str, one_of("loop", "grouped", "fused")] = "grouped"
    host_launch_s: NonNegative = 0.0
    graphs: Annotated[str, one_of("none", "router", "dense", "all")] = "none"
    step_s: NonNegative = 0.0
    grad_reduce: bool = True
    param_gather: bool = False
    tp_backward: bool = False
    tp_overlap: bool = False
    pp_overlap: bool = True
    ep_overlap: bool = False
    sends_once: bool = False
    fused_accumulation: bool = False
    grad_bytes: NonNegative = 4.0
    reduce_bytes: NonNegative = 4.0
    gather_bytes: NonNegative = 0.0
    master_bytes: NonNegative = 4.0
    moment_bytes: NonNegative = 8.0
    frozen_bytes: NonNegative = 0.0
    selective: Annotated[str, one_of("attention", "pointwise", "alternate")] = "pointwise"
    repeats: Modules = ""
    early_stop: bool = True
    pipe_buffers: bool = True
    keeps_graph: bool = True
    keeps_gathered: bool = True
    late_gradients: bool = True
    fp32_logits: bool = True
    logit_bytes: NonNegative = 12.0
    parallel_logit_bytes: NonNegative = 0.0
    compiled_logit_bytes: NonNegative = 0.0
    layer_split: Annotated[str, one_of("even", "late", "cost")] = "even"
    keeps_sent: bool = False
    attention_copies: NonNegative = 0.0
    fp32_norms: bool = False
    narrow_activations: bool = False
    keeps_low_gradients: bool = False
    update_bytes: NonNegative = 0.0
    bucket_bytes: NonNegative = 0.0
    offloads: Offloads = "optimizer"
    offloads_with: Annotated[str, one_of("states", "gradients", "weights")] = "weights"
    offload_overlap: Annotated[str, one_of("none", "parts", "backward")] = "backward"
    source: str = "measured on Headway's own engine"

    def bytes_per_logit(self, dtype: str, tp: Num) -> Num:
        """Return the bytes alive for each logit at the peak of the loss."""
        if not self.fp32_logits:
            return float(ELEMENT_BYTES[dtype])
        if self.kernels == "fused" and self.compiled_logit_bytes:
            return self.compiled_logit_bytes
        return np.where(np.asarray(tp) > 1, self.parallel_logit_bytes or self.logit_bytes, self.logit_bytes)


TORCH = Software()
"""Headway's own engine, with eager kernels."""

STATED = ("framework", "year", "kernels", "attention", "source")
"""What a software file must say; the rest is as in Headway's own engine where it does not."""


def load_software(name: str, precision: str = "") -> Software:
    """Return a framework generation by catalogue name or from a YAML file, as it is where that precision is trained in.

    A file has the fields of `Software`; its `precisions` says which are different where.
    """
    path = Path(name)
    is_file = path.suffix in (".yaml", ".yml")
    data = files.read_mapping(path) if is_file else files.catalog_mapping("software", name)
    origin = str(path) if is_file else f"software/{name}.yaml"
    precisions = data.pop("precisions", {})
    if not isinstance(precisions, dict) or not all(isinstance(own, dict) for own in precisions.values()):
        raise files.BadInput(f"{origin}: precisions: must say for a precision which fields differ (is {precisions!r})")
    for field in STATED:
        if field not in data:
            raise files.BadInput(f"{origin}: {field}: is missing")
    own = precisions.get(precision, {})
    _check_names(data, f"{origin}: ")
    _check_names(own, f"{origin}: precisions.{precision}.")
    named = {"name": path.stem if is_file else name}
    software = _checked(named | data, origin)
    return _checked(named | data | own, f"{origin}: precisions.{precision}") if own else software


def software_from(data: Any, origin: str) -> Software:
    """Return the software that a plan file states: `torch`, a catalogue name, or a mapping with what differs from `TORCH`."""
    if isinstance(data, str):
        return TORCH if data == TORCH.name else load_software(data)
    if not isinstance(data, dict):
        raise files.BadInput(f"{origin}: software: must be a catalogue name or a mapping (is {data!r})")
    _check_names(data, f"{origin}: software.")
    return _checked({"name": "given"} | data, f"{origin}: software")


_TYPES = get_type_hints(Software, include_extras=True)
_FIELDS: dict[str, Any] = {f.name: (_TYPES[f.name], f.default) for f in fields(Software)}
SoftwareFile = create_model("SoftwareFile", __doc__=Software.__doc__, **_FIELDS)


def _checked(data: dict[str, Any], origin: str) -> Software:
    return Software(**files.validate(SoftwareFile, data, origin).model_dump())


def _check_names(data: dict[str, Any], before: str) -> None:
    known = [f.name for f in fields(Software)]
    for field in data:
        if field not in known:
            raise files.BadInput(f"{before}{field}: is not known; known are {', '.join(known)}")
