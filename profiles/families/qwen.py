"""Qwen2-MoE, Qwen3, Qwen3-VL and Qwen3.5: norms on queries and keys, experts, and delta-rule layers.

arXiv 2407.10671 (Qwen2), 2505.09388 (Qwen3); configuration classes of transformers (qwen3, qwen3_moe, qwen3_5).
"""

from __future__ import annotations

from dataclasses import replace

from profiles.families.config import (
    TEXT_ONLY,
    Config,
    choice,
    flag,
    kind_of_attention,
    refuse,
    rope_dim,
    text_tower,
    whole_number,
    whole_numbers,
)
from profiles.families.llama import SILU, common, heads_of
from profiles.model import Experts, FeedForward, Ffn, LayerSpec, LinearAttention, Mixer, ModelSpec, SelfAttention


def qwen2_moe(config: Config) -> ModelSpec:
    """Return the spec of a `Qwen2MoeConfig`: biases on q, k, v, and a gated shared expert."""
    refuse(config, ("use_sliding_window",))
    heads, kv, head_dim = heads_of(config)
    mixer = SelfAttention(num_heads=heads, num_kv_heads=kv, head_dim=head_dim, qkv_bias=flag(config, "qkv_bias", True))
    return common(config, "qwen2_moe", [LayerSpec(name=n, mixer=mixer, ffn=f) for n, f in _ffns(config, sparse=True)])


def qwen3(config: Config) -> ModelSpec:
    """Return the spec of a `Qwen3Config`."""
    return _qwen3(config, "qwen3", sparse=False)


def qwen3_moe(config: Config) -> ModelSpec:
    """Return the spec of a `Qwen3MoeConfig`."""
    return _qwen3(config, "qwen3_moe", sparse=True)


def qwen3_vl(config: Config) -> ModelSpec:
    """Return the spec of the language model in a `Qwen3VLConfig`."""
    return replace(_qwen3(text_tower(config), "qwen3_vl", sparse=False), source=TEXT_ONLY)


def qwen3_vl_moe(config: Config) -> ModelSpec:
    """Return the spec of the language model in a `Qwen3VLMoeConfig`."""
    return replace(_qwen3(text_tower(config), "qwen3_vl_moe", sparse=True), source=TEXT_ONLY)


def qwen3_5(config: Config) -> ModelSpec:
    """Return the spec of the language model in a `Qwen3_5Config`."""
    return _qwen3_5(config, "qwen3_5", sparse=False)


def qwen3_5_moe(config: Config) -> ModelSpec:
    """Return the spec of the language model in a `Qwen3_5MoeConfig`."""
    return _qwen3_5(config, "qwen3_5_moe", sparse=True)


def _qwen3(config: Config, family: str, *, sparse: bool) -> ModelSpec:
    refuse(config, ("use_sliding_window",))
    mixer = _attention(config)
    return common(config, family, [LayerSpec(name=n, mixer=mixer, ffn=f) for n, f in _ffns(config, sparse=sparse)])


def _attention(config: Config, *, gate: bool = False, turned: float = 1.0) -> SelfAttention:
    heads, kv, head_dim = heads_of(config)
    bias = flag(config, "attention_bias")
    return SelfAttention(
        num_heads=heads, num_kv_heads=kv, head_dim=head_dim, qkv_bias=bias, out_bias=bias, qk_norm="head", gate=gate,
        rope_dim=rope_dim(config, head_dim, turned),
    )


def _ffns(config: Config, *, sparse: bool) -> list[tuple[str, Ffn]]:
    """Return the feed-forward block of each layer, and what to call a layer that has it."""
    choice(config, "hidden_act", SILU, "silu")
    num_layers = whole_number(config, "num_hidden_layers")
    if not sparse:
        return [("dense", FeedForward(hidden=whole_number(config, "intermediate_size")))] * num_layers
    shared = whole_number(config, "shared_expert_intermediate_size", 0, least=0)
    # transformers 5 writes the second name
    num = whole_number(config, "num_experts" if "num_experts" in config else "num_local_experts")
    experts = Experts(
        num_experts=num, top_k=whole_number(config, "num_experts_per_tok"),
        hidden=whole_number(config, "moe_intermediate_size"), shared_hidden=shared, shared_gate=shared > 0,
    )
    step, only = whole_number(config, "decoder_sparse_step", 1), whole_numbers(config, "mlp_only_layers")
    return [
        ("dense", FeedForward(hidden=whole_number(config, "intermediate_size"))) if i in only or (i + 1) % step else
        ("experts", experts)
        for i in range(num_layers)
    ]


def _qwen3_5(config: Config, family: str, *, sparse: bool) -> ModelSpec:
    text = text_tower(config)
    num_layers = whole_number(text, "num_hidden_layers")
    every = whole_number(text, "full_attention_interval", 4)
    default = ["full_attention" if (i + 1) % every == 0 else "linear_attention" for i in range(num_layers)]
    mixers: dict[str, tuple[str, Mixer]] = {
        "full_attention": ("full", _attention(text, gate=flag(text, "attn_output_gate", True), turned=0.25)),
        "linear_attention": ("linear", LinearAttention(
            num_key_heads=whole_number(text, "linear_num_key_heads", 16),
            num_value_heads=whole_number(text, "linear_num_value_heads", 32),
            key_dim=whole_number(text, "linear_key_head_dim", 128),
            value_dim=whole_number(text, "linear_value_head_dim", 128),
            conv=whole_number(text, "linear_conv_kernel_dim", 4),
        )),
    }
    kinds = kind_of_attention(text, num_layers, default, mixers)
    layers = [
        LayerSpec(name=mixers[kind][0], mixer=mixers[kind][1], ffn=ffn)
        for kind, (_, ffn) in zip(kinds, _ffns(text, sparse=sparse), strict=True)
    ]
    spec = common(text, family, layers)
    mtp = whole_number(text, "mtp_num_hidden_layers", 0, least=0)
    return replace(spec, mtp_layers=mtp, source=TEXT_ONLY if text is not config else "")
