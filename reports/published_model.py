"""A published row's model: built from the dimensions that the row states.

What no column states follows from the kind of model: with a gated feed-forward it is of Llama's kind (RMSNorm, rotary
positions, no biases, separate head), without of GPT's kind (LayerNorm, learned positions, biases, tied head). `TRAITS`
names the models that differ from their kind.
"""

from __future__ import annotations

import re
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from profiles import files
from profiles.families import load_model
from profiles.files import BadInput
from profiles.model import Experts, FeedForward, Ffn, LatentAttention, LayerSpec, Mixer, ModelSpec, SelfAttention
from reports.rows import Row

LLAMA_KIND: dict[str, Any] = {"activation": "swiglu", "bias": False, "norm": "rms_norm", "positions": "rotary", "tied": False}
GPT_KIND: dict[str, Any] = {"activation": "gelu", "bias": True, "norm": "layer_norm", "positions": "learned", "tied": True}
TRAITS: dict[str, dict[str, Any]] = {
    "nemotron4*": {"activation": "relu2", "bias": False, "positions": "rotary", "tied": False},
    "bloom*": {"positions": "alibi", "embedding_norm": True},
    "gpt-neox*": {"positions": "rotary", "tied": False, "parallel": True},
    "glm-130b*": {"activation": "geglu", "bias": True, "norm": "layer_norm"},
    "palm*": {"norm": "layer_norm", "parallel": True, "tied": True},
    "grok*": {"activation": "geglu", "post_norms": True},
    "qwen3*": {"qk_norm": "head"},
    "gpt-oss*": {"qkv_bias": True, "out_bias": True, "ffn_bias": True, "router_linear_bias": True, "sinks": True},
    "llama3.2-*": {"tied": True},
    "*bench_cluster*": {"tied": True},
}
"""Glob on the row's model name -> where it differs from its kind; each as its authors published it."""
VOCAB_MULTIPLE = 128
"""A vocabulary that is cut over tp is padded to this multiple of tp (Megatron-LM --make-vocab-size-divisible-by)."""


def model_of(row: Row) -> ModelSpec:
    """Return the model that a row describes; what it does not state enough for is a `BadInput`."""
    if "hybrid" in row.text("attn_type"):
        return _padded(_from_catalogue(row), row)
    traits = dict(LLAMA_KIND if row.flag("gated_mlp") else GPT_KIND)
    for name, differs in TRAITS.items():
        if fnmatchcase(row.text("model").lower(), name):
            traits |= differs
    kinds, pattern = _layers(row, traits)
    seq_len = _whole(row, "seq_len")
    learned = traits["positions"] == "learned"
    return _padded(ModelSpec(
        name=row.text("model"), family="llama" if traits["norm"] == "rms_norm" else "gpt2", hidden=_whole(row, "hidden"),
        vocab=_whole(row, "vocab"), max_seq_len=seq_len, kinds=kinds, pattern=pattern, norm=traits["norm"],
        norm_bias=traits["norm"] == "layer_norm" and traits["bias"], learned_positions=seq_len if learned else 0,
        embedding_norm=traits.get("embedding_norm", False), tied_embeddings=traits["tied"],
        mtp_layers=row.whole("mtp_layers") or 0, source=row.text("arch_from") or row.text("source") or row.id,
    ), row)


def _whole(row: Row, column: str) -> int:
    value = row.whole(column)
    if value is None or value < 1:
        raise BadInput(f"{column}: must be a whole number of at least 1 (is {row.text(column)!r})")
    return value


def _padded(model: ModelSpec, row: Row) -> ModelSpec:
    multiple = VOCAB_MULTIPLE * (row.whole("tp") or 1)
    return model if multiple == VOCAB_MULTIPLE else replace(model, vocab=-(-model.vocab // multiple) * multiple)


def _layers(row: Row, traits: dict[str, Any]) -> tuple[tuple[LayerSpec, ...], tuple[int, ...]]:
    """Return the kinds of layers and which each layer is; a layer with experts is the last kind."""
    num, mixer = _whole(row, "n_layers"), _mixer(row, traits)
    form = {"post_norms": traits.get("post_norms", False), "parallel": traits.get("parallel", False)}
    if "sliding window" in row.text("attn_type") and isinstance(mixer, SelfAttention):
        ffn = _experts(row, traits) or _dense(row, traits)
        near = LayerSpec(name="sliding", mixer=replace(mixer, window=_window(row)), ffn=ffn, **form)
        return (near, LayerSpec(name="full", mixer=mixer, ffn=ffn, **form)), tuple(i % 2 for i in range(num))
    experts = _experts(row, traits)
    if experts is None:
        return (LayerSpec(mixer=mixer, ffn=_dense(row, traits), **form),), (0,) * num
    with_experts = LayerSpec(name="moe", mixer=mixer, ffn=experts, **form)
    every = re.search(r"MoE every (\d+)(?:st|nd|rd|th) layer", row.text("attn_type"))
    first = row.whole("first_dense_layers") or 0
    if not every and not first:
        return (with_experts,), (0,) * num
    step = int(every[1]) if every else 1
    dense = LayerSpec(name="dense", mixer=mixer, ffn=_dense(row, traits), **form)
    return (dense, with_experts), tuple(int(i >= first and (i + 1) % step == 0) for i in range(num))


def _window(row: Row) -> int:
    match = re.search(r"(\d+)-token sliding window", row.text("attn_type"))
    if not match:
        raise BadInput(f"attn_type: {row.text('attn_type')!r} states no '<number>-token sliding window'")
    return int(match[1])


def _mixer(row: Row, traits: dict[str, Any]) -> Mixer:
    heads = _whole(row, "n_heads")
    if row.text("attn_type") == "mla":
        return replace(_latent(row), num_heads=heads)
    kv_heads = row.whole("n_kv_heads") or heads
    if heads % kv_heads:
        raise BadInput(f"n_kv_heads: {kv_heads} key-value heads do not divide {heads} heads")
    return SelfAttention(
        num_heads=heads, num_kv_heads=kv_heads, head_dim=row.whole("head_dim") or _whole(row, "hidden") // heads,
        positions=traits["positions"], qkv_bias=traits.get("qkv_bias", traits["bias"]),
        out_bias=traits.get("out_bias", traits["bias"]), qk_norm=traits.get("qk_norm", "none"),
        sinks=traits.get("sinks", False),
    )


def _latent(row: Row) -> LatentAttention:
    """Return the latent ranks, which no column states, from the catalogue's model of the same name."""
    for kind in _from_catalogue(row).kinds:
        if isinstance(kind.mixer, LatentAttention):
            return kind.mixer
    raise BadInput(f"attn_type: the catalogue's model of the name {row.text('model')!r} has no latent attention")


def _from_catalogue(row: Row) -> ModelSpec:
    wanted = _letters(row.text("model").split(" cut to ")[0])
    name = next((n for n in files.catalog_names("models") if _letters(n) == wanted), None)
    if name is None:
        kind = row.text("attn_type")
        raise BadInput(f"attn_type: {kind!r} needs the catalogue's model, and {row.text('model')!r} is not there")
    return load_model(name)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", name.lower())


def _experts(row: Row, traits: dict[str, Any]) -> Experts | None:
    num = row.whole("n_experts")
    if not num or num == 1:
        return None
    hidden = row.whole("moe_ffn_hidden") or _whole(row, "ffn_hidden")
    return Experts(
        num_experts=num, top_k=_whole(row, "experts_topk"), hidden=hidden, activation=traits["activation"],
        bias=traits.get("ffn_bias", traits["bias"]), router_linear_bias=traits.get("router_linear_bias", False),
        shared_hidden=(row.whole("moe_shared") or 0) * hidden,
    )


def _dense(row: Row, traits: dict[str, Any]) -> Ffn:
    return FeedForward(hidden=_whole(row, "ffn_hidden"), activation=traits["activation"],
                       bias=traits.get("ffn_bias", traits["bias"]))
