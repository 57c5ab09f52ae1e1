"""Weights as Hugging Face folders hold them: what each parameter is called there, and the configuration beside it.

Names are those of `transformers` (modeling files of gpt2, llama, qwen2, qwen3, mixtral, qwen3_moe). No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from profiles import files
from profiles.families import all_params, model_from_config
from profiles.files import BadInput
from profiles.model import Experts, FeedForward, ModelSpec, SelfAttention

CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE = "config.json", "model.safetensors.index.json", "model.safetensors"
LAYER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn.wq": "self_attn.q_proj",
    "attn.wk": "self_attn.k_proj", "attn.wv": "self_attn.v_proj", "attn.wo": "self_attn.o_proj",
    "attn.q_norm": "self_attn.q_norm", "attn.k_norm": "self_attn.k_norm", "ffn.w1": "mlp.gate_proj", "ffn.w3": "mlp.up_proj",
    "ffn.w2": "mlp.down_proj", "ffn.router": "mlp.gate", "ffn.experts.w1": "mlp.experts.{}.gate_proj",
    "ffn.experts.w3": "mlp.experts.{}.up_proj", "ffn.experts.w2": "mlp.experts.{}.down_proj",
}
MIXTRAL = {"ffn.router": "block_sparse_moe.gate"} | {f"ffn.experts.{w}": f"block_sparse_moe.experts.{{}}.{w}" for w in
                                                     ("w1", "w2", "w3")}
GPT2 = {"attn_norm": "ln_1", "ffn_norm": "ln_2", "attn.wq": "attn.c_attn", "attn.wk": "attn.c_attn", "attn.wv": "attn.c_attn",
        "attn.wo": "attn.c_proj", "ffn.w1": "mlp.c_fc", "ffn.w2": "mlp.c_proj"}
ENDS = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
GPT2_ENDS = {"embed": "transformer.wte", "positions": "transformer.wpe", "norm": "transformer.ln_f", "head": "lm_head"}
SAID_ELSEWHERE = ("name", "source", "max_seq_len", "learned_positions")
"""Fields of a model that a folder of weights may have otherwise: labels, and a length that weights do not depend on."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a parameter lies in a file: the tensor's name ('{}' counts experts), whether its dims are swapped there, and
    at which row of our dim 0 it begins in a tensor that holds several."""

    name: str
    swapped: bool = False
    begin: int = 0


def place_of(spec: ModelSpec, name: str) -> Place:
    """Return where a parameter of ours lies."""
    is_gpt2 = spec.family == "gpt2"
    stem, kind = name.rsplit(".", 1)
    if not stem.startswith("layers."):
        return Place(f"{(GPT2_ENDS if is_gpt2 else ENDS)[stem]}.{kind}")
    _, index, block = stem.split(".", 2)
    if not is_gpt2:
        names = LAYER | MIXTRAL if spec.family == "mixtral" else LAYER
        return Place(f"model.layers.{index}.{names[block]}.{kind}")
    # GPT-2's linear maps are [in, out], those of queries, keys and values side by side
    turn = ("attn.wq", "attn.wk", "attn.wv").index(block) if block in ("attn.wq", "attn.wk", "attn.wv") else 0
    swapped = kind == "weight" and "norm" not in block
    return Place(f"transformer.h.{index}.{GPT2[block]}.{kind}", swapped, turn * spec.hidden)


def config_of(spec: ModelSpec) -> dict[str, Any]:
    """Return the `config.json` of a model of a family that the engine runs."""
    mixer = spec.kinds[0].mixer
    assert isinstance(mixer, SelfAttention)
    dense = next((k.ffn.hidden for k in spec.kinds if isinstance(k.ffn, FeedForward)), 0)
    experts = next((k.ffn for k in spec.kinds if isinstance(k.ffn, Experts)), None)
    shared = {"vocab_size": spec.vocab, "tie_word_embeddings": spec.tied_embeddings, "dtype": "float32"}
    if spec.family == "gpt2":
        return shared | {
            "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": spec.num_layers, "n_embd": spec.hidden,
            "n_head": mixer.num_heads, "n_positions": spec.learned_positions, "n_inner": dense,
            "layer_norm_epsilon": spec.norm_eps, "activation_function": "gelu_new", "attn_pdrop": 0.0, "embd_pdrop": 0.0,
            "resid_pdrop": 0.0, "bos_token_id": None, "eos_token_id": None,
        }
    kind = "qwen2" if spec.family == "llama" and mixer.qkv_bias else spec.family
    names = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "mixtral": "Mixtral", "qwen3_moe": "Qwen3Moe"}
    of_experts: dict[str, Any] = {}
    if experts and spec.family == "mixtral":
        dense = experts.hidden
        of_experts = {"num_local_experts": experts.num_experts, "num_experts_per_tok": experts.top_k, "sliding_window": None}
    elif experts:
        only = [i for i, k in enumerate(spec.pattern) if isinstance(spec.kinds[k].ffn, FeedForward)]
        of_experts = {
            "num_experts": experts.num_experts, "num_experts_per_tok": experts.top_k, "norm_topk_prob": True,
            "moe_intermediate_size": experts.hidden, "mlp_only_layers": only, "decoder_sparse_step": 1,
        }
    return shared | {
        "model_type": kind, "architectures": [f"{names[kind]}ForCausalLM"], "num_hidden_layers": spec.num_layers,
        "hidden_size": spec.hidden, "num_attention_heads": mixer.num_heads, "num_key_value_heads": mixer.num_kv_heads,
        "head_dim": mixer.head_dim, "intermediate_size": dense or spec.hidden, "max_position_embeddings": spec.max_seq_len,
        "rms_norm_eps": spec.norm_eps, "rope_theta": spec.rope_theta, "hidden_act": "silu", "bos_token_id": None,
        "eos_token_id": None, "pad_token_id": None,
    } | ({"attention_bias": mixer.qkv_bias} if "qwen3" in kind else {}) | of_experts


def check_weights(folder: str, spec: ModelSpec) -> None:
    """Refuse a folder whose weights are not of this model, or whose model computes what the engine does not."""
    path = Path(folder) / CONFIG_FILE
    config = files.read_mapping(path)
    theirs = model_from_config(config, path.parent.name)
    for field in fields(spec):
        a, b = getattr(spec, field.name), getattr(theirs, field.name)
        if field.name not in SAID_ELSEWHERE and a != b:
            raise BadInput(f"{path}: {field.name}: is {_brief(b)}, and the plan's model {spec.name} has {_brief(a)}")
    if theirs.learned_positions != spec.learned_positions:
        raise BadInput(f"{path}: has {theirs.learned_positions} learned positions, the plan's model {spec.learned_positions}")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    how = rope.get("rope_type", rope.get("type", "default"))
    if how != "default":
        raise BadInput(f"{path}: rope_type: is {how!r}, and the engine turns by plain angles only ('default')")
    for key, runs, default in (("norm_topk_prob", (True,), spec.family != "qwen3_moe"),
                               ("activation_function", ("gelu_new", "gelu_pytorch_tanh"), "gelu_new")):
        if (value := config.get(key, default)) not in runs:
            raise BadInput(f"{path}: {key}: is {value!r}, and the engine computes {runs[0]!r} only")
    present = tensor_files(folder)
    for p in all_params(spec):
        place = place_of(spec, p.name)
        for name in [place.name.format(e) for e in range(p.shape[0])] if p.expert else [place.name]:
            if _known_as(name, present) is None:
                raise BadInput(f"{folder}: {name}: is missing in the weights")


def tensor_files(folder: str) -> dict[str, str]:
    """Return the file of each tensor of a folder of weights, by the tensor's name."""
    index, whole = Path(folder) / INDEX_FILE, Path(folder) / WEIGHTS_FILE
    if index.exists():
        return {str(k): str(v) for k, v in files.read_mapping(index).get("weight_map", {}).items()}
    if not whole.exists():
        raise BadInput(f"{folder}: has neither {WEIGHTS_FILE} nor {INDEX_FILE}; the engine reads safetensors only")
    from safetensors import safe_open

    with safe_open(whole, "numpy") as file:
        return dict.fromkeys(file.keys(), WEIGHTS_FILE)


def _known_as(name: str, present: dict[str, str]) -> str | None:
    """Return what a tensor is called in a folder: the first GPT-2 files have no `transformer.` in front."""
    return next((n for n in (name, name.removeprefix("transformer.")) if n in present), None)


def file_of(name: str, present: dict[str, str]) -> tuple[str, str]:
    """Return what a tensor is called in a folder, and its file."""
    known = _known_as(name, present)
    assert known is not None, f"{name} was checked to be there"
    return known, present[known]


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) < 80 else f"{text[:77]}..."
