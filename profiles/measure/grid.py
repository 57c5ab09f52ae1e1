"""Which kernels are measured: what a planned model needs, and a log-spaced grid so that any can be interpolated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from profiles.attention import Attention
from profiles.files import BadInput
from profiles.matmul import Gemm, GroupedGemm
from profiles.ops import SIZES, Kernel, Op
from profiles.optimizer import AdamW
from profiles.pointwise import Pointwise
from profiles.vocabulary import CrossEntropy, Embedding

POINTWISE_KINDS = ("rms_norm", "layer_norm", "rope", "swiglu", "gelu", "add")
MEASURED = ("gemm", "grouped_gemm", "attention", "embedding", "cross_entropy", "adamw", *POINTWISE_KINDS, "permute", "route")
"""Kinds of kernel that are measured: those of the models that Headway's own engine trains."""
DTYPES = ("fp32", "bf16", "fp16")
"""Types that are measured on every device."""
FP8 = "fp8"
"""On CUDA alone: matmuls in e4m3, and the casts in front of them."""
QUANTISE = "quantise"
GEMMS = (
    (128, 128, 128), (256, 256, 256), (512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048),
    (1024, 256, 256), (1024, 1024, 256), (1024, 256, 1024), (256, 1024, 1024), (4096, 256, 256),
    (2048, 4096, 512), (2048, 512, 4096), (128, 2048, 2048), (4096, 1024, 1024),
)
"""m (tokens), n (out), k (in) of the forward pass."""
GROUPED = ((4, 64, 256, 128), (8, 128, 512, 256), (4, 512, 1024, 512))
"""Experts, m (rows of each), n (out), k (in)."""
PERMUTED = ((256, 128), (1024, 512), (4096, 1024))
ROUTED = ((128, 8), (1024, 8), (4096, 64))
"""Tokens and experts."""
ATTENTIONS = ((1, 4, 128, 64), (2, 8, 256, 64), (4, 4, 512, 64), (1, 8, 1024, 64), (1, 8, 1024, 128), (1, 4, 2048, 64))
TENSORS = ((128, 256), (512, 256), (1024, 1024), (4096, 1024), (4096, 4096))
EMBEDDINGS = ((512, 256, 256), (1024, 512, 8192), (4096, 1024, 32768))
LOGITS = ((512, 256), (1024, 8192), (1024, 32768))
PARAMS = (100_000, 1_000_000, 10_000_000)
ACCELERATOR_SCALE = 4
"""A GPU takes every length of the grid this many times longer (head_dim and heads apart)."""


def default_kernels(dtypes: Sequence[str], scale: int = 1) -> tuple[Kernel, ...]:
    """Return the grid's kernels in these dtypes, smallest first within a kind and pass; `scale` stretches lengths."""
    ops: list[Op] = [AdamW(name="grid", params=p * scale**2) for p in PARAMS]
    if FP8 in dtypes:
        ops += [Gemm(name="grid", m=m * scale, n=n * scale, k=k * scale, dtype="bf16", matmul=FP8) for m, n, k in GEMMS]
    for dtype in (d for d in dtypes if d != FP8):
        ops += [Gemm(name="grid", m=m * scale, n=n * scale, k=k * scale, dtype=dtype) for m, n, k in GEMMS]
        ops += [
            Attention(name="grid", batch=b, heads=h, kv_heads=h, seq_len=s * scale, head_dim=d, dtype=dtype)
            for b, h, s, d in ATTENTIONS
        ]
        ops += [
            Pointwise(name="grid", kind=kind, rows=rows * scale, cols=cols * scale, dtype=dtype)
            for kind in POINTWISE_KINDS for rows, cols in TENSORS
        ]
        ops += [
            GroupedGemm(name="grid", groups=g, m=m * scale, n=n * scale, k=k * scale, dtype=dtype) for g, m, n, k in GROUPED
        ]
        ops += [Pointwise(name="grid", kind="permute", rows=r * scale, cols=c * scale, dtype=dtype) for r, c in PERMUTED]
        ops += [Pointwise(name="grid", kind="route", rows=t * scale, cols=e, dtype=dtype) for t, e in ROUTED]
        ops += [
            Embedding(name="grid", tokens=t * scale, hidden=h * scale, vocab=v, dtype=dtype) for t, h, v in EMBEDDINGS
        ]
        ops += [CrossEntropy(name="grid", tokens=t * scale, vocab=v, dtype=dtype) for t, v in LOGITS]
    kernels = unique(k for op in ops for p in ("F", "B", "W", "U") for k in op.kernels(p))
    return tuple(sorted(kernels, key=work))


def work(kernel: Kernel) -> float:
    """Return what a kernel's time roughly grows with: FLOP where it has any, else bytes moved."""
    return float(kernel.flop or kernel.moved_bytes)


def key(kernel: Kernel) -> tuple[str, str, str, tuple[int, ...]]:
    """Return what makes two kernels the same measurement."""
    return kernel.kind, kernel.pass_, kernel.dtype, kernel.size


def whole(kernel: Kernel) -> Kernel:
    """Return a kernel with whole sizes of at least 1; one that the profiler does not know is a `BadInput`."""
    if kernel.kind not in (*MEASURED, QUANTISE) or len(kernel.size) != len(SIZES[kernel.kind]):
        known = ", ".join(MEASURED)
        raise BadInput(f"cases: {kernel.kind} {kernel.size}: measured are {known}, with the sizes of profiles.ops")
    if kernel.dtype not in DTYPES and (kernel.kind, kernel.dtype) != ("gemm", FP8):
        raise BadInput(f"cases: dtype: {kernel.dtype!r} is not measured; measured are {', '.join(DTYPES)}")
    return replace(kernel, size=tuple(max(1, round(float(s))) for s in kernel.size))


def unique(kernels: Iterable[Kernel], but: Iterable[Kernel] = ()) -> tuple[Kernel, ...]:
    """Return kernels without repetition, and without those in `but`."""
    seen = {key(k) for k in but}
    found = {key(k): k for k in kernels if key(k) not in seen}
    return tuple(found.values())
