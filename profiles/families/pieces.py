"""What all blocks are made of: the shape of a micro-batch on a rank, norms, linear maps, tensor-parallel borders."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from profiles.collectives import Collective
from profiles.matmul import Gemm
from profiles.model import ModelSpec, ParamSpec
from profiles.ops import ELEMENT_BYTES, Num, Op
from profiles.pointwise import Pointwise

Item = Op | Collective

ACTIVATION = {"swiglu": "swiglu", "geglu": "swiglu", "gelu": "gelu", "relu": "gelu", "silu": "gelu", "relu2": "relu2"}
"""Activation of a feed-forward block -> kind of pointwise operator with the same traffic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One micro-batch as a rank sees it, and how the software computes it.

    `seq_len` is that of the whole sequence; context parallelism leaves 1/cp of it here. `matmul` is what the layers'
    linear maps compute in (fp8, mxfp8, nvfp4; empty: dtype), `mode` eager or fused pointwise chains. With
    `sequence_parallel` the residual stream is sharded over tp (Korthikanti et al., arXiv 2205.05198): norms and adds
    see `tokens / tp`, matmuls see all tokens gathered; without it each rank holds all tokens and sums are all-reduced.
    `fused_projections`: one matmul for q, k, v and one for both projections up. `flash`: fused attention, `flash_version`
    which of its kernels (flash1, flash2; empty: the best). `dropout`: masks on attention and residual. `context`: how
    keys reach other cp ranks (ring, all_gather, ulysses). `imbalance`: tokens of the busiest expert rank over the mean.
    `sends_once`: a token travels once to each rank that holds any of its experts and is copied there (DeepEP, arXiv
    2412.19437, section 3.2.2), not once for each expert. `expert_kernels`: loop, grouped or fused. `loss_in_place`: the
    loss makes no copy of the logits.
    """

    micro_batch: Num
    seq_len: Num
    tp: Num = 1
    cp: Num = 1
    ep: Num = 1
    etp: Num = 1
    dtype: str = "bf16"
    matmul: str = ""
    mode: str = "eager"
    sequence_parallel: Num = True
    fused_projections: bool = False
    flash: bool = True
    flash_version: str = ""
    dropout: bool = False
    context: str = "ring"
    imbalance: float = 1.0
    sends_once: bool = False
    expert_kernels: str = "grouped"
    loss_in_place: bool = False

    @property
    def tokens(self) -> Num:
        """Return the tokens of the micro-batch on this rank's share of the sequence."""
        return self.micro_batch * self.seq_len / self.cp

    @property
    def local_tokens(self) -> Num:
        """Return the tokens whose residual stream this rank holds."""
        return self.tokens / np.where(self.sequence_parallel, self.tp, 1)


def used(degree: Num) -> bool:
    """Return whether any member of a batch has this degree above 1: if none has, its collectives are left out."""
    return bool(np.any(np.asarray(degree) != 1))


def linear_params(
    name: str, out: int, inp: int, tp_dim: int | None, bias: bool = False, pieces: int = 0,
) -> tuple[ParamSpec, ...]:
    """Return the weight [out, in] of a linear map, and its bias, which is cut as the outputs are."""
    weight = ParamSpec(name=f"{name}.weight", shape=(out, inp), tp_dim=tp_dim, max_pieces=pieces)
    cut = 0 if tp_dim == 0 else None
    return (weight, ParamSpec(name=f"{name}.bias", shape=(out,), tp_dim=cut, max_pieces=pieces)) if bias else (weight,)


def norm_params(spec: ModelSpec, name: str) -> tuple[ParamSpec, ...]:
    """Return the parameters of a norm of the residual stream."""
    weight, bias = (ParamSpec(name=f"{name}.{n}", shape=(spec.hidden,)) for n in ("weight", "bias"))
    return (weight, bias) if spec.norm_bias else (weight,)


def pointwise(name: str, kind: str, rows: Num, cols: Num, shape: Shape) -> Pointwise:
    """Return a memory-bound operator over [rows, cols] in the precision and kernels of a shape."""
    return Pointwise(name=name, kind=kind, rows=rows, cols=cols, dtype=shape.dtype, mode=shape.mode)


def gemm(name: str, m: Num, k: Num, n: Num, shape: Shape, *, saves_input: bool = True) -> Gemm:
    """Return a linear map of a layer, in the matmul precision of a shape."""
    return Gemm(name=name, m=m, k=k, n=n, dtype=shape.dtype, matmul=shape.matmul, saves_input=saves_input)


def norm(spec: ModelSpec, name: str, shape: Shape) -> Pointwise:
    """Return a norm of the residual stream."""
    kind = "rms_norm" if spec.norm == "rms_norm" else "layer_norm"
    return pointwise(name, kind, shape.local_tokens, spec.hidden, shape)


def residual_add(spec: ModelSpec, name: str, shape: Shape) -> Pointwise:
    """Return the residual add, with dropout of what is added where the shape asks for it."""
    return pointwise(name, "dropout" if shape.dropout else "add", shape.local_tokens, spec.hidden, shape)


def fan_in(name: str, rows: Num, cols: Num, shape: Shape, readers: int) -> tuple[Pointwise, ...]:
    """Return the sums in backward where several operators read the same tensor: one less than they are."""
    return tuple(
        Pointwise(name=f"{name}.{i}", kind="add", rows=rows, cols=cols, dtype=shape.dtype, mode=shape.mode,
                  backward_only=True)
        for i in range(1, readers)
    )


def gather(name: str, width: Num, shape: Shape) -> tuple[Collective, ...]:
    """Return what makes [tokens, width] whole on each tp rank before a matmul whose outputs are cut.

    With sequence parallelism an all-gather; without it nothing forward and the all-reduce of the gradient backward
    (the operator f of arXiv 1909.08053, section 3).
    """
    size = ELEMENT_BYTES[shape.dtype] * shape.tokens * width
    sharded, whole = _by_sequence_parallel(shape)
    return (
        *((Collective(name=f"{name}.gather", kind="all_gather", axis="tp", bytes=size, group_size=sharded),)
          if sharded is not None else ()),
        *((Collective(name=f"{name}.copy", kind="all_reduce", axis="tp", bytes=size, group_size=1, backward_group=whole),)
          if whole is not None else ()),
    )


def scatter(name: str, width: Num, shape: Shape) -> tuple[Collective, ...]:
    """Return what sums partial outputs [tokens, width] over tp: a reduce-scatter back into the sharded stream.

    Without sequence parallelism an all-reduce forward and nothing backward (the operator g of arXiv 1909.08053).
    """
    size = ELEMENT_BYTES[shape.dtype] * shape.tokens * width
    sharded, whole = _by_sequence_parallel(shape)
    return (
        *((Collective(name=f"{name}.scatter", kind="reduce_scatter", axis="tp", bytes=size, group_size=sharded),)
          if sharded is not None else ()),
        *((Collective(name=f"{name}.sum", kind="all_reduce", axis="tp", bytes=size, group_size=whole, backward_group=1),)
          if whole is not None else ()),
    )


def _by_sequence_parallel(shape: Shape) -> tuple[Num, Num]:
    """Return the tp group with and without sequence parallelism; None for a variant that no member of a batch has."""
    on = np.asarray(shape.sequence_parallel, dtype=bool)
    if on.all():
        return shape.tp, None
    return (np.where(on, shape.tp, 1) if on.any() else None), np.where(on, 1, shape.tp)
