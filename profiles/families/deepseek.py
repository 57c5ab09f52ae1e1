"""DeepSeek-V2, V3, V3.2, Kimi K2 and GLM-5: latent attention, a few dense layers, then shared and routed experts.

arXiv 2405.04434 (V2), 2412.19437 (V3), 2512.02556 (V3.2), 2507.20534 (Kimi K2).
"""

from __future__ import annotations

from dataclasses import replace

from profiles.families.config import (
    TEXT_ONLY,
    Config,
    choice,
    each_known,
    flag,
    per_layer,
    refuse,
    text_tower,
    whole_number,
)
from profiles.families.llama import SILU, common
from profiles.model import Experts, FeedForward, LatentAttention, LayerSpec, ModelSpec


def v2(config: Config) -> ModelSpec:
    """Return the spec of a `DeepseekV2Config`: no correction of the router."""
    return _spec(config, "deepseek_v2", [_latent(config)] * whole_number(config, "num_hidden_layers"), router_bias=False)


def v3(config: Config) -> ModelSpec:
    """Return the spec of a `DeepseekV3Config` or of a Kimi K2 configuration, which has the same fields."""
    family = "kimi_k2" if config.get("model_type") == "kimi_k2" else "deepseek_v3"
    return _spec(config, family, [_latent(config)] * whole_number(config, "num_hidden_layers"))


def kimi_k25(config: Config) -> ModelSpec:
    """Return the spec of the language model in Kimi K2.5."""
    return replace(v3(text_tower(config)), family="kimi_k2", source=TEXT_ONLY)


def v32(config: Config) -> ModelSpec:
    """Return the spec of a `DeepseekV32Config`: an indexer in each layer."""
    return _spec(config, "deepseek_v32", [_indexed(config)] * whole_number(config, "num_hidden_layers"))


def glm(config: Config) -> ModelSpec:
    """Return the spec of a `GlmMoeDsaConfig`; layers of indexer type `shared` use the choice of one before."""
    num_layers, own = whole_number(config, "num_hidden_layers"), _indexed(config)
    if config.get("indexer_types") is None:
        refuse({k: v for k, v in config.items() if v != 1}, ("index_topk_freq", "index_topk_pattern"))
        return _spec(config, "glm_moe_dsa", [own] * num_layers)
    mixers = {"full": own, "shared": replace(own, indexer_heads=0, indexer_dim=0)}
    types = each_known("indexer_types", per_layer(config, "indexer_types", num_layers), mixers)
    return _spec(config, "glm_moe_dsa", [mixers[t] for t in types])


def _latent(config: Config) -> LatentAttention:
    bias = flag(config, "attention_bias")
    return LatentAttention(
        num_heads=whole_number(config, "num_attention_heads"), q_lora_rank=whole_number(config, "q_lora_rank", 0, least=0),
        kv_lora_rank=whole_number(config, "kv_lora_rank"), nope_dim=whole_number(config, "qk_nope_head_dim"),
        rope_dim=whole_number(config, "qk_rope_head_dim"), value_dim=whole_number(config, "v_head_dim"),
        down_bias=bias, out_bias=bias,
    )


def _indexed(config: Config) -> LatentAttention:
    return replace(
        _latent(config), indexer_heads=whole_number(config, "index_n_heads"),
        indexer_dim=whole_number(config, "index_head_dim"), index_topk=whole_number(config, "index_topk"),
    )


def _spec(config: Config, family: str, mixers: list[LatentAttention], *, router_bias: bool = True) -> ModelSpec:
    """Return a model whose first `first_k_dense_replace` layers are dense and whose others have experts."""
    choice(config, "hidden_act", SILU, "silu")
    refuse(config, ("mlp_bias",))
    if config.get("moe_layer_freq", 1) != 1:
        refuse(config, ("moe_layer_freq",))
    num_dense = whole_number(config, "first_k_dense_replace", 0, least=0)
    hidden = whole_number(config, "moe_intermediate_size")
    # the shared experts are one block of their joint width
    experts = Experts(
        num_experts=whole_number(config, "n_routed_experts"), top_k=whole_number(config, "num_experts_per_tok"),
        hidden=hidden, shared_hidden=hidden * whole_number(config, "n_shared_experts", 0, least=0),
        router_bias=router_bias,
    )
    layers = [
        LayerSpec(name="dense", mixer=mixer, ffn=FeedForward(hidden=whole_number(config, "intermediate_size")))
        if i < num_dense else LayerSpec(name="experts", mixer=mixer, ffn=experts)
        for i, mixer in enumerate(mixers)
    ]
    return replace(common(config, family, layers), mtp_layers=whole_number(config, "num_nextn_predict_layers", 0, least=0))
