"""One decoder for the families of `profiles/families`, cut into pipeline stages; math from `profiles/kernels.py`.

Shapes: B batch, S sequence (a shard of it under tensor parallelism), H heads, D head dim, C channels, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from profiles import kernels
from profiles.families import all_params
from profiles.model import FeedForward as FeedForwardSpec
from profiles.model import ModelSpec, ParamSpec, SelfAttention

aten = torch.ops.aten
KEPT_BY_SELECTIVE = frozenset({
    aten.mm.default, aten.addmm.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default, aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default, aten._scaled_dot_product_cudnn_attention.default,
})
"""Kernels whose outputs selective recomputation keeps: `kept_by_selective` of `profiles/ops.py`, in torch's names."""


def whole(weight: Tensor) -> Tensor:
    """Return a replicated weight as a plain tensor; under tensor parallelism each rank adds its shard's gradient."""
    return weight.to_local(grad_placements=[Partial()]) if isinstance(weight, DTensor) else weight


class Norm(nn.Module):
    """RMSNorm (llama) or LayerNorm (gpt2)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.eps = spec.norm_eps
        self.weight = nn.Parameter(torch.ones(spec.hidden))
        self.bias = nn.Parameter(torch.zeros(spec.hidden)) if spec.norm_bias else None

    def forward(self, x_BSC: Tensor) -> Tensor:
        """Return the normed residual stream."""
        if self.bias is None:
            return kernels.rms_norm(x_BSC, whole(self.weight), self.eps)
        return kernels.layer_norm(x_BSC, whole(self.weight), whole(self.bias), self.eps)


def attention_of(spec: ModelSpec) -> SelfAttention:
    """Return the attention block of a model whose layers are all alike."""
    mixer = spec.kinds[0].mixer
    assert isinstance(mixer, SelfAttention)
    return mixer


class Attention(nn.Module):
    """Grouped-query causal attention; under tensor parallelism each rank holds some of the heads."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        mixer = attention_of(spec)
        query, key_value = mixer.num_heads * mixer.head_dim, mixer.num_kv_heads * mixer.head_dim
        self.head_dim = mixer.head_dim
        self.wq = nn.Linear(spec.hidden, query, bias=mixer.qkv_bias)
        self.wk = nn.Linear(spec.hidden, key_value, bias=mixer.qkv_bias)
        self.wv = nn.Linear(spec.hidden, key_value, bias=mixer.qkv_bias)
        self.wo = nn.Linear(query, spec.hidden, bias=mixer.out_bias)

    def forward(self, x_BSC: Tensor, *rotary: Tensor) -> Tensor:
        """Return the attention output [B, S, C]; `rotary` is cos and sin [S, D], or nothing."""
        q_BSHD, k_BSHD, v_BSHD = (w(x_BSC).unflatten(-1, (-1, self.head_dim)) for w in (self.wq, self.wk, self.wv))
        if rotary:
            q_BSHD, k_BSHD = kernels.rope(q_BSHD, *rotary), kernels.rope(k_BSHD, *rotary)
        out: Tensor = self.wo(kernels.attention(q_BSHD, k_BSHD, v_BSHD).flatten(2))
        return out


class FeedForward(nn.Module):
    """SwiGLU (llama) or GELU (gpt2) between two projections."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        ffn = spec.kinds[0].ffn
        assert isinstance(ffn, FeedForwardSpec)
        self.w1 = nn.Linear(spec.hidden, ffn.hidden, bias=ffn.bias)
        self.w3 = nn.Linear(spec.hidden, ffn.hidden, bias=ffn.bias) if ffn.gated else None
        self.w2 = nn.Linear(ffn.hidden, spec.hidden, bias=ffn.bias)

    def forward(self, x_BSC: Tensor) -> Tensor:
        """Return the projected activations [B, S, C]."""
        hidden = kernels.gelu(self.w1(x_BSC)) if self.w3 is None else kernels.swiglu(self.w1(x_BSC), self.w3(x_BSC))
        out: Tensor = self.w2(hidden)
        return out


class Layer(nn.Module):
    """One transformer layer, pre-norm, with its recomputation."""

    def __init__(self, spec: ModelSpec, recompute: str) -> None:
        super().__init__()
        self.recompute = recompute
        self.attn_norm = Norm(spec)
        self.attn = Attention(spec)
        self.ffn_norm = Norm(spec)
        self.ffn = FeedForward(spec)

    def forward(self, x_BSC: Tensor, *rotary: Tensor) -> Tensor:
        """Return the residual stream after this layer."""
        if self.recompute == "none":
            return self._run(x_BSC, *rotary)
        more: dict[str, Any] = {"context_fn": _keep_matmuls} if self.recompute == "selective" else {}
        # dropout-free, so there is no random state to restore
        out: Tensor = checkpoint(self._run, x_BSC, *rotary, use_reentrant=False, preserve_rng_state=False, **more)
        return out

    def _run(self, x_BSC: Tensor, *rotary: Tensor) -> Tensor:
        x_BSC = x_BSC + self.attn(self.attn_norm(x_BSC), *rotary)
        out: Tensor = x_BSC + self.ffn(self.ffn_norm(x_BSC))
        return out


def _keep(_context: Any, op: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in KEPT_BY_SELECTIVE else CheckpointPolicy.PREFER_RECOMPUTE


_keep_matmuls = partial(create_selective_checkpoint_contexts, _keep)


class Stage(nn.Module):
    """A range of layers, with the embedding if it is the first stage, with final norm and head if it is the last.

    Parameters have the names and shapes of `profiles.families.all_params`, whatever the stage.
    """

    def __init__(
        self, spec: ModelSpec, *, layers: range | None = None, is_first: bool = True, is_last: bool = True,
        seq_len: int | None = None, recompute: str = "none",
    ) -> None:
        super().__init__()
        self.spec, self.is_first, self.is_last = spec, is_first, is_last
        self.seq_len = seq_len or spec.max_seq_len
        self.sequence_start = 0
        if is_first:
            self.embed = nn.Embedding(spec.vocab, spec.hidden)
            if spec.learned_positions:
                self.positions = nn.Embedding(spec.learned_positions, spec.hidden)
        layers = range(spec.num_layers) if layers is None else layers
        self.layers = nn.ModuleDict({str(i): Layer(spec, recompute) for i in layers})
        if is_last:
            self.norm = Norm(spec)
            self.head = nn.Linear(spec.hidden, spec.vocab, bias=False)
        self.rotary: tuple[Tensor, ...] = ()
        self.tie()
        self.fill_tables()

    def each_layer(self) -> list[tuple[str, Layer]]:
        """Return the layers of this stage by their index in the whole model."""
        return [(name, cast(Layer, layer)) for name, layer in self.layers.items()]

    def tie(self) -> None:
        """Share the embedding with the head where both are on this stage; needed again after each re-allocation."""
        if self.spec.tied_embeddings and self.is_first and self.is_last:
            self.head.weight = self.embed.weight

    def fill_tables(self) -> None:
        """Compute the rotary tables (cos and sin, each [S, D]; none for gpt2) on the device of the parameters."""
        if not self.spec.learned_positions:
            device = next(self.parameters()).device
            self.rotary = kernels.rope_tables(self.seq_len, attention_of(self.spec).head_dim, self.spec.rope_theta, device)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, S, V] (last stage) or the residual stream, from token ids [B, S] or a residual stream."""
        if self.is_first:
            x = self.embed(x)
            if self.spec.learned_positions:
                start = self.sequence_start
                x = x + whole(self.positions.weight)[start : start + x.shape[1]]
        # cast once here: a cast in each layer would keep a copy of the tables a layer
        rotary = tuple(table.to(x.dtype) for table in self.rotary)
        for _, layer in self.each_layer():
            x = layer(x, *rotary)
        return self.head(self.norm(x)) if self.is_last else x


def token_loss(logits_BSV: Tensor, targets_BS: Tensor) -> Tensor:
    """Return the mean token loss as a plain tensor; logits may be sharded over the vocabulary."""
    loss = kernels.cross_entropy(logits_BSV, targets_BS)
    return loss.to_local() if isinstance(loss, DTensor) else loss


def initial_weight(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Return the initial value of a whole parameter, a function of its name and the seed alone.

    Norms 1, biases 0, all else normal with deviation 0.02 (Radford et al. 2019).
    """
    if name.endswith("bias"):
        return torch.zeros(shape)
    if name.endswith("norm.weight"):
        return torch.ones(shape)
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.empty(shape).normal_(std=0.02, generator=generator)


@torch.no_grad()
def materialise(
    stage: Stage, device: torch.device | str, seed: int, mine: Callable[[ParamSpec, Tensor], Tensor] = lambda _, x: x,
) -> None:
    """Give a stage built on meta its memory and weights; `mine` picks this rank's piece of each parameter."""
    stage.to_empty(device=device)
    stage.tie()
    stage.fill_tables()
    specs = {p.name: p for p in all_params(stage.spec)}
    if stage.spec.tied_embeddings:
        # on a stage of its own a tied head is a second copy of the embedding
        specs["head.weight"] = specs["embed.weight"]
    for name, parameter in stage.named_parameters():
        spec = specs[name]
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        local.copy_(mine(spec, initial_weight(spec.name, spec.shape, seed)))
