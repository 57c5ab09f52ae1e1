"""Llama, Qwen2, Mistral, MiMo, Phi-3: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

arXiv 2307.09288 (Llama 2), 2407.10671 (Qwen2), 2310.06825 (Mistral), 2505.07608 (MiMo).
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
    whole_number,
)
from profiles.model import FeedForward, LayerSpec, ModelSpec, SelfAttention

SILU = {"silu": "swiglu", "swish": "swiglu"}


def llama_spec(
    *, name: str, num_layers: int, hidden: int, num_heads: int, num_kv_heads: int, head_dim: int, ffn_hidden: int,
    vocab: int, max_seq_len: int, tied_embeddings: bool = False, qkv_bias: bool = False, norm_eps: float = 1e-5,
    rope_theta: float = 10000.0, source: str = "",
) -> ModelSpec:
    """Return a model of Llama's blocks by its dimensions."""
    layer = LayerSpec(
        mixer=SelfAttention(num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, qkv_bias=qkv_bias),
        ffn=FeedForward(hidden=ffn_hidden),
    )
    return ModelSpec(
        name=name, family="llama", hidden=hidden, vocab=vocab, max_seq_len=max_seq_len, kinds=(layer,),
        pattern=(0,) * num_layers, norm_eps=norm_eps, rope_theta=rope_theta, tied_embeddings=tied_embeddings,
        source=source,
    )


def from_config(config: Config) -> ModelSpec:
    """Return the spec of a `LlamaConfig` or `Qwen2Config`."""
    refuse(config, ("attention_bias", "mlp_bias", "num_local_experts", "use_sliding_window"))
    return _plain(config, qkv_bias=config.get("model_type") == "qwen2")


def mistral(config: Config) -> ModelSpec:
    """Return the spec of a `MistralConfig`: Llama's blocks, with a window on all layers where one is stated."""
    spec = _plain(config, qkv_bias=False)
    return with_window(spec, whole_number(config, "sliding_window", 0, least=0), "mistral")


def mimo(config: Config) -> ModelSpec:
    """Return the spec of MiMo-7B: Qwen2's blocks, and layers that predict further tokens."""
    refuse(config, ("use_sliding_window", "use_mrope"))
    spec = _plain(config, qkv_bias=flag(config, "attention_bias", True))
    return replace(spec, family="mimo", mtp_layers=whole_number(config, "num_nextn_predict_layers", 0, least=0))


def phi3(config: Config) -> ModelSpec:
    """Return the spec of a `Phi3Config` (arXiv 2404.14219): Llama's blocks, stored with joint projections."""
    spec = _plain(config, qkv_bias=False)
    mixer = spec.kinds[0].mixer
    assert isinstance(mixer, SelfAttention)
    turned = rope_dim(config, mixer.head_dim)
    if turned:
        spec = replace(spec, family="phi3", kinds=(replace(spec.kinds[0], mixer=replace(mixer, rope_dim=turned)),))
    return with_window(spec, whole_number(config, "sliding_window", 0, least=0), "phi3")


def with_window(spec: ModelSpec, window: int, family: str) -> ModelSpec:
    """Return the spec with a sliding window on each layer, under its own family name; 0 changes nothing."""
    if not window or window >= spec.max_seq_len:
        return spec
    layer = spec.kinds[0]
    assert isinstance(layer.mixer, SelfAttention)
    layer = replace(layer, mixer=replace(layer.mixer, window=window))
    return replace(spec, family=family, kinds=(layer,))


def common(config: Config, family: str, layers: list[LayerSpec], *, tied: bool = False, eps: float = 1e-6) -> ModelSpec:
    """Return a spec of these layers with the fields that most configurations name alike."""
    kinds, pattern = kinds_of(layers)
    return ModelSpec(
        name="", family=family, hidden=whole_number(config, "hidden_size"), vocab=whole_number(config, "vocab_size"),
        max_seq_len=whole_number(config, "max_position_embeddings"), kinds=kinds, pattern=pattern,
        norm_eps=number(config, "rms_norm_eps", eps), rope_theta=rope_theta(config),
        tied_embeddings=flag(config, "tie_word_embeddings", tied),
    )


def heads_of(config: Config) -> tuple[int, int, int]:
    """Return heads, key-value heads and the width of a head, under the names that most configurations use."""
    heads = whole_number(config, "num_attention_heads")
    shared = config.get("head_dim") is None
    head_dim = head_width(whole_number(config, "hidden_size"), heads) if shared else whole_number(config, "head_dim")
    return heads, whole_number(config, "num_key_value_heads", heads), head_dim


def _plain(config: Config, *, qkv_bias: bool) -> ModelSpec:
    choice(config, "hidden_act", SILU, "silu")
    num_layers = whole_number(config, "num_hidden_layers")
    heads, kv, head_dim = heads_of(config)
    layer = LayerSpec(
        mixer=SelfAttention(num_heads=heads, num_kv_heads=kv, head_dim=head_dim, qkv_bias=qkv_bias),
        ffn=FeedForward(hidden=whole_number(config, "intermediate_size")),
    )
    return common(config, "llama", [layer] * num_layers)
