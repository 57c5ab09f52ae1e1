"""Other models of experts: Mixtral, gpt-oss, Llama 4, MiniMax-M2, MiMo-V2-Flash, Kimi Linear.

arXiv 2401.04088 (Mixtral), 2508.10925 (gpt-oss), 2510.26692 (Kimi Linear); the others by the configuration classes of
transformers.
"""

from __future__ import annotations

from dataclasses import replace

from profiles.families.config import (
    TEXT_ONLY,
    Config,
    choice,
    flag,
    kind_of_attention,
    per_layer,
    refuse,
    rope_dim,
    section,
    text_tower,
    unknown,
    whole_number,
    whole_numbers,
)
from profiles.families.llama import SILU, common, heads_of
from profiles.files import BadInput
from profiles.model import Experts, FeedForward, LatentAttention, LayerSpec, LinearAttention, ModelSpec, SelfAttention


def mixtral(config: Config) -> ModelSpec:
    """Return the spec of a `MixtralConfig`: Llama's attention and experts in each layer."""
    heads, kv, head_dim = heads_of(config)
    mixer = SelfAttention(
        num_heads=heads, num_kv_heads=kv, head_dim=head_dim, window=whole_number(config, "sliding_window", 0, least=0),
    )
    layer = LayerSpec(mixer=mixer, ffn=_local_experts(config))
    return common(config, "mixtral", [layer] * whole_number(config, "num_hidden_layers"), eps=1e-5)


def gpt_oss(config: Config) -> ModelSpec:
    """Return the spec of a `GptOssConfig`: sinks, biases, every other layer with a window."""
    heads, kv, head_dim = heads_of(config)
    num_layers, bias = whole_number(config, "num_hidden_layers"), flag(config, "attention_bias", True)
    full = SelfAttention(num_heads=heads, num_kv_heads=kv, head_dim=head_dim, qkv_bias=bias, out_bias=bias, sinks=True)
    mixers = {"sliding_attention": replace(full, window=whole_number(config, "sliding_window")), "full_attention": full}
    default = ["full_attention" if i % 2 else "sliding_attention" for i in range(num_layers)]
    ffn = replace(_local_experts(config), bias=True, router_linear_bias=True)
    types = kind_of_attention(config, num_layers, default, mixers)
    layers = [LayerSpec(name=t.removesuffix("_attention"), mixer=mixers[t], ffn=ffn) for t in types]
    return common(config, "gpt_oss", layers, eps=1e-5)


def minimax_m2(config: Config) -> ModelSpec:
    """Return the spec of MiniMax-M2: norms over all channels of queries and keys, three modules for later tokens."""
    heads, kv, head_dim = heads_of(config)
    refuse(config, ("shared_intermediate_size",))
    norms = choice(config, "qk_norm_type", {"per_layer": "all"}, "per_layer") if flag(config, "use_qk_norm", True) else "none"
    mixer = SelfAttention(
        num_heads=heads, num_kv_heads=kv, head_dim=head_dim, qk_norm=norms,
        rope_dim=whole_number(config, "rotary_dim", 0, least=0),
    )
    layer = LayerSpec(mixer=mixer, ffn=replace(_local_experts(config), router_bias=flag(config, "use_routing_bias", True)))
    mtp = whole_number(config, "num_mtp_modules", 0, least=0) if flag(config, "use_mtp") else 0
    return replace(common(config, "minimax_m2", [layer] * whole_number(config, "num_hidden_layers")), mtp_layers=mtp)


def llama4(config: Config) -> ModelSpec:
    """Return the spec of the language model in a `Llama4Config`: blocks of keys, and layers without positions."""
    text = text_tower(config)
    refuse(text, ("attention_bias",))
    heads, kv, head_dim = heads_of(text)
    num_layers, hidden = whole_number(text, "num_hidden_layers"), whole_number(text, "intermediate_size")
    plain = SelfAttention(num_heads=heads, num_kv_heads=kv, head_dim=head_dim, positions="none")
    turned = replace(
        plain, positions="rotary", block=whole_number(text, "attention_chunk_size", 8192),
        qk_norm="plain" if flag(text, "use_qk_norm", True) else "none",
    )
    every = whole_number(text, "no_rope_layer_interval", 4)
    # an entry of 1 means that the layer has rotary positions, in spite of the field's name
    rotary = per_layer(text, "no_rope_layers", num_layers) if text.get("no_rope_layers") else \
        [(i + 1) % every != 0 for i in range(num_layers)]
    step = whole_number(text, "interleave_moe_layer_step", 1)
    sparse = whole_numbers(text, "moe_layers") or list(range(step - 1, num_layers, step))
    experts = replace(_local_experts(text), shared_hidden=hidden)
    dense = FeedForward(hidden=whole_number(text, "intermediate_size_mlp"))
    layers = [
        LayerSpec(
            name=f"{'block' if rotary[i] else 'full'}_{'experts' if i in sparse else 'dense'}",
            mixer=turned if rotary[i] else plain, ffn=experts if i in sparse else dense,
        )
        for i in range(num_layers)
    ]
    return replace(common(text, "llama4", layers, eps=1e-5), source=TEXT_ONLY if text is not config else "")


def mimo_v2(config: Config) -> ModelSpec:
    """Return the spec of MiMo-V2-Flash: values narrower than keys, windows with sinks and more key-value heads."""
    num_layers = whole_number(config, "num_hidden_layers")
    heads, kv, head_dim = heads_of(config)
    bias = flag(config, "attention_bias")
    full = SelfAttention(
        num_heads=heads, num_kv_heads=kv, head_dim=head_dim, value_dim=whole_number(config, "v_head_dim"), qkv_bias=bias,
        rope_dim=rope_dim(config, head_dim), sinks=flag(config, "add_full_attention_sink_bias"),
    )
    sliding = replace(
        full, num_heads=whole_number(config, "swa_num_attention_heads", heads),
        num_kv_heads=whole_number(config, "swa_num_key_value_heads", kv),
        head_dim=whole_number(config, "swa_head_dim", head_dim),
        value_dim=whole_number(config, "swa_v_head_dim", full.value_dim),
        window=whole_number(config, "sliding_window"), sinks=flag(config, "add_swa_attention_sink_bias"),
    )
    refuse(config, ("n_shared_experts",))
    choice(config, "hidden_act", SILU, "silu")
    dense, experts = FeedForward(hidden=whole_number(config, "intermediate_size")), Experts(
        num_experts=whole_number(config, "n_routed_experts"), top_k=whole_number(config, "num_experts_per_tok"),
        hidden=whole_number(config, "moe_intermediate_size"), router_bias=config.get("topk_method") == "noaux_tc",
    )
    layers = [
        LayerSpec(name=f"{'sliding' if slides else 'full'}_{'experts' if sparse else 'dense'}",
                  mixer=sliding if slides else full, ffn=experts if sparse else dense)
        for slides, sparse in zip(per_layer(config, "hybrid_layer_pattern", num_layers),
                                  per_layer(config, "moe_layer_freq", num_layers), strict=True)
    ]
    return common({"rms_norm_eps": config.get("layernorm_epsilon")} | config, "mimo_v2_flash", layers, eps=1e-5)


def kimi_linear(config: Config) -> ModelSpec:
    """Return the spec of Kimi Linear: delta-rule layers, and latent attention without positions among them."""
    text = text_tower(config)
    if text.get("attn_res_block_size"):
        unknown(f"{config['model_type']}: residuals across blocks of layers (attn_res_block_size) are")
    refuse(text, ("latent_moe_use_norm", "routed_expert_hidden_size"))
    choice(text, "hidden_act", SILU, "silu")
    num_layers, linear = whole_number(text, "num_hidden_layers"), section(text, "linear_attn_config")
    delta, full = _kimi_mixers(text, linear)
    recurrent, attended = whole_numbers(linear, "kda_layers"), whole_numbers(linear, "full_attn_layers")
    if sorted([*recurrent, *attended]) != list(range(1, num_layers + 1)):
        raise BadInput("linear_attn_config: kda_layers and full_attn_layers must share out the layers, counted from 1")
    hidden = whole_number(text, "moe_intermediate_size")
    experts = Experts(
        num_experts=whole_number(text, "num_experts"), top_k=whole_number(text, "num_experts_per_token"), hidden=hidden,
        shared_hidden=hidden * whole_number(text, "num_shared_experts", 0, least=0), router_bias=True,
    )
    dense = FeedForward(hidden=whole_number(text, "intermediate_size"))
    num_dense = whole_number(text, "first_k_dense_replace", 0, least=0)
    layers = [
        LayerSpec(
            name=f"{'delta' if i + 1 in recurrent else 'full'}_{'dense' if i < num_dense else 'experts'}",
            mixer=delta if i + 1 in recurrent else full, ffn=dense if i < num_dense else experts,
        )
        for i in range(num_layers)
    ]
    spec = common({"max_position_embeddings": text.get("model_max_length")} | text, "kimi_linear", layers, eps=1e-5)
    return replace(spec, mtp_layers=whole_number(text, "num_nextn_predict_layers", 0, least=0))


def _kimi_mixers(config: Config, linear: Config) -> tuple[LinearAttention, LatentAttention]:
    heads, dim = whole_number(linear, "num_heads"), whole_number(linear, "head_dim")
    delta = LinearAttention(
        num_key_heads=heads, num_value_heads=heads, key_dim=dim, value_dim=dim, decay="channel", decay_rank=dim,
        conv=whole_number(linear, "short_conv_kernel_size", 4),
        gate_rank=0 if flag(linear, "use_full_rank_gate") else dim,
    )
    latent = LatentAttention(
        num_heads=whole_number(config, "num_attention_heads"), q_lora_rank=whole_number(config, "q_lora_rank", 0, least=0),
        kv_lora_rank=whole_number(config, "kv_lora_rank"), nope_dim=whole_number(config, "qk_nope_head_dim"),
        rope_dim=whole_number(config, "qk_rope_head_dim"), value_dim=whole_number(config, "v_head_dim"),
        positions="none" if flag(config, "mla_use_nope") else "rotary", gate=flag(config, "mla_use_output_gate"),
    )
    return delta, latent


def _local_experts(config: Config) -> Experts:
    choice(config, "hidden_act", SILU, "silu")
    return Experts(
        num_experts=whole_number(config, "num_local_experts"), top_k=whole_number(config, "num_experts_per_tok"),
        hidden=whole_number(config, "intermediate_size"),
    )
