"""Blocks with a recurrent state, Mamba-2 and gated delta rule: parameters and operators.

Under context parallelism heads are cut instead of the sequence, by all-to-alls in front of the scan and behind it.
"""

from __future__ import annotations

import numpy as np

from profiles.collectives import Collective
from profiles.families.pieces import Item, Shape, fan_in, gather, gemm, linear_params, pointwise, scatter, used
from profiles.model import LinearAttention, ModelSpec, ParamSpec, StateSpace
from profiles.ops import ELEMENT_BYTES, Num
from profiles.scan import Scan

DELTA_CHUNK = 64
"""Tokens of a chunk in the kernels of flash-linear-attention (fla/ops/gated_delta_rule/chunk.py, fla/ops/kda)."""


def state_space_params(spec: ModelSpec, mixer: StateSpace) -> tuple[ParamSpec, ...]:
    """Return the parameters of a Mamba-2 block; B and C of a group are copied where ranks outnumber groups."""
    h, inner, both = spec.hidden, mixer.num_heads * mixer.head_dim, 2 * mixer.groups * mixer.state
    groups, bias = mixer.groups, mixer.proj_bias
    conv_bias = (
        ParamSpec(name="ssm.conv.bias", shape=(inner,), tp_dim=0),
        ParamSpec(name="ssm.conv_bc.bias", shape=(both,), tp_dim=0, max_pieces=groups),
    ) if mixer.conv_bias else ()
    return (
        *linear_params("ssm.in_proj", 2 * inner + mixer.num_heads, h, 0, bias),
        *linear_params("ssm.bc_proj", both, h, 0, bias, groups),
        ParamSpec(name="ssm.conv.weight", shape=(inner, mixer.conv), tp_dim=0),
        ParamSpec(name="ssm.conv_bc.weight", shape=(both, mixer.conv), tp_dim=0, max_pieces=groups),
        *conv_bias,
        *(ParamSpec(name=f"ssm.{n}", shape=(mixer.num_heads,), tp_dim=0) for n in ("a_log", "d", "dt_bias")),
        ParamSpec(name="ssm.norm.weight", shape=(inner,), tp_dim=0),
        *linear_params("ssm.out_proj", h, inner, 1, bias),
    )


def state_space_items(spec: ModelSpec, mixer: StateSpace, shape: Shape) -> tuple[Item, ...]:
    """Return projection, convolution, scan, gated norm and projection."""
    t, h, heads = shape.tokens, spec.hidden, mixer.num_heads / shape.tp
    inner, both = heads * mixer.head_dim, 2 * np.maximum(mixer.groups / shape.tp, 1) * mixer.state
    return (
        *gather("ssm", h, shape),
        gemm("ssm.in_proj", t, h, 2 * inner + heads + both, shape),
        *_to_heads("ssm.heads.scatter", 2 * inner + heads + both, shape),
        pointwise("ssm.conv", "conv", t, inner + both, shape),
        Scan(name="ssm.scan", tokens=t, heads=heads, head_dim=mixer.head_dim, state=mixer.state, dtype=shape.dtype,
             chunk=mixer.chunk),
        pointwise("ssm.gate", "gate", t, inner, shape),
        pointwise("ssm.norm", "rms_norm", t, inner, shape),
        *_to_heads("ssm.heads.gather", inner, shape),
        gemm("ssm.out_proj", t, inner, h, shape),
        *scatter("ssm", h, shape),
    )


def _to_heads(name: str, cols: Num, shape: Shape) -> tuple[Collective, ...]:
    size = ELEMENT_BYTES[shape.dtype] * shape.tokens * cols
    exchange = Collective(name=name, kind="all_to_all", axis="cp", bytes=size, group_size=shape.cp)
    return (exchange,) if used(shape.cp) else ()


def delta_params(spec: ModelSpec, mixer: LinearAttention) -> tuple[ParamSpec, ...]:
    """Return the parameters of a delta-rule block; all are cut by heads but the projections to a low rank."""
    h, heads = spec.hidden, mixer.num_value_heads
    key, value = mixer.num_key_heads * mixer.key_dim, heads * mixer.value_dim
    decays = heads if mixer.decay == "head" else key
    sizes = {"q": key, "k": key, "v": value}
    return (
        *(p for n, size in sizes.items() for p in linear_params(f"delta.w{n}", size, h, 0)),
        *(ParamSpec(name=f"delta.conv_{n}.weight", shape=(size, mixer.conv), tp_dim=0) for n, size in sizes.items()),
        *linear_params("delta.beta", heads, h, 0),
        *_low_rank("delta.decay", decays, h, mixer.decay_rank),
        ParamSpec(name="delta.a_log", shape=(heads,), tp_dim=0),
        ParamSpec(name="delta.dt_bias", shape=(decays,), tp_dim=0),
        *_low_rank("delta.gate", value, h, mixer.gate_rank),
        ParamSpec(name="delta.norm.weight", shape=(mixer.value_dim,)),
        *linear_params("delta.wo", h, value, 1),
    )


def _low_rank(name: str, out: int, inp: int, rank: int) -> tuple[ParamSpec, ...]:
    """Return a linear map, or two through `rank` channels, the first of which is whole on each tp rank."""
    if not rank:
        return linear_params(name, out, inp, 0)
    return (*linear_params(f"{name}.down", rank, inp, None), *linear_params(f"{name}.up", out, rank, 0))


def delta_items(spec: ModelSpec, mixer: LinearAttention, shape: Shape) -> tuple[Item, ...]:
    """Return projections, convolutions, the chunked recurrence, gated norm and projection."""
    t, h, heads = shape.tokens, spec.hidden, mixer.num_value_heads / shape.tp
    key, value = mixer.num_key_heads / shape.tp * mixer.key_dim, heads * mixer.value_dim
    decays, width = heads if mixer.decay == "head" else key, 2 * key + value
    # q, k, v and beta are one matmul where projections are fused; low-rank maps stay apart
    one, more = heads, (("decay", decays, mixer.decay_rank), ("gate", value, mixer.gate_rank))
    plain = [("wq", key), ("wk", key), ("wv", value), ("beta", one), *((n, size) for n, size, rank in more if not rank)]
    readers = (1 if shape.fused_projections else len(plain)) + sum(bool(rank) for _, _, rank in more)
    return (
        *gather("delta", h, shape),
        *fan_in("delta.fan_in", t, h, shape, readers),
        *((gemm("delta.in_proj", t, h, sum(size for _, size in plain), shape),) if shape.fused_projections else
          (gemm(f"delta.{n}", t, h, size, shape, saves_input=i == 0) for i, (n, size) in enumerate(plain))),
        *(g for n, size, rank in more if rank for g in (
            gemm(f"delta.{n}.down", t, h, rank, shape, saves_input=False), gemm(f"delta.{n}.up", t, rank, size, shape),
        )),
        *_to_heads("delta.heads.scatter", width + one + decays, shape),
        pointwise("delta.conv", "conv", t, width, shape),
        Scan(name="delta.scan", tokens=t, heads=heads, head_dim=mixer.value_dim, state=mixer.key_dim,
             dtype=shape.dtype, chunk=DELTA_CHUNK, solve=True),
        pointwise("delta.norm", "rms_norm", t * heads, mixer.value_dim, shape),
        *_to_heads("delta.heads.gather", value, shape),
        pointwise("delta.gate.mul", "gate", t, value, shape),
        gemm("delta.wo", t, value, h, shape),
        *scatter("delta", h, shape),
    )
