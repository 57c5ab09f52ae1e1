"""Self-attention: parameters and operators, with grouped heads, windows, gates, and context parallelism."""

from __future__ import annotations

import numpy as np

from profiles.attention import Attention, UnfusedAttention
from profiles.collectives import Collective
from profiles.families.pieces import Item, Shape, fan_in, gather, gemm, linear_params, pointwise, scatter, used
from profiles.model import ModelSpec, ParamSpec, SelfAttention
from profiles.ops import ELEMENT_BYTES, Num


def params(spec: ModelSpec, mixer: SelfAttention) -> tuple[ParamSpec, ...]:
    """Return the parameters of an attention block; linear weights are [out, in]."""
    heads, kv, h = mixer.num_heads, mixer.num_kv_heads, spec.hidden
    query, out = heads * mixer.head_dim, heads * (mixer.value_dim or mixer.head_dim)
    key, value = kv * mixer.head_dim, kv * (mixer.value_dim or mixer.head_dim)
    gated, bias = query * (2 if mixer.gate else 1), mixer.qkv_bias
    return (
        *linear_params("attn.wq", gated, h, 0, bias), *linear_params("attn.wk", key, h, 0, bias, kv),
        *(() if mixer.shared_kv else linear_params("attn.wv", value, h, 0, bias, kv)),
        *_norm_params(mixer, query, key),
        *((ParamSpec(name="attn.sinks", shape=(heads,), tp_dim=0),) if mixer.sinks else ()),
        *linear_params("attn.wo", h, out, 1, mixer.out_bias),
    )


def _norm_params(mixer: SelfAttention, query: int, key: int) -> tuple[ParamSpec, ...]:
    if mixer.qk_norm == "head":
        return tuple(ParamSpec(name=f"attn.{n}_norm.weight", shape=(mixer.head_dim,)) for n in "qk")
    if mixer.qk_norm == "all":
        return (
            ParamSpec(name="attn.q_norm.weight", shape=(query,), tp_dim=0),
            ParamSpec(name="attn.k_norm.weight", shape=(key,), tp_dim=0, max_pieces=mixer.num_kv_heads),
        )
    return ()


def items(spec: ModelSpec, mixer: SelfAttention, shape: Shape) -> tuple[Item, ...]:
    """Return gather, projections, attention, output projection and scatter."""
    return (
        *gather("attn", spec.hidden, shape),
        *fan_in("attn.fan_in", shape.tokens, spec.hidden, shape, projections(mixer, shape)),
        *core(spec, mixer, shape),
        *scatter("attn", spec.hidden, shape),
    )


def projections(mixer: SelfAttention, shape: Shape) -> int:
    """Return how many matmuls read the normed input."""
    return 1 if shape.fused_projections else 2 if mixer.shared_kv else 3


def core(spec: ModelSpec, mixer: SelfAttention, shape: Shape) -> tuple[Item, ...]:
    """Return what lies between the gathered input and the partial output."""
    t, tp = shape.tokens, shape.tp
    heads, kv = mixer.num_heads / tp, np.maximum(mixer.num_kv_heads / tp, 1)
    out = heads * (mixer.value_dim or mixer.head_dim)
    # the gate sits between attention and this matmul; without it the input is the attention output, already kept
    return (
        *_project(spec, mixer, shape, heads, kv),
        *_norms(mixer, shape, heads, kv),
        *_rotate(mixer, shape, heads, kv),
        *attend(
            heads=mixer.num_heads, kv_heads=mixer.num_kv_heads, head_dim=mixer.head_dim, value_dim=mixer.value_dim,
            window=mixer.window, block=mixer.block, shape=shape,
        ),
        *((pointwise("attn.gate", "gate", t, out, shape),) if mixer.gate else ()),
        gemm("attn.wo", t, out, spec.hidden, shape, saves_input=mixer.gate),
    )


def _project(spec: ModelSpec, mixer: SelfAttention, shape: Shape, heads: Num, kv: Num) -> tuple[Item, ...]:
    t, h = shape.tokens, spec.hidden
    query = heads * mixer.head_dim * (2 if mixer.gate else 1)
    key, value = kv * mixer.head_dim, kv * (mixer.value_dim or mixer.head_dim) * (not mixer.shared_kv)
    if shape.fused_projections:
        return (gemm("attn.wqkv", t, h, query + key + value, shape),)
    return (
        gemm("attn.wq", t, h, query, shape),
        gemm("attn.wk", t, h, key, shape, saves_input=False),
        *(() if mixer.shared_kv else (gemm("attn.wv", t, h, value, shape, saves_input=False),)),
    )


def _norms(mixer: SelfAttention, shape: Shape, heads: Num, kv: Num) -> tuple[Item, ...]:
    t, d = shape.tokens, mixer.head_dim
    if mixer.qk_norm == "none":
        return ()
    sizes = {"q": (t, heads * d), "k": (t, kv * d)} if mixer.qk_norm == "all" else {"q": (t * heads, d), "k": (t * kv, d)}
    if mixer.value_norm:
        sizes["v"] = (t * kv, mixer.value_dim or d)
    return tuple(pointwise(f"attn.{n}_norm", "rms_norm", rows, cols, shape) for n, (rows, cols) in sizes.items())


def _rotate(mixer: SelfAttention, shape: Shape, heads: Num, kv: Num) -> tuple[Item, ...]:
    if mixer.positions != "rotary":
        return ()
    turned = mixer.rope_dim or mixer.head_dim
    return (
        pointwise("attn.rope.q", "rope", shape.tokens, heads * turned, shape),
        pointwise("attn.rope.k", "rope", shape.tokens, kv * turned, shape),
    )


def attend(
    *, heads: int, kv_heads: int, head_dim: int, value_dim: int, window: int, block: int, shape: Shape,
) -> tuple[Item, ...]:
    """Return attention over the whole sequence, with what carries keys and values to the other cp ranks.

    `heads` are those of the model. Ring attention (arXiv 2310.01889) passes keys and values on cp - 1 times, and
    backward their gradients too; all_gather (arXiv 2407.21783, section 3.3.2) collects them again for backward;
    ulysses (arXiv 2309.14509) cuts heads instead of the sequence.
    """
    split = shape.cp if shape.context == "ulysses" else 1
    length = np.minimum(block, shape.seq_len) if block else shape.seq_len
    batch = shape.micro_batch * shape.seq_len / length if block else shape.micro_batch
    here, kv = heads / shape.tp / split, np.maximum(kv_heads / shape.tp / split, 1)
    shared = used(shape.cp) and shape.context != "ulysses"
    before, after = _context(here, kv, head_dim, value_dim or head_dim, shape) if used(shape.cp) else ((), ())
    if not shape.flash:
        # the scores of a rank are those of its queries with all keys
        return (*before, UnfusedAttention(
            name="attn.sdpa", batch=batch / (shape.cp if shared else 1), heads=here, kv_heads=kv, seq_len=length,
            head_dim=(head_dim + (value_dim or head_dim)) / 2, dtype=shape.dtype, dropout=shape.dropout,
        ), *after)
    return (*before, Attention(
        name="attn.sdpa", batch=batch, heads=here, kv_heads=kv, seq_len=length / shape.cp if shared else length,
        head_dim=head_dim, dtype=shape.dtype, kv_len=length if shared else 0, value_dim=value_dim, window=window,
        version=shape.flash_version,
    ), *after)


def _context(heads: Num, kv: Num, key: int, value: int, shape: Shape) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Return the collectives over cp in front of attention and behind it; heads and kv are those of this rank."""
    token = ELEMENT_BYTES[shape.dtype] * shape.tokens
    own = token * kv * (key + value)
    cp = shape.cp
    if shape.context == "ring":
        passes = own * (cp - 1)
        return (Collective(
            name="attn.ring", kind="send", axis="cp", bytes=passes, group_size=cp, backward_bytes=2 * passes,
        ),), ()
    if shape.context == "all_gather":
        whole = own * cp
        return (
            (Collective(name="attn.kv.gather", kind="all_gather", axis="cp", bytes=whole, group_size=cp),),
            # keys of other ranks are not kept, so backward gathers them again
            (Collective(name="attn.kv.again", kind="all_gather", axis="cp", bytes=whole, group_size=1,
                        backward_kind="all_gather", backward_group=cp),),
        )
    # before it each rank holds all heads of its tokens: cp times the heads that it keeps
    spread = token * cp * (heads * key + kv * (key + value))
    return (
        (Collective(name="attn.heads.scatter", kind="all_to_all", axis="cp", bytes=spread, group_size=cp),),
        (Collective(name="attn.heads.gather", kind="all_to_all", axis="cp", bytes=token * cp * heads * value, group_size=cp),),
    )
