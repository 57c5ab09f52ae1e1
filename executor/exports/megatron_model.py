"""A model in Megatron's words: fields of Core's TransformerConfig (0.16.1) and of Bridge's GPTModelProvider (0.3.1)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from planner.plan import Plan
from profiles.model import Experts, Ffn, LatentAttention, LayerSpec, ModelSpec, SelfAttention
from simulator.strategy import Strategy

ACTIVATIONS = {"swiglu": "silu", "gelu": "gelu", "relu2": "squared_relu"}
POSITIONS = {"rotary": "rope", "learned": "learned_absolute", "none": "none"}
HEEDED: dict[type, tuple[str, ...]] = {
    SelfAttention: ("kind", "num_heads", "num_kv_heads", "head_dim", "positions", "rope_dim", "qkv_bias", "out_bias",
                    "qk_norm"),
    LatentAttention: ("kind", "num_heads", "q_lora_rank", "kv_lora_rank", "nope_dim", "rope_dim", "value_dim"),
    LayerSpec: ("name", "mixer", "ffn"),
}
"""Fields of blocks and layers that become arguments; others must be at their defaults."""


def model_refusals(model: ModelSpec) -> Iterator[str]:
    """Yield what Megatron's GPT model does not have, one sentence each."""
    mixers = {kind.mixer for kind in model.kinds}
    if len(mixers) > 1:
        yield f"model {model.name}: its layers mix {len(mixers)} kinds of attention, Megatron's GPT arguments describe one"
    mixer = model.kinds[0].mixer
    if not isinstance(mixer, (SelfAttention, LatentAttention)):
        yield (f"model {model.name}: mixer {mixer.kind if mixer else 'none'} is no attention, and Megatron's GPT model has no "
               "other")
        return
    for part in (mixer, *model.kinds):
        for field in fields(part):
            value = getattr(part, field.name)
            if field.name not in HEEDED[type(part)] and value != field.default:
                yield f"model {model.name}: {field.name}={value!r} has no argument in Megatron's GPT model"
    blocks = [kind.ffn for kind in model.kinds]
    if None in blocks or len({type(b) for b in blocks}) < len(blocks):
        yield f"model {model.name}: Megatron's GPT layers have a feed-forward block each, all of one width or all experts alike"
        return
    yield from _words(model, mixer, blocks)


def _words(model: ModelSpec, mixer: SelfAttention | LatentAttention, blocks: list[Ffn | None]) -> Iterator[str]:
    activations = {b.activation for b in blocks if b}
    if len(activations) > 1 or not activations <= set(ACTIVATIONS):
        yield f"model {model.name}: activation {', '.join(sorted(activations))}; Megatron has one of {', '.join(ACTIVATIONS)}"
    if mixer.positions not in POSITIONS:
        yield f"model {model.name}: positions {mixer.positions}; Megatron has {', '.join(POSITIONS)}"
    if isinstance(mixer, SelfAttention) and mixer.qk_norm not in ("none", "head"):
        yield f"model {model.name}: qk_norm {mixer.qk_norm}; Megatron norms each head (head) or none"
    if isinstance(mixer, SelfAttention) and mixer.out_bias != all(b.bias for b in blocks if b):
        yield (f"model {model.name}: biases of attention's output and of feed-forward blocks differ, Megatron has one switch "
               "for both")
    if model.embedding_norm or model.head_bias:
        yield f"model {model.name}: Megatron's GPT model has neither a norm of embeddings nor a bias of the head"
    for b in blocks:
        if isinstance(b, Experts) and (b.latent or b.branch_norms or b.router_linear_bias):
            yield f"model {model.name}: these experts (latent, branch_norms or router_linear_bias) have no argument here"
        if isinstance(b, Experts) and b.shared_gate and not b.shared_hidden:
            yield f"model {model.name}: a gate of shared experts needs shared experts"


def model_fields(model: ModelSpec, strategy: Strategy) -> dict[str, Any]:
    """Return the fields of Megatron-Core's TransformerConfig (MLATransformerConfig) that describe a model."""
    mixer = model.kinds[0].mixer
    assert isinstance(mixer, (SelfAttention, LatentAttention))
    blocks = [kind.ffn for kind in model.kinds if kind.ffn]
    result: dict[str, Any] = {
        "num_layers": model.num_layers, "hidden_size": model.hidden, "num_attention_heads": mixer.num_heads,
        "normalization": "LayerNorm" if model.norm_bias else "RMSNorm", "layernorm_epsilon": model.norm_eps,
        "gated_linear_unit": blocks[0].gated, "activation_func": ACTIVATIONS[blocks[0].activation],
        "add_bias_linear": all(b.bias for b in blocks),
        "ffn_hidden_size": next((b.hidden for b in blocks if not isinstance(b, Experts)), blocks[0].hidden),
    }
    if isinstance(mixer, SelfAttention):
        result |= {"num_query_groups": mixer.num_kv_heads, "kv_channels": mixer.head_dim,
                   "add_qkv_bias": mixer.qkv_bias, "qk_layernorm": mixer.qk_norm == "head"}
    else:
        result |= {"multi_latent_attention": True, "qk_layernorm": True, "kv_lora_rank": mixer.kv_lora_rank,
                   "qk_head_dim": mixer.nope_dim, "qk_pos_emb_head_dim": mixer.rope_dim, "v_head_dim": mixer.value_dim,
                   "q_lora_rank": mixer.q_lora_rank or None, "kv_channels": mixer.value_dim}
    if not strategy.software.dropout:
        result |= {"attention_dropout": 0.0, "hidden_dropout": 0.0}
    if model.mtp_layers:
        result["mtp_num_layers"] = model.mtp_layers
    for block in blocks:
        if isinstance(block, Experts):
            result |= _expert_fields(model, block)
    return result


def _expert_fields(model: ModelSpec, experts: Experts) -> dict[str, Any]:
    result: dict[str, Any] = {
        "num_moe_experts": experts.num_experts, "moe_router_topk": experts.top_k, "moe_ffn_hidden_size": experts.hidden,
    }
    if experts.shared_hidden:
        result |= {"moe_shared_expert_intermediate_size": experts.shared_hidden, "moe_shared_expert_gate": experts.shared_gate}
    if experts.router_bias:
        result |= {"moe_router_enable_expert_bias": True, "moe_router_score_function": "sigmoid"}
    if len(model.kinds) > 1:
        result["moe_layer_freq"] = [int(isinstance(model.kinds[kind].ffn, Experts)) for kind in model.pattern]
    return result


def provider_fields(plan: Plan) -> dict[str, Any]:
    """Return what describes the model beside the layers: positions, vocabulary, tied embeddings, length."""
    s, model = plan.strategy, plan.question.model
    mixer = model.kinds[0].mixer
    assert isinstance(mixer, (SelfAttention, LatentAttention))
    result: dict[str, Any] = {
        "seq_length": s.seq_len, "max_position_embeddings": max(s.seq_len, model.learned_positions),
        "position_embedding_type": POSITIONS[mixer.positions], "vocab_size": model.vocab,
        "share_embeddings_and_output_weights": model.tied_embeddings,
    }
    if mixer.positions == "rotary":
        result["rotary_base"] = int(model.rope_theta)
        if isinstance(mixer, SelfAttention) and mixer.rope_dim:
            result["rotary_percent"] = mixer.rope_dim / mixer.head_dim
    return result
