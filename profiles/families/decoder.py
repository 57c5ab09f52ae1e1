"""A decoder out of its blocks: the parameters and the operators of each part."""

from __future__ import annotations

from profiles.families import attention, ffn, latent, recurrent
from profiles.families.pieces import (
    Item,
    Shape,
    fan_in,
    gather,
    gemm,
    norm,
    norm_params,
    pointwise,
    residual_add,
    scatter,
)
from profiles.matmul import Gemm
from profiles.model import (
    Experts,
    FeedForward,
    Ffn,
    LatentAttention,
    LayerSpec,
    Mixer,
    ModelSpec,
    ParamSpec,
    Part,
    SelfAttention,
    StateSpace,
)
from profiles.vocabulary import CrossEntropy, Embedding

PREFIX = {"attention": "attn", "latent": "attn", "mamba2": "ssm", "delta": "delta", "dense": "ffn", "experts": "ffn"}
"""Kind of block -> what the names of its parameters and operators begin with."""


def part_params(spec: ModelSpec, part: Part) -> tuple[ParamSpec, ...]:
    """Return the parameters of a part: one layer of a kind (named without its index), the embedding, the head, `mtp`."""
    h = spec.hidden
    if part == "embedding":
        return (
            ParamSpec(name="embed.weight", shape=(spec.vocab, h), tp_dim=0),
            *((ParamSpec(name="positions.weight", shape=(spec.learned_positions, h)),) if spec.learned_positions else ()),
            *(norm_params(spec, "embed_norm") if spec.embedding_norm else ()),
        )
    if part == "head":
        return (
            *norm_params(spec, "norm"), ParamSpec(name="head.weight", shape=(spec.vocab, h), tp_dim=0),
            *((ParamSpec(name="head.bias", shape=(spec.vocab,), tp_dim=0),) if spec.head_bias else ()),
        )
    layer = _layer_params(spec, spec.kind(part))
    if part == "mtp":
        # embedding and head are those of the model
        return (
            *norm_params(spec, "token_norm"), *norm_params(spec, "hidden_norm"),
            ParamSpec(name="merge.weight", shape=(h, 2 * h)), *layer, *norm_params(spec, "norm"),
        )
    return layer


def _layer_params(spec: ModelSpec, layer: LayerSpec) -> tuple[ParamSpec, ...]:
    result: list[ParamSpec] = []
    for i, block in enumerate(blocks(layer)):
        name = PREFIX[block.kind]
        own_norm = layer.pre_norms and (i == 0 or not layer.parallel or layer.separate_norms)
        result += norm_params(spec, f"{name}_norm") if own_norm else ()
        result += _block_params(spec, block)
        result += norm_params(spec, f"{name}_post_norm") if layer.post_norms else ()
    return tuple(result)


def blocks(layer: LayerSpec) -> tuple[Mixer | Ffn, ...]:
    """Return the blocks that a layer has."""
    return tuple(b for b in (layer.mixer, layer.ffn) if b is not None)


def _block_params(spec: ModelSpec, block: Mixer | Ffn) -> tuple[ParamSpec, ...]:
    if isinstance(block, SelfAttention):
        return attention.params(spec, block)
    if isinstance(block, LatentAttention):
        return latent.params(spec, block)
    if isinstance(block, StateSpace):
        return recurrent.state_space_params(spec, block)
    if isinstance(block, FeedForward):
        return ffn.dense_params(spec, block)
    if isinstance(block, Experts):
        return ffn.expert_params(spec, block)
    return recurrent.delta_params(spec, block)


def part_items(spec: ModelSpec, part: Part, shape: Shape) -> tuple[Item, ...]:
    """Return the operators and collectives of a part, in the order of the forward pass."""
    if part == "embedding":
        return (
            *_look_up(spec, shape),
            *((residual_add(spec, "embed.add", shape),) if spec.learned_positions else ()),
            *((norm(spec, "embed_norm", shape),) if spec.embedding_norm else ()),
        )
    if part == "head":
        return _head_items(spec, shape)
    if part == "mtp":
        return _mtp_items(spec, shape)
    return _layer_items(spec, spec.kind(part), shape)


def _look_up(spec: ModelSpec, shape: Shape) -> tuple[Item, ...]:
    """Return the token look-up; under tp the table is split by vocabulary and the partial rows are summed."""
    look_up = Embedding(
        name="embed", tokens=shape.tokens, hidden=spec.hidden, vocab=spec.vocab / shape.tp, dtype=shape.dtype
    )
    return (look_up, *scatter("embed", spec.hidden, shape))


def _head_items(spec: ModelSpec, shape: Shape) -> tuple[Item, ...]:
    """Return final norm, output projection (split by vocabulary) and loss; the matmul is never narrowed."""
    vocab = spec.vocab / shape.tp
    return (
        norm(spec, "norm", shape),
        *gather("head", spec.hidden, shape),
        Gemm(name="head", m=shape.tokens, k=spec.hidden, n=vocab, dtype=shape.dtype),
        CrossEntropy(name="loss", tokens=shape.tokens, vocab=vocab, dtype=shape.dtype, in_place=shape.loss_in_place),
    )


def _mtp_items(spec: ModelSpec, shape: Shape) -> tuple[Item, ...]:
    """Return a multi-token-prediction module: look-up, merge with the stream, one layer, head and loss."""
    local, h = shape.local_tokens, spec.hidden
    return (
        *_look_up(spec, shape),
        norm(spec, "token_norm", shape), norm(spec, "hidden_norm", shape),
        gemm("merge", local, 2 * h, h, shape),
        *_layer_items(spec, spec.kind("mtp"), shape),
        *_head_items(spec, shape),
    )


def _layer_items(spec: ModelSpec, layer: LayerSpec, shape: Shape) -> tuple[Item, ...]:
    if layer.parallel:
        return _parallel_items(spec, layer, shape)
    result: list[Item] = []
    for block in blocks(layer):
        name = PREFIX[block.kind]
        result += (norm(spec, f"{name}_norm", shape),) if layer.pre_norms else ()
        result += _block_items(spec, block, shape)
        result += (norm(spec, f"{name}_post_norm", shape),) if layer.post_norms else ()
        result += (residual_add(spec, f"{name}.add", shape),)
    return tuple(result)


def _block_items(spec: ModelSpec, block: Mixer | Ffn, shape: Shape) -> tuple[Item, ...]:
    if isinstance(block, SelfAttention):
        return attention.items(spec, block, shape)
    if isinstance(block, LatentAttention):
        return latent.items(spec, block, shape)
    if isinstance(block, StateSpace):
        return recurrent.state_space_items(spec, block, shape)
    if isinstance(block, FeedForward):
        return ffn.dense_items(spec, block, shape)
    if isinstance(block, Experts):
        return ffn.expert_items(spec, block, shape)
    return recurrent.delta_items(spec, block, shape)


def _parallel_items(spec: ModelSpec, layer: LayerSpec, shape: Shape) -> tuple[Item, ...]:
    """Return a layer whose blocks run side by side: their partial outputs are added first, then summed over tp once."""
    mixer, dense = layer.mixer, layer.ffn
    # `check_spec` refuses other blocks side by side
    assert isinstance(mixer, SelfAttention) and isinstance(dense, FeedForward)
    t, h = shape.tokens, spec.hidden
    attended, fed = attention.projections(mixer, shape), ffn.projections(dense, shape)
    entry: tuple[Item, ...] = (
        norm(spec, "attn_norm", shape), *gather("attn", h, shape), *fan_in("attn.fan_in", t, h, shape, attended),
        norm(spec, "ffn_norm", shape), *gather("ffn", h, shape), *fan_in("ffn.fan_in", t, h, shape, fed),
    ) if layer.separate_norms else (
        norm(spec, "attn_norm", shape), *gather("attn", h, shape),
        *fan_in("attn.fan_in", t, h, shape, attended + fed),
    )
    return (
        *entry,
        *attention.core(spec, mixer, shape),
        *ffn.dense_core(spec, dense, shape, saves_input=layer.separate_norms),
        pointwise("layer.sum", "add", t, h, shape),
        *scatter("layer", h, shape),
        residual_add(spec, "layer.add", shape),
    )
