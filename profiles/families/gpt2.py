"""GPT-2, GPT-3: LayerNorm, learned positions, biases, GELU, tied head. Radford et al. 2019; arXiv 2005.14165."""

from __future__ import annotations

from typing import Any

from profiles.families.decoder import (
    Item,
    Shape,
    attention_block,
    embedding_items,
    gather,
    head_items,
    norm,
    number,
    residual_add,
    scatter,
    whole_number,
)
from profiles.model import ModelSpec, ParamSpec, Part
from profiles.ops import Gemm, Pointwise


def from_config(config: dict[str, Any]) -> ModelSpec:
    """Return the spec of a `GPT2Config`."""
    heads, hidden = whole_number(config, "n_head"), whole_number(config, "n_embd")
    return ModelSpec(
        name="", family="gpt2", num_layers=whole_number(config, "n_layer"), hidden=hidden, num_heads=heads,
        num_kv_heads=heads, head_dim=hidden // heads, ffn_hidden=whole_number(config, "n_inner", 4 * hidden),
        vocab=whole_number(config, "vocab_size"), max_seq_len=whole_number(config, "n_positions"),
        tied_embeddings=bool(config.get("tie_word_embeddings", True)), qkv_bias=True,
        norm_eps=number(config, "layer_norm_epsilon", 1e-5),
    )


def _linear(name: str, out: int, inp: int, tp_dim: int) -> tuple[ParamSpec, ParamSpec]:
    bias_dim = 0 if tp_dim == 0 else None
    return (
        ParamSpec(name=f"{name}.weight", shape=(out, inp), tp_dim=tp_dim),
        ParamSpec(name=f"{name}.bias", shape=(out,), tp_dim=bias_dim),
    )


def _layer_norm(name: str, hidden: int) -> tuple[ParamSpec, ParamSpec]:
    return ParamSpec(name=f"{name}.weight", shape=(hidden,)), ParamSpec(name=f"{name}.bias", shape=(hidden,))


def params(spec: ModelSpec, part: Part) -> tuple[ParamSpec, ...]:
    """Return the parameters of a part; linear weights are [out, in]."""
    h, f, query = spec.hidden, spec.ffn_hidden, spec.num_heads * spec.head_dim
    if part == "embedding":
        return (
            ParamSpec(name="embed.weight", shape=(spec.vocab, h), tp_dim=0),
            ParamSpec(name="positions.weight", shape=(spec.max_seq_len, h)),
        )
    if part == "head":
        return (*_layer_norm("norm", h), ParamSpec(name="head.weight", shape=(spec.vocab, h), tp_dim=0))
    return (
        *_layer_norm("attn_norm", h),
        *_linear("attn.wq", query, h, 0), *_linear("attn.wk", query, h, 0), *_linear("attn.wv", query, h, 0),
        *_linear("attn.wo", h, query, 1),
        *_layer_norm("ffn_norm", h),
        *_linear("ffn.w1", f, h, 0), *_linear("ffn.w2", h, f, 1),
    )


def items(spec: ModelSpec, part: Part, shape: Shape) -> tuple[Item, ...]:
    """Return the operators of a part."""
    if part == "embedding":
        return (*embedding_items(spec, shape), residual_add(spec, "embed.add", shape))
    if part == "head":
        return head_items(spec, shape, "layer_norm")
    t, d, f = shape.tokens, shape.dtype, spec.ffn_hidden / shape.tp
    return (
        *attention_block(spec, shape, "layer_norm", rope=False),
        norm(spec, "ffn_norm", "layer_norm", shape),
        gather(spec, "ffn.gather", shape),
        Gemm(name="ffn.w1", m=t, k=spec.hidden, n=f, dtype=d),
        Pointwise(name="ffn.gelu", kind="gelu", rows=t, cols=f, dtype=d, mode=shape.mode),
        Gemm(name="ffn.w2", m=t, k=f, n=spec.hidden, dtype=d),
        scatter(spec, "ffn.scatter", shape),
        residual_add(spec, "ffn.add", shape),
    )
