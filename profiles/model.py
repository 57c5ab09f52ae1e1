"""Models: what layers are made of, and parameters. Never a strategy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from profiles.ops import Num

Part = str
"""`embedding`, a kind of layer (`LayerSpec.name`), `mtp` (the multi-token-prediction layers) or `head`."""

OTHER_PARTS = ("embedding", "head", "mtp")
"""Parts that are no kind of layer, whose names no kind may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfAttention:
    """Multi-head, grouped-query or multi-query attention.

    `value_dim`: width of a value (0: as wide as a key). `window`: tokens of reach (0: all); `block`: only keys of the same
    block of that many tokens are met (Llama 4; 0: all). `positions`: rotary, alibi, learned or none; `rope_dim`: channels of
    a head that turn (0: all). `qk_norm`: none, head (one weight of head_dim for all heads), all (a weight for each channel) or
    plain (no weight); `value_norm`: a plain one of the values too. `gate`: a gate on the output, out of a query
    projection twice as wide. `sinks`: a learned logit for each head. `shared_kv`: keys serve as values too.
    """

    kind: Literal["attention"] = "attention"
    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int = 0
    window: int = 0
    block: int = 0
    positions: str = "rotary"
    rope_dim: int = 0
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: str = "none"
    value_norm: bool = False
    gate: bool = False
    sinks: bool = False
    shared_kv: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    `q_lora_rank`: width of the queries' latent (0: they are projected in one step); `kv_lora_rank`: that of keys and values.
    `nope_dim`, `rope_dim`: channels of a key head that do not turn, and that do. `positions`: rotary (over `rope_dim`
    channels, shared by all key heads) or none. `down_bias`: of the projections to the latents. `gate`: a gate on the output.
    `indexer_heads`, `indexer_dim`: the lightning indexer of sparse attention (DeepSeek-V3.2; 0 heads: none); `index_topk`:
    the keys that it lets each query meet.
    """

    kind: Literal["latent"] = "latent"
    num_heads: int
    q_lora_rank: int
    kv_lora_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    positions: str = "rotary"
    down_bias: bool = False
    out_bias: bool = False
    gate: bool = False
    indexer_heads: int = 0
    indexer_dim: int = 0
    index_topk: int = 0

    @property
    def num_kv_heads(self) -> int:
        """Return the heads of keys and values once expanded: as many as queries."""
        return self.num_heads

    @property
    def head_dim(self) -> int:
        """Return the width of a query or key head."""
        return self.nope_dim + self.rope_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSpace:
    """A Mamba-2 block (arXiv 2405.21060): projections, short convolution, chunked scan, gated norm.

    `state`: numbers that a channel remembers; `groups`: of heads that share what writes and reads them; `conv`: tokens of the
    convolution; `chunk`: tokens that the scan takes at once.
    """

    kind: Literal["mamba2"] = "mamba2"
    num_heads: int
    head_dim: int
    state: int
    groups: int
    conv: int
    chunk: int = 128
    conv_bias: bool = True
    proj_bias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearAttention:
    """Gated delta-rule attention (arXiv 2412.06464; Kimi Delta Attention, arXiv 2510.26692).

    `conv`: tokens of the convolution. `decay`: head (one decay a head, Gated DeltaNet) or channel (one a key channel through a
    low-rank projection, KDA); `decay_rank`: rank of that. `gate_rank`: rank of the output gate (0: a full projection).
    """

    kind: Literal["delta"] = "delta"
    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    conv: int
    decay: str = "head"
    decay_rank: int = 0
    gate_rank: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedForward:
    """A dense feed-forward block.

    `hidden`: its width. `activation`: swiglu (gated), geglu (gated), gelu or relu2.
    """

    kind: Literal["dense"] = "dense"
    hidden: int
    activation: str = "swiglu"
    bias: bool = False

    @property
    def gated(self) -> bool:
        """Return whether there are two projections up."""
        return self.activation in ("swiglu", "geglu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """A mixture of experts: a router, experts of which a token takes some, and a shared one for all tokens.

    `top_k`: experts of a token; `hidden`: width of each; `activation`: as of a dense block; `shared_hidden`: width of the
    shared one (0: none); `shared_gate`: a gate on it. `router_bias`: a correction that only the choice of experts sees
    (DeepSeek-V3; not trained by gradients, yet a parameter). `latent`: width to which tokens are projected before they are
    sent (0: none). `branch_norms`: the routed and the shared branch have norms of their own, and the router scales what it
    reads (Gemma 4).
    """

    kind: Literal["experts"] = "experts"
    num_experts: int
    top_k: int
    hidden: int
    activation: str = "swiglu"
    bias: bool = False
    router_bias: bool = False
    router_linear_bias: bool = False
    shared_hidden: int = 0
    shared_gate: bool = False
    latent: int = 0
    branch_norms: bool = False

    @property
    def gated(self) -> bool:
        """Return whether there are two projections up."""
        return self.activation in ("swiglu", "geglu")


Mixer = SelfAttention | LatentAttention | StateSpace | LinearAttention
Ffn = FeedForward | Experts


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """One kind of layer: a mixer along the sequence and a feed-forward block, either of which may be missing.

    `pre_norms`, `post_norms`: norms in front of each block, and behind it before the residual add (Gemma has both,
    OLMo 2 only the latter). `parallel`: both blocks read the same residual and are added to it at once, through one
    norm (Falcon 7B); `separate_norms`: then one each (GPT-NeoX).
    """

    name: str = "layer"
    mixer: Mixer | None
    ffn: Ffn | None
    pre_norms: bool = True
    post_norms: bool = False
    parallel: bool = False
    separate_norms: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A decoder-only model: kinds of layers, and which kind each layer is.

    `family`: whose tensor names and mathematics it has. `hidden`: width of the residual stream. `kinds`: of layers;
    `pattern`: for each layer the index of its kind. `norm`: rms_norm or layer_norm. `learned_positions`: rows of a position
    table (0: none). `tied_embeddings`: the head is the embedding. `mtp_layers`: further layers that predict later tokens while
    training (DeepSeek-V3, arXiv 2412.19437, section 2.2); they are trained, and not counted as the model's parameters;
    `mtp_kind`: their kind (none: the last).
    """

    name: str
    family: str
    hidden: int
    vocab: int
    max_seq_len: int
    kinds: tuple[LayerSpec, ...]
    pattern: tuple[int, ...]
    norm: str = "rms_norm"
    norm_bias: bool = False
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    learned_positions: int = 0
    embedding_norm: bool = False
    tied_embeddings: bool = False
    head_bias: bool = False
    mtp_layers: int = 0
    mtp_kind: LayerSpec | None = None
    source: str = ""

    @property
    def num_layers(self) -> int:
        """Return the number of layers, without those for multi-token prediction."""
        return len(self.pattern)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Return the parts that the model is made of, in the order of the forward pass."""
        mtp = ("mtp",) if self.mtp_layers else ()
        return ("embedding", *(k.name for k in self.kinds), "head", *mtp)

    def kind(self, part: Part) -> LayerSpec:
        """Return the kind of layer that a part is."""
        if part == "mtp":
            return self.mtp_kind or self.kinds[-1]
        return next(k for k in self.kinds if k.name == part)

    def describe_layers(self) -> str:
        """Return what the layers are made of, as a report shows it."""
        texts = []
        for kind in self.kinds:
            mixer, ffn = kind.mixer, kind.ffn
            words = []
            if isinstance(mixer, (SelfAttention, LatentAttention)):
                latent = "latent attention, " if isinstance(mixer, LatentAttention) else ""
                words.append(f"{latent}{mixer.num_heads} heads ({mixer.num_kv_heads} key-value)")
            elif mixer is not None:
                words.append(mixer.kind)
            if isinstance(ffn, FeedForward):
                words.append(f"FFN {ffn.hidden}")
            elif isinstance(ffn, Experts):
                words.append(f"{ffn.top_k} of {ffn.num_experts} experts of {ffn.hidden}")
            times = f"{self.times(kind.name)} x " if len(self.kinds) > 1 else ""
            texts.append(times + ", ".join(words))
        return "; ".join(texts)

    def times(self, part: Part) -> int:
        """Return how often a part occurs."""
        if part == "mtp":
            return self.mtp_layers
        names = [k.name for k in self.kinds]
        return self.pattern.count(names.index(part)) if part in names else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ParamSpec:
    """One parameter: its name in the executor's module, its shape, and the dim that may shard on tp (or none).

    `max_pieces`: into how many pieces that dim can be cut at most (key-value heads: more ranks hold copies).
    `expert`: the leading dim counts experts, which shard over ep; `tp_dim` then shards over expert tensor parallelism.
    `active`: the share of its elements that one token uses (experts: top_k of all).
    """

    name: str
    shape: tuple[int, ...]
    tp_dim: int | None = None
    max_pieces: int = 0
    expert: bool = False
    active: float = 1.0

    @property
    def num_elements(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)


def count(params: tuple[ParamSpec, ...], tp: Num = 1) -> Num:
    """Return how many elements of these parameters, experts apart, one tensor-parallel rank holds."""
    result: Num = sum(p.num_elements for p in params if p.tp_dim is None and not p.expert)
    for p in params:
        if p.tp_dim is not None and not p.expert:
            pieces = np.minimum(tp, p.max_pieces) if p.max_pieces else tp
            result = result + (p.num_elements / pieces if np.ndim(pieces) or pieces != 1 else p.num_elements)
    return result


def count_experts(params: tuple[ParamSpec, ...], ep: Num = 1, etp: Num = 1) -> Num:
    """Return how many elements of experts one rank holds: cut over ep, and over expert tensor parallelism."""
    whole = sum(p.num_elements for p in params if p.expert and p.tp_dim is None)
    sharded = sum(p.num_elements for p in params if p.expert and p.tp_dim is not None)
    return whole / ep + sharded / (ep * etp)
