"""Gemma 1 to 4: GEGLU, tied embeddings, sliding windows, norms on both sides of a block.

arXiv 2403.08295, 2408.00118, 2503.19786; Gemma 4: configuration and layers of transformers (gemma4). The scaling of the
embedding and the soft caps on logits are pointwise and left out.
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
    section,
    text_tower,
    unknown,
    whole_number,
)
from profiles.families.llama import common
from profiles.model import Experts, FeedForward, Ffn, LayerSpec, ModelSpec, SelfAttention

LAYER_TYPES = ("full_attention", "sliding_attention")
GELU = dict.fromkeys(("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast"), "gelu")
GEMMA3 = {
    "vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "max_position_embeddings": 131072, "sliding_window": 4096,
}
"""What Gemma 3 configurations leave out: the defaults of `Gemma3TextConfig` in transformers."""


def gemma(config: Config) -> ModelSpec:
    """Return the spec of a `GemmaConfig`."""
    num_layers = whole_number(config, "num_hidden_layers")
    return _spec(config, "gemma", ["full_attention"] * num_layers, _attention(config), post_norms=False)


def gemma2(config: Config) -> ModelSpec:
    """Return the spec of a `Gemma2Config`: every other layer sees a window."""
    num_layers = whole_number(config, "num_hidden_layers")
    default = ["full_attention" if i % 2 else "sliding_attention" for i in range(num_layers)]
    kinds = kind_of_attention(config, num_layers, default, LAYER_TYPES)
    return _spec({"sliding_window": 4096} | config, "gemma2", kinds, _attention(config), post_norms=True)


def gemma3(config: Config) -> ModelSpec:
    """Return the spec of the language model in a `Gemma3Config` or `Gemma3TextConfig`."""
    text = GEMMA3 | text_tower(config)
    num_layers, every = whole_number(text, "num_hidden_layers"), whole_number(text, "sliding_window_pattern", 6)
    default = ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(num_layers)]
    kinds = kind_of_attention(text, num_layers, default, LAYER_TYPES)
    spec = _spec(text, "gemma3", kinds, replace(_attention(text), qk_norm="head"), post_norms=True)
    return replace(spec, source=TEXT_ONLY if "text_config" in config else "")


def gemma4(config: Config) -> ModelSpec:
    """Return the spec of the language model in a `Gemma4Config`."""
    text = text_tower(config)
    refuse(text, ("hidden_size_per_layer_input", "num_kv_shared_layers", "use_double_wide_mlp"))
    num_layers = whole_number(text, "num_hidden_layers")
    kinds = kind_of_attention(text, num_layers, [], LAYER_TYPES)
    if not kinds:
        unknown("layer_types: a missing one is")
    sliding = replace(_attention(text), qk_norm="head", value_norm=True)
    full = replace(
        sliding, head_dim=whole_number(text, "global_head_dim", sliding.head_dim),
        num_kv_heads=whole_number(text, "num_global_key_value_heads", sliding.num_kv_heads),
        shared_kv=flag(text, "attention_k_eq_v"),
    )
    full = replace(full, rope_dim=rope_dim(section(section(text, "rope_parameters"), "full_attention"), full.head_dim))
    spec = _spec(text, "gemma4", kinds, sliding, post_norms=True, full=full)
    return replace(spec, source=TEXT_ONLY if text is not config else "")


def _attention(config: Config) -> SelfAttention:
    if config.get("use_bidirectional_attention") in (True, "all"):
        unknown("use_bidirectional_attention: attention in both directions is")
    heads, bias = whole_number(config, "num_attention_heads"), flag(config, "attention_bias")
    return SelfAttention(
        num_heads=heads, num_kv_heads=whole_number(config, "num_key_value_heads", heads),
        head_dim=whole_number(config, "head_dim", 256), qkv_bias=bias, out_bias=bias,
    )


def _spec(
    config: Config, family: str, kinds: list[str], mixer: SelfAttention, *, post_norms: bool,
    full: SelfAttention | None = None,
) -> ModelSpec:
    """Return a model whose layers see all tokens or a window, by kind."""
    slides = "sliding_attention" in kinds
    sliding = replace(mixer, window=whole_number(config, "sliding_window")) if slides else mixer
    ffn = _ffn(config)
    layers = [
        LayerSpec(name="full", mixer=full or mixer, ffn=ffn, post_norms=post_norms) if kind == "full_attention" else
        LayerSpec(name="sliding", mixer=sliding, ffn=ffn, post_norms=post_norms)
        for kind in kinds
    ]
    return common(config, family, layers, tied=True)


def _ffn(config: Config) -> Ffn:
    choice(config, "hidden_activation" if config.get("hidden_activation") else "hidden_act", GELU, "gelu_pytorch_tanh")
    dense = whole_number(config, "intermediate_size")
    if not flag(config, "enable_moe_block"):
        return FeedForward(hidden=dense, activation="geglu")
    return Experts(
        num_experts=whole_number(config, "num_experts"), top_k=whole_number(config, "top_k_experts"),
        hidden=whole_number(config, "moe_intermediate_size"), activation="geglu", shared_hidden=dense, branch_norms=True,
    )
