"""What names in a PyTorch profiler's trace mean: kinds of kernels, collectives, the axis of a group, phases of a step."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

KINDS: tuple[tuple[str, str], ...] = (
    ("embedding", r"embedding|indexselect|index_select|vocab"),
    ("optimizer", r"multi_tensor_apply|fused_?(adam|sgd|lamb)|adamw?functor|_foreach_|distopt|l2norm"),
    ("attention", r"flash|fmha|attention|attn|mha_(fwd|bwd)|scaled_masked_softmax"),
    ("loss", r"cross_?entropy|nll_?loss|log_?sum_?exp|log_?softmax"),
    ("norm", r"(rms|layer|batch|group)_?norm|bn_(fw|bw)|gammabeta|welford|rowwisemoments"),
    ("pointwise", r"triton_(poi|red|per)_"),
    ("gemm", r"(?<!fb)gemm|triton_tem_fused_(add)?b?mm|cublas|nvjet|xmma|cijk_|wvsplitk|splitk|epilogue::impl|"
             r"cutlass.*(tensorop|simt)|mmbackward|linearbackward|"
             r"(^|::)_?(scaled_)?(grouped_)?(linear|addmm|mm|bmm|baddbmm|matmul|einsum)$"),
    ("convolution", r"cudnn|winograd|conv(?!ert)"),
    ("scan", r"selective_scan|ssd_|chunk_(scan|state)|mamba|state_passing|gated_delta|causal_conv"),
    ("experts", r"moe|router|routing|topk|(token|rows?)_(un)?permut|(un)?permute_kernel"),
    ("softmax", r"softmax"),
    ("copy", r"memcpy|memset|copy|catarray|nchwto|nhwcto|fill|transpose|(^|::)(clone|cat|contiguous)$"),
    ("reduction", r"reduce|reduction|cub::|(^|::)(sum|mean|amax|norm|max|min)$|(sum|mean)backward"),
    ("pointwise", r"elementwise|pointwise|vectorized|triton_|silu|swiglu|gelu|relu|dropout|rotary|rope|functor|quant|"
                  r"(^|::)(add|mul|div|sub|neg|pow|rsqrt|sqrt|exp|lerp|addcdiv|addcmul|clamp|where|_to_copy|to|tanh|sigmoid)_?$|"
                  r"(add|mul|div|sub|neg|pow|rsqrt|silu|gelu|where)backward|accumulategrad"),
)
"""Kinds of computation, and what their kernels and operators are called; the first that matches holds."""
OTHER = "other"

COLLECTIVES = {
    "allreduce": "all_reduce", "reducescatter": "reduce_scatter", "allgather": "all_gather", "alltoall": "all_to_all",
    "broadcast": "broadcast", "sendrecv": "send", "send": "send", "recv": "recv", "barrier": "barrier", "gather": "gather",
    "scatter": "scatter", "reduce": "reduce", "coalesced": "coalesced",
}
"""Names of collectives, without underscores, to those of `profiles.collectives`; the first that the name holds."""
AXES: tuple[tuple[str, str], ...] = (
    ("dp", r"(^|_)dp(_|$)|data|fsdp|optimizer_instance"), ("ep", r"(^|_)e(p|tp)(_|$)|expert"),
    ("tp", r"(^|_)tp(_|$)|tensor|^model"), ("cp", r"(^|_)cp(_|$)|context|ulysses"), ("pp", r"(^|_)pp(_|$)|pipe|embedding"),
)
"""Axes by what describes a process group: torch's device meshes (`mesh_dp_shard`), Megatron's groups; the first holds."""
BY_KIND = {"send": "pp", "recv": "pp", "coalesced": "pp", "all_to_all": "ep"}
"""Axis of what a group without description does; all else is dp."""
ELEMENT_BYTES = {
    "float": 4, "double": 8, "half": 2, "bfloat16": 2, "byte": 1, "char": 1, "bool": 1, "short": 2, "int": 4, "long": 8,
    "float8_e4m3fn": 1, "float8_e5m2": 1,
}


@lru_cache(maxsize=1 << 14)
def kind_of(name: str) -> str:
    """Return the kind of computation that a kernel or an operator is."""
    lower = name.lower()
    return next((kind for kind, pattern in _KINDS if pattern.search(lower)), OTHER)


_KINDS = tuple((kind, re.compile(pattern)) for kind, pattern in KINDS)


_EVERYWHERE = re.compile(
    r"^void |at::native::|\(anonymous namespace\)::|autograd::engine::evaluate_function: |torch::autograd::")


@lru_cache(maxsize=1 << 14)
def shortened(name: str) -> str:
    """Return a kernel's name without what all have, in some eighty characters."""
    name = _EVERYWHERE.sub("", name)
    return name if len(name) <= 80 else name[:77] + "..."


def collective_of(name: str) -> str:
    """Return the kind of collective that a name holds (`ncclDevKernel_AllReduce_Sum_f32_RING_LL`, `_allgather_base`)."""
    plain = name.lower().replace("_", "")
    return next((kind for key, kind in COLLECTIVES.items() if key in plain), "collective")


def axis_of(description: str, kind: str) -> str:
    """Return the axis of a process group by its description; where that says none, by the kind of collective."""
    lower = description.lower()
    return next((axis for axis, pattern in AXES if re.search(pattern, lower)), BY_KIND.get(kind, "dp"))


class Scope(NamedTuple):
    """What an annotation says of all that happens under it; empty or -1 where it says nothing."""

    pass_: str = ""
    microbatch: int = -1
    layer: int = -1


_PASSES = {"forward": "F", "backward": "B", "optimizer": "U", "step": "U", "zero_grad": "U", "update": "U"}
_SCOPES = tuple(re.compile(pattern, re.I) for pattern in (
    r"^(?:stage \d+|reduce_gradients|optimizer) (?P<pass>[FBIWU])(?P<microbatch>\d+)?$",
    r"^PP:\d+(?P<pass>[FBIW])(?P<microbatch>\d+)$", r"^PP:\d+(?:SEND|RECV)_(?P<pass>[FBIW])(?P<microbatch>\d+)$",
    r"^Optimizer\.(?P<name>step|zero_grad)#", r"^[# ]*(?P<name>forward|backward|optimizer)(?: (?P<microbatch>\d+))?[# ]*$",
    r"^DistributedDataParallel\.(?P<name>forward)$", r"^FSDP::\w*?(?P<name>forward|backward)",
))
_LAYER = re.compile(r"\blayers?[. _](\d+)", re.I)


def scope_of(name: str) -> Scope:
    """Return what the name of an annotation says: our engine's actions (`stage 0 F3`), torch's pipelines and FSDP, optimizers,
    and plain `forward 3`."""
    layer = _LAYER.search(name)
    found = next((m for m in (pattern.match(name) for pattern in _SCOPES) if m), None)
    groups = found.groupdict() if found else {}
    pass_ = groups.get("pass") or _PASSES.get((groups.get("name") or "").lower(), "")
    return Scope(pass_, int(groups.get("microbatch") or -1), int(layer[1]) if layer else -1)
