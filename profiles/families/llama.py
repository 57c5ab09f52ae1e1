"""Llama and Qwen2: RMSNorm, rotary positions, grouped-query attention, SwiGLU. arXiv 2307.09288, 2407.10671."""

from __future__ import annotations

from typing import Any

from profiles.families.decoder import (
    Item,
    Shape,
    attention_block,
    embedding_items,
    fan_in,
    gather,
    head_items,
    norm,
    number,
    residual_add,
    scatter,
    whole_number,
)
from profiles.files import BadInput
from profiles.model import ModelSpec, ParamSpec, Part
from profiles.ops import Gemm, Pointwise


def from_config(config: dict[str, Any]) -> ModelSpec:
    """Return the spec of a `LlamaConfig` or `Qwen2Config`."""
    for unknown in ("attention_bias", "mlp_bias", "num_local_experts"):
        if config.get(unknown):
            raise BadInput(f"{unknown}: {config[unknown]!r} is not known for this family and cannot be priced")
    if config.get("use_sliding_window"):
        raise BadInput("use_sliding_window: true is not known for this family; only false can be priced")
    heads, hidden = whole_number(config, "num_attention_heads"), whole_number(config, "hidden_size")
    rope = config.get("rope_parameters")
    return ModelSpec(
        name="", family="llama",
        num_layers=whole_number(config, "num_hidden_layers"), hidden=hidden, num_heads=heads,
        num_kv_heads=whole_number(config, "num_key_value_heads", heads),
        head_dim=whole_number(config, "head_dim", hidden // heads),
        ffn_hidden=whole_number(config, "intermediate_size"), vocab=whole_number(config, "vocab_size"),
        max_seq_len=whole_number(config, "max_position_embeddings"),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=config.get("model_type") == "qwen2",
        norm_eps=number(config, "rms_norm_eps", 1e-6),
        rope_theta=number(config | (rope if isinstance(rope, dict) else {}), "rope_theta", 10000.0),
    )


def params(spec: ModelSpec, part: Part) -> tuple[ParamSpec, ...]:
    """Return the parameters of a part; linear weights are [out, in]."""
    h, f = spec.hidden, spec.ffn_hidden
    query, key_value = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    if part == "embedding":
        return (ParamSpec(name="embed.weight", shape=(spec.vocab, h), tp_dim=0),)
    if part == "head":
        return (
            ParamSpec(name="norm.weight", shape=(h,)),
            ParamSpec(name="head.weight", shape=(spec.vocab, h), tp_dim=0),
        )
    biases = tuple(
        ParamSpec(name=f"attn.{name}.bias", shape=(size,), tp_dim=0)
        for name, size in (("wq", query), ("wk", key_value), ("wv", key_value)) if spec.qkv_bias
    )
    return (
        ParamSpec(name="attn_norm.weight", shape=(h,)),
        ParamSpec(name="attn.wq.weight", shape=(query, h), tp_dim=0),
        ParamSpec(name="attn.wk.weight", shape=(key_value, h), tp_dim=0),
        ParamSpec(name="attn.wv.weight", shape=(key_value, h), tp_dim=0),
        *biases,
        ParamSpec(name="attn.wo.weight", shape=(h, query), tp_dim=1),
        ParamSpec(name="ffn_norm.weight", shape=(h,)),
        ParamSpec(name="ffn.w1.weight", shape=(f, h), tp_dim=0),
        ParamSpec(name="ffn.w3.weight", shape=(f, h), tp_dim=0),
        ParamSpec(name="ffn.w2.weight", shape=(h, f), tp_dim=1),
    )


def items(spec: ModelSpec, part: Part, shape: Shape) -> tuple[Item, ...]:
    """Return the operators of a part."""
    if part == "embedding":
        return embedding_items(spec, shape)
    if part == "head":
        return head_items(spec, shape, "rms_norm")
    t, d, f = shape.tokens, shape.dtype, spec.ffn_hidden / shape.tp
    return (
        *attention_block(spec, shape, "rms_norm", rope=True),
        norm(spec, "ffn_norm", "rms_norm", shape),
        gather(spec, "ffn.gather", shape),
        *fan_in(spec, "ffn.fan_in", shape, 2),
        Gemm(name="ffn.w1", m=t, k=spec.hidden, n=f, dtype=d),
        Gemm(name="ffn.w3", m=t, k=spec.hidden, n=f, dtype=d, saves_input=False),
        Pointwise(name="ffn.swiglu", kind="swiglu", rows=t, cols=f, dtype=d, mode=shape.mode),
        Gemm(name="ffn.w2", m=t, k=f, n=spec.hidden, dtype=d),
        scatter(spec, "ffn.scatter", shape),
        residual_add(spec, "ffn.add", shape),
    )
