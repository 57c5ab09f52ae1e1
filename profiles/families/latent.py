"""Multi-head latent attention and its lightning indexer: parameters and operators."""

from __future__ import annotations

from profiles.attention import Attention
from profiles.families.attention import attend
from profiles.families.pieces import Item, Shape, fan_in, gather, gemm, linear_params, pointwise, scatter
from profiles.model import LatentAttention, ModelSpec, ParamSpec


def params(spec: ModelSpec, mixer: LatentAttention) -> tuple[ParamSpec, ...]:
    """Return the parameters; projections down are whole on each tp rank, those up are cut by heads."""
    h, heads, rank = spec.hidden, mixer.num_heads, mixer.kv_lora_rank
    query = heads * mixer.head_dim
    queries = (
        *linear_params("attn.wq_down", mixer.q_lora_rank, h, None, mixer.down_bias),
        ParamSpec(name="attn.q_norm.weight", shape=(mixer.q_lora_rank,)),
        *linear_params("attn.wq_up", query, mixer.q_lora_rank, 0),
    ) if mixer.q_lora_rank else linear_params("attn.wq", query, h, 0)
    return (
        *queries,
        *linear_params("attn.wkv_down", rank + mixer.rope_dim, h, None, mixer.down_bias),
        ParamSpec(name="attn.kv_norm.weight", shape=(rank,)),
        *linear_params("attn.wkv_up", heads * (mixer.nope_dim + mixer.value_dim), rank, 0),
        *_indexer_params(spec, mixer),
        *(linear_params("attn.gate", heads * mixer.value_dim, h, 0) if mixer.gate else ()),
        *linear_params("attn.wo", h, heads * mixer.value_dim, 1, mixer.out_bias),
    )


def _indexer_params(spec: ModelSpec, mixer: LatentAttention) -> tuple[ParamSpec, ...]:
    if not mixer.indexer_heads:
        return ()
    heads, dim = mixer.indexer_heads, mixer.indexer_dim
    return (
        *linear_params("attn.indexer.wq", heads * dim, mixer.q_lora_rank or spec.hidden, None),
        *linear_params("attn.indexer.wk", dim, spec.hidden, None),
        ParamSpec(name="attn.indexer.k_norm.weight", shape=(dim,)),
        ParamSpec(name="attn.indexer.k_norm.bias", shape=(dim,)),
        *linear_params("attn.indexer.weights", heads, spec.hidden, None),
    )


def items(spec: ModelSpec, mixer: LatentAttention, shape: Shape) -> tuple[Item, ...]:
    """Return the operators; under tp the latents are gathered, which are narrower than the residual stream."""
    t, local, h, heads = shape.tokens, shape.local_tokens, spec.hidden, mixer.num_heads / shape.tp
    latent = mixer.kv_lora_rank + mixer.rope_dim
    readers = 2 + 2 * bool(mixer.indexer_heads) + mixer.gate
    return (
        *fan_in("attn.fan_in", local, h, shape, readers),
        *_queries(spec, mixer, shape),
        gemm("attn.wkv_down", local, h, latent, shape, saves_input=not mixer.q_lora_rank),
        pointwise("attn.kv_norm", "rms_norm", local, mixer.kv_lora_rank, shape),
        *gather("attn.kv", latent, shape),
        gemm("attn.wkv_up", t, mixer.kv_lora_rank, heads * (mixer.nope_dim + mixer.value_dim), shape),
        *((pointwise("attn.rope.q", "rope", t, heads * mixer.rope_dim, shape),
           pointwise("attn.rope.k", "rope", t, mixer.rope_dim, shape)) if mixer.positions == "rotary" else ()),
        *_indexer(spec, mixer, shape),
        *attend(
            heads=mixer.num_heads, kv_heads=mixer.num_heads, head_dim=mixer.head_dim, value_dim=mixer.value_dim,
            window=mixer.index_topk, block=0, shape=shape,
        ),
        *_gate(spec, mixer, shape),
        gemm("attn.wo", t, heads * mixer.value_dim, h, shape, saves_input=mixer.gate),
        *scatter("attn", h, shape),
    )


def _queries(spec: ModelSpec, mixer: LatentAttention, shape: Shape) -> tuple[Item, ...]:
    local, rank, query = shape.local_tokens, mixer.q_lora_rank, mixer.num_heads * mixer.head_dim / shape.tp
    if not rank:
        return (*gather("attn", spec.hidden, shape), gemm("attn.wq", shape.tokens, spec.hidden, query, shape))
    return (
        gemm("attn.wq_down", local, spec.hidden, rank, shape),
        pointwise("attn.q_norm", "rms_norm", local, rank, shape),
        *gather("attn.q", rank, shape),
        gemm("attn.wq_up", shape.tokens, rank, query, shape),
    )


def _gate(spec: ModelSpec, mixer: LatentAttention, shape: Shape) -> tuple[Item, ...]:
    if not mixer.gate:
        return ()
    width = mixer.num_heads * mixer.value_dim / shape.tp
    return (
        *gather("attn.gate", spec.hidden, shape),
        gemm("attn.gate", shape.tokens, spec.hidden, width, shape, saves_input=False),
        pointwise("attn.gate.mul", "gate", shape.tokens, width, shape),
    )


def _indexer(spec: ModelSpec, mixer: LatentAttention, shape: Shape) -> tuple[Item, ...]:
    """Return the indexer's projections and scores: each tp rank scores the queries whose residual stream it holds."""
    if not mixer.indexer_heads:
        return ()
    local, heads, dim = shape.local_tokens, mixer.indexer_heads, mixer.indexer_dim
    source = mixer.q_lora_rank or spec.hidden
    return (
        gemm("attn.indexer.wq", local, source, heads * dim, shape, saves_input=False),
        gemm("attn.indexer.wk", local, spec.hidden, dim, shape, saves_input=False),
        pointwise("attn.indexer.k_norm", "layer_norm", local, dim, shape),
        gemm("attn.indexer.weights", local, spec.hidden, heads, shape, saves_input=False),
        *gather("attn.indexer", dim, shape),
        # scores and their sum over heads, but no values: as attention with a value of one channel
        Attention(
            name="attn.indexer.scores", batch=shape.micro_batch, heads=heads, kv_heads=1, head_dim=dim, value_dim=1,
            seq_len=local / shape.micro_batch, kv_len=shape.seq_len, dtype=shape.dtype,
        ),
    )
