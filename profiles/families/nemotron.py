"""Nemotron-H and Nemotron 3 (Mamba-2 hybrids, arXiv 2504.03624, 2512.20856), Nemotron-NAS (a searched Llama, 2411.19146)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from profiles.families.config import Config, choice, each_known, flag, head_width, number, refuse, whole_number
from profiles.families.llama import SILU, common
from profiles.files import BadInput
from profiles.model import Experts, FeedForward, LayerSpec, ModelSpec, SelfAttention, StateSpace

LETTERS = {"M": "mamba", "*": "attention", "E": "experts", "-": "dense"}
BLOCK_TYPES = {"mamba": "mamba", "linear_attention": "mamba", "attention": "attention", "full_attention": "attention",
               "moe": "experts", "mlp": "dense"}
MTP_REPEATS = 2
"""How often training runs through the one block of multi-token prediction of Nemotron 3 (its weights are shared:
NVIDIA-NeMo/Megatron-Bridge v0.6.0 recipes/nemotronh/h100/nemotron_3_super.py, mtp_num_layers, mtp_use_repeated_layer)."""


def hybrid(config: Config) -> ModelSpec:
    """Return the spec of a `NemotronHConfig`: each layer is one block, and attention has no positions."""
    refuse(config, ("attention_bias", "residual_in_fp32"))
    names = _names(config)
    layers = {name: _hybrid_layer(config, name) for name in set(names)}
    eps = number(config, "layer_norm_epsilon", number(config, "rms_norm_eps", 1e-5))
    spec = replace(common(config, "nemotron_h", [layers[n] for n in names]), norm_eps=eps)
    if not whole_number(config, "num_nextn_predict_layers", 0, least=0):
        return spec
    blocks = [_hybrid_layer(config, LETTERS[c]) for c in str(config.get("mtp_hybrid_override_pattern", "*E"))]
    mixers, ffns = [b.mixer for b in blocks if b.mixer], [b.ffn for b in blocks if b.ffn]
    whole = LayerSpec(name="mtp", mixer=mixers[0] if mixers else None, ffn=ffns[0] if ffns else None)
    return replace(spec, mtp_layers=MTP_REPEATS, mtp_kind=whole)


def _names(config: Config) -> list[str]:
    pattern = config.get("hybrid_override_pattern")
    stated: Any = config.get("layers_block_type") or config.get("layer_types")
    known = LETTERS if isinstance(pattern, str) else BLOCK_TYPES
    entries = list(pattern) if isinstance(pattern, str) else stated
    if not isinstance(entries, list) or not entries:
        raise BadInput("hybrid_override_pattern: is missing")
    return [known[e] for e in each_known("hybrid_override_pattern", entries, known)]


def _hybrid_layer(config: Config, name: str) -> LayerSpec:
    bias = flag(config, "mlp_bias")
    if name == "mamba":
        proj = flag(config, "use_bias", flag(config, "mamba_proj_bias"))
        return LayerSpec(name=name, ffn=None, mixer=StateSpace(
            num_heads=whole_number(config, "mamba_num_heads"), head_dim=whole_number(config, "mamba_head_dim"),
            state=whole_number(config, "ssm_state_size"), groups=whole_number(config, "n_groups"),
            conv=whole_number(config, "conv_kernel", 4), chunk=whole_number(config, "chunk_size", 128),
            conv_bias=flag(config, "use_conv_bias", True), proj_bias=proj,
        ))
    if name == "attention":
        heads = whole_number(config, "num_attention_heads")
        return LayerSpec(name=name, ffn=None, mixer=SelfAttention(
            num_heads=heads, num_kv_heads=whole_number(config, "num_key_value_heads", heads),
            head_dim=whole_number(config, "head_dim", whole_number(config, "attention_head_dim", 128)), positions="none",
            window=whole_number(config, "sliding_window", 0, least=0),
        ))
    activation = choice(config, "mlp_hidden_act", {"relu2": "relu2"}, "relu2")
    if name == "dense":
        hidden = whole_number(config, "intermediate_size")
        return LayerSpec(name=name, mixer=None, ffn=FeedForward(hidden=hidden, activation=activation, bias=bias))
    return LayerSpec(name=name, mixer=None, ffn=Experts(
        num_experts=whole_number(config, "n_routed_experts"), top_k=whole_number(config, "num_experts_per_tok"),
        hidden=whole_number(config, "moe_intermediate_size"), activation=activation, bias=bias, router_bias=True,
        shared_hidden=whole_number(config, "moe_shared_expert_intermediate_size", 0, least=0),
        latent=whole_number(config, "moe_latent_size", 0, least=0),
    ))


def searched(config: Config) -> ModelSpec:
    """Return the spec of a DeciLM configuration: each layer has its own key-value heads and width, or lacks a block."""
    refuse(config, ("attention_bias", "mlp_bias"))
    choice(config, "hidden_act", SILU, "silu")
    blocks = config.get("block_configs")
    if not isinstance(blocks, list) or len(blocks) != whole_number(config, "num_hidden_layers"):
        raise BadInput("block_configs: must be a list with an entry for each layer")
    layers = [_searched_layer(config, block, i) for i, block in enumerate(blocks)]
    return common(config, "nemotron-nas", layers, eps=1e-5)


def _searched_layer(config: Config, block: Any, index: int) -> LayerSpec:
    hidden, heads = whole_number(config, "hidden_size"), whole_number(config, "num_attention_heads")
    try:
        attention, ffn = block["attention"], block["ffn"]
        for part in (attention, ffn):
            refuse(part, ("replace_with_linear", "sparsify", "num_sink_tokens", "unshifted_sink"))
        group = None if attention.get("no_op") else whole_number(attention, "n_heads_in_group")
        width = None if ffn.get("no_op") else number(ffn, "ffn_mult", 0.0)
    except (TypeError, KeyError, AttributeError):
        raise BadInput(f"block_configs[{index}]: must have the mappings attention and ffn") from None
    if group and heads % group:
        raise BadInput(f"block_configs[{index}]: n_heads_in_group: groups of {group} do not divide {heads} heads")
    head_dim = head_width(hidden, heads)
    return LayerSpec(
        mixer=SelfAttention(num_heads=heads, num_kv_heads=heads // group, head_dim=head_dim) if group else None,
        # two thirds as in Llama, rounded up to 256 (DeciLM's own rule, modeling_decilm.py)
        ffn=FeedForward(hidden=-(-int(2 * width * hidden / 3) // 256) * 256) if width else None,
    )
