"""Decoders before and beside Llama: MPT, OPT, BLOOM, GPT-NeoX, Falcon, Phi, Nemotron, OLMo 2.

Each reader names its paper; the names of fields are those of the configuration classes of transformers.
"""

from __future__ import annotations

from dataclasses import replace

from profiles.families.config import (
    Config,
    choice,
    flag,
    head_width,
    kinds_of,
    number,
    refuse,
    rope_dim,
    rope_theta,
    section,
    unknown,
    whole_number,
)
from profiles.families.gemma import GELU
from profiles.families.llama import SILU, common, heads_of
from profiles.model import FeedForward, LayerSpec, ModelSpec, SelfAttention


def mpt(config: Config) -> ModelSpec:
    """Return the spec of an `MptConfig`: ALiBi, no biases (MosaicML, github.com/mosaicml/llm-foundry)."""
    attn = section(config, "attn_config")
    refuse(attn, ("qk_ln", "prefix_lm"))
    heads, hidden = whole_number(config, "n_heads"), whole_number(config, "d_model")
    one = {"multihead_attention": heads, "multiquery_attention": 1}
    kind = choice(attn, "attn_type", {k: k for k in one} | {"grouped_query_attention": "grouped"}, "multihead_attention")
    kv = whole_number(attn, "kv_n_heads") if kind == "grouped" else one[kind]
    alibi, bias, length = flag(attn, "alibi", True), not flag(config, "no_bias", True), whole_number(config, "max_seq_len")
    table = length if not alibi and flag(config, "learned_pos_emb", True) else 0
    layer = LayerSpec(
        mixer=SelfAttention(
            num_heads=heads, num_kv_heads=kv, head_dim=head_width(hidden, heads, "n_heads"), qkv_bias=bias,
            out_bias=bias, positions="alibi" if alibi else "learned" if table else "none",
        ),
        ffn=FeedForward(hidden=whole_number(config, "expansion_ratio", 4) * hidden, activation="gelu", bias=bias),
    )
    return _with_layer_norm(
        config, "mpt", layer, whole_number(config, "n_layers"), hidden=hidden, length=length, norm_bias=bias, table=table,
    )


def opt(config: Config) -> ModelSpec:
    """Return the spec of an `OPTConfig` (arXiv 2205.01068); its position table has two rows more than positions."""
    hidden, length = whole_number(config, "hidden_size"), whole_number(config, "max_position_embeddings")
    if not flag(config, "do_layer_norm_before", True):
        unknown("do_layer_norm_before: false (norms behind the blocks, as in OPT-350m) is")
    if whole_number(config, "word_embed_proj_dim", hidden) != hidden:
        unknown("word_embed_proj_dim: an embedding narrower than the layers is")
    heads, bias = whole_number(config, "num_attention_heads"), flag(config, "enable_bias", True)
    activation = choice(config, "activation_function", GELU | {"relu": "relu"}, "relu")
    layer = LayerSpec(
        mixer=SelfAttention(
            num_heads=heads, num_kv_heads=heads, head_dim=head_width(hidden, heads), positions="learned", qkv_bias=bias,
            out_bias=bias,
        ),
        ffn=FeedForward(hidden=whole_number(config, "ffn_dim"), activation=activation, bias=bias),
    )
    return _with_layer_norm(
        config, "opt", layer, whole_number(config, "num_hidden_layers"), hidden=hidden, length=length, table=length + 2,
    )


def bloom(config: Config) -> ModelSpec:
    """Return the spec of a `BloomConfig` (arXiv 2211.05100): ALiBi, biases, a norm behind the embedding."""
    refuse(config, ("apply_residual_connection_post_layernorm",))
    hidden = whole_number(config, "hidden_size", config.get("n_embed"))
    heads = whole_number(config, "n_head", config.get("num_attention_heads"))
    layer = LayerSpec(
        mixer=SelfAttention(
            num_heads=heads, num_kv_heads=heads, head_dim=head_width(hidden, heads, "n_head"), positions="alibi",
            qkv_bias=True, out_bias=True,
        ),
        ffn=FeedForward(hidden=4 * hidden, activation="gelu", bias=True),
    )
    num_layers = whole_number(config, "n_layer", config.get("num_hidden_layers"))
    length = whole_number(config, "seq_length", 2048)
    return replace(_with_layer_norm(config, "bloom", layer, num_layers, hidden=hidden, length=length), embedding_norm=True)


def gpt_neox(config: Config) -> ModelSpec:
    """Return the spec of a `GPTNeoXConfig` (arXiv 2204.06745): two norms side by side, a quarter of each head turns."""
    heads, kv, head_dim = heads_of(config)
    bias = flag(config, "attention_bias", True)
    choice(config, "hidden_act", GELU, "gelu")
    parallel = flag(config, "use_parallel_residual", True)
    turned = rope_dim(config, head_dim, number(config, "rotary_pct", 0.25))
    layer = LayerSpec(
        mixer=SelfAttention(
            num_heads=heads, num_kv_heads=kv, head_dim=head_dim, rope_dim=turned, qkv_bias=bias, out_bias=bias,
        ),
        ffn=FeedForward(hidden=whole_number(config, "intermediate_size"), activation="gelu", bias=True),
        parallel=parallel, separate_norms=parallel,
    )
    return _with_layer_norm(
        config, "gpt_neox", layer, whole_number(config, "num_hidden_layers"), hidden=whole_number(config, "hidden_size"),
        length=whole_number(config, "max_position_embeddings"), tied=False,
    )


def falcon(config: Config) -> ModelSpec:
    """Return the spec of a `FalconConfig` (arXiv 2311.16867)."""
    heads, hidden = whole_number(config, "num_attention_heads"), whole_number(config, "hidden_size")
    new, bias = flag(config, "new_decoder_architecture"), flag(config, "bias")
    choice(config, "activation", GELU, "gelu")
    kv = whole_number(config, "num_kv_heads", heads) if new else 1 if flag(config, "multi_query", True) else heads
    parallel = new or flag(config, "parallel_attn", True)
    layer = LayerSpec(
        mixer=SelfAttention(
            num_heads=heads, num_kv_heads=kv, head_dim=head_width(hidden, heads), qkv_bias=bias, out_bias=bias,
            positions="alibi" if flag(config, "alibi") else "rotary",
        ),
        ffn=FeedForward(hidden=whole_number(config, "ffn_hidden_size", 4 * hidden), activation="gelu", bias=bias),
        parallel=parallel, separate_norms=new and whole_number(config, "num_ln_in_parallel_attn", 2) == 2,
    )
    return _with_layer_norm(
        config, "falcon", layer, whole_number(config, "num_hidden_layers"), hidden=hidden,
        length=whole_number(config, "max_position_embeddings", 2048),
    )


def phi(config: Config) -> ModelSpec:
    """Return the spec of a `PhiConfig` (arXiv 2309.05463): blocks side by side behind one norm, a bias on the head."""
    refuse(config, ("qk_layernorm",))
    heads, kv, head_dim = heads_of(config)
    choice(config, "hidden_act", GELU, "gelu_new")
    layer = LayerSpec(
        mixer=SelfAttention(
            num_heads=heads, num_kv_heads=kv, head_dim=head_dim, rope_dim=rope_dim(config, head_dim, 0.5), qkv_bias=True,
            out_bias=True,
        ),
        ffn=FeedForward(hidden=whole_number(config, "intermediate_size"), activation="gelu", bias=True), parallel=True,
    )
    spec = _with_layer_norm(
        config, "phi", layer, whole_number(config, "num_hidden_layers"), hidden=whole_number(config, "hidden_size"),
        length=whole_number(config, "max_position_embeddings", 2048), tied=False,
    )
    return replace(spec, head_bias=True)


def nemotron(config: Config) -> ModelSpec:
    """Return the spec of a `NemotronConfig` (arXiv 2402.16819): squared ReLU, half of each head turns."""
    heads, kv, head_dim = heads_of(config)
    bias = flag(config, "attention_bias")
    activation = choice(config, "hidden_act", {"relu2": "relu2"}, "relu2")
    layer = LayerSpec(
        mixer=SelfAttention(
            num_heads=heads, num_kv_heads=kv, head_dim=head_dim, rope_dim=rope_dim(config, head_dim, 0.5), qkv_bias=bias,
            out_bias=bias,
        ),
        ffn=FeedForward(
            hidden=whole_number(config, "intermediate_size"), activation=activation, bias=flag(config, "mlp_bias"),
        ),
    )
    return _with_layer_norm(
        config, "nemotron", layer, whole_number(config, "num_hidden_layers"), hidden=whole_number(config, "hidden_size"),
        length=whole_number(config, "max_position_embeddings"), tied=False,
    )


def olmo2(config: Config) -> ModelSpec:
    """Return the spec of an `Olmo2Config` (arXiv 2501.00656): norms behind the blocks only, and on queries and keys."""
    heads, kv, head_dim = heads_of(config)
    bias = flag(config, "attention_bias")
    choice(config, "hidden_act", SILU, "silu")
    layer = LayerSpec(
        mixer=SelfAttention(
            num_heads=heads, num_kv_heads=kv, head_dim=head_dim, qkv_bias=bias, out_bias=bias, qk_norm="all",
        ),
        ffn=FeedForward(hidden=whole_number(config, "intermediate_size")), pre_norms=False, post_norms=True,
    )
    return common(config, "olmo2", [layer] * whole_number(config, "num_hidden_layers"), eps=1e-5)


def _with_layer_norm(
    config: Config, family: str, layer: LayerSpec, num_layers: int, *, hidden: int, length: int, norm_bias: bool = True,
    table: int = 0, tied: bool = True,
) -> ModelSpec:
    """Return a model of one kind of layer with LayerNorm; `table` rows of learned positions."""
    kinds, pattern = kinds_of([layer] * num_layers)
    eps = next((f for f in ("layer_norm_epsilon", "layer_norm_eps", "norm_eps") if f in config), "layer_norm_epsilon")
    return ModelSpec(
        name="", family=family, hidden=hidden, vocab=whole_number(config, "vocab_size"), max_seq_len=length, kinds=kinds,
        pattern=pattern, norm="layer_norm", norm_bias=norm_bias, norm_eps=number(config, eps, 1e-5),
        rope_theta=rope_theta(config), learned_positions=table, tied_embeddings=flag(config, "tie_word_embeddings", tied),
    )
