"""Shared by the tests of models: small configurations, the collection, and the reference implementation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

REFUSED = {
    "deepseek_v4": "hyper-connections", "deepseek_ref": "hyper-connections", "kimi_k3": "residuals across blocks",
    "minimax_m3": "sparse_attention_config", "minimax_m3_vl": "sparse_attention_config", "step3p7": "gates for each head",
}
"""Types of the collection that no law here prices, and the block that the refusal must name."""

TINY: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 512, "max_position_embeddings": 256,
}
LATENT: dict[str, Any] = TINY | {
    "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
    "v_head_dim": 16, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 2, "moe_intermediate_size": 32,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}
SMALL: dict[str, dict[str, Any]] = {
    "llama": TINY, "qwen2": TINY, "mistral": TINY | {"sliding_window": 128}, "phi3": TINY | {"pad_token_id": 0},
    "mixtral": TINY | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": TINY | {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 48, "num_experts": 8,
                         "num_experts_per_tok": 2, "decoder_sparse_step": 2},
    "qwen3": TINY | {"head_dim": 32},
    "qwen3_moe": TINY | {"head_dim": 16, "moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2,
                         "mlp_only_layers": [1]},
    "gemma": TINY | {"head_dim": 32, "pad_token_id": 0},
    "gemma2": TINY | {"head_dim": 16, "sliding_window": 128, "pad_token_id": 0},
    "gemma3_text": TINY | {"head_dim": 16, "sliding_window": 128, "sliding_window_pattern": 2, "pad_token_id": 0},
    "deepseek_v2": LATENT | {"topk_method": "greedy"}, "deepseek_v3": LATENT,
    "gpt_neox": TINY | {"num_key_value_heads": None}, "phi": TINY, "nemotron": TINY | {"hidden_act": "relu2"},
    "olmo2": TINY | {"pad_token_id": 0},
    "opt": TINY | {"ffn_dim": 160, "word_embed_proj_dim": 64, "pad_token_id": 1},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 3, "vocab_size": 512, "max_seq_len": 256},
    "bloom": {"hidden_size": 64, "n_head": 4, "n_layer": 3, "vocab_size": 512},
    "falcon": TINY, "gpt2": {"n_embd": 64, "n_head": 4, "n_layer": 3, "n_positions": 128, "vocab_size": 512},
    "nemotron_h": TINY | {
        "hybrid_override_pattern": "M-*E", "mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 2,
        "conv_kernel": 4, "chunk_size": 32, "head_dim": 16, "n_routed_experts": 8, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32, "moe_shared_expert_intermediate_size": 48, "moe_latent_size": 24, "n_group": 1,
        "topk_group": 1, "n_shared_experts": 1,
    },
    "gpt_oss": TINY | {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 128},
}
"""A small configuration of each type that `transformers` builds."""


SAME = {"qwen3_vl_text": "qwen3", "qwen3_vl_moe_text": "qwen3_moe", "kimi_k2": "deepseek_v3"}
"""Language models that are those of another type, to the last field."""


def collection(shared: Path) -> list[dict[str, Any]]:
    """Return the rows of the configuration collection."""
    return [json.loads(line) for line in (shared / "models" / "hf_configs.jsonl").read_text().splitlines()]


def reference(model_type: str, config: dict[str, Any], device: str = "meta", **more: Any) -> Any:
    """Return the reference implementation's module."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    fields = {k: v for k, v in config.items() if k not in ("model_type", "quantization_config", "auto_map")}
    with torch.device(device):
        made = transformers.AutoConfig.for_model(model_type, **fields)
        return transformers.AutoModelForCausalLM.from_config(made, **more)


def reference_of(config: dict[str, Any]) -> Any | None:
    """Return the reference module for a configuration of the collection, or None where `transformers` has none."""
    transformers = pytest.importorskip("transformers")
    text = config.get("text_config") or config
    model_type = str(text["model_type"])
    model_type = SAME.get(model_type, model_type)
    if model_type not in transformers.CONFIG_MAPPING:
        return None
    tied = {k: v for k, v in config.items() if k == "tie_word_embeddings"}
    return reference(model_type, tied | text)
