"""Blocks of a decoder layer: norm, attention, feed-forward; math from `profiles/kernels.py`.

Shapes: B batch, S sequence (a shard of it under context or sequence parallelism), H heads, D head dim, C channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial

from profiles import kernels
from profiles.model import FeedForward as FeedForwardSpec
from profiles.model import ModelSpec, SelfAttention


def whole(weight: Tensor) -> Tensor:
    """Return a replicated weight as a plain tensor; under tensor parallelism each rank adds its shard's gradient."""
    return weight.to_local(grad_placements=[Partial()]) if isinstance(weight, DTensor) else weight


class Fp8Linear(nn.Linear):
    """A linear map that multiplies in FP8."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the map of the last dim."""
        return kernels.linear_fp8(x, self.weight, self.bias)


class Norm(nn.Module):
    """RMSNorm or LayerNorm over the last dim: the residual stream, or the heads of queries and keys."""

    def __init__(self, size: int, eps: float, *, bias: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the normed rows."""
        if self.bias is None:
            return kernels.rms_norm(x, whole(self.weight), self.eps)
        return kernels.layer_norm(x, whole(self.weight), whole(self.bias), self.eps)


def stream_norm(spec: ModelSpec) -> Norm:
    """Return a norm of the residual stream."""
    return Norm(spec.hidden, spec.norm_eps, bias=spec.norm_bias)


class Attention(nn.Module):
    """Grouped-query causal attention; under tensor parallelism each rank holds some of the heads.

    `attend` is the kernel: with context parallelism one of `executor/context.py`, which sees the other ranks' keys.
    """

    attend: Callable[[Tensor, Tensor, Tensor], Tensor]

    def __init__(self, spec: ModelSpec, mixer: SelfAttention) -> None:
        super().__init__()
        query, key_value = mixer.num_heads * mixer.head_dim, mixer.num_kv_heads * mixer.head_dim
        self.head_dim, self.attend = mixer.head_dim, kernels.attention
        self.wq = nn.Linear(spec.hidden, query, bias=mixer.qkv_bias)
        self.wk = nn.Linear(spec.hidden, key_value, bias=mixer.qkv_bias)
        self.wv = nn.Linear(spec.hidden, key_value, bias=mixer.qkv_bias)
        self.wo = nn.Linear(query, spec.hidden, bias=mixer.out_bias)
        has_norms = mixer.qk_norm == "head"
        self.q_norm = Norm(mixer.head_dim, spec.norm_eps) if has_norms else None
        self.k_norm = Norm(mixer.head_dim, spec.norm_eps) if has_norms else None

    def forward(self, x_BSC: Tensor, *rotary: Tensor) -> Tensor:
        """Return the attention output [B, S, C]; `rotary` is cos and sin [S, D], or nothing."""
        q_BSHD, k_BSHD, v_BSHD = (w(x_BSC).unflatten(-1, (-1, self.head_dim)) for w in (self.wq, self.wk, self.wv))
        if self.q_norm is not None and self.k_norm is not None:
            q_BSHD, k_BSHD = self.q_norm(q_BSHD), self.k_norm(k_BSHD)
        if rotary:
            q_BSHD, k_BSHD = kernels.rope(q_BSHD, *rotary), kernels.rope(k_BSHD, *rotary)
        out: Tensor = self.wo(self.attend(q_BSHD, k_BSHD, v_BSHD).flatten(2))
        return out


class FeedForward(nn.Module):
    """SwiGLU or GELU between two projections."""

    def __init__(self, spec: ModelSpec, ffn: FeedForwardSpec) -> None:
        super().__init__()
        self.w1 = nn.Linear(spec.hidden, ffn.hidden, bias=ffn.bias)
        self.w3 = nn.Linear(spec.hidden, ffn.hidden, bias=ffn.bias) if ffn.gated else None
        self.w2 = nn.Linear(ffn.hidden, spec.hidden, bias=ffn.bias)

    def forward(self, x_BSC: Tensor) -> Tensor:
        """Return the projected activations [B, S, C]."""
        hidden = kernels.gelu(self.w1(x_BSC)) if self.w3 is None else kernels.swiglu(self.w1(x_BSC), self.w3(x_BSC))
        out: Tensor = self.w2(hidden)
        return out
