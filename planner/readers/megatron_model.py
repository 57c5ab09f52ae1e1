"""Megatron-LM's arguments of a model -> `ModelSpec` (NVIDIA/Megatron-LM megatron/training/arguments.py, 2026-08)."""

from __future__ import annotations

import ast
import re
from dataclasses import replace

from planner.readers.reading import Stated
from profiles.families import check_spec
from profiles.model import Experts, FeedForward, Ffn, LatentAttention, LayerSpec, Mixer, ModelSpec, SelfAttention

VOCABULARY = {"GPT2BPETokenizer": 50257, "Llama2Tokenizer": 32000, "Llama3Tokenizer": 128256}
"""Tokenizers whose number of tokens is the same everywhere."""
OTHER_MODELS = dict.fromkeys(
    ("hybrid-layer-pattern", "hybrid-override-pattern", "hybrid-attention-ratio", "hybrid-mlp-ratio", "is-hybrid-model",
     "mamba-*", "heterogeneous-layers-config-*", "experimental-attention-variant", "linear-attention-*", "linear-key-*",
     "linear-value-*", "linear-conv-*", "linear-num-*", "moe-latent-size", "encoder-num-layers", "decoder-num-layers", "spec",
     "num-classes", "img-h"),
    "makes a model that arguments do not state in full",
)
"""Arguments of models that are not read here, and why."""
NAME_IT = "name the model in front of the cluster (a catalogue name or a config.json)"
MODEL_NAMES = (
    "num-layers", "hidden-size", "ffn-hidden-size", "num-attention-heads", "group-query-attention", "num-query-groups",
    "kv-channels", "max-position-embeddings", "position-embedding-type", "use-rotary-position-embeddings", "rotary-percent",
    "normalization", "swiglu", "squared-relu", "openai-gelu", "quick-geglu", "disable-bias-linear", "add-qkv-bias",
    "qk-layernorm", "untie-embeddings-and-output-weights", "vocab-size", "padded-vocab-size", "make-vocab-size-divisible-by",
    "num-experts", "moe-*", "multi-latent-attention", "q-lora-rank", "kv-lora-rank", "qk-head-dim", "qk-pos-emb-head-dim",
    "v-head-dim", "window-size", "window-attn-skip-freq", "softmax-type", "mtp-num-layers", "attention-output-gate",
    "tokenizer-type",
)
"""Arguments that only describe the model: ignored where the model was named."""


def model_of(stated: Stated, name: str, tp: int, source: str) -> ModelSpec:
    """Return the model that arguments state, its vocabulary padded as Megatron-LM does."""
    stated.refuse(OTHER_MODELS, NAME_IT)
    hidden = _needed(stated, "hidden-size")
    num_layers = _needed(stated, "num-layers")
    rms = stated.choice("normalization", ("LayerNorm", "RMSNorm"), "LayerNorm") == "RMSNorm"
    bias = not stated.flag("disable-bias-linear")
    max_seq_len = stated.whole("max-position-embeddings") or stated.whole("seq-length", 0)
    positions = _positions(stated)
    mixer = _mixer(stated, hidden, positions, bias)
    kinds, pattern = _layers(stated, hidden, num_layers, mixer, bias)
    window = stated.text("window-size")
    if window and isinstance(mixer, SelfAttention):
        kinds, pattern = _windowed(stated, kinds, num_layers, window)
    model = ModelSpec(
        name=name, family="llama" if rms else "gpt2", hidden=hidden, vocab=_vocabulary(stated, tp), max_seq_len=max_seq_len,
        kinds=kinds, pattern=pattern, norm="rms_norm" if rms else "layer_norm", norm_bias=not rms,
        learned_positions=max_seq_len if positions == "learned" else 0,
        tied_embeddings=not stated.flag("untie-embeddings-and-output-weights"), mtp_layers=stated.whole("mtp-num-layers"),
        source=source,
    )
    check_spec(model)
    return model


def _needed(stated: Stated, name: str) -> int:
    if name not in stated.left:
        raise stated.fault(name, f"is missing; or {NAME_IT}")
    return stated.whole(name, least=1)


def _positions(stated: Stated) -> str:
    known = {"learned_absolute": "learned", "rope": "rotary", "yarn": "rotary", "none": "none"}
    kind = stated.choice("position-embedding-type", known, "learned_absolute")
    return "rotary" if stated.flag("use-rotary-position-embeddings") else known[kind]


def _mixer(stated: Stated, hidden: int, positions: str, bias: bool) -> Mixer:
    heads = _needed(stated, "num-attention-heads")
    if stated.flag("multi-latent-attention"):
        return LatentAttention(
            num_heads=heads, q_lora_rank=stated.whole("q-lora-rank"), kv_lora_rank=stated.whole("kv-lora-rank", 32),
            nope_dim=stated.whole("qk-head-dim", 128), rope_dim=stated.whole("qk-pos-emb-head-dim", 64),
            value_dim=stated.whole("v-head-dim", 128), positions=positions if positions != "learned" else "none", out_bias=bias,
        )
    width = stated.whole("kv-channels") or hidden // heads
    groups = stated.whole("num-query-groups", 1) if stated.flag("group-query-attention") else heads
    if groups < 1 or heads % groups:
        raise stated.fault("num-query-groups", f"{groups} do not divide {heads} heads")
    share = stated.number("rotary-percent", 1.0, 0.0)
    sinks = stated.choice("softmax-type", ("vanilla", "off-by-one", "learnable"), "vanilla")
    return SelfAttention(
        num_heads=heads, num_kv_heads=groups, head_dim=width, positions=positions,
        rope_dim=int(width * share) if positions == "rotary" and share < 1 else 0,
        qkv_bias=bias or stated.flag("add-qkv-bias"), out_bias=bias,
        qk_norm="head" if stated.flag("qk-layernorm") else "none",
        gate=stated.flag("attention-output-gate"), sinks=sinks == "learnable",
    )


def _layers(
    stated: Stated, hidden: int, num_layers: int, mixer: Mixer, bias: bool
) -> tuple[tuple[LayerSpec, ...], tuple[int, ...]]:
    """Return the kinds of layers and which each is; those with experts are the last kind."""
    gated = stated.flag("swiglu")
    squared, _gelu = stated.flag("squared-relu"), stated.flag("openai-gelu")
    if stated.flag("quick-geglu"):
        raise stated.fault("quick-geglu", f"is not read here; {NAME_IT}")
    activation = "swiglu" if gated else "relu2" if squared else "gelu"
    # arguments.py: four times as wide, or as many parameters as that with a gate, in steps of 64
    width = stated.whole("ffn-hidden-size") or (int(4 * hidden * 2 / 3 / 64) * 64 if gated else 4 * hidden)
    dense: Ffn = FeedForward(hidden=width, activation=activation, bias=bias)
    num = stated.whole("num-experts")
    if not num:
        return (LayerSpec(mixer=mixer, ffn=dense),), (0,) * num_layers
    experts = Experts(
        num_experts=num, top_k=stated.whole("moe-router-topk", 2), hidden=stated.whole("moe-ffn-hidden-size") or width,
        activation=activation, bias=bias, router_bias=stated.flag("moe-router-enable-expert-bias"),
        shared_hidden=stated.whole("moe-shared-expert-intermediate-size"), shared_gate=stated.flag("moe-shared-expert-gate"),
    )
    with_experts = LayerSpec(name="moe", mixer=mixer, ffn=experts)
    each = _frequency(stated, num_layers)
    if all(each):
        return (with_experts,), (0,) * num_layers
    return (LayerSpec(name="dense", mixer=mixer, ffn=dense), with_experts), tuple(each)


def _frequency(stated: Stated, num_layers: int) -> list[int]:
    """Return for each layer whether it has experts: every n-th from the first, or as a pattern like ([0]*3+[1]*58) says."""
    text = stated.text("moe-layer-freq", "1").strip("'\" ")
    if "[" not in text:
        every = int(text) if text.isdigit() and int(text) else 1
        return [int(i % every == 0) for i in range(num_layers)]
    try:
        each = _listed(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError):
        raise stated.fault("moe-layer-freq", f"must be a number or a pattern like ([0]*3+[1]*58) (is {text!r})") from None
    if len(each) != num_layers or set(each) - {0, 1}:
        raise stated.fault("moe-layer-freq", f"{text} is a pattern of {len(each)} zeros and ones; there are "
                           f"{num_layers} layers")
    return each


def _listed(node: ast.expr) -> list[int]:
    if isinstance(node, ast.List):
        return [int(ast.literal_eval(e)) for e in node.elts]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _listed(node.left) + _listed(node.right)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        times = ast.literal_eval(node.right)
        if isinstance(times, int) and 0 <= times <= 10_000:
            return _listed(node.left) * times
    raise ValueError("no pattern")


def _windowed(
    stated: Stated, kinds: tuple[LayerSpec, ...], num_layers: int, window: str
) -> tuple[tuple[LayerSpec, ...], tuple[int, ...]]:
    """Return layers with a window; each `window-attn-skip-freq`-th is without."""
    reach = re.match(r"^\(?\s*(\d+)", window)
    if not reach or len(kinds) > 1:
        raise stated.fault("window-size", f"{window} is not read here; {NAME_IT}")
    layer, skip = kinds[0], stated.whole("window-attn-skip-freq")
    assert isinstance(layer.mixer, SelfAttention)
    near = LayerSpec(name="sliding", ffn=layer.ffn, mixer=replace(layer.mixer, window=int(reach[1]) + 1))
    if not skip:
        return (near,), (0,) * num_layers
    far = LayerSpec(name="full", ffn=layer.ffn, mixer=layer.mixer)
    return (near, far), tuple(int((i + 1) % skip == 0) for i in range(num_layers))


def _vocabulary(stated: Stated, tp: int) -> int:
    padded = stated.whole("padded-vocab-size")
    # a file of merges without a type of tokenizer is GPT-2's
    tokenizer = stated.text("tokenizer-type", "GPT2BPETokenizer" if "merge-file" in stated.left else "")
    vocab = stated.whole("vocab-size") or VOCABULARY.get(tokenizer, 0)
    multiple = stated.whole("make-vocab-size-divisible-by", 128, 1) * tp
    if not (padded or vocab):
        raise stated.fault("vocab-size", f"is not stated, and {tokenizer or 'no tokenizer'} does not tell it; add "
                           f"--vocab-size, or {NAME_IT}")
    return padded or -(-vocab // multiple) * multiple
