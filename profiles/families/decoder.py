"""What all decoder families share: the shape of a micro-batch on a rank, and the pieces that layers are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from profiles.collectives import Collective
from profiles.files import BadInput
from profiles.model import ModelSpec
from profiles.ops import ELEMENT_BYTES, Attention, CrossEntropy, Embedding, Gemm, Num, Op, Pointwise

Item = Op | Collective


def whole_number(config: dict[str, Any], field: str, default: int | None = None) -> int:
    """Return a field of a configuration that must be a whole number of at least 1; null counts as missing."""
    value = config.get(field)
    value = default if value is None else value
    if value is None:
        raise BadInput(f"{field}: is missing")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadInput(f"{field}: must be a whole number of at least 1 (is {value!r})")
    return value


def number(config: dict[str, Any], field: str, default: float) -> float:
    """Return a field of a configuration that must be a number above 0; a missing or null one is the default."""
    value = config.get(field)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise BadInput(f"{field}: must be a number above 0 (is {value!r})")
    return float(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One micro-batch as a rank sees it: sequences, their length, the tensor-parallel degree, dtype and kernels.

    With tp > 1 the residual stream is sharded over the sequence (sequence parallelism, Korthikanti et al.,
    arXiv 2205.05198): norms and adds see `tokens / tp`, matmuls see all tokens gathered.
    """

    micro_batch: Num
    seq_len: Num
    tp: Num = 1
    dtype: str = "bf16"
    mode: str = "eager"

    @property
    def tokens(self) -> Num:
        """Return the tokens of the micro-batch."""
        return self.micro_batch * self.seq_len

    @property
    def local_tokens(self) -> Num:
        """Return the tokens whose residual stream this rank holds."""
        return self.tokens / self.tp


def norm(spec: ModelSpec, name: str, kind: str, shape: Shape) -> Pointwise:
    """Return a norm of the residual stream."""
    return Pointwise(
        name=name, kind=kind, rows=shape.local_tokens, cols=spec.hidden, dtype=shape.dtype, mode=shape.mode
    )


def residual_add(spec: ModelSpec, name: str, shape: Shape) -> Pointwise:
    """Return the residual add."""
    return Pointwise(
        name=name, kind="add", rows=shape.local_tokens, cols=spec.hidden, dtype=shape.dtype, mode=shape.mode
    )


def fan_in(spec: ModelSpec, name: str, shape: Shape, num: int) -> tuple[Pointwise, ...]:
    """Return the sums in backward where `num` matmuls read the same gathered tensor: one less than they are."""
    return tuple(
        Pointwise(name=f"{name}.{i}", kind="add", rows=shape.tokens, cols=spec.hidden, dtype=shape.dtype,
                  mode=shape.mode, backward_only=True)
        for i in range(1, num)
    )


def gather(spec: ModelSpec, name: str, shape: Shape) -> Collective:
    """Return the all-gather that makes the sharded residual stream whole before a matmul."""
    return _tp_collective(spec, name, "all_gather", shape)


def scatter(spec: ModelSpec, name: str, shape: Shape) -> Collective:
    """Return the reduce-scatter that sums partial outputs back into the sharded residual stream."""
    return _tp_collective(spec, name, "reduce_scatter", shape)


def _tp_collective(spec: ModelSpec, name: str, kind: str, shape: Shape) -> Collective:
    size = ELEMENT_BYTES[shape.dtype] * shape.tokens * spec.hidden
    return Collective(name=name, kind=kind, axis="tp", bytes=size, group_size=shape.tp)


def attention_block(spec: ModelSpec, shape: Shape, norm_kind: str, rope: bool) -> tuple[Item, ...]:
    """Return norm, q/k/v projections, attention, output projection and residual add of one layer."""
    query, key_value = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    t, d, tp = shape.tokens, shape.dtype, shape.tp
    rotary: tuple[Item, ...] = (
        Pointwise(name="attn.rope.q", kind="rope", rows=t, cols=query / tp, dtype=d, mode=shape.mode),
        Pointwise(name="attn.rope.k", kind="rope", rows=t, cols=key_value / tp, dtype=d, mode=shape.mode),
    ) if rope else ()
    return (
        norm(spec, "attn_norm", norm_kind, shape),
        gather(spec, "attn.gather", shape),
        *fan_in(spec, "attn.fan_in", shape, 3),
        Gemm(name="attn.wq", m=t, k=spec.hidden, n=query / tp, dtype=d),
        Gemm(name="attn.wk", m=t, k=spec.hidden, n=key_value / tp, dtype=d, saves_input=False),
        Gemm(name="attn.wv", m=t, k=spec.hidden, n=key_value / tp, dtype=d, saves_input=False),
        *rotary,
        Attention(
            name="attn.sdpa", batch=shape.micro_batch, heads=spec.num_heads / tp, kv_heads=spec.num_kv_heads / tp,
            seq_len=shape.seq_len, head_dim=spec.head_dim, dtype=d,
        ),
        # its input is the attention output, which attention already keeps
        Gemm(name="attn.wo", m=t, k=query / tp, n=spec.hidden, dtype=d, saves_input=False),
        scatter(spec, "attn.scatter", shape),
        residual_add(spec, "attn.add", shape),
    )


def embedding_items(spec: ModelSpec, shape: Shape) -> tuple[Item, ...]:
    """Return the token look-up; under tp the table is split by vocabulary and the partial rows are summed."""
    look_up = Embedding(
        name="embed", tokens=shape.tokens, hidden=spec.hidden, vocab=spec.vocab / shape.tp, dtype=shape.dtype
    )
    return (look_up, scatter(spec, "embed.scatter", shape))


def head_items(spec: ModelSpec, shape: Shape, norm_kind: str) -> tuple[Item, ...]:
    """Return final norm, output projection (split by vocabulary) and loss."""
    vocab = spec.vocab / shape.tp
    return (
        norm(spec, "norm", norm_kind, shape),
        gather(spec, "head.gather", shape),
        Gemm(name="head", m=shape.tokens, k=spec.hidden, n=vocab, dtype=shape.dtype),
        CrossEntropy(name="loss", tokens=shape.tokens, vocab=vocab, dtype=shape.dtype),
    )
