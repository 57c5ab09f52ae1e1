"""Readers of configurations against independent oracles: `transformers` on the meta device, published counts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from small_models import REFUSED, SMALL, collection, reference, reference_of

from profiles import files
from profiles.families import (
    FAMILIES,
    MODEL_TYPES,
    all_params,
    load_model,
    model_from_config,
    num_active_params,
    num_params,
)
from profiles.families.gpt2 import gpt2_spec
from profiles.families.llama import llama_spec
from profiles.files import BadInput
from profiles.model import Experts, FeedForward, ModelSpec

DOCUMENTED = {
    "mixtral-8x7b": (46.7e9, 12.9e9), "mixtral-8x22b": (141e9, 39e9), "deepseek-v3": (671e9, 37e9),
    "qwen3-235b-a22b": (235e9, 22e9), "kimi-k2": (1.04e12, 32e9), "gpt-oss-120b": (117e9, 5.1e9),
    "gpt-oss-20b": (21e9, 3.6e9), "mpt-7b": (6.7e9, 6.7e9), "mpt-30b": (30e9, 30e9), "nemotron4-340b": (341e9, 341e9),
    "nemotron4-15b": (15.6e9, 15.6e9), "llama-2-70b": (69e9, 69e9), "gemma-2-27b": (27.2e9, 27.2e9),
    "mpt-70b": (64.8624e9, 64.8624e9), "bloom-176b": (176.25e9, 176.25e9), "gpt-neox-20b": (20.55e9, 20.55e9),
    "deepseek-v2": (236e9, 21e9), "llama-4-maverick": (400e9, 17e9), "nemotron-3-super-120b-a12b": (120.6e9, 12.7e9),
}
"""Parameters in all and per token as the papers and model cards round them."""


def active_of(module: Any, top_k: int) -> float:
    """Return the parameters that one token uses: of tensors that stack experts only its share."""
    return float(sum(
        p.numel() * (top_k / p.shape[0] if ".experts." in name and ".shared_experts." not in name else 1.0)
        for name, p in module.named_parameters()
    ))


def corrections(spec: ModelSpec) -> int:
    """Return the elements of router corrections, which `transformers` keeps as buffers."""
    return sum(p.num_elements for p in all_params(spec) if p.name.endswith("router.correction"))


def test_the_collection_is_priced_or_refused_by_name(shared: Path) -> None:
    priced = 0
    for row in collection(shared):
        model_type = row["config"]["model_type"]
        if model_type in REFUSED:
            with pytest.raises(BadInput, match=f"{row['model']}: {model_type}: .*{REFUSED[model_type]}"):
                model_from_config(row["config"], row["model"])
        else:
            spec = model_from_config(row["config"], row["model"])
            assert num_params(spec) >= num_active_params(spec) > 0
            assert spec.family in FAMILIES
            assert ("text tower only" in spec.source) == ("text_config" in row["config"])
            priced += 1
    assert priced >= 75


def test_counts_of_the_collection_equal_transformers(shared: Path) -> None:
    compared: Counter[str] = Counter()
    for row in collection(shared):
        if row["config"]["model_type"] in REFUSED or (module := reference_of(row["config"])) is None:
            continue
        spec = model_from_config(row["config"], row["model"])
        assert num_params(spec) - corrections(spec) == sum(p.numel() for p in module.parameters()), row["model"]
        top_k = next((k.ffn.top_k for k in spec.kinds if isinstance(k.ffn, Experts)), 0)
        assert num_active_params(spec) - corrections(spec) == pytest.approx(active_of(module, top_k), rel=1e-9), row["model"]
        compared[row["config"]["model_type"]] += 1
    # MiMo-7B and Nemotron-NAS have no implementation there
    assert sum(compared.values()) == 73
    assert set(compared) >= {"deepseek_v32", "gemma4", "glm_moe_dsa", "llama4", "nemotron_h", "qwen3_5_moe", "qwen3_vl"}


@pytest.mark.parametrize("model_type", sorted(SMALL))
def test_counts_of_small_models_equal_transformers(model_type: str) -> None:
    spec = model_from_config(SMALL[model_type] | {"model_type": model_type}, "small")
    expected = sum(p.numel() for p in reference(model_type, SMALL[model_type]).parameters())
    assert num_params(spec) - corrections(spec) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"new_decoder_architecture": True, "num_kv_heads": 2}, {"multi_query": False, "parallel_attn": False, "bias": True},
        {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}, {"alibi": True},
    ],
)
def test_falcon_variants_equal_transformers(change: dict[str, Any]) -> None:
    config = SMALL["falcon"] | change
    spec = model_from_config(config | {"model_type": "falcon"}, "small")
    assert num_params(spec) == sum(p.numel() for p in reference("falcon", config).parameters())


def test_kimi_linear_equals_transformers() -> None:
    """The hub's file names its fields otherwise than the class does: each counts the same model."""
    config = {
        "model_type": "kimi_linear", "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 27,
        "num_attention_heads": 32, "num_key_value_heads": 32, "kv_lora_rank": 512, "q_lora_rank": None,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "mla_use_nope": True, "vocab_size": 163840,
        "num_experts": 256, "num_experts_per_token": 8, "num_shared_experts": 1, "moe_intermediate_size": 1024,
        "first_k_dense_replace": 1, "model_max_length": 1048576, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "linear_attn_config": {
            "full_attn_layers": [4, 8, 12, 16, 20, 24, 27], "head_dim": 128, "num_heads": 32, "short_conv_kernel_size": 4,
            "kda_layers": [i for i in range(1, 28) if i not in (4, 8, 12, 16, 20, 24, 27)],
        },
    }
    spec = model_from_config(config, "kimi-linear")
    types = ["full_attention" if i + 1 in (4, 8, 12, 16, 20, 24, 27) else "linear_attention" for i in range(27)]
    module = reference("kimi_linear", config | {
        "layer_types": types, "mlp_layer_types": ["dense"] + ["sparse"] * 26, "num_experts_per_tok": 8, "n_shared_experts": 1,
        "num_local_experts": 256, "linear_num_heads": 32, "linear_head_dim": 128, "linear_conv_kernel_dim": 4,
    })
    assert num_params(spec) - corrections(spec) == sum(p.numel() for p in module.parameters())
    assert num_params(spec) == pytest.approx(48e9, rel=0.03)
    assert num_active_params(spec) == pytest.approx(3e9, rel=0.2)


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text", "gpt_oss"])
def test_which_layers_see_a_window_equals_transformers(model_type: str) -> None:
    spec = model_from_config(SMALL[model_type] | {"model_type": model_type}, "small")
    types = reference(model_type, SMALL[model_type]).config.layer_types
    assert [f"{spec.kinds[i].name}_attention" for i in spec.pattern] == list(types)


def test_searched_layers_count_as_published(shared: Path) -> None:
    """49.9 billion on its model card; each layer rounds its width up to 256."""
    config = next(r["config"] for r in collection(shared) if r["config"]["model_type"] == "nemotron-nas")
    spec = model_from_config(config, "super")
    assert num_params(spec) == pytest.approx(49.87e9, rel=1e-4)
    widths = [k.ffn.hidden for k in spec.kinds if isinstance(k.ffn, FeedForward)]
    assert 28672 in widths
    assert all(w % 256 == 0 for w in widths)
    assert sum(spec.times(k.name) for k in spec.kinds if k.mixer is None) == 31


@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_catalogue_counts_are_those_published(name: str) -> None:
    spec = load_model(name)
    total, active = DOCUMENTED[name]
    # cards count active parameters with or without embeddings: gpt-oss leaves the table out
    tables = spec.vocab * spec.hidden if name.startswith("gpt-oss") else 0
    assert num_params(spec) == pytest.approx(total, rel=0.015)
    assert num_active_params(spec) - tables == pytest.approx(active, rel=0.03)


def test_dimensions_make_a_model() -> None:
    sizes: dict[str, Any] = {
        "num_layers": 32, "hidden": 4096, "num_heads": 32, "num_kv_heads": 8, "head_dim": 128, "ffn_hidden": 14336,
        "vocab": 128256, "max_seq_len": 8192,
    }
    assert num_params(llama_spec(name="mine", **sizes)) == num_params(load_model("llama-3-8b"))
    small: dict[str, Any] = {
        "num_layers": 12, "hidden": 768, "num_heads": 12, "num_kv_heads": 12, "head_dim": 64, "ffn_hidden": 3072,
        "vocab": 50257, "max_seq_len": 1024,
    }
    assert num_params(gpt2_spec(name="mine", **small)) == num_params(load_model("gpt2"))


@pytest.mark.parametrize(
    ("model_type", "change", "message"),
    [
        ("gemma2", {"layer_types": ["full_attention"] * 3 + ["mystery"]}, "layer_types: .'mystery'. are not known"),
        ("nemotron_h", {"hybrid_override_pattern": "MX"}, "hybrid_override_pattern: .'X'. are not known"),
        ("mixtral", {"hidden_act": "situ"}, "hidden_act: 'situ' is not known; known are silu"),
        ("qwen3", {"use_sliding_window": True}, "use_sliding_window: True is not known"),
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before: false .* is not known"),
        ("deepseek_v3", {"moe_layer_freq": 2}, "moe_layer_freq: 2 is not known"),
        ("gpt_oss", {"layer_types": ["full_attention"]}, "layer_types: must be a list of 4 entries"),
        ("mpt", {"attn_config": 3}, r"attn_config: must be a mapping \(is 3\)"),
        ("phi", {"qk_layernorm": True}, "qk_layernorm: True is not known"),
    ],
)
def test_an_unknown_block_is_refused(model_type: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=f"small: {message}"):
        model_from_config(SMALL[model_type] | {"model_type": model_type} | change, "small")


def test_parameters_have_names_of_their_own() -> None:
    for name in files.catalog_names("models"):
        names = [p.name for p in all_params(load_model(name))]
        assert len(set(names)) == len(names)
    assert set(SMALL) <= set(MODEL_TYPES)
